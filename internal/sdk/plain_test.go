package sdk

import (
	"net/http"
	"testing"
)

// A client of no SDK: JSON to <base>/charges with a bearer's key and a version, and <base>/charges/{id} to see what became of it.
func TestPlainClient(t *testing.T) {
	s := openShop(t)
	headers := []string{"Authorization", "Bearer " + s.key, "Stripe-Version", "2022-11-15", "Content-Type", "application/json", "Idempotency-Key", "order-1"}
	status, header, made := s.ask(http.MethodPost, "/v1/charges", `{"amount":1999,"currency":"usd","source":"tok_visa"}`, headers...)
	id, _ := made["id"].(string)
	if status != http.StatusOK || made["status"] != "succeeded" || made["amount"] != 1999.0 || header.Get("Stripe-Version") != "2022-11-15" {
		t.Fatalf("%d %v %v", status, header, made)
	}
	status, header, again := s.ask(http.MethodPost, "/v1/charges", `{"source":"tok_visa", "currency":"usd", "amount":1999}`, headers...)
	if status != http.StatusOK || again["id"] != id || header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%d %v %v", status, header, again)
	}
	status, _, read := s.ask(http.MethodGet, "/v1/charges/"+id, "", "Authorization", "Bearer "+s.key, "Stripe-Version", "2022-11-15")
	if status != http.StatusOK || read["status"] != "succeeded" || read["currency"] != "usd" {
		t.Errorf("%d %v", status, read)
	}
	status, _, refused := s.ask(http.MethodPost, "/v1/charges", `{"amount":1999,"currency":"usd","source":"tok_chargeDeclined"}`, headers[:6]...)
	if e, _ := refused["error"].(map[string]any); status != http.StatusPaymentRequired || e["code"] != "card_declined" {
		t.Errorf("%d %v", status, refused)
	}
	s.effects(1)
}
