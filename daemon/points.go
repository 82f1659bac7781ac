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

	"github.com/moverd/mover/blockdev"
	"github.com/moverd/mover/blockdev/disk"
	"github.com/moverd/mover/blockdev/points"
	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

func openPoints(method, target, owner, flow string) (blockdev.Points, error) {
	return points.Open(points.Options{Method: method, Target: target, Owner: owner, Flow: flow})
}

func openCopy(path string, size int64) (blockdev.Target, error) {
	t, err := disk.OpenTarget(path, disk.TargetOptions{Size: size, Create: true})
	if err != nil {
		return nil, err // no typed nil
	}
	return t, nil
}

// doPoints runs the verbs about recovery points.
func (g *gateway) doPoints(ctx context.Context, verb string, r control.Request, tell func(mover.Progress)) (control.Result, error) {
	if verb != control.Points && !filepath.IsAbs(r.To) {
		return control.Result{}, usagef("%s: --to %q is not an absolute path", verb, r.To)
	}
	var text string
	var err error
	switch {
	case verb == control.Restore:
		text, err = g.server.Restore(ctx, r.Flow, r.Point, filepath.Clean(r.To), r.Overwrite, tell)
	case verb == control.Export:
		text, err = g.export(ctx, r)
	case r.Change == "":
		all, err := g.server.Points(r.Flow)
		if err == nil && len(all) == 0 {
			text = "no recovery points are kept of " + r.Flow
		}
		return control.Result{Text: text, Points: all}, err
	case r.Change == "remove":
		text, err = r.Point+" is removed", g.server.RemovePoint(ctx, r.Flow, r.Point)
	case r.Change == "pin":
		text, err = r.Point+" is pinned", g.server.Pin(ctx, r.Flow, r.Point, true)
	case r.Change == "unpin":
		text, err = r.Point+" is no longer pinned", g.server.Pin(ctx, r.Flow, r.Point, false)
	default:
		err = usagef("points: change %q is none of pin, unpin, remove", r.Change)
	}
	if err != nil {
		text = ""
	}
	return control.Result{Text: text}, err
}

// export writes a point to a new file through qemu-img, which compares it then. Under its name the file is whole.
func (g *gateway) export(ctx context.Context, r control.Request) (text string, err error) {
	if r.Format != "raw" && r.Format != "qcow2" {
		return "", usagef("export: format %q is neither raw nor qcow2", r.Format)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return "", fmt.Errorf("export needs qemu-img: install the package qemu-utils: %w", sentinel.ErrNotSupported)
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
	file := map[string]any{"driver": "file", "filename": k.Path()}
	if st, err := os.Stat(k.Path()); err == nil && st.Mode()&os.ModeDevice != 0 {
		file["driver"] = "host_device" // qemu-img takes no device for a file
	}
	// A target may be larger than its volume: only the volume is exported.
	source, err := json.Marshal(map[string]any{"driver": "raw", "size": (size + 511) / 512 * 512, "file": file})
	if k.Size() < (size+511)/512*512 {
		source, err = json.Marshal(map[string]any{"driver": "raw", "file": file})
	}
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), ".mover-export-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	part := filepath.Join(dir, "part")
	for _, args := range [][]string{{"convert", "-O", r.Format, "json:" + string(source), part}, {"compare", "-F", r.Format, "json:" + string(source), part}} {
		if out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(out))
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
	return fmt.Sprintf("%s of %s is exported to %s (%s), compared and equal", r.Point, r.Flow, to, r.Format), nil
}
