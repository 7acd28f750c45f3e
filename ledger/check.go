package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// Finding is something that is not as it must be.
type Finding struct {
	Where string // file or record
	What  string
}

func (f Finding) String() string { return f.Where + ": " + f.What }

// CheckOptions name the stores of a stopped box.
type CheckOptions struct {
	Dir     string // folder of the shard files; opened read-only
	Keyring *tenants.Keyring
	Tenants []tenants.Tenant
	Jobs    *jobs.Engine // on a copy of the queue's file, for Check reads it alone
}

// Check audits a stopped box: every shard file's integrity, every journal's
// chain and anchor, and what must hold between the tables and the queue. It
// writes nothing. An error means that it could not look; findings are no error.
func Check(ctx context.Context, o CheckOptions) ([]Finding, error) {
	set, err := shards.Audit(ctx, o.Dir, shards.Options{Migrations: migrations, ViewTimeout: -1})
	if err != nil {
		return nil, err
	}
	a := &audit{CheckOptions: o, set: set, known: map[string]bool{}, keys: map[[sha256.Size]byte]int{}}
	for _, t := range o.Tenants {
		a.known[string(t.ID)] = true
	}
	for _, sh := range set.All() {
		if err := a.shard(ctx, sh); err != nil {
			a.found(sh, "cannot be read: %v", err)
		}
	}
	return a.findings, set.Close()
}

type audit struct {
	CheckOptions
	set      *shards.Set
	known    map[string]bool           // tenants
	keys     map[[sha256.Size]byte]int // idempotency keys of all shards, and the shard of each
	findings []Finding
}

func (a *audit) found(sh *shards.Shard, format string, args ...any) {
	a.findings = append(a.findings, Finding{sh.Path(), fmt.Sprintf(format, args...)})
}

func (a *audit) shard(ctx context.Context, sh *shards.Shard) error {
	if err := sh.Err(); err != nil {
		return err
	}
	if err := sh.Check(ctx); err != nil {
		a.found(sh, "%v", err)
	}
	p := &part{shard: sh, journal: &journal{epoch: a.set.Manifest().Epoch}}
	var es []epoch
	err := sh.View(ctx, func(tx *shards.Tx) (err error) {
		es, err = readEpochs(tx)
		return err
	})
	if err != nil {
		return err
	}
	cursor, anchored, err := a.Jobs.Cursor(p.jobsSource())
	if last := epochBefore(es, p.journal.epoch); err == nil && !anchored && last > 0 { // no box has run in this epoch yet
		cursor, anchored, err = a.Jobs.Cursor(jobsSource(sh.ID(), last))
	}
	if err != nil {
		return err
	}
	if _, err := verifyJournal(ctx, sh, newChain(a.Keyring), head{}, head{cursor.Offset, cursor.Anchor}, nil); err != nil {
		if !errors.Is(err, ErrJournal) {
			return err
		}
		a.found(sh, "%v", err)
	}
	return sh.View(ctx, func(tx *shards.Tx) error {
		for _, r := range auditRules {
			if err := a.rule(tx, r); err != nil {
				return err
			}
		}
		return errors.Join(a.slots(tx), a.idempotency(tx), a.open(tx, cursor, anchored), a.bodies(tx))
	})
}

// provesSuccess holds for an attempt or finding t that shows the processor's object of the record p.
const provesSuccess = `json_extract(t.evidence, '$.status') = 'succeeded' AND json_extract(t.evidence, '$.id') = p.upstream_id
	AND json_extract(t.evidence, '$.amount') = p.amount AND json_extract(t.evidence, '$.currency') = p.currency`

