package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

const (
	// schedulesMax is a tenant's, over all its queues: each costs memory and, however rarely it runs, a look after each start.
	schedulesMax = 1000

	// scheduleDataMax bounds the data of a schedule's job: schedulesMax of them are read at each start.
	scheduleDataMax = 64 << 10

	// scheduleIDMax leaves room for the occurrence in the job's id.
	scheduleIDMax = 128

	// comeMax schedules become jobs in one transaction. All those of a full hour take turns with everybody else.
	comeMax = 500
)

// Missed says what becomes of occurrences during which the box was off.
type Missed string

const (
	RunOnce Missed = "run_once" // one job for all that were missed
	Skip    Missed = "skip"     // none; the next is the next that comes
)

// Schedule makes a job at each occurrence. Exactly one of Cron and Every is set. It follows the machine's clock, which people set; an
// occurrence that became a job never does again. DESIGN.md says what happens when clocks jump.
type Schedule struct {
	Tenant, Queue, ID string
	Cron              string        // five fields, or @daily and the like
	Every             time.Duration // whole seconds, one at least
	TimeZone          string        // IANA name, for Cron; "": UTC
	Missed            Missed        // "": RunOnce
	Job               NewJob        // Queue, Tenant and ID are the schedule's and the occurrence's
	Paused            bool

	// What the engine fills in.
	CreatedAt time.Time
	NextAt    time.Time // zero: paused, or LastError says why
	LastAt    time.Time // the last occurrence that became a job; zero: none yet
	LastJobID string
	LastError string // why the last occurrence became none; "": it did
}

func (s *Schedule) validate() error {
	if s.Missed == "" {
		s.Missed = RunOnce
	}
	switch {
	case s.ID == "" || len(s.ID) > scheduleIDMax || !isPrintable(s.ID):
		return invalid("id", "use 1 to %d printable ASCII characters", scheduleIDMax)
	case s.Tenant != "" && !isLabel(s.Tenant):
		return invalid("tenant", "%q is not a DNS label", s.Tenant)
	case (s.Cron == "") == (s.Every == 0):
		return invalid("cron", "set it or every, one of them")
	case s.Every != 0 && (s.Every < everyMin || s.Every%everyMin != 0 || s.Every > delayMax):
		return invalid("every", "use whole seconds, from %v to %v", everyMin, delayMax)
	case s.Every != 0 && s.TimeZone != "":
		return invalid("time_zone", "it goes with cron")
	case s.Missed != RunOnce && s.Missed != Skip:
		return invalid("missed", "%q: use %q or %q", s.Missed, RunOnce, Skip)
	case s.Job.ID != "" || s.Job.Queue != "" && s.Job.Queue != s.Queue || s.Job.Tenant != "" && s.Job.Tenant != s.Tenant:
		return invalid("job", "id, queue and tenant come from the schedule")
	case len(s.Job.Data) > scheduleDataMax:
		return invalid("job.data", "%d bytes, up to %d are taken in a schedule", len(s.Job.Data), scheduleDataMax)
	}
	return nil
}

// PutSchedule makes or replaces a schedule. A replaced one keeps CreatedAt, what it has dealt with, and, if its timing is the same, NextAt.
// Errors to branch on: ErrInvalid, ErrUnknownQueue, ErrReadOnly, ErrClosed, and the store's.
func (e *Engine) PutSchedule(ctx context.Context, s Schedule) (Schedule, error) {
	out, err := e.putSchedule(ctx, s)
	if err != nil {
		return Schedule{}, fmt.Errorf("schedule %q: %w", s.ID, err)
	}
	return out, nil
}

