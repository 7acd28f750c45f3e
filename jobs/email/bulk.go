package email

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"tenderbox/jobs"
)

// RecipientState is what became of one recipient of a bulk.
type RecipientState string

const (
	// RecipientSent: the mail server said that it has the mail, or it is kept as a file.
	RecipientSent RecipientState = "sent"
	// RecipientFailed: refused, for good or as often as there were attempts; or the mail could not be made.
	RecipientFailed RecipientState = "failed"
	// RecipientUnknown: at the last attempt the mail went out and no answer came.
	RecipientUnknown RecipientState = "unknown"
)

// Recipient is the result for one recipient.
type Recipient struct {
	To        string         `json:"to"` // the address alone; if it is none, the beginning of what the job named
	State     RecipientState `json:"state"`
	MessageID string         `json:"message_id"`
	Error     string         `json:"error,omitempty"`
}

// BulkResult is the result of a job `bulk-email`. The job is completed when each recipient has a result, not only when all are good.
type BulkResult struct {
	Sent       int         `json:"sent"`
	Failed     int         `json:"failed"`
	Unknown    int         `json:"unknown"`
	Recipients []Recipient `json:"recipients"` // in the job's order
}

const (
	// A bulk gives its worker back after so many mails, or so long, and stands in line again: others' mail is not kept
	// waiting by it. That burns no attempt.
	turnMails = 50
	turnTime  = 30 * time.Second
	turnPause = time.Second
)

// recipientErrorMax bytes of a recipient's error are kept: a thousand of them fit into a job's result with room to spare.
const recipientErrorMax = 160

// sendBulk does a job `bulk-email`. An attempt is one pass over those who have no outcome yet; it may take several turns.
func (m *Mailer) sendBulk(ctx context.Context, j *jobs.Job) error {
	var bulk Bulk
	if err := decode(j.Data, &bulk); err != nil {
		return jobs.Cancel(err)
	}
	if n := len(bulk.Emails); n == 0 || n > recipientsMax {
		return jobs.Cancel(fmt.Errorf("data.emails: %d mails, use 1 to %d", n, recipientsMax))
	}
	if left := m.outage.left(m.now()); left > 0 {
		return jobs.Snooze(jittered(left))
	}
	jn, err := m.journals.open(j, len(bulk.Emails))
	if err != nil { // the disk is full, or refuses: nothing is sent that could not be noted
		return m.noDisk(j, err)
	}
	defer jn.close()
	c := &carrier{m: m}
	defer c.close()

	begun, turned := m.now(), 0
	var first error // of those who are tried again
	for n := range bulk.Emails {
		if e, ok := jn.outcomes[n]; ok && (e.final() || e.Attempt == j.AttemptsMade) {
			if !e.final() && first == nil {
				first = errors.New(e.Error)
			}
			continue
		}
		if turned >= turnMails || turned > 0 && m.now().Sub(begun) > turnTime {
			return jobs.Snooze(turnPause)
		}
		turned++
		e, err := m.sendOne(ctx, c, j, n, &bulk.Emails[n])
		if err != nil { // about the server or our time, not about this recipient
			return m.wish(j, err)
		}
		if err := jn.note(e); err != nil {
			return m.noDisk(j, err)
		}
		if !e.final() && first == nil {
			first = errors.New(e.Error)
		}
	}
	if left := len(bulk.Emails) - jn.final(); left > 0 && (j.Attempts <= 0 || j.AttemptsMade < j.Attempts) {
		return fmt.Errorf("%d of %d recipients are left, the first because of: %w", left, len(bulk.Emails), first)
	}
	if err := jn.end(); err != nil {
		return m.noDisk(j, err)
	}
	m.journals.sweep(j.Tenant)
	return done(m.result(j, &bulk, jn))
}

// noDisk waits for a disk that takes the journal.
func (m *Mailer) noDisk(j *jobs.Job, err error) error {
	m.log.Warn("e-mail: a bulk waits, because its journal cannot be written",
		slog.String("tenant", j.Tenant), slog.String("job", j.ID), slog.Any("err", err))
	return jobs.Snooze(jittered(pauseMin))
}

// sendOne tries one recipient. An error means that there is no outcome.
func (m *Mailer) sendOne(ctx context.Context, c *carrier, j *jobs.Job, n int, mail *Mail) (outcome, error) {
	o := outcome{N: n, Attempt: j.AttemptsMade}
	msg, err := m.compose(j, n, mail)
	if err != nil {
		o.State, o.Error = stateRefused, brief(err)
		if errors.Is(err, errSlow) {
			o.State = stateLater
		}
		return o, nil
	}
	_, err = c.carry(ctx, j.Tenant, msg)
	if err == nil {
		o.State = stateSent
		return o, nil
	}
	switch f := fateOf(err); {
	case f == permanent:
		o.State = stateRefused
	case f == temporary, f == lost && !m.patient(j):
		o.State = stateLater
	case f == unknown:
		o.State = stateUnknown
	default:
		return o, err
	}
	o.Error = brief(err)
	return o, nil
}

// result is what the journal knows, in the order of the job.
func (m *Mailer) result(j *jobs.Job, bulk *Bulk, jn *journal) BulkResult {
	r := BulkResult{Recipients: make([]Recipient, len(bulk.Emails))}
	for n := range bulk.Emails {
		e := jn.outcomes[n]
		to := Recipient{To: addressOf(bulk.Emails[n].To), State: RecipientFailed, MessageID: m.identify(j, n), Error: e.Error}
		switch e.State {
		case stateSent:
			to.State = RecipientSent
			r.Sent++
		case stateUnknown:
			to.State = RecipientUnknown
			r.Unknown++
		default:
			r.Failed++
		}
		r.Recipients[n] = to
	}
	return r
}

// addressOf is the address that a job named, or the beginning of what is none.
func addressOf(s string) string {
	a, err := parseAddress(s)
	if err != nil {
		return clip(s)
	}
	return a.Address
}

// brief is an error as a bulk's result keeps it.
func brief(err error) string {
	s := err.Error()
	if len(s) > recipientErrorMax {
		s = s[:recipientErrorMax]
	}
	return toLine(s)
}
