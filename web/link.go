package web

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// Links is what the operator does with the lines to the processors, for drills and in trouble. A tenant's account is meant, or ("") every account.
type Links interface {
	ForceLink(t tenants.ID, word string) error
	ForceBreaker(t tenants.ID, word string) error
}

const (
	linkPath    = "/api/v1/link"
	breakerPath = "/api/v1/breaker"
)

type linkInput struct {
	request
	Word string `path:"word" enum:"offline,auto" doc:"offline: by word; auto: as the judge finds it."`
}

type breakerInput struct {
	request
	Word string `path:"word" enum:"open,close"`
}

// lineOutput is how the line stands after the change.
type lineOutput struct {
	Body struct {
		Connectivity ledger.Connectivity `json:"connectivity"`
		Breaker      ledger.Breaker      `json:"breaker"`
	}
}

func (s *Server) registerLinks() {
	register(s, huma.Operation{
		OperationID: "force-link", Method: http.MethodPost, Path: linkPath + "/{word}", Tags: []string{"operator"},
		Summary: "Take the line away by word, or leave it to the judge again",
		Description: "For drills. While offline, payments are taken as offline ones, under the offline policy, and nothing but probes is sent. Of all accounts, or of the " +
			"one of the tenant that is named. It ends with a restart.",
	}, forAnyone, func(ctx context.Context, in *linkInput) (*lineOutput, error) {
		return s.forced(ctx, in.x, func(t tenants.ID) error { return s.ledger.ForceLink(t, in.Word) })
	})
	register(s, huma.Operation{
		OperationID: "force-breaker", Method: http.MethodPost, Path: breakerPath + "/{word}", Tags: []string{"operator"},
		Summary:     "Open the breaker until it is closed by word, or close it now",
		Description: "Closing forgets the failures that opened it. Of all accounts, or of the one of the tenant that is named. It ends with a restart.",
	}, forAnyone, func(ctx context.Context, in *breakerInput) (*lineOutput, error) {
		return s.forced(ctx, in.x, func(t tenants.ID) error { return s.ledger.ForceBreaker(t, in.Word) })
	})
}

// forced does what only the operator may, for all or for the tenant that is named.
func (s *Server) forced(ctx context.Context, x *exchange, do func(t tenants.ID) error) (*lineOutput, error) {
	if !x.caller.Operator {
		return nil, tenants.ErrOperatorOnly
	}
	if err := do(x.caller.Tenant); err != nil {
		return nil, err
	}
	now, err := s.ledger.Status(ctx, x.caller.Tenant)
	out := &lineOutput{}
	out.Body.Connectivity, out.Body.Breaker = now.Connectivity, now.Breaker
	return out, err
}
