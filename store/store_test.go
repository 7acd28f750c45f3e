package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("STORE_TEST_CHILD"); path != "" {
		child(path)
	}
	goleak.VerifyTestMain(m)
}

var bucket = []byte("b")

var options = store.Options{Buckets: []string{"b"}}

func put(k, v string) func(*bbolt.Tx) error {
	return func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(k), []byte(v)) }
}

func get(t testing.TB, s *store.Store, k string) (v string) {
	t.Helper()
	if err := s.View(func(tx *bbolt.Tx) error {
		v = string(tx.Bucket(bucket).Get([]byte(k)))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return v
}

func fatalIf(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestUpdateIsReadBackAfterReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := storetest.Reopen(t, path, options)
	fatalIf(t, s.Update(t.Context(), put("k", "v")))
	fatalIf(t, s.Close())
	fatalIf(t, s.Close()) // twice is fine
	if err := s.Update(t.Context(), put("k", "w")); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("update after close: %v", err)
	}
	if err := s.View(func(*bbolt.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("view after close: %v", err)
	}
	s = storetest.Reopen(t, path, options)
	if v := get(t, s, "k"); v != "v" {
		t.Fatalf("k = %q", v)
	}
	info, err := os.Stat(path)
	fatalIf(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", info.Mode())
	}
}

// held blocks the writer inside an operation, so that a test decides what the next group holds.
func held(s *store.Store) (release func()) {
	entered, leave := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var once sync.Once
		_ = s.Update(context.Background(), func(*bbolt.Tx) error {
			once.Do(func() { close(entered) })
			<-leave
			return store.Untouched(nil)
		})
	}()
	<-entered
	return func() { close(leave); <-done }
}

// group runs fns in one group, in order, and returns their answers.
func group(t *testing.T, s *store.Store, fns ...func(*bbolt.Tx) error) []error {
	t.Helper()
	release := held(s)
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Add(1)
		s.Submit(fn, func(err error) { errs[i] = err; wg.Done() })
	}
	release()
	wg.Wait()
	return errs
}

var errBad = errors.New("bad")

func TestOneFailingOperationFailsAlone(t *testing.T) {
	dirty := func(err error) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			fatalIf(t, put("dirt", "x")(tx))
			return err
		}
	}
	crash := func(tx *bbolt.Tx) error { fatalIf(t, put("dirt", "x")(tx)); panic("ouch") }
	for name, bad := range map[string]func(*bbolt.Tx) error{
		"error": dirty(errBad), "panic": crash, "untouched": func(*bbolt.Tx) error { return store.Untouched(errBad) },
	} {
		for _, failing := range []int{1, 2, 3, 7, 20} {
			t.Run(fmt.Sprintf("%s/%d", name, failing), func(t *testing.T) {
				s := storetest.Open(t, options)
				var fns []func(*bbolt.Tx) error
				for i := range 20 {
					if i%(20/min(failing, 20)) == 0 && len(fns) < 20 && failing > 0 {
						fns = append(fns, bad)
					}
					fns = append(fns, put(fmt.Sprint(i), "ok"))
				}
				for i, err := range group(t, s, fns...) {
					var pe *store.PanicError
					if err != nil && !errors.Is(err, errBad) && !errors.As(err, &pe) {
						t.Errorf("operation %d: %v", i, err)
					}
				}
				for i := range 20 {
					if v := get(t, s, fmt.Sprint(i)); v != "ok" {
						t.Errorf("neighbour %d lost: %q", i, v)
					}
				}
				if v := get(t, s, "dirt"); v != "" {
					t.Errorf("a failed operation left %q", v)
				}
			})
		}
	}
}

func TestManyFailuresCostTwoRunsEach(t *testing.T) {
	s := storetest.Open(t, options)
	const n = 200
	runs := 0
	var fns []func(*bbolt.Tx) error
	for i := range n {
		fns = append(fns, func(tx *bbolt.Tx) error {
			runs++
			fatalIf(t, put(fmt.Sprint(i), "x")(tx))
			if i%2 == 0 {
				return errBad
			}
			return nil
		})
	}
	group(t, s, fns...)
	if runs > 10*n {
		t.Errorf("%d operations took %d runs", n, runs)
	}
}

