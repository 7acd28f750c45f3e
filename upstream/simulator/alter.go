package simulator

import (
	"errors"
	"fmt"
	"slices"
)

// Altered is what is wrong with an object from now on. What is left out stays as it is.
type Altered struct {
	Gone     bool   `json:"gone,omitempty"` // it was never there
	Amount   int64  `json:"amount,omitempty"`
	Currency string `json:"currency,omitempty"`
	Status   string `json:"status,omitempty"`
}

var errNoObject = errors.New("there is no charge, intent or refund of this id")

// Alter changes a charge, an intent or a refund by hand: for clients that hold their books against the processor's. Nothing
// else follows from it.
func (s *Simulator) Alter(id string, a Altered) error {
	if err := s.validateAltered(map[string]Altered{id: a}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.alter(id, a)
	return nil
}

func (s *Simulator) validateAltered(all map[string]Altered) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range all {
		if st := &s.state; st.charges.get(id) == nil && st.intents.get(id) == nil && st.refunds.get(id) == nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", id, errNoObject))
		}
	}
	return err
}

func (st *state) alter(id string, a Altered) {
	if a.Gone {
		st.charges.remove(id)
		st.intents.remove(id)
		st.refunds.remove(id)
	}
	if c := st.charges.get(id); c != nil {
		a.set(&c.Amount, &c.Currency, &c.Status)
	}
	if i := st.intents.get(id); i != nil {
		a.set(&i.Amount, &i.Currency, &i.Status)
		if i.Status == "succeeded" {
			i.AmountReceived = i.Amount
		}
	}
	if r := st.refunds.get(id); r != nil {
		a.set(&r.Amount, &r.Currency, &r.Status)
	}
}

func (a Altered) set(amount *int64, currency, status *string) {
	if a.Amount != 0 {
		*amount = a.Amount
	}
	if a.Currency != "" {
		*currency = a.Currency
	}
	if a.Status != "" {
		*status = a.Status
	}
}

// remove forgets an object; those behind it move up.
func (c *collection[T]) remove(id string) {
	at, ok := c.index[id]
	if !ok {
		return
	}
	c.items = slices.Delete(c.items, at, at+1)
	delete(c.index, id)
	for other, i := range c.index {
		if i > at {
			c.index[other] = i - 1
		}
	}
}
