package web

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// Reconciliations compares the ledger with the processor's lists.
type Reconciliations interface {
	Reconcile(ctx context.Context, t tenants.ID, from, to time.Time) (ledger.Reconciliation, error)
	Reconciliation(ctx context.Context, t tenants.ID, id string) (ledger.Reconciliation, error)
	Reconciliations(ctx context.Context, t tenants.ID, limit int, cursor string) (ledger.ReconciliationPage, error)
	Zone() *time.Location
}

const (
	reconciliationsPath = "/api/v1/reconciliations"

	// reconcileWait is how long the answer to a comparison may take: a little longer than the comparison itself, which ends it.
	reconcileWait = 6 * time.Minute
)

// newReconciliation is the body of POST /reconciliations.
type newReconciliation struct {
	From string `json:"from,omitempty" doc:"First instant (RFC 3339), or a date: its midnight in tz. Default: yesterday." example:"2026-11-23"`
	To   string `json:"to,omitempty" doc:"The instant after the last (RFC 3339), or a date, which is included. Default: the end of from's day." example:"2026-11-23"`
	TZ   string `json:"tz,omitempty" doc:"IANA time zone of dates. Default: the box's own, in which its days end." example:"Europe/Berlin"`
}

type reconciliationInput struct {
	request
	ID string `path:"id"`
}

type reconciliationsInput struct {
	request
	PageQuery
}

type reconciliationOutput struct{ Body ledger.Reconciliation }

// reconciledOutput is a new one.
type reconciledOutput struct {
	Location string `header:"Location"`
	Body     ledger.Reconciliation
}

type reconciliationsOutput struct{ Body page[ledger.Reconciliation] }

func (s *Server) registerReconciliations() {
	register(s, huma.Operation{
		OperationID: "reconcile", Method: http.MethodPost, Path: reconciliationsPath, Tags: []string{"reconciliation"},
		Summary: "Compare the ledger with the processor's lists",
		Description: "What was settled in the span, at most 31 days, is held against the processor's charges, payment intents and refunds. Differences are reported, and nothing is changed. The answer " +
			"may take minutes: a hundred objects there cost a request. A comparison that could not read everything is answered with status incomplete and the reason. " +
			"503 upstream_unreachable: the line is down, or the processor asked to wait; nothing was compared. 409: there is no processor, or this tenant's comparison is under way.",
		DefaultStatus: http.StatusCreated,
	}, forTenant, s.reconcile)
	documentBody[newReconciliation](s.api, http.MethodPost, reconciliationsPath)
	register(s, huma.Operation{
		OperationID: "get-reconciliation", Method: http.MethodGet, Path: reconciliationsPath + "/{id}", Tags: []string{"reconciliation"},
		Summary: "Read a comparison with its differences",
	}, forTenant, func(ctx context.Context, in *reconciliationInput) (*reconciliationOutput, error) {
		r, err := s.ledger.Reconciliation(ctx, in.x.caller.Tenant, in.ID)
		return &reconciliationOutput{r}, err
	})
	register(s, huma.Operation{
		OperationID: "list-reconciliations", Method: http.MethodGet, Path: reconciliationsPath, Tags: []string{"reconciliation"},
		Summary:     "List the last comparisons, newest first",
		Description: "The last 40 daily ones, and the last 40 that were asked for, without their differences.",
	}, forTenant, s.reconciliations)
}

func (s *Server) reconcile(ctx context.Context, in *bareInput) (*reconciledOutput, error) {
	var body newReconciliation
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	from, to, err := body.span(s.now(), s.ledger.Zone())
	if err != nil {
		return nil, err
	}
	done, ok := in.x.held.wait(&s.admission)
	if !ok {
		return nil, errOverloaded
	}
	defer done()
	in.x.mayTake(reconcileWait)
	r, err := s.ledger.Reconcile(ctx, in.x.caller.Tenant, from, to)
	return &reconciledOutput{reconciliationsPath + "/" + string(r.ID), r}, err
}

// span reads the half-open span of time, of which from is in the zone of its dates; zero times if nothing is named: the box's yesterday.
func (n *newReconciliation) span(now time.Time, zone *time.Location) (from, to time.Time, err error) {
	if *n == (newReconciliation{}) {
		return from, to, nil
	}
	if n.TZ != "" {
		if zone, err = zoneOf(n.TZ); err != nil {
			return from, to, asBody(err)
		}
	}
	if n.From == "" && n.To != "" {
		return from, to, problem(http.StatusUnprocessableEntity, "time_invalid", "from", "to is named, so from must be too")
	}
	if from, _, err = instants("from", n.From, ledger.DayOf(now.In(zone)).Add(-1), zone); err != nil {
		return from, to, asBody(err)
	}
	_, to, err = instants("to", n.To, ledger.DayOf(from.In(zone)), zone)
	return from.In(zone), to, asBody(err)
}

// asBody makes the refusal of a parameter that of a body's member.
func asBody(err error) error {
	var p *Problem
	if !errors.As(err, &p) {
		return err
	}
	return problem(http.StatusUnprocessableEntity, p.Code, p.Field, p.Detail)
}

func (s *Server) reconciliations(ctx context.Context, in *reconciliationsInput) (*reconciliationsOutput, error) {
	t := in.x.caller.Tenant
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	cursor, err := s.openCursor("reconciliations", t, in.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Reconciliations(ctx, t, limit, cursor)
	if err != nil {
		return nil, err
	}
	out := &reconciliationsOutput{page[ledger.Reconciliation]{found.Data, found.HasMore, s.sealCursor("reconciliations", t, found.NextCursor)}}
	if out.Body.Data == nil {
		out.Body.Data = []ledger.Reconciliation{}
	}
	return out, nil
}
