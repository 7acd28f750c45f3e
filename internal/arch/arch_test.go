// Package arch holds the house rules that a compiler does not: which package may know which, that
// every package says what it promises, that no test waits by the clock, and that nothing made for
// tests is linked into the program. It has no code besides its tests; `make check` runs it.
package arch

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the import path under which everything of ours stands.
const module = "tenderbox"

// An arrow says what a package may know of ours, and why no more. The keys are folders; a key that
// ends in /* is for every folder below it that has no line of its own.
type arrow struct {
	to  []string
	why string
}

// arrows is DESIGN.md's "The house" as a table. What is not listed may not be imported; a package
// without a line fails the test, so that a new one is placed on purpose.
var arrows = map[string]arrow{
	"cmd/tenderbox": {
		[]string{"web", "ledger", "upstream", "upstream/simulator", "jobs", "bus", "tenants", "shards", "store"},
		"the program wires everything; nothing imports it",
	},
	"web":                {[]string{"ledger", "tenants", "jobs", "bus", "upstream"}, "HTTP speaks to the story and to who is calling, never to files"},
	"ledger":             {[]string{"shards", "jobs", "tenants", "upstream"}, "the one package that tells the story; events reach the bus through an interface of its own"},
	"upstream":           {nil, "an instrument: knows the processor, not what a payment means here"},
	"upstream/simulator": {nil, "stands in for a stranger: it must not share our idea of the protocol"},
	"jobs":               {[]string{"store"}, "queues on one bbolt file"},
	"jobs/*":             {[]string{"jobs"}, "a handler knows its queue, not the ledger"},
	"bus":                {nil, "an instrument: moves events that others made"},
	"tenants":            {[]string{"store"}, "who is calling, in box.db"},
	"shards":             {nil, "an instrument: SQLite files and slots, no tables of its own"},
	"store":              {nil, "an instrument: buckets and bytes"},
	"store/storetest":    {[]string{"store"}, "opens a store in a test and checks it afterwards"},
	"shards/shardstest":  {[]string{"shards"}, "opens shards in a test and checks them afterwards"},
	"dist":               {nil, "the installer's test"},
	"internal/*":         {[]string{"*"}, "test-only machinery that spans packages; nothing outside internal imports it"},
}

// words that name a drawer instead of a thing.
var drawers = []string{"util", "utils", "common", "helper", "helpers", "misc", "models", "services", "middleware", "pkg", "base", "shared"}

// A source is one parsed Go file of this checkout.
type source struct {
	folder string // slash-separated, relative to the top of the checkout
	name   string
	test   bool
	file   *ast.File
	fset   *token.FileSet
}

// sources parses every Go file of the module (not those of tools, which is a module of its own).
func sources(t *testing.T) []source {
	t.Helper()
	top := filepath.Join("..", "..")
	var all []source
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || rel == "tools" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		folder, name := path.Split(filepath.ToSlash(rel))
		all = append(all, source{path.Clean(folder), name, strings.HasSuffix(name, "_test.go"), file, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("found no Go file: is this test still two folders below the top?")
	}
	return all
}

// imports lists the folders of ours that a file imports.
func (s source) imports() []string {
	var ours []string
	for _, spec := range s.file.Imports {
		if folder, ok := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module+"/"); ok {
			ours = append(ours, folder)
		}
	}
	return ours
}

// lineFor finds a folder's line in the table, or the line for its siblings.
func lineFor(folder string) (arrow, bool) {
	if a, ok := arrows[folder]; ok {
		return a, true
	}
	for above := path.Dir(folder); above != "."; above = path.Dir(above) {
		if a, ok := arrows[above+"/*"]; ok {
			return a, true
		}
	}
	return arrow{}, false
}

// testOnly tells packages that exist for tests: those below internal, and xxxtest beside xxx.
func testOnly(folder string) bool {
	return strings.HasPrefix(folder, "internal/") || strings.HasSuffix(folder, "test")
}

