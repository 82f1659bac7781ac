package daemon

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moverd/mover/daemon/control"
	"github.com/moverd/mover/mover"
)

// line shows lines, or changes one.
func (g *gateway) line(r control.Request) (control.Result, error) {
	all := g.server.Lines()
	if r.Line == "" {
		if r.Set != nil {
			return control.Result{}, usagef("a change needs the name of a line")
		}
		return control.Result{Lines: all}, nil
	}
	var names []string
	for _, l := range all {
		names = append(names, l.Name)
		if l.Name == r.Line && r.Set == nil {
			return control.Result{Lines: []mover.LineStatus{l}}, nil
		}
	}
	if r.Set == nil || !slices.Contains(names, r.Line) {
		if len(names) == 0 {
			return control.Result{}, usagef("there is no line %q: gateway.lines names none", r.Line)
		}
		return control.Result{}, usagef("there is no line %q; there are %s", r.Line, strings.Join(names, " "))
	}
	l, err := g.server.SetLine(r.Line, *r.Set)
	if err != nil {
		return control.Result{}, err
	}
	text := fmt.Sprintf("line %s is as configured again", r.Line)
	if l.Set != nil {
		text = fmt.Sprintf("line %s was set", r.Line)
	}
	return control.Result{Text: text, Lines: []mover.LineStatus{l}}, nil
}
