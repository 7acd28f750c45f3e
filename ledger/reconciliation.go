package ledger

import (
	"cmp"
	"context"
	"fmt"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// ReconciliationID names a comparison with the processor's lists: "rec_" and a ULID with the slot in which its tenant's stand.
type ReconciliationID string

// ReconciliationStatus is what a comparison came to.
type ReconciliationStatus string

const (
	// Equal: everything was read, and the ledger and the processor's lists tell the same.
	Equal ReconciliationStatus = "equal"
	// Different: everything was read, and there are differences.
	Different ReconciliationStatus = "different"
	// Incomplete: not everything could be read. Nothing is said to be missing there; what differences there are stand.
	Incomplete ReconciliationStatus = "incomplete"
)

// DifferenceKind says in what the ledger and the processor differ about a record.
type DifferenceKind string

const (
	MissingHere   DifferenceKind = "missing_here"  // the processor holds an object of ours that the ledger does not know
	MissingThere  DifferenceKind = "missing_there" // the ledger has a success that the processor does not know
	OtherAmount   DifferenceKind = "amount"
	OtherCurrency DifferenceKind = "currency"
	OtherStatus   DifferenceKind = "status"
	RefundedThere DifferenceKind = "refunded"  // the processor gave money back that no refund of the ledger's did
	Duplicated    DifferenceKind = "duplicate" // another success for a record that has one
)

// Side is how one of the two shows a record.
type Side struct {
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
	Status   string `json:"status"` // in its own words
}

// Difference is one thing in which the ledger and the processor differ. It was looked at, and nothing was changed.
type Difference struct {
	Kind       DifferenceKind `json:"kind" enum:"missing_here,missing_there,amount,currency,status,refunded,duplicate"`
	PaymentID  *PaymentID     `json:"payment_id"`
	RefundID   *RefundID      `json:"refund_id"`
	UpstreamID *string        `json:"upstream_id" doc:"The processor's object."`
	Ours       *Side          `json:"ours" doc:"null: the ledger does not know it."`
	Theirs     *Side          `json:"theirs" doc:"null: the processor does not show it."`
}

// Reconciliation is a comparison of the ledger with the processor's lists over a span of time.
type Reconciliation struct {
	ID     ReconciliationID     `json:"id"`
	Object string               `json:"object"` // "reconciliation"
	Status ReconciliationStatus `json:"status" enum:"equal,different,incomplete"`
	Reason *string              `json:"reason" doc:"Why it is incomplete."`
	From   time.Time            `json:"from"`
	To     time.Time            `json:"to" doc:"The instant after the last."`
	Day    *string              `json:"day" doc:"The date that a daily one is about; null: it was asked for." example:"2026-11-23"`

	Account  string `json:"account" doc:"The account's name at the processor."`
	Payments int64  `json:"payments" doc:"Payments of the ledger that succeeded in the span and were looked for there."`
	Refunds  int64  `json:"refunds" doc:"Refunds likewise."`
	Objects  int64  `json:"objects" doc:"Objects there, made in the span, that bear a mark of this tenant's."`
	Foreign  int64  `json:"foreign" doc:"Objects there, made in the span, that bear no box's mark: other apps'."`
	Open     int64  `json:"open" doc:"Records that succeeded there and are still on their way here: compared when they are settled."`
	Another  int64  `json:"another_account" doc:"Of payments and refunds, those that were settled at another account: not compared."`

	Total       int64                    `json:"differences_total" doc:"May be more than are listed."`
	Kinds       map[DifferenceKind]int64 `json:"kinds" doc:"The total by kind."`
	Differences []Difference             `json:"differences,omitzero" doc:"The first 500. Left out of lists."`

	CreatedAt time.Time `json:"created_at"`
	EndedAt   time.Time `json:"ended_at"`
}

const (
	// differencesMax are kept of one comparison: a person reads so many, and then asks for a shorter span. Some 150 KiB.
	differencesMax = 500
	// reconciliationsKept of each of the two sorts (daily, asked for) are kept of a tenant: a month and a little more.
	reconciliationsKept = 40
	// reconciliationSpanMax days bound what is asked for at once. A shop closes its day, or its month.
	reconciliationSpanMax = 31
)

const (
	reconciliationPrefix = "rec_"
	// afterReconciliations sorts behind every id of theirs.
	afterReconciliations = "rec`"
)

// ParseReconciliationID accepts exactly the form in which ids are handed out.
func ParseReconciliationID(s string) (ReconciliationID, bool) {
	_, ok := parseID(reconciliationPrefix, s)
	return ReconciliationID(s), ok
}

// reconciliationSlot is where all of a tenant's comparisons stand.
func reconciliationSlot(t tenants.ID) shards.Slot { return shards.SlotOf(string(t), "reconciliations") }

// nameReconciliation gives the comparison its id. A day's is always the same: done again, it takes the place of the one before.
func (l *Ledger) nameReconciliation(t tenants.ID, r *Reconciliation) {
	slot := reconciliationSlot(t)
	u := l.ids.ulid(r.CreatedAt, slot)
	if r.Day != nil {
		u = namedULID(t, "reconciliation\x00"+*r.Day, r.To, slot)
	}
	r.ID = ReconciliationID(reconciliationPrefix + u.String())
}

// keepReconciliation stores the comparison and lets the oldest of its sort go. Nothing else is ever written about one.
func (l *Ledger) keepReconciliation(ctx context.Context, t tenants.ID, r *Reconciliation) error {
	differences, err := json.Marshal(r.Differences)
	if err != nil {
		return err
	}
	summary := *r
	summary.Differences = nil
	result, err := json.Marshal(summary, json.Deterministic(true))
	if err != nil {
		return err
	}
	err = l.set.Shard(reconciliationSlot(t)).Update(ctx, func(tx *shards.Tx) error {
		if _, err := tx.Exec(`DELETE FROM reconciliations WHERE tenant = ? AND id = ?`, string(t), string(r.ID)); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO reconciliations (tenant, id, day, result, differences) VALUES (?,?,?,?,?)`,
			string(t), string(r.ID), r.Day, string(result), string(differences)); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM reconciliations WHERE tenant = ? AND (day IS NULL) = ? AND id NOT IN
			(SELECT id FROM reconciliations WHERE tenant = ? AND (day IS NULL) = ? ORDER BY id DESC LIMIT ?)`,
			string(t), boolInt(r.Day == nil), string(t), boolInt(r.Day == nil), reconciliationsKept)
		return err
	})
	return unavailable(err)
}

