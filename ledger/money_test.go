package ledger

import "testing"

func TestInWords(t *testing.T) {
	for want, m := range map[string]struct {
		minor int64
		code  string
	}{
		"19.99 USD":  {1999, "usd"},
		"0.05 EUR":   {5, "eur"},
		"-0.05 EUR":  {-5, "eur"},
		"1999 JPY":   {1999, "jpy"},
		"1.234 KWD":  {1234, "kwd"},
		"7 nonsense": {7, "nonsense"},
	} {
		if got := (Money{m.minor, m.code}).String(); got != want {
			t.Errorf("%d %s: %q, want %q", m.minor, m.code, got, want)
		}
	}
}
