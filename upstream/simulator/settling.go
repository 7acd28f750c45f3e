package simulator

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// opened is a charge or a refund whose end is not known yet.
type opened struct {
	ids   []string // what is asked for when it is asked for: a charge, and its intent
	since time.Time
	looks int
	fails bool
	end   func(refusal *failure)
}

// Settling says which charges, confirmations and refunds are pending first, and when these come to an end: once both the looks
// and the time are over. With both zero, the next request finds it ended.
type Settling struct {
	// Pending is the probability that what would succeed is pending first. Test tokens that end in "processing" are
	// always, those in "processingFail" too; refunds of what was charged on "pendingRefund" and "pendingRefundFail" likewise.
	Pending float64 `json:"pending"`
	// PendingFails is the probability that what is pending, and whose token does not say, ends in a failure.
	PendingFails float64 `json:"pending_fails"`
	// SettlePolls is how often it is asked for by its id before it ends; of an intent, its charge counts too.
	SettlePolls int `json:"settle_polls"`
	// SettleMS is how long it takes at least, by the simulator's clock.
	SettleMS int64 `json:"settle_ms"`
}

func (c Settling) validate() error {
	var problems []error
	for name, p := range map[string]float64{"pending": c.Pending, "pending_fails": c.PendingFails} {
		if !probability(p) {
			problems = append(problems, fmt.Errorf("%s: want a probability from 0 to 1", name))
		}
	}
	if c.SettlePolls < 0 || c.SettleMS < 0 {
		problems = append(problems, errors.New("settle_polls, settle_ms: must not be negative"))
	}
	return errors.Join(problems...)
}

// SetSettling replaces how pending things come to an end, those that are pending already too.
func (s *Simulator) SetSettling(c Settling) error {
	if err := c.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.control.Settling, s.state.settling = c, c
	return nil
}

// drawn draws from the settling's own stream, so that it does not move the faults' draws.
func (st *state) drawn(p float64) bool { return p > 0 && st.random.Float64() < p }

// open notes that what is known by the ids has not come to its end. end is called once, with the bank's refusal or nil.
func (st *state) open(token string, end func(refusal *failure), ids ...string) {
	o := &opened{ids: ids, since: st.now, end: end}
	switch nameOf(token) {
	case tokenProcessingFail, tokenPendingFail, tokenRefundFail:
		o.fails = true
	case tokenProcessing, tokenPendingRefund:
	default:
		o.fails = st.drawn(st.settling.PendingFails)
	}
	st.opened = append(st.opened, o)
}

// settle ends what is due. id is what is looked at by its id; "" for a look at anything else, which counts for nothing.
func (st *state) settle(id string) {
	open := st.opened[:0]
	for _, o := range st.opened {
		if o.looks < st.settling.SettlePolls || st.now.Sub(o.since) < time.Duration(st.settling.SettleMS)*time.Millisecond {
			if slices.Contains(o.ids, id) {
				o.looks++
			}
			open = append(open, o)
			continue
		}
		if !o.fails {
			o.end(nil)
			continue
		}
		f := declines["chargeDeclined"]
		f.Type = "card_error"
		o.end(&f)
	}
	clear(st.opened[len(open):])
	st.opened = open
}
