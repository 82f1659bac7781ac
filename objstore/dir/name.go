package dir

import (
	"fmt"
	"strings"
)

// Names of the driver's own. Every other name that a filesystem takes stands for itself.
const (
	own     = ".mover"  // in the folder itself: what the driver keeps beside the objects
	asFile  = ".mover=" // NAME as a file: the name that ends a key, where it cannot stand for itself
	asDir   = ".mover~" // NAME as a folder: a name before a slash, likewise
	goesOn  = ".mover+" // NAME as a folder: a piece of a name, which goes on in there without a slash
	longest = 255       // bytes of a name
	piece   = 240       // bytes of an escaped piece
	deepest = 4000      // bytes of a path
)

// plain tells whether a name can stand for itself.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= longest && strings.IndexByte(name, 0) < 0 && name != own && !marked(name)
}

func marked(name string) bool {
	return strings.HasPrefix(name, asFile) || strings.HasPrefix(name, asDir) || strings.HasPrefix(name, goesOn)
}

var escaper = strings.NewReplacer("%", "%25", "\x00", "%00")

// unescape undoes what escaper does; false: it cannot have done that.
func unescape(name string) (string, bool) {
	if strings.IndexByte(name, '%') < 0 {
		return name, true
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		switch {
		case name[i] != '%':
			b.WriteByte(name[i])
			continue
		case strings.HasPrefix(name[i:], "%25"):
			b.WriteByte('%')
		case strings.HasPrefix(name[i:], "%00"):
			b.WriteByte(0)
		default:
			return "", false
		}
		i += 2
	}
	return b.String(), true
}

// pieces puts the pieces of a name that is too long for mark into folders, and gives what is left of it. A name that can stand for itself is left alone, but if
// it must have the mark.
func pieces(name, mark string, must bool, dirs []string) ([]string, string) {
	for (must || !plain(name)) && len(mark)+len(escaper.Replace(name)) > longest {
		n, size := 0, 0
		for n < len(name) {
			if size += len(escaper.Replace(name[n : n+1])); size > piece {
				break
			}
			n++
		}
		dirs, name = append(dirs, goesOn+escaper.Replace(name[:n])), name[n:]
	}
	return dirs, name
}

// place is where a file is.
type place struct {
	dir  string // "": the folder itself
	name string
}

func (p place) path() string { return join(p.dir, p.name) }

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// places gives where an object may be: where people would look for it, and where it is if a folder is in the way there. Most names that have to be escaped have
// one place only.
func places(key string) (first, second place) {
	names := strings.Split(key, "/")
	last := names[len(names)-1]
	dir := folder(names[:len(names)-1])
	dirs, rest := pieces(last, asFile, false, nil)
	first = place{below(dir, dirs), rest}
	if !plain(rest) {
		first.name = asFile + escaper.Replace(rest)
		return first, first
	}
	dirs, rest = pieces(rest, asFile, true, nil)
	return first, place{below(first.dir, dirs), asFile + escaper.Replace(rest)}
}

func below(dir string, dirs []string) string {
	for _, d := range dirs {
		dir = join(dir, d)
	}
	return dir
}

// folder is the path of the folder for names, each of which a slash ends.
func folder(names []string) string {
	var all []string
	for _, name := range names {
		dirs, rest := pieces(name, asDir, false, all)
		if !plain(rest) {
			rest = asDir + escaper.Replace(rest)
		}
		all = append(dirs, rest)
	}
	return strings.Join(all, "/")
}

// meaning is what a name on disk adds to a key; false: the name is of no object.
func meaning(name string, isDir bool) (string, bool) {
	switch {
	case plain(name):
		if isDir {
			return name + "/", true
		}
		return name, true
	case isDir && strings.HasPrefix(name, goesOn):
		return unescape(name[len(goesOn):])
	case isDir && strings.HasPrefix(name, asDir):
		s, ok := unescape(name[len(asDir):])
		return s + "/", ok
	case !isDir && strings.HasPrefix(name, asFile):
		return unescape(name[len(asFile):])
	}
	return "", false
}

// keyOf is the key of a file; false: it is of no object.
func keyOf(path string) (string, bool) {
	key := ""
	names := strings.Split(path, "/")
	for i, name := range names {
		more, ok := meaning(name, i < len(names)-1)
		if !ok {
			return "", false
		}
		key += more
	}
	return key, Key(key) == nil && proper(key, path)
}

// proper tells whether a file is at a place of its key: others may have made what only looks like an escaped name.
func proper(key, path string) bool {
	first, second := places(key)
	return path == first.path() || path == second.path()
}

// Key tells why a key cannot be stored.
func Key(key string) error {
	if len(key) == 0 || len(key) > 1024 {
		return fmt.Errorf("a key has 1 to 1,024 bytes, not %d", len(key))
	}
	if strings.Count(key, "/") > 100 || strings.IndexByte(key, 0) >= 0 || len(key) > 900 { // for nearly all it is not worth looking
		if first, second := places(key); max(len(first.path()), len(second.path())) > deepest {
			return fmt.Errorf("the path of a file for this key would have more than %d bytes", deepest)
		}
	}
	return nil
}
