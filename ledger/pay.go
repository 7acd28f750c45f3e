package ledger

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// Pay accepts a payment: when it returns without error, the payment is on the
// disk and will be settled upstream exactly once. The same key and the same
// request return the same payment, as it is now, with replayed true.
//
// Errors are *[Error]. Of kind [Unavailable] the outcome may be unknown: the
// caller repeats the request with the same key.
func (l *Ledger) Pay(ctx context.Context, t tenants.ID, key IdempotencyKey, p NewPayment) (_ Payment, replayed bool, err error) {
	if err := p.validate(); err != nil {
		return Payment{}, false, err
	}
	return once(ctx, l, t, request[Payment]{key: key, meaning: p.meaning(),
		read: func(ctx context.Context, id string) (Payment, error) { return l.Payment(ctx, t, id) },
		make: func(ctx context.Context, seen lookup) (Payment, error) {
			return l.accept(ctx, t, key, seen, &p)
		}})
}

// meaning is for once.
func (p *NewPayment) meaning() []string {
	kind := surfaced("payment", p.Surface)
	if p.Unconfirmed {
		kind += ", unconfirmed"
	}
	m := []string{kind, strconv.FormatInt(p.Amount, 10), p.Currency, p.Source, p.PaymentMethod, p.OrderID, p.UserID, p.Description}
	for _, name := range slices.Sorted(maps.Keys(p.Metadata)) {
		m = append(m, name, p.Metadata[name])
	}
	return m
}

// surfaced makes a request's meaning that of its surface: the native one's stays what it
// always was, for stored keys hold it.
func surfaced(kind, surface string) string {
	if surface == "" {
		return kind
	}
	return kind + " by " + surface
}

// acceptance is a payment on its way into a shard: what beforeCommit stores of
// it, together with all others of the group, in one statement a table.
type acceptance struct {
	created *Event
	payment *Payment
	sealed  any // its source; nil for NULL: an unconfirmed one may have none yet
	extras  extras
	key     *keyRow // nil: none
	resolve int     // the column resolve_first
	seal    *seal   // of a payment that is sent at once; nil: the queue sends it
}

// accept writes the payment, its key and its journal row in one transaction.
func (l *Ledger) accept(ctx context.Context, t tenants.ID, key IdempotencyKey, seen lookup, p *NewPayment) (Payment, error) {
	tenant, err := l.tenants.Get(t)
	if err != nil {
		return Payment{}, notFound("tenant")
	}
	if p.OrderID != "" && p.UserID == "" { // the order's user pays, named or not
		o, err := l.Order(ctx, t, p.OrderID)
		if err != nil {
			return Payment{}, orderUnknown(err)
		}
		q := *p
		q.UserID, p = string(o.UserID), &q
	}
	now := l.clock.now()
	slot := l.slotFor(t, key, p)
	shard := l.set.Shard(slot)
	payment := Payment{ID: l.ids.payment(now, slot), Object: "payment", Amount: p.Amount, Currency: p.Currency,
		Status: Pending, Means: BySource, Sync: Sync{State: Queued}, OrderID: optional(p.OrderID), UserID: optional(p.UserID), Description: optional(p.Description),
		Metadata: map[string]string{}, CreatedAt: now}
	maps.Copy(payment.Metadata, p.Metadata)
	payment.TakenOffline = l.offline(&tenant)
	a := &acceptance{payment: &payment, key: newKeyRow(t, key, recordID(payment.ID), seen)}
	source := p.Source
	if p.PaymentMethod != "" || p.Unconfirmed {
		source, payment.Means = p.PaymentMethod, ByMethod
	}
	if source != "" {
		a.sealed = l.keyring.Seal(sourceRecord(t, payment.ID), []byte(source))
	}
	if a.extras, err = encodeExtras(p); err != nil {
		return Payment{}, err
	}
	var held reservation
	if p.Unconfirmed {
		payment.Status, payment.MethodMissing = RequiresConfirmation, source == "" // it is taken when it is confirmed, and counts from then on
	} else if held, err = l.reserve(ctx, &tenant, &payment); err != nil {
		return Payment{}, err
	}
	var d *directSend
	if p.Awaited && !p.Unconfirmed && l.resolveFirst(shard, key != "") == 0 {
		if d = l.directly(&tenant, key, &payment, source); d != nil {
			defer d.ended()
		}
	}
	a.created = l.paymentEvent(t, PaymentCreated, &payment, now)
	a.created.reserved, a.created.unexposed = !p.Unconfirmed, p.Unconfirmed
	generation := shard.Generation()

	err = shard.Update(ctx, func(tx *shards.Tx) error {
		if payment.OrderID != nil {
			if err := takeOrder(tx, t, &payment); err != nil {
				return err
			}
		}
		// An intent that is not confirmed is asked for when it is.
		a.resolve, a.seal = l.resolveFirst(shard, key != "" && !p.Unconfirmed), nil
		if d != nil && a.resolve == 0 {
			a.seal = d.seal
		}
		tx.Attach(a)
		return a.key.fits(tx)
	})
	l.keys.settled(a.key, err)
	switch {
	case p.Unconfirmed: // holds no room
	case errors.Is(err, shards.ErrUnknown):
		held.doubt(payment.ID, shard.ID(), generation)
	case err != nil:
		held.release()
	}
	if err == nil && a.seal != nil {
		payment.Sync.State, payment.Sync.Attempts, payment.Sync.FirstSentAt = Sending, 1, &a.seal.sentAt
		d.start()
	}
	return payment, err
}

