package shards_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

func TestFirstStart(t *testing.T) {
	dir := tempDir(t)
	s := shardstest.OpenDir(t, dir, shards.Options{Migrations: migrations})
	m := s.Manifest()
	if len(m.Files) != 4 || m.BoxID == "" || m.Epoch != 1 || m.Slots != shards.SlotCount || m.Hash != shards.SlotHash {
		t.Errorf("manifest: %+v", m)
	}
	used := map[*shards.Shard]int{}
	for slot := range shards.Slot(shards.SlotCount) {
		used[s.Shard(slot)]++
	}
	for _, sh := range s.All() {
		if used[sh] != shards.SlotCount/4 {
			t.Errorf("shard %d has %d slots", sh.ID(), used[sh])
		}
		if sh.Generation() != 1 {
			t.Errorf("generation %d at first", sh.Generation())
		}
		mustPut(t, sh, 0, 1)
	}
	if s.Healthy() != 4 {
		t.Errorf("%d healthy", s.Healthy())
	}
	// Money is nobody else's to read.
	for _, name := range []string{"", "manifest.json", "lock", "0000.db", "0000.db-wal", "0003.db-shm"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q has mode %v", name, fi.Mode())
		}
	}
	// Later starts take the number of files from the manifest.
	s = reopen(t, s, dir, shards.Options{Files: 7, Migrations: migrations})
	if again := s.Manifest(); !reflect.DeepEqual(again, m) {
		t.Errorf("manifest after reopening: %+v, was %+v", again, m)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*-*")); len(left) > 0 {
		t.Errorf("a clean stop left %v", left)
	}
}

// A first start that was cut off at any point is completed by the next one.
func TestFirstStartInterrupted(t *testing.T) {
	dir := tempDir(t)
	s := shardstest.OpenDir(t, dir, shards.Options{Files: 3, Migrations: migrations})
	id := s.Manifest().BoxID
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rewriteManifest(t, dir, func(m map[string]any) { m["created"] = false })
	if err := os.Remove(filepath.Join(dir, "0001.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "0002.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = shardstest.OpenDir(t, dir, shards.Options{Files: 9, Migrations: migrations})
	if m := s.Manifest(); m.BoxID != id || len(m.Files) != 3 || s.Healthy() != 3 {
		t.Errorf("%d healthy of %v", s.Healthy(), m.Files)
	}
	for _, sh := range s.All() {
		mustPut(t, sh, 0, 1)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := shards.Open(ctx, tempDir(t), shards.Options{
		Files: 100, BatchMax: -1, QueueMax: -1, ReadConns: -1, CheckpointBytes: -1,
		Migrations: []shards.Migration{{Version: 2, Name: "x", SQL: "SELECT 1"}, {Version: 2}},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, word := range []string{"Files", "BatchMax", "QueueMax", "ReadConns", "CheckpointBytes", "without gaps", "lacks a name"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not among the problems: %v", word, err)
		}
	}
}

// rewriteManifest changes members of the manifest and gives it a valid checksum.
func rewriteManifest(t *testing.T, dir string, change func(m map[string]any)) {
	t.Helper()
	path := filepath.Join(dir, "manifest.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if b, err = shards.SignManifest(b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// snapshot reads every file of a folder.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[e.Name()] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFolderIsRefusedUntouched(t *testing.T) {
	t.Parallel()
	newer := append(append([]shards.Migration{}, migrations...), shards.Migration{Version: 3, Name: "future", SQL: "CREATE TABLE future (x INTEGER) STRICT"})
	changed := []shards.Migration{migrations[0], {Version: 2, Name: "log", SQL: "CREATE TABLE other (x INTEGER) STRICT"}}
	write := func(name, content string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	manifest := func(change func(m map[string]any)) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { rewriteManifest(t, dir, change) }
	}
	for _, c := range []struct {
		name     string
		spoil    func(t *testing.T, dir string)
		with     []shards.Migration
		mismatch string // MismatchError.What; empty: CorruptError
	}{
		{"another program's manifest", write("manifest.json", `{"program":"other","format":1}`), migrations, "program"},
		{"newer format", manifest(func(m map[string]any) { m["format"] = 2; m["new"] = true }), migrations, "manifest format"},
		{"other slot count", manifest(func(m map[string]any) { m["slots"] = 512 }), migrations, "number of slots"},
		{"other hash", manifest(func(m map[string]any) { m["hash"] = "fnv" }), migrations, "slot hash"},
		{"no manifest beside files", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "manifest.json")); err != nil {
				t.Fatal(err)
			}
		}, migrations, "folder"},
		{"older program", func(*testing.T, string) {}, migrations[:1], "schema version"},
		{"other history", func(*testing.T, string) {}, changed, "migration 2"},
		{"newer migration", func(t *testing.T, dir string) {
			s, err := shards.Open(ctx, dir, shards.Options{Migrations: newer})
			if err != nil || s.Close() != nil {
				t.Fatal(err)
			}
		}, migrations, "schema version"},
		{"newer file format", func(t *testing.T, dir string) { patch(t, filepath.Join(dir, "0001.db"), 60, []byte{0, 0, 0, 9}) }, migrations, "file format"},
		{"not JSON", write("manifest.json", "{"), migrations, ""},
		{"empty manifest", write("manifest.json", ""), migrations, ""},
		{"edited by hand", func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
			if err != nil {
				t.Fatal(err)
			}
			write("manifest.json", strings.Replace(string(b), `"shard": 1`, `"shard": 0`, 1))(t, dir)
		}, migrations, ""},
		{"a gap in the slots", manifest(func(m map[string]any) { m["assignment"] = m["assignment"].([]any)[1:] }), migrations, ""},
		{"a slot without its file", manifest(func(m map[string]any) { m["files"] = m["files"].([]any)[:1] }), migrations, ""},
		{"a file elsewhere", manifest(func(m map[string]any) { m["files"] = []any{"../x.db", "0001.db"} }), migrations, ""},
		{"unknown member", manifest(func(m map[string]any) { m["extra"] = 1 }), migrations, ""},
		{"1 MiB of manifest", write("manifest.json", strings.Repeat(" ", 1<<20)+"{}"), migrations, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			s, err := shards.Open(ctx, dir, shards.Options{Files: 2, Migrations: migrations})
			if err != nil {
				t.Fatal(err)
			}
			mustPut(t, s.Shard(0), 0, 1)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, dir)
			before := snapshot(t, dir)
			for name, open := range map[string]func() (*shards.Set, error){
				"Open": func() (*shards.Set, error) {
					return shards.Open(ctx, dir, shards.Options{Files: 2, Migrations: c.with})
				},
				"Audit": func() (*shards.Set, error) { return shards.Audit(ctx, dir, shards.Options{Migrations: c.with}) },
			} {
				if c.mismatch == "folder" && name == "Audit" {
					continue // is told that there is no manifest
				}
				s, err := open()
				if err == nil {
					s.Close()
					t.Fatalf("%s took it", name)
				}
				var mismatch *shards.MismatchError
				var corrupt *shards.CorruptError
				switch {
				case c.mismatch == "":
					if !errors.As(err, &corrupt) {
						t.Errorf("%s: %v, want a CorruptError", name, err)
					}
				case !errors.As(err, &mismatch) || mismatch.What != c.mismatch:
					t.Errorf("%s: %v, want a MismatchError about %q", name, err, c.mismatch)
				}
			}
			for name, content := range snapshot(t, dir) {
				if side := strings.HasSuffix(name, "-shm") || (strings.HasSuffix(name, "-wal") && content == ""); !side && before[name] != content {
					t.Errorf("%s was changed", name)
				}
			}
		})
	}
}

