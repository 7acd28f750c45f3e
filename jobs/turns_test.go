package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
)

// TestTurnsAndPriorityByCount leases one by one and by many: tenants take turns, and within a tenant the lower priority, then the older goes first,
// whatever anybody's flood says about its own urgency.
func TestTurnsAndPriorityByCount(t *testing.T) {
	for _, size := range []int{1, 3, 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			e, _ := open(t, oneQueue())
			var flood []jobs.NewJob
			for i := range 3000 {
				flood = append(flood, jobs.NewJob{Queue: "q", Tenant: "flood", Priority: -1000 - i})
			}
			enqueue(t, e, flood...)
			for i, p := range []int{5, 0, -7, 0, 1} {
				for _, tenant := range []string{"a", "b", "c"} {
					enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: tenant, ID: fmt.Sprint(i), Priority: p})
				}
			}
			order := map[string][]string{}
			last, n := 0, 0
			for n < 200 {
				js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: size, For: time.Hour})
				fatalIf(t, err)
				for _, j := range js {
					n++
					if j.Tenant != "flood" {
						order[j.Tenant] = append(order[j.Tenant], j.ID)
						last = n
					}
				}
			}
			for _, tenant := range []string{"a", "b", "c"} {
				if got := strings.Join(order[tenant], ""); got != "21340" {
					t.Errorf("%s: %s", tenant, got)
				}
			}
			if most := 4*5 + 2*size; last > most { // five rounds of four tenants
				t.Errorf("the last of the others was number %d, want at most %d", last, most)
			}
			// Who comes late waits for one round, not for the flood.
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "late", ID: "late"})
			for i := range 3 {
				js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: size, For: time.Hour})
				fatalIf(t, err)
				if slices.ContainsFunc(js, func(j jobs.Job) bool { return j.ID == "late" }) {
					break
				}
				if i > 0 { // the first may have been the last of the round before
					t.Errorf("the late one waited for more than a round")
				}
			}
		})
	}
}

// TestTenThousandTenants: the cost of a turn does not grow with the number of tenants.
func TestTenThousandTenants(t *testing.T) {
	e, _ := open(t, oneQueue())
	const tenants = 10_000
	for range 3 {
		js := make([]jobs.NewJob, tenants)
		for i := range js {
			js[i] = jobs.NewJob{Queue: "q", Tenant: fmt.Sprint("t", i)}
		}
		enqueue(t, e, js...)
	}
	for round := range 3 {
		seen := map[string]bool{}
		for len(seen) < tenants {
			js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Max: 1000, For: time.Hour})
			fatalIf(t, err)
			if len(js) != 1000 {
				t.Fatalf("%d leased", len(js))
			}
			for _, j := range js {
				if seen[j.Tenant] {
					t.Fatalf("round %d: %s had two turns before others had one", round, j.Tenant)
				}
				seen[j.Tenant] = true
			}
		}
	}
}

// TestNames: who wants some names passes by all others, also by many, and gets what comes later in front of where it looked.
func TestNames(t *testing.T) {
	e, _ := open(t, oneQueue())
	var js []jobs.NewJob
	for i := range 10_000 {
		js = append(js, jobs.NewJob{Queue: "q", Tenant: []string{"a", "b"}[i%2], ID: fmt.Sprint(i), Name: "other"})
	}
	js[5000].Name, js[9998].Name, js[9999].Name = "mail", "mail", "sms"
	enqueue(t, e, js...)
	lease(t, e, jobs.LeaseRequest{Names: []string{"mail"}}, "5000")
	lease(t, e, jobs.LeaseRequest{Names: []string{"sms", "mail", "sms"}, Max: 9, Tenant: "b"}, "9999")
	lease(t, e, jobs.LeaseRequest{Names: []string{"sms", "mail"}, Max: 9}, "9998")
	lease(t, e, jobs.LeaseRequest{Names: []string{"mail"}})
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "a", ID: "urgent", Name: "mail", Priority: -1}, jobs.NewJob{Queue: "q", Tenant: "b", ID: "new", Name: "mail"})
	lease(t, e, jobs.LeaseRequest{Names: []string{"mail"}, Tenant: "b", Max: 9}, "new")
	j := lease(t, e, jobs.LeaseRequest{Names: []string{"mail"}, Max: 9}, "urgent")[0]
	none := time.Duration(0)
	_, err := e.Fail(t.Context(), ref(j), "again", true, &none)
	fatalIf(t, err)
	lease(t, e, jobs.LeaseRequest{Names: []string{"mail"}, Max: 9}, "urgent")
	lease(t, e, jobs.LeaseRequest{Max: 3, Tenant: "a"}, "0", "2", "4")
	// More lists of names than are remembered: the oldest make room.
	for i := range 100 {
		lease(t, e, jobs.LeaseRequest{Names: []string{fmt.Sprint("name", i)}, Tenant: "a"})
	}
	lease(t, e, jobs.LeaseRequest{Names: []string{"other"}, Tenant: "a"}, "6")
}

func TestTooManyListsOfNamesAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		for i := range 16 {
			go func() {
				_, _ = e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "a", Names: []string{fmt.Sprint(i)}, Wait: time.Minute})
			}()
		}
		synctest.Wait()
		var invalid *jobs.InvalidError
		if _, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "a"}); !errors.As(err, &invalid) || invalid.Field != "names" {
			t.Errorf("%v", err)
		}
		lease(t, e, jobs.LeaseRequest{Tenant: "b"}) // another tenant's business it is not
		time.Sleep(time.Hour)
		lease(t, e, jobs.LeaseRequest{Tenant: "a"})
	})
}

// TestHandlersByKind: jobs of kinds that the box does not know wait for somebody outside.
func TestHandlersByKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := open(t, oneQueue())
		var mu sync.Mutex
		ran := map[string]string{}
		handler := func(kind string) jobs.Handler {
			return func(_ context.Context, j *jobs.Job) error {
				mu.Lock()
				defer mu.Unlock()
				ran[j.ID] = kind
				return nil
			}
		}
		stop := run(t, e, jobs.RunnerOptions{Queue: "q", Handlers: map[string]jobs.Handler{"mail": handler("mail"), "sms": handler("sms")}})
		for _, n := range []string{"mail", "fax", "sms", "", "mail"} {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", Name: n, ID: fmt.Sprint(n, len(ran)), Delay: time.Second})
		}
		time.Sleep(time.Minute)
		stop()
		if len(ran) != 2 || ran["mail0"] != "mail" || ran["sms0"] != "sms" {
			t.Errorf("%v", ran)
		}
		lease(t, e, jobs.LeaseRequest{Max: 9}, "fax0", "0")
		for _, o := range []jobs.RunnerOptions{{Queue: "q"}, {Queue: "q", Handler: handler(""), Handlers: map[string]jobs.Handler{"a": handler("")}}} {
			if _, err := e.NewRunner(o); err == nil {
				t.Errorf("%+v was taken", o)
			}
		}
	})
}
