// Package lvm runs LVM's own commands, without a shell, and reads its reports. Names are judged before they reach a command line.
package lvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// settings of every command: nothing is written to /etc/lvm, which may lie on a filesystem that is frozen; times are seconds since 1970.
const settings = `backup{backup=0 archive=0} report{time_format="%s"}`

// Volume is a logical volume as a report tells it.
type Volume struct {
	VG, Name, UUID string
	Type           string // of its first segment: linear, striped, thin, thin-pool, ...
	Pool           string // of a thin volume
	Origin         string // of a snapshot
	Attr           string
	Health         string // "" is well
	Tags           []string
	Size           int64 // bytes
	Time           time.Time
	Data, Metadata float64 // percent in use, of a pool; a volume's Data is its share
}

// Group is a volume group.
type Group struct {
	Name         string
	Free, Extent int64 // bytes
	Shared       bool  // other hosts use it too, behind a lock daemon
}

// Installed tells whether LVM's commands are there.
func Installed() bool {
	_, err := exec.LookPath("lvm")
	return err == nil
}

// Volumes lists the volumes of a group, hidden ones too; "" is all groups.
func Volumes(ctx context.Context, vg string) ([]Volume, error) {
	args := []string{"lvs", "-a", "--segments", "-o", "vg_name,lv_name,lv_uuid,segtype,pool_lv,origin,lv_attr,lv_health_status,lv_tags,lv_size,lv_time,data_percent,metadata_percent"}
	out, err := report(ctx, args, vg)
	if err != nil {
		return nil, err
	}
	return parseVolumes(out)
}

// GroupOf tells how a volume group stands.
func GroupOf(ctx context.Context, vg string) (Group, error) {
	out, err := report(ctx, []string{"vgs", "-o", "vg_name,vg_free,vg_extent_size,vg_shared"}, vg)
	if err != nil {
		return Group{}, err
	}
	all, err := parseGroups(out)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("volume group %s: %w", vg, sentinel.ErrNotFound)
	}
	if err != nil {
		return Group{}, err
	}
	return all[0], nil
}

func report(ctx context.Context, args []string, vg string) ([]byte, error) {
	args = append(args, "--reportformat", "json", "--units", "b", "--nosuffix")
	if vg != "" {
		if err := Check(vg); err != nil {
			return nil, err
		}
		args = append(args, vg)
	}
	cmd := command(args)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := run(ctx, cmd, true); err != nil {
		return nil, explain(args, err, diag.String())
	}
	return out.Bytes(), nil
}

// Run runs a command that changes something. It is never cut off: a command that is killed may leave a volume suspended. When ctx ends first,
// it goes on, and done is called when it has ended.
func Run(ctx context.Context, done func(), args ...string) error {
	cmd := command(args)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	ended := make(chan error, 1)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return explain(args, err, "")
	}
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return explain(args, err, diag.String())
		}
		return nil
	case <-ctx.Done():
		go func() {
			<-ended
			if done != nil {
				done()
			}
		}()
		return fmt.Errorf("%s takes too long: %w", args[0], ctx.Err())
	}
}

// command: a group of its own keeps signals to the daemon's group away from it.
func command(args []string) *exec.Cmd {
	cmd := exec.Command("lvm", append(slices.Clone(args), "--config", settings)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// run waits for a report, which may be killed.
func run(ctx context.Context, cmd *exec.Cmd, kill bool) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		if kill {
			cmd.Process.Kill()
		}
	})
	defer stop()
	return errors.Join(cmd.Wait(), ctx.Err())
}

// explain: LVM's last line says why, the ones before warn of all kinds of things.
func explain(args []string, err error, diag string) error {
	lines := strings.Split(strings.TrimSpace(diag), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "WARNING:") || strings.TrimSpace(l) == "" })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if len(lines) == 0 {
		return fmt.Errorf("lvm %s: %w", args[0], err)
	}
	return fmt.Errorf("lvm %s: %w: %s", args[0], err, strings.Join(lines, "; "))
}

// Check refuses what is no name of a group or a volume, or could be taken for an option.
func Check(name string) error {
	ok := name != "" && name != "." && name != ".." && len(name) < 128 && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+_.-", r))
	}
	if !ok {
		return fmt.Errorf("%q is no name of a volume group or a logical volume: %w", name, sentinel.ErrUsage)
	}
	return nil
}

// Tag makes a tag of what people wrote.
func Tag(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+_.-/=", r) {
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), 200)]
}

// Split takes a mapped device's name apart: GROUP-VOLUME, with '-' inside of each doubled. A layer that LVM adds ("-real") makes it no volume.
func Split(name string) (vg, lv string, ok bool) {
	parts := strings.Split(strings.ReplaceAll(name, "--", "\x00"), "-")
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return "", "", false
	}
	back := func(s string) string { return strings.ReplaceAll(s, "\x00", "-") }
	return back(parts[0]), back(parts[1]), true
}

// Mapped is the name of a volume's mapped device.
func Mapped(vg, lv string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(vg) + "-" + double(lv)
}

type row map[string]string

func rows(b []byte, kind string) ([]row, error) {
	var r struct {
		Report []map[string][]row `json:"report"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read a report of lvm: %w", err)
	}
	var out []row
	for _, part := range r.Report {
		out = append(out, part[kind]...)
	}
	return out, nil
}

func parseVolumes(b []byte) ([]Volume, error) {
	// A report of segments has a row for each.
	all, err := rows(b, "seg")
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, r := range all {
		if slices.ContainsFunc(out, func(v Volume) bool { return v.UUID == r["lv_uuid"] }) {
			continue
		}
		v := Volume{VG: r["vg_name"], Name: strings.Trim(r["lv_name"], "[]"), UUID: r["lv_uuid"], Type: r["segtype"], Pool: strings.Trim(r["pool_lv"], "[]"),
			Origin: strings.Trim(r["origin"], "[]"), Attr: r["lv_attr"], Health: r["lv_health_status"]}
		if r["lv_tags"] != "" {
			v.Tags = strings.Split(r["lv_tags"], ",")
		}
		var err [4]error
		v.Size, err[0] = bytesOf(r["lv_size"])
		sec, e := bytesOf(r["lv_time"])
		v.Time, err[1] = time.Unix(sec, 0), e
		v.Data, err[2] = percent(r["data_percent"])
		v.Metadata, err[3] = percent(r["metadata_percent"])
		if err := errors.Join(err[:]...); err != nil {
			return nil, fmt.Errorf("read lvm's report of %s/%s: %w", v.VG, v.Name, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func parseGroups(b []byte) ([]Group, error) {
	all, err := rows(b, "vg")
	if err != nil {
		return nil, err
	}
	var out []Group
	for _, r := range all {
		free, err1 := bytesOf(r["vg_free"])
		extent, err2 := bytesOf(r["vg_extent_size"])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read lvm's report of %s: %w", r["vg_name"], err)
		}
		out = append(out, Group{Name: r["vg_name"], Free: free, Extent: extent, Shared: r["vg_shared"] != "" && r["vg_shared"] != "0"})
	}
	return out, nil
}

func bytesOf(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }

func percent(s string) (float64, error) {
	if s == "" {
		return 0, nil
	}
	return strconv.ParseFloat(s, 64)
}
