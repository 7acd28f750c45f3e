package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/jobs"
	"tenderbox/store"
)

// entries counts what is in the index of ids: of jobs that are to run, and of finished ones.
func entries(t testing.TB, s *store.Store) (ahead, finished int) {
	t.Helper()
	fatalIf(t, s.View(func(tx *bbolt.Tx) error {
		ahead, finished = 0, 0
		return errors.Join(
			tx.Bucket([]byte("ids")).ForEach(func(_, _ []byte) error { ahead++; return nil }),
			tx.Bucket([]byte("finished_ids")).ForEach(func(_, _ []byte) error { finished++; return nil }))
	}))
	return ahead, finished
}

// damageWaiting flips a bit of the record in waiting that contains the id.
func damageWaiting(t testing.TB, s *store.Store, id string) {
	t.Helper()
	flipped := 0
	fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error {
		flipped = 0
		b := tx.Bucket([]byte("waiting"))
		return b.ForEach(func(k, v []byte) error {
			if !bytes.Contains(v, []byte(id)) {
				return nil
			}
			flipped++
			v = bytes.Clone(v)
			v[len(v)-1] ^= 1
			return b.Put(k, v)
		})
	}))
	if flipped != 1 {
		t.Fatalf("%d records of %s", flipped, id)
	}
}

// TestOnlyJobsThatMovedAreInTheIndex follows a job with a generated id through all states: it is found in each, and costs an entry only where its id does not
// tell its place.
func TestOnlyJobsThatMovedAreInTheIndex(t *testing.T) {
	e, s := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "q"}}})
	id := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", Priority: -7, RemoveOnComplete: jobs.Retention{Count: 1}})[0].ID
	step := func(state jobs.State, want int) {
		t.Helper()
		if j := get(t, e, id); j.State != state || j.ID != id {
			t.Errorf("%+v, want it %s", j, state)
		}
		ahead, finished := entries(t, s)
		if state == jobs.Completed || state == jobs.Failed {
			ahead, finished = finished, ahead
		}
		if ahead != want || finished != 0 {
			t.Errorf("%s: %d entries, want %d; and %d in the other index", state, ahead, want, finished)
		}
	}
	step(jobs.Waiting, 0)
	j := lease(t, e, jobs.LeaseRequest{Queue: "q", Tenant: "t"}, id)[0]
	step(jobs.Active, 0)
	hour := time.Hour
	_, err := e.Fail(t.Context(), ref(j), "later", true, &hour)
	fatalIf(t, err)
	step(jobs.Delayed, 1)
	_, err = e.Promote(t.Context(), "t", "q", id)
	fatalIf(t, err)
	step(jobs.Waiting, 0)
	_, err = e.Fail(t.Context(), ref(lease(t, e, jobs.LeaseRequest{Queue: "q", Tenant: "t"}, id)[0]), "no", false, nil)
	fatalIf(t, err)
	step(jobs.Failed, 1)
	_, err = e.RetryFailed(t.Context(), "t", "q")
	fatalIf(t, err)
	step(jobs.Waiting, 0)
	_, err = e.Complete(t.Context(), ref(lease(t, e, jobs.LeaseRequest{Queue: "q", Tenant: "t"}, id)[0]), nil)
	fatalIf(t, err)
	step(jobs.Completed, 1)

	// The next that completes pushes it out, its entry with it; one that is not kept never has one.
	id2 := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", RemoveOnComplete: jobs.Retention{Count: 1}})[0].ID
	_, err = e.Complete(t.Context(), ref(lease(t, e, jobs.LeaseRequest{Queue: "q", Tenant: "t"}, id2)[0]), nil)
	fatalIf(t, err)
	if _, err := e.Get("t", "q", id); !errors.Is(err, jobs.ErrNotFound) {
		t.Error(err)
	}
	id = id2
	step(jobs.Completed, 1)
	fatalIf(t, e.Remove(t.Context(), "t", "q", id))
	id = enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", Delay: time.Hour})[0].ID
	step(jobs.Delayed, 1)
	if n, err := e.PromoteDelayed(t.Context(), "q", nil, 0); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	step(jobs.Waiting, 0)
	// Once more under the same id, while it is stored and when it is gone: then at another place, which the id does not tell.
	again := jobs.NewJob{Queue: "q", Tenant: "t", ID: id, Data: []byte("again")}
	if got := enqueue(t, e, again)[0]; got.Data != nil {
		t.Errorf("stored twice: %+v", got)
	}
	fatalIf(t, e.Remove(t.Context(), "t", "q", id))
	enqueue(t, e, again)
	step(jobs.Waiting, 1)
	if n, err := e.Drain(t.Context(), "t", "q", false); n != 1 || err != nil {
		t.Errorf("%d drained, %v", n, err)
	}
	if ahead, finished := entries(t, s); ahead != 0 || finished != 0 {
		t.Errorf("%d and %d entries of no job", ahead, finished)
	}
	audited(t, e, s)
}

