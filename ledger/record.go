package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// EventsQueue is the internal queue of events that arose outside the shards and
// wait for their journal row. It is named for what is in it, as the other
// queues are; tenants neither see it nor can declare one of that name.
const EventsQueue = "events"

// JobFailed is told when a job's last attempt is spent, or its handler gave it up.
const JobFailed EventType = "job.failed"

// recordName is what the jobs of EventsQueue are called.
const recordName = "record-event"

// Record is an event that arose outside the shards.
type Record struct {
	ID      string // names it for good, within its tenant: handed over again, it is not written again
	Type    EventType
	Subject string // id of what it tells of
	At      time.Time
	Data    []byte // JSON object
}

// RecordEvent writes the journal row of an event that arose elsewhere, once
// for each (tenant, r.ID) however often it is called: the row and the mark that
// it was written are one transaction. The event's own id follows from r.ID too.
func (l *Ledger) RecordEvent(ctx context.Context, t tenants.ID, r Record) error {
	if t == "" || r.ID == "" || r.Type == "" || !jsontext.Value(r.Data).IsValid() {
		return invalid("event_invalid", "", "an event has a tenant, an id, a type and data in JSON")
	}
	slot := shards.SlotOf(string(t), r.ID)
	e := &Event{ID: recordedID(t, &r, slot), Tenant: t, Type: r.Type, Subject: r.Subject, Slot: slot,
		OccurredAt: instant(r.At.UnixMilli()), Data: r.Data}
	now := l.clock.now()
	err := l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		n, err := tx.Exec(`INSERT INTO recorded_events (tenant, id, recorded_at) VALUES (?,?,?) ON CONFLICT DO NOTHING`,
			string(t), r.ID, now.UnixMilli())
		if err != nil || n == 0 {
			return err
		}
		tx.Attach(e)
		return nil
	})
	return unavailable(err)
}

// recordedID makes the event's id of what names it, so that whoever computes it
// again gets the same.
func recordedID(t tenants.ID, r *Record, slot shards.Slot) EventID {
	return EventID(eventPrefix + namedULID(t, r.ID, r.At, slot).String())
}

// failedJob is the data of [JobFailed].
type failedJob struct {
	Queue    string `json:"queue"`
	JobID    string `json:"job_id"`
	Name     string `json:"name"`
	Attempts int    `json:"attempts"`
	Error    string `json:"error"`
}

// recordJob is the data of a job in EventsQueue.
type recordJob struct {
	Type    EventType      `json:"type"`
	Subject string         `json:"subject"`
	At      time.Time      `json:"at"`
	Data    jsontext.Value `json:"data"`
}

// FailedJobs is the engine's Options.Failed: of a job that failed for good it
// makes the one that tells so. The box's own work, which is no tenant's, and the
// telling itself are not told. It is a pure function: a job that fails again after
// a retry fails at another time, and is told again.
func FailedJobs(j jobs.Job) []jobs.NewJob {
	if j.Tenant == "" || j.Queue == EventsQueue {
		return nil
	}
	said := j.LastError
	if holdsCardNumber(said) { // the box does not look into a job, but this becomes an event
		said = "[withheld]"
	}
	told, err := json.Marshal(failedJob{j.Queue, j.ID, j.Name, j.AttemptsMade, said}, jsontext.AllowInvalidUTF8(true))
	if err != nil { // strings and numbers always encode
		panic(err)
	}
	sum := sha256.Sum256([]byte(j.Queue + "\x00" + j.ID + "\x00" + strconv.FormatInt(j.FinishedAt.UnixNano(), 10)))
	return []jobs.NewJob{recordLater(j.Tenant, "failed_"+hex.EncodeToString(sum[:16]), recordJob{JobFailed, j.ID, j.FinishedAt.UTC(), told})}
}

// recordLater makes the job that records an event under an id.
func recordLater(tenant, id string, r recordJob) jobs.NewJob {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return jobs.NewJob{
		Queue: EventsQueue, Tenant: tenant, ID: id, Name: recordName, Data: data,
		Attempts: -1, // until the shard has it: an event is never lost
		Backoff:  jobs.Backoff{Type: jobs.Exponential, Delay: time.Second, Jitter: 0.2, Max: time.Minute},

		RemoveOnComplete: jobs.Retention{Remove: true},
	}
}

// Record is the handler of [EventsQueue].
func (l *Ledger) Record(ctx context.Context, j *jobs.Job) error {
	var in recordJob
	if err := json.Unmarshal(j.Data, &in); err != nil {
		return jobs.Cancel(fmt.Errorf("not an event: %w", err))
	}
	err := l.RecordEvent(ctx, tenants.ID(j.Tenant), Record{ID: j.ID, Type: in.Type, Subject: in.Subject, At: in.At, Data: in.Data})
	var refused *Error
	if errors.As(err, &refused) && refused.Kind == Invalid {
		return jobs.Cancel(err)
	}
	return err
}

// pruneRecorded forgets which events were written before the time given: what
// hands them over has long forgotten them itself.
func pruneRecorded(ctx context.Context, sh *shards.Shard, before time.Time) error {
	for {
		var n int64
		err := sh.Update(ctx, func(tx *shards.Tx) (err error) {
			n, err = tx.Exec(`DELETE /* box */ FROM recorded_events WHERE (tenant, id) IN
				(SELECT tenant, id FROM recorded_events INDEXED BY recorded_events_age WHERE recorded_at < ? LIMIT ?)`, before.UnixMilli(), fillBatch)
			return err
		})
		if err != nil || n < fillBatch {
			return err
		}
	}
}
