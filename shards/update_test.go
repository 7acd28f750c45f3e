package shards_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"tenderbox/shards"
	"tenderbox/shards/shardstest"
)

func yield() { runtime.Gosched() }

var errOwn = errors.New("the closure's own")

func TestUpdateIsThereAfterReopening(t *testing.T) {
	dir := tempDir(t)
	s := shardstest.OpenDir(t, dir, options())
	mustPut(t, s.Shard(0), 0, 50)
	s = reopen(t, s, dir, options())
	if n := count(t, s.Shard(0)); n != 50 {
		t.Errorf("%d rows after reopening, want 50", n)
	}
}

func TestGroupSharesOneCommit(t *testing.T) {
	_, sh := open(t, options())
	var fns []func(tx *shards.Tx) error
	for i := range 100 {
		fns = append(fns, insert(fmt.Sprint(i), i))
	}
	before := sh.Stats()
	for i, err := range group(t, sh, fns...) {
		if err != nil {
			t.Errorf("closure %d: %v", i, err)
		}
	}
	after := sh.Stats()
	if got := after.Commits - before.Commits; got != 1 {
		t.Errorf("%d commits, want 1", got)
	}
	if got := after.Closures - before.Closures; got != 101 {
		t.Errorf("%d closures counted, want 101", got)
	}
	if n := count(t, sh); n != 100 {
		t.Errorf("%d rows, want 100", n)
	}
}

func TestBatchMaxCutsGroups(t *testing.T) {
	o := options()
	o.BatchMax = 10
	_, sh := open(t, o)
	var fns []func(tx *shards.Tx) error
	for i := range 25 {
		fns = append(fns, insert(fmt.Sprint(i), i))
	}
	group(t, sh, fns...)
	if got := sh.Stats().Commits; got != 3 {
		t.Errorf("%d commits for 25 closures in groups of 10, want 3", got)
	}
}

// Each way to fail undoes the closure and what it attached, and nothing else.
func TestClosureFailsAlone(t *testing.T) {
	for name, fail := range map[string]func(tx *shards.Tx) error{
		"error": func(tx *shards.Tx) error { return errOwn },
		"panic": func(tx *shards.Tx) error { panic("boom") },
		"constraint": func(tx *shards.Tx) error {
			_, err := tx.Exec("INSERT INTO things (id, n) VALUES ('x', -1)")
			return err
		},
		"syntax": func(tx *shards.Tx) error {
			_, err := tx.Exec("INSRT")
			return err
		},
		"argument": func(tx *shards.Tx) error {
			_, err := tx.Exec("INSERT INTO things (id, n) VALUES (?, 1)", struct{}{})
			return err
		},
		"open rows": func(tx *shards.Tx) error {
			rows, err := tx.Query("INSERT INTO things (id, n) VALUES ('r1', 1), ('r2', 1) RETURNING id")
			if err == nil {
				rows.Next()
			}
			return errOwn
		},
	} {
		t.Run(name, func(t *testing.T) {
			var attached []any
			o := options()
			o.BeforeCommit = func(tx *shards.Tx, a []any) error { attached = append(attached, a...); return nil }
			_, sh := open(t, o)
			bad := func(tx *shards.Tx) error {
				tx.Attach("bad")
				if err := insert("bad", 1)(tx); err != nil {
					return err
				}
				tx.Attach("bad too")
				return fail(tx)
			}
			good := func(id string) func(tx *shards.Tx) error {
				return func(tx *shards.Tx) error { tx.Attach(id); return insert(id, 1)(tx) }
			}
			errs := group(t, sh, good("a"), bad, good("b"), bad, good("c"))
			for i, err := range errs {
				if failed := i == 1 || i == 3; failed != (err != nil) {
					t.Errorf("closure %d: %v", i, err)
				}
			}
			if name == "error" && errs[1] != errOwn {
				t.Errorf("got %v, want the closure's own error, unchanged", errs[1])
			}
			var p *shards.PanicError
			if name == "panic" && (!errors.As(errs[1], &p) || p.Value != "boom" || len(p.Stack) == 0) {
				t.Errorf("got %#v, want a PanicError with value and stack", errs[1])
			}
			if n := count(t, sh); n != 3 || has(t, sh, "bad") {
				t.Errorf("%d rows, want the three good ones", n)
			}
			if !slices.Equal(attached, []any{"a", "b", "c"}) {
				t.Errorf("attached: %v", attached)
			}
			// Alone in its group, without a savepoint, the same.
			if err := sh.Update(ctx, bad); err == nil {
				t.Error("no error")
			}
			if n := count(t, sh); n != 3 {
				t.Errorf("%d rows after the bad one ran alone", n)
			}
			if err := sh.Err(); err != nil {
				t.Errorf("the shard is out: %v", err)
			}
		})
	}
}

