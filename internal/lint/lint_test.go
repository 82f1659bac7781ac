// Package lint proves what the documents say about the code: the layers of ARCHITECTURE.md, the words of exported names, the list of metrics,
// and that every invariant is cited where it is kept and where it is attacked.
package lint

import (
	"bufio"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/moverd/mover"

// root is the top of the checkout.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// unit is one row of the table in ARCHITECTURE.md: packages that count as one when it is asked who may import whom.
type unit struct {
	name  string // path below the module
	level int    // twice the layer; "3-" is one less than "3"
}

// table reads the layers.
func table(t *testing.T) []unit {
	t.Helper()
	text := read(t, "ARCHITECTURE.md")
	row := regexp.MustCompile(`(?m)^\| (\d)(-?) \| ([^|]+) \|`)
	name := regexp.MustCompile(`\x60([^\x60]+)\x60`)
	var out []unit
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		level := int(m[1][0]-'0') * 2
		if m[2] == "-" {
			level--
		}
		for _, n := range name.FindAllStringSubmatch(m[3], -1) {
			out = append(out, unit{strings.TrimSuffix(n[1], "/*"), level})
		}
	}
	if len(out) < 15 {
		t.Fatalf("ARCHITECTURE.md: only %d packages were found in the table of layers", len(out))
	}
	return out
}

// unitOf finds the row with the longest name that pkg is, or lies below.
func unitOf(units []unit, pkg string) (unit, bool) {
	var best unit
	for _, u := range units {
		if (pkg == u.name || strings.HasPrefix(pkg, u.name+"/")) && len(u.name) > len(best.name) {
			best = u
		}
	}
	return best, best.name != ""
}

// pkg is what go list tells.
type pkg struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,GoFiles", "./...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// violations tells which imports go up or sideways.
func violations(units []unit, from string, imports []string) (bad []string) {
	a, ok := unitOf(units, from)
	if !ok {
		return []string{from + " stands in no row of ARCHITECTURE.md's table of layers"}
	}
	for _, path := range imports {
		to, ok := strings.CutPrefix(path, module+"/")
		if !ok {
			continue
		}
		b, ok := unitOf(units, to)
		switch {
		case !ok:
			bad = append(bad, fmt.Sprintf("%s imports %s, which stands in no row of the table of layers", from, to))
		case a.name == "internal" && b.name == "internal":
			// Small mechanisms may use each other; the compiler refuses cycles.
		case a.name == b.name && a.name != "internal":
			// A row is one unit.
		case isContract(a.name, b.name):
			// blockdev and objstore hold the contracts of what lies below them.
		case only[b.name] != nil && !slices.Contains(only[b.name], a.name):
			bad = append(bad, fmt.Sprintf("%s imports %s, which only %s may", from, to, strings.Join(only[b.name], " and ")))
		case b.level >= a.level:
			bad = append(bad, fmt.Sprintf("%s (layer %s) imports %s (layer %s)", from, layer(a), to, layer(b)))
		}
	}
	return bad
}

// only has the rows of half layers: they belong to few packages above them.
var only = map[string][]string{
	"mover/catalog":     {"mover/receiver", "daemon"},
	"mover/uplink":      {"mover/sender", "mover/relay", "daemon"},
	"cmd/internal/exit": {"cmd/moverd", "cmd/moverctl", "cmd/moverbench"},
}

// isContract tells whether b is the package of contracts that a implements.
func isContract(a, b string) bool {
	return strings.HasPrefix(a, b+"/") && (b == "blockdev" || b == "objstore")
}

func layer(u unit) string {
	if u.level%2 == 1 {
		return fmt.Sprintf("%d-", u.level/2+1)
	}
	return fmt.Sprint(u.level / 2)
}

func TestLayers(t *testing.T) {
	units := table(t)
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, v := range violations(units, from, p.Imports) {
			t.Error(v)
		}
	}
}

