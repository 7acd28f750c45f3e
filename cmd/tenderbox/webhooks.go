package main

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/oklog/ulid/v2"

	"tenderbox/jobs"
	"tenderbox/jobs/webhook"
	"tenderbox/ledger"
	"tenderbox/tenants"
	"tenderbox/upstream"
	"tenderbox/web"
)

const (
	// webhookWorkers attempts run at a time. Each may wait a quarter of a minute for an endpoint that does not answer, and costs a
	// connection and an event of at most 256 KiB.
	webhookWorkers = 32
	// webhookTenantMax of them are one tenant's: eight tenants whose endpoints hang do not hold up the ninth, until each of those
	// endpoints is found out and left in peace.
	webhookTenantMax = 4
	// webhookDrainMax is how long a stop waits for attempts in hand: as long as endpoints take that are well. What is cut off is made
	// again under the same id.
	webhookDrainMax = 3 * time.Second
)

// webhooks are what the box does about webhooks: who is told of an event, and how.
type webhooks struct {
	endpoints tenants.Webhooks
	accounts  *upstream.Accounts
	deliverer *webhook.Deliverer
	source    string // of events; known before the first is derived
}

func newWebhooks(c *Config, registry *tenants.Registry, accounts *upstream.Accounts) *webhooks {
	w := &webhooks{endpoints: registry.Webhooks(), accounts: accounts}
	w.deliverer = webhook.New(w, webhook.Options{AllowLAN: c.WebhookAllowLAN, Line: w.line})
	return w
}

// checkURL judges an endpoint's URL when it is saved.
func (c *Config) checkURL(url string) error {
	err := webhook.ValidateURL(url, c.WebhookAllowLAN)
	var bad *webhook.URLError
	if errors.As(err, &bad) {
		return &tenants.InvalidError{Field: "url", Message: bad.Message}
	}
	return err
}

func (w *webhooks) runner() jobs.RunnerOptions {
	return jobs.RunnerOptions{Queue: webhook.Queue, Handler: w.deliverer.Handle, Concurrency: webhookWorkers, TenantMax: webhookTenantMax,
		DrainTimeout: webhookDrainMax}
}

// line is what the box's own account with the processor has learnt of the way out.
func (w *webhooks) line() webhook.Line {
	own, err := w.accounts.Get("", "", "")
	if err != nil {
		return webhook.LineUnknown
	}
	switch own.Link().State {
	case upstream.Online, upstream.Degraded:
		return webhook.LineUp
	case upstream.Offline:
		return webhook.LineDown
	}
	return webhook.LineUnknown
}

// derive makes the jobs that tell a tenant's endpoints of an event.
func (w *webhooks) derive(e *ledger.Event) []jobs.NewJob {
	matching := w.endpoints.Matching(e.Tenant, string(e.Type))
	if len(matching) == 0 {
		return nil
	}
	return w.JobsFor(e, matching)
}

// JobsFor is part of [web.Deliveries].
func (w *webhooks) JobsFor(e *ledger.Event, endpoints []string) []jobs.NewJob {
	body := web.CloudEvent(e, w.source).AppendJSON(nil)
	return webhook.JobsFor(string(e.Tenant), webhook.Event{ID: string(e.ID), Type: string(e.Type), JSON: body}, endpoints)
}

// TestJob is part of [web.Deliveries].
func (w *webhooks) TestJob(t tenants.ID, endpoint string, now time.Time) jobs.NewJob {
	id := "evt_" + ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()
	e := &ledger.Event{ID: ledger.EventID(id), Tenant: t, Type: web.WebhookTest, Subject: endpoint, OccurredAt: now, Data: []byte(`{"message":"It works."}`)}
	j := w.JobsFor(e, []string{endpoint})[0] // one endpoint, one job
	j.Attempts = 1                           // it asks how things are now, not how they will be in three days
	return j
}

// Status is part of [web.Deliveries].
func (w *webhooks) Status(attempt string) int { return webhook.StatusOf(attempt) }

// Endpoint is part of [webhook.Endpoints].
func (w *webhooks) Endpoint(tenant, id string) (webhook.Endpoint, bool) {
	e, err := w.endpoints.Get(tenants.ID(tenant), id)
	if err != nil {
		return webhook.Endpoint{}, false
	}
	out := webhook.Endpoint{URL: e.URL, Disabled: e.Disabled}
	for _, s := range e.Secrets {
		out.Secrets = append(out.Secrets, webhook.Secret(s))
	}
	return out, true
}

// Disable is part of [webhook.Endpoints]. An endpoint that was removed meanwhile needs no disabling.
func (w *webhooks) Disable(ctx context.Context, tenant, id, reason string) error {
	err := w.endpoints.Disable(ctx, tenants.ID(tenant), id, reason)
	if errors.Is(err, tenants.ErrEndpointNotFound) {
		return nil
	}
	return err
}
