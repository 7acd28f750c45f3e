package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
)

// rows returns the journal rows of a type, over all shards.
func (b *testBox) rows(typ EventType) (found []Event) {
	b.t.Helper()
	for _, p := range b.parts {
		err := readJournal(b.t.Context(), p.shard, 0, math.MaxInt32, func(e *Event) error {
			if e.Type == typ {
				kept := *e
				kept.Data = bytes.Clone(e.Data)
				found = append(found, kept)
			}
			return nil
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return found
}

func failedOnce(id string, at time.Time) jobs.Job {
	return jobs.Job{NewJob: jobs.NewJob{Queue: "email", Tenant: string(testTenant), ID: id, Name: "send-email"},
		State: jobs.Failed, AttemptsMade: 3, FinishedAt: at, LastError: "550 no such mailbox \xff"}
}

// However often a failure is told, and by however many at once, its row is written once; the box is sound afterwards.
func TestFailedJobIsRecordedOnce(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	at := time.UnixMilli(1795420800123).UTC()
	derived := FailedJobs(failedOnce("job_1", at))
	if again := FailedJobs(failedOnce("job_1", at)); len(derived) != 1 || len(again) != 1 || derived[0].ID != again[0].ID || !bytes.Equal(derived[0].Data, again[0].Data) {
		t.Fatalf("not a pure function: %+v, %+v", derived, again)
	}
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if err := b.Record(t.Context(), &jobs.Job{NewJob: derived[0]}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	b = b.reopen(nil)
	if err := b.Record(t.Context(), &jobs.Job{NewJob: derived[0]}); err != nil {
		t.Error(err)
	}
	rows := b.rows(JobFailed)
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	e := rows[0]
	if e.Tenant != testTenant || e.Subject != "job_1" || !e.OccurredAt.Equal(at) || !strings.HasPrefix(string(e.ID), eventPrefix) || b.set.Shard(e.Slot).ID() != e.Shard {
		t.Errorf("row: %+v", e)
	}
	if u, ok := parseID(eventPrefix, string(e.ID)); !ok || slotOf(u) != e.Slot {
		t.Errorf("the id %s does not carry slot %d", e.ID, e.Slot)
	}
	var data map[string]any
	if err := json.Unmarshal(e.Data, &data); err != nil || data["queue"] != "email" || data["job_id"] != "job_1" || data["name"] != "send-email" ||
		data["attempts"] != 3.0 || data["error"] != "550 no such mailbox \uFFFD" {
		t.Errorf("data: %s (%v)", e.Data, err)
	}

	// Retried and failed once more it is told once more.
	if err := b.Record(t.Context(), &jobs.Job{NewJob: FailedJobs(failedOnce("job_1", at.Add(time.Minute)))[0]}); err != nil {
		t.Error(err)
	}
	if n := len(b.rows(JobFailed)); n != 2 {
		t.Errorf("%d rows after the second failure", n)
	}
	b.sound()
}

// What is nobody's, and what tells of failures itself, is not told; what is no event is given up.
func TestWhatIsNotRecorded(t *testing.T) {
	box, telling := failedOnce("j", time.Now()), failedOnce("j", time.Now())
	box.Tenant, telling.Queue = "", EventsQueue
	if js := append(FailedJobs(box), FailedJobs(telling)...); len(js) != 0 {
		t.Errorf("derived %+v", js)
	}
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	for _, data := range []string{"", "null", "7", `{"type":"job.failed"}`, `{"type":"","data":{}}`} {
		j := jobs.Job{NewJob: jobs.NewJob{Tenant: string(testTenant), ID: "x", Data: []byte(data)}}
		if err := b.Record(t.Context(), &j); err == nil || fmt.Sprintf("%T", err) != fmt.Sprintf("%T", jobs.Cancel(nil)) {
			t.Errorf("%q: %v", data, err)
		}
	}
	if n := len(b.rows(JobFailed)); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func TestRecordedEventsArePruned(t *testing.T) {
	now := time.UnixMilli(1795420800000)
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: func() time.Time { return now }})
	for i := range 10 {
		if err := b.RecordEvent(t.Context(), testTenant, Record{ID: fmt.Sprint(i), Type: JobFailed, Subject: "s", At: now, Data: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (n int) {
		for _, p := range b.parts {
			var here int
			err := p.shard.View(t.Context(), func(tx *shards.Tx) error {
				return tx.QueryRow(`SELECT count(*) FROM recorded_events`).Scan(&here)
			})
			if err != nil {
				t.Fatal(err)
			}
			n += here
		}
		return n
	}
	b.prune(now, t)
	if n := left(); n != 10 {
		t.Errorf("%d left of those that are not old", n)
	}
	b.prune(now.Add(time.Second), t)
	if n := left(); n != 0 {
		t.Errorf("%d left", n)
	}
	if n := len(b.rows(JobFailed)); n != 10 {
		t.Errorf("%d rows: the journal is not what is pruned", n)
	}
}

func (b *testBox) prune(before time.Time, t *testing.T) {
	for _, p := range b.parts {
		if err := pruneRecorded(context.WithoutCancel(t.Context()), p.shard, before); err != nil {
			t.Fatal(err)
		}
	}
}

// An event is the same whether it is read from memory or, after a restart, from its file.
func TestRecordedEventIsReadAsItWasHeard(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	at := time.Unix(1795420800, 123456789)
	if err := b.RecordEvent(t.Context(), testTenant, Record{ID: "r", Type: JobFailed, Subject: "job_1", At: at, Data: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	heard, _ := b.readAll(testTenant, EventFilter{})
	b = b.reopen(nil)
	read, _ := b.readAll(testTenant, EventFilter{})
	if len(heard) != 1 || len(read) != 1 || !heard[0].OccurredAt.Equal(read[0].OccurredAt) || heard[0].ID != read[0].ID {
		t.Errorf("heard %+v, read %+v", heard, read)
	}
}
