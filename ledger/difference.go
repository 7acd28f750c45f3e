package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"tenderbox/shards"
	"tenderbox/upstream"
)

// reconcileBatch records are read in one snapshot.
const reconcileBatch = 500

// ours is a record of the ledger's, a payment or a refund, as far as it is compared.
type ours struct {
	Side
	id         string
	payment    PaymentID // of a refund, whose money it gives back
	upstreamID string
	path       string // where the processor's object is found
	account    string // it was settled at; "": it never was
	untouched  bool   // nothing has left the box for it, and nobody doubts that
	sync       SyncState
	settledAt  int64
}

// The columns of both are those of ours, in order. A refund is found where refunds are.
const (
	ourPayment = `id, id, amount, currency, status, coalesce(upstream_id, ''), iif(source_kind = 'payment_method', '` + upstream.PathIntents + `', '` + upstream.PathCharges + `'),
	coalesce(account, ''), attempts = 0 AND resolve_first = 0 AND upstream_id IS NULL, sync, coalesce(settled_at, 0) FROM payments`
	ourRefund = `id, payment_id, amount, currency, status, coalesce(upstream_id, ''), '` + upstream.PathRefunds + `',
	coalesce(account, ''), attempts = 0 AND resolve_first = 0 AND upstream_id IS NULL, sync, coalesce(settled_at, 0) FROM refunds`
)

func scanOurs(row scanner) (o ours, err error) {
	err = row.Scan(&o.id, &o.payment, &o.Amount, &o.Currency, &o.Status, &o.upstreamID, &o.path, &o.account, &o.untouched, &o.sync, &o.settledAt)
	return o, err
}

