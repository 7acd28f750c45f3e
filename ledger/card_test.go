package ledger

import "testing"

func TestHoldsCardNumber(t *testing.T) {
	// Numbers are the schemes' published test numbers.
	for s, want := range map[string]bool{
		"4242424242424242":               true,
		"4242 4242 4242 4242":            true,
		"4242-4242-4242-4242":            true,
		"card 5555555555554444 please":   true,
		"378282246310005":                true, // American Express, 15 digits
		"30569309025904":                 true, // Diners Club, 14 digits
		"6011111111111117":               true,
		"3530111333300000":               true,
		"tok_4242424242424242":           true,
		"x4000056655665556y":             true,
		"4242424242424241":               false, // wrong check digit
		"4242424242":                     false, // too short
		"42424242 42424242":              true,  // any grouping by single separators
		"4242  4242  4242  4242":         false, // two separators are prose
		"tok_visa":                       false,
		"":                               false,
		"order 1234 of 2026-11-23 10:30": false,
		"0042424242424242424":            false, // begins as no scheme does
		"ref 12345678904242424242424242": true,  // inside a longer run
		"4242 4242 4242 4242 12/29":      true,
		"4242424242424242 12/29 123":     true,
		"4242 4242 4242 4242 123":        true,
		"2x 4242 4242 4242 4242 5":       true,
		"12 4242424242424242":            true,
		"378282246310005 1227 1234":      true,
	} {
		if got := holdsCardNumber(s); got != want {
			t.Errorf("holdsCardNumber(%q) = %v, want %v", s, got, want)
		}
	}
}

func FuzzHoldsCardNumber(f *testing.F) {
	f.Add("4242 4242 4242 4242")
	f.Fuzz(func(t *testing.T, s string) {
		holdsCardNumber(s) // must not panic
		if !holdsCardNumber(s+" 4242424242424242") && (s == "" || s[len(s)-1] < '0' || s[len(s)-1] > '9') {
			t.Errorf("number after %q not seen", s)
		}
	})
}