// TestDamagedJobsWithGeneratedIDs: no index says whose the record was, and yet the id reads as damaged, before and after it is parked, can
// be enqueued again, and removed.
func TestDamagedJobsWithGeneratedIDs(t *testing.T) {
	e, s := open(t, oneQueue())
	js := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t"}, jobs.NewJob{Queue: "q", Tenant: "t"}, jobs.NewJob{Queue: "q", Tenant: "t"})
	bad, removed, good := js[0].ID, js[1].ID, js[2].ID
	other := good[:len(good)-1] + "0" // the same place, another job
	if other == good {
		other = good[:len(good)-1] + "1"
	}
	if _, err := e.Get("t", "q", other); !errors.Is(err, jobs.ErrNotFound) {
		t.Errorf("an id that only looks like %s: %v", good, err)
	}
	damageWaiting(t, s, bad)
	damageWaiting(t, s, removed)
	read := func(id string, want error) {
		t.Helper()
		_, err := e.Get("t", "q", id)
		_, err2 := e.Retry(t.Context(), "t", "q", id)
		for _, err := range []error{err, err2} {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", id, err, want)
			}
		}
	}
	read(bad, jobs.ErrDamaged)
	fatalIf(t, e.Remove(t.Context(), "t", "q", removed))
	read(removed, jobs.ErrNotFound)

	lease(t, e, jobs.LeaseRequest{Queue: "q", Tenant: "t"}, good) // passes by the damaged one
	until(t, func() bool { return stats(t, e).Damaged == 1 })
	read(bad, jobs.ErrDamaged)

	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: bad, Data: []byte("again")})
	if j := get(t, e, bad); string(j.Data) != "again" {
		t.Errorf("%+v", j)
	}
	fatalIf(t, e.Remove(t.Context(), "t", "q", bad))
	read(bad, jobs.ErrDamaged) // the record that was parked
	fatalIf(t, e.Remove(t.Context(), "t", "q", bad))
	read(bad, jobs.ErrNotFound)
	if st := stats(t, e); st != (jobs.QueueStats{Queue: "q", Active: 1}) {
		t.Errorf("%+v", st)
	}
	audited(t, e, s)
}

// TestAuditKnowsJobsOutsideTheIndex and the logs that are theirs.
func TestAuditKnowsJobsOutsideTheIndex(t *testing.T) {
	e, s := open(t, oneQueue())
	id := enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t"})[0].ID
	j := lease(t, e, jobs.LeaseRequest{Queue: "q", Tenant: "t"}, id)[0]
	fatalIf(t, e.Log(context.Background(), ref(j), "line"))
	if lines, err := e.Logs("t", "q", id); err != nil || len(lines) != 1 {
		t.Errorf("%v, %v", lines, err)
	}
	fatalIf(t, s.Update(t.Context(), func(tx *bbolt.Tx) error { // an entry that nobody needs would outlive the job
		return tx.Bucket([]byte("ids")).Put([]byte("q\x00t\x00"+id), make([]byte, 21))
	}))
	fatalIf(t, errors.Join(e.Close(), s.Close()))
	findings, err := jobs.Audit(s.Path())
	if err != nil || len(findings) != 1 || findings[0] != "jobs: 1 index entries lead nowhere" {
		t.Errorf("%q, %v", findings, err)
	}
}
