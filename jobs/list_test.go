package jobs_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/jobs"
)

// pages lists everything in a state, and says in how many pages.
func pages(t testing.TB, e *jobs.Engine, s jobs.State, limit int) (ids []string, n int) {
	t.Helper()
	for o := (jobs.ListOptions{Limit: limit}); ; n++ {
		page, err := e.List("t", "q", s, o)
		fatalIf(t, err)
		for _, j := range page.Jobs {
			if j.State != s {
				t.Errorf("%s is listed as %s, and says %s", j.ID, s, j.State)
			}
			ids = append(ids, j.ID)
		}
		if o.After = page.Next; o.After == "" {
			return ids, n + 1
		}
	}
}

func TestListsAreNewestFirst(t *testing.T) {
	e, _ := open(t, oneQueue())
	for i := range 30 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint("w", i), Priority: i % 5, RemoveOnComplete: jobs.Retention{Count: -1}},
			jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint("d", i), Delay: time.Duration(1+i%7) * time.Hour},
			jobs.NewJob{Queue: "q", Tenant: "u", ID: fmt.Sprint("d", i), Delay: time.Hour}, jobs.NewJob{Queue: "q", Tenant: "", ID: fmt.Sprint("w", i)})
	}
	for s, letter := range map[jobs.State]string{jobs.Waiting: "w", jobs.Delayed: "d"} {
		var want []string
		for i := 29; i >= 0; i-- {
			want = append(want, fmt.Sprint(letter, i))
		}
		for _, limit := range []int{1, 7, 29, 30, 31, 100} {
			if ids, n := pages(t, e, s, limit); !slices.Equal(ids, want) || n != (29+limit)/limit {
				t.Errorf("%s, limit %d: %d pages, %v", s, limit, n, ids)
			}
		}
	}
	js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t", Max: 10, For: time.Minute})
	fatalIf(t, err)
	if ids, _ := pages(t, e, jobs.Active, 3); strings.Join(ids, " ") != "w25 w20 w16 w15 w11 w10 w6 w5 w1 w0" {
		t.Errorf("%v", ids)
	}
	if ids, _ := pages(t, e, jobs.Waiting, 7); len(ids) != 20 {
		t.Errorf("%v", ids)
	}
	var finished []string
	for _, j := range js {
		_, err := e.Complete(t.Context(), jobs.LeaseRef{Tenant: "t", Queue: "q", ID: j.ID, Token: j.LeaseToken}, nil)
		fatalIf(t, err)
		finished = append(finished, j.ID)
	}
	slices.Reverse(finished)
	if ids, n := pages(t, e, jobs.Completed, 5); !slices.Equal(ids, finished) || n != 2 {
		t.Errorf("%d pages, %v, want %v", n, ids, finished)
	}
	if ids, _ := pages(t, e, jobs.Active, 3); len(ids) != 0 {
		t.Errorf("%v", ids)
	}
}

// TestListsWithManyPriorities: with more than can be merged, the order is that of work, from its end.
func TestListsWithManyPriorities(t *testing.T) {
	e, _ := open(t, oneQueue())
	var js []jobs.NewJob
	var want []string
	for i := range 300 {
		js = append(js, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i), Priority: i})
		want = append(want, fmt.Sprint(i))
	}
	enqueue(t, e, js[:50]...)
	page, err := e.List("t", "q", jobs.Waiting, jobs.ListOptions{Limit: 10})
	fatalIf(t, err)
	enqueue(t, e, js[50:]...)
	if _, err := e.List("t", "q", jobs.Waiting, jobs.ListOptions{Limit: 10, After: page.Next}); !errors.Is(err, jobs.ErrInvalid) {
		t.Errorf("there were few priorities, and there are many: %v", err)
	}
	slices.Reverse(want)
	if ids, n := pages(t, e, jobs.Waiting, 100); !slices.Equal(ids, want) || n != 3 {
		t.Errorf("%d pages, %v", n, ids)
	}
}

func TestLongJobsMakeShortPages(t *testing.T) {
	e, _ := open(t, oneQueue())
	for i := range 10 {
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i), Data: make([]byte, 1<<20)})
	}
	ids, n := pages(t, e, jobs.Waiting, 100)
	if len(ids) != 10 || n != 3 || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 10 {
		t.Errorf("%d pages, %v", n, ids)
	}
}

// TestListPassesManyActiveJobs: a page looks at a bounded number of keys, and the next goes on.
func TestListPassesManyActiveJobs(t *testing.T) {
	e, _ := open(t, oneQueue())
	js := make([]jobs.NewJob, 10_000)
	for i := range js {
		js[i] = jobs.NewJob{Queue: "q", Tenant: "t"}
	}
	enqueue(t, e, js...)
	enqueue(t, e, js[:2000]...)
	for range 11 {
		_, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t", Max: 1000, For: time.Minute})
		fatalIf(t, err)
	}
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "old", Priority: -1})
	for i := range 5 { // and some that are newer than those that are active
		enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: fmt.Sprint(i)})
	}
	ids, _ := pages(t, e, jobs.Waiting, 100)
	if len(ids) != 1006 || strings.Join(ids[:6], " ") != "4 3 2 1 0 old" {
		t.Errorf("%d waiting: %v", len(ids), ids[:6])
	}
	if ids, _ := pages(t, e, jobs.Active, 100); len(ids) != 11_000 {
		t.Errorf("%d active", len(ids))
	}
}

