package freeze

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const momentPrefix = "moment-"

// ApplicationOptions say how an application's commands run. Both are argument vectors; either may be empty.
type ApplicationOptions struct {
	Group  string        // MOVER_GROUP of the commands, and name of the record
	Pre    []string      // makes what the application has on disk consistent; before the freeze
	Post   []string      // undoes what Pre left behind; after the thaw. It must be idempotent
	Limit  time.Duration // of each command, which is killed with its children then; default 30 s
	RunDir string        // folder of the record that Post is owed
	Log    *slog.Logger  // default: slog.Default()
}

// Application runs an application's commands around moments. Once Pre has begun Post is owed: it runs when Pre fails, when the caller asks for
// it, before the next Pre, and, by the record, after this process was killed (PostStale). Safe for concurrent use.
type Application struct {
	o ApplicationOptions

	mu     sync.Mutex // guards all below; held while a command runs
	owed   bool
	moment string
}

// NewApplication makes one. What an earlier process of the same group still owed is owed by this one.
func NewApplication(o ApplicationOptions) *Application {
	if o.Limit <= 0 {
		o.Limit = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	a := &Application{o: o}
	if r, err := readRecord(a.path()); err == nil {
		a.owed, a.moment = true, r.Moment
	}
	return a
}

func (a *Application) path() string { return recordPath(a.o.RunDir, momentPrefix, a.o.Group) }

// Pre runs the pre command for a moment. When it fails, Post has run before Pre returns, and the applications are not prepared.
func (a *Application) Pre(ctx context.Context, moment string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.settle(); err != nil {
		return fmt.Errorf("%w; it is owed from an earlier moment, and until it has run no further moment begins", err)
	}
	if len(a.o.Pre) == 0 && len(a.o.Post) == 0 {
		return nil
	}
	if err := os.MkdirAll(a.o.RunDir, 0o700); err != nil {
		return fmt.Errorf("make the folder for the record of a moment: %w", err)
	}
	r := record{Name: a.o.Group, Moment: moment, Post: a.o.Post, Limit: a.o.Limit}
	if err := r.write(a.path()); err != nil {
		return err
	}
	a.owed, a.moment = true, moment
	if err := runCommand(ctx, a.o.Pre, r.env("pre"), a.o.Limit, a.o.Log); err != nil {
		return errors.Join(fmt.Errorf("pre hook of %s: %w", a.o.Group, err), a.settle())
	}
	return nil
}

// Post runs the post command if it is owed. When it fails it stays owed.
func (a *Application) Post() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.settle()
}

// settle is Post; mu is held.
func (a *Application) settle() error {
	if !a.owed {
		return nil
	}
	r := record{Name: a.o.Group, Moment: a.moment, Post: a.o.Post, Limit: a.o.Limit}
	if err := r.post(a.o.Log); err != nil {
		return err
	}
	a.owed = false
	return remove(a.path())
}

// env is what the commands of a moment get.
func (r record) env(phase string) []string {
	return []string{"MOVER_GROUP=" + r.Name, "MOVER_MOMENT=" + r.Moment, "MOVER_PHASE=" + phase}
}

func (r record) post(log *slog.Logger) error {
	if err := runCommand(context.Background(), r.Post, r.env("post"), r.Limit, log); err != nil {
		return fmt.Errorf("post hook of %s: %w", r.Name, err)
	}
	return nil
}

// PostStale runs the post commands that are recorded in runDir: for the start of the daemon, after the one before it was killed in a moment.
// Thaw first. It returns what ran; the record of what failed stays.
func PostStale(runDir string, log *slog.Logger) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(runDir, momentPrefix+"*.json"))
	if err != nil {
		return nil, err
	}
	var ran []string
	var errs []error
	for _, path := range paths {
		r, err := readRecord(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = r.post(log)
		}
		if err == nil {
			err = remove(path)
			ran = append(ran, "post hook of "+r.Name+": "+strings.Join(slices.Concat(r.Post), " "))
		}
		errs = append(errs, err)
	}
	return ran, errors.Join(errs...)
}
