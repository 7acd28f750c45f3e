package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"tenderbox/store"
)

// The model of the state machine: what a reader of DESIGN.md expects of each job, in memory, without any of the engine's ways
// to get there. rapid drives both with the same steps, restarts and crashes included, and compares all jobs after each.

type modelJob struct {
	id, tenant, name        string
	priority, order         int
	attempts, made, interr  int
	state                   State
	runAt                   time.Time
	started                 bool // an attempt began and did not end
	removeDone, removeFails bool
	lastError, progress     string
	history                 int       // attempts that ended
	token                   string    // of a lease from outside; "": none
	until                   time.Time // its deadline by the clock that can jump, which is what the file has
	expires                 time.Duration
}

type machine struct {
	dir  string
	n    int // files so far
	now  time.Time
	wall atomic.Int64 // now, for the engine to read

	steady atomic.Int64    // the clock that does not jump
	paused map[string]bool // by tenant; "": the whole queue
	stale  []LeaseRef      // tokens of leases that are over
	st     *store.Store
	e      *Engine
	w      *waiter
	jobs   map[string]*modelJob
	given  []string          // ids that the engine generated, also of jobs that are gone
	held   map[string]*lease // active jobs
	seq    int
	from   uint64 // the source's cursor
}

var tenants = []string{"a", "b", ""}

