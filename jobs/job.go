package jobs

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// State says where a job stands. DESIGN.md draws the moves.
type State string

const (
	// Waiting: due, and no worker has it. Enqueue and the scheduler move a job here.
	Waiting State = "waiting"
	// Delayed: not due before RunAt. Enqueue with a delay, a failed attempt and Snooze move it here.
	Delayed State = "delayed"
	// Active: leased. A lease of the box's own workers is known to memory only, and after a crash the job is waiting; one of an outside
	// worker is on disk and is honoured after a restart until its deadline.
	Active State = "active"
	// Completed: its handler returned nil or Done. Kept as RemoveOnComplete says.
	Completed State = "completed"
	// Failed: cancelled by its handler or out of attempts. Kept as RemoveOnFail says.
	Failed State = "failed"
)

// BackoffType names how the wait between attempts grows.
type BackoffType string

const (
	Exponential BackoffType = "exponential" // Delay, 2·Delay, 4·Delay … up to Max
	Fixed       BackoffType = "fixed"       // Delay each time
)

// Backoff is the wait between a failed attempt and the next one.
// The zero value means the queue's default, and that is exponential from 2 s to 1 h.
type Backoff struct {
	Type   BackoffType
	Delay  time.Duration
	Jitter float64       // 0…1: the share of each wait that is drawn at random
	Max    time.Duration // 0: backoffMaxDefault
}

// Retention says how many finished jobs of one kind (queue, tenant, state) stay readable.
// The zero value means the queue's default: the last 10 completed, the last 5 failed.
type Retention struct {
	Remove bool          // keep none; Count and Age are ignored
	Count  int           // keep the last Count; 0: the default, below 0: no limit by count
	Age    time.Duration // and none finished longer ago than this; 0: no limit by age
}

// NewJob is a wish for a job.
type NewJob struct {
	Queue    string        // one that ships with the box, or the tenant's own; required
	Tenant   string        // a DNS label, or "" for the box's own work
	ID       string        // "": generated; unique within (queue, tenant) as long as the job is stored
	Name     string        // what the handler switches on; free text of up to nameBytesMax
	Data     []byte        // opaque; up to dataBytesMax
	Priority int           // lower first, within a tenant
	Delay    time.Duration // not before now+Delay; 0 and below: at once
	Attempts int           // how many attempts in all; 0: the queue's default (3); below 0: no limit
	Backoff  Backoff
	Timeout  time.Duration // of one attempt; 0: the queue's default (10 min); below 0: none

	RemoveOnComplete, RemoveOnFail Retention
}

// Job is a stored job, as it is now.
type Job struct {
	NewJob
	State        State
	AttemptsMade int       // attempts begun, also those that a crash cut short
	CreatedAt    time.Time // when it was enqueued
	RunAt        time.Time // when it became or becomes due
	FinishedAt   time.Time // zero until Completed or Failed
	LastError    string    // of the last failed attempt
	Result       []byte    // what the handler gave Done
	LeaseToken   string    // set on the copy that a handler or an outside worker gets
	LeasedUntil  time.Time // of an outside worker's lease; zero: none
	Worker       string    // who has it
	Progress     []byte    // JSON that its worker reported last
	History      []Attempt // the attempts that ended, oldest first; the newest historyMax

	interruptions int       // attempts in a row that ended with the process
	startedAt     time.Time // of the attempt that began and did not end; zero: there is none
	seq           uint64
}

// Attempt is one attempt that ended.
type Attempt struct {
	N         int // from 1
	StartedAt time.Time
	EndedAt   time.Time // zero: the process ended during it
	Worker    string    // "": the box's own
	Error     string    // "": it completed
}

const (
	idBytesMax    = 255
	nameBytesMax  = 255
	dataBytesMax  = 1 << 20 // INTERFACE.md: jobs carry up to 1 MiB
	errorBytesMax = 1024    // enough to understand, too little to fill the disk

	historyMax        = 10  // attempts that a job remembers: the last of them tell what goes on
	historyErrorBytes = 200 // of each one's error; the last error is kept in full

	delayMax        = 10 * 365 * 24 * time.Hour // beyond it a typing error is likelier than a wish
	attemptsDefault = 3
	timeoutDefault  = 10 * time.Minute // a handler that hangs gives its slot back some day

	keepCompletedDefault, keepFailedDefault = 10, 5 // INTERFACE.md
)

