package ledger

import "strings"

const (
	panDigitsMin = 14 // Diners Club, the shortest that schemes still issue
	panDigitsMax = 19 // ISO/IEC 7812
)

// holdsCardNumber reports whether s contains what looks like a card number: 14
// to 19 digits, also grouped by single spaces or dashes, that begin as a card
// scheme's numbers do and end in a valid check digit (ISO/IEC 7812-1, Luhn).
func holdsCardNumber(s string) bool {
	if !strings.ContainsAny(s, "23456") { // the schemes' first digits; most texts end here
		return false
	}
	var digits [128]byte
	n := 0
	flush := func() bool {
		found := n >= panDigitsMin && anyCardNumber(digits[:n])
		n = 0
		return found
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case '0' <= c && c <= '9':
			if n == len(digits) {
				// A run this long is no number that a person typed; keep its end,
				// where a card number could still hide.
				copy(digits[:], digits[len(digits)-panDigitsMax+1:])
				n = panDigitsMax - 1
			}
			digits[n] = c - '0'
			n++
			if n == len(digits) && anyCardNumber(digits[:n]) {
				return true
			}
		case (c == ' ' || c == '-') && n > 0 && i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9':
			// one separator inside a group of digits
		default:
			if flush() {
				return true
			}
		}
	}
	return flush()
}

// anyCardNumber looks at the whole run, and at each card-length part of a longer one.
func anyCardNumber(run []byte) bool {
	if len(run) <= panDigitsMax {
		return schemePrefix(run) && luhn(run)
	}
	for from := 0; from+16 <= len(run); from++ { // 16: what all large schemes issue
		if part := run[from : from+16]; schemePrefix(part) && luhn(part) {
			return true
		}
	}
	return false
}

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