func TestArrows(t *testing.T) {
	for _, s := range sources(t) {
		line, placed := lineFor(s.folder)
		if !placed {
			t.Errorf("%s has no line in the table of arrows: say there what it may import, and why", s.folder)
			continue
		}
		for _, to := range s.imports() {
			switch {
			case slices.Contains(line.to, to), slices.Contains(line.to, "*"), to == s.folder:
			case s.test && (testOnly(to) || to == "upstream/simulator"):
				// A test may use what exists for tests; a fake processor does.
			default:
				t.Errorf("%s/%s imports %s: not allowed (%s)", s.folder, s.name, to, line.why)
			}
			if testOnly(to) && !s.test && !testOnly(s.folder) {
				t.Errorf("%s/%s imports %s, which exists only for tests", s.folder, s.name, to)
			}
			if strings.HasPrefix(to, "cmd/") {
				t.Errorf("%s/%s imports %s: nothing imports the program", s.folder, s.name, to)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	comments := map[string]string{}
	for _, s := range sources(t) {
		said := comments[s.folder]
		if s.file.Doc != nil && len(s.file.Doc.Text()) > len(said) {
			said = s.file.Doc.Text()
		}
		comments[s.folder] = said
	}
	for folder, said := range comments {
		name := path.Base(folder)
		opening := "Package " + name + " "
		if strings.HasPrefix(folder, "cmd/") {
			opening = "Command " + name + " "
		}
		if !strings.HasPrefix(said, opening) {
			t.Errorf("%s needs a package comment that begins %q and states its promise", folder, opening)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range sources(t) {
		stem := strings.TrimSuffix(strings.TrimSuffix(s.name, ".go"), "_test")
		for _, word := range append(strings.Split(s.folder, "/"), stem) {
			if slices.Contains(drawers, word) {
				t.Errorf("%s/%s: %q names a drawer; name the thing that is in it", s.folder, s.name, word)
			}
		}
	}
}

// A test that sleeps is slow on a fast machine and wrong on a slow one. Inside a synctest bubble time
// is made, not waited for, so there it is welcome.
func TestNoSleepInTests(t *testing.T) {
	for _, s := range sources(t) {
		if !s.test && !testOnly(s.folder) {
			continue
		}
		for _, decl := range s.file.Decls {
			var sleeps []token.Pos
			bubble := false
			ast.Inspect(decl, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					switch pkg, _ := sel.X.(*ast.Ident); {
					case pkg == nil:
					case pkg.Name == "time" && sel.Sel.Name == "Sleep":
						sleeps = append(sleeps, sel.Pos())
					case pkg.Name == "synctest" && sel.Sel.Name == "Test":
						bubble = true
					}
				}
				return true
			})
			for _, pos := range sleeps {
				if !bubble {
					t.Errorf("%s: time.Sleep outside a synctest bubble: wait for a signal, or inject the clock", s.fset.Position(pos))
				}
			}
		}
	}
}

// TestNothingOfTestsInTheProgram asks the go command what cmd/tenderbox links (INV-30). The package
// "testing" alone would bring its flags and a slower start.
func TestNothingOfTestsInTheProgram(t *testing.T) {
	var stderr bytes.Buffer
	list := exec.Command("go", "list", "-deps", module+"/cmd/tenderbox")
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, module+"/cmd/tenderbox") {
		t.Fatalf("go list did not answer with the program itself: %q", deps)
	}
	for _, dep := range deps {
		ours, isOurs := strings.CutPrefix(dep, module+"/")
		switch {
		case dep == "testing" || strings.HasPrefix(dep, "testing/"):
			t.Errorf("the program links %s; `go list -deps -f '{{.ImportPath}}: {{.Imports}}' ./cmd/tenderbox` shows through whom", dep)
		case isOurs && testOnly(ours):
			t.Errorf("the program links %s, which exists only for tests", dep)
		}
	}
}
