package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("JOBS_TEST_CHILD"); path != "" {
		child(path)
	}
	goleak.VerifyTestMain(m)
}

// open opens an engine on a fresh store; both are closed and checked when the test ends.
func open(t testing.TB, o jobs.Options) (*jobs.Engine, *store.Store) {
	t.Helper()
	s := storetest.Open(t, store.Options{})
	return openOn(t, s, o), s
}

func openOn(t testing.TB, s *store.Store, o jobs.Options) *jobs.Engine {
	t.Helper()
	e, err := jobs.Open(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Error(err)
		}
	})
	return e
}

func oneQueue() jobs.Options { return jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}}} }

func enqueue(t testing.TB, e *jobs.Engine, js ...jobs.NewJob) []jobs.Job {
	t.Helper()
	out, err := e.Enqueue(t.Context(), js...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func get(t testing.TB, e *jobs.Engine, id string) jobs.Job {
	t.Helper()
	j, err := e.Get("t", "q", id)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func stats(t testing.TB, e *jobs.Engine) jobs.QueueStats {
	t.Helper()
	st := e.Stats()[0]
	st.OldestWaiting = time.Time{}
	return st
}

func fatalIf(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEnqueueFillsDefaultsAndGetReadsThemBack(t *testing.T) {
	e, s := open(t, oneQueue())
	in := jobs.NewJob{Queue: "q", Tenant: "t", Name: "mail", Data: []byte("hello"), Priority: -3}
	j := enqueue(t, e, in)[0]
	want := in
	want.ID = j.ID
	want.Attempts, want.Timeout = 3, 10*time.Minute
	want.Backoff = jobs.Backoff{Type: jobs.Exponential, Delay: 2 * time.Second, Max: time.Hour}
	want.RemoveOnComplete, want.RemoveOnFail = jobs.Retention{Count: 10}, jobs.Retention{Count: 5}
	if d := cmp.Diff(want, j.NewJob); d != "" || !strings.HasPrefix(j.ID, "job_") || j.State != jobs.Waiting || j.CreatedAt.IsZero() {
		t.Errorf("enqueued %+v\n%s", j, d)
	}
	ignore := cmp.FilterPath(func(p cmp.Path) bool {
		return strings.Contains("interruptions startedAt seq Delay", p.Last().String()[1:])
	}, cmp.Ignore())
	if d := cmp.Diff(j, get(t, e, j.ID), ignore); d != "" {
		t.Errorf("got another one:\n%s", d)
	}
	fatalIf(t, e.Close())
	e = openOn(t, s, oneQueue())
	if d := cmp.Diff(j, get(t, e, j.ID), ignore); d != "" {
		t.Errorf("after a restart:\n%s", d)
	}
	if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Waiting: 1}) {
		t.Errorf("%+v", st)
	}
}

func TestInvalidJobs(t *testing.T) {
	e, _ := open(t, oneQueue())
	for name, tc := range map[string]struct {
		job  jobs.NewJob
		want error
	}{
		"unknown queue":    {jobs.NewJob{Queue: "none"}, jobs.ErrUnknownQueue},
		"no queue":         {jobs.NewJob{}, jobs.ErrUnknownQueue},
		"tenant":           {jobs.NewJob{Queue: "q", Tenant: "A b"}, jobs.ErrInvalid},
		"tenant with zero": {jobs.NewJob{Queue: "q", Tenant: "a\x00b"}, jobs.ErrInvalid},
		"long id":          {jobs.NewJob{Queue: "q", ID: strings.Repeat("x", 256)}, jobs.ErrInvalid},
		"id with a line":   {jobs.NewJob{Queue: "q", ID: "a\nb"}, jobs.ErrInvalid},
		"name":             {jobs.NewJob{Queue: "q", Name: "\xff"}, jobs.ErrInvalid},
		"data":             {jobs.NewJob{Queue: "q", Data: make([]byte, 1<<20+1)}, jobs.ErrInvalid},
		"priority":         {jobs.NewJob{Queue: "q", Priority: 1 << 40}, jobs.ErrInvalid},
		"delay":            {jobs.NewJob{Queue: "q", Delay: 1 << 62}, jobs.ErrInvalid},
		"backoff type":     {jobs.NewJob{Queue: "q", Backoff: jobs.Backoff{Type: "x"}}, jobs.ErrInvalid},
		"jitter":           {jobs.NewJob{Queue: "q", Backoff: jobs.Backoff{Jitter: 1.1}}, jobs.ErrInvalid},
		"backoff delay":    {jobs.NewJob{Queue: "q", Backoff: jobs.Backoff{Delay: -1}}, jobs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := e.Enqueue(t.Context(), tc.job); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			// All or none: a good neighbour is not stored either.
			if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "q", ID: "good"}, tc.job); !errors.Is(err, tc.want) {
				t.Errorf("with a neighbour: %v", err)
			}
			if _, err := e.Get("", "q", "good"); !errors.Is(err, jobs.ErrNotFound) {
				t.Errorf("the neighbour: %v", err)
			}
		})
	}
	if _, err := e.Enqueue(t.Context(), make([]jobs.NewJob, 10_001)...); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}

