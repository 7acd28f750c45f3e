package ledger

import (
	"context"
	"sync"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// waiters are callers that wait for what happens to a record, or to a tenant.
type waiters[K comparable] struct {
	mu sync.Mutex // guards by
	by map[K]map[poke]struct{}
}

func newWaiters[K comparable]() *waiters[K] { return &waiters[K]{by: map[K]map[poke]struct{}{}} }

func (w *waiters[K]) join(k K) (p poke, leave func()) {
	p = newPoke()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[k] == nil {
		w.by[k] = map[poke]struct{}{}
	}
	w.by[k][p] = struct{}{}
	return p, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.by[k], p); len(w.by[k]) == 0 {
			delete(w.by, k)
		}
	}
}

// none reports whether nobody waits at all.
func (w *waiters[K]) none() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.by) == 0
}

func (w *waiters[K]) wake(k K) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.by[k] {
		p.wake()
	}
}

func (w *waiters[K]) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ps := range w.by {
		for p := range ps {
			p.wake()
		}
	}
}

// Await returns the payment as soon as its outcome is known, at once when nothing
// can be sent (the line is down) or is to be (it is not confirmed), and after d as it then is.
func (l *Ledger) Await(ctx context.Context, t tenants.ID, id PaymentID, d time.Duration) (p Payment, err error) {
	slot, ok := id.slot()
	if !ok {
		return Payment{}, notFound("payment")
	}
	deadline := time.Now().Add(d)
	if p, settled := l.direct.await(ctx, t, id, d); settled {
		return p, nil
	}
	news, leave := l.waiters.join(id)
	defer leave()
	err = l.await(ctx, t, slot, string(id), news, time.Until(deadline), func() (open bool, err error) {
		p, err = l.Payment(ctx, t, string(id))
		return p.Status == Pending && p.Sync.State != Review, err
	})
	return p, err
}

// await looks at a record, again with each news of it, while it is open: being settled.
func (l *Ledger) await(ctx context.Context, t tenants.ID, slot shards.Slot, id string, news poke, d time.Duration, look func() (open bool, err error)) error {
	deadline := time.Now().Add(d)
	l.partOf(slot).hurry.wake()
	for {
		if open, err := look(); err != nil || !open {
			return err
		}
		left := time.Until(deadline)
		_, onWire := l.onWire.Load(id)
		if left <= 0 || (!onWire && !l.ready(string(t))) {
			return nil
		}
		if err := news.wait(ctx, left); err != nil {
			return nil // the caller has gone; what it would have read stands
		}
	}
}
