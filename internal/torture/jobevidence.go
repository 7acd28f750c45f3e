package torture

import (
	"sync"
	"time"
)

// Wish is a job that a producer wants. Its name travels in its data, so that the judge needs no id of the box's.
type Wish struct {
	Job      string
	Tenant   string
	ID       string // its own job_id, under which it may be asked for again; "": the box makes one
	Delay    time.Duration
	Priority int
}

// Call is one request and its answer, as its client saw them.
type Call struct {
	What     string // a verb of the API
	Tenant   string // "": the operator's worker, who serves all
	Sent     time.Time
	Answered time.Time
	Status   int    // 0: no answer
	Code     string // of a problem document
	Error    string // why there was no answer, or none that could be read
	HungUp   bool   // because the client did not wait any longer
}

// Acknowledged tells whether the box said yes.
func (c Call) Acknowledged() bool { return c.Status/100 == 2 && c.Error == "" }

// Unknown tells whether nobody knows what came of it.
func (c Call) Unknown() bool {
	return c.Status == 0 || c.Status/100 == 5 || c.Status/100 == 2 && c.Error != ""
}

// Adding is a request for one job or, all or none, for many.
type Adding struct {
	Call
	Jobs  []string // names of wishes
	Again bool     // they were acknowledged before
}

// Taking is one job in the answer to a lease.
type Taking struct {
	Job     string // what the data says
	Tenant  string
	ID      string
	Token   string
	Worker  string
	Asked   time.Time // the lease was given between Asked
	Got     time.Time // and Got
	For     time.Duration
	Attempt int
	Intact  bool // data and name are what was asked for
}

// until is a time before which the lease cannot end by itself.
func (t Taking) until() time.Time { return t.Asked.Add(t.For) }

// Word is what a worker said of a job that it had taken.
type Word struct {
	Call
	Job   string
	Token string
	Final bool // it ends the job for good: complete, or fail without retry
}

// Ends tells whether it ends the lease, if the box hears it.
func (w Word) Ends() bool { return w.What == "complete" || w.What == "fail" }

// JobEvidence is all that is known about a round of jobs, none of it from inside the box.
type JobEvidence struct {
	Wishes   []Wish
	Addings  []Adding
	Takings  []Taking
	Words    []Word
	Leases   []Call // requests for leases that were not answered 2xx
	Lives    []Life
	Problems []Problem

	// Drained tells whether the round came to its end: workers had all the time they needed. Left is how many jobs the box then
	// still calls waiting, delayed or active, by tenant.
	Drained bool
	Left    map[string]int
}

// write puts the evidence into a file.
func (e JobEvidence) write(file string) error {
	return writeLines(file, func(line func(kind string, v any)) {
		lines(line, "problem", e.Problems)
		lines(line, "life", e.Lives)
		lines(line, "wish", e.Wishes)
		lines(line, "adding", e.Addings)
		lines(line, "taking", e.Takings)
		lines(line, "word", e.Words)
		lines(line, "lease", e.Leases)
		line("left", e.Left)
	})
}

// jobLog collects it while it happens, and counts what is in flight.
type jobLog struct {
	mu    sync.Mutex // guards what follows
	e     JobEvidence
	added int                  // jobs acknowledged
	ended map[string]bool      // names of jobs that are known to be done
	held  map[string]time.Time // jobs that a worker has, by name, and until when
	last  time.Time            // a job was taken
	due   time.Time            // the latest at which a job becomes due
}

func newJobLog() *jobLog {
	return &jobLog{ended: map[string]bool{}, held: map[string]time.Time{}}
}

func (l *jobLog) wish(ws ...Wish) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.e.Wishes = append(l.e.Wishes, ws...)
}

func (l *jobLog) adding(a Adding, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.e.Addings = append(l.e.Addings, a)
	if a.Acknowledged() && !a.Again {
		l.added += len(a.Jobs)
	}
	if at := a.Answered.Add(longest); at.After(l.due) {
		l.due = at
	}
}

func (l *jobLog) taking(ts []Taking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.e.Takings = append(l.e.Takings, ts...)
	for _, t := range ts {
		l.held[t.Job] = t.until()
		l.last = t.Got
	}
}

func (l *jobLog) word(w Word) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.e.Words = append(l.e.Words, w)
	if w.Acknowledged() && w.Ends() {
		delete(l.held, w.Job)
		if w.Final {
			l.ended[w.Job] = true
		}
	}
}

func (l *jobLog) refused(c Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.e.Leases = append(l.e.Leases, c)
}

// flight is how many jobs are acknowledged and not known to be done, and how many of them workers have now.
func (l *jobLog) flight() (all, active int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for job, until := range l.held {
		if until.Before(now) {
			delete(l.held, job)
		}
	}
	return l.added - len(l.ended), len(l.held)
}

// quiet tells whether every job is due and none has been taken for so long.
func (l *jobLog) quiet(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.last) > d && time.Since(l.due) > d
}

// kept returns wishes with ids of their own that are acknowledged: asked for again, they must be answered and not run again.
func (l *jobLog) kept() []Wish {
	l.mu.Lock()
	defer l.mu.Unlock()
	yes := map[string]bool{}
	for _, a := range l.e.Addings {
		for _, job := range a.Jobs {
			yes[job] = yes[job] || a.Acknowledged()
		}
	}
	var ws []Wish
	for _, w := range l.e.Wishes {
		if w.ID != "" && yes[w.Job] {
			ws = append(ws, w)
		}
	}
	return ws
}

func (l *jobLog) leave(left map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.e.Left, l.e.Drained = left, true
}

// evidence returns what was seen so far, with what the keeper saw of the box.
func (l *jobLog) evidence(h *history) JobEvidence {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	e := l.e
	e.Lives, e.Problems = h.e.Lives, h.e.Problems
	return e
}
