package tenants

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	domainsMax    = 32                // a shop has a handful of names; the index holds them all in memory
	urlMax        = 2048              // bytes of an upstream base URL
	accountMax    = 128               // characters of an upstream account's name
	upstreamKey   = 512               // bytes of an upstream key; processors' are about 100
	currenciesMax = 200               // ISO 4217 has fewer
	rateMax       = 1_000_000         // requests a second; more than any box serves
	amountMax     = 999_999_999_999   // minor units of one payment, as the ledger has it
	totalMax      = 1_000_000_000_000 // of all offline payments of a currency together; sums stay far inside int64
	countMax      = 100_000_000       // offline payments outstanding
	ageMaxH       = 10 * 366 * 24     // hours
)

// InvalidError says which setting of a tenant cannot be accepted.
type InvalidError struct {
	Field   string // as the API names it: domains, upstream.url, offline.usd.max_total, …
	Message string
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Message }

// Tenant is one of those who share the box. Values from a [Registry] are shared: read only.
type Tenant struct {
	ID        ID
	Domains   []string                // host names by which its clients may call, beside ID.base-domain
	Disabled  bool                    // refused; what it has taken is still settled
	Offline   map[string]OfflineLimit // by currency, lower case; a currency not named is refused offline. nil: no limit at all
	Upstream  *Upstream               // nil: the box's own account
	RateLimit *RateLimit              // nil: no limit of its own
	KeyPrefix string                  // the first characters of the API key, to recognise it by
	CreatedAt time.Time
}

// OfflineLimit bounds what may be taken in a currency while the line is down. Zero means no limit of that kind.
type OfflineLimit struct {
	MaxAmount int64 // minor units of one payment
	MaxTotal  int64 // minor units of all that are unsettled
	MaxCount  int64 // unsettled payments
	MaxAgeH   int   // hours; no new offline payment while the oldest unsettled is older
}

// Upstream is a processor's account of a tenant's own. URL and Account name it; the key may rotate.
type Upstream struct {
	URL     string // base; its /charges is called
	Account string // a name for it, of this tenant alone
	Key     Secret
	Rate    int // payments a second that it is sent at most; 0: learned from its refusals
}

// RateLimit bounds a tenant's requests.
type RateLimit struct {
	PerSecond int // sustained
	Burst     int // at once; 0: as many as PerSecond
}

// New is what a tenant begins with. Only ID is required.
type New struct {
	ID        ID
	Domains   []string
	Offline   map[string]OfflineLimit
	Upstream  *Upstream
	RateLimit *RateLimit
}

// clone copies what t shares.
func (t Tenant) clone() Tenant {
	t.Domains, t.Offline = slices.Clone(t.Domains), maps.Clone(t.Offline)
	if t.Upstream != nil {
		u := *t.Upstream
		t.Upstream = &u
	}
	if t.RateLimit != nil {
		l := *t.RateLimit
		t.RateLimit = &l
	}
	return t
}

// normalise checks the settings of a tenant and brings names into their one spelling. It reports all problems.
func (t *Tenant) normalise(baseDomain string) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &InvalidError{field, fmt.Sprintf(format, args...)})
	}
	if !validLabel(string(t.ID)) {
		bad("id", "%v", ErrIDInvalid)
	}
	if len(t.Domains) > domainsMax {
		bad("domains", "at most %d", domainsMax)
	}
	t.Domains = slices.Clone(t.Domains)
	for i, d := range t.Domains {
		name, ok := ParseDomain(d)
		switch {
		case !ok:
			bad("domains", "must be host names without scheme, port or path (international ones as xn--…), no addresses")
		case baseDomain != "" && (name == baseDomain || strings.HasSuffix(name, "."+baseDomain)):
			bad("domains", "names below the box's base domain belong to the tenants of those names")
		case slices.Contains(t.Domains[:i], name):
			bad("domains", "each name once")
		}
		t.Domains[i] = name
	}
	if len(t.Offline) > currenciesMax {
		bad("offline", "at most %d currencies", currenciesMax)
	}
	for c, l := range t.Offline {
		if !validCurrency(c) {
			bad("offline", "currencies are three letters in lower case, such as usd")
			continue
		}
		for _, f := range []struct {
			name       string
			value, max int64
		}{
			{"max_amount", l.MaxAmount, amountMax}, {"max_total", l.MaxTotal, totalMax},
			{"max_count", l.MaxCount, countMax}, {"max_age_h", int64(l.MaxAgeH), ageMaxH},
		} {
			if f.value < 0 || f.value > f.max {
				bad("offline."+c+"."+f.name, "must be from 0 (no limit) to %d", f.max)
			}
		}
	}
	if u := t.Upstream; u != nil {
		errs = append(errs, u.normalise()...)
	}
	if l := t.RateLimit; l != nil {
		if l.PerSecond < 1 || l.PerSecond > rateMax {
			bad("rate_limit.per_second", "must be from 1 to %d", rateMax)
		}
		if l.Burst < 0 || l.Burst > rateMax {
			bad("rate_limit.burst", "must be from 0 (as per_second) to %d", rateMax)
		}
	}
	return errors.Join(errs...)
}

// normalise brings the address into its one spelling, because it is half of the account's name.
func (u *Upstream) normalise() (errs []error) {
	bad := func(field, message string) { errs = append(errs, &InvalidError{"upstream." + field, message}) }
	at, err := url.Parse(u.URL)
	if err != nil || len(u.URL) > urlMax || (at.Scheme != "https" && at.Scheme != "http") || at.Hostname() == "" ||
		at.User != nil || at.RawQuery != "" || at.ForceQuery || strings.Contains(u.URL, "#") {
		bad("url", "must be an https or http address without user, query or fragment")
	} else {
		at.Host = strings.ToLower(at.Host)
		for scheme, port := range map[string]string{"https": ":443", "http": ":80"} {
			if at.Scheme == scheme {
				at.Host = strings.TrimSuffix(at.Host, port)
			}
		}
		u.URL = strings.TrimRight(at.String(), "/")
	}
	if u.Account == "" || len(u.Account) > accountMax || strings.ContainsFunc(u.Account, notInAccount) {
		bad("account", fmt.Sprintf("must be 1 to %d letters, digits, dashes, dots or underscores", accountMax))
	}
	if u.Key == "" || len(u.Key) > upstreamKey || !printable(string(u.Key)) || strings.Contains(string(u.Key), " ") {
		bad("key", "the account's secret key, printable ASCII without spaces")
	}
	if u.Rate < 0 || u.Rate > rateMax {
		bad("rate", fmt.Sprintf("must be from 0 (learned) to %d", rateMax))
	}
	return errs
}

func notInAccount(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
}

func validCurrency(s string) bool {
	return len(s) == 3 && !strings.ContainsFunc(s, func(r rune) bool { return r < 'a' || r > 'z' })
}

// printable reports whether s holds only ASCII characters that can stand in a header or a log line.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
