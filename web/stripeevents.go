package web

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// History is what tenants read of the latest changes.
type History interface {
	LatestEvents(context.Context, tenants.ID, ledger.LatestFilter) (events []ledger.Event, more bool, err error)
}

// stripeEvent is a change in Stripe's form. Its object is the record as it was behind the change.
type stripeEvent struct {
	ID         string  `json:"id"`
	Object     string  `json:"object"`
	APIVersion *string `json:"api_version"`
	Created    int64   `json:"created"`
	Data       struct {
		Object any `json:"object"`
	} `json:"data"`
	Livemode        bool               `json:"livemode"`
	PendingWebhooks int                `json:"pending_webhooks"`
	Request         stripeEventRequest `json:"request"`
	Type            string             `json:"type"`
}

// stripeEventRequest names nobody: which request made a change is not in the journal.
type stripeEventRequest struct {
	ID             *string `json:"id"`
	IdempotencyKey *string `json:"idempotency_key"`
}

// stripeKinds are the changes that Stripe has a name for. That nobody knows of a payment's outcome is none: at Stripe's one does.
var stripeKinds = []struct {
	kind ledger.EventKind
	name string
}{
	{ledger.EventKind{Type: ledger.PaymentCreated, Means: ledger.BySource}, "charge.pending"},
	{ledger.EventKind{Type: ledger.PaymentSucceeded, Means: ledger.BySource}, "charge.succeeded"},
	{ledger.EventKind{Type: ledger.PaymentFailed, Means: ledger.BySource}, "charge.failed"},
	{ledger.EventKind{Type: ledger.PaymentCanceled, Means: ledger.BySource}, "charge.failed"},
	{ledger.EventKind{Type: ledger.PaymentCreated, Means: ledger.ByMethod}, "payment_intent.created"},
	{ledger.EventKind{Type: ledger.PaymentConfirmed, Means: ledger.ByMethod}, "payment_intent.processing"},
	{ledger.EventKind{Type: ledger.PaymentSucceeded, Means: ledger.ByMethod}, "payment_intent.succeeded"},
	{ledger.EventKind{Type: ledger.PaymentFailed, Means: ledger.ByMethod}, "payment_intent.payment_failed"},
	{ledger.EventKind{Type: ledger.PaymentCanceled, Means: ledger.ByMethod}, "payment_intent.canceled"},
	{ledger.EventKind{Type: ledger.RefundCreated}, "refund.created"},
	{ledger.EventKind{Type: ledger.RefundSucceeded}, "refund.updated"},
	{ledger.EventKind{Type: ledger.RefundFailed}, "refund.failed"},
}

// stripeTypesMax types a list may be asked for: Stripe's own bound.
const stripeTypesMax = 20

var eventListRules = listRules(stripeRules{"type": takes, "types": takesIn,
	"delivery_success": cannot("deliveries of webhooks are listed at /api/v1/webhooks/{id}/deliveries")})

func (s *Server) stripeListEvents(x *exchange, _ string) error {
	ps, err := x.params(eventListRules)
	if err != nil {
		return err
	}
	q, err := ps.page("event", func(id string) (string, bool) { own, ok := ledger.ParseEventID(id); return string(own), ok })
	if err != nil {
		return err
	}
	wanted, err := ps.eventTypes()
	if err != nil {
		return err
	}
	f := ledger.LatestFilter{Limit: q.limit, Older: ledger.EventID(q.older), Newer: ledger.EventID(q.newer), From: q.from, To: q.to}
	for _, k := range stripeKinds {
		if wanted == nil || slices.ContainsFunc(wanted, func(pattern string) bool { return tenants.MatchType(pattern, k.name) }) {
			f.Kinds = append(f.Kinds, k.kind)
		}
	}
	events, more, err := s.ledger.LatestEvents(x.r.Context(), x.caller.Tenant, f)
	if err != nil {
		return err
	}
	list := stripeList[*stripeEvent]{"list", make([]*stripeEvent, 0, len(events)), more, stripePath + "/events"}
	for i := range events {
		v, err := s.stripeEventOf(x, &events[i])
		if err != nil {
			return err
		}
		list.Data = append(list.Data, v)
	}
	return x.answer(http.StatusOK, list)
}

