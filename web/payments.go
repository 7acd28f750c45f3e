package web

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/julienschmidt/httprouter"

	"tenderbox/ledger"
)

const (
	paymentsPath = "/api/v1/payments"

	// waitMax is the longest that a client may ask to wait for an outcome.
	waitMax = 30 * time.Second

	codeKeyInvalid = "idempotency_key_invalid"
)

// newPayment is the body of POST /payments. What is wrong with its values the ledger knows.
type newPayment struct {
	Amount        int64             `json:"amount" doc:"Minor units: cents, or yen, which have none." minimum:"1" example:"1999"`
	Currency      string            `json:"currency" doc:"ISO 4217." example:"usd"`
	Source        string            `json:"source,omitempty" doc:"A token of the processor. Exactly one of source and payment_method." example:"tok_visa"`
	PaymentMethod string            `json:"payment_method,omitempty" doc:"A payment method of the processor."`
	OrderID       string            `json:"order_id,omitempty" doc:"The order that this pays."`
	UserID        string            `json:"user_id,omitempty" doc:"An id of the app's own, known to the box or not."`
	Description   string            `json:"description,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty" doc:"At most 50 keys of 40 characters, values of 500."`
}

func (b *newPayment) request() ledger.NewPayment {
	return ledger.NewPayment{Amount: b.Amount, Currency: b.Currency, Source: b.Source, PaymentMethod: b.PaymentMethod,
		OrderID: b.OrderID, UserID: b.UserID, Description: b.Description, Metadata: b.Metadata}
}

type payInput struct {
	request
	IdempotencyKey string `header:"Idempotency-Key" doc:"Names this request: sent again with the same key, it is the same payment."`
	Prefer         string `header:"Prefer" doc:"wait=N answers as soon as the outcome is known, within N seconds (at most 30)." example:"wait=5"`
}

// payOutput describes the answer.
type payOutput struct {
	Location string `header:"Location"`
	Replayed string `header:"Idempotent-Replayed" doc:"true: the key had been used for this request before."`
	Applied  string `header:"Preference-Applied"`
	Body     ledger.Payment
}

type paymentInput struct {
	request
	ID string `path:"id"`
}

type paymentOutput struct{ Body ledger.Payment }

type paymentsInput struct {
	request
	PageQuery
	Status string `query:"status" doc:"pending, succeeded, failed, canceled or requires_confirmation."`
	Sync   string `query:"sync" doc:"queued, sending, in_doubt, settled or review."`
	UserID string `query:"user_id"`
	Order  string `query:"order_id"`
}

// page is how every list answers.
type page[T any] struct {
	Data       []T     `json:"data"`
	HasMore    bool    `json:"has_more"`
	NextCursor *string `json:"next_cursor"`
}

type paymentsOutput struct{ Body page[ledger.Payment] }

func (s *Server) registerPayments() {
	registerDirect[payInput, payOutput](s, huma.Operation{
		OperationID: "create-payment", Method: http.MethodPost, Path: paymentsPath, Tags: []string{"payments"},
		Summary:       "Take a payment",
		Description:   "Answered 201, it is on the box's disk and will be settled upstream exactly once, whether or not the line is up now.",
		DefaultStatus: http.StatusCreated,
	}, forTenant, s.pay)
	documentBody[newPayment](s.api, http.MethodPost, paymentsPath)
	register(s, huma.Operation{
		OperationID: "get-payment", Method: http.MethodGet, Path: paymentsPath + "/{id}", Tags: []string{"payments"},
		Summary: "Read a payment",
	}, forTenant, s.payment)
	register(s, huma.Operation{
		OperationID: "list-payments", Method: http.MethodGet, Path: paymentsPath, Tags: []string{"payments"},
		Summary: "List payments, newest first",
	}, forTenant, s.payments)
}

func (s *Server) pay(x *exchange, _ httprouter.Params) error {
	key, err := idempotencyKey(x.r.Header)
	if err != nil {
		return err
	}
	var body newPayment
	if err := x.decode(&body); err != nil {
		return err
	}
	ctx, t := x.r.Context(), x.caller.Tenant
	n, wait := body.request(), preferredWait(x.r.Header["Prefer"])
	n.Awaited = wait > 0
	p, replayed, err := s.ledger.Pay(ctx, t, key, n)
	if err != nil {
		return err
	}
	h := x.Header()
	h["Location"] = []string{paymentsPath + "/" + string(p.ID)}
	if replayed {
		h["Idempotent-Replayed"] = []string{"true"}
	}
	if wait > 0 && !p.Status.Final() {
		h["Preference-Applied"] = []string{"wait=" + strconv.Itoa(int(wait/time.Second))}
		if done, ok := x.held.wait(&s.admission); ok {
			defer done()
			x.mayTake(wait)
			// The payment is durable: if its outcome cannot be read now, what is known already is the answer.
			if settled, err := s.ledger.Await(ctx, t, p.ID, wait); err == nil {
				p = settled
			}
		}
	}
	buf := s.bodies.Get().(*[]byte)
	defer s.bodies.Put(buf)
	x.write(http.StatusCreated, p.AppendJSON((*buf)[:0]))
	return nil
}

// idempotencyKey reads the header: absent, or exactly one value that is a key.
func idempotencyKey(h http.Header) (ledger.IdempotencyKey, error) {
	values := h["Idempotency-Key"]
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return ledger.ParseIdempotencyKey(values[0])
	}
	return "", problem(http.StatusBadRequest, codeKeyInvalid, "Idempotency-Key", "may be given once")
}

// preferredWait reads wait=N out of Prefer headers (RFC 7240). A preference that makes no sense is ignored, as it
// asks; a longer wait than the box grants is shortened.
func preferredWait(values []string) time.Duration {
	for _, v := range values {
		for preference := range strings.SplitSeq(v, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				return 0
			}
			return min(time.Duration(seconds)*time.Second, waitMax)
		}
	}
	return 0
}

func (s *Server) payment(ctx context.Context, in *paymentInput) (*paymentOutput, error) {
	p, err := s.ledger.Payment(ctx, in.x.caller.Tenant, in.ID)
	if err != nil {
		return nil, err
	}
	return &paymentOutput{p}, nil
}

func (s *Server) payments(ctx context.Context, in *paymentsInput) (*paymentsOutput, error) {
	t := in.x.caller.Tenant
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	cursor, err := s.openCursor("payments", t, in.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Payments(ctx, t, ledger.Filter{Status: ledger.Status(in.Status), Sync: ledger.SyncState(in.Sync),
		UserID: in.UserID, Order: in.Order, Limit: limit, Cursor: cursor})
	if err != nil {
		return nil, err
	}
	out := &paymentsOutput{page[ledger.Payment]{found.Data, found.HasMore, s.sealCursor("payments", t, found.NextCursor)}}
	if out.Body.Data == nil {
		out.Body.Data = []ledger.Payment{}
	}
	return out, nil
}
