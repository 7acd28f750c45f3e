package main

import (
	"context"
	"errors"
	"fmt"

	"tenderbox/jobs/notify"
	"tenderbox/ledger"
	"tenderbox/tenants"
)

// inboxes is the ledger as the queue `notifications` knows it.
type inboxes struct{ ledger *ledger.Ledger }

// Deliver implements [notify.Inbox].
func (in inboxes) Deliver(ctx context.Context, tenant string, p notify.Push) (string, error) {
	id, err := in.ledger.Deliver(ctx, tenants.ID(tenant), ledger.Push(p))
	return string(id), forQueue(err)
}

// CreateProfile implements [notify.Inbox].
func (in inboxes) CreateProfile(ctx context.Context, tenant, userID string) error {
	return forQueue(in.ledger.CreateProfile(ctx, tenants.ID(tenant), userID))
}

// forQueue tells the queue what the ledger's refusal means for a job: give it up, or wait.
func forQueue(err error) error {
	var refusal *ledger.Error
	if !errors.As(err, &refusal) {
		return err
	}
	if refusal.Code == "user_unknown" {
		return fmt.Errorf("%w: %w", notify.ErrNoUser, err)
	}
	switch refusal.Kind {
	case ledger.Invalid, ledger.NotFound:
		return fmt.Errorf("%w: %w", notify.ErrRefused, err)
	case ledger.Unavailable, ledger.Full:
		return fmt.Errorf("%w: %w", notify.ErrUnavailable, err)
	}
	return err
}