// judgeSeen compares each object that was made within the span with the record that it names.
func (c *comparison) judgeSeen(ctx context.Context) error {
	byShard := map[*shards.Shard][]string{}
	for _, id := range slices.Sorted(maps.Keys(c.records)) {
		pid, _ := ParsePaymentID(id)
		slot, ok := pid.slot()
		if !ok {
			slot, _ = RefundID(id).slot()
		}
		sh := c.set.Shard(slot)
		byShard[sh] = append(byShard[sh], id)
	}
	for _, sh := range c.set.All() {
		for batch := range slices.Chunk(byShard[sh], reconcileBatch) {
			known := map[string]*ours{}
			err := sh.View(ctx, func(tx *shards.Tx) error {
				for _, id := range batch {
					query := `SELECT ` + ourPayment + ` WHERE tenant = ? AND id = ?`
					if strings.HasPrefix(id, refundPrefix) {
						query = `SELECT ` + ourRefund + ` WHERE tenant = ? AND id = ?`
					}
					o, err := scanOurs(tx.QueryRow(query, string(c.t), id))
					if err == nil {
						known[id] = &o
					} else if !errors.Is(err, sql.ErrNoRows) {
						return err
					} else if err := c.leaveToOthers(tx, id); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, id := range batch {
				c.judge(id, known[id])
			}
		}
	}
	return nil
}

// Whether another tenant has a record. Not the registry but the books say who they are: a removed tenant's remain. Each is found by
// one step along the primary key.
const (
	othersPayment = `WITH RECURSIVE owners (tenant) AS (SELECT /* box */ min(tenant) FROM payments
	UNION ALL SELECT (SELECT min(p.tenant) FROM payments p WHERE p.tenant > owners.tenant) FROM owners WHERE owners.tenant IS NOT NULL)
	SELECT EXISTS (SELECT 1 FROM owners CROSS JOIN payments p ON p.tenant = owners.tenant AND p.id = ? WHERE owners.tenant <> ?)`
	othersRefund = `WITH RECURSIVE owners (tenant) AS (SELECT /* box */ min(tenant) FROM refunds
	UNION ALL SELECT (SELECT min(r.tenant) FROM refunds r WHERE r.tenant > owners.tenant) FROM owners WHERE owners.tenant IS NOT NULL)
	SELECT EXISTS (SELECT 1 FROM owners CROSS JOIN refunds r ON r.tenant = owners.tenant AND r.id = ? WHERE owners.tenant <> ?)`
)

// leaveToOthers forgets what was seen for a record that another tenant of the box has, or had: one that bears no tenant's mark, of the
// time when that tenant used the account.
func (c *comparison) leaveToOthers(tx *shards.Tx, id string) error {
	if !c.alone || c.records[id].marked {
		return nil
	}
	query := othersPayment
	if strings.HasPrefix(id, refundPrefix) {
		query = othersRefund
	}
	var others bool
	if err := tx.QueryRow(query, id, string(c.t)).Scan(&others); err != nil {
		return err
	}
	if others {
		c.records[id] = nil
	}
	return nil
}

// judge compares what was seen for a record with the record; nil: the tenant has none of that id.
func (c *comparison) judge(id string, o *ours) {
	taken := o != nil && o.Status == string(Succeeded)
	for s := c.records[id]; s != nil; s = s.next {
		if !s.inside || o == nil && !c.ours(s) {
			continue // the span beside this one tells it; or it is another's, of whom nothing is told
		}
		c.r.Objects++
		switch {
		case o == nil && s.moves():
			c.differ(MissingHere, id, s.pay, s.id, nil, &s.Side)
		case o == nil:
		case taken && s.id == o.upstreamID:
			c.compare(o, s.id, &s.Side)
		case !s.succeeded():
		case taken:
			c.differ(Duplicated, id, string(o.payment), s.id, &o.Side, &s.Side)
		case o.sync == Settled || o.sync == Review || o.untouched || o.Status == string(RequiresConfirmation):
			// Nobody comes to move it, or, where a box was put back, it is not certain that anything does: a look-up may stay undecided.
			c.differ(OtherStatus, id, string(o.payment), s.id, &o.Side, &s.Side)
			taken = true // any further is one too many
		default:
			c.r.Open++
			taken = true
		}
	}
}

// ours reports whether an object that names a record which the tenant does not have is the tenant's all the same. One that
// names no owner was made by a program of before they were named, or by a person: where several share the account nobody can say whose it is.
func (c *comparison) ours(s *theirs) bool {
	if s.marked {
		return s.owner == c.t
	}
	return c.alone
}

// compare holds one object against the record that was settled by it.
func (c *comparison) compare(o *ours, id string, their *Side) {
	switch {
	case their.Status != "succeeded":
		c.differ(OtherStatus, o.id, string(o.payment), id, &o.Side, their)
	case their.Currency != o.Currency:
		c.differ(OtherCurrency, o.id, string(o.payment), id, &o.Side, their)
	case their.Amount != o.Amount:
		c.differ(OtherAmount, o.id, string(o.payment), id, &o.Side, their)
	}
}

// differ notes a difference. record is a payment's or a refund's id, or a payment's that no refund of the ledger's belongs to.
func (c *comparison) differ(kind DifferenceKind, record, payment, upstreamID string, our, their *Side) {
	c.r.Total++
	c.r.Kinds[kind]++
	if len(c.r.Differences) >= differencesMax {
		return
	}
	d := Difference{Kind: kind}
	if pid, ok := ParsePaymentID(payment); ok {
		d.PaymentID = &pid
	}
	if rid, ok := ParseRefundID(record); ok {
		d.RefundID = &rid
	}
	if upstreamID != "" {
		d.UpstreamID = &upstreamID
	}
	for of, from := range map[**Side]*Side{&d.Ours: our, &d.Theirs: their} {
		if from != nil {
			side := *from
			*of = &side
		}
	}
	c.r.Differences = append(c.r.Differences, d)
}

// judgeSettled looks for everything that the ledger says has succeeded in the span, a page at a time. The lists were read whole.
func (c *comparison) judgeSettled(ctx context.Context) error {
	for _, q := range []struct {
		count *int64
		query string
	}{
		{&c.r.Payments, `SELECT ` + ourPayment + ` INDEXED BY payments_settled WHERE tenant = ? AND status = 'succeeded'
			AND (settled_at, id) > (?, ?) AND settled_at < ? ORDER BY settled_at, id LIMIT ?`},
		{&c.r.Refunds, `SELECT ` + ourRefund + ` INDEXED BY refunds_settled WHERE tenant = ? AND status = 'succeeded' AND NOT voids
			AND (settled_at, id) > (?, ?) AND settled_at < ? ORDER BY settled_at, id LIMIT ?`},
	} {
		for _, sh := range c.set.All() {
			after := ours{settledAt: c.r.From.UnixMilli()}
			for more := true; more; {
				page, err := c.pageOf(ctx, sh, q.query, after)
				if err != nil {
					return err
				}
				for i := range page {
					if err := c.find(ctx, &page[i], q.count); err != nil {
						return err
					}
					after = page[i]
				}
				more = len(page) == reconcileBatch
			}
		}
	}
	return nil
}

func (c *comparison) pageOf(ctx context.Context, sh *shards.Shard, query string, after ours) (page []ours, err error) {
	err = sh.View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(query, string(c.t), after.settledAt, after.id, c.r.To.UnixMilli(), reconcileBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			o, err := scanOurs(rows)
			if err != nil {
				return err
			}
			page = append(page, o)
		}
		return rows.Err()
	})
	return page, err
}

// find looks for the object by which the record was settled: among those that were seen, and else by its id. It may have been made
// days before the record was settled, so that a list of the span does not show it.
func (c *comparison) find(ctx context.Context, o *ours, count *int64) error {
	if o.account != "" && o.account != identity(c.acc) {
		c.r.Another++
		return nil
	}
	*count++
	for s := c.records[o.id]; s != nil; s = s.next {
		if s.id == o.upstreamID {
			if !s.inside { // else it was compared
				c.compare(o, s.id, &s.Side)
			}
			return nil
		}
	}
	object, there, err := c.look(ctx, o.path, o.upstreamID)
	switch {
	case err != nil:
		return err
	case !there:
		c.differ(MissingThere, o.id, string(o.payment), o.upstreamID, &o.Side, nil)
	default:
		c.compare(o, object.ID, &Side{object.Amount, object.Currency, object.Status})
	}
	return nil
}

// look asks for an object by its id. there is false if the processor says, in its own words, that it has none.
func (c *comparison) look(ctx context.Context, path, id string) (o upstream.Object, there bool, err error) {
	if c.looks++; c.looks > reconcileLooksMax {
		return o, false, &gap{fmt.Sprintf("more than %d objects that the lists do not show had to be asked for: ask for a shorter span", reconcileLooksMax)}
	}
	answer := c.acc.Look(ctx, path+"/"+url.PathEscape(id))
	switch {
	case answer.Object.ID == id:
		return answer.Object, true, nil
	case answer.Missing():
		return o, false, nil
	}
	return o, false, &gap{fmt.Sprintf("%s could not be asked for: %s", id, answer.Reason)}
}

// judgeLoose finds out whose money the refunds gave back that no refund of a box has made, as a person does at the processor's desk.
func (c *comparison) judgeLoose(ctx context.Context) error {
	for _, of := range slices.Sorted(maps.Keys(c.loose)) { // what was charged before the span
		object, there, err := c.look(ctx, c.loose[of][0].path, of)
		if err != nil {
			return err
		}
		payment := object.Metadata[markPayment]
		if _, ours := ParsePaymentID(payment); there && ours {
			c.assign(of, payment)
		} else {
			c.disown(of, false)
		}
	}
	slices.SortFunc(c.given, func(a, b givenBack) int { return cmp.Or(cmp.Compare(a.payment, b.payment), cmp.Compare(a.id, b.id)) })
	for i := range c.given {
		g := &c.given[i]
		_, err := c.Payment(ctx, c.t, g.payment)
		var refusal *Error
		if errors.As(err, &refusal) && refusal.Kind == NotFound {
			continue
		}
		if err != nil {
			return err
		}
		c.r.Objects++
		c.differ(RefundedThere, "", g.payment, g.id, nil, &g.Side)
	}
	return nil
}
