package main

import (
	"context"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"tenderbox/jobs"
	"tenderbox/jobs/email"
	"tenderbox/jobs/notify"
	"tenderbox/jobs/process"
	"tenderbox/jobs/webhook"
	"tenderbox/ledger"
)

// queues are those that ship in the box. Only the box puts jobs into the read-only ones, and only it takes them out: a payment's
// job that somebody else removes would leave the payment unsettled.
var queues = []jobs.QueueConfig{
	// A mail that meets greylisting is taken after some minutes, and a busy server after some hours.
	{Name: ledger.EmailQueue, Attempts: 8, Backoff: jobs.Backoff{Type: jobs.Exponential, Delay: time.Minute, Jitter: 0.2}},
	{Name: ledger.NotificationsQueue},
	// What is computed from data fails for reasons that take longer to pass than a mail server's.
	{Name: ledger.ProcessingQueue, Attempts: 5, Backoff: jobs.Backoff{Type: jobs.Exponential, Delay: 5 * time.Second}},
	{Name: ledger.PaymentsQueue, ReadOnly: true},
	{Name: webhook.Queue, ReadOnly: true},
	{Name: ledger.EventsQueue, Internal: true},
}

const (
	// emailWorkers are enough to keep a slow mail server busy, and few enough to leave the small machine to payments.
	emailWorkers = 4
	// processWorkers: one journal is counted while another waits for its disk.
	processWorkers = 2
	// deliveriesDrainMax: a delivery is one transaction on the box's own disk; one that takes longer is done again at the next start.
	deliveriesDrainMax = 2 * time.Second
)

// workers run the jobs that the box does itself. Jobs of other names in the same queues wait for workers outside.
type workers []*jobs.Runner

// newWorkers makes them; they begin with run.
func (a *App) newWorkers(mailer *email.Mailer, hooks *webhooks) (workers, error) {
	mails := maps.Clone(mailer.Handlers())
	mails[ledger.ReceiptJob] = a.ledger.SendReceipt
	mails[email.StaggerJob] = email.StaggerHandler(a.engine.Enqueue)
	var ws workers
	for _, o := range []jobs.RunnerOptions{
		{Queue: ledger.EventsQueue, Handler: a.ledger.Record},
		{Queue: ledger.NotificationsQueue, Handlers: notify.Handlers(inboxes{a.ledger}), DrainTimeout: deliveriesDrainMax},
		// What is cut short goes on from its cursor.
		{Queue: ledger.ProcessingQueue, Handlers: process.Handlers(a.analytics), Concurrency: processWorkers, DrainTimeout: -1},
		{Queue: ledger.EmailQueue, Handlers: mails, Ready: mailer.Ready, Concurrency: emailWorkers},
		hooks.runner(),
	} {
		r, err := a.engine.NewRunner(o)
		if err != nil {
			return nil, err
		}
		ws = append(ws, r)
	}
	return ws, nil
}

// run works until ctx ends; each finishes what it has in hand.
func (ws workers) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range ws {
		g.Go(func() error { return r.Run(ctx) })
	}
	return g.Wait()
}

// newMailer builds what sends e-mail, from the settings.
func newMailer(c *Config, a *App) (*email.Mailer, error) {
	templates := c.path(templatesFolder)
	if there, err := exists(templates); err != nil || !there {
		templates = ""
	}
	m, err := email.New(email.Options{SMTPURL: string(c.SMTPURL), From: c.SMTPFrom, Templates: templates, Folder: c.path(mailFolder), Logger: a.log})
	if err != nil {
		return nil, hint(err, "see smtp-url and smtp-from in `tenderbox serve --help`, and the folder "+c.path(templatesFolder))
	}
	return m, nil
}

// mailStatus is what the box's status says about e-mail.
func mailStatus(m *email.Mailer) func() ledger.MailStatus {
	return func() ledger.MailStatus {
		s := m.Status()
		out := ledger.MailStatus{Mode: s.Mode, Server: s.Server, Folder: s.Folder, LastError: s.LastError}
		if !s.DownSince.IsZero() {
			out.DownSince = &s.DownSince
		}
		return out
	}
}
