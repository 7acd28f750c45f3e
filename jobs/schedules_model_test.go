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

// The model of schedules: intervals only, an unbounded memory, and one step at a time. rapid sets clocks, restarts, crashes and edits.

type modelSchedule struct {
	id           string
	every, phase int64 // seconds
	missed       Missed
	paused       bool
	next         int64 // unix; 0: paused
	last         int64
	made         map[int64]bool // occurrences that became jobs
	forgetful    bool           // the engine remembers more than there was, by design: exactness ends here
}

func (s *modelSchedule) after(t int64) int64 {
	n := (t-s.phase)/s.every*s.every + s.phase
	for n <= t || s.made[n] {
		n += s.every
	}
	return n
}

// look does what the schedule has to do when the clock shows now, and returns the occurrence that becomes a job; 0: none.
func (s *modelSchedule) look(now int64) (came int64) {
	if s.paused || s.next > now {
		return 0
	}
	came = (now-s.phase)/s.every*s.every + s.phase
	for s.made[came] {
		came -= s.every
	}
	if s.missed == Skip && now-came > int64(missedAfter.Seconds()) {
		came = 0
	}
	if came != 0 {
		s.made[came], s.last = true, came
	}
	s.next = s.after(now)
	return came
}

type planner struct {
	dir       string
	n         int
	wall      atomic.Int64 // unix ns
	seen      int64
	st        *store.Store
	e         *Engine
	schedules map[string]*modelSchedule
	came      map[string]bool // every job that ever was, by id
	lives     int             // ids used up by schedules that were deleted
}

func (m *planner) now() int64 { return m.wall.Load() / 1e9 }