// A closure that ends the transaction takes its group with it, but nobody is told that
// his write succeeded.
func TestClosureThatRollsBackEverything(t *testing.T) {
	_, sh := open(t, options())
	gen := sh.Generation()
	errs := group(t, sh, insert("a", 1), func(tx *shards.Tx) error {
		_, err := tx.Exec("INSERT OR ROLLBACK INTO things (id, n) VALUES ('b', -1)")
		return err
	}, insert("c", 1))
	for i, err := range errs {
		if !errors.Is(err, shards.ErrUnavailable) {
			t.Errorf("closure %d: %v, want ErrUnavailable", i, err)
		}
	}
	if n := count(t, sh); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
	if sh.Generation() == gen {
		t.Error("the generation did not grow")
	}
	if err := put(sh, "d", 1); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestStatementsThatClosuresMayNotUse(t *testing.T) {
	_, sh := open(t, options())
	for _, q := range []string{"COMMIT", " rollback", "BEGIN", "END", "SAVEPOINT x", "RELEASE closure", "ATTACH 'x' AS y", "VACUUM", "PRAGMA synchronous=0", "-- c\nCOMMIT"} {
		errs := group(t, sh, insert("a"+q, 1), func(tx *shards.Tx) error { _, err := tx.Exec(q); return err })
		if errs[0] != nil || errs[1] == nil {
			t.Errorf("%q: neighbour %v, itself %v", q, errs[0], errs[1])
		}
	}
}

func TestHooks(t *testing.T) {
	var (
		after  []any
		fail   error
		panics bool
	)
	o := options()
	o.BeforeCommit = func(tx *shards.Tx, attached []any) error {
		for _, a := range attached {
			if _, err := tx.Exec("INSERT INTO log (line) VALUES (?)", a); err != nil {
				return err
			}
		}
		if panics {
			panic("hook")
		}
		return fail
	}
	o.AfterCommit = func(sh *shards.Shard, attached []any) {
		after = append(after, attached...)
		panic("is only logged")
	}
	_, sh := open(t, o)
	with := func(id string) func(tx *shards.Tx) error {
		return func(tx *shards.Tx) error {
			if tx.Shard() != sh {
				t.Error("Tx.Shard is another one")
			}
			tx.Attach(id)
			return insert(id, 1)(tx)
		}
	}
	lines := func() (n int) {
		if err := sh.View(ctx, func(tx *shards.Tx) error { return tx.QueryRow("SELECT count(*) FROM log").Scan(&n) }); err != nil {
			t.Fatal(err)
		}
		return n
	}

	for _, err := range group(t, sh, with("a"), with("b")) {
		if err != nil {
			t.Error(err)
		}
	}
	if n := lines(); n != 2 || !slices.Equal(after, []any{"a", "b"}) {
		t.Errorf("%d lines, AfterCommit got %v", n, after)
	}

	fail = errOwn
	for i, err := range group(t, sh, with("c"), func(*shards.Tx) error { return errors.New("another") }, with("d")) {
		if !errors.Is(err, errOwn) {
			t.Errorf("closure %d: %v, want BeforeCommit's error", i, err)
		}
	}
	fail, panics = nil, true
	var p *shards.PanicError
	for i, err := range group(t, sh, with("e"), with("f")) {
		if !errors.As(err, &p) {
			t.Errorf("closure %d: %v, want BeforeCommit's panic", i, err)
		}
	}
	panics = false
	if n := lines(); n != 2 || count(t, sh) != 2 || len(after) != 2 {
		t.Errorf("something of a refused group is left: %d lines, %d rows, %d reported", n, count(t, sh), len(after))
	}
	// A closure that changes and attaches nothing needs no hooks and no fsync.
	commits := sh.Stats().Commits
	if err := sh.Update(ctx, func(tx *shards.Tx) error { return nil }); err != nil || sh.Stats().Commits != commits {
		t.Errorf("an idle closure: %v, %d commits", err, sh.Stats().Commits-commits)
	}
}

// What one closure attached breaks the schema's rules: its neighbours do not fail with it.
func TestAttachedRowFailsAlone(t *testing.T) {
	o := options()
	var after []any
	o.BeforeCommit = func(tx *shards.Tx, attached []any) error {
		for _, a := range attached {
			if err := insert(a.(string), 1)(tx); err != nil {
				return err
			}
		}
		return nil
	}
	o.AfterCommit = func(_ *shards.Shard, attached []any) { after = append(after, attached...) }
	_, sh := open(t, o)
	attach := func(id string) func(tx *shards.Tx) error {
		return func(tx *shards.Tx) error { tx.Attach(id); return nil }
	}
	errs := group(t, sh, attach("a"), attach("b"), attach("a"), attach("c"), func(*shards.Tx) error { return errOwn })
	for i, want := range []bool{true, true, false, true, false} {
		if (errs[i] == nil) != want {
			t.Errorf("closure %d: %v", i, errs[i])
		}
	}
	if !errors.Is(errs[4], errOwn) {
		t.Errorf("a closure's own error became %v", errs[4])
	}
	if n := count(t, sh); n != 3 || !slices.Equal(after, []any{"a", "b", "c"}) {
		t.Errorf("%d rows, AfterCommit got %v", n, after)
	}
}

// What closures of one group saw of each other is void when the group fails.
func TestErrorBasedOnUncommittedDataIsNotReported(t *testing.T) {
	o := options()
	refuse := errors.New("refused")
	o.BeforeCommit = func(*shards.Tx, []any) error { return refuse }
	_, sh := open(t, o)
	errs := group(t, sh, insert("a", 1), func(tx *shards.Tx) error {
		var n int
		if err := tx.QueryRow("SELECT n FROM things WHERE id = 'a'").Scan(&n); err != nil {
			return err
		}
		return errOwn // "a exists already"
	})
	if errs[1] != refuse {
		t.Errorf("got %v, want %v: a was never committed", errs[1], refuse)
	}
}

func TestContext(t *testing.T) {
	_, sh := open(t, options())
	done, cancel := context.WithCancel(ctx)
	cancel()
	if err := sh.Update(done, insert("never", 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended before: %v", err)
	}

	// Ended while waiting: not run, and answered at once, while the writer is busy.
	running, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		sh.Update(ctx, func(*shards.Tx) error { close(running); <-release; return nil })
	})
	<-running
	waiting, cancel := context.WithCancel(ctx)
	answer := make(chan error)
	go func() { answer <- sh.Update(waiting, insert("never", 1)) }()
	for sh.Stats().Queued == 0 {
		yield()
	}
	cancel()
	if err := <-answer; !errors.Is(err, context.Canceled) {
		t.Errorf("ended while waiting: %v", err)
	}
	close(release)
	wg.Wait()

	// Ended after it started: the outcome is waited for.
	started, cancel := context.WithCancel(ctx)
	err := sh.Update(started, func(tx *shards.Tx) error { cancel(); return insert("there", 1)(tx) })
	if err != nil {
		t.Errorf("ended while running: %v, want the outcome", err)
	}
	if has(t, sh, "never") || !has(t, sh, "there") {
		t.Error("ran what must not run, or the other way round")
	}
}

