// Package config reads moverd.yaml, strictly: what is not understood is refused with its key and line (moverd.yaml(5)).
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/moverd/mover/internal/strict"
	"github.com/moverd/mover/wire"
)

// Default is where the daemon looks without -c.
const Default = "/etc/mover/moverd.yaml"

// Config is a whole file. Either section may be missing.
type Config struct {
	Source  *Source  `yaml:"source,omitempty"`
	Gateway *Gateway `yaml:"gateway,omitempty"`
	Worker  *Worker  `yaml:"worker,omitempty"`
}

// Metrics is where Prometheus scrapes.
type Metrics struct {
	Listen string `yaml:"listen"` // host:port; off: nowhere
	Remote bool   `yaml:"remote"` // allow an address that is not loopback
}

// Source is the role that reads volumes.
type Source struct {
	State       File         `yaml:"state"`  // digest tables
	Run         File         `yaml:"run"`    // sockets, locks, records of freezes
	Socket      File         `yaml:"socket"` // control socket; default source.sock in Run
	Metrics     Metrics      `yaml:"metrics"`
	LogLevel    string       `yaml:"log-level"`         // debug, info, warn, error
	Gateway     Dial         `yaml:"gateway,omitempty"` // needed where there are Flows
	Links       []Link       `yaml:"links,omitempty"`   // ways to the gateway; none: what the routes say
	Limits      Limits       `yaml:"limits"`
	Compression string       `yaml:"compression"`
	Tracking    Tracking     `yaml:"tracking"`
	Audit       Audit        `yaml:"audit"`
	Prices      File         `yaml:"prices,omitempty"` // for moverctl cost and report
	Flows       []SourceFlow `yaml:"flows,omitempty"`
	Groups      []Group      `yaml:"groups,omitempty"`
	Queue       Queue        `yaml:"queue,omitempty"` // of Buckets, for workers elsewhere
	Buckets     []BucketFlow `yaml:"buckets,omitempty"`
	Regions     []string     `yaml:"regions,omitempty,flow"` // where buckets may be; none: the mainland
}

// Dial says how the gateway is reached.
type Dial struct {
	Address     string `yaml:"address"`        // host:port
	Name        string `yaml:"name,omitempty"` // in the gateway's certificate; default the host of Address
	CA          File   `yaml:"ca"`
	Cert        File   `yaml:"cert"`
	Key         File   `yaml:"key"`
	CRL         File   `yaml:"crl,omitempty"`        // lists of revoked certificates
	CRLStrict   bool   `yaml:"crl-strict,omitempty"` // refuse the gateway when a list has ended
	Connections int    `yaml:"connections"`          // for each flow
}

// Limits keep the source polite.
type Limits struct {
	Memory     Size   `yaml:"memory"`      // of the whole process
	ReadRate   Rate   `yaml:"read-rate"`   // for each flow; 0 none
	QueueDepth int    `yaml:"queue-depth"` // reads under way for each flow
	CPU        int    `yaml:"cpu"`         // cores; 0 all
	IOPriority string `yaml:"io-priority"` // idle, best-effort, none
}

// Tracking says how changes are found.
type Tracking struct {
	Method string `yaml:"method"` // auto, ebpf, scan
	Memory Size   `yaml:"memory"` // of the bitmaps of one volume, in the kernel
	PinDir File   `yaml:"pin-dir"`
}

// SourceFlow is one volume to move.
type SourceFlow struct {
	Name        string   `yaml:"name"`
	Volume      File     `yaml:"volume"`
	Interval    Duration `yaml:"interval"`          // between delta passes; 0s back to back
	OnReadError string   `yaml:"on-read-error"`     // stop, skip
	Cutover     Cutover  `yaml:"cutover,omitempty"` // nothing in a flow that is in a group: it is cut over with the others
}

// Cutover has the defaults of moverctl cutover.
type Cutover struct {
	Limit          Duration `yaml:"limit"`           // longest pause that is asked for
	FreezeDeadline Duration `yaml:"freeze-deadline"` // longest pause that is possible on the way to the commit
	StopHook       []string `yaml:"stop-hook,omitempty,flow"`
	StartHook      []string `yaml:"start-hook,omitempty,flow"`
	Leave          string   `yaml:"leave"` // frozen, read-only, stopped
}

