package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// retryPause is a client's pause after an answer that settles nothing.
	retryPause = 40 * time.Millisecond
	// answerTimeout is a patient client's; a hasty one's is a fraction of it.
	answerTimeout = 8 * time.Second
	hastyTimeout  = 25 * time.Millisecond
	// answerBytesMax bounds what is read of an answer.
	answerBytesMax = 1 << 20
)

// The habits of clients, as probabilities.
const (
	abandons    = 0.02 // gives up for good after an answer that settles nothing
	hasty       = 0.04 // hangs up almost at once
	doubles     = 0.04 // sends the same request twice at the same time
	repeats     = 0.10 // sends an acknowledged request again, at once
	remembers   = 0.10 // sends one of the past again, perhaps over a death of the box
	contradicts = 0.03 // sends another amount under an acknowledged key
	reads       = 0.10 // looks at the payment
	waits       = 0.10 // asks for the outcome with Prefer: wait
	declined    = 0.08 // holds a card that is declined
	refusals    = 0.02 // asks for nonsense
	methods     = 0.15 // pays by payment method instead of source
	anonymous   = 0.30 // names no user
)

var currencies = []string{"usd", "eur", "gbp", "jpy"}

// client pays until the round stops it, one payment after the other, and ends what it began.
type client struct {
	r      *round
	tenant string
	random *rand.Rand
	http   *http.Client
	past   []Ask // acknowledged
}

func (r *round) client(ctx context.Context, i int) {
	c := r.newClient(i)
	defer c.http.CloseIdleConnections()
	for n := 0; r.paying.Load(); n++ {
		// Tenants share keys letter by letter: clients 2k and 2k+1 count alike.
		c.one(ctx, c.ask(fmt.Sprintf("k%d-%d", i/2, n)))
		if err := pause(ctx, time.Duration(c.random.Int64N(int64(r.conditions.think)))); err != nil {
			return // the round was called off
		}
	}
}

func (r *round) newClient(i int) *client {
	return &client{
		r: r, tenant: []string{"default", secondTenant}[i%2], random: r.random(clientStream + uint64(i)),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}},
	}
}

func (c *client) hit(probability float64) bool { return c.random.Float64() < probability }

// ask makes up a payment.
func (c *client) ask(key string) Ask {
	a := Ask{
		Tenant: c.tenant, Key: key, Amount: 1 + c.random.Int64N(99_999), Currency: currencies[c.random.IntN(len(currencies))],
		Token: "tok_visa", Method: c.hit(methods), Declined: c.hit(declined), Refused: c.hit(refusals),
	}
	if a.Declined {
		a.Token = "tok_chargeDeclined"
	}
	if !c.hit(anonymous) {
		a.User = fmt.Sprintf("user-%d", c.random.IntN(40))
	}
	if a.Refused {
		a.Amount = -a.Amount
	}
	c.r.history.ask(a)
	return a
}

// one pays an Ask: again and again under the same key, until the box has said yes or a definite no.
func (c *client) one(ctx context.Context, a Ask) {
	end, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	var x Exchange
	for {
		if c.hit(doubles) {
			x = c.twice(end, a)
		} else {
			x = c.pay(end, a)
		}
		if x.Acknowledged() || x.Definite() {
			break
		}
		if c.hit(abandons) {
			return
		}
		if err := pause(end, retryPause); err != nil {
			if ctx.Err() == nil {
				c.r.history.problem("a client got no answer", fmt.Sprintf("%s within %s; last: %d %s %s", a.id(), graceMax, x.Status, x.Code, x.Error))
			}
			return
		}
	}
	if !x.Acknowledged() {
		return
	}
	c.past = append(c.past, a)
	if c.hit(repeats) {
		c.pay(end, a)
	}
	if c.hit(remembers) {
		c.pay(end, c.past[c.random.IntN(len(c.past))])
	}
	if c.hit(contradicts) {
		c.do(end, Contradict, a, http.MethodPost, "/api/v1/payments", body(a, a.Amount+1), "", answerTimeout)
	}
	if c.hit(reads) {
		c.do(end, Read, a, http.MethodGet, "/api/v1/payments/"+x.Payment.ID, nil, "", answerTimeout)
	}
}

