package simulator

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
)

// Charge is a charge as the ledger and the API show it.
type Charge struct {
	ID             string            `json:"id"`
	Object         string            `json:"object"`
	Amount         int64             `json:"amount"`
	AmountRefunded int64             `json:"amount_refunded"`
	Captured       bool              `json:"captured"`
	Created        int64             `json:"created"`
	Currency       string            `json:"currency"`
	Description    *string           `json:"description"`
	FailureCode    *string           `json:"failure_code"`
	FailureMessage *string           `json:"failure_message"`
	Livemode       bool              `json:"livemode"`
	Metadata       map[string]string `json:"metadata"`
	Paid           bool              `json:"paid"`
	PaymentIntent  *string           `json:"payment_intent"`
	Refunded       bool              `json:"refunded"`
	Status         string            `json:"status"`

	key string // the idempotency key it was made under
}

// Intent is a payment intent.
type Intent struct {
	ID             string            `json:"id"`
	Object         string            `json:"object"`
	Amount         int64             `json:"amount"`
	AmountReceived int64             `json:"amount_received"`
	Created        int64             `json:"created"`
	Currency       string            `json:"currency"`
	Description    *string           `json:"description"`
	LatestCharge   *string           `json:"latest_charge"`
	Livemode       bool              `json:"livemode"`
	Metadata       map[string]string `json:"metadata"`
	PaymentMethod  *string           `json:"payment_method"`
	Status         string            `json:"status"`
}

// Refund is a refund.
type Refund struct {
	ID            string            `json:"id"`
	Object        string            `json:"object"`
	Amount        int64             `json:"amount"`
	Charge        string            `json:"charge"`
	Created       int64             `json:"created"`
	Currency      string            `json:"currency"`
	Metadata      map[string]string `json:"metadata"`
	PaymentIntent *string           `json:"payment_intent"`
	Status        string            `json:"status"`

	key string
}

// Effect is one line of the ledger: money that moved.
type Effect struct {
	ID             string            `json:"id"`
	Amount         int64             `json:"amount"`
	Currency       string            `json:"currency"`
	IdempotencyKey string            `json:"idempotency_key"`
	Metadata       map[string]string `json:"metadata"`
	Created        int64             `json:"created"`
	PaymentIntent  string            `json:"payment_intent,omitempty"`
	Charge         string            `json:"charge,omitempty"` // of a refund
}

// Ledger is all money that moved, in order.
type Ledger struct {
	Charges []Effect `json:"charges"`
	Refunds []Effect `json:"refunds"`
}

// Ledger returns a copy of what took effect. A charge that was declined did not.
func (s *Simulator) Ledger() Ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := Ledger{Charges: []Effect{}, Refunds: []Effect{}}
	for _, c := range s.state.charges.items {
		if c.Status == "succeeded" {
			e := Effect{ID: c.ID, Amount: c.Amount, Currency: c.Currency, IdempotencyKey: c.key, Metadata: c.Metadata, Created: c.Created}
			if c.PaymentIntent != nil {
				e.PaymentIntent = *c.PaymentIntent
			}
			l.Charges = append(l.Charges, e)
		}
	}
	for _, r := range s.state.refunds.items {
		l.Refunds = append(l.Refunds, Effect{ID: r.ID, Amount: r.Amount, Currency: r.Currency, IdempotencyKey: r.key,
			Metadata: r.Metadata, Created: r.Created, Charge: r.Charge})
	}
	return l
}

// collection keeps objects in the order of their making.
type collection[T any] struct {
	items []*T
	index map[string]int // by id
}

func newCollection[T any]() collection[T] { return collection[T]{index: map[string]int{}} }

func (c *collection[T]) add(id string, v *T) {
	c.index[id] = len(c.items)
	c.items = append(c.items, v)
}

func (c *collection[T]) get(id string) *T {
	i, ok := c.index[id]
	if !ok {
		return nil
	}
	return c.items[i]
}

// state is what the processor remembers, guarded by Simulator.mu.
type state struct {
	charges collection[Charge]
	intents collection[Intent]
	refunds collection[Refund]
	serial  int64

	keys   map[string]*keyed
	byAge  []aged // of keys, oldest first
	forget time.Duration
}

type aged struct {
	key  string
	made time.Time
}

// keyed is what an idempotency key remembers. Metadata maps are never changed after they were stored.
type keyed struct {
	print  [sha256.Size]byte // of method, path and parameters
	made   time.Time
	done   bool // false: being worked on
	status int
	body   []byte
}

func newState(forget time.Duration) state {
	return state{
		charges: newCollection[Charge](), intents: newCollection[Intent](), refunds: newCollection[Refund](),
		keys: map[string]*keyed{}, forget: forget,
	}
}

// id makes a new id. Ids are numbered, so that a seed and an order of requests give the same ones.
func (st *state) id(prefix string) string {
	st.serial++
	return fmt.Sprintf("%s_sim%016d", prefix, st.serial)
}

// expire forgets old keys; one that is being worked on, and what is younger, has to wait.
func (st *state) expire(now time.Time) {
	if st.forget <= 0 {
		return
	}
	for len(st.byAge) > 0 && now.Sub(st.byAge[0].made) >= st.forget {
		a := st.byAge[0]
		if k := st.keys[a.key]; k != nil && k.made.Equal(a.made) {
			if !k.done {
				return
			}
			delete(st.keys, a.key)
		}
		st.byAge = st.byAge[1:]
	}
}

// claim is the answer to "may I work on this request?".
type claim int

const (
	claimed  claim = iota
	replay         // the stored answer is to be given
	mismatch       // the key was used with other parameters
	inUse          // the key's first request is being worked on
)

func (st *state) claim(key string, print [sha256.Size]byte, now time.Time) (claim, *keyed) {
	st.expire(now)
	k := st.keys[key]
	switch {
	case k == nil:
		k = &keyed{print: print, made: now}
		st.keys[key] = k
		if st.forget > 0 {
			st.byAge = append(st.byAge, aged{key, now})
		}
		return claimed, k
	case k.print != print:
		return mismatch, k
	case !k.done:
		return inUse, k
	}
	return replay, k
}

// unclaim forgets a key whose request was not worked on after all.
func (st *state) unclaim(key string, k *keyed) {
	if st.keys[key] == k {
		delete(st.keys, key)
	}
}

func (k *keyed) store(status int, body []byte) {
	k.done, k.status, k.body = true, status, bytes.Clone(body)
}

func fingerprint(parts ...string) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.Join(parts, "\n")))
}

// ForgetAllKeys makes the processor forget every idempotency key, as one does that promised to keep them longer.
func (s *Simulator) ForgetAllKeys() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.keys, s.state.byAge = map[string]*keyed{}, nil
}
