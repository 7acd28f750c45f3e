package upstream

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	const secret = "sk_live_9f+Q/2 kVx7"
	for name, text := range map[string]string{
		"in clear":          secret,
		"in a sentence":     "no such key: " + secret + ", try another; " + secret,
		"percent-encoded":   url.QueryEscape(secret),
		"in a path":         url.PathEscape(secret),
		"hex":               hex.EncodeToString([]byte(secret)),
		"HEX":               strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"base64":            base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64url":         base64.RawURLEncoding.EncodeToString([]byte(secret)),
		"of a user":         base64.StdEncoding.EncodeToString([]byte(secret + ":")),
		"of a user behind":  base64.StdEncoding.EncodeToString([]byte("a:" + secret)),
		"of a user behind2": base64.StdEncoding.EncodeToString([]byte("ab:" + secret + "\n")),
		"cut":               "the key is " + secret[:len(secret)-1],
		"cut early":         "the key is " + secret[:spellingsMin],
	} {
		got := Redact(text, secret, "[redacted]")
		if !strings.Contains(got, "[redacted]") {
			t.Errorf("%s: %q is not redacted", name, text)
		}
		for _, part := range append(spellings(secret), secret, secret[:spellingsMin]) {
			if strings.Contains(got, part) {
				t.Errorf("%s: %q still holds %q", name, got, part)
			}
		}
	}
	for _, honest := range []string{"", "Your card was declined.", "sk_live_ is how keys begin", "key"} {
		if got := Redact(honest, secret, "x"); got != honest {
			t.Errorf("%q became %q", honest, got)
		}
	}
	if got := Redact("a bad day", "a", "x"); got != "x bxd dxy" { // a toy's secret
		t.Errorf("got %q", got)
	}
}
