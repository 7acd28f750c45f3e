package ledger

import (
	"fmt"
	"strings"

	"golang.org/x/text/currency"
)

// Money is an amount in minor units (cents; yen have none) of an ISO 4217
// currency, written in lower case as Stripe writes it.
type Money struct {
	Amount   int64
	Currency string
}

// String writes the amount as people write the currency: 1999 usd is "19.99
// USD", 1999 jpy "1999 JPY". A code that ISO 4217 does not know is shown as it is.
func (m Money) String() string {
	unit, err := currency.ParseISO(m.Currency)
	if err != nil {
		return fmt.Sprintf("%d %s", m.Amount, m.Currency)
	}
	sign, minor := "", m.Amount
	if minor < 0 {
		sign, minor = "-", -minor
	}
	digits := fmt.Sprint(minor)
	if scale, _ := currency.Standard.Rounding(unit); scale > 0 {
		digits = fmt.Sprintf("%0*d", scale+1, minor)
		digits = digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
	}
	return sign + digits + " " + strings.ToUpper(m.Currency)
}

// amountMax is the highest amount of one payment, in minor units: twelve
// digits, the most that a processor's API documents for any currency. Nine
// million payments of it still add up inside an int64.
const amountMax = 999_999_999_999

// parseCurrency returns the lower-case code of a currency that money can be
// taken in. ISO 4217's X codes that are no currencies of a place (XXX "no
// currency", XTS "testing", metals, bond units) are refused.
func parseCurrency(s string) (string, bool) {
	if len(s) != 3 {
		return "", false
	}
	if _, err := currency.ParseISO(s); err != nil {
		return "", false
	}
	s = strings.ToLower(s)
	if s[0] == 'x' {
		switch s {
		case "xaf", "xcd", "xof", "xpf", "xcg": // real money of several states each
		default:
			return "", false
		}
	}
	return s, true
}
