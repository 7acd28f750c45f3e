package ledger

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// exposure knows at any moment how much money each tenant has taken that is not
// settled. What is stored is counted from the committed journal rows, so that it
// follows the shards exactly; what is on its way into a shard is reserved first,
// under the same lock, so that a limit holds however many ask at once.
type exposure struct {
	mu       sync.Mutex                // guards the rest
	total    map[exposureKey]Sum       // stored and reserved
	stored   []map[exposureKey]Sum     // by shard: pending rows
	unproven map[PaymentID]reservation // reserved, and the commit's outcome is not known
	counted  []uint64                  // by shard: generation of the file that stored was counted from
	due      []bool                    // by shard: stored could not be counted yet
}

type exposureKey struct {
	tenant   tenants.ID
	currency string
}

// Sum is a number of payments and what they add up to, in minor units.
type Sum struct {
	Count  int64 `json:"count"`
	Amount int64 `json:"amount"`
}

func (s Sum) plus(o Sum) Sum  { return Sum{s.Count + o.Count, s.Amount + o.Amount} }
func (s Sum) minus(o Sum) Sum { return Sum{s.Count - o.Count, s.Amount - o.Amount} }

func newExposure(shardCount int) *exposure {
	e := &exposure{total: map[exposureKey]Sum{}, unproven: map[PaymentID]reservation{}}
	for range shardCount {
		e.stored = append(e.stored, map[exposureKey]Sum{})
	}
	e.counted, e.due = make([]uint64, shardCount), slices.Repeat([]bool{true}, shardCount)
	return e
}