// pay sends an Ask once.
func (c *client) pay(ctx context.Context, a Ask) Exchange {
	patience, prefer := answerTimeout, ""
	if c.hit(hasty) {
		patience = time.Duration(1 + c.random.Int64N(int64(hastyTimeout)))
	}
	if c.hit(waits) {
		prefer = "wait=1"
	}
	return c.do(ctx, Pay, a, http.MethodPost, "/api/v1/payments", body(a, a.Amount), prefer, patience)
}

// twice sends an Ask over two connections at once, and returns the answer that says more.
func (c *client) twice(ctx context.Context, a Ask) Exchange {
	var xs [2]Exchange
	var both errgroup.Group
	for i := range xs {
		both.Go(func() error {
			xs[i] = c.do(ctx, Pay, a, http.MethodPost, "/api/v1/payments", body(a, a.Amount), "", answerTimeout)
			return nil
		})
	}
	_ = both.Wait() // neither returns an error
	if xs[0].Acknowledged() {
		return xs[0]
	}
	return xs[1]
}

// do exchanges one request for an answer and puts both into the history.
func (c *client) do(ctx context.Context, act Act, a Ask, method, path string, content []byte, prefer string, patience time.Duration) Exchange {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	x := Exchange{Act: act, Tenant: a.Tenant, Key: a.Key, Sent: time.Now()}
	if err := c.exchange(ctx, &x, method, path, content, prefer); err != nil {
		x.Error, x.HungUp = err.Error(), errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	}
	x.Answered = time.Now()
	c.r.history.exchange(x)
	return x
}

func (c *client) exchange(ctx context.Context, x *Exchange, method, path string, content []byte, prefer string) error {
	request, err := http.NewRequestWithContext(ctx, method, c.r.box.url()+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+c.r.keys[x.Tenant])
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Idempotency-Key", x.Key)
	}
	if prefer != "" {
		request.Header.Set("Prefer", prefer)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	received, err := io.ReadAll(io.LimitReader(answer.Body, answerBytesMax))
	if err != nil {
		return err // a cut answer is none: the status of half an answer promises nothing
	}
	x.Status, x.Replayed = answer.StatusCode, answer.Header.Get("Idempotent-Replayed") == "true"
	if x.Status/100 != 2 {
		var problem struct{ Code string }
		_ = json.Unmarshal(received, &problem) // without a code the status must do
		x.Code = problem.Code
		return nil
	}
	var p Payment
	if err := json.Unmarshal(received, &p); err != nil {
		return err
	}
	x.Payment = &p
	return nil
}

// body is the request of an Ask: the same bytes each time.
func body(a Ask, amount int64) []byte {
	request := map[string]any{"amount": amount, "currency": a.Currency, "metadata": map[string]string{metadataKey: a.Key}}
	if a.Method {
		request["payment_method"] = a.Token
	} else {
		request["source"] = a.Token
	}
	if a.User != "" {
		request["user_id"] = a.User
	}
	content, err := json.Marshal(request) // of text and numbers
	if err != nil {
		panic(err)
	}
	return content
}

// repeatedMax is how many payments of each tenant are asked for once more at the end.
const repeatedMax = 100

// repeatOld sends acknowledged requests once more, after the round's last crash.
func (r *round) repeatOld(ctx context.Context, acknowledged []Ask) {
	for i := range 2 {
		c := r.newClient(i)
		defer c.http.CloseIdleConnections()
		left := repeatedMax
		for _, n := range c.random.Perm(len(acknowledged)) {
			if a := acknowledged[n]; a.Tenant == c.tenant && left > 0 {
				left--
				c.do(ctx, Pay, a, http.MethodPost, "/api/v1/payments", body(a, a.Amount), "", answerTimeout)
			}
		}
	}
}

// pause waits for d or the end of ctx, which it reports.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