func TestOptionsAreValidatedTogether(t *testing.T) {
	s := storetest.Open(t, store.Options{})
	_, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: "A"}, {Name: "b"}, {Name: "b"}, {Name: "c", Backoff: jobs.Backoff{Jitter: 2}}}})
	if err == nil || strings.Count(err.Error(), "queue ") != 3 {
		t.Fatalf("got %v", err)
	}
}

func TestAnIDIsStoredOnce(t *testing.T) {
	e, _ := open(t, oneQueue())
	first := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Name: "first"})[0]
	again := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a", Name: "second"},
		jobs.NewJob{Queue: "q", Tenant: "t", ID: "b"}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "b", Name: "third"})
	if again[0].Name != "first" || !again[0].CreatedAt.Equal(first.CreatedAt) || again[2].Name != "" {
		t.Errorf("got %+v", again)
	}
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "u", ID: "a"}) // another tenant's
	if st := stats(t, e); st.Waiting != 3 {
		t.Errorf("%+v", st)
	}
	if _, err := e.Get("u", "q", "b"); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("another tenant's job: %v", err)
	}
	if st := e.TenantStats("u"); len(st) != 1 || st[0].Waiting != 1 {
		t.Errorf("%+v", st)
	}
	if st := e.TenantStats("nobody"); len(st) != 0 {
		t.Errorf("%+v", st)
	}
}

func TestEnqueueFrom(t *testing.T) {
	e, s := open(t, oneQueue())
	job := func(id string) []jobs.NewJob { return []jobs.NewJob{{Queue: "q", Tenant: "t", ID: id}} }
	for i, step := range []struct {
		from, to uint64
		id       string
		stored   bool
		err      error
	}{
		{5, 9, "gap", false, jobs.ErrCursor}, // there is no cursor, so only from 0
		{0, 3, "a", true, nil},
		{0, 3, "repeated", false, nil}, // known
		{0, 2, "older", false, nil},
		{2, 5, "overlap", false, jobs.ErrCursor},
		{4, 5, "gap", false, jobs.ErrCursor},
		{3, 7, "b", true, nil},
		{3, 7, "repeated", false, nil},
		{7, 8, "a", true, nil}, // the id exists: the cursor moves, no job is added
	} {
		before := stats(t, e).Waiting
		err := e.EnqueueFrom(t.Context(), "shard/0", step.from, jobs.Cursor{Offset: step.to, Anchor: []byte{byte(step.to)}}, job(step.id))
		if !errors.Is(err, step.err) {
			t.Fatalf("step %d: %v", i, err)
		}
		if _, err := e.Get("t", "q", step.id); (err == nil) != step.stored {
			t.Errorf("step %d: job %q: %v", i, step.id, err)
		}
		if n := stats(t, e).Waiting - before; n > 1 || n == 1 != (step.stored && i != 8) {
			t.Errorf("step %d: %d added", i, n)
		}
	}
	fatalIf(t, e.Close())
	e = openOn(t, s, oneQueue())
	c, ok, err := e.Cursor("shard/0")
	fatalIf(t, err)
	if d := cmp.Diff(jobs.Cursor{Offset: 8, Anchor: []byte{8}}, c); d != "" || !ok {
		t.Errorf("after a restart: %s", d)
	}
	if _, ok, err := e.Cursor("shard/1"); ok || err != nil {
		t.Errorf("another source: %v, %v", ok, err)
	}
	for _, c := range []jobs.Cursor{{Offset: 1, Anchor: make([]byte, 5000)}} {
		if err := e.EnqueueFrom(t.Context(), "x", 0, c, nil); !errors.Is(err, jobs.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	}
	if err := e.EnqueueFrom(t.Context(), "", 0, jobs.Cursor{}, nil); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("no source: %v", err)
	}
}