// Reconciliation returns one of the tenant's comparisons with its differences. An unknown id, another tenant's and one that is no id at
// all give the same error.
func (l *Ledger) Reconciliation(ctx context.Context, t tenants.ID, id string) (r Reconciliation, err error) {
	rid, ok := ParseReconciliationID(id)
	if !ok {
		return r, notFound("reconciliation")
	}
	err = l.set.Shard(reconciliationSlot(t)).View(ctx, func(tx *shards.Tx) error {
		var result, differences string
		if err := tx.QueryRow(`SELECT result, differences FROM reconciliations WHERE tenant = ? AND id = ?`, string(t), string(rid)).Scan(&result, &differences); err != nil {
			return err
		}
		return cmp.Or(json.Unmarshal([]byte(result), &r), json.Unmarshal([]byte(differences), &r.Differences))
	})
	return r, found("reconciliation", err)
}

// ReconciliationPage is part of a list, newest first.
type ReconciliationPage struct {
	Data       []Reconciliation // without their differences
	HasMore    bool
	NextCursor string // "" when there is no more
}

// Reconciliations lists the tenant's last comparisons, newest first; a day's stands where the day ended.
func (l *Ledger) Reconciliations(ctx context.Context, t tenants.ID, limit int, cursor string) (page ReconciliationPage, err error) {
	if limit, err = pageLimit(limit); err != nil {
		return page, err
	}
	before, err := pageCursor(cursor, func(id string) bool { _, ok := ParseReconciliationID(id); return ok })
	if err != nil {
		return page, err
	}
	all, err := l.readReconciliations(ctx, t, cmp.Or(before, afterReconciliations), limit+1)
	if err != nil {
		return page, err
	}
	page.Data, page.NextCursor = cutPage(all, limit, func(r Reconciliation) string { return string(r.ID) })
	page.HasMore = page.NextCursor != ""
	return page, nil
}

// readReconciliations reads the tenant's last comparisons before an id, newest first, without their differences.
func (l *Ledger) readReconciliations(ctx context.Context, t tenants.ID, before string, limit int) (all []Reconciliation, err error) {
	err = l.set.Shard(reconciliationSlot(t)).View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(`SELECT result FROM reconciliations WHERE tenant = ? AND id < ? ORDER BY id DESC LIMIT ?`, string(t), before, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var result string
			if err := rows.Scan(&result); err != nil {
				return err
			}
			var r Reconciliation
			if err := json.Unmarshal([]byte(result), &r); err != nil {
				return fmt.Errorf("reconciliation: %w", err)
			}
			all = append(all, r)
		}
		return rows.Err()
	})
	return all, unavailable(err)
}