func TestOverload(t *testing.T) {
	o := options()
	o.QueueMax = 3
	_, sh := open(t, o)
	running, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { sh.Update(ctx, func(*shards.Tx) error { close(running); <-release; return nil }) })
	<-running
	for i := range 3 {
		wg.Go(func() {
			if err := put(sh, fmt.Sprint(i), 1); err != nil {
				t.Error(err)
			}
		})
	}
	for sh.Stats().Queued < 3 {
		yield()
	}
	if err := put(sh, "too many", 1); !errors.Is(err, shards.ErrOverloaded) {
		t.Errorf("got %v, want ErrOverloaded", err)
	}
	close(release)
	wg.Wait()
	if n := count(t, sh); n != 3 || sh.Stats().Overloaded != 1 {
		t.Errorf("%d rows, %d refused", n, sh.Stats().Overloaded)
	}
}

// Close finishes what waits; every Update gets an answer that is true.
func TestCloseUnderLoad(t *testing.T) {
	dir := tempDir(t)
	s := shardstest.OpenDir(t, dir, shards.Options{Files: 2, Migrations: migrations})
	var (
		wg    sync.WaitGroup
		acked sync.Map
		n     atomic.Int64
	)
	for w := range 32 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", w, i)
				switch err := put(s.Shard(shards.SlotOf("t", id)), id, i); {
				case errors.Is(err, shards.ErrClosed):
					return
				case err != nil:
					t.Errorf("%s: %v", id, err)
					return
				}
				acked.Store(id, true)
				n.Add(1)
			}
		})
	}
	for n.Load() < 500 {
		yield()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := s.All()[0].View(ctx, func(*shards.Tx) error { return nil }); !errors.Is(err, shards.ErrClosed) {
		t.Errorf("View after Close: %v", err)
	}
	s2 := shardstest.OpenDir(t, dir, shards.Options{Migrations: migrations})
	stored := 0
	for _, sh := range s2.All() {
		stored += count(t, sh)
	}
	if int64(stored) != n.Load() {
		t.Errorf("%d rows stored, %d acknowledged", stored, n.Load())
	}
	acked.Range(func(id, _ any) bool {
		if !has(t, s2.Shard(shards.SlotOf("t", id.(string))), id.(string)) {
			t.Errorf("%v is lost", id)
		}
		return true
	})
}

