// Package arch holds the house rules that a compiler does not: which package may know which, that
// every package says what it promises, that no test waits by the clock, and that nothing made for
// tests is linked into the program. It has no code besides its tests; `make check` runs it.
package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
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
		[]string{"web", "ledger", "upstream", "upstream/simulator", "jobs", "jobs/email", "jobs/notify", "jobs/webhook", "jobs/process", "bus", "tenants", "shards", "store"},
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

// sources parses every Go file below top, but for folders that are modules of their own (tools, internal/peers, internal/powercut,
// internal/sdk): what they import is theirs, and nothing of it reaches the program.
func sources(t *testing.T, top string) []source {
	t.Helper()
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
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || rel == "bin" || ownModule(p)) {
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
		t.Fatalf("found no Go file below %s", top)
	}
	return all
}

func ownModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
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

// lineFor finds a folder's line in the table, the line for its siblings, or what goes for helpers of tests.
func lineFor(folder string) (arrow, bool) {
	if a, ok := arrows[folder]; ok {
		return a, true
	}
	if above := path.Dir(folder); folder == path.Join(above, path.Base(above)+"test") {
		return arrow{[]string{above}, "helps testing " + above + ", and so knows it alone"}, true
	}
	for above := path.Dir(folder); above != "."; above = path.Dir(above) {
		if a, ok := arrows[above+"/*"]; ok {
			return a, true
		}
	}
	return arrow{}, false
}

// reach is all that a folder knows through others: a test must be able to make what the code is given.
func reach(folder string) map[string]bool {
	known := map[string]bool{}
	var walk func(string)
	walk = func(f string) {
		line, _ := lineFor(f)
		for _, to := range line.to {
			if !known[to] {
				known[to] = true
				walk(to)
			}
		}
	}
	walk(folder)
	return known
}

// testOnly tells packages that exist for tests: those below internal, and xxxtest beside xxx.
func testOnly(folder string) bool {
	return strings.HasPrefix(folder, "internal/") || strings.HasSuffix(folder, "test")
}

// A rule looks at all sources and tells what is against it, a line each.
type rule func(all []source) []string

var rules = map[string]rule{
	"arrows":           arrowFaults,
	"package comments": commentFaults,
	"names":            nameFaults,
	"no sleeping":      sleepFaults,
}

func TestRules(t *testing.T) {
	all := sources(t, filepath.Join("..", ".."))
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			for _, fault := range rule(all) {
				t.Error(fault)
			}
		})
	}
}

// TestRulesBite plants what each rule forbids, beside the nearest thing that it allows.
func TestRulesBite(t *testing.T) {
	planted := map[string]map[string]string{
		"arrows": {
			"store/a.go":        "package store; import _ \"tenderbox/ledger\" // against",
			"newcomer/a.go":     "package newcomer // against",
			"web/a.go":          "package web; import _ \"tenderbox/store/storetest\" // against, twice",
			"ledger/a.go":       "package ledger; import _ \"tenderbox/shards\"",
			"ledger/a_test.go":  "package ledger; import ( _ \"tenderbox/store\"; _ \"tenderbox/upstream/simulator\" )",
			"abroad/go.mod":     "module tenderbox/abroad",
			"abroad/a.go":       "package abroad; import _ \"tenderbox/ledger\"",
			"jobs/email/a.go":   "package email; import ( _ \"tenderbox/jobs\"; _ \"tenderbox/ledger\" /* against */ )",
			"jobs/process/a.go": "package process; import _ \"tenderbox/jobs/notify\" // against",
		},
		"package comments": {
			"store/a.go":         "// Package store keeps bytes.\npackage store",
			"bus/a.go":           "package bus // against",
			"cmd/tenderbox/a.go": "// Package main is the program. (against)\npackage main",
		},
		"names": {
			"store/utils.go":  "package store // against",
			"common/a.go":     "package common // against",
			"store/bucket.go": "package store",
		},
		"no sleeping": {
			"store/a.go":      "package store; import \"time\"; func F() { time.Sleep(1) }",
			"store/a_test.go": "package store; func TestA() { time.Sleep(1) } // against",
			"jobs/a_test.go":  "package jobs; func TestA() { synctest.Test(func() { nap() }) }; func nap() { time.Sleep(1) }",
			"bus/a_test.go":   "package bus; func TestA() { synctest.Test(func() { nap() }) }; func TestB() { nap() }; func nap() { time.Sleep(1) } // against",
		},
	}
	for name, files := range planted {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			want := 0
			for file, content := range files {
				file = filepath.Join(top, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				want += strings.Count(content, "against") + strings.Count(content, "twice")
			}
			if faults := rules[name](sources(t, top)); len(faults) != want {
				t.Errorf("%d faults were planted, %d found: %q", want, len(faults), faults)
			}
		})
	}
}