func TestOrderAndVisibilityWithinAGroup(t *testing.T) {
	s := storetest.Open(t, options)
	var seen string
	var order []int
	release := held(s)
	for i := range 3 {
		s.Submit(func(tx *bbolt.Tx) error {
			seen = string(tx.Bucket(bucket).Get([]byte("k")))
			return put("k", fmt.Sprint(i))(tx)
		}, func(error) { order = append(order, i) })
	}
	release()
	fatalIf(t, s.UpdateThen(t.Context(), put("z", ""), nil))
	if seen != "1" || fmt.Sprint(order) != "[0 1 2]" {
		t.Fatalf("seen %q, order %v", seen, order)
	}
	if st := s.Stats(); st.Commits != 2 && st.Commits != 1 {
		t.Fatalf("%+v", st)
	}
}

func TestNothingWrittenIsNotCommitted(t *testing.T) {
	s := storetest.Open(t, options)
	before := s.Stats().Commits
	fatalIf(t, s.Update(t.Context(), func(*bbolt.Tx) error { return store.Untouched(nil) }))
	if err := s.Update(t.Context(), func(*bbolt.Tx) error { return store.Untouched(errBad) }); err != errBad {
		t.Fatalf("got %v", err)
	}
	if n := s.Stats().Commits - before; n != 0 {
		t.Fatalf("%d commits", n)
	}
}

func TestContextEndsTheWaitOnlyBeforeTheRun(t *testing.T) {
	s := storetest.Open(t, options)
	release := held(s)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 1)
	go func() { answers <- s.Update(ctx, put("never", "x")) }()
	cancel()
	if err := <-answers; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	release()
	fatalIf(t, s.Update(t.Context(), put("k", "v")))
	if v := get(t, s, "never"); v != "" {
		t.Fatal("an operation ran after its caller had been told that it would not")
	}
	ctx, cancel = context.WithCancel(t.Context())
	fatalIf(t, s.Update(ctx, func(tx *bbolt.Tx) error { cancel(); return put("late", "x")(tx) }))
	if v := get(t, s, "late"); v != "x" {
		t.Fatal("late cancel lost a write")
	}
}

func TestOverload(t *testing.T) {
	s := storetest.Open(t, store.Options{Buckets: []string{"b"}, QueueMax: 2})
	release := held(s)
	refused := 0
	for i := range 5 {
		s.Submit(put(fmt.Sprint(i), "x"), func(err error) {
			if errors.Is(err, store.ErrOverloaded) {
				refused++
			}
		})
	}
	if refused != 3 {
		t.Errorf("%d refused", refused)
	}
	release()
}

func TestSubmittedGoesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, options)
		answered := make(chan error, 1)
		start := time.Now()
		s.Submit(put("k", "v"), func(err error) { answered <- err })
		fatalIf(t, <-answered)
		if d := time.Since(start); d != 5*time.Millisecond {
			t.Errorf("after %v", d)
		}
	})
}

func TestCloseFinishesWhatWasAccepted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := storetest.Reopen(t, path, options)
	n := 0
	for i := range 100 {
		s.Submit(put(fmt.Sprint(i), "x"), func(err error) {
			if err == nil {
				n++
			}
		})
	}
	fatalIf(t, s.Close())
	if n != 100 {
		t.Fatalf("%d of 100 answered", n)
	}
}

func TestLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, options)
		start := time.Now()
		if _, err := store.Open(s.Path(), options); !errors.Is(err, store.ErrLocked) {
			t.Fatalf("got %v", err)
		}
		if d := time.Since(start); d < time.Second || d > 1100*time.Millisecond {
			t.Errorf("waited %v", d)
		}
		if err := store.CheckFile(s.Path()); !errors.Is(err, store.ErrLocked) {
			t.Errorf("check: %v", err)
		}
		if err := store.ViewFile(s.Path(), nil); !errors.Is(err, store.ErrLocked) {
			t.Errorf("view: %v", err)
		}
	})
}

func TestOpenTriedByManyAtOnceMakesOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	var wg sync.WaitGroup
	opened := make(chan *store.Store, 8)
	for range 8 {
		wg.Go(func() {
			s, err := store.Open(path, store.Options{LockTimeout: -1})
			if err == nil {
				opened <- s
			} else if !errors.Is(err, store.ErrLocked) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(opened)
	n := 0
	for s := range opened {
		n++
		fatalIf(t, s.Close())
	}
	if n > 1 {
		t.Fatalf("%d stores had the file", n)
	}
	storetest.Reopen(t, path, options)
}

func TestBackupIsAWholeFile(t *testing.T) {
	s := storetest.Open(t, options)
	for i := range 500 {
		s.Submit(put(fmt.Sprint(i), strings.Repeat("x", 100)), nil)
	}
	fatalIf(t, s.Update(t.Context(), put("last", "v")))
	var buf bytes.Buffer
	n, err := s.Backup(&buf)
	fatalIf(t, err)
	if n != int64(buf.Len()) || n != s.Stats().Bytes {
		t.Fatalf("%d bytes said, %d written, %d in the file", n, buf.Len(), s.Stats().Bytes)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	fatalIf(t, os.WriteFile(path, buf.Bytes(), 0o600))
	fatalIf(t, store.CheckFile(path))
	fatalIf(t, store.ViewFile(path, func(tx *bbolt.Tx) error {
		if v := tx.Bucket(bucket).Get([]byte("last")); string(v) != "v" {
			return fmt.Errorf("last = %q", v)
		}
		return nil
	}))
	if v := get(t, storetest.Reopen(t, path, options), "last"); v != "v" {
		t.Fatalf("last = %q", v)
	}
}

func TestReaderPanics(t *testing.T) {
	s := storetest.Open(t, options)
	err := s.View(func(*bbolt.Tx) error { panic("ouch") })
	var pe *store.PanicError
	if !errors.As(err, &pe) || pe.Value != "ouch" || !strings.Contains(pe.Stack, "TestReaderPanics") {
		t.Fatalf("got %#v", err)
	}
	fatalIf(t, s.Update(t.Context(), put("k", "v")))
}

func Example() {
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(filepath.Join(dir, "jobs.db"), store.Options{Buckets: []string{"greetings"}})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	err = s.Update(context.Background(), func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("greetings")).Put([]byte("sea"), []byte("ahoy"))
	})
	fmt.Println("on disk:", err == nil)
	_ = s.View(func(tx *bbolt.Tx) error {
		fmt.Printf("%s\n", tx.Bucket([]byte("greetings")).Get([]byte("sea")))
		return nil
	})
	// Output:
	// on disk: true
	// ahoy
}

// TestStartDoesNotWait: it answers nobody, but its group is written at once, and then is told in the order of commits.
func TestStartDoesNotWait(t *testing.T) {
	s := storetest.Open(t, options)
	release := held(s)
	order := make(chan string, 3)
	for _, k := range []string{"a", "b"} {
		s.Start(put(k, k), func(err error) { order <- fmt.Sprint(k, err, get(t, s, k)) })
	}
	s.Start(func(*bbolt.Tx) error { return errors.New("no") }, func(err error) { order <- fmt.Sprint(err) })
	release()
	for _, want := range []string{"a<nil>a", "b<nil>b", "no"} {
		if got := <-order; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	s.Start(put("c", "c"), nil)
	fatalIf(t, s.Update(t.Context(), put("d", "d")))
	if get(t, s, "c") != "c" {
		t.Error("an operation that nobody waits for was passed over")
	}
	fatalIf(t, s.Close())
	s.Start(put("e", "e"), func(err error) {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
		order <- "told"
	})
	<-order
}

// TestTrim: a large file that was read from end to end is hardly resident afterwards, and reads as before.
func TestTrim(t *testing.T) {
	s := storetest.Open(t, options)
	value := bytes.Repeat([]byte("v"), 1<<20)
	for i := range 80 {
		fatalIf(t, s.Update(t.Context(), put(fmt.Sprint(i), string(value))))
	}
	read := func() {
		fatalIf(t, s.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
				if !bytes.Equal(v, value) {
					return fmt.Errorf("%s has changed", k)
				}
				return nil
			})
		}))
	}
	before := 0
	for range 10 { // the writer trims by itself now and then, for the last time perhaps only now
		if read(); before < 64<<10 {
			before = resident(t, s.Path())
		}
	}
	s.Trim()
	if after := resident(t, s.Path()); before < 64<<10 || after > before/8 {
		t.Errorf("%d kB resident, %d kB after", before, after)
	}
	read()
}

// resident says how many kB of a mapped file are in this process's resident memory.
func resident(t *testing.T, path string) (kb int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	fatalIf(t, err)
	ours := false
	for line := range strings.Lines(string(maps)) {
		var n int
		switch _, err := fmt.Sscanf(line, "Rss: %d kB", &n); {
		case err == nil && ours:
			kb += n
		case strings.Contains(line, "-") && strings.Contains(line, "/"): // the head of another mapping
			ours = strings.HasSuffix(strings.TrimSpace(line), path)
		case strings.HasPrefix(line, "VmFlags:"):
			ours = false
		}
	}
	return kb
}
