package upstream

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
)

const (
	// spellingsMin bytes and more of a secret are looked for in other spellings than its own, and at a text's end in part. Of fewer, a
	// spelling would be found where it is none.
	spellingsMin = 8
	// wholeMin bytes and more of a secret are taken out of an answer before it is read, wherever they stand. What is as short as
	// "tok_visa" may be part of an honest object's id.
	wholeMin = 16
)

// Redact replaces a secret in a text of a stranger's that may quote it: in clear, percent-encoded, in hex, in base64 of whatever
// it stands in, and begun where the text was cut.
func Redact(text, secret, instead string) string {
	if secret == "" || text == "" {
		return text
	}
	text = strings.ReplaceAll(text, secret, instead)
	if len(secret) < spellingsMin {
		return text
	}
	for _, spelling := range spellings(secret) {
		text = strings.ReplaceAll(text, spelling, instead)
	}
	for n := min(len(secret)-1, len(text)); n >= spellingsMin; n-- {
		if begun, ok := strings.CutSuffix(text, secret[:n]); ok {
			return begun + instead
		}
	}
	return text
}

// spellings are a secret's other spellings. Base64 has three, by where in a group of three bytes it begins; what of the first and last
// character also depends on its neighbours is left out.
func spellings(secret string) []string {
	all := make([]string, 0, 10)
	if escaped := url.QueryEscape(secret); escaped != secret {
		all = append(all, escaped, url.PathEscape(secret))
	}
	inHex := hex.EncodeToString([]byte(secret))
	all = append(all, inHex, strings.ToUpper(inHex))
	for before := range 3 {
		first, end := (before*8+5)/6, (before+len(secret))*8/6
		bytes := append(make([]byte, before, before+len(secret)), secret...)
		for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			all = append(all, alphabet.EncodeToString(bytes)[first:end])
		}
	}
	return all
}

// redacted is what the processor's texts show instead of the key.
const redacted = "[redacted]"

// without takes the key, and the source that was sent, out of an answer's bytes: what quotes them as an object's id, or anywhere else
// where no text is, is then seen to be malformed.
func (q *ask) without(key string, body []byte) []byte {
	text := string(body)
	for _, secret := range append(q.tokens, key) {
		if len(secret) >= wholeMin {
			text = Redact(text, secret, redacted)
		}
	}
	return []byte(text)
}

// redact takes the key out of an answer's texts, as they read once JSON's escapes are undone.
func (a *Answer) redact(key string) {
	if len(key) < spellingsMin {
		return // a toy's
	}
	f := &a.Failure
	for _, text := range []*string{&a.Reason, &a.RequestID, &f.Type, &f.Code, &f.DeclineCode, &f.Message, &f.Param} {
		*text = Redact(*text, key, redacted)
	}
}