// auditRules are queries that return a text for each record that breaks an
// invariant; none in a sound box.
var auditRules = []struct{ what, query string }{
	{"payment has no payment.created row in the journal, or one of another amount", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p
		LEFT JOIN (SELECT tenant, subject, json_extract(data, '$.amount') amount, json_extract(data, '$.currency') currency
			FROM journal WHERE type = 'payment.created' AND data IS NOT NULL) j
			ON j.tenant = p.tenant AND j.subject = p.id
		WHERE j.subject IS NULL OR j.amount <> p.amount OR j.currency <> p.currency`},
	{"journal tells of a payment that is not there", `/* box */
		SELECT j.tenant || ' ' || j.subject FROM journal j
		LEFT JOIN payments p ON p.tenant = j.tenant AND p.id = j.subject
		WHERE j.type LIKE 'payment.%' AND p.id IS NULL`},
	{"settled payment does not have exactly one final row in the journal", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p
		LEFT JOIN (SELECT tenant, subject, count(*) n, max(type) type FROM journal
			WHERE type IN ('payment.succeeded', 'payment.failed', 'payment.canceled') GROUP BY tenant, subject) j
			ON j.tenant = p.tenant AND j.subject = p.id
		WHERE p.sync = 'settled' AND (j.n IS NULL OR j.n <> 1 OR j.type <> 'payment.' || p.status)`},
	{"unsettled payment has a final row in the journal", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p
		JOIN (SELECT DISTINCT tenant, subject FROM journal WHERE type IN ('payment.succeeded', 'payment.failed', 'payment.canceled')) j
			ON j.tenant = p.tenant AND j.subject = p.id
		WHERE p.sync <> 'settled'`},
	{"payment was confirmed more than once, or is not confirmed though the journal says so", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p
		JOIN (SELECT tenant, subject, count(*) n FROM journal WHERE type = 'payment.confirmed' GROUP BY tenant, subject) j
			ON j.tenant = p.tenant AND j.subject = p.id
		WHERE j.n > 1 OR p.status = 'requires_confirmation'`},
	{"intent is being settled, or was, and nobody confirmed it", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p
		JOIN journal c ON c.tenant = p.tenant AND c.subject = p.id AND c.type = 'payment.created'
			AND c.data IS NOT NULL AND json_extract(c.data, '$.status') = 'requires_confirmation'
		LEFT JOIN (SELECT DISTINCT tenant, subject FROM journal WHERE type = 'payment.confirmed') j ON j.tenant = p.tenant AND j.subject = p.id
		WHERE p.status IN ('pending', 'succeeded', 'failed') AND j.subject IS NULL`},
	{"canceled payment was sent, or may have been", `/* box */
		SELECT tenant || ' ' || id FROM payments p WHERE status = 'canceled' AND (first_sent_at IS NOT NULL OR
			series = 1 AND EXISTS (SELECT 1 FROM attempts t WHERE t.tenant = p.tenant AND t.record = p.id
				AND t.step IS NOT 'create' AND t.outcome IS NOT 'retryable'))`},
	{"amount refunded differs from the refunds that have not failed", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p
		LEFT JOIN (SELECT tenant, payment_id, sum(amount) amount FROM refunds WHERE status <> 'failed' AND NOT voids GROUP BY tenant, payment_id) r
			ON r.tenant = p.tenant AND r.payment_id = p.id
		WHERE p.amount_refunded <> coalesce(r.amount, 0)`},
	{"refund of a payment that is not there, was not charged, or is in another currency", `/* box */
		SELECT r.tenant || ' ' || r.id FROM refunds r LEFT JOIN payments p ON p.tenant = r.tenant AND p.id = r.payment_id
		WHERE p.id IS NULL OR p.currency <> r.currency OR (NOT r.voids AND p.status <> 'succeeded')`},
	{"refund that canceled its payment is not all of it, or the payment is not canceled", `/* box */
		SELECT r.tenant || ' ' || r.id FROM refunds r JOIN payments p ON p.tenant = r.tenant AND p.id = r.payment_id
		WHERE r.voids AND (r.status <> 'succeeded' OR r.amount <> p.amount OR p.status <> 'canceled' OR r.upstream_id IS NOT NULL)`},
	{"refund has no refund.created row in the journal, or one of another amount", `/* box */
		SELECT r.tenant || ' ' || r.id FROM refunds r
		LEFT JOIN (SELECT tenant, subject, count(*) n, max(json_extract(data, '$.amount')) amount, max(json_extract(data, '$.currency')) currency
			FROM journal WHERE type = 'refund.created' GROUP BY tenant, subject) j
			ON j.tenant = r.tenant AND j.subject = r.id
		WHERE NOT r.voids AND (j.n IS NOT 1 OR j.amount <> r.amount OR j.currency <> r.currency)`},
	{"journal tells of a refund that is not there, or moved no money", `/* box */
		SELECT j.tenant || ' ' || j.subject FROM journal j LEFT JOIN refunds r ON r.tenant = j.tenant AND r.id = j.subject
		WHERE j.type LIKE 'refund.%' AND (r.id IS NULL OR r.voids)`},
	{"refund's end in the journal is not the one in its row", `/* box */
		SELECT r.tenant || ' ' || r.id FROM refunds r
		LEFT JOIN (SELECT tenant, subject, count(*) n, max(type) type FROM journal
			WHERE type IN ('refund.succeeded', 'refund.failed') GROUP BY tenant, subject) j
			ON j.tenant = r.tenant AND j.subject = r.id
		WHERE NOT r.voids AND (coalesce(j.n, 0) <> (r.sync = 'settled') OR j.type <> 'refund.' || r.status)`},
	{"refund has an upstream id that another one has", `/* box */
		SELECT tenant || ' ' || max(id) FROM refunds WHERE upstream_id IS NOT NULL GROUP BY tenant, upstream_id HAVING count(*) > 1`},
	{"success has no proof of the same amount and currency", `/* box */
		SELECT p.tenant || ' ' || p.id FROM (SELECT tenant, id, upstream_id, amount, currency FROM payments WHERE status = 'succeeded' UNION ALL
			SELECT tenant, id, upstream_id, amount, currency FROM refunds WHERE status = 'succeeded' AND NOT voids) p
		WHERE NOT EXISTS (SELECT 1 FROM attempts t WHERE t.tenant = p.tenant AND t.record = p.id AND t.outcome = 'succeeded' AND ` + provesSuccess + `)
		AND NOT EXISTS (SELECT 1 FROM findings t WHERE t.tenant = p.tenant AND t.record = p.id AND t.result IN ('found', 'succeeded') AND ` + provesSuccess + `)`},
	{"failure that no answer, finding or verdict says", `/* box */
		SELECT p.tenant || ' ' || p.id FROM (SELECT tenant, id FROM payments WHERE status = 'failed' UNION ALL SELECT tenant, id FROM refunds WHERE status = 'failed') p
		WHERE NOT EXISTS (SELECT 1 FROM attempts t WHERE t.tenant = p.tenant AND t.record = p.id AND t.outcome = 'declined')
		AND NOT EXISTS (SELECT 1 FROM findings t WHERE t.tenant = p.tenant AND t.record = p.id
			AND (t.kind = 'verdict' AND t.result = 'failed' OR t.result = 'found' AND json_extract(t.evidence, '$.status') <> 'succeeded'))`},
	{"number of attempts differs from the attempts stored", `/* box */
		SELECT p.tenant || ' ' || p.id FROM (SELECT tenant, id, attempts FROM payments UNION ALL SELECT tenant, id, attempts FROM refunds) p
		LEFT JOIN (SELECT tenant, record, count(*) n, max(n) last FROM attempts GROUP BY tenant, record) t
			ON t.tenant = p.tenant AND t.record = p.id
		WHERE p.attempts <> coalesce(t.n, 0) OR p.attempts <> coalesce(t.last, 0)`},
	{"attempt or finding of a record that is not there", `/* box */
		SELECT t.tenant || ' ' || t.record FROM (SELECT tenant, record FROM attempts UNION SELECT tenant, record FROM findings) t
		LEFT JOIN payments p ON p.tenant = t.tenant AND p.id = t.record LEFT JOIN refunds r ON r.tenant = t.tenant AND r.id = t.record
		WHERE p.id IS NULL AND r.id IS NULL`},
	{"another upstream key is in use, and nothing proves that the one before had no effect", `/* box */
		SELECT p.tenant || ' ' || p.id FROM (SELECT tenant, id, series, source_kind means FROM payments WHERE series > 1 UNION ALL
			SELECT tenant, id, series, 'source' FROM refunds WHERE series > 1) p
		WHERE p.series - 1 > (SELECT count(*) FROM findings t WHERE t.tenant = p.tenant AND t.record = p.id
			AND (t.result = 'absent' OR t.kind = 'verdict' AND t.result = 'resend' OR p.means = 'payment_method'))`},
	{"attempt without the sealed bytes that it sent", `/* box */
		SELECT t.tenant || ' ' || t.record FROM attempts t
		LEFT JOIN sends s ON s.tenant = t.tenant AND s.record = t.record AND s.upstream_key = t.upstream_key
		WHERE s.record IS NULL`},
	{"idempotency key of a record that is not there", `/* box */
		SELECT k.tenant || ' ' || k.record FROM idempotency_keys k
		LEFT JOIN payments p ON p.tenant = k.tenant AND p.id = iif(substr(k.record, 1, 4) = 'req_', substr(k.record, instr(k.record, ':') + 1), k.record)
		LEFT JOIN refunds r ON r.tenant = k.tenant AND r.id = k.record
		LEFT JOIN orders o ON o.tenant = k.tenant AND o.id = k.record
		LEFT JOIN users u ON u.tenant = k.tenant AND u.id = substr(k.record, instr(k.record, ':') + 1) AND instr(k.record, ':') > 0
		LEFT JOIN journal j ON j.tenant = k.tenant AND j.id = k.record AND j.subject = j.id
		WHERE p.id IS NULL AND r.id IS NULL AND o.id IS NULL AND u.id IS NULL AND j.id IS NULL`},
	{"paid order without a succeeded payment of its amount", `/* box */
		SELECT o.tenant || ' ' || o.id FROM orders o LEFT JOIN payments p ON p.tenant = o.tenant AND p.id = o.payment_id
		WHERE o.paid_at IS NOT NULL AND (p.id IS NULL OR p.status <> 'succeeded' OR p.order_id <> o.id OR p.amount <> o.amount OR p.currency <> o.currency)`},
	{"open order whose payment is final, or not there", `/* box */
		SELECT o.tenant || ' ' || o.id FROM orders o LEFT JOIN payments p ON p.tenant = o.tenant AND p.id = o.payment_id
		WHERE o.status IN ('open', 'canceled') AND o.payment_id IS NOT NULL AND (p.id IS NULL OR p.status NOT IN ('pending', 'requires_confirmation'))`},
	{"payment that its order does not know", `/* box */
		SELECT p.tenant || ' ' || p.id FROM payments p LEFT JOIN orders o ON o.tenant = p.tenant AND o.id = p.order_id
		WHERE p.order_id IS NOT NULL AND (o.id IS NULL OR (p.status IN ('requires_confirmation', 'pending', 'succeeded') AND o.payment_id IS NOT p.id))`},
	{"order without its user, or without its items", `/* box */
		SELECT o.tenant || ' ' || o.id FROM orders o LEFT JOIN users u ON u.tenant = o.tenant AND u.id = o.user_id
		LEFT JOIN order_items i ON i.tenant = o.tenant AND i.order_id = o.id WHERE u.id IS NULL OR i.order_id IS NULL`},
	{"inbox's counts differ from its entries", `/* box */
		SELECT coalesce(p.tenant, n.tenant) || ' ' || coalesce(p.user_id, n.user_id) FROM profiles p
		FULL JOIN (SELECT tenant, user_id, count(*) entries, count(*) - count(read_at) unread FROM notifications GROUP BY tenant, user_id) n
			ON n.tenant = p.tenant AND n.user_id = p.user_id
		WHERE p.entries IS NOT coalesce(n.entries, 0) OR p.unread IS NOT coalesce(n.unread, 0)`},
	{"profile or inbox without its user", `/* box */
		SELECT DISTINCT i.tenant || ' ' || i.user_id FROM (SELECT tenant, user_id FROM profiles UNION ALL SELECT tenant, user_id FROM notifications) i
		LEFT JOIN users u ON u.tenant = i.tenant AND u.id = i.user_id WHERE u.id IS NULL`},
	{"record's event is not in the journal", `/* box */
		SELECT r.tenant || ' ' || r.id FROM (
			SELECT tenant, id, 'user.created' type FROM users UNION ALL
			SELECT tenant, id, 'order.created' FROM orders UNION ALL
			SELECT tenant, id, 'order.paid' FROM orders WHERE paid_at IS NOT NULL UNION ALL
			SELECT tenant, id, 'order.' || status FROM orders WHERE status IN ('completed', 'canceled') UNION ALL
			SELECT tenant, id, 'notification.created' FROM notifications UNION ALL
			SELECT tenant, id, 'notification.read' FROM notifications WHERE read_at IS NOT NULL) r
		LEFT JOIN journal j ON j.tenant = r.tenant AND j.subject = r.id AND j.type = r.type WHERE j.seq IS NULL`},
	{"unsettled payment without its source", `/* box */
		SELECT tenant || ' ' || id FROM payments WHERE status = 'pending' AND source IS NULL`},
	{"settled payment still holds its source", `/* box */
		SELECT tenant || ' ' || id FROM payments WHERE sync = 'settled' AND source IS NOT NULL`},
}

