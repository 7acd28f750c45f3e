package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tenderbox/jobs"
)

// largeLog is an event log that notes how much it was given at once.
type largeLog struct {
	*memoryLog
	most int // bytes of data in one batch
}

func (m *largeLog) BatchMax() int { return 999 }

func (m *largeLog) Publish(ctx context.Context, events []*Event) (uint64, error) {
	n := 0
	for _, e := range events {
		n += len(e.Data)
	}
	m.mu.Lock()
	m.most = max(m.most, n)
	m.mu.Unlock()
	return m.memoryLog.Publish(ctx, events)
}

// INV-26: an app's largest events, each told to many, fill neither the memory nor one transaction of the queue, and all are told.
func TestLargeEventsGoInBoundedPortions(t *testing.T) {
	const events, endpoints = 30, 4
	log := &largeLog{memoryLog: newMemoryLog()}
	b := openBox(t, t.TempDir(), testOptions{idle: true, events: log, derive: func(e *Event) (js []jobs.NewJob) {
		for i := range endpoints {
			js = append(js, jobs.NewJob{Queue: EmailQueue, Tenant: string(e.Tenant), ID: fmt.Sprint(e.ID, i), Name: "tell", Data: e.Data})
		}
		return js
	}})
	data := []byte(`"` + strings.Repeat("x", 900<<10) + `"`)
	p := b.parts[1]
	for i := range events {
		key := IdempotencyKey(fmt.Sprint("k", i))
		for n := 0; b.set.Shard(b.keys.slot(testTenant, key)) != p.shard; n++ {
			key = IdempotencyKey(fmt.Sprint("k", i, "-", n))
		}
		if _, _, err := b.Emit(t.Context(), testTenant, key, NewEvent{Type: "till.seen", Data: data}); err != nil {
			t.Fatal(err)
		}
		kept := 0
		for _, e := range p.journal.tail.rows {
			kept += len(e.Data)
		}
		if kept > tailBytesMax || kept != p.journal.tail.bytes {
			t.Fatalf("%d bytes are kept in memory, %d by its count", kept, p.journal.tail.bytes)
		}
	}
	for from := uint64(0); ; {
		took, err := b.relayOnce(t.Context(), p, false)
		if err != nil {
			t.Fatal(err)
		}
		at, _, err := b.jobs.Cursor(p.jobsSource())
		if err != nil {
			t.Fatal(err)
		}
		if size := int(at.Offset-from) * endpoints * len(data); at.Offset-from > 1 && size > relayBytesMax {
			t.Errorf("%d bytes of jobs in one transaction", size)
		}
		if from = at.Offset; took.rows == 0 {
			break
		}
	}
	all, _ := b.readAll(testTenant, EventFilter{})
	if len(all) != events {
		t.Errorf("%d events", len(all))
	}
	for _, e := range all {
		for i := range endpoints {
			if _, err := b.jobs.Get(string(testTenant), EmailQueue, fmt.Sprint(e.ID, i)); err != nil {
				t.Errorf("%s: %v", e.ID, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.relayEvents(ctx) }()
	told := log.await(t, events)
	cancel()
	<-done
	if log.most > publishBytesMax {
		t.Errorf("%d bytes were published at once", log.most)
	}
	if !slices.IsSortedFunc(told, func(a, b logRow) int { return int(a.seq) - int(b.seq) }) || len(told) != events {
		t.Errorf("told %v", told)
	}
	b.sound()
}
