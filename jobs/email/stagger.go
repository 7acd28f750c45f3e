package email

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tenderbox/jobs"
)

// StaggerJob is the name of a job that makes a job of each of its mails, one after the other in time.
const StaggerJob = "staggered-email"

// Stagger is the data of a StaggerJob.
type Stagger struct {
	Bulk
	EveryMS int64 `json:"every_ms,omitzero"` // between two mails; 0: StaggerDefault
}

// StaggerResult is its result: the ids of the jobs that it made.
type StaggerResult struct {
	Jobs []string `json:"jobs"`
}

// Enqueue is the engine's.
type Enqueue func(ctx context.Context, js ...jobs.NewJob) ([]jobs.Job, error)

// StaggerHandler is the handler of StaggerJob. Run again after a crash it makes no job twice, for their ids follow from its own.
func StaggerHandler(enqueue Enqueue) jobs.Handler {
	return func(ctx context.Context, j *jobs.Job) error {
		var in Stagger
		if err := decode(j.Data, &in); err != nil {
			return jobs.Cancel(err)
		}
		every := time.Duration(in.EveryMS) * time.Millisecond
		if in.EveryMS == 0 {
			every = StaggerDefault
		} else if in.EveryMS < 0 || in.EveryMS > staggerMax.Milliseconds() {
			return jobs.Cancel(fmt.Errorf("every_ms: use 1 to %d", staggerMax.Milliseconds()))
		}
		all, err := in.Staggered(j.Tenant, j.ID, every)
		if err != nil {
			return jobs.Cancel(err)
		}
		if _, err := enqueue(ctx, all...); errors.Is(err, jobs.ErrInvalid) { // an id so long that theirs are too long
			return jobs.Cancel(err)
		} else if err != nil {
			return err
		}
		var out StaggerResult
		for _, one := range all {
			out.Jobs = append(out.Jobs, one.ID)
		}
		result, err := marshal(out)
		if err != nil {
			return err
		}
		return jobs.Done(result)
	}
}

// Staggered makes single jobs of a bulk, for those who want each mail to be a job of its own: mail n is due n times every later, so that a server's
// limits are not met. Their priority is 5, behind mail that somebody waits for. id is the bulk's; theirs are id:0, id:1 and so on.
func (b Bulk) Staggered(tenant, id string, every time.Duration) ([]jobs.NewJob, error) {
	if n := len(b.Emails); n == 0 || n > recipientsMax {
		return nil, fmt.Errorf("emails: %d mails, use 1 to %d", n, recipientsMax)
	}
	if every < 0 || every > staggerMax {
		return nil, fmt.Errorf("every %v: use 0 to %v", every, staggerMax)
	}
	all := make([]jobs.NewJob, len(b.Emails))
	for n := range b.Emails {
		data, err := marshal(b.Emails[n])
		if err != nil {
			return nil, fmt.Errorf("emails[%d]: %w", n, err)
		}
		all[n] = jobs.NewJob{
			Queue: Queue, Tenant: tenant, Name: SendJob, ID: fmt.Sprintf("%s:%d", id, n), Data: data,
			Priority: staggerPriority, Delay: time.Duration(n) * every,
		}
	}
	return all, nil
}

const (
	// StaggerDefault is what apps of this kind have always used.
	StaggerDefault  = time.Second
	staggerMax      = time.Hour
	staggerPriority = 5
)