func arrowFaults(all []source) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for _, s := range all {
		line, placed := lineFor(s.folder)
		if !placed {
			fault("%s has no line in the table of arrows: say there what it may import, and why", s.folder)
			continue
		}
		for _, to := range s.imports() {
			switch {
			case slices.Contains(line.to, to), slices.Contains(line.to, "*"), to == s.folder:
			case s.test && (testOnly(to) || to == "upstream/simulator" || reach(s.folder)[to]):
				// A test may use what exists for tests (a fake processor does), and must be able to make what
				// the code is given.
			default:
				fault("%s/%s imports %s: not allowed (%s)", s.folder, s.name, to, line.why)
			}
			if testOnly(to) && !s.test && !testOnly(s.folder) {
				fault("%s/%s imports %s, which exists only for tests", s.folder, s.name, to)
			}
			if strings.HasPrefix(to, "cmd/") {
				fault("%s/%s imports %s: nothing imports the program", s.folder, s.name, to)
			}
		}
	}
	return faults
}

func commentFaults(all []source) (faults []string) {
	comments := map[string]string{}
	for _, s := range all {
		comments[s.folder] = comments[s.folder] + s.file.Doc.Text()
	}
	for folder, said := range comments {
		opening := "Package " + path.Base(folder) + " "
		if strings.HasPrefix(folder, "cmd/") {
			opening = "Command " + path.Base(folder) + " "
		}
		if !strings.Contains("\n"+said, "\n"+opening) {
			faults = append(faults, fmt.Sprintf("%s needs a package comment that begins %q and states its promise", folder, opening))
		}
	}
	return faults
}

func nameFaults(all []source) (faults []string) {
	for _, s := range all {
		stem := strings.TrimSuffix(strings.TrimSuffix(s.name, ".go"), "_test")
		for _, word := range append(strings.Split(s.folder, "/"), stem) {
			if slices.Contains(drawers, word) {
				faults = append(faults, fmt.Sprintf("%s/%s: %q names a drawer; name the thing that is in it", s.folder, s.name, word))
			}
		}
	}
	return faults
}

// A test that sleeps is slow on a fast machine and wrong on a slow one. Inside a synctest bubble time
// is made, not waited for, so there it is welcome: in a function that opens a bubble, and in one that is
// called by such functions only.
func sleepFaults(all []source) (faults []string) {
	packages := map[string][]source{}
	for _, s := range all {
		if s.test || testOnly(s.folder) {
			packages[s.folder] = append(packages[s.folder], s)
		}
	}
	for _, files := range packages {
		functions := functionsOf(files)
		for changed := true; changed; {
			changed = false
			for _, f := range functions {
				if !f.bubble && f.calledInBubblesOnly(functions) {
					f.bubble, changed = true, true
				}
			}
		}
		for _, f := range functions {
			for _, pos := range f.sleeps {
				if !f.bubble {
					faults = append(faults, fmt.Sprintf("%s: time.Sleep outside a synctest bubble: wait for a signal, or inject the clock", pos))
				}
			}
		}
	}
	return faults
}

// A function as far as sleeping goes. Calls are told by name alone, which is enough within a package's tests.
type function struct {
	name   string
	bubble bool // opens a synctest bubble, or is called in bubbles only
	sleeps []token.Position
	names  map[string]bool // identifiers in its body
}

func functionsOf(files []source) []*function {
	var all []*function
	for _, s := range files {
		for _, decl := range s.file.Decls {
			f := &function{names: map[string]bool{}}
			if fn, ok := decl.(*ast.FuncDecl); ok {
				f.name = fn.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.Ident:
					f.names[n.Name] = true
				case *ast.SelectorExpr:
					switch pkg, _ := n.X.(*ast.Ident); {
					case pkg == nil:
					case pkg.Name == "time" && n.Sel.Name == "Sleep":
						f.sleeps = append(f.sleeps, s.fset.Position(n.Pos()))
					case pkg.Name == "synctest" && n.Sel.Name == "Test":
						f.bubble = true
					}
				}
				return true
			})
			delete(f.names, f.name) // its own declaration
			all = append(all, f)
		}
	}
	return all
}

func (f *function) calledInBubblesOnly(all []*function) bool {
	called := false
	for _, caller := range all {
		if f.name != "" && caller.names[f.name] {
			called = true
			if !caller.bubble {
				return false
			}
		}
	}
	return called
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