// The rule itself is tried on imports that must be refused.
func TestLayersRefuse(t *testing.T) {
	units := table(t)
	for _, c := range [][2]string{
		{"extent", "blockdev"}, {"blockdev/cbt", "mover"}, {"blockdev/cbt", "blockdev/disk"}, {"chunker", "wire"}, {"mover", "mover/sender"},
		{"mover/sender", "mover/receiver"}, {"mover/sender", "mover/catalog"}, {"mover/receiver", "daemon"}, {"daemon", "cmd/moverd"}, {"new/package", "extent"},
	} {
		if len(violations(units, c[0], []string{module + "/" + c[1]})) == 0 {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
	for _, c := range [][2]string{{"mover/receiver", "mover/catalog"}, {"blockdev/cbt", "blockdev"}, {"daemon", "mover/catalog"}, {"cmd/moverd", "daemon"}} {
		if v := violations(units, c[0], []string{module + "/" + c[1]}); len(v) != 0 {
			t.Error(v)
		}
	}
}

// The pure core does no I/O, reads no clock and starts no goroutine.
func TestCoreIsPure(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"/mover" {
			continue
		}
		for _, i := range p.Imports {
			if i == "os" || i == "net" || i == "io/fs" || i == "syscall" || strings.HasPrefix(i, "golang.org/x/sys") {
				t.Errorf("mover imports %s", i)
			}
		}
		for _, f := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("mover/%s starts a goroutine", f)
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Sleep", "After"}, n.Sel.Name) {
						t.Errorf("mover/%s reads the clock: time.%s", f, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// Names that the interface of a library asks for.
var givenNames = []string{"SyncData"}

// Words that the project does not use in names, because they say nothing or mean something else elsewhere.
var notUsed = regexp.MustCompile(`(Manager|Helper|Util|Common|Job|Task|Fingerprint)|(Data|Info)$`)

func TestWords(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(parsed) {
				continue
			}
			for _, d := range parsed.Decls {
				for _, name := range declared(d) {
					// DATA is a frame of the protocol, and data a kind of item.
					if ast.IsExported(name) && !slices.Contains(givenNames, name) && !(strings.HasSuffix(name, "Data") && p.ImportPath == module+"/wire") && notUsed.MatchString(name) {
						t.Errorf("%s/%s: the name %s has a word that is not used here", strings.TrimPrefix(p.ImportPath, module+"/"), f, name)
					}
				}
			}
		}
	}
}

func declared(d ast.Decl) (names []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		names = append(names, d.Name.Name)
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				names = append(names, s.Name.Name)
			case *ast.ValueSpec:
				for _, n := range s.Names {
					names = append(names, n.Name)
				}
			}
		}
	}
	return names
}

// Errors tell what happened, not that something "failed to".
func TestErrorTexts(t *testing.T) {
	bad := regexp.MustCompile(`(errors\.New|fmt\.Errorf)\("(failed to|[A-Z][a-z])`)
	sources(t, func(path, text string) {
		for _, m := range bad.FindAllString(text, -1) {
			t.Errorf("%s: %s", path, m)
		}
	})
}

func TestMetricsAreDocumented(t *testing.T) {
	doc := read(t, "docs/operations.md")
	listed := regexp.MustCompile(`\x60(mover_[a-z_]+)\x60`).FindAllStringSubmatch(doc, -1)
	names := exported()
	for _, name := range names {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("docs/operations.md does not list %s", name)
		}
	}
	for _, m := range listed {
		if !slices.Contains(names, m[1]) {
			t.Errorf("docs/operations.md lists %s, which no code shows", m[1])
		}
	}
}

// Every invariant is cited where it is kept and by a test that attacks it.
func TestInvariantsAreCited(t *testing.T) {
	cite := regexp.MustCompile(`\bC(20|1[0-9]|[1-9])\b`)
	code, tests := map[string]bool{}, map[string]bool{}
	sources(t, func(path, text string) {
		if strings.HasPrefix(path, "internal/lint/") {
			return
		}
		into := code
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "bench/") || strings.HasPrefix(path, "blockdev/devtest/") {
			into = tests
		}
		for l := bufio.NewScanner(strings.NewReader(text)); l.Scan(); {
			// Only comments cite; "C1, C9" and "C3 to C6" count each name that stands there.
			if _, comment, ok := strings.Cut(l.Text(), "//"); ok {
				for _, c := range cite.FindAllString(comment, -1) {
					into[c] = true
				}
			}
		}
	})
	for i := 1; i <= 20; i++ {
		c := fmt.Sprintf("C%d", i)
		if !strings.Contains(read(t, "docs/consistency.md"), "**"+c+"**") {
			t.Errorf("docs/consistency.md does not state %s", c)
		}
		if !code[c] {
			t.Errorf("no code cites %s", c)
		}
		if !tests[c] {
			t.Errorf("no test cites %s", c)
		}
	}
}

// Committed files are of the project, not of the machine that they were written on.
func TestNoWorkplace(t *testing.T) {
	places := []string{"/wo" + "rk/", "../sha" + "red"}
	for _, f := range tracked(t) {
		b, err := os.ReadFile(filepath.Join(root(t), f))
		if err != nil {
			continue // removed, or not a file
		}
		for _, p := range places {
			if strings.Contains(string(b), p) {
				t.Errorf("%s names %s", f, p)
			}
		}
	}
}

// tracked lists the files of the checkout as git knows them, or all files when this is no git checkout.
func tracked(t *testing.T) []string {
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = root(t)
	if out, err := cmd.Output(); err == nil && len(out) > 0 {
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	var all []string
	walk(t, func(path string) { all = append(all, path) })
	return all
}

func sources(t *testing.T, f func(path, text string)) {
	t.Helper()
	walk(t, func(path string) {
		if ext := filepath.Ext(path); ext == ".go" || ext == ".c" || ext == ".h" {
			f(path, read(t, path))
		}
	})
}

func walk(t *testing.T, f func(path string)) {
	t.Helper()
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, path)
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && rel != "." || rel == "bin") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			f(filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