// prepare turns a wish into a job, with the queue's defaults filled in. An id that is to be generated comes with the job's place (writes.add). now is the schedule's clock, wall the one for people.
func (n NewJob) prepare(q QueueConfig, now, wall time.Time) (Job, error) {
	n.Attempts = cmp.Or(n.Attempts, q.Attempts, attemptsDefault)
	n.Timeout = cmp.Or(n.Timeout, q.Timeout, timeoutDefault)
	n.Backoff = n.Backoff.withDefaults(q.Backoff)
	n.RemoveOnComplete = n.RemoveOnComplete.withDefaults(q.RemoveOnComplete, keepCompletedDefault)
	n.RemoveOnFail = n.RemoveOnFail.withDefaults(q.RemoveOnFail, keepFailedDefault)
	n.Delay = max(n.Delay, 0)
	if err := n.validate(); err != nil {
		return Job{}, err
	}
	j := Job{NewJob: n, State: Waiting, CreatedAt: wall.UTC().Round(0), RunAt: now.Add(n.Delay).UTC().Round(0)}
	if n.Delay > 0 {
		j.State = Delayed
	}
	return j, nil
}

func (n NewJob) validate() error {
	switch {
	case n.Tenant != "" && !isLabel(n.Tenant):
		return invalid("tenant", "%q is not a DNS label", n.Tenant)
	case len(n.ID) > idBytesMax || !isPrintable(n.ID):
		return invalid("opts.job_id", "use up to %d printable ASCII characters", idBytesMax)
	case len(n.Name) > nameBytesMax || !utf8.ValidString(n.Name):
		return invalid("name", "use up to %d bytes of UTF-8", nameBytesMax)
	case len(n.Data) > dataBytesMax:
		return invalid("data", "%d bytes, up to %d are taken", len(n.Data), dataBytesMax)
	case n.Priority < math.MinInt32 || n.Priority > math.MaxInt32:
		return invalid("opts.priority", "%d: use 32 bits", n.Priority)
	case n.Attempts > math.MaxInt32 || n.Attempts < math.MinInt32:
		return invalid("opts.attempts", "%d: use 32 bits", n.Attempts)
	case n.Delay > delayMax:
		return invalid("opts.delay_ms", "%v: up to %v are taken", n.Delay, delayMax)
	}
	if err := n.Backoff.validate(); err != nil {
		return within("opts", err)
	}
	return nil
}

// ended notes an attempt that ended. It leaves the old history's memory alone: other copies of the job share it.
func (j *Job) ended(a Attempt) {
	if len(a.Error) > historyErrorBytes {
		a.Error = strings.ToValidUTF8(a.Error[:historyErrorBytes], "") + "…"
	}
	keep := j.History[max(0, len(j.History)-historyMax+1):]
	j.History = append(slices.Clip(keep), a)
}

func (r Retention) withDefaults(or Retention, count int) Retention {
	if r == (Retention{}) {
		r = or
	}
	if r.Count == 0 && !r.Remove {
		r.Count = count
	}
	return r
}

// order is the job's place in its line.
func (j *Job) order() (int32, uint64) { return int32(j.Priority), j.seq }

// waitingPlace is where it is when it waits.
func (j *Job) waitingPlace() place {
	return place{in: placeWaiting, priority: int32(j.Priority), seq: j.seq}
}

func (j *Job) waitingKey() []byte {
	return appendOrder(linePrefix(j.Queue, j.Tenant), int32(j.Priority), j.seq)
}

// isLabel says whether s is a DNS label: [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?
func isLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && i > 0 && i < len(s)-1) {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 63
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// brief makes an error fit to be kept: valid UTF-8 of at most errorBytesMax.
func brief(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(s) > errorBytesMax {
		s = strings.ToValidUTF8(s[:errorBytesMax], "") + "…"
	}
	return s
}
