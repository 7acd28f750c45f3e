package web

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// Reviews is how people look into what was done for a payment, and decide where the box must not.
type Reviews interface {
	Attempts(ctx context.Context, t tenants.ID, payment string) ([]ledger.Attempt, error)
	Resolve(ctx context.Context, t tenants.ID, payment string, v ledger.Verdict) (ledger.Payment, error)
	ResolveRefund(ctx context.Context, t tenants.ID, refund string, v ledger.Verdict) (ledger.Refund, error)
}

// stepView is a step that was taken for a payment or one of its refunds.
type stepView struct {
	N                 int        `json:"n" doc:"From 1, over all steps of the record."`
	Record            string     `json:"record" doc:"The payment, or one of its refunds."`
	Step              string     `json:"step" doc:"charge, create, confirm or refund: a send; poll or resolve: a look-up; verdict: a person's."`
	At                time.Time  `json:"at"`
	EndedAt           *time.Time `json:"ended_at" doc:"null: cut short, or still under way."`
	UpstreamKey       *string    `json:"upstream_key" doc:"The idempotency key towards the processor."`
	RequestHash       *string    `json:"request_hash" doc:"SHA-256 of the exact bytes, in hex."`
	Account           string     `json:"account"`
	MaybeSent         *bool      `json:"maybe_sent" doc:"Whether it may have reached the processor."`
	HTTPStatus        *int       `json:"http_status"`
	UpstreamRequestID *string    `json:"upstream_request_id"`
	Verdict           *string    `json:"verdict" doc:"succeeded, declined, retryable or unknown; found, absent, undecided or pending; or a person's."`
	Reason            *string    `json:"reason"`
	Evidence          rawValue   `json:"evidence" doc:"What proves the verdict; null: nothing was kept."`
}

func viewStep(a *ledger.Attempt) stepView {
	return stepView{a.N, a.Record, a.Step, a.At, a.EndedAt, a.UpstreamKey, a.RequestHash, a.Account, a.MaybeSent, a.HTTPStatus, a.RequestID,
		a.Verdict, a.Reason, rawValue(a.Evidence)}
}

type attemptsOutput struct {
	Body struct {
		Data []stepView `json:"data"`
	}
}

// newVerdict is the body of POST /payments/{id}/resolve.
type newVerdict struct {
	Verdict    string `json:"verdict" doc:"succeeded: the processor holds it; failed: it does not and never will; resend: it may be sent again, under a new key." example:"succeeded"`
	UpstreamID string `json:"upstream_id,omitempty" doc:"Of succeeded: the processor's object." example:"ch_1"`
	Reason     string `json:"reason" doc:"How that is known. Kept on record." example:"seen in the processor's dashboard"`
}

func (s *Server) registerReviews() {
	register(s, huma.Operation{
		OperationID: "list-attempts", Method: http.MethodGet, Path: paymentsPath + "/{id}/attempts", Tags: []string{"payments"},
		Summary:     "See every step that was taken for a payment, oldest first",
		Description: "Sends, look-ups and people's verdicts, of the payment and of its refunds, with what proves each.",
	}, forTenant, func(ctx context.Context, in *paymentInput) (*attemptsOutput, error) {
		steps, err := s.ledger.Attempts(ctx, in.x.caller.Tenant, in.ID)
		if err != nil {
			return nil, err
		}
		out := &attemptsOutput{}
		out.Body.Data = make([]stepView, 0, len(steps))
		for i := range steps {
			out.Body.Data = append(out.Body.Data, viewStep(&steps[i]))
		}
		return out, nil
	})
	resolve := func(id, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodPost, Path: path + "/{id}/resolve", Tags: []string{"operator"}, Summary: summary,
			Description: "The operator decides, naming the tenant, where the box could neither find nor rule out an effect. The verdict and its reason stay on record. 409 when it is not in review."}
	}
	register(s, resolve("resolve-payment", paymentsPath, "Decide about a payment in review"), operatorForTenant,
		func(ctx context.Context, in *paymentInput) (*paymentOutput, error) {
			v, err := in.verdict()
			if err != nil {
				return nil, err
			}
			p, err := s.ledger.Resolve(ctx, in.x.caller.Tenant, in.ID, v)
			return &paymentOutput{p}, err
		})
	documentBody[newVerdict](s.api, http.MethodPost, paymentsPath+"/{id}/resolve")
	register(s, resolve("resolve-refund", refundsPath, "Decide about a refund in review"), operatorForTenant,
		func(ctx context.Context, in *paymentInput) (*refundOutput, error) {
			v, err := in.verdict()
			if err != nil {
				return nil, err
			}
			r, err := s.ledger.ResolveRefund(ctx, in.x.caller.Tenant, in.ID, v)
			return &refundOutput{r}, err
		})
	documentBody[newVerdict](s.api, http.MethodPost, refundsPath+"/{id}/resolve")
}

// verdict reads what a person decided.
func (in *paymentInput) verdict() (ledger.Verdict, error) {
	var body newVerdict
	err := in.x.decode(&body)
	return ledger.Verdict(body), err
}