// eventTypes reads type or types[]: names such as charge.succeeded, and charge.*; nil: all.
func (ps stripeParams) eventTypes() (wanted []string, err error) {
	by := ""
	for i := range ps {
		p := &ps[i]
		refuse := func(code, message string) error {
			return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: code, Param: p.base, Message: message}
		}
		switch {
		case p.base != "type" && p.base != "types":
			continue
		case by != "" && by != p.base:
			return nil, refuse("parameters_exclusive", "You may only specify one of these parameters: type, types.")
		case p.text == "" || p.base == "types" && len(p.path) != 1:
			return nil, refuse("parameter_invalid", "Invalid "+p.base+": name types of events.")
		case len(wanted) == stripeTypesMax:
			return nil, refuse("parameter_invalid", "Invalid types: there are more than "+strconv.Itoa(stripeTypesMax)+".")
		}
		by, wanted = p.base, append(wanted, p.text)
	}
	return wanted, nil
}

func (s *Server) stripeGetEvent(x *exchange, id string) error {
	if _, err := x.params(readRules); err != nil {
		return err
	}
	e, err := s.ledger.Event(x.r.Context(), x.caller.Tenant, id)
	if err != nil {
		return orMissing(err, "event", "id", id)
	}
	v, err := s.stripeEventOf(x, &e)
	if err == nil && v.Type == "" { // one that Stripe has no name for
		err = errNotFound
	}
	if err != nil {
		return orMissing(err, "event", "id", id)
	}
	return x.answer(http.StatusOK, v)
}

// stripeEventOf is the view of an event; without a type, if Stripe has none for it.
func (s *Server) stripeEventOf(x *exchange, e *ledger.Event) (*stripeEvent, error) {
	v := &stripeEvent{ID: string(e.ID), Object: "event", Created: e.OccurredAt.Unix(), Livemode: true}
	if version := x.Header()["Stripe-Version"]; len(version) == 1 {
		v.APIVersion = &version[0]
	}
	means := ledger.Means("")
	switch {
	case strings.HasPrefix(string(e.Type), "payment."):
		p, err := s.ledger.Payment(x.r.Context(), x.caller.Tenant, e.Subject)
		if err != nil {
			return nil, err
		}
		paymentBehind(e, &p)
		if means = p.Means; means == ledger.ByMethod {
			v.Data.Object = intentOf(&p)
		} else {
			v.Data.Object = chargeOf(&p)
		}
	case strings.HasPrefix(string(e.Type), "refund."):
		r, err := s.ledger.Refund(x.r.Context(), x.caller.Tenant, e.Subject)
		if err != nil {
			return nil, err
		}
		refundBehind(e, &r)
		v.Data.Object = refundOf(&r)
	}
	for _, k := range stripeKinds {
		if k.kind.Type == e.Type && k.kind.Means == means {
			v.Type = k.name
		}
	}
	return v, nil
}

// paymentBehind puts a payment back to how it was behind an event. What an event does not tell never changes, but for what was given
// back, later than any of these. An event whose data were erased leaves the payment as it is now.
func paymentBehind(e *ledger.Event, p *ledger.Payment) {
	var was struct {
		Status    ledger.Status   `json:"status"`
		Failure   *ledger.Failure `json:"failure"`
		SettledAt *time.Time      `json:"settled_at"`
	}
	if json.Unmarshal(e.Data, &was) != nil || was.Status == "" {
		return
	}
	p.Status, p.Failure, p.SettledAt, p.AmountRefunded = was.Status, was.Failure, was.SettledAt, 0
}

// refundBehind is paymentBehind of a refund.
func refundBehind(e *ledger.Event, r *ledger.Refund) {
	var was struct {
		Status ledger.RefundStatus `json:"status"`
	}
	if json.Unmarshal(e.Data, &was) == nil && was.Status != "" {
		r.Status = was.Status
	}
}
