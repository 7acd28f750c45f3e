package ledger

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func validPayment() NewPayment {
	return NewPayment{Amount: 1999, Currency: "usd", Source: "tok_visa"}
}

func TestValidateRefuses(t *testing.T) {
	metadata := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("k", i)] = "v"
		}
		return m
	}
	for _, c := range []struct {
		name   string
		change func(*NewPayment)
		code   string
		field  string
	}{
		{"amount zero", func(p *NewPayment) { p.Amount = 0 }, "amount_invalid", "amount"},
		{"amount negative", func(p *NewPayment) { p.Amount = -1 }, "amount_invalid", "amount"},
		{"amount too high", func(p *NewPayment) { p.Amount = 1<<53 + 1 }, "amount_invalid", "amount"},
		{"currency short", func(p *NewPayment) { p.Currency = "US" }, "currency_invalid", "currency"},
		{"currency none", func(p *NewPayment) { p.Currency = "XXX" }, "currency_invalid", "currency"},
		{"currency look-alike", func(p *NewPayment) { p.Currency = "uѕd" }, "currency_invalid", "currency"},
		{"currency unknown", func(p *NewPayment) { p.Currency = "qqq" }, "currency_invalid", "currency"},
		{"metal", func(p *NewPayment) { p.Currency = "xau" }, "currency_invalid", "currency"},
		{"no source", func(p *NewPayment) { p.Source = "" }, "source_missing", "source"},
		{"two sources", func(p *NewPayment) { p.PaymentMethod = "pm_1" }, "source_ambiguous", "payment_method"},
		{"card as source", func(p *NewPayment) { p.Source = "4242424242424242" }, "card_data_not_allowed", "source"},
		{"card in description", func(p *NewPayment) { p.Description = "paid with 4242 4242 4242 4242" }, "card_data_not_allowed", "description"},
		{"card in metadata", func(p *NewPayment) { p.Metadata = map[string]string{"n": "4242-4242-4242-4242"} }, "card_data_not_allowed", "metadata"},
		{"cvc in metadata", func(p *NewPayment) { p.Metadata = map[string]string{"CVC": "123"} }, "card_data_not_allowed", "metadata"},
		{"source with line break", func(p *NewPayment) { p.Source = "tok\r\nX: y" }, "text_invalid", "source"},
		{"NUL in description", func(p *NewPayment) { p.Description = "a\x00b" }, "text_invalid", "description"},
		{"invalid UTF-8", func(p *NewPayment) { p.Description = "\xff" }, "text_invalid", "description"},
		{"long description", func(p *NewPayment) { p.Description = strings.Repeat("x", descriptionMax+1) }, "text_too_long", "description"},
		{"51 metadata keys", func(p *NewPayment) { p.Metadata = metadata(51) }, "metadata_limit", "metadata"},
		{"long metadata key", func(p *NewPayment) { p.Metadata = map[string]string{strings.Repeat("k", 41): ""} }, "metadata_limit", "metadata"},
		{"long metadata value", func(p *NewPayment) { p.Metadata = map[string]string{"k": strings.Repeat("v", 501)} }, "metadata_limit", "metadata"},
		{"the box's own metadata", func(p *NewPayment) { p.Metadata = map[string]string{"tenderbox_payment": "x"} }, "metadata_invalid", "metadata"},
		{"brackets in metadata key", func(p *NewPayment) { p.Metadata = map[string]string{"a[b]": "x"} }, "metadata_invalid", "metadata"},
	} {
		p := validPayment()
		c.change(&p)
		var e *Error
		if err := p.validate(); !errors.As(err, &e) || e.Code != c.code || e.Field != c.field || e.Kind != Invalid {
			t.Errorf("%s: %v, want %s of %s", c.name, err, c.code, c.field)
		}
	}
}

func TestValidateAccepts(t *testing.T) {
	for name, change := range map[string]func(*NewPayment){
		"plain":            func(*NewPayment) {},
		"upper-case money": func(p *NewPayment) { p.Currency = "USD" },
		"CFA franc":        func(p *NewPayment) { p.Currency = "xof" },
		"highest amount":   func(p *NewPayment) { p.Amount = amountMax },
		"odd text":         func(p *NewPayment) { p.Description = "\u202e <script> '; DROP TABLE payments; =cmd() \U0001F600" },
		"lines":            func(p *NewPayment) { p.Description = "one\ntwo" },
		"fifty metadata": func(p *NewPayment) {
			p.Metadata = map[string]string{strings.Repeat("ü", 40): strings.Repeat("ü", 500)}
		},
		"number as user id": func(p *NewPayment) { p.UserID = "4242424242424242" },
	} {
		p := validPayment()
		change(&p)
		if err := p.validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p.Currency != strings.ToLower(p.Currency) {
			t.Errorf("%s: currency %q not normalised", name, p.Currency)
		}
	}
}
