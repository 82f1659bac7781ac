package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// mayExport refuses before anything is read.
func mayExport(format string) error {
	if format != "raw" && format != "qcow2" {
		return usagef("export: format %q is neither raw nor qcow2", format)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return fmt.Errorf("export needs qemu-img: install the package qemu-utils: %w", sentinel.ErrNotSupported)
	}
	return nil
}

// export writes a point to a new file through qemu-img, which compares it then. Under its name the file is whole.
func (g *gateway) export(ctx context.Context, r control.Request, tell func(mover.Progress)) (text string, err error) {
	if err := mayExport(r.Format); err != nil {
		return "", err
	}
	to := filepath.Clean(r.To)
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s exists; an export makes a new file: %w", to, sentinel.ErrRefused)
	}
	if err := g.server.MayWrite(to); err != nil {
		return "", err
	}
	k, size, done, err := g.server.OpenPoint(ctx, r.Flow, r.Point)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	claim, err := g.server.CheckPoint(ctx, r.Flow, r.Point, tell)
	if err != nil {
		return "", err
	}
	source, err := exportSource(k, size)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), ".mover-export-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	part := filepath.Join(dir, "part")
	for _, args := range [][]string{{"convert", "-p", "-O", r.Format, source, part}, {"compare", "-p", "-F", r.Format, source, part}} {
		if err := qemuImg(ctx, size, tell, args...); err != nil {
			return "", err
		}
	}
	f, err := os.Open(part)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", err
	}
	// A link does not replace what came into being meanwhile.
	if err := os.Link(part, to); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s of %s is exported to %s (%s), compared and equal%s", r.Point, r.Flow, to, r.Format, claim), nil
}

// exportSource tells qemu-img what to read. A target may be larger than its volume: only the volume is exported.
func exportSource(k blockdev.Kept, size int64) (string, error) {
	file := map[string]any{"driver": "file", "filename": k.Path()}
	if st, err := os.Stat(k.Path()); err == nil && st.Mode()&os.ModeDevice != 0 {
		file["driver"] = "host_device" // qemu-img takes no device for a file
	}
	raw := map[string]any{"driver": "raw", "file": file}
	if whole := (size + 511) / 512 * 512; k.Size() >= whole {
		raw["size"] = whole
	}
	b, err := json.Marshal(raw)
	return "json:" + string(b), err
}

// qemuImg runs one of its commands with -p and tells how far it is.
func qemuImg(ctx context.Context, size int64, tell func(mover.Progress), args ...string) error {
	var failed bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Stderr = &failed
	cmd.Stdout = &percents{began: time.Now(), say: func(percent float64, eta float64) {
		if tell != nil {
			tell(mover.Progress{Step: args[0], Text: "qemu-img " + args[0], Done: int64(percent / 100 * float64(size)), Total: size, ETA: eta})
		}
	}}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(failed.Bytes()))
	}
	return nil
}

// percents reads "    (12.34/100%)" again and again, as qemu-img -p writes it, and says it once a second.
type percents struct {
	began, said time.Time
	line        []byte
	say         func(percent, eta float64)
}

func (p *percents) Write(b []byte) (int, error) {
	for _, c := range b {
		switch c {
		case '(':
			p.line = p.line[:0]
		case '/':
			v, err := strconv.ParseFloat(string(p.line), 64)
			if err == nil && (time.Since(p.said) > time.Second || v >= 100) {
				p.said = time.Now()
				eta := -1.0
				if v > 0 {
					eta = time.Since(p.began).Seconds() * (100 - v) / v
				}
				p.say(v, eta)
			}
			p.line = p.line[:0]
		default:
			if len(p.line) < 16 {
				p.line = append(p.line, c)
			}
		}
	}
	return len(b), nil
}
