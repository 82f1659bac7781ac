package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// PeerNames are the programs that a full pass is compared with.
var PeerNames = []string{"nbdcopy", "restic", "rsync", "zstd"}

// peerTitles is what tables call them.
var peerTitles = map[string]string{"nbdcopy": "nbdcopy over TLS", "restic": "restic backup", "rsync": "rsync -z (zstd), no TLS", "zstd": "zstd -3 -T0 over TLS"}

// carried is what a peer took for one copy.
type carried struct {
	secs   float64
	line   Traffic // of what it sent over a line
	stored int64   // restic: the bytes of its repository
}

// peer copies img once over a new line and checks the copy. restic has no line: it writes its repository beside the image.
func (l *Lines) peer(ctx context.Context, name string, img image, rate int64) (c carried, err error) {
	if err := cold(img.Path); err != nil {
		return c, err
	}
	if name == "restic" {
		return l.restic(ctx, img)
	}
	line, err := NewLine(ctx, rate)
	if err != nil {
		return c, err
	}
	r, err := NewRig(ctx, l.Bin, RigOptions{Line: line})
	if err != nil {
		return c, errors.Join(err, line.Close())
	}
	defer func() { err = errors.Join(err, r.Close(), line.Close()) }()
	out := filepath.Join(l.Work, "peer-copy.img")
	r.Defer(func() error { return ignoreGone(os.Remove(out)) })
	copier := map[string]func(context.Context, *Rig, image, string) (float64, error){"nbdcopy": nbdcopyLine, "rsync": rsyncLine, "zstd": zstdLine}[name]
	if c.secs, err = copier(ctx, r, img, out); err != nil {
		return c, fmt.Errorf("%s: %w", name, err)
	}
	if c.line, err = line.Sent(ctx); err != nil {
		return c, err
	}
	if err := compareSparse(ctx, img.Path, out, img.Size); err != nil {
		return c, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// server starts a peer's server at one end and waits until it listens.
func (r *Rig) server(ctx context.Context, port int, argv []string) (*Proc, error) {
	p, err := r.command(argv[0], argv[1:]...)
	if err != nil {
		return nil, err
	}
	if err := awaitListener(ctx, p, port); err != nil {
		p.Kill()
		b, _ := os.ReadFile(r.path(filepath.Base(argv[0]) + ".log"))
		return nil, fmt.Errorf("%w: %s", err, b)
	}
	return p, nil
}

// nbdcopyLine reads the device through nbdkit; it does not know what is free there.
func nbdcopyLine(ctx context.Context, r *Rig, img image, out string) (float64, error) {
	dev, err := r.attach(ctx, img.Path)
	if err != nil {
		return 0, err
	}
	certs := r.path("nbd")
	if err := nbdCerts(r.path("pki"), certs); err != nil {
		return 0, err
	}
	server, err := r.server(ctx, nbdPort, r.o.Line.Near("nbdkit", "-f", "-r", "-i", nearAddr, "-p", fmt.Sprint(nbdPort), "--tls=require", "--tls-certificates="+certs, "--tls-verify-peer", "file", dev))
	if err != nil {
		return 0, err
	}
	defer server.Kill()
	start := time.Now()
	argv := r.o.Line.Far("nbdcopy", "--flush", fmt.Sprintf("nbds://%s:%d/?tls-certificates=%s", nearAddr, nbdPort, certs), out)
	_, err = Run(ctx, argv[0], argv[1:]...)
	return time.Since(start).Seconds(), err
}

// rsyncLine sends the image file, whose holes it knows, to a daemon without encryption.
func rsyncLine(ctx context.Context, r *Rig, img image, out string) (float64, error) {
	conf := r.path("rsyncd.conf")
	text := fmt.Sprintf("use chroot = no\nuid = root\ngid = root\n[bench]\npath = %s\nread only = no\n", filepath.Dir(out))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return 0, err
	}
	server, err := r.server(ctx, rsyncPort, r.o.Line.Far("rsync", "--daemon", "--no-detach", "--config="+conf, "--address="+farAddr, fmt.Sprint("--port=", rsyncPort)))
	if err != nil {
		return 0, err
	}
	defer server.Kill()
	start := time.Now()
	argv := r.o.Line.Near("rsync", "--sparse", "--fsync", "-z", "--zc=zstd", img.Path, fmt.Sprintf("rsync://%s:%d/bench/%s", farAddr, rsyncPort, filepath.Base(out)))
	_, err = Run(ctx, argv[0], argv[1:]...)
	return time.Since(start).Seconds(), err
}

// zstdLine is the pipe that an administrator would build: the whole device, free space and all, through zstd and TLS.
func zstdLine(ctx context.Context, r *Rig, img image, out string) (float64, error) {
	dev, err := r.attach(ctx, img.Path)
	if err != nil {
		return 0, err
	}
	pki := r.path("pki")
	argv := r.o.Line.Far("sh", "-c", fmt.Sprintf("socat -u -b 262144 OPENSSL-LISTEN:%d,bind=%s,cert=%s/gw.pem,key=%s/gw.key,cafile=%s/ca.pem,verify=1 STDOUT | zstd -q -d -f --sparse -o %s && sync %s",
		pipePort, farAddr, pki, pki, pki, out, out))
	server, err := r.server(ctx, pipePort, argv)
	if err != nil {
		return 0, err
	}
	defer server.Kill()
	start := time.Now()
	argv = r.o.Line.Near("bash", "-o", "pipefail", "-c", fmt.Sprintf("zstd -q -3 -T0 -c <%s | socat -u -b 262144 STDIN OPENSSL:%s:%d,cert=%s/web1.pem,key=%s/web1.key,cafile=%s/ca.pem,verify=1,commonname=gw",
		dev, farAddr, pipePort, pki, pki, pki))
	if _, err := Run(ctx, argv[0], argv[1:]...); err != nil {
		return 0, err
	}
	select {
	case <-server.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return time.Since(start).Seconds(), server.err
}

// restic backs the image up into a new repository; the first time it is then read back from there and compared, which takes as long again.
func (l *Lines) restic(ctx context.Context, img image) (c carried, err error) {
	repo := filepath.Join(l.Work, "line-restic")
	if err := os.RemoveAll(repo); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(repo)) }()
	restic := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "restic", append([]string{"-q", "--no-cache", "-r", repo}, args...)...)
		cmd.Env = append(os.Environ(), "RESTIC_PASSWORD=bench")
		return cmd
	}
	if out, err := restic("init").CombinedOutput(); err != nil {
		return c, fmt.Errorf("restic init: %w: %s", err, out)
	}
	empty, err := diskUse(repo)
	if err != nil {
		return c, err
	}
	start := time.Now()
	if out, err := restic("backup", img.Path).CombinedOutput(); err != nil {
		return c, fmt.Errorf("restic backup: %w: %s", err, out)
	}
	c.secs = time.Since(start).Seconds()
	full, err := diskUse(repo)
	if err != nil {
		return c, err
	}
	c.stored = full - empty
	if l.stored[img.Path] > 0 {
		return c, nil
	}
	dump := restic("dump", "latest", img.Path)
	var msg tail
	dump.Stderr = &msg
	from, err := dump.StdoutPipe()
	if err != nil {
		return c, err
	}
	if err := dump.Start(); err != nil {
		return c, err
	}
	err = compareStream(from, img.Path)
	if err != nil {
		dump.Process.Kill()
	}
	if werr := dump.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("%w: %s", werr, msg.String())
	}
	if err != nil {
		return c, fmt.Errorf("restic dump: %w", err)
	}
	return c, nil
}

// compareStream compares all that from gives with a file.
func compareStream(from io.Reader, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(from, a)
		m, ferr := io.ReadFull(f, b)
		if at := differ(a[:min(n, m)], b[:min(n, m)]); at >= 0 || n != m {
			return fmt.Errorf("what was copied of %s differs within 1 MiB of byte %d", path, off)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err = errors.Join(err, ferr); err != nil {
			return err
		}
		off += int64(n)
	}
}

// diskUse is the sum of the sizes of all files below dir.
func diskUse(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			n += fi.Size()
		}
		return err
	})
	return n, err
}
