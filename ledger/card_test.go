package ledger

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/jobs"
)

func TestHoldsCardNumber(t *testing.T) {
	// Numbers are the schemes' published test numbers.
	for s, want := range map[string]bool{
		"4242424242424242":                   true,
		"4242 4242 4242 4242":                true,
		"4242-4242-4242-4242":                true,
		"card 5555555555554444 please":       true,
		"378282246310005":                    true, // American Express, 15 digits
		"30569309025904":                     true, // Diners Club, 14 digits
		"6011111111111117":                   true,
		"3530111333300000":                   true,
		"tok_4242424242424242":               true,
		"x4000056655665556y":                 true,
		"4242424242424241":                   false, // wrong check digit
		"4242424242":                         false, // too short
		"42424242 42424242":                  true,  // any grouping by single separators
		"4242  4242  4242  4242":             false, // two separators are prose
		"tok_visa":                           false,
		"":                                   false,
		"order 1234 of 2026-11-23 10:30":     false,
		"0042424242424242424":                false, // begins as no scheme does
		"ref 12345678904242424242424242":     true,  // inside a longer run
		"4242 4242 4242 4242 12/29":          true,
		"4242424242424242 12/29 123":         true,
		"4242 4242 4242 4242 123":            true,
		"2x 4242 4242 4242 4242 5":           true,
		"12 4242424242424242":                true,
		"378282246310005 1227 1234":          true,
		"4242\u00a04242\u00a04242\u00a04242": true, // no-break spaces, as on web pages
		"4242\u20134242\u20134242\u20134242": true, // en dashes
		"4242\u200b4242\u200b4242\u200b4242": true, // nothing to be seen between
		"\u0664\u0662\u0664\u0662 \u0664\u0662\u0664\u0662 \u0664\u0662\u0664\u0662 \u0664\u0662\u0664\u0662": true, // Arabic-Indic
		"\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12":    true, // full width
		"\U0001d7d2\U0001d7ec\U0001d7fa42 4242424242":                                                         false,
		"Caf\u00e9 4242 4242 4242 4242":                                                                       true,
		"Caf\u00e9 \u2116 4242424242":                                                                         false,
	} {
		if got := holdsCardNumber(s); got != want {
			t.Errorf("holdsCardNumber(%q) = %v, want %v", s, got, want)
		}
	}
}

func TestJSONHoldsCard(t *testing.T) {
	for s, want := range map[string]bool{
		`{"note":"4242 4242 4242 4242"}`:            true,
		`{"note":"\u0034242424242424242"}`:          true, // an escape hides nothing
		`{"a":[{"b":[null,"x 4242424242424242"]}]}`: true,
		`{"4242424242424242":1}`:                    true,
		`{"n":4242424242424242}`:                    true,
		`{"CVC":"123"}`:                             true,
		`{"a":{"track2":null}}`:                     true,
		`"4242424242424242"`:                        true,
		`{"note":"cvc"}`:                            false, // a text is no member
		`["4242","4242","4242","4242"]`:             false,
		`{"at":1700000000000,"amount":1999}`:        false,
		`null`:                                      false, `{}`: false, `[]`: false, `""`: false,
	} {
		if got := jsonHoldsCard(jsontext.Value(s)); got != want {
			t.Errorf("jsonHoldsCard(%s) = %v, want %v", s, got, want)
		}
	}
}

// The news of a failed job quotes its error, but no card number in it.
func TestFailedJobWithholdsACardNumber(t *testing.T) {
	for said, want := range map[string]string{"printer is out of paper": "printer is out of paper", "declined: 4242 4242 4242 4242": "[withheld]"} {
		told := FailedJobs(jobs.Job{NewJob: jobs.NewJob{Tenant: "shop", Queue: "print", ID: "1"}, LastError: said})
		if len(told) != 1 || !strings.Contains(string(told[0].Data), want) || want != said && strings.Contains(string(told[0].Data), "4242") {
			t.Errorf("%q: %s", said, told[0].Data)
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
