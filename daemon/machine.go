package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moverd/mover/internal/sentinel"
)

// machine tells a server from a copy of its disks that boots elsewhere. A copy has the server's config, certificate and state, and would
// replicate over the very target that it was started from, or fence the server off. What no copy has is the hardware's own name.
type machine struct {
	file   string   // in the state folder: what the first start saw
	places []string // files that hold a name of the hardware, the best one first
}

// record is the content of file.
type machineRecord struct {
	Hardware string    `json:"hardware"`
	Since    time.Time `json:"since"`
}

// hardwarePlaces are the firmware's name of the machine (SMBIOS, device tree), and a hypervisor's.
var hardwarePlaces = []string{"/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/product_serial", "/sys/class/dmi/id/board_serial",
	"/sys/hypervisor/uuid", "/sys/firmware/devicetree/base/serial-number"}

func machineOf(state string) machine {
	return machine{file: filepath.Join(state, "machine.json"), places: hardwarePlaces}
}

// errForeign: this is another machine than the one whose disks are moved.
var errForeign = errors.New("this is not the machine that was enrolled")

// hardware is the machine's name; "" when the firmware tells none.
func (m machine) hardware() string {
	for _, path := range m.places {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		name := strings.ToLower(strings.Trim(strings.TrimSpace(string(b)), "\x00"))
		if strings.Trim(name, "0-f ") == "" || strings.Contains(name, "not s") || strings.Contains(name, "o.e.m.") || name == "none" {
			continue // zeros, ones, "Not Specified", "To be filled by O.E.M."
		}
		return filepath.Base(path) + ":" + name
	}
	return ""
}

// check refuses another machine. A machine whose firmware tells no name is not refused: there the gateway's check of the volumes' identities
// has to do. Nothing is written.
func (m machine) check() error {
	b, err := os.ReadFile(m.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read which machine this was: %w", err)
	}
	var r machineRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("read which machine this was: %s: %w; if this is the server itself, remove the file", m.file, err)
	}
	now := m.hardware()
	if r.Hardware == "" || now == "" || now == r.Hardware {
		return nil
	}
	return fmt.Errorf("%w: its hardware is %s, the server's was %s (since %s); a copy of a server does not replicate. If this is the server itself "+
		"on other hardware: rm %s, then moverctl resume: %w", errForeign, now, r.Hardware, r.Since.Format(time.DateOnly), m.file, sentinel.ErrRefused)
}

// record notes this machine, once, before its first flow runs.
func (m machine) record() error {
	if _, err := os.Stat(m.file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name := m.hardware()
	if name == "" {
		return nil
	}
	b, err := json.Marshal(machineRecord{Hardware: name, Since: time.Now().UTC()})
	if err != nil {
		return err
	}
	temp := m.file + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("note which machine this is: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, m.file)
	}
	if err != nil {
		return fmt.Errorf("note which machine this is: %w", err)
	}
	return nil
}