func (m *machine) open(t *rapid.T, path string) {
	st, err := store.Open(path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := Open(st, Options{
		Queues: []QueueConfig{{Name: "p"}, {Name: "q", Backoff: Backoff{Type: Fixed, Delay: time.Minute}}},
		Now:    func() time.Time { return time.Unix(0, m.wall.Load()).UTC() },
		steady: func() time.Duration { return time.Duration(m.steady.Load()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range m.jobs {
		if j.token != "" { // what is left is counted by the clock that can jump, because the other one stood still
			j.expires = m.time() + max(j.until.Sub(m.now), 0)
		}
	}
	m.st, m.e, m.held, m.w = st, e, map[string]*lease{}, newWaiter("q")
	e.lookAlone(m.w, nil, 0)
	m.move(t)
}

func (m *machine) time() time.Duration { return time.Duration(m.steady.Load()) }

// move does what the scheduler does when it looks at the clock.
func (m *machine) move(t *rapid.T) {
	m.e.tick(context.Background())
	for _, j := range m.jobs {
		if j.state == Delayed && !j.runAt.After(m.now) {
			j.state = Waiting
		}
		if j.token != "" && j.expires <= m.time() {
			o := outcome{state: Waiting, err: errRanOut}
			if j.attempts > 0 && j.made >= j.attempts {
				o.state = Failed
			}
			m.over(j, o)
		}
	}
}

func (m *machine) path() string {
	m.n++
	return filepath.Join(m.dir, fmt.Sprint(m.n, ".db"))
}

// id is a name that an app chose, one that the engine generated for the same or another tenant, or one that looks like it and may tell the place
// of another job, or of the very job that gets it. "", if wished: let the engine generate it.
func (m *machine) id(t *rapid.T, wished bool) string {
	kind := rapid.IntRange(0, 5).Draw(t, "kind of id")
	switch {
	case kind < 2 && wished:
		return ""
	case kind < 4 && len(m.given) > 0:
		return rapid.SampledFrom(m.given).Draw(t, "given id")
	case kind == 4:
		return generateID(rapid.Int32Range(-1, 1).Draw(t, "told priority"), uint64(m.seq+rapid.IntRange(-15, 2).Draw(t, "told sequence")))
	default:
		return fmt.Sprint(rapid.IntRange(0, 12).Draw(t, "id"))
	}
}

func (m *machine) wish(t *rapid.T) (NewJob, *modelJob) {
	m.seq++
	n := NewJob{
		Queue: "q", Tenant: rapid.SampledFrom(tenants).Draw(t, "tenant"), ID: m.id(t, true),
		Priority: rapid.IntRange(-1, 1).Draw(t, "priority"), Attempts: rapid.SampledFrom([]int{-1, 1, 2, 3}).Draw(t, "attempts"),
		Delay:            rapid.SampledFrom([]time.Duration{0, 0, time.Second, time.Hour}).Draw(t, "delay"),
		RemoveOnComplete: Retention{Remove: rapid.Bool().Draw(t, "remove"), Count: -1}, RemoveOnFail: Retention{Remove: rapid.Bool().Draw(t, "removeFailed"), Count: -1},
		Data: []byte(fmt.Sprint("data", m.seq)), Name: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "name"),
	}
	j := &modelJob{
		id: n.ID, name: n.Name, tenant: n.Tenant, priority: n.Priority, order: m.seq, attempts: n.Attempts, state: Waiting,
		runAt: m.now.Add(n.Delay), removeDone: n.RemoveOnComplete.Remove, removeFails: n.RemoveOnFail.Remove,
	}
	if n.Delay > 0 {
		j.state = Delayed
	}
	return n, j
}

// batch is some wishes. unnamed are those among them that the engine has to name.
func (m *machine) batch(t *rapid.T) (js []NewJob, unnamed map[int]*modelJob) {
	unnamed = map[int]*modelJob{}
	for i := range rapid.IntRange(1, 3).Draw(t, "n") {
		n, j := m.wish(t)
		js = append(js, n)
		if j.id == "" {
			unnamed[i] = j
		} else if key := j.tenant + "/" + j.id; m.jobs[key] == nil {
			m.jobs[key] = j
		}
	}
	return js, unnamed
}

// named takes over the id that the engine gave.
func (m *machine) named(t *rapid.T, j *modelJob, id string) {
	j.id = id
	if key := j.tenant + "/" + id; m.jobs[key] != nil || id == "" {
		t.Fatalf("%q was generated, which is another job's", id)
	} else {
		m.jobs[key] = j
	}
	m.given = append(m.given, id)
}

func (m *machine) enqueue(t *rapid.T) {
	js, unnamed := m.batch(t)
	got, err := m.e.Enqueue(context.Background(), js...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range js {
		if j := unnamed[i]; j != nil {
			m.named(t, j, got[i].ID)
		}
	}
}

// enqueueFrom repeats itself now and then, as a relay does after a crash.
func (m *machine) enqueueFrom(t *rapid.T) {
	js, unnamed := m.batch(t)
	to := Cursor{Offset: m.from + uint64(len(js))}
	for range rapid.IntRange(1, 2).Draw(t, "times") {
		if err := m.e.EnqueueFrom(context.Background(), "source", m.from, to, js); err != nil {
			t.Fatal(err)
		}
	}
	m.from = to.Offset
	for i := range js {
		if j := unnamed[i]; j != nil {
			m.named(t, j, m.search(t, j, js[i].Data).ID)
		}
	}
}

// search finds a new job by its data.
func (m *machine) search(t *rapid.T, j *modelJob, data []byte) Job {
	page, err := m.e.List(j.tenant, "q", j.state, ListOptions{Limit: listMax})
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range page.Jobs {
		if bytes.Equal(got.Data, data) {
			return got
		}
	}
	t.Fatalf("%+v is not listed", j)
	return Job{}
}

func (m *machine) pause(t *rapid.T) {
	tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
	do := m.e.Resume
	if m.paused[tenant] = rapid.Bool().Draw(t, "on"); m.paused[tenant] {
		do = m.e.Pause
	}
	if err := do(context.Background(), tenant, "q"); err != nil {
		t.Fatal(err)
	}
}

// finish ends one active attempt with some wish.
func (m *machine) finish(t *rapid.T) {
	for key, le := range m.held {
		err := rapid.SampledFrom([]error{nil, errors.New("bad"), Cancel(errors.New("never")), Snooze(time.Minute)}).Draw(t, "wish")
		record := le.job
		m.settle(t, le, m.jobs[key], wish(&record, err, rapid.Bool().Draw(t, "stopped")))
		delete(m.held, key)
		return
	}
	t.Skip("nothing is active")
}

func (m *machine) pass(t *rapid.T) {
	d := rapid.SampledFrom([]time.Duration{time.Second, time.Minute, time.Hour, 0}).Draw(t, "time")
	m.steady.Add(int64(d))
	m.set(m.now.Add(d))
	m.move(t)
}

// jump sets the clock ahead: delayed jobs become due, but no lease runs out.
func (m *machine) jump(t *rapid.T) {
	m.set(m.now.Add(rapid.SampledFrom([]time.Duration{time.Minute, 24 * time.Hour}).Draw(t, "by")))
	m.move(t)
}

// back sets the clock back: nothing may change, and nothing wait longer than it had to.
func (m *machine) back(t *rapid.T) {
	was := m.now
	m.set(was.Add(-24 * time.Hour))
	m.e.tick(context.Background())
	m.check(t)
	m.set(was)
}

func (m *machine) set(now time.Time) {
	m.now = now
	m.wall.Store(now.UnixNano())
}

func (m *machine) promote(t *rapid.T) {
	tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
	got, err := m.e.PromoteDelayed(context.Background(), "q", func(t string) bool { return t == tenant }, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, j := range m.jobs {
		if j.tenant == tenant && j.state == Delayed {
			j.state = Waiting
			want++
		}
	}
	if got != want {
		t.Fatalf("%d promoted, want %d", got, want)
	}
}

// restart ends the engine in order, workers first; what they had is released.
func (m *machine) restart(t *rapid.T) {
	for key, le := range m.held {
		m.settle(t, le, m.jobs[key], outcome{state: Waiting, attempt: undone})
	}
	m.close(t)
	m.open(t, m.st.Path())
}

// crash goes on with a copy of the file: leases are gone, all else is as it was.
func (m *machine) crash(t *rapid.T) {
	if err := m.st.Update(context.Background(), func(*bbolt.Tx) error { return nil }); err != nil { // starts ride along
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := m.st.Backup(&buf); err != nil {
		t.Fatal(err)
	}
	m.close(t)
	path := m.path()
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, j := range m.jobs {
		if j.state == Active && j.token == "" {
			j.state = Waiting
		}
	}
	m.open(t, path)
}

func (m *machine) close(t *rapid.T) {
	if err := errors.Join(m.e.Close(), m.st.Check(), m.st.Close()); err != nil {
		t.Fatal(err)
	}
	if findings, err := Audit(m.st.Path()); err != nil || len(findings) > 0 {
		t.Fatalf("audit: %v, %v", findings, err)
	}
}

func (m *machine) check(t *rapid.T) {
	var want QueueStats
	for _, j := range m.jobs {
		got, err := m.e.Get(j.tenant, "q", j.id)
		if err != nil {
			t.Fatalf("%+v: %v", j, err)
		}
		if got.State != j.state || got.AttemptsMade != j.made || got.LastError != j.lastError || got.Attempts != j.attempts ||
			!got.RunAt.Equal(j.runAt) || got.FinishedAt.IsZero() != (j.state != Completed && j.state != Failed) {
			t.Fatalf("got  %+v\nwant %+v", got, j)
		}
		if string(got.Progress) != j.progress || j.state != Active && len(got.History) != min(j.history, historyMax) {
			t.Fatalf("got  %+v\nwant %+v", got, j)
		}
		if (got.Worker == "w") != (j.token != "") || j.token != "" && !got.LeasedUntil.Equal(j.until) {
			t.Fatalf("got  %+v\nwant %+v", got, j)
		}
		switch j.state {
		case Waiting:
			want.Waiting++
		case Delayed:
			want.Delayed++
		case Active:
			want.Active++
		case Completed:
			want.Completed++
		case Failed:
			want.Failed++
		}
	}
	got := m.e.Stats()[1]
	got.Queue, got.OldestWaiting = "", time.Time{}
	if got != want {
		t.Fatalf("counts %+v, want %+v", got, want)
	}
}

func TestModel(t *testing.T) {
	t.Parallel() // its time goes into commits
	dir := t.TempDir()
	files := 0
	rapid.Check(t, func(t *rapid.T) {
		files++
		m := &machine{dir: filepath.Join(dir, fmt.Sprint(files)), jobs: map[string]*modelJob{}, paused: map[string]bool{}}
		m.set(time.Unix(1_700_000_000, 0).UTC())
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m.open(t, m.path())
		defer func() { m.e.Close(); m.st.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"enqueue": m.enqueue, "enqueueFrom": m.enqueueFrom, "lease": m.lease, "lease again": m.lease, "finish": m.finish,
			"finish again": m.finish, "time": m.pass, "clock back": m.back, "promote": m.promote, "restart": m.restart, "crash": m.crash,
			"lend": m.lend, "lend again": m.lend, "end outside": m.endOutside, "extend": m.extend, "progress": m.progress, "late": m.late,
			"pause": m.pause, "clock ahead": m.jump,
			"": m.check,
		})
	})
}
