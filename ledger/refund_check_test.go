package ledger

import (
	"strings"
	"testing"
)

// Each of the audit's rules on refunds, canceled payments and intents catches what is planted for it.
func TestPlantedRefundFaultsAreFound(t *testing.T) {
	const refund, void = `(SELECT id FROM refunds WHERE NOT voids)`, `(SELECT id FROM refunds WHERE voids)`
	for what, c := range map[string]struct{ statement, want string }{
		"sum too high":           {`UPDATE payments SET amount_refunded = amount_refunded + 1 WHERE status = 'succeeded'`, "amount refunded differs"},
		"sum too low":            {`UPDATE payments SET amount_refunded = 0`, "amount refunded differs"},
		"refund is gone":         {`DELETE FROM refunds WHERE id = ` + refund, "amount refunded differs"},
		"refund's row is gone":   {`DELETE FROM refunds WHERE id = ` + refund, "journal tells of a refund that is not there"},
		"another amount":         {`UPDATE refunds SET amount = 2 WHERE id = ` + refund, "has no refund.created row"},
		"another currency":       {`UPDATE refunds SET currency = 'eur' WHERE id = ` + refund, "in another currency"},
		"of nothing":             {`UPDATE refunds SET payment_id = 'x' WHERE id = ` + refund, "refund of a payment that is not there"},
		"of one not charged":     {`UPDATE refunds SET payment_id = (SELECT id FROM payments WHERE status = 'pending') WHERE id = ` + refund, "was not charged"},
		"done, and not told":     {`UPDATE refunds SET status = 'succeeded', sync = 'settled', upstream_id = 're_1' WHERE id = ` + refund, "end in the journal"},
		"moved no money":         {`UPDATE refunds SET voids = 1 WHERE id = ` + refund, "or moved no money"},
		"voids a part":           {`UPDATE refunds SET amount = 2 WHERE id = ` + void, "is not all of it"},
		"voids what is charged":  {`UPDATE refunds SET payment_id = (SELECT id FROM payments WHERE status = 'succeeded') WHERE id = ` + void, "the payment is not canceled"},
		"voided upstream":        {`UPDATE refunds SET upstream_id = 're_1' WHERE id = ` + void, "is not all of it"},
		"twice upstream":         {`UPDATE refunds SET upstream_id = 're_1'`, "an upstream id that another one has"},
		"id":                     {`UPDATE refunds SET id = 'x' WHERE id = ` + refund, "is no id of a refund"},
		"slot":                   {`UPDATE refunds SET payment_id = 'pay_00000000000000000000000000' WHERE id = ` + refund, "not its payment's"},
		"canceled, sent":         {`UPDATE payments SET first_sent_at = 1 WHERE status = 'canceled'`, "canceled payment was sent"},
		"canceled, not told":     {`UPDATE payments SET status = 'canceled', sync = 'settled', source = NULL WHERE status = 'pending'`, "exactly one final row"},
		"not canceled, but told": {`UPDATE payments SET status = 'requires_confirmation', sync = 'queued' WHERE status = 'canceled'`, "has a final row"},
		"confirmed, not told":    {`UPDATE payments SET status = 'pending' WHERE status = 'requires_confirmation'`, "nobody confirmed it"},
		"told, not confirmed":    {`UPDATE payments SET status = 'requires_confirmation' WHERE status = 'pending'`, "though the journal says so"},
		"source is gone":         {`UPDATE payments SET source = NULL WHERE status = 'pending'`, "without its source"},
		"source of another":      {`UPDATE payments SET source = x'00' WHERE status = 'requires_confirmation'`, "cannot be opened"},
		"key of nothing":         {`UPDATE idempotency_keys SET record = replace(record, ':pay_', ':pay_0') WHERE record LIKE 'req%'`, "key of a record that is not there"},
		"key of a lost refund":   {`UPDATE idempotency_keys SET record = replace(record, 're_', 're_0') WHERE record LIKE 're\_%' ESCAPE '\'`, "key of a record that is not there"},
	} {
		t.Run(what, func(t *testing.T) {
			b := openBox(t, t.TempDir(), testOptions{idle: true})
			of := func(n NewPayment) NewPayment { n.UserID = "ana"; return n } // one file
			p := b.settleNow(b.pay("k", of(validPayment())).ID)
			b.refund("r", NewRefund{PaymentID: string(p.ID), Amount: 500})
			b.refund("v", NewRefund{PaymentID: string(b.pay("", of(validPayment())).ID)})
			intent := b.pay("", of(unconfirmed("pm_card_visa")))
			must3(b.Confirm(t.Context(), testTenant, "c", string(intent.ID), ""))(t)
			b.pay("", of(unconfirmed("pm_card_visa")))
			b.tamper(b.shardOf(p.ID).ID(), c.statement)
			var lines []string
			for _, f := range b.audit() {
				lines = append(lines, f.String())
			}
			if !strings.Contains(strings.Join(lines, "\n"), c.want) {
				t.Errorf("found %q, want %s", lines, c.want)
			}
		})
	}
}