func TestInvalidLists(t *testing.T) {
	e, _ := open(t, jobs.Options{Queues: []jobs.QueueConfig{{Name: "p"}, {Name: "q"}}})
	for i := range 10 {
		for _, tenant := range []string{"t", "u"} {
			enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: tenant, ID: fmt.Sprint(i)}, jobs.NewJob{Queue: "p", Tenant: tenant, ID: fmt.Sprint(i)},
				jobs.NewJob{Queue: "q", Tenant: tenant, ID: fmt.Sprint("d", i), Delay: time.Hour})
		}
	}
	page, err := e.List("t", "q", jobs.Waiting, jobs.ListOptions{Limit: 5})
	fatalIf(t, err)
	good := page.Next
	field := func(err error) string {
		var invalid *jobs.InvalidError
		if !errors.As(err, &invalid) {
			return fmt.Sprint(err)
		}
		return invalid.Field
	}
	list := func(tenant, queue string, s jobs.State, cursor string) error {
		_, err := e.List(tenant, queue, s, jobs.ListOptions{Limit: 5, After: cursor})
		return err
	}
	fatalIf(t, list("t", "q", jobs.Waiting, good))
	for name, err := range map[string]error{
		"another tenant's": list("u", "q", jobs.Waiting, good), "another queue's": list("t", "p", jobs.Waiting, good),
		"another state's": list("t", "q", jobs.Delayed, good), "cut": list("t", "q", jobs.Waiting, good[:len(good)-1]),
		"longer": list("t", "q", jobs.Waiting, good+"A"), "padded": list("t", "q", jobs.Waiting, good+"=="), "not base64": list("t", "q", jobs.Waiting, "../.."),
		"short": list("t", "q", jobs.Waiting, "AA"), "huge": list("t", "q", jobs.Waiting, strings.Repeat("A", 1<<16)), "number": list("t", "q", jobs.Waiting, "5"),
		"for a finished one": list("t", "q", jobs.Failed, good),
	} {
		if field(err) != "cursor" {
			t.Errorf("%s: %v", name, err)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(good)
	fatalIf(t, err)
	for i := range raw {
		for bit := range 8 {
			b := slices.Clone(raw)
			b[i] ^= 1 << bit
			if err := list("t", "q", jobs.Waiting, base64.RawURLEncoding.EncodeToString(b)); field(err) != "cursor" {
				t.Errorf("byte %d, bit %d: %v", i, bit, err)
			}
		}
	}
	for _, limit := range []int{-1, 101, 1 << 40} {
		if _, err := e.List("t", "q", jobs.Waiting, jobs.ListOptions{Limit: limit}); field(err) != "limit" {
			t.Errorf("%d: %v", limit, err)
		}
	}
	if err := list("t", "q", "paused", ""); field(err) != "state" {
		t.Errorf("%v", err)
	}
}

// BenchmarkList is a page in the middle of a line, with a million jobs of each kind stored beside it.
func BenchmarkList(b *testing.B) {
	for _, stored := range []int{0, 1_000_000} {
		b.Run(fmt.Sprint(stored), func(b *testing.B) {
			e, _ := open(b, oneQueue())
			add := func(n int, tenant string, delay time.Duration) {
				js := make([]jobs.NewJob, 0, 10_000)
				for i := range n {
					js = append(js, jobs.NewJob{Queue: "q", Tenant: tenant, Priority: i % 3, Delay: delay, Data: make([]byte, 100)})
					if len(js) == cap(js) || i == n-1 {
						_, err := e.Enqueue(context.Background(), js...)
						fatalIf(b, err)
						js = js[:0]
					}
				}
			}
			add(stored, "big", 0)
			add(stored/10, "big", time.Hour) // the delayed bucket is the one in which tenants are mixed
			add(200, "t", 0)
			add(200, "t", 2*time.Hour)
			for _, s := range []jobs.State{jobs.Waiting, jobs.Delayed} {
				for _, tenant := range []string{"t", "big"} {
					b.Run(fmt.Sprint(s, "/", tenant), func(b *testing.B) {
						first, err := e.List(tenant, "q", s, jobs.ListOptions{Limit: 20})
						fatalIf(b, err)
						for b.Loop() {
							if _, err := e.List(tenant, "q", s, jobs.ListOptions{Limit: 20, After: first.Next}); err != nil {
								b.Fatal(err)
							}
						}
					})
				}
			}
		})
	}
}
