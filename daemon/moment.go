package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// momentCopy is where the disks of a moment are copied to: into a folder of their own first, and to their names when all are whole.
type momentCopy struct {
	m         mover.Moment
	dir, part string
	ext       string
}

// copyMoment restores or exports every disk of a moment to a new file in a folder. Under their names there are all of them, or none.
func (g *gateway) copyMoment(ctx context.Context, verb string, r control.Request, tell func(mover.Progress)) (text string, err error) {
	if r.To != "" || r.Overwrite {
		return "", usagef("%s: --to-dir makes new files; --to and --overwrite are for a single point", verb)
	}
	if !filepath.IsAbs(r.Dir) {
		return "", usagef("%s: --to-dir %q is not an absolute path", verb, r.Dir)
	}
	m, err := g.server.Moment(r.Flow, r.Point)
	if err != nil {
		return "", err
	}
	if !m.Complete {
		return "", fmt.Errorf("moment %s has points of %d of %d disks%s: choose a whole one (moverctl points --moments %s), or %s single points: %w",
			m.ID, len(m.Points), m.Members, without(m), r.Flow, verb, sentinel.ErrRefused)
	}
	c := momentCopy{m: m, dir: filepath.Clean(r.Dir), ext: ".img"}
	c.part = filepath.Join(c.dir, m.ID+".incomplete")
	if verb == control.Export {
		if err := mayExport(r.Format); err != nil {
			return "", err
		}
		if r.Format == "qcow2" {
			c.ext = ".qcow2"
		}
	}
	for _, p := range m.Points { // nothing of it may age while another is copied
		_, _, done, oerr := g.server.OpenPoint(ctx, p.Flow, p.Point.ID)
		if oerr != nil {
			return "", oerr
		}
		defer func() { err = errors.Join(err, done()) }()
	}
	if err := c.prepare(g); err != nil {
		return "", err
	}
	for i, p := range m.Points {
		one := r
		one.Flow, one.Point, one.Dir, one.To = p.Flow, p.Point.ID, "", c.file(c.part, p)
		say := func(s mover.Progress) {
			s.Text = fmt.Sprintf("disk %d of %d, %s: %s", i+1, len(m.Points), path.Base(p.Flow), s.Text)
			tell(s)
		}
		if _, err := g.copyPoint(ctx, verb, one, say); err != nil {
			return "", c.giveUp(i, err)
		}
	}
	return c.name(verb)
}

func without(m mover.Moment) string {
	if len(m.Lacking) == 0 {
		return ""
	}
	return " (it lacks " + strings.Join(m.Lacking, ", ") + ")"
}

func (c *momentCopy) file(dir string, p mover.MomentMember) string {
	return filepath.Join(dir, path.Base(p.Flow)+c.ext)
}

// prepare makes the folders, and refuses what is in the way.
func (c *momentCopy) prepare(g *gateway) error {
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, p := range c.m.Points {
		to := c.file(c.dir, p)
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists; a moment is copied to new files: %w", to, sentinel.ErrRefused)
		}
		if err := g.server.MayWrite(to); err != nil {
			return err
		}
	}
	if err := os.Mkdir(c.part, 0o700); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists, of an attempt that is under way or was cut off; remove it first: %w", c.part, sentinel.ErrRefused)
	} else if err != nil {
		return err
	}
	return nil
}

// giveUp removes the disk that failed, and says which are whole.
func (c *momentCopy) giveUp(failed int, err error) error {
	p := c.m.Points[failed]
	rm := os.Remove(c.file(c.part, p))
	if errors.Is(rm, fs.ErrNotExist) {
		rm = nil
	}
	if failed == 0 {
		return errors.Join(fmt.Errorf("moment %s is not copied; no disk of it is whole: %s: %w", c.m.ID, p.Flow, err), rm, os.Remove(c.part))
	}
	var whole []string
	for _, p := range c.m.Points[:failed] {
		whole = append(whole, c.file(c.part, p))
	}
	return errors.Join(fmt.Errorf("moment %s is not copied as a whole: %s: %w; whole are only: %s", c.m.ID, p.Flow, err, strings.Join(whole, ", ")), rm)
}

// name gives all copies their names, or none.
func (c *momentCopy) name(verb string) (string, error) {
	var named, lines []string
	for _, p := range c.m.Points {
		to := c.file(c.dir, p)
		// A link does not replace what came into being meanwhile.
		if err := os.Link(c.file(c.part, p), to); err != nil {
			for _, n := range named {
				err = errors.Join(err, os.Remove(n))
			}
			return "", fmt.Errorf("every disk is whole, in %s, but cannot get its name: %w", c.part, err)
		}
		named = append(named, to)
		lines = append(lines, p.Flow+" is "+to)
	}
	if err := errors.Join(os.RemoveAll(c.part), syncDir(c.dir)); err != nil {
		return "", err
	}
	done := map[string]string{control.Restore: "restored", control.Export: "exported"}[verb]
	return fmt.Sprintf("moment %s of %s (%s) is %s, every disk compared and equal:\n%s", c.m.ID, c.m.Group, c.m.Worth, done, strings.Join(lines, "\n")), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
