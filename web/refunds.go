package web

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

const refundsPath = "/api/v1/refunds"

// Refunds is how tenants give money back, or do not take it after all.
type Refunds interface {
	CreateRefund(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewRefund) (r ledger.Refund, replayed bool, err error)
	AwaitRefund(context.Context, tenants.ID, ledger.RefundID, time.Duration) (ledger.Refund, error)
	Refund(ctx context.Context, t tenants.ID, id string) (ledger.Refund, error)
	Refunds(context.Context, tenants.ID, ledger.RefundFilter) (ledger.RefundPage, error)
	Cancel(ctx context.Context, t tenants.ID, key ledger.IdempotencyKey, id string) (p ledger.Payment, replayed bool, err error)
}

// newRefund is the body of POST /payments/{id}/refunds.
type newRefund struct {
	Amount   refundAmount      `json:"amount,omitzero" doc:"Minor units. Left out: all that is not refunded yet." minimum:"1" example:"500"`
	Reason   string            `json:"reason,omitempty" doc:"duplicate, fraudulent or requested_by_customer."`
	Metadata map[string]string `json:"metadata,omitempty" doc:"At most 50 keys of 40 characters, values of 500."`
}

// refundAmount tells an amount that was left out, which is all that is left, from 0 and null, which are mistakes.
type refundAmount struct {
	value int64
	given bool
}

// UnmarshalJSONFrom is for the decoder.
func (a *refundAmount) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	a.given = true
	return json.UnmarshalDecode(dec, &a.value)
}

// Schema is for the description: a whole number.
func (refundAmount) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64"}
}

type refundInput struct {
	request
	ID             string `path:"id" doc:"The payment's."`
	IdempotencyKey string `header:"Idempotency-Key" doc:"Names this request: sent again with the same key, it is the same refund."`
	Prefer         string `header:"Prefer" doc:"wait=N answers as soon as the outcome is known, within N seconds (at most 30)." example:"wait=5"`
}

type cancelInput struct {
	request
	ID             string `path:"id"`
	IdempotencyKey string `header:"Idempotency-Key" doc:"Names this request. Canceling twice is fine without."`
}

type cancelOutput struct {
	Replayed string `header:"Idempotent-Replayed" doc:"true: the key had been used for this request before."`
	Body     ledger.Payment
}

// refundedOutput is a new refund.
type refundedOutput struct {
	Location string `header:"Location"`
	Replayed string `header:"Idempotent-Replayed" doc:"true: the key had been used for this request before."`
	Applied  string `header:"Preference-Applied"`
	Body     ledger.Refund
}

type refundsInput struct {
	request
	PageQuery
}

type refundsOfInput struct {
	request
	PageQuery
	ID string `path:"id" doc:"The payment's."`
}

type (
	refundOutput  struct{ Body ledger.Refund }
	refundsOutput struct{ Body page[ledger.Refund] }
)

func (s *Server) registerRefunds() {
	op := func(id, method, path, tag, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tag}}
	}
	ofPayment := paymentsPath + "/{id}/refunds"
	create := op("create-refund", http.MethodPost, ofPayment, "refunds", "Refund a payment, or a part of it")
	create.Description = "Answered 201, it is on the box's disk, its amount is set aside, and it will be settled upstream exactly once, whether or not the line is up now. " +
		"Never more than was paid: 422 refund_exceeds says what is left. All of a payment that provably was not sent yet: the payment is canceled, no money moves, and the " +
		"refund is done; of any other that is not settled: 409 payment_not_settled."
	create.DefaultStatus = http.StatusCreated
	register(s, create, forTenant, s.createRefund)
	documentBody[newRefund](s.api, http.MethodPost, ofPayment)
	register(s, op("list-payment-refunds", http.MethodGet, ofPayment, "refunds", "List a payment's refunds, newest first"), forTenant, s.refundsOf)
	register(s, op("list-refunds", http.MethodGet, refundsPath, "refunds", "List refunds, newest first"), forTenant,
		func(ctx context.Context, in *refundsInput) (*refundsOutput, error) {
			return s.refunds(ctx, in.x.caller.Tenant, "", &in.PageQuery)
		})
	register(s, op("get-refund", http.MethodGet, refundsPath+"/{id}", "refunds", "Read a refund"), forTenant,
		func(ctx context.Context, in *paymentInput) (*refundOutput, error) {
			r, err := s.ledger.Refund(ctx, in.x.caller.Tenant, in.ID)
			return &refundOutput{r}, err
		})
	cancel := op("cancel-payment", http.MethodPost, paymentsPath+"/{id}/cancel", "payments", "Give up a payment that was not sent yet")
	cancel.Description = "Only while it provably was not: 409 payment_sent otherwise, and it can be refunded once it is settled. Twice is fine."
	register(s, cancel, forTenant, s.cancelPayment)
}