// Gateway is the role that writes targets.
type Gateway struct {
	Listen   string        `yaml:"listen"`
	State    File          `yaml:"state"`  // catalog, redo logs, dedup index
	Run      File          `yaml:"run"`    // socket, lock
	Socket   File          `yaml:"socket"` // control socket; default gateway.sock in Run
	Metrics  Metrics       `yaml:"metrics"`
	LogLevel string        `yaml:"log-level"`
	TLS      TLS           `yaml:"tls"`
	Policy   File          `yaml:"policy,omitempty"` // which of Flows may be used, and how much; read again at a reload
	Memory   Size          `yaml:"memory"`           // of the whole process
	LogLimit Size          `yaml:"log-limit"`        // redo log of one flow; a larger pass is applied directly
	Dedup    Dedup         `yaml:"dedup"`
	Lines    []Line        `yaml:"lines,omitempty"` // that sources share; none: nothing is shaped
	Audit    Audit         `yaml:"audit"`
	Prices   File          `yaml:"prices,omitempty"` // for moverctl cost and report
	Flows    []GatewayFlow `yaml:"flows,omitempty"`
	Straight []Straight    `yaml:"straight,omitempty"` // that go past the gateway, over one of Lines

	Buckets []GatewayBucket `yaml:"buckets,omitempty"`
	Regions []string        `yaml:"regions,omitempty,flow"` // where buckets may be; none: the mainland
}

// Straight is a bucket flow that writes to its target past the gateway, and may have a lease of a line.
type Straight struct {
	Tenant string `yaml:"tenant"`
	Host   string `yaml:"host"`
	Name   string `yaml:"name"`
}

// TLS names the gateway's certificate and the CA of its sources.
type TLS struct {
	CA        File `yaml:"ca"`
	Cert      File `yaml:"cert"`
	Key       File `yaml:"key"`
	CRL       File `yaml:"crl,omitempty"`        // lists of revoked certificates
	CRLStrict bool `yaml:"crl-strict,omitempty"` // refuse everybody when a list has ended
}

// Files are the paths as wire wants them.
func (t TLS) Files() wire.Files {
	return wire.Files{CA: string(t.CA), Cert: string(t.Cert), Key: string(t.Key), CRL: string(t.CRL), CRLStrict: t.CRLStrict}
}

// Files are the paths as wire wants them.
func (d Dial) Files() wire.Files {
	return wire.Files{CA: string(d.CA), Cert: string(d.Cert), Key: string(d.Key), CRL: string(d.CRL), CRLStrict: d.CRLStrict}
}

// Dedup is the index of leaves.
type Dedup struct {
	Memory Size   `yaml:"memory"`
	Off    bool   `yaml:"off"`
	Scope  string `yaml:"scope"` // host, tenant: whose leaves and chunks answer an offer
	Cache  Size   `yaml:"cache"` // on disk, of the chunks of bucket flows
}

// GatewayFlow is one target and who may write it.
type GatewayFlow struct {
	Tenant string `yaml:"tenant"`
	Host   string `yaml:"host"`
	Name   string `yaml:"name"`
	Target File   `yaml:"target"`
	Size   Size   `yaml:"size,omitempty"`   // of the image file that create makes; 0: the volume's
	Create bool   `yaml:"create,omitempty"` // make the image file when it is missing
	Points Points `yaml:"points"`
}

// Points says which recovery points of a target are kept.
type Points struct {
	Method string `yaml:"method"` // auto, reflink, none
	Fuzzy  bool   `yaml:"fuzzy"`  // also points of no single moment
	Keep   Keep   `yaml:"keep"`
}

// Keep counts points: the last ones, and one for each of the latest hours and days that have any.
type Keep struct {
	Last   int `yaml:"last"`
	Hourly int `yaml:"hourly"`
	Daily  int `yaml:"daily"`
}

