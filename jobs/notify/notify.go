// Package notify carries out the jobs of the queue `notifications`: `push-notification`, `tell-user` and `create-profile`.
//
// The promise: a push that the box took comes into its user's inbox, and onto the event stream, once for each job, however often the
// job runs. What can never be delivered (no such user, no message, data that is not a push) fails at once and says why. A file that is
// out of service costs a job nothing: it waits.
//
// [Handlers] are what a runner calls by the job's name. They deliver to an [Inbox], which is the ledger's. Jobs of other names in the queue
// are not the box's: they wait for workers outside, such as one that speaks to a phone maker's push service.
//
// # After a crash
//
// A job whose outcome was not written runs again. The inbox knows each job by its id and the time at which it was enqueued
// ([Push.JobID], [Push.EnqueuedAt]) and takes it once, so nothing comes twice; an id that an app uses again once its job is gone is
// another message.
//
// # Caveats
//
//   - A user who wants no notifications gets none: such a job completes, and its result says so.
//   - Pushes to one user that are in the queue together may be delivered in any order: the queue has several workers.
package notify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/jobs"
)

const (
	// Queue is the queue whose jobs this package does.
	Queue = "notifications"
	// PushJob, TellJob and ProfileJob are the names of its jobs. TellJob is a push of the box's own: whom the box does not know, for
	// payments may name an app's own users, need not be told.
	PushJob    = "push-notification"
	TellJob    = "tell-user"
	ProfileJob = "create-profile"
)

// unavailableSnooze is how long a job waits for a file that is out of service: the box reopens one within a second or an operator does
// within minutes, and a look costs a transaction of the queue.
const unavailableSnooze = 5 * time.Second

var (
	// ErrRefused is what an Inbox wraps when what it was given can never be taken.
	ErrRefused = errors.New("refused")
	// ErrNoUser is what it wraps when there is no such user; it is an ErrRefused.
	ErrNoUser = fmt.Errorf("%w: no such user", ErrRefused)
	// ErrUnavailable is what it wraps when it cannot be reached now, or does not know whether it took it.
	ErrUnavailable = errors.New("unavailable")
)

// Push is a message for a user's inbox.
type Push struct {
	JobID      string    // with EnqueuedAt the name of the job for good
	EnqueuedAt time.Time // when the job was enqueued
	UserID     string
	Message    string
	Timestamp  time.Time // of what it tells; zero: when it is delivered
}

// Inbox is where notifications go.
type Inbox interface {
	// Deliver adds a push to its user's inbox, once for each job. It returns the notification's id; "": the user wants none.
	Deliver(ctx context.Context, tenant string, p Push) (id string, err error)
	// CreateProfile gives a user the defaults and a first entry. Twice is fine.
	CreateProfile(ctx context.Context, tenant, userID string) error
}

// Handlers are the handlers of the queue by the name of the job.
func Handlers(in Inbox) map[string]jobs.Handler {
	return map[string]jobs.Handler{
		PushJob: func(ctx context.Context, j *jobs.Job) error { return push(ctx, in, j) },
		TellJob: func(ctx context.Context, j *jobs.Job) error {
			err := push(ctx, in, j)
			if errors.Is(err, ErrNoUser) {
				return nil
			}
			return err
		},
		ProfileJob: func(ctx context.Context, j *jobs.Job) error {
			var data profileData
			if err := decode(j, &data); err != nil {
				return jobs.Cancel(err)
			}
			return wish(in.CreateProfile(ctx, j.Tenant, data.UserID))
		},
	}
}

// push delivers a job's message.
func push(ctx context.Context, in Inbox, j *jobs.Job) error {
	var data pushData
	if err := decode(j, &data); err != nil {
		return jobs.Cancel(err)
	}
	id, err := in.Deliver(ctx, j.Tenant, Push{j.ID, j.CreatedAt, data.UserID, data.Message, data.Timestamp.at})
	if err != nil {
		return wish(err)
	}
	result, err := json.Marshal(pushResult{id, id == ""})
	if err != nil {
		return err
	}
	return jobs.Done(result)
}

// pushData is the data of a PushJob.
type pushData struct {
	UserID    string `json:"user_id"`
	Message   string `json:"message"`
	Timestamp moment `json:"timestamp"`
}

// pushResult is the result of a PushJob.
type pushResult struct {
	NotificationID string `json:"notification_id,omitzero"`
	Unwanted       bool   `json:"unwanted,omitzero"`
}

// profileData is the data of a ProfileJob.
type profileData struct {
	UserID string `json:"user_id"`
}

// decode reads a job's data. A member that there is not would be lost in silence, so it is an error.
func decode(j *jobs.Job, data any) error {
	if j.Tenant == "" {
		return errors.New("a notification is for a user of a tenant's, and the job is no tenant's")
	}
	if err := json.Unmarshal(j.Data, data, json.RejectUnknownMembers(true)); err != nil {
		var at *json.SemanticError
		if errors.As(err, &at) && at.JSONPointer != "" && at.Err != nil {
			return fmt.Errorf("data%s: %w", at.JSONPointer, at.Err)
		}
		return fmt.Errorf("data: %w", err)
	}
	return nil
}

// wish says what is to become of a job whose inbox answered err.
func wish(err error) error {
	switch {
	case errors.Is(err, ErrRefused):
		return jobs.Cancel(err)
	case errors.Is(err, ErrUnavailable):
		return jobs.Snooze(unavailableSnooze)
	}
	return err
}

// moment is a time as apps write it: RFC 3339, or milliseconds since 1970 as a number. Left out or null: none.
type moment struct{ at time.Time }

// yearMax is the last year that RFC 3339 can write.
const yearMax = 9999

var errMoment = errors.New("write a time as 2026-11-25T12:00:00Z, or as milliseconds since 1970")

func (m *moment) UnmarshalJSON(b []byte) error {
	switch v := jsontext.Value(b); v.Kind() {
	case 'n':
		return nil
	case '0':
		ms, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return errMoment
		}
		m.at = time.UnixMilli(ms).UTC()
	case '"':
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return errMoment
		}
		m.at = at.UTC()
	default:
		return errMoment
	}
	if year := m.at.Year(); year < 1970 || year > yearMax {
		return errMoment
	}
	return nil
}
