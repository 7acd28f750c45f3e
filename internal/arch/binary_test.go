package arch

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestBinaryIsStatic builds the program as `make build` does and looks into the file itself: one that
// asks for an interpreter or a shared library runs only where those are.
func TestBinaryIsStatic(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tenderbox")
	build := exec.Command("make", "-s", "build", "BIN="+file)
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s asks for an interpreter (dynamic loader)", file)
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	if len(libraries) != 0 {
		t.Errorf("%s asks for shared libraries: %v", file, libraries)
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
		t.Errorf("%s is not stripped", file)
	}
}
