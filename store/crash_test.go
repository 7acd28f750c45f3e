package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

// child writes numbers and prints each one that was acknowledged, until it is killed.
func child(path string) {
	s, err := store.Open(path, options)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				k := fmt.Sprintf("%d-%06d", w, i)
				if err := s.Update(context.Background(), put(k, k)); err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(k)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKilled kills a writing process at some point, again and again on the same file.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	acknowledged := map[string]bool{}
	for range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+path)
		out, err := cmd.StdoutPipe()
		fatalIf(t, err)
		fatalIf(t, cmd.Start())
		lines, enough := bufio.NewScanner(out), 1+rand.IntN(400)
		for n := 0; lines.Scan(); n++ { // also what was printed before the kill
			if n == enough {
				fatalIf(t, cmd.Process.Kill())
			}
			acknowledged[lines.Text()] = true
		}
		_ = cmd.Wait()
		fatalIf(t, store.CheckFile(path))
		s := storetest.Reopen(t, path, options)
		for k := range acknowledged {
			if v := get(t, s, k); v != k {
				t.Fatalf("%q was acknowledged and is %q", k, v)
			}
		}
		fatalIf(t, s.Close())
	}
}

// filled returns the bytes of a file with several levels of pages, nested and inline buckets, long values and free pages.
func filled(t testing.TB) []byte {
	t.Helper()
	s := storetest.Open(t, store.Options{Buckets: []string{"b", "empty", "inline"}})
	for round := range 4 {
		fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
			for i := range 400 {
				if err := put(fmt.Sprintf("%06d", i), strings.Repeat("v", 20+(i*7)%90))(tx); err != nil {
					return err
				}
			}
			for i := range 50 * round {
				if err := tx.Bucket(bucket).Delete([]byte(fmt.Sprintf("%06d", 3*i))); err != nil {
					return err
				}
			}
			if err := put("long", strings.Repeat("l", 9000))(tx); err != nil {
				return err
			}
			return tx.Bucket([]byte("inline")).Put([]byte("k"), []byte("v"))
		}))
	}
	var buf bytes.Buffer
	_, err := s.Backup(&buf)
	fatalIf(t, err)
	return buf.Bytes()
}

// exercise does to a file what a box would; any panic or fault that escapes ends the test process.
func exercise(t *testing.T, path string) error {
	t.Helper()
	check := store.CheckFile(path)
	s, err := store.Open(path, options)
	if err != nil {
		return err
	}
	_ = s.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error { _ = bytes.Count(v, k); return nil })
		})
	})
	err = s.Update(context.Background(), func(tx *bbolt.Tx) error {
		for i := range 100 {
			if err := put(fmt.Sprintf("new%d", i), strings.Repeat("n", 100))(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && check == nil {
		err = s.Check()
	}
	return errors.Join(err, s.Close())
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "jobs.db")
	fatalIf(t, os.WriteFile(path, data, 0o600))
	return path
}

func wantCorrupt(t *testing.T, err error, path string) {
	t.Helper()
	var ce *store.CorruptError
	if !errors.As(err, &ce) {
		t.Fatalf("got %v, want a CorruptError", err)
	}
	if ce.Path != path || !strings.Contains(err.Error(), "mv "+path) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("the message does not name the file and the way out in one line: %v", err)
	}
}

func TestDamagedFiles(t *testing.T) {
	sound := filled(t)
	page := os.Getpagesize()
	damage := map[string]func([]byte) []byte{
		"empty":                  func([]byte) []byte { return nil },
		"one byte":               func([]byte) []byte { return []byte{1} },
		"text":                   func([]byte) []byte { return bytes.Repeat([]byte("hello\n"), 5000) },
		"zeroes":                 func(b []byte) []byte { return make([]byte, len(b)) },
		"both headers":           func(b []byte) []byte { b[20] ^= 1; b[page+20] ^= 1; return b },
		"headers only":           func(b []byte) []byte { return b[:2*page] },
		"half a header":          func(b []byte) []byte { return b[:40] },
		"first half":             func(b []byte) []byte { return b[:len(b)/2/page*page] },
		"last byte missing":      func(b []byte) []byte { return b[:len(b)-1] },
		"everything but headers": func(b []byte) []byte { clear(b[2*page:]); return b },
		"ones":                   func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) },
		"pages swapped": func(b []byte) []byte {
			x := bytes.Clone(b[3*page : 4*page])
			copy(b[3*page:], b[5*page:6*page])
			copy(b[5*page:], x)
			return b
		},
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			path := write(t, do(bytes.Clone(sound)))
			before, err := os.ReadFile(path)
			fatalIf(t, err)
			wantCorrupt(t, exercise(t, path), path)
			wantCorrupt(t, store.CheckFile(path), path)
			wantCorrupt(t, store.ViewFile(path, nil), path)
			after, err := os.ReadFile(path)
			fatalIf(t, err)
			if !bytes.Equal(before, after) {
				t.Error("a damaged file was changed")
			}
		})
	}
}

