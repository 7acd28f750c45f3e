package simulator

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

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

// Ledger returns a copy of what took effect. What was declined, is pending or failed did not.
func (s *Simulator) Ledger() Ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.now = s.o.Now()
	s.state.settle("")
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
		if r.Status != "succeeded" {
			continue
		}
		e := Effect{ID: r.ID, Amount: r.Amount, Currency: r.Currency, IdempotencyKey: r.key, Metadata: r.Metadata, Created: r.Created, Charge: r.Charge}
		if r.PaymentIntent != nil {
			e.PaymentIntent = *r.PaymentIntent
		}
		l.Refunds = append(l.Refunds, e)
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
	now     time.Time // of the request that is worked on

	settling Settling
	random   *rand.Rand
	opened   []*opened // in the order of their making

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

func newState(forget time.Duration, seed uint64) state {
	return state{
		random:  rand.New(rand.NewPCG(seed, 0x5e771e)),
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

// tookEffect reports whether money moved, or may yet, by a request under the key.
func (st *state) tookEffect(key string) bool {
	return slices.ContainsFunc(st.charges.items, func(c *Charge) bool { return c.key == key && c.Status != "failed" }) ||
		slices.ContainsFunc(st.refunds.items, func(r *Refund) bool { return r.key == key && r.Status != "failed" })
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

// ForgetAllKeys makes the processor forget every idempotency key, as one does that promised to keep them longer; those of
// requests that are being worked on too.
func (s *Simulator) ForgetAllKeys() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.forgetKeys()
}

func (st *state) forgetKeys() { st.keys, st.byAge = map[string]*keyed{}, nil }
