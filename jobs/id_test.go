package jobs

import (
	"math"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

func TestGeneratedIDsTellTheirPlace(t *testing.T) {
	last := ""
	for _, seq := range []uint64{0, 1, 2, 1 << 20, 1<<48 - 1} {
		for _, priority := range []int32{math.MinInt32, -1, 0, 1, math.MaxInt32} {
			id := generateID(priority, seq)
			p := place{in: placeWaiting, priority: priority, seq: seq}
			if got, ok := toldBy(id); !ok || got != p || !tells(id, p) || id <= last {
				t.Errorf("%s tells %+v, it is at %+v; the one before was %s", id, got, p, last)
			}
			last = id
		}
	}
	// What does not fit into an id, or is elsewhere, needs an entry in the index.
	for _, p := range []place{{placeWaiting, 0, 0, 1 << 48}, {placeDelayed, 1, 0, 7}, {placeCompleted, 1, 0, 7}} {
		if tells(generateID(p.priority, p.seq), p) {
			t.Errorf("an id tells %+v", p)
		}
	}
	id := generateID(0, 7)
	for _, other := range []string{"", "job_", id[4:], strings.ToLower(id), "JOB_" + id[4:], id + "0", id[:len(id)-1] + "U", "job_8" + id[5:]} {
		if p, ok := toldBy(other); ok {
			t.Errorf("%q tells %+v", other, p)
		}
	}
}

// TestAnAppsIDThatTellsItsPlace: an app names its job exactly as the engine would have done. It is found like any other, in each state.
func TestAnAppsIDThatTellsItsPlace(t *testing.T) {
	s := storetest.Open(t, store.Options{})
	e, err := Open(s, Options{Queues: []QueueConfig{{Name: "q"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	id := generateID(0, 1)
	for range 2 {
		if _, err := e.Enqueue(t.Context(), NewJob{Queue: "q", Tenant: "t", ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if st := e.Stats()[0]; st.Waiting != 1 {
		t.Errorf("stored twice: %+v", st)
	}
	if err := s.View(func(tx *bbolt.Tx) error {
		if k, _ := tx.Bucket(bIDs).Cursor().First(); k != nil {
			t.Errorf("an entry that nobody needs: %q", k)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	js, err := e.Lease(t.Context(), LeaseRequest{Queue: "q", Tenant: "t"})
	if err != nil || len(js) != 1 || js[0].ID != id {
		t.Fatalf("%+v, %v", js, err)
	}
	if _, err := e.Fail(t.Context(), LeaseRef{"t", "q", id, js[0].LeaseToken}, "no", false, nil); err != nil {
		t.Fatal(err)
	}
	if j, err := e.Get("t", "q", id); err != nil || j.State != Failed {
		t.Errorf("%+v, %v", j, err)
	}
}
