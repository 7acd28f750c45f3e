package email

import (
	"context"
	"errors"
	"log/slog"

	"github.com/go-json-experiment/json"

	"tenderbox/jobs"
)

// carrier takes mails, one after the other, to the server or into files. One goroutine has it, for one job's attempt.
type carrier struct {
	m *Mailer
	x *session // nil: none is open
}

// carry hands a mail over, or keeps it as a file and returns which. nil: it is handed over.
func (c *carrier) carry(ctx context.Context, tenant string, msg *message) (file string, err error) {
	m := c.m
	if m.server == nil {
		file, err := m.drop.put(tenant, msg)
		if err != nil { // a full disk is no reason to lose a mail
			err = &sendError{fate: unusable, stage: stageFile, text: err.Error()}
		}
		return file, m.noted(err)
	}
	for {
		used := c.x != nil && c.x.usable()
		if !used {
			c.close()
			if c.x, err = m.server.open(ctx); err != nil {
				return "", m.noted(err)
			}
		}
		err = c.x.deliver(ctx, msg, m.from.Address)
		if f := fateOf(err); err != nil && used && (f == lost || f == unusable) {
			c.close()
			continue // a connection that was used before may just have grown old; over a new one the mail is tried once
		}
		return "", m.noted(err)
	}
}

func (c *carrier) close() {
	if c.x != nil {
		c.x.close()
		c.x = nil
	}
}

// noted keeps account of whether the server can be used, and hands the error on. That it lets us in proves nothing yet: it has to
// judge a mail.
func (m *Mailer) noted(err error) error {
	fate := permanent // as good as an acknowledgement
	if err != nil {
		fate = fateOf(err)
	}
	switch fate {
	case permanent, temporary: // the server judged it
		if lasted, was := m.outage.end(m.now()); was {
			m.log.Info("e-mail: mail goes out again", slog.Duration("after", lasted))
		}
	case unusable:
		if m.outage.begin(m.now(), err.Error()) {
			m.log.Warn("e-mail: mail waits", slog.Any("err", err))
		}
	case lost:
		if m.outage.trouble(err.Error()) {
			m.log.Warn("e-mail: a mail did not get through, and waits", slog.Any("err", err))
		}
	}
	return err
}

// wish turns an error of a carrier into what the handler wishes for its job.
func (m *Mailer) wish(j *jobs.Job, err error) error {
	switch fateOf(err) {
	case unusable:
		return jobs.Snooze(jittered(max(m.outage.left(m.now()), pauseMin)))
	case lost:
		if !m.patient(j) {
			return err
		}
		return jobs.Snooze(jittered(pauseMin))
	case permanent:
		return jobs.Cancel(err)
	}
	return err
}

// patient says whether connections that die on the way still cost a job nothing.
func (m *Mailer) patient(j *jobs.Job) bool {
	return j.CreatedAt.Before(clockSane) || m.now().Sub(j.CreatedAt) <= lostPatience
}

// send does a job `send-email`.
func (m *Mailer) send(ctx context.Context, j *jobs.Job) error {
	var mail Mail
	if err := decode(j.Data, &mail); err != nil {
		return jobs.Cancel(err)
	}
	msg, err := m.compose(j, 0, &mail)
	switch {
	case errors.Is(err, errSlow): // the box is busy, or the template bad; attempts will tell
		return err
	case err != nil:
		return jobs.Cancel(err)
	}
	if left := m.outage.left(m.now()); left > 0 {
		return jobs.Snooze(jittered(left))
	}
	c := &carrier{m: m}
	defer c.close()
	file, err := c.carry(ctx, j.Tenant, msg)
	if err != nil {
		return m.wish(j, err)
	}
	return done(Sent{To: msg.to, MessageID: msg.id, File: file})
}

// done is the wish to complete a job with a result.
func done(result any) error {
	b, err := marshal(result)
	if err != nil {
		return jobs.Cancel(errors.New("the result cannot be written: " + err.Error()))
	}
	return jobs.Done(b)
}

func marshal(v any) ([]byte, error) { return json.Marshal(v, json.Deterministic(true)) }