// TestOneDamagedHeader: bbolt goes on with the other one, as after a power cut.
func TestOneDamagedHeader(t *testing.T) {
	for header := range 2 {
		data := filled(t)
		data[header*os.Getpagesize()+20] ^= 1
		path := write(t, data)
		fatalIf(t, exercise(t, path))
		if v := get(t, storetest.Reopen(t, path, options), "000398"); v == "" {
			t.Error("record lost")
		}
	}
}

// TestFlippedBits flips bits all over a file: it is refused, or works without a fault. The seed is in the log.
func TestFlippedBits(t *testing.T) {
	sound := filled(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "jobs.db")
	refused := 0
	for range 600 {
		data := bytes.Clone(sound)
		for range 1 + rnd.IntN(3) {
			page := rnd.IntN(len(data) / os.Getpagesize())
			at := page*os.Getpagesize() + rnd.IntN(os.Getpagesize())
			if rnd.IntN(3) > 0 { // rather where structure is than in values
				at = page*os.Getpagesize() + rnd.IntN(200)
			}
			data[at] ^= 1 << rnd.IntN(8)
		}
		fatalIf(t, os.WriteFile(path, data, 0o600))
		if err := exercise(t, path); err != nil {
			wantCorrupt(t, err, path)
			refused++
		}
	}
	if refused < 50 {
		t.Errorf("only %d of 600 damaged files were refused: the injector or the verifier is broken", refused)
	}
}

func TestSelfReferringPages(t *testing.T) {
	sound := filled(t)
	page := os.Getpagesize()
	found := 0
	for id := 2; id < len(sound)/page; id++ {
		if sound[id*page+8] != 1 { // a branch
			continue
		}
		found++
		data := bytes.Clone(sound)
		copy(data[id*page+16+8:], data[id*page:id*page+8]) // its first child is itself
		path := write(t, data)
		if err := exercise(t, path); err != nil { // nil: a page that is not in use
			wantCorrupt(t, err, path)
		}
	}
	if found == 0 {
		t.Error("no branch page in the file")
	}
}

func TestTruncatedWhileOpen(t *testing.T) {
	path := write(t, filled(t))
	s, err := store.Open(path, options)
	fatalIf(t, err)
	fatalIf(t, os.Truncate(path, int64(2*os.Getpagesize())))
	wantCorrupt(t, s.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, v []byte) error { _ = bytes.Count(v, k); return nil })
	}), path)
	err = s.Update(t.Context(), put("000100", "x"))
	wantCorrupt(t, err, path)
	fatalIf(t, s.Close())
}

func TestCheckOfNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.db")
	if err := store.CheckFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a check made a file")
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	for _, suffix := range []string{".new", ".rescue"} {
		fatalIf(t, os.WriteFile(path+suffix, []byte("half"), 0o600))
	}
	s := storetest.Reopen(t, path, options)
	fatalIf(t, s.Update(t.Context(), put("k", "v")))
	entries, err := os.ReadDir(filepath.Dir(path))
	fatalIf(t, err)
	if len(entries) != 1 {
		t.Fatalf("left: %v", entries)
	}
}