// Defaults are those of moverd.yaml(5).
func (f *GatewayFlow) Defaults() {
	f.Points = Points{Method: "auto", Keep: Keep{Last: 3, Hourly: 24, Daily: 7}}
}

// Defaults are those of moverd.yaml(5).
func (g *Group) Defaults() {
	*g = Group{Hooks: Hooks{Timeout: Duration(30 * time.Second)}, Cutover: defaultCutover(), Snapshot: "auto"}
}

func defaultCutover() Cutover {
	return Cutover{Limit: Duration(time.Second), FreezeDeadline: Duration(10 * time.Second), Leave: "frozen"}
}

// Defaults are those of moverd.yaml(5).
func (s *Source) Defaults() {
	*s = Source{
		State: "/var/lib/mover", Run: "/run/mover",
		Metrics:     Metrics{Listen: "127.0.0.1:9464"},
		LogLevel:    "info",
		Gateway:     Dial{Connections: 4},
		Limits:      Limits{Memory: 384 << 20, QueueDepth: 16, IOPriority: "idle"},
		Audit:       Audit{Keep: keepAudit},
		Compression: "auto",
		Tracking:    Tracking{Method: "auto", Memory: 64 << 20, PinDir: "/sys/fs/bpf/mover"},
	}
}

// Defaults are those of moverd.yaml(5).
func (f *SourceFlow) Defaults() {
	f.Interval = Duration(30 * time.Second)
	f.OnReadError = "stop"
	f.Cutover = defaultCutover()
}

// Defaults are those of moverd.yaml(5).
func (g *Gateway) Defaults() {
	*g = Gateway{
		Listen: ":9465", State: "/var/lib/mover", Run: "/run/mover",
		Metrics:  Metrics{Listen: "127.0.0.1:9466"},
		LogLevel: "info",
		Memory:   1 << 30,
		Audit:    Audit{Keep: keepAudit},
		LogLimit: 4 << 30,
		Dedup:    Dedup{Memory: 64 << 20, Scope: "host", Cache: 4 << 30},
	}
}

// Load reads and checks a file, for one role or for both (""): the certificates and hooks of the other one need not be on this host or
// in this unit. Every error is an *Error.
func Load(path, role string) (*Config, error) {
	if path == "" {
		path = Default
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Text: "no such file; write one as in moverd.yaml(5) or name another with -c"}
	} else if err != nil {
		return nil, &Error{File: path, Text: err.Error()}
	}
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o022 != 0 {
		// Hooks run as root: who may write this file may do everything.
		return nil, &Error{File: path, Text: fmt.Sprintf("may be written by others than its owner (mode %04o); chmod go-w", st.Mode().Perm())}
	}
	return parse(path, raw, role)
}

// parse checks raw, which came from file.
func parse(file string, raw []byte, role string) (*Config, error) {
	c := &Config{}
	faults, err := strict.Decode(file, raw, c, "is empty; it needs a section source:, gateway: or worker:")
	if err != nil {
		return nil, err
	}
	c.derive()
	v := &validator{faults, role}
	v.config(c)
	return c, v.First()
}

// derive fills what follows from other keys.
func (c *Config) derive() {
	if s := c.Source; s != nil {
		if s.Socket == "" {
			s.Socket = s.Run + "/source.sock"
		}
		if s.Sharing() == 0 && s.Gateway.Address == "" {
			s.Gateway = Dial{}
		}
		if s.Gateway.Name == "" {
			s.Gateway.Name = hostOf(s.Gateway.Address)
		}
		for i := range s.Flows {
			if s.GroupOf(s.Flows[i].Name) != nil {
				s.Flows[i].Cutover = Cutover{}
			}
		}
	}
	if w := c.Worker; w != nil {
		if w.Gateway.Address == "" {
			w.Gateway = Dial{}
		} else if w.Gateway.Name == "" {
			w.Gateway.Name = hostOf(w.Gateway.Address)
		}
	}
	if g := c.Gateway; g != nil && g.Socket == "" {
		g.Socket = g.Run + "/gateway.sock"
	}
}

// YAML prints the config that is in effect, defaults and all.
func (c *Config) YAML() ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(c); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}