// TestEnqueueFromOfTwoRelays: two that believe to be the only one enqueue each batch once.
func TestEnqueueFromOfTwoRelays(t *testing.T) {
	e, _ := open(t, oneQueue())
	const batches = 50
	done := make(chan struct{})
	for range 2 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range uint64(batches) {
				js := []jobs.NewJob{{Queue: "q", Tenant: "t"}} // a generated id: no help from ids
				if err := e.EnqueueFrom(context.Background(), "s", i, jobs.Cursor{Offset: i + 1}, js); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	<-done
	<-done
	if st := stats(t, e); st.Waiting != batches {
		t.Errorf("%d jobs for %d batches", st.Waiting, batches)
	}
}

func TestMoveCursorGoesForwardOnly(t *testing.T) {
	e, _ := open(t, oneQueue())
	answers := make(chan error, 1)
	for _, step := range []struct{ to, want uint64 }{{5, 5}, {3, 5}, {5, 5}, {9, 9}} {
		e.MoveCursor("bus", jobs.Cursor{Offset: step.to}, func(err error) { answers <- err })
		fatalIf(t, <-answers)
		if c, _, err := e.Cursor("bus"); err != nil || c.Offset != step.want {
			t.Errorf("moved to %d: at %d, %v", step.to, c.Offset, err)
		}
	}
	e.MoveCursor("", jobs.Cursor{}, func(err error) { answers <- err })
	if err := <-answers; !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	e.MoveCursor("bus", jobs.Cursor{Offset: 10}, nil)
}

func TestBackoffWait(t *testing.T) {
	s := time.Second
	for _, tc := range []struct {
		b    jobs.Backoff
		want []time.Duration // for attempts 1, 2, …
	}{
		{jobs.Backoff{Type: jobs.Exponential, Delay: s, Max: 10 * time.Minute}, []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s, 512 * s, 600 * s, 600 * s}},
		{jobs.Backoff{Type: jobs.Exponential, Delay: 7 * s, Max: 3 * s}, []time.Duration{3 * s, 3 * s}},
		{jobs.Backoff{Type: jobs.Exponential, Delay: 1 << 61, Max: 1<<63 - 1}, []time.Duration{1 << 61, 1 << 62, 1<<63 - 1, 1<<63 - 1}},
		{jobs.Backoff{Type: jobs.Fixed, Delay: s, Max: time.Minute}, []time.Duration{s, s, s}},
		{jobs.Backoff{Type: jobs.Fixed, Delay: time.Hour, Max: time.Minute}, []time.Duration{time.Minute}},
	} {
		for i, want := range tc.want {
			if got := tc.b.Wait(i + 1); got != want {
				t.Errorf("%+v, attempt %d: %v, want %v", tc.b, i+1, got, want)
			}
		}
		tc.b.Wait(1 << 60) // in no time
	}
	b := jobs.Backoff{Type: jobs.Fixed, Delay: s, Jitter: 0.25, Max: time.Hour}
	seen := map[time.Duration]bool{}
	for range 100 {
		d := b.Wait(1)
		if d < 750*time.Millisecond || d > s {
			t.Fatalf("%v", d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d different waits of 100", len(seen))
	}
}

func TestUnknownQueuesOnDiskAreKeptAndCounted(t *testing.T) {
	e, s := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "old"}, {Name: "q"}}})
	enqueue(t, e, jobs.NewJob{Queue: "old"}, jobs.NewJob{Queue: "old", Delay: time.Hour}, jobs.NewJob{Queue: "q"})
	fatalIf(t, e.Close())
	e = openOn(t, s, oneQueue())
	st := e.Stats()
	if len(st) != 2 || st[0].Queue != "old" || st[0].Waiting != 1 || st[0].Delayed != 1 {
		t.Errorf("%+v", st)
	}
	if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "old"}); !errors.Is(err, jobs.ErrUnknownQueue) {
		t.Errorf("got %v", err)
	}
}

func TestOldestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		start := time.Now().UTC().Round(0)
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "a"})
		time.Sleep(time.Hour)
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "b"})
		if got := e.Stats()[0].OldestWaiting; !got.Equal(start) {
			t.Errorf("%v, want %v", got, start)
		}
		if got := e.TenantStats("b")[0].OldestWaiting; !got.Equal(start.Add(time.Hour)) {
			t.Errorf("%v", got)
		}
	})
}