// rebuild takes what one shard holds from the shard itself: at start, and when
// the file was opened anew after an unknown outcome.
func (x *exposure) rebuild(ctx context.Context, sh *shards.Shard) error {
	now := map[exposureKey]Sum{}
	err := sh.View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT /* box */ tenant, currency, count(*), sum(amount)
			FROM payments INDEXED BY payments_open WHERE sync <> 'settled' AND status = 'pending' GROUP BY tenant, currency`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var t, c string
			var s Sum
			if err := rows.Scan(&t, &c, &s.Count, &s.Amount); err != nil {
				return err
			}
			now[exposureKey{tenants.ID(t), c}] = s
		}
		return rows.Err()
	})
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for k, s := range x.stored[sh.ID()] {
		x.add(k, Sum{}.minus(s))
	}
	for k, s := range now {
		x.add(k, s)
	}
	x.stored[sh.ID()], x.due[sh.ID()] = now, false
	return nil
}

// recountDue notes that a shard's sums could not be counted.
func (x *exposure) recountDue(shard int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.due[shard] = true
}

// isDue reports whether a shard's sums are still to be counted.
func (x *exposure) isDue(shard int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.due[shard]
}

func (x *exposure) add(k exposureKey, s Sum) {
	if s = x.total[k].plus(s); s == (Sum{}) {
		delete(x.total, k)
		return
	}
	x.total[k] = s
}

// committed follows the durable journal rows of a shard: a new payment's
// reservation becomes what is stored, a final one's room is free.
func (x *exposure) committed(shard int, events []*Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range events {
		k, s := exposureKey{e.Tenant, e.currency}, Sum{1, e.amount}
		if e.unexposed {
			continue
		}
		switch e.Type {
		case PaymentCreated, PaymentConfirmed:
			if !e.reserved {
				x.add(k, s)
			}
		case PaymentSucceeded, PaymentFailed, PaymentCanceled:
			s = Sum{}.minus(s)
			x.add(k, s)
		default:
			continue
		}
		if left := x.stored[shard][k].plus(s); left == (Sum{}) {
			delete(x.stored[shard], k)
		} else {
			x.stored[shard][k] = left
		}
	}
}

// recounted is committed for a group whose shard has just been rebuilt: its rows
// are counted, its reservations are not needed.
func (x *exposure) recounted(events []*Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range events {
		if e.reserved {
			x.add(exposureKey{e.Tenant, e.currency}, Sum{-1, -e.amount})
		}
	}
}

// reservation is room that a payment on its way into a shard takes up.
type reservation struct {
	x     *exposure
	key   exposureKey
	sum   Sum
	shard int // set by doubt
}

// reserve makes room for m, or says which limit forbids it. oldest is the age
// of the tenant's oldest unsettled payment; limits nil means that none apply.
func (x *exposure) reserve(t tenants.ID, m Money, limits map[string]tenants.OfflineLimit, oldest time.Duration) (reservation, error) {
	k := exposureKey{t, m.Currency}
	x.mu.Lock()
	defer x.mu.Unlock()
	if limits != nil {
		if err := within(limits, m, x.total[k], oldest); err != nil {
			return reservation{}, err
		}
	}
	r := reservation{x: x, key: k, sum: Sum{1, m.Amount}}
	x.add(k, r.sum)
	return r, nil
}

// release gives the room back: the payment was not stored.
func (r reservation) release() {
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	r.x.add(r.key, Sum{}.minus(r.sum))
}

// doubt keeps the room until it is known whether the payment was stored: until
// its shard's file, opened anew after the given generation, has been counted. That
// may have happened already.
func (r reservation) doubt(id PaymentID, shard int, generation uint64) {
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	if r.x.counted[shard] > generation {
		r.x.add(r.key, Sum{}.minus(r.sum))
		return
	}
	r.shard = shard
	r.x.unproven[id] = r
}

// settleDoubts releases the reservations of a shard that was opened anew: what
// they became has been counted with what it holds.
func (x *exposure) settleDoubts(shard int, generation uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.counted[shard] = generation
	for id, r := range x.unproven {
		if r.shard == shard {
			x.add(r.key, Sum{}.minus(r.sum))
			delete(x.unproven, id)
		}
	}
}

// of returns a tenant's sums by currency; of "" those of all tenants.
func (x *exposure) of(t tenants.ID) map[string]Sum {
	out := map[string]Sum{}
	x.mu.Lock()
	defer x.mu.Unlock()
	for k, s := range x.total {
		if t == "" || k.tenant == t {
			out[k.currency] = out[k.currency].plus(s)
		}
	}
	return out
}

// each returns the sums of a tenant, or ("") of all, by tenant and currency.
func (x *exposure) each(t tenants.ID) map[exposureKey]Sum {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[exposureKey]Sum{}
	for k, s := range x.total {
		if t == "" || k.tenant == t {
			out[k] = s
		}
	}
	return out
}

// within checks a payment taken offline against the tenant's limits. The
// error says which rule, what stands and what is allowed.
func within(limits map[string]tenants.OfflineLimit, m Money, has Sum, oldest time.Duration) error {
	refuse := func(rule string, stands, allowed int64, format string, args ...any) error {
		return &Error{Kind: Conflict, Code: "offline_limit", Message: "the line is down: " + fmt.Sprintf(format, args...),
			Rule: &BrokenRule{rule, stands, allowed}}
	}
	limit, ok := limits[m.Currency]
	hours := int64(oldest / time.Hour)
	switch {
	case !ok:
		return refuse("currency", m.Amount, 0, "payments in %s are not taken", m.Currency)
	case limit.MaxAmount > 0 && m.Amount > limit.MaxAmount:
		return refuse("max_amount", m.Amount, limit.MaxAmount, "max_amount is %d %s, this payment has %d", limit.MaxAmount, m.Currency, m.Amount)
	case limit.MaxTotal > 0 && has.Amount+m.Amount > limit.MaxTotal:
		return refuse("max_total", has.Amount, limit.MaxTotal, "max_total is %d %s, %d are outstanding and this payment has %d", limit.MaxTotal, m.Currency, has.Amount, m.Amount)
	case limit.MaxCount > 0 && has.Count+1 > limit.MaxCount:
		return refuse("max_count", has.Count, limit.MaxCount, "max_count is %d payments in %s, %d are outstanding", limit.MaxCount, m.Currency, has.Count)
	case limit.MaxAgeH > 0 && oldest > time.Duration(limit.MaxAgeH)*time.Hour:
		return refuse("max_age_h", hours, int64(limit.MaxAgeH), "max_age_h is %d, the oldest outstanding payment is %d hours old", limit.MaxAgeH, hours)
	}
	return nil
}
