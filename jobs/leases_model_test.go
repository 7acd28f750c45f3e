package jobs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"pgregory.net/rapid"
)

// lease takes one job of some tenants and begins its attempt.
func (m *machine) lease(t *rapid.T) {
	ready := rapid.SampledFrom(tenants).Draw(t, "ready")
	all := rapid.Bool().Draw(t, "all")
	les, err := m.e.take(m.w, rapid.IntRange(1, 4).Draw(t, "n"), math.MaxInt, func(tenant string) *room {
		if all || tenant == ready {
			return nil
		}
		return noRoom
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, le := range les {
		j := m.first(le.job.Tenant)
		if j == nil || j.id != le.job.ID || !all && j.tenant != ready {
			t.Fatalf("leased %s/%s, the model has %+v next", le.job.Tenant, le.job.ID, j)
		}
		o, suspected := suspect(le)
		if want, is := m.suspected(j); is != suspected || is && (want.state != o.state || want.err.Error() != o.err.Error()) {
			t.Fatalf("suspected: %v, %+v, the model has %+v", suspected, o, j)
		} else if suspected {
			m.settle(t, le, j, o)
			continue
		}
		if _, err := m.e.begin(context.Background(), le); err != nil {
			t.Fatal(err)
		}
		j.made++
		j.started = true
		j.state = Active
		m.held[j.tenant+"/"+j.id] = le
	}
	if len(les) == 0 && (all && m.first("a") != nil || m.first(ready) != nil) {
		t.Fatalf("nothing leased, though jobs wait")
	}
}

// suspected begins a lease in the model, and says what becomes of a job whose last attempt ended with the process.
func (m *machine) suspected(j *modelJob) (outcome, bool) {
	if !j.started {
		return outcome{}, false
	}
	j.started = false
	j.interr++
	j.history++
	o := outcome{attempt: notBegun, state: Delayed, delay: time.Minute, err: fmt.Errorf("the process ended during attempt %d", j.made)}
	if j.attempts > 0 && j.made >= j.attempts {
		o.state = Failed
	}
	return o, o.state == Failed || j.interr > 1
}

// first is the job whose turn it is among a tenant's, of those of the names.
func (m *machine) first(tenant string, names ...string) (first *modelJob) {
	if m.paused[""] || tenant != "" && m.paused[tenant] {
		return nil
	}
	for _, j := range m.jobs {
		if j.tenant == tenant && j.state == Waiting && (len(names) == 0 || slices.Contains(names, j.name)) &&
			(first == nil || j.priority < first.priority || j.priority == first.priority && j.order < first.order) {
			first = j
		}
	}
	return first
}

func (m *machine) settle(t *rapid.T, le *lease, j *modelJob, o outcome) {
	if err := m.e.settle(context.Background(), le, o); err != nil {
		t.Fatal(err)
	}
	if err := m.e.settle(context.Background(), le, outcome{state: Failed}); !errors.Is(err, ErrStaleLease) {
		t.Fatalf("a lease settled twice: %v", err)
	}
	m.over(j, o)
}

// over ends an attempt in the model.
func (m *machine) over(j *modelJob, o outcome) {
	if o.attempt != notBegun {
		j.interr = 0
	}
	switch o.attempt {
	case undone:
		j.made--
	case counted:
		j.history++
	}
	j.state, j.started, j.token = o.state, false, ""
	if o.err != nil {
		j.lastError = o.err.Error()
	}
	if o.state == Delayed {
		j.runAt = m.now.Add(o.delay)
	}
	if o.state == Completed && j.removeDone || o.state == Failed && j.removeFails {
		delete(m.jobs, j.tenant+"/"+j.id)
	}
}

// lend leases to a worker outside, of one tenant, sometimes of one name.
func (m *machine) lend(t *rapid.T) {
	tenant := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant")
	names := rapid.SampledFrom([][]string{nil, {"x"}, {"y"}, {"x", "y"}}).Draw(t, "names")
	d := rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 2 * time.Hour}).Draw(t, "for")
	js, err := m.e.Lease(context.Background(), LeaseRequest{Queue: "q", Tenant: tenant, Names: names, For: d, Worker: "w"})
	if err != nil {
		t.Fatal(err)
	}
	j := m.first(tenant, names...)
	for ; j != nil; j = m.first(tenant, names...) {
		o, suspected := m.suspected(j)
		if !suspected {
			break
		}
		m.over(j, o)
	}
	switch {
	case j == nil && len(js) == 0:
	case j == nil || len(js) != 1 || js[0].ID != j.id:
		t.Fatalf("leased %+v, the model has %+v next", js, j)
	default:
		j.made++
		j.state, j.token, j.until, j.expires = Active, js[0].LeaseToken, m.now.Add(d), m.time()+d
	}
}

func (m *machine) ref(j *modelJob) LeaseRef { return LeaseRef{j.tenant, "q", j.id, j.token} }

// lent is one of the jobs that workers outside have.
func (m *machine) lent(t *rapid.T) *modelJob {
	for _, key := range slices.Sorted(maps.Keys(m.jobs)) {
		if j := m.jobs[key]; j.token != "" && rapid.Bool().Draw(t, "this") {
			return j
		}
	}
	t.Skip("nothing is leased to the outside")
	return nil
}

// endOutside is what a worker outside says in the end.
func (m *machine) endOutside(t *rapid.T) {
	j := m.lent(t)
	r := m.ref(j)
	m.stale = append(m.stale, r)
	o := outcome{state: Completed}
	var err error
	if rapid.Bool().Draw(t, "well") {
		_, err = m.e.Complete(context.Background(), r, nil)
	} else {
		o = outcome{state: Delayed, err: errors.New("bad"), delay: time.Minute}
		var delay *time.Duration
		if rapid.Bool().Draw(t, "delay given") {
			o.delay = rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "delay")
			delay = &o.delay
		}
		retry := rapid.Bool().Draw(t, "retry")
		_, err = m.e.Fail(context.Background(), r, "bad", retry, delay)
		switch {
		case !retry || j.attempts > 0 && j.made >= j.attempts:
			o.state = Failed
		case o.delay == 0:
			o.state = Waiting
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	m.over(j, o)
}

func (m *machine) extend(t *rapid.T) {
	j := m.lent(t)
	d := rapid.SampledFrom([]time.Duration{time.Second, time.Hour}).Draw(t, "for")
	if _, err := m.e.Extend(context.Background(), m.ref(j), d); err != nil {
		t.Fatal(err)
	}
	j.until, j.expires = m.now.Add(d), m.time()+d
}

func (m *machine) progress(t *rapid.T) {
	j := m.lent(t)
	j.progress = fmt.Sprint(m.seq)
	if _, err := m.e.Progress(context.Background(), m.ref(j), []byte(j.progress)); err != nil {
		t.Fatal(err)
	}
}

// late is a worker who comes back with a token that is not the present one.
func (m *machine) late(t *rapid.T) {
	if len(m.stale) == 0 {
		t.Skip("nobody is late")
	}
	r := rapid.SampledFrom(m.stale).Draw(t, "who")
	_, err := m.e.Complete(context.Background(), r, nil)
	_, err2 := m.e.Extend(context.Background(), r, time.Hour)
	for _, err := range []error{err, err2} {
		if !errors.Is(err, ErrStaleLease) && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
}
