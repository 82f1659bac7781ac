package pki

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moverd/mover/internal/audit"
)

// TrailDir is the audit trail of the authority in dir.
func TrailDir(dir string) string { return filepath.Join(dir, "audit") }

// locked runs f while no other command or server changes the authority in dir.
func locked(dir string, f func() error) error {
	l, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer l.Close() // and the lock with it
	for {
		if err = unix.Flock(int(l.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", l.Name(), err)
	}
	return f()
}

// note appends to the trail of the authority; the caller holds its lock. A trail that cannot be written refuses what was to be recorded.
func note(dir string, r audit.Record) error {
	t, err := audit.New(audit.Config{Dir: TrailDir(dir)})
	if err != nil {
		return err
	}
	if err := t.Require(r); err != nil {
		return err
	}
	return t.Close()
}

// Note records what happened at the authority in dir.
func Note(dir string, r audit.Record) error {
	return locked(dir, func() error { return note(dir, r) })
}

// Self is the actor of what a command of this process does.
func Self() string { return fmt.Sprintf("uid:%d/pid:%d", os.Getuid(), os.Getpid()) }