func TestManyClients(t *testing.T) {
	s := shardstest.Open(t, shards.Options{Files: 3, Migrations: migrations})
	var wg sync.WaitGroup
	const clients, each = 40, 50
	for w := range clients {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("%d-%d", w, i)
				sh := s.Shard(shards.SlotOf("t", id))
				if err := put(sh, id, i); err != nil {
					t.Error(err)
				}
				if !has(t, sh, id) {
					t.Errorf("%s is not there after its Update", id)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for _, sh := range s.All() {
		total += count(t, sh)
	}
	if total != clients*each {
		t.Errorf("%d rows, want %d", total, clients*each)
	}
}

// A closure that ends its goroutine (t.Fatal does) leaves nobody waiting.
func TestClosureThatEndsItsGoroutine(t *testing.T) {
	_, sh := open(t, options())
	if err := sh.Update(ctx, func(*shards.Tx) error { runtime.Goexit(); return nil }); !errors.Is(err, shards.ErrUnknown) {
		t.Errorf("got %v, want ErrUnknown", err)
	}
	if err := put(sh, "a", 1); err == nil {
		t.Error("a write succeeded without a writer")
	}
}

// BeforeCommit of what is to be alone sees nothing else, however many write at the same time.
func TestUpdateAlone(t *testing.T) {
	mixed := false
	o := options()
	o.BeforeCommit = func(_ *shards.Tx, attached []any) error {
		mixed = mixed || slices.Contains(attached, any("alone")) && len(attached) > 1
		return nil
	}
	s, err := shards.Open(ctx, tempDir(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sh := s.Shard(0)
	var g errgroup.Group
	ran := make([]int, 8)
	for i := range ran {
		g.Go(func() error {
			for range 50 {
				update, what := sh.Update, "in company"
				if i%2 == 0 {
					update, what = sh.UpdateAlone, "alone"
				}
				if err := update(ctx, func(tx *shards.Tx) error { tx.Attach(what); ran[i]++; return nil }); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if mixed {
		t.Error("an update that was to be alone shared its group")
	}
	for i, n := range ran {
		if n != 50 {
			t.Errorf("%d: ran %d times", i, n)
		}
	}
}
