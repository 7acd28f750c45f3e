package ledger

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// errKeyExists says that the key's row was there already.
var errKeyExists = errors.New("idempotency key exists")

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
	if p.OrderID != "" {
		// The box keeps no orders yet, so that none exists.
		return Payment{}, false, invalid("order_unknown", "order_id", "no such order")
	}
	fingerprint := l.keys.fingerprintOf("payment", t, &p)
	if key != "" {
		// Looked up before the claim too: replays do not stand in each other's way.
		if p, found, err := l.known(ctx, t, key, fingerprint); found || err != nil {
			return p, found && err == nil, err
		}
		end, err := l.keys.begin(t, key)
		if err != nil {
			return Payment{}, false, err
		}
		defer end()
		if p, found, err := l.known(ctx, t, key, fingerprint); found || err != nil {
			return p, found && err == nil, err
		}
	}
	payment, err := l.accept(ctx, t, key, fingerprint, &p)
	if errors.Is(err, errKeyExists) {
		if p, found, ferr := l.known(ctx, t, key, fingerprint); found || ferr != nil {
			return p, found && ferr == nil, ferr
		}
	}
	if err != nil {
		return Payment{}, false, unavailable(err)
	}
	return payment, false, nil
}

// known returns the payment that the key was used for, if it was for this request.
func (l *Ledger) known(ctx context.Context, t tenants.ID, key IdempotencyKey, fingerprint []byte) (p Payment, found bool, err error) {
	rec, found, err := l.keys.find(ctx, t, key)
	switch {
	case err != nil:
		return Payment{}, false, unavailable(err)
	case !found:
		return Payment{}, false, nil
	case !bytes.Equal(rec.fingerprint, fingerprint):
		return Payment{}, true, errKeyMismatch
	}
	p, err = l.Payment(ctx, t, rec.record)
	return p, true, err
}

// accept writes the payment, its key and its journal row in one transaction.
func (l *Ledger) accept(ctx context.Context, t tenants.ID, key IdempotencyKey, fingerprint []byte, p *NewPayment) (Payment, error) {
	tenant, err := l.tenants.Get(t)
	if err != nil {
		return Payment{}, notFound("tenant")
	}
	now := l.clock.now()
	slot := l.slotFor(t, key, p)
	shard := l.set.Shard(slot)
	payment := Payment{ID: l.ids.payment(now, slot), Object: "payment", Amount: p.Amount, Currency: p.Currency,
		Status: Pending, Sync: Sync{State: Queued}, UserID: optional(p.UserID), Description: optional(p.Description),
		Metadata: map[string]string{}, CreatedAt: now}
	maps.Copy(payment.Metadata, p.Metadata)
	payment.TakenOffline = l.offline(&tenant)

	held, err := l.reserve(ctx, &tenant, &payment)
	if err != nil {
		return Payment{}, err
	}
	source, kind := p.Source, "source"
	if p.PaymentMethod != "" {
		source, kind = p.PaymentMethod, "payment_method"
	}
	sealed := l.keyring.Seal(sourceRecord(t, payment.ID), []byte(source))
	extras, err := encodeExtras(p)
	if err != nil {
		held.release()
		return Payment{}, err
	}
	created := l.paymentEvent(t, PaymentCreated, &payment, now)
	created.reserved = true
	var keyHash any
	if key != "" {
		keyHash = l.keys.upstreamHash(t, key)
	}
	generation := shard.Generation()

	err = shard.Update(ctx, func(tx *shards.Tx) error {
		if key != "" {
			n, err := tx.Exec(`INSERT INTO idempotency_keys (tenant, key, fingerprint, record, created_at) VALUES (?,?,?,?,?)
				ON CONFLICT DO NOTHING`, string(t), string(key), fingerprint, string(payment.ID), now.UnixMilli())
			if err != nil {
				return err
			}
			if n == 0 {
				return errKeyExists
			}
		}
		_, err := tx.Exec(`INSERT INTO payments (tenant, id, amount, currency, status, sync, user_id, source, key_hash, source_kind, has_extras, taken_offline, created_at)
			VALUES (?,?,?,?,'pending','queued',?,?,?,?,?,?,?)`,
			string(t), string(payment.ID), payment.Amount, payment.Currency, nullable(payment.UserID), sealed, keyHash, kind,
			boolInt(extras.any), boolInt(payment.TakenOffline), now.UnixMilli())
		if err != nil {
			return err
		}
		if extras.any {
			if _, err := tx.Exec(`INSERT INTO payment_extras (tenant, payment_id, description, metadata) VALUES (?,?,?,?)`,
				string(t), string(payment.ID), nullable(payment.Description), extras.metadata); err != nil {
				return err
			}
		}
		tx.Attach(created)
		return nil
	})
	unknown := errors.Is(err, shards.ErrUnknown)
	if key != "" && (err == nil || unknown) {
		l.keys.add(t, key, slot) // the index only says where to look
	}
	switch {
	case unknown:
		held.doubt(payment.ID, shard.ID(), generation)
	case err != nil:
		held.release()
	}
	return payment, err
}

// slotFor routes a new payment: to its user, else to its key, else anywhere.
func (l *Ledger) slotFor(t tenants.ID, key IdempotencyKey, p *NewPayment) shards.Slot {
	switch {
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