func TestClosedEngine(t *testing.T) {
	e, _ := open(t, oneQueue())
	fatalIf(t, e.Close())
	fatalIf(t, e.Close())
	if _, err := e.Enqueue(t.Context(), jobs.NewJob{Queue: "q"}); !errors.Is(err, jobs.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestDamagedRecords changes bytes of records behind the engine's back: parked and counted, and the queue goes on.
func TestDamagedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, s := open(t, oneQueue())
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "bad"}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "good"},
			jobs.NewJob{Queue: "q", Tenant: "t", ID: "bad-later", Delay: time.Minute}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "good-later", Delay: time.Minute})
		fatalIf(t, e.EnqueueFrom(t.Context(), "src", 0, jobs.Cursor{Offset: 1}, nil))
		damage := func(bucket, id string) {
			fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte(bucket))
				return b.ForEach(func(k, v []byte) error {
					if !bytes.Contains(v, []byte(id)) && id != "" {
						return nil
					}
					v = bytes.Clone(v)
					v[len(v)-3] ^= 0x40
					return b.Put(k, v)
				})
			}))
		}
		damage("waiting", "bad")
		damage("delayed", "bad-later")
		damage("cursors", "")
		if _, err := e.Get("t", "q", "bad"); !errors.Is(err, jobs.ErrDamaged) {
			t.Errorf("get: %v", err)
		}
		if _, _, err := e.Cursor("src"); !errors.Is(err, jobs.ErrDamaged) {
			t.Errorf("cursor: %v", err)
		}
		if err := e.EnqueueFrom(t.Context(), "src", 1, jobs.Cursor{Offset: 2}, nil); !errors.Is(err, jobs.ErrDamaged) {
			t.Errorf("enqueue from: %v", err)
		}
		ran := make(chan string, 9)
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(_ context.Context, j *jobs.Job) error { ran <- j.ID; return nil }})
		if a, b := <-ran, <-ran; a != "good" || b != "good-later" {
			t.Errorf("ran %q and %q", a, b)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Completed: 2, Damaged: 2}) {
			t.Errorf("%+v", st)
		}
		if _, err := e.Get("t", "q", "bad"); !errors.Is(err, jobs.ErrDamaged) {
			t.Errorf("get when parked: %v", err)
		}
		// Work that has to be done is not lost with its record: its source may enqueue it again.
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "bad"})
		if id := <-ran; id != "bad" {
			t.Errorf("ran %q", id)
		}
		stop()
		fatalIf(t, e.Close())
		e = openOn(t, s, oneQueue())
		if st := stats(t, e); st.Damaged != 2 || st.Completed != 3 {
			t.Errorf("after a restart: %+v", st)
		}
	})
}

func TestAudit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	s := storetest.Reopen(t, path, store.Options{})
	e := openOn(t, s, oneQueue())
	for i := range 20 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint("job", i), Delay: time.Duration(i%2) * time.Hour})
	}
	stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handler: func(_ context.Context, j *jobs.Job) error { return jobs.Cancel(nil) }})
	until(t, func() bool { return stats(t, e).Failed == 5 && stats(t, e).Waiting+stats(t, e).Active == 0 })
	stop()
	fatalIf(t, e.EnqueueFrom(t.Context(), "src", 0, jobs.Cursor{Offset: 1}, nil))
	fatalIf(t, e.Close())
	fatalIf(t, s.Close())
	findings, err := jobs.Audit(path)
	if err != nil || len(findings) != 0 {
		t.Fatalf("%v, %v", findings, err)
	}
	data, err := os.ReadFile(path)
	fatalIf(t, err)
	// Every copy of a job's id is in a record or an index key; a change in any of them is found.
	for _, id := range []string{"job1", "job19", "src"} {
		at := -1
		n := 0
		for {
			i := bytes.Index(data[at+1:], []byte(id))
			if i < 0 {
				break
			}
			at += 1 + i
			broken := bytes.Clone(data)
			broken[at] ^= 1
			copied := filepath.Join(t.TempDir(), "jobs.db")
			fatalIf(t, os.WriteFile(copied, broken, 0o600))
			if findings, err := jobs.Audit(copied); err != nil || len(findings) > 0 {
				n++ // copies in free pages do not count
			}
		}
		if n == 0 {
			t.Errorf("no change of %q was found", id)
		}
	}
}

func TestTakeCursor(t *testing.T) {
	e, _ := open(t, oneQueue())
	fatalIf(t, e.TakeCursor(t.Context(), "old", "new"))
	if _, found, err := e.Cursor("new"); found || err != nil {
		t.Errorf("taken from nothing: %v, %v", found, err)
	}
	fatalIf(t, e.EnqueueFrom(t.Context(), "old", 0, jobs.Cursor{Offset: 7, Anchor: []byte("a")}, nil))
	for range 2 { // a repeat finds the old one gone
		fatalIf(t, e.TakeCursor(t.Context(), "old", "new"))
		if c, found, err := e.Cursor("new"); err != nil || !found || c.Offset != 7 || string(c.Anchor) != "a" {
			t.Errorf("got %+v, %v, %v", c, found, err)
		}
		if _, found, _ := e.Cursor("old"); found {
			t.Error("the old one is still there")
		}
	}
	fatalIf(t, e.EnqueueFrom(t.Context(), "older", 0, jobs.Cursor{Offset: 9}, nil))
	fatalIf(t, e.TakeCursor(t.Context(), "older", "new"))
	if c, _, _ := e.Cursor("new"); c.Offset != 7 {
		t.Errorf("one that it had became %d", c.Offset)
	}
	if err := e.TakeCursor(t.Context(), "old", ""); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("no source: %v", err)
	}
}