var (
	insertPayments = newInsert(`INSERT OR FAIL INTO payments (tenant, id, amount, currency, status, sync, order_id, user_id, source, source_kind, has_extras, taken_offline, created_at, resolve_first)`,
		`(?,?,?,?,?,'queued',?,?,?,?,?,?,?,?)`)
	insertSent = newInsert(`INSERT OR FAIL INTO payments (tenant, id, amount, currency, status, sync, order_id, user_id, source, source_kind, has_extras, taken_offline, created_at, resolve_first,
		attempts, first_sent_at, account)`, `(?,?,?,?,?,'sending',?,?,?,?,?,?,?,?,?,?,?)`)
	insertKeys   = newInsert(`INSERT OR FAIL INTO idempotency_keys (tenant, record, key, fingerprint)`, `(?,?,?,?)`)
	insertExtras = newInsert(`INSERT OR FAIL INTO payment_extras (tenant, payment_id, description, metadata)`, `(?,?,?,?)`)
)

// write stores the group's new payments and keys.
func (g *group) write(tx *shards.Tx) error {
	err := insertPayments.exec(tx, len(g.accepted), func(args []any, i int) []any { return g.accepted[i].columns(args) })
	if err != nil {
		return err
	}
	err = insertSent.exec(tx, len(g.sent), func(args []any, i int) []any {
		a := g.sent[i]
		return append(a.columns(args), a.seal.send.n, a.seal.sentAt.UnixMilli(), a.seal.account)
	})
	if err != nil {
		return err
	}
	err = insertKeys.exec(tx, len(g.keys), func(args []any, i int) []any {
		k := g.keys[i]
		return append(args, string(k.tenant), string(k.record), string(k.key), k.fingerprint)
	})
	if err != nil {
		return err
	}
	return insertExtras.exec(tx, len(g.rich), func(args []any, i int) []any {
		a := g.rich[i]
		return append(args, string(a.created.Tenant), string(a.payment.ID), nullable(a.payment.Description), a.extras.metadata)
	})
}

// columns are the values of insertPayments.
func (a *acceptance) columns(args []any) []any {
	p := a.payment
	return append(args, string(a.created.Tenant), string(p.ID), p.Amount, p.Currency, string(p.Status), nullable(p.OrderID), nullable(p.UserID), a.sealed, string(p.Means),
		boolInt(a.extras.any), boolInt(p.TakenOffline), p.CreatedAt.UnixMilli(), a.resolve)
}

// slotFor routes a new payment: to its order, which is with its user, else to its user, else to its key, else anywhere.
func (l *Ledger) slotFor(t tenants.ID, key IdempotencyKey, p *NewPayment) shards.Slot {
	switch {
	case p.OrderID != "":
		slot, _ := OrderID(p.OrderID).slot()
		return slot
	case p.UserID != "":
		return shards.SlotOf(string(t), p.UserID)
	case key != "":
		return l.keys.slot(t, key)
	}
	return l.ids.randomSlot()
}

// offline reports whether the tenant's line is down at this moment, as far as the judge knows.
func (l *Ledger) offline(tenant *tenants.Tenant) bool {
	acc := l.account(tenant)
	if acc == nil {
		return true
	}
	switch acc.Link().State {
	case upstream.Online, upstream.Degraded:
		return false
	}
	return true
}

// reserve checks the tenant's offline policy, if the line is down, and makes room.
func (l *Ledger) reserve(ctx context.Context, tenant *tenants.Tenant, p *Payment) (reservation, error) {
	limits := tenant.Offline
	if !p.TakenOffline {
		limits = nil
	}
	if limits != nil && l.uncounted() {
		return reservation{}, shards.ErrUnavailable // a limit cannot be held against an unknown sum
	}
	var oldest time.Duration
	if limits[p.Currency].MaxAgeH > 0 {
		at, found, err := l.oldestOpen(ctx, tenant.ID)
		if err != nil {
			return reservation{}, err
		}
		if found {
			oldest = l.clock.notBefore().Sub(at)
		}
	}
	return l.exposure.reserve(tenant.ID, Money{p.Amount, p.Currency}, limits, oldest)
}

type extras struct {
	any      bool
	metadata any // JSON text, or nil for NULL
}

func encodeExtras(p *NewPayment) (extras, error) {
	x := extras{any: p.Description != "" || len(p.Metadata) > 0}
	if len(p.Metadata) > 0 {
		b, err := json.Marshal(p.Metadata, json.Deterministic(true))
		if err != nil {
			return x, err
		}
		x.metadata = string(b)
	}
	return x, nil
}

// sourceRecord binds a sealed source to its row: moved to another, it does not open.
func sourceRecord(t tenants.ID, id PaymentID) string {
	return "payments/" + string(t) + "/" + string(id) + "/source"
}

func nullable(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

func boolInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