func patch(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestForeignFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.doc"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var mismatch *shards.MismatchError
	if _, err := shards.Open(ctx, dir, options()); !errors.As(err, &mismatch) {
		t.Errorf("got %v, want a MismatchError", err)
	}
	file := filepath.Join(dir, "thesis.doc")
	if _, err := shards.Open(ctx, file, options()); err == nil {
		t.Error("a file was taken for a folder")
	}
}

// holdFolder is the second process of TestSecondProcess: it opens the folder, says
// so, and holds it until its standard input ends.
func holdFolder(dir string) {
	s, err := shards.Open(ctx, dir, options())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
	if os.Getenv("SHARDS_TEST_CLOSE") != "" {
		s.Close()
	}
	os.Exit(0) // as a kill: nothing is closed
}

func TestSecondProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SHARDS_TEST_HOLD="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	for name, open := range map[string]func() (*shards.Set, error){
		"Open":  func() (*shards.Set, error) { return shards.Open(ctx, dir, options()) },
		"Audit": func() (*shards.Set, error) { return shards.Audit(ctx, dir, options()) },
	} {
		if _, err := open(); !errors.Is(err, shards.ErrLocked) {
			t.Errorf("%s while the other runs: %v, want ErrLocked", name, err)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	// Killed, it leaves no lock behind.
	s := shardstest.OpenDir(t, dir, options())
	if _, err := shards.Open(ctx, dir, options()); !errors.Is(err, shards.ErrLocked) {
		t.Errorf("twice in one process: %v, want ErrLocked", err)
	}
	mustPut(t, s.Shard(0), 0, 1)
}

func TestAudit(t *testing.T) {
	dir := tempDir(t)
	if _, err := shards.Audit(ctx, dir, options()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("Audit made the folder")
	}
	// A box that was killed: its WAL holds what the file does not.
	s, err := shards.Open(ctx, dir, shards.Options{Files: 2, Migrations: migrations[:1]})
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s.Shard(0), 0, 10)
	killed := filepath.Join(t.TempDir(), "killed")
	copyFolder(t, dir, killed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"stopped": dir, "killed": killed} {
		before := snapshot(t, dir)
		a, err := shards.Audit(ctx, dir, options()) // knows a migration more, and must not run it
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := count(t, a.Shard(0)); n != 10 {
			t.Errorf("%s: %d rows, want 10", name, n)
		}
		for _, sh := range a.All() {
			if err := sh.Check(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := put(a.Shard(0), "x", 1); !errors.Is(err, shards.ErrReadOnly) {
			t.Errorf("%s: Update: %v, want ErrReadOnly", name, err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if after := snapshot(t, dir); !reflect.DeepEqual(before, after) {
			t.Errorf("%s: Audit changed the folder: %v, was %v", name, keys(after), keys(before))
		}
	}
}

func keys(m map[string]string) (k []string) {
	for name, content := range m {
		k = append(k, fmt.Sprintf("%s (%d)", name, len(content)))
	}
	return k
}

// copyFolder takes what a kill would leave: no shared memory.
func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range snapshot(t, from) {
		if strings.HasSuffix(name, "-shm") {
			continue
		}
		if err := os.WriteFile(filepath.Join(to, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
