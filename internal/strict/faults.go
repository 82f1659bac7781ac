package strict

import (
	"fmt"
	"slices"
	"strings"
)

// Faults collects what is wrong with the values of a file, and where; the first in the order of the file is told.
type Faults struct {
	file  string
	lines map[string]int
	all   []*Error
}

// Line is where a key stands; 0: it does not.
func (f *Faults) Line(key string) int { return f.lines[key] }

// Add notes a fault of a key. A key that is missing is told on the line of what should hold it.
func (f *Faults) Add(key, format string, a ...any) {
	line := f.lines[key]
	for at := key; line == 0 && at != ""; {
		cut := strings.LastIndexAny(at, ".[")
		at = at[:max(cut, 0)]
		line = f.lines[at]
	}
	f.all = append(f.all, &Error{File: f.file, Line: line, Key: key, Text: fmt.Sprintf(format, a...)})
}

// Among notes a value that is none of those allowed.
func (f *Faults) Among(key, s string, allowed ...string) {
	if !slices.Contains(allowed, s) {
		f.Add(key, "%q is none of %s", s, strings.Join(allowed, ", "))
	}
}

// First is the first fault in the order of the file, an *Error, or nil.
func (f *Faults) First() error {
	if len(f.all) == 0 {
		return nil
	}
	slices.SortStableFunc(f.all, func(a, b *Error) int { return a.Line - b.Line })
	return f.all[0]
}