func (e *Engine) putSchedule(ctx context.Context, s Schedule) (Schedule, error) {
	if err := s.validate(); err != nil {
		return Schedule{}, err
	}
	q, err := e.writable(s.Tenant, s.Queue)
	if err != nil {
		return Schedule{}, err
	}
	now := e.clock.wall().UTC()
	p := plan{
		ID: s.ID, Cron: s.Cron, TimeZone: s.TimeZone, Every: s.Every, Missed: s.Missed, Job: s.Job, Paused: s.Paused, CreatedAt: now,
	}
	if s.Every > 0 {
		p.Phase = time.Duration(now.Truncate(time.Second).UnixNano()) % s.Every
	}
	w, err := p.timing()
	if err != nil {
		return Schedule{}, err
	}
	if w.next(now).IsZero() {
		return Schedule{}, invalid("cron", "%q: it never comes within five years", s.Cron)
	}
	if _, err := p.job(s.Queue, s.Tenant, now).prepare(q, now, now); err != nil {
		return Schedule{}, within("job", err)
	}
	p.Job.Queue, p.Job.Tenant, p.Job.Data = "", "", bytes.Clone(p.Job.Data)
	var put plan
	err = e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		put = p
		old, err := readPlan(tx, s.Queue, s.Tenant, s.ID)
		switch {
		case err == nil:
			put.follow(&old)
		case errors.Is(err, ErrNotFound):
			if err := roomForPlan(tx, s.Tenant); err != nil {
				return store.Untouched(err)
			}
		case !errors.Is(err, ErrDamaged): // a damaged one is replaced
			return store.Untouched(err)
		}
		if err := put.replan(now); err != nil {
			return store.Untouched(err)
		}
		return putPlan(tx, s.Queue, s.Tenant, &put)
	}, e.applied(func() { e.planned(string(planKey(s.Queue, s.Tenant, s.ID)), &put) }))
	if err != nil {
		return Schedule{}, err
	}
	return put.schedule(s.Queue, s.Tenant), nil
}

// follow takes over what a new version of a schedule keeps of the old one.
func (p *plan) follow(old *plan) {
	p.CreatedAt, p.LastAt, p.LastJobID, p.Dealt = old.CreatedAt, old.LastAt, old.LastJobID, old.Dealt
	if p.Every == old.Every {
		p.Phase = old.Phase
		if p.Cron == old.Cron && p.TimeZone == old.TimeZone && !p.Paused && !old.Paused {
			p.NextAt = old.NextAt
		}
	}
}

// replan sets NextAt, unless it is known.
func (p *plan) replan(now time.Time) error {
	if p.Paused || !p.NextAt.IsZero() {
		return nil
	}
	w, err := p.timing()
	if err == nil {
		p.NextAt = p.Dealt.next(now, &w)
	}
	return err
}

func (p *plan) job(queue, tenant string, at time.Time) NewJob {
	n := p.Job
	n.Queue, n.Tenant, n.ID = queue, tenant, p.jobID(at)
	return n
}

func roomForPlan(tx *bbolt.Tx, tenant string) error {
	prefix := append([]byte(tenant), 0)
	n := 0
	c := tx.Bucket(bSchedules).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if n++; n >= schedulesMax {
			return invalid("", "the tenant has %d schedules, more are not taken", n)
		}
	}
	return nil
}

// Schedules lists a tenant's schedules of a queue, by id. A damaged one is listed with its id and LastError alone.
func (e *Engine) Schedules(tenant, queue string) (out []Schedule, err error) {
	err = e.st.View(func(tx *bbolt.Tx) error {
		out = nil
		eachPlan(tx, planLine(queue, tenant), func(queue, tenant, id string, p plan, err error) bool {
			if err != nil {
				p = plan{ID: id, LastError: err.Error()}
			}
			out = append(out, p.schedule(queue, tenant))
			return true
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("schedules of %q: %w", queue, err)
	}
	return out, nil
}

// GetSchedule returns one. Errors to branch on: ErrNotFound, ErrDamaged, and the store's.
func (e *Engine) GetSchedule(tenant, queue, id string) (Schedule, error) {
	var p plan
	err := e.st.View(func(tx *bbolt.Tx) (err error) {
		p, err = readPlan(tx, queue, tenant, id)
		return err
	})
	if err != nil {
		return Schedule{}, fmt.Errorf("schedule %q: %w", id, err)
	}
	return p.schedule(queue, tenant), nil
}

// DeleteSchedule removes one: ErrNotFound. Jobs it made stay. A new one of the same id is another schedule.
func (e *Engine) DeleteSchedule(ctx context.Context, tenant, queue, id string) error {
	key := planKey(queue, tenant, id)
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bSchedules)
		if b.Get(key) == nil {
			return store.Untouched(ErrNotFound)
		}
		return b.Delete(key)
	}, e.applied(func() { e.planned(string(key), nil) }))
	if err != nil {
		return fmt.Errorf("delete schedule %q: %w", id, err)
	}
	return nil
}
