// Package strict reads YAML files that people write: what is not understood is refused with its file, line and key.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/moverd/mover/internal/sentinel"
)

// Error is one thing wrong with a file, on one line.
type Error struct {
	File string
	Line int    // 0: the file as a whole
	Key  string // path of the key, such as source.flows[0].volume; may be empty
	Text string
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where += ":" + strconv.Itoa(e.Line)
	}
	if e.Key != "" {
		where += ": " + e.Key
	}
	return where + ": " + e.Text
}

// Is makes every error of a file one of usage.
func (e *Error) Is(target error) bool { return target == sentinel.ErrUsage }

// Scalar is a value with a spelling of its own: sizes, rates, paths.
type Scalar interface{ Parse(s string) error }

// Defaulter is a section, or an element of a list, that has defaults.
type Defaulter interface{ Defaults() }

// decoder fills structs from YAML and remembers on which line each key stood.
type decoder struct {
	file  string
	lines map[string]int
	empty string // what to say of an empty file
}

// Decode fills v, a pointer to a struct that holds the defaults, from the only document in raw, which came from file. empty is what to say
// of a file without any. Fields have yaml tags. What is wrong with the values is collected in the Faults, which know the lines.
func Decode(file string, raw []byte, v any, empty string) (*Faults, error) {
	d := &decoder{file: file, lines: map[string]int{}, empty: empty}
	if err := d.document(bytes.NewReader(raw), v); err != nil {
		return nil, err
	}
	return &Faults{file: file, lines: d.lines}, nil
}

func (d *decoder) fail(n *yaml.Node, key, format string, a ...any) error {
	return &Error{File: d.file, Line: n.Line, Key: key, Text: fmt.Sprintf(format, a...)}
}

func (d *decoder) document(r io.Reader, v any) error {
	var root yaml.Node
	dec := yaml.NewDecoder(r)
	if err := dec.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			return &Error{File: d.file, Text: d.empty}
		}
		return d.syntax(err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); err == nil {
		return d.fail(&more, "", "a second document begins here; only one is allowed")
	} else if !errors.Is(err, io.EOF) {
		return d.syntax(err)
	}
	return d.value(root.Content[0], "", reflect.ValueOf(v).Elem())
}

// syntax turns "yaml: line 3: text" into an Error with its line.
func (d *decoder) syntax(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &Error{File: d.file, Text: text}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		no, what, _ := strings.Cut(rest, ": ")
		if line, err := strconv.Atoi(no); err == nil {
			e.Line, e.Text = line, what
		}
	}
	return e
}

func (d *decoder) value(n *yaml.Node, key string, v reflect.Value) error {
	d.lines[key] = n.Line
	if n.Kind == yaml.AliasNode {
		return d.fail(n, key, "aliases are not allowed; write the value out")
	}
	if s, ok := v.Addr().Interface().(Scalar); ok {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			return d.fail(n, key, "needs one value")
		}
		if err := s.Parse(n.Value); err != nil {
			return d.fail(n, key, "%v", err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
			if x, ok := v.Interface().(Defaulter); ok {
				x.Defaults()
			}
		}
		return d.value(n, key, v.Elem())
	case reflect.Struct:
		return d.mapping(n, key, v)
	case reflect.Slice:
		return d.sequence(n, key, v)
	}
	return d.scalar(n, key, v)
}

func (d *decoder) scalar(n *yaml.Node, key string, v reflect.Value) error {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return d.fail(n, key, "needs one value")
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || n.Tag != "!!bool" {
			return d.fail(n, key, "%q is neither true nor false", n.Value)
		}
		v.SetBool(b)
	case reflect.Int:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		if err != nil {
			return d.fail(n, key, "%q is not a whole number", n.Value)
		}
		v.SetInt(i)
	default:
		panic("strict: kind " + v.Kind().String())
	}
	return nil
}

func (d *decoder) sequence(n *yaml.Node, key string, v reflect.Value) error {
	if n.Kind != yaml.SequenceNode {
		return d.fail(n, key, "needs a list")
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, c := range n.Content {
		elem := v.Index(i)
		if x, ok := elem.Addr().Interface().(Defaulter); ok {
			x.Defaults()
		}
		if err := d.value(c, fmt.Sprintf("%s[%d]", key, i), elem); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value) error {
	if n.Kind != yaml.MappingNode {
		return d.fail(n, key, "needs keys and values")
	}
	fields := map[string]reflect.Value{}
	var names []string
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag != "" && tag != "-" {
			name, _, _ := strings.Cut(tag, ",")
			fields[name] = v.Field(i)
			names = append(names, name)
		}
	}
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i]
		path := join(key, name.Value)
		field, ok := fields[name.Value]
		if !ok {
			return d.fail(name, path, "unknown key; allowed here: %s", strings.Join(slices.Sorted(slices.Values(names)), ", "))
		}
		if line, twice := seen[name.Value]; twice {
			return d.fail(name, path, "stands here a second time; the first is on line %d", line)
		}
		seen[name.Value] = name.Line
		if err := d.value(n.Content[i+1], path, field); err != nil {
			return err
		}
		d.lines[path] = name.Line
	}
	return nil
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}