// findingsPerRule bounds the report: a file that is wrong throughout is told
// in so many lines, and a last one says how many there are.
const findingsPerRule = 20

func (a *audit) rule(tx *shards.Tx, r struct{ what, query string }) error {
	rows, err := tx.Query(r.query)
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var record string
		if err := rows.Scan(&record); err != nil {
			return err
		}
		if n++; n <= findingsPerRule {
			a.found(tx.Shard(), "%s: %s", record, r.what)
		}
	}
	if n > findingsPerRule {
		a.found(tx.Shard(), "… and %d more: %s", n-findingsPerRule, r.what)
	}
	return rows.Err()
}

// slots checks that each record stands in the file of its slot, which is its
// user's or its payment's if it has one, under a tenant that exists.
func (a *audit) slots(tx *shards.Tx) error {
	rows, err := tx.Query(`SELECT /* box */ tenant, id, 'payment', '' FROM payments UNION ALL
		SELECT tenant, id, 'refund', payment_id FROM refunds UNION ALL
		SELECT tenant, id, 'order', user_id FROM orders UNION ALL SELECT tenant, id, 'user', '' FROM users UNION ALL
		SELECT tenant, id, 'notification', user_id FROM notifications UNION ALL SELECT tenant, user_id, 'profile', '' FROM profiles`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var t, id, kind, of string // whose it is
		if err := rows.Scan(&t, &id, &kind, &of); err != nil {
			return err
		}
		slot, ok := shards.SlotOf(t, id), true
		home := shards.SlotOf(t, of)
		switch kind {
		case "payment":
			slot, ok = PaymentID(id).slot()
		case "refund":
			slot, ok = RefundID(id).slot()
			home, _ = PaymentID(of).slot()
		case "order":
			slot, ok = OrderID(id).slot()
		case "notification":
			slot, ok = NotificationID(id).slot()
		}
		switch {
		case !ok:
			a.found(tx.Shard(), "%s %s: is no id of a %s", t, id, kind)
		case a.set.Shard(slot) != tx.Shard():
			a.found(tx.Shard(), "%s %s: belongs to slot %d, which lives in another file", t, id, slot)
		case of != "" && slot != home:
			a.found(tx.Shard(), "%s %s: carries slot %d, which is not its %s's", t, id, slot, map[bool]string{true: "payment", false: "user"}[kind == "refund"])
		case !a.known[t]:
			a.found(tx.Shard(), "%s %s: no such tenant", t, id)
		}
	}
	return rows.Err()
}

