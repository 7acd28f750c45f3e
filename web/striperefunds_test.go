package web

import (
	"fmt"
	"strings"
	"testing"
)

// A client that hears "already refunded" takes its refund for done. It may hear so only if nothing is left.
func TestStripeRefundOfTooMuch(t *testing.T) {
	x := newTill(t)
	charge := x.form("POST /v1/charges", "amount=1000&currency=usd&source=tok_visa").ok()["id"].(string)
	refund := func(amount int) answer {
		return x.form("POST /v1/refunds", fmt.Sprintf("charge=%s&amount=%d", charge, amount))
	}
	refund(1001).refuses(400, "invalid_request_error", "amount_too_large", "amount")
	refund(300).ok()
	if e := refund(701).refuses(400, "invalid_request_error", "amount_too_large", "amount"); !strings.Contains(fmt.Sprint(e["message"]), "700") {
		t.Errorf("what is left: %v", e)
	}
	refund(700).ok()
	refund(1).refuses(400, "invalid_request_error", "charge_already_refunded", "charge")
	x.form("POST /v1/refunds", "charge="+charge).refuses(400, "invalid_request_error", "charge_already_refunded", "charge")
	if n := len(x.sim.Ledger().Refunds); n != 2 {
		t.Errorf("%d refunds took effect", n)
	}
}
