package ledger

import (
	"context"
	"sync"
	"time"

	"tenderbox/tenants"
)

// waiters are callers that wait for the outcome of a payment.
type waiters struct {
	mu   sync.Mutex // guards byID
	byID map[PaymentID]map[poke]struct{}
}

func newWaiters() *waiters { return &waiters{byID: map[PaymentID]map[poke]struct{}{}} }

func (w *waiters) join(id PaymentID) (p poke, leave func()) {
	p = newPoke()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byID[id] == nil {
		w.byID[id] = map[poke]struct{}{}
	}
	w.byID[id][p] = struct{}{}
	return p, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.byID[id], p); len(w.byID[id]) == 0 {
			delete(w.byID, id)
		}
	}
}

func (w *waiters) wake(id PaymentID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.byID[id] {
		p.wake()
	}
}

func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ps := range w.byID {
		for p := range ps {
			p.wake()
		}
	}
}

// Await returns the payment as soon as its outcome is known, at once when
// nothing can be sent (the line is down), and after d as it then is.
func (l *Ledger) Await(ctx context.Context, t tenants.ID, id PaymentID, d time.Duration) (Payment, error) {
	if _, ok := id.slot(); !ok {
		return Payment{}, notFound("payment")
	}
	news, leave := l.waiters.join(id)
	defer leave()
	l.parts[l.shardOf(id).ID()].hurry.wake()
	deadline := time.Now().Add(d)
	for {
		p, err := l.Payment(ctx, t, string(id))
		if err != nil || p.Status.Final() || p.Sync.State == Review {
			return p, err
		}
		left := time.Until(deadline)
		_, onWire := l.onWire.Load(id)
		if left <= 0 || (!onWire && !l.ready(string(t))) {
			return p, nil
		}
		if err := news.wait(ctx, left); err != nil {
			return p, nil // the caller has gone; what it would have read stands
		}
	}
}