// idempotency checks that a tenant's key stands in one place only.
func (a *audit) idempotency(tx *shards.Tx) error {
	rows, err := tx.Query(`SELECT /* box */ tenant, key, record FROM idempotency_keys`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var t, key, record string
		if err := rows.Scan(&t, &key, &record); err != nil {
			return err
		}
		h := sha256.Sum256([]byte(t + "\x00" + key))
		if other, ok := a.keys[h]; ok {
			a.found(tx.Shard(), "%s %s: its idempotency key stands in shard %d as well", t, record, other)
		}
		a.keys[h] = tx.Shard().ID()
	}
	return rows.Err()
}

// open checks that each unsettled payment and refund will be settled: it has its job, or
// its journal row is still to become one, and its sealed bytes can be opened. An intent that is
// not confirmed has no job, and may have no source yet.
func (a *audit) open(tx *shards.Tx, cursor jobs.Cursor, anchored bool) error {
	rows, err := tx.Query(`SELECT /* box */ o.tenant, o.id, o.status, o.source, o.sync, coalesce(j.seq, 0) FROM (
			SELECT tenant, id, status, source, sync FROM payments INDEXED BY payments_open WHERE sync <> 'settled' UNION ALL
			SELECT tenant, id, status, NULL, sync FROM refunds INDEXED BY refunds_open WHERE sync <> 'settled') o
		LEFT JOIN (SELECT tenant, subject, max(seq) seq FROM journal
			WHERE type IN ('payment.created', 'payment.confirmed', 'refund.created') GROUP BY tenant, subject) j ON j.tenant = o.tenant AND j.subject = o.id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var t, id, status, sync string
		var source []byte
		var seq int64
		if err := rows.Scan(&t, &id, &status, &source, &sync, &seq); err != nil {
			return err
		}
		if source != nil {
			if _, err := a.Keyring.Open(sourceRecord(tenants.ID(t), PaymentID(id)), source); err != nil {
				a.found(tx.Shard(), "%s %s: its source cannot be opened: %v", t, id, err)
			}
		}
		if Status(status) == RequiresConfirmation || SyncState(sync) == Review || !anchored || uint64(seq) > cursor.Offset {
			continue
		}
		if _, err := a.Jobs.Get(t, PaymentsQueue, id); err != nil {
			a.found(tx.Shard(), "%s %s: unsettled, and the queue has no job for it: %v", t, id, err)
		}
	}
	return rows.Err()
}

// bodies checks that what is to be sent again can be opened.
func (a *audit) bodies(tx *shards.Tx) error {
	rows, err := tx.Query(`SELECT /* box */ tenant, record, upstream_key, body FROM sends WHERE body IS NOT NULL`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var t, record, key string
		var body []byte
		if err := rows.Scan(&t, &record, &key, &body); err != nil {
			return err
		}
		if _, err := a.Keyring.Open(sendRecord(tenants.ID(t), record, key), body); err != nil {
			a.found(tx.Shard(), "%s %s: what is sent under %s cannot be opened: %v", t, record, key, err)
		}
	}
	return rows.Err()
}
