// Package process holds the box's handler of the queue `data-processing`.
//
// Its promise: a job `process-data` brings analytics up to date with the journals, and
// has counted each event once, however often it runs.
//
// [Handlers] names what the box works on: jobs called [Name], of whatever tenant. Jobs
// of other names stay waiting for workers outside.
//
// A job says "catch up", not "count this event". One job an event would cost the queue
// two writes for each payment and yet prove nothing: that each event is counted once
// follows from the cursor that moves in the transaction of the sums (ledger.Analytics). So the
// listener enqueues, a second ahead, a job whose id is the journal's: while one waits, the
// events that follow add none, and the one that runs reads all of them in batches. An event
// that is written in the moment in which its job ends is found by the next one, or by
// ledger.Analytics itself, which looks every ten seconds; the same look takes up what is due
// after a job's last attempt, and fills a file that was deleted.
//
// After a crash the job runs again and begins where the cursor stands. Attempts (5) and
// backoff (exponential from 5 s) are the queue's.
//
// Caveat: a tenant may add a `process-data` job, too. It counts what there is, and takes no
// other data: work of an app's own needs a name of its own and a worker outside.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"tenderbox/jobs"
)

// Name is what the jobs of this package are called.
const Name = "process-data"

// pause is how long a job stands back when there is more to count than one attempt
// should take, so that others get their turn.
const pause = 20 * time.Millisecond

// Feeder is what brings analytics up to date.
type Feeder interface {
	// Journals is how many journals there are.
	Journals() int
	// Feed counts what one journal (from 0) holds beyond its cursor. more: it holds more than one attempt should take.
	Feed(ctx context.Context, journal int) (more bool, err error)
}

// order is the data of a job.
type order struct {
	Kind    string `json:"kind"`    // "analytics", or left out
	Journal *int   `json:"journal"` // left out: all of them
}

// Handlers returns the handlers by the job's name, for [jobs.RunnerOptions].
func Handlers(f Feeder) map[string]jobs.Handler {
	return map[string]jobs.Handler{Name: func(ctx context.Context, j *jobs.Job) error { return work(ctx, f, j) }}
}

func work(ctx context.Context, f Feeder, j *jobs.Job) error {
	o, err := read(j.Data)
	if err != nil {
		return jobs.Cancel(err)
	}
	journals := f.Journals()
	first, end := 0, journals
	if o.Journal != nil {
		if *o.Journal < 0 || *o.Journal >= journals {
			return jobs.Cancel(fmt.Errorf("data.journal: %d, there are 0 to %d", *o.Journal, journals-1))
		}
		first, end = *o.Journal, *o.Journal+1
	}
	for i := first; i < end; i++ {
		more, err := f.Feed(ctx, i)
		if err != nil {
			return fmt.Errorf("analytics of journal %d: %w", i, err)
		}
		if more {
			return jobs.Snooze(pause)
		}
	}
	return nil
}

// read decodes a job's data; none means all journals.
func read(data []byte) (o order, err error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return o, nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil || d.More() || o.Kind != "" && o.Kind != "analytics" {
		return order{}, fmt.Errorf(`%s takes {"kind":"analytics"} and counts what happened; give work of your own another name, and lease it from outside`, Name)
	}
	return o, nil
}