func (s *Server) createRefund(ctx context.Context, in *refundInput) (*refundedOutput, error) {
	x, t := in.x, in.x.caller.Tenant
	key, err := idempotencyKey(x.r.Header)
	if err != nil {
		return nil, err
	}
	var body newRefund
	if err := x.decode(&body); err != nil {
		return nil, err
	}
	if body.Amount.given && body.Amount.value == 0 { // to the ledger it is all that is left
		return nil, problem(http.StatusUnprocessableEntity, "amount_invalid", "amount", "must be a whole number of minor units from 1; left out, it is all that is not refunded yet")
	}
	r, replayed, err := s.ledger.CreateRefund(ctx, t, key, ledger.NewRefund{PaymentID: in.ID, Amount: body.Amount.value, Reason: body.Reason, Metadata: body.Metadata})
	if err != nil {
		return nil, err
	}
	out := &refundedOutput{Location: refundsPath + "/" + string(r.ID), Replayed: replayedHeader(replayed), Body: r}
	if wait := preferredWait(x.r.Header["Prefer"]); wait > 0 && !r.Status.Final() {
		out.Applied = "wait=" + strconv.Itoa(int(wait/time.Second))
		if done, ok := x.held.wait(&s.admission); ok {
			defer done()
			x.mayTake(wait)
			// The refund is durable: if its outcome cannot be read now, what is known already is the answer.
			if settled, err := s.ledger.AwaitRefund(ctx, t, r.ID, wait); err == nil {
				out.Body = settled
			}
		}
	}
	return out, nil
}

func (s *Server) refundsOf(ctx context.Context, in *refundsOfInput) (*refundsOutput, error) {
	t := in.x.caller.Tenant
	if _, err := s.ledger.Payment(ctx, t, in.ID); err != nil {
		return nil, err
	}
	return s.refunds(ctx, t, in.ID, &in.PageQuery)
}

// refunds answers a page of a payment's refunds; of "" those of all.
func (s *Server) refunds(ctx context.Context, t tenants.ID, payment string, q *PageQuery) (*refundsOutput, error) {
	limit, err := q.limit()
	if err != nil {
		return nil, err
	}
	list := "refunds/" + payment
	cursor, err := s.openCursor(list, t, q.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Refunds(ctx, t, ledger.RefundFilter{PaymentID: payment, Limit: limit, Cursor: cursor})
	if err != nil {
		return nil, err
	}
	out := &refundsOutput{page[ledger.Refund]{found.Data, found.HasMore, s.sealCursor(list, t, found.NextCursor)}}
	if out.Body.Data == nil {
		out.Body.Data = []ledger.Refund{}
	}
	return out, nil
}

func (s *Server) cancelPayment(ctx context.Context, in *cancelInput) (*cancelOutput, error) {
	key, err := idempotencyKey(in.x.r.Header)
	if err != nil {
		return nil, err
	}
	p, replayed, err := s.ledger.Cancel(ctx, in.x.caller.Tenant, key, in.ID)
	return &cancelOutput{replayedHeader(replayed), p}, err
}
