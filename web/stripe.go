package web

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"time"

	"github.com/julienschmidt/httprouter"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// The Stripe-compatible surface: the same payments under /v1, in Stripe's shapes, so that a program that speaks
// to Stripe speaks to the box by another base URL. docs/STRIPE.md says what is served and what is refused. It is not in
// /openapi.json: its description is Stripe's own.
const (
	stripePath = "/v1"

	// stripeWait is how long an answer waits for the outcome while the line is up: longer than a processor takes, shorter than
	// any SDK waits (Stripe's give up after 80 s).
	stripeWait = 10 * time.Second

	// requestIDBytes of a base32 text: 80 bits, so that no two answers of a box have one.
	requestIDBytes = 16

	// stripeVersionMax bytes of a Stripe-Version are echoed: dates, with a name behind them.
	stripeVersionMax = 64
)

// Intents is what tenants do with payments that they made without confirming them.
type Intents interface {
	Confirm(ctx context.Context, t tenants.ID, key ledger.IdempotencyKey, id, method string) (p ledger.Payment, replayed bool, err error)
}

// isStripe reports whether a path is of the surface, whatever is there: its errors have Stripe's form.
func isStripe(path string) bool { return path == stripePath || strings.HasPrefix(path, stripePath+"/") }

// stripe adds a route of the surface. fn's errors are told in Stripe's form.
func (s *Server) stripe(method, path string, fn func(x *exchange, id string) error) {
	path = stripePath + path
	rt := s.metrics.route(method + " " + path)
	s.router.Handle(method, path, func(w http.ResponseWriter, _ *http.Request, ps httprouter.Params) {
		x := w.(*exchange)
		x.route, x.hasBody = rt, method == http.MethodPost
		if err := s.authenticate(x, forTenant); err != nil {
			x.refuse(s.fail(x, err))
			return
		}
		err := oneAccount(x.r.Header)
		if err == nil {
			err = fn(x, ps.ByName("id"))
		}
		if err != nil {
			x.stripeFailure(s.stripeErrorOf(x, err))
		}
	})
}

func (s *Server) registerStripe() {
	s.stripe(http.MethodPost, "/charges", s.stripeCreateCharge)
	s.stripe(http.MethodGet, "/charges", s.stripeListCharges)
	s.stripe(http.MethodGet, "/charges/:id", s.stripeGetCharge)
	s.stripe(http.MethodPost, "/payment_intents", s.stripeCreateIntent)
	s.stripe(http.MethodGet, "/payment_intents", s.stripeListIntents)
	s.stripe(http.MethodGet, "/payment_intents/:id", s.stripeGetIntent)
	s.stripe(http.MethodPost, "/payment_intents/:id/confirm", s.stripeConfirmIntent)
	s.stripe(http.MethodPost, "/payment_intents/:id/cancel", s.stripeCancelIntent)
	s.stripe(http.MethodPost, "/refunds", s.stripeCreateRefund)
	s.stripe(http.MethodGet, "/refunds", s.stripeListRefunds)
	s.stripe(http.MethodGet, "/refunds/:id", s.stripeGetRefund)
	s.stripe(http.MethodGet, "/events", s.stripeListEvents)
	s.stripe(http.MethodGet, "/events/:id", s.stripeGetEvent)
}

// oneAccount refuses what names another account than the key's: the money would go elsewhere than the client thinks.
func oneAccount(h http.Header) error {
	for _, name := range []string{"Stripe-Account", "Stripe-Context"} {
		if len(h[name]) > 0 {
			return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "account_invalid", Param: name,
				Message: "The box settles with the one account that its operator has set up; it cannot act for another with " + name + "."}
		}
	}
	return nil
}

// stripeHeaders sets what every answer of the surface carries.
func (x *exchange) stripeHeaders() {
	h := x.Header()
	h["Request-Id"] = []string{"req_" + rand.Text()[:requestIDBytes]}
	if v := x.r.Header["Stripe-Version"]; len(v) == 1 && len(v[0]) <= stripeVersionMax && printable(v[0]) {
		h["Stripe-Version"] = v
	}
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// stripeKey reads the idempotency key and echoes it, as Stripe does.
func (x *exchange) stripeKey() (ledger.IdempotencyKey, error) {
	key, err := idempotencyKey(x.r.Header)
	if err == nil && key != "" {
		x.Header()["Idempotency-Key"] = []string{string(key)}
	}
	return key, err
}

// replayed says whether the answer is of an earlier request.
func (x *exchange) replayed(is bool) {
	if is {
		x.Header()["Idempotent-Replayed"] = []string{"true"}
	}
}

// await swaps the request's place for one among those that wait, and waits for an outcome. Where there is no room to
// wait, and where the outcome cannot be read, what is known already is the answer: it is on the disk.
func (x *exchange) await(wait func(d time.Duration)) {
	done, ok := x.held.wait(&x.s.admission)
	if !ok {
		return
	}
	defer done()
	x.mayTake(stripeWait)
	wait(stripeWait)
}

// awaitPayment waits for the outcome of p.
func (x *exchange) awaitPayment(p ledger.Payment) ledger.Payment {
	if p.Status == ledger.Pending {
		x.await(func(d time.Duration) {
			if settled, err := x.s.ledger.Await(x.r.Context(), x.caller.Tenant, p.ID, d); err == nil {
				p = settled
			}
		})
	}
	return p
}

// payment reads the payment that an id of the surface stands for.
func (x *exchange) payment(id string, prefixes ...string) (ledger.Payment, error) {
	own, ok := paymentNamed(id, prefixes...)
	if !ok {
		return ledger.Payment{}, errNotFound
	}
	return x.s.ledger.Payment(x.r.Context(), x.caller.Tenant, own)
}

// paymentNamed is the payment's own id, given one of the surface that begins with one of the prefixes.
func paymentNamed(id string, prefixes ...string) (own string, ok bool) {
	for _, prefix := range prefixes {
		if ulid, found := strings.CutPrefix(id, prefix); found {
			own, ok := ledger.ParsePaymentID(paymentPrefix + ulid)
			return string(own), ok
		}
	}
	return "", false
}

// Ids of the surface are those of the ledger under Stripe's prefixes.
const (
	paymentPrefix = "pay_"
	chargePrefix  = "ch_"
	intentPrefix  = "pi_"
)

func chargeID(id ledger.PaymentID) string {
	return chargePrefix + strings.TrimPrefix(string(id), paymentPrefix)
}

func intentID(id ledger.PaymentID) string {
	return intentPrefix + strings.TrimPrefix(string(id), paymentPrefix)
}
