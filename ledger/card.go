package ledger

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	panDigitsMin = 14 // Diners Club, the shortest that schemes still issue
	panDigitsMax = 19 // ISO/IEC 7812
)

// holdsCardNumber reports whether s contains what looks like a card number: 14
// to 19 digits, also grouped by single spaces or dashes, that begin as a card
// scheme's numbers do and end in a valid check digit (ISO/IEC 7812-1, Luhn). Other
// groups of digits may stand beside it, as the expiry date does when people type.
// Digits, spaces and dashes of every script count: text that was pasted has them.
func holdsCardNumber(s string) bool {
	if !isASCII(s) {
		s = strings.Map(plainly, s)
	}
	var digits []byte // of the present run of groups
	var ends []int    // where each group ends in digits
	for i := 0; i < len(s); i++ {
		c := s[i]
		if '0' <= c && c <= '9' {
			digits = append(digits, c-'0')
			continue
		}
		if len(digits) == 0 {
			continue
		}
		ends = append(ends, len(digits))
		if (c == ' ' || c == '-') && i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9' {
			continue // one separator between groups
		}
		if groupsHoldCard(digits, ends) {
			return true
		}
		digits, ends = digits[:0], ends[:0]
	}
	return len(digits) > 0 && groupsHoldCard(digits, append(ends, len(digits)))
}

// groupsHoldCard tries every part of the run that begins and ends with a group,
// and, within a group too long for a card, every part of 16 digits, which is what
// all large schemes issue.
func groupsHoldCard(digits []byte, ends []int) bool {
	start := 0
	for i, end := range ends {
		for _, to := range ends[i:] {
			if n := to - start; n > panDigitsMax {
				break
			} else if n >= panDigitsMin && cardNumber(digits[start:to]) {
				return true
			}
		}
		for from := start; end-start > panDigitsMax && from+16 <= end; from++ {
			if cardNumber(digits[from : from+16]) {
				return true
			}
		}
		start = end
	}
	return false
}

func cardNumber(d []byte) bool { return schemePrefix(d) && luhn(d) }

// schemePrefix knows the ranges that the card schemes publish: Visa 4,
// Mastercard 51–55 and 2221–2720, American Express 34 and 37, Discover 6011,
// 644–649 and 65, Diners Club 300–305, 36, 38 and 39, JCB 3528–3589, UnionPay
// 62, Maestro 50, 56–58, 63 and 67.
func schemePrefix(d []byte) bool {
	two := int(d[0])*10 + int(d[1])
	three := two*10 + int(d[2])
	four := three*10 + int(d[3])
	switch {
	case d[0] == 4,
		two >= 50 && two <= 58,
		four >= 2221 && four <= 2720,
		two == 34, two == 37,
		three >= 300 && three <= 305, two == 36, two == 38, two == 39,
		four >= 3528 && four <= 3589,
		four == 6011, three >= 644 && three <= 649, two == 65,
		two == 62, two == 63, two == 67:
		return true
	}
	return false
}

func luhn(d []byte) bool {
	sum := 0
	for i := range d {
		v := int(d[len(d)-1-i])
		if i%2 == 1 {
			v *= 2
			if v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// plainly spells digits, spaces and dashes as ASCII does, and drops what is not seen.
func plainly(r rune) rune {
	switch {
	case r < utf8.RuneSelf:
		return r
	case unicode.Is(unicode.Nd, r):
		return '0' + digitValue(r)
	case unicode.Is(unicode.Zs, r):
		return ' '
	case unicode.Is(unicode.Pd, r), r == '\u2212': // the minus sign
		return '-'
	case unicode.Is(unicode.Cf, r): // zero width, or a soft hyphen
		return -1
	}
	return r
}

// digitValue is what a decimal digit of any script stands for: Unicode keeps each script's ten together, from zero on.
func digitValue(r rune) rune {
	for _, ten := range unicode.Nd.R16 {
		if rune(ten.Lo) <= r && r <= rune(ten.Hi) {
			return (r - rune(ten.Lo)) % 10
		}
	}
	for _, ten := range unicode.Nd.R32 {
		if rune(ten.Lo) <= r && r <= rune(ten.Hi) {
			return (r - rune(ten.Lo)) % 10
		}
	}
	return 0
}

// jsonHoldsCard reports whether a JSON value holds card data: a text or number in it that looks like a card number, however its
// characters are written, or a member that is named as a card's check value or track.
func jsonHoldsCard(v jsontext.Value) bool {
	d := jsontext.NewDecoder(strings.NewReader(string(v)))
	for {
		kind, at := d.StackIndex(d.StackDepth())
		t, err := d.ReadToken()
		if err != nil {
			return false // the end; what is no JSON was refused before
		}
		switch text := t.String(); t.Kind() {
		case '"':
			if holdsCardNumber(text) || kind == '{' && at%2 == 0 && isCheckValue(text) {
				return true
			}
		case '0':
			if holdsCardNumber(text) {
				return true
			}
		}
	}
}

// isCheckValue knows the names under which what is on a card's back, or in its stripe, would be sent.
func isCheckValue(name string) bool {
	switch strings.ToLower(name) {
	case "cvv", "cvc", "cvv2", "cvc2", "track1", "track2":
		return true
	}
	return false
}
