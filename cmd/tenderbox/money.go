package main

import (
	"fmt"
	"strings"

	"golang.org/x/text/currency"
)

// inWords writes minor units as people write the currency: 1999 usd is "19.99 USD", 1999 jpy "1999 JPY". A
// code that ISO 4217 does not know is shown as it is stored.
func inWords(minor int64, code string) string {
	unit, err := currency.ParseISO(code)
	if err != nil {
		return fmt.Sprintf("%d %s", minor, code)
	}
	sign := ""
	if minor < 0 {
		sign, minor = "-", -minor
	}
	digits := fmt.Sprint(minor)
	if scale, _ := currency.Standard.Rounding(unit); scale > 0 {
		digits = fmt.Sprintf("%0*d", scale+1, minor)
		digits = digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
	}
	return sign + digits + " " + strings.ToUpper(code)
}