func (m *planner) open(t *rapid.T, path string) {
	st, err := store.Open(path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m.st = st
	m.e, err = Open(st, Options{
		Queues: []QueueConfig{{Name: "q"}},
		Now:    func() time.Time { return time.Unix(0, m.wall.Load()).UTC() },
	})
	if err != nil {
		t.Fatal(err)
	}
	m.e.stop() // the engine's own goroutine: who looks at the clock here is the test, one step at a time
	<-m.e.scheduled
	m.look(t)
}

func (m *planner) close(t *rapid.T) {
	if err := errors.Join(m.e.Close(), m.st.Close()); err != nil {
		t.Fatal(err)
	}
	if findings, err := Audit(m.st.Path()); err != nil || len(findings) > 0 {
		t.Fatalf("audit: %v, %v", findings, err)
	}
}

// look has engine and model look at the clock, and compares what they make of it.
func (m *planner) look(t *rapid.T) {
	for m.e.tick(context.Background()) == 0 { // there is more
	}
	now := m.now()
	want := map[string]bool{}
	for _, s := range m.schedules {
		if now < m.seen && !s.paused {
			s.next = min(s.next, s.after(now))
		}
		if at := s.look(now); at != 0 {
			want[fmt.Sprint(s.id, "@", time.Unix(at, 0).UTC().Format("20060102T150405Z"))] = true
		}
	}
	m.seen = now
	page, err := m.e.List("t", "q", Waiting, ListOptions{Limit: 100})
	if err != nil || page.Next != "" {
		t.Fatal(page.Next, err)
	}
	one := map[string]bool{}
	for _, j := range page.Jobs {
		s := m.schedules[j.Name]
		if m.came[j.ID] {
			t.Fatalf("%s came a second time", j.ID)
		}
		if one[j.Name] {
			t.Fatalf("%s made two jobs at once", j.Name)
		}
		if m.came[j.ID], one[j.Name] = true, true; !want[j.ID] && !s.forgetful {
			t.Fatalf("%s came, want %v", j.ID, want)
		}
		delete(want, j.ID)
	}
	if n, err := m.e.Drain(context.Background(), "t", "q", false); err != nil || n != len(page.Jobs) { // an id that is stored would hide a second time
		t.Fatal(n, err)
	}
	for id := range want {
		if s := m.schedules[id[:len(id)-len("@20060102T150405Z")]]; !s.forgetful {
			t.Fatalf("%s did not come at %v", id, time.Unix(now, 0).UTC())
		}
	}
	for id, s := range m.schedules {
		got, err := m.e.GetSchedule("t", "q", id)
		if err != nil {
			t.Fatal(err)
		}
		p, err := m.plan(id)
		if err != nil {
			t.Fatal(err)
		}
		s.forgetful = s.forgetful || len(p.Dealt) == dealtMax
		if !s.forgetful && (got.NextAt.IsZero() != s.paused || !s.paused && got.NextAt.Unix() != s.next ||
			got.LastAt.IsZero() != (s.last == 0) || s.last != 0 && got.LastAt.Unix() != s.last) {
			t.Fatalf("at %v: got %+v, want next %v, last %v", time.Unix(now, 0).UTC(), got, time.Unix(s.next, 0).UTC(), time.Unix(s.last, 0).UTC())
		}
	}
}

func (m *planner) plan(id string) (p plan, err error) {
	err = m.st.View(func(tx *bbolt.Tx) error {
		p, err = readPlan(tx, "q", "t", id)
		return err
	})
	return p, err
}

func (m *planner) step(t *rapid.T) {
	seconds := rapid.SampledFrom([]int64{1, 7, 30, 59, 61, 300, 3600, 86400, 10 * 365 * 86400, -1, -30, -3600, -86400, -5 * 365 * 86400}).Draw(t, "seconds")
	if now := m.now() + seconds; now < 1_000_000_000 || now > 4_000_000_000 {
		t.Skip("far out")
	}
	m.wall.Add(seconds * 1e9)
	m.look(t)
}

func (m *planner) on(t *rapid.T) { // as clocks go on the most ordinary day
	for range rapid.IntRange(1, 3).Draw(t, "times") {
		m.wall.Add(rapid.SampledFrom([]int64{1, 10, 30}).Draw(t, "seconds") * 1e9)
		m.look(t)
	}
}

func (m *planner) put(t *rapid.T) {
	id := fmt.Sprint("s", rapid.IntRange(0, 2).Draw(t, "id"), "-", m.lives)
	every := rapid.SampledFrom([]int64{1, 10, 60, 3600, 86400}).Draw(t, "every")
	s := Schedule{
		Tenant: "t", Queue: "q", ID: id, Every: time.Duration(every) * time.Second, Missed: rapid.SampledFrom([]Missed{RunOnce, Skip}).Draw(t, "missed"),
		Paused: rapid.IntRange(0, 3).Draw(t, "paused") == 0, Job: NewJob{Name: id},
	}
	if _, err := m.e.PutSchedule(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	now := m.now()
	is := m.schedules[id]
	if is == nil {
		is = &modelSchedule{id: id, every: every, phase: now % every, made: map[int64]bool{}, next: 0, paused: true}
		m.schedules[id] = is
	}
	timing := is.every == every
	if !timing {
		is.every, is.phase = every, now%every
		is.forgetful = true // spans of one interval say something else in another
	}
	switch {
	case s.Paused:
		is.next = 0
	case !timing || is.paused:
		is.next = is.after(now)
	}
	is.missed, is.paused = s.Missed, s.Paused
	m.look(t)
}

func (m *planner) remove(t *rapid.T) {
	for id := range m.schedules {
		if err := m.e.DeleteSchedule(context.Background(), "t", "q", id); err != nil {
			t.Fatal(err)
		}
		delete(m.schedules, id)
	}
	m.lives++
	if list, err := m.e.Schedules("t", "q"); err != nil || len(list) > 0 {
		t.Fatalf("%v, %v", list, err)
	}
}

func (m *planner) restart(t *rapid.T) {
	m.close(t)
	m.wall.Add(rapid.SampledFrom([]int64{0, 1, 45, 3000, 86400 * 3, -3600}).Draw(t, "off") * 1e9)
	m.open(t, m.st.Path())
}

func (m *planner) crash(t *rapid.T) {
	var buf bytes.Buffer
	if _, err := m.st.Backup(&buf); err != nil {
		t.Fatal(err)
	}
	m.close(t)
	m.n++
	path := filepath.Join(m.dir, fmt.Sprint(m.n, ".db"))
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	m.open(t, path)
}

func TestSchedulesModel(t *testing.T) {
	t.Parallel() // its time goes into commits
	dir := t.TempDir()
	files := 0
	rapid.Check(t, func(t *rapid.T) {
		files++
		m := &planner{dir: filepath.Join(dir, fmt.Sprint(files)), schedules: map[string]*modelSchedule{}, came: map[string]bool{}}
		m.wall.Store(1_700_000_000 * 1e9)
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m.open(t, filepath.Join(m.dir, "0.db"))
		defer func() { m.e.Close(); m.st.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"step": m.step, "on": m.on, "put": m.put, "put another": m.put, "remove": m.remove, "restart": m.restart, "crash": m.crash,
		})
	})
}
