package webhook

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	urlMax  = 2048
	nameMax = 253 // of a host's name in text (RFC 1035)
	// portsFree is where ports begin that need no privilege. Below it only those of the web are taken: what else listens there
	// is mail, files, names and remote logins, which have misread HTTP before.
	portsFree = 1024
)

// portsBad are ports above portsFree that browsers refuse, for the same reason (WHATWG Fetch, "bad port").
var portsBad = []uint64{1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080}

// namesLocal end names that exist on a LAN only (RFC 6761, 6762, 8375, ICANN's .internal).
var namesLocal = []string{"localhost", "local", "internal", "home.arpa", "lan", "localdomain"}

// URLError says why a URL cannot be an endpoint's.
type URLError struct{ Message string }

func (e *URLError) Error() string { return "url: " + e.Message }

// ValidateURL judges a URL when it is saved; what a name stands for is judged again whenever it is dialled. The error is a *[URLError]
// and holds nothing of the URL.
//
// Taken is https to a public host. If the operator allows the LAN: http too, and private hosts.
func ValidateURL(raw string, allowLAN bool) error {
	bad := func(format string, args ...any) error { return &URLError{fmt.Sprintf(format, args...)} }
	if raw == "" || len(raw) > urlMax || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		return bad("must be an address of up to %d printable ASCII characters (international names as xn--…)", urlMax)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "":
		return bad("must be an address such as https://shop.example/hooks")
	case u.Scheme != "https" && u.Scheme != "http":
		return bad("must begin with https://")
	case u.Scheme == "http" && !allowLAN:
		return bad("must begin with https://; plain http is for the LAN, and the operator has not allowed it")
	case u.User != nil:
		return bad("must not hold a user or password; put a token into the path or query")
	case strings.Contains(raw, "#"):
		return bad("must not have a fragment")
	}
	if err := validatePort(u); err != nil {
		return err
	}
	return validateHost(u.Hostname(), strings.HasPrefix(u.Host, "["), allowLAN)
}

func validatePort(u *url.URL) error {
	text := u.Port()
	if text == "" {
		if strings.HasSuffix(u.Host, ":") {
			return &URLError{"must have a number after the colon of the port"}
		}
		return nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || text[0] == '0' || port != 80 && port != 443 && port < portsFree || slices.Contains(portsBad, port) {
		return &URLError{fmt.Sprintf("must have port 443, 80 or one from %d that no other protocol is known for", portsFree)}
	}
	return nil
}

func validateHost(host string, bracketed, allowLAN bool) error {
	if a, err := netip.ParseAddr(host); err == nil {
		switch {
		case a.Zone() != "" || a.Is6() != bracketed:
			return &URLError{"must name its host as a name or a plain address"}
		case a.Is4In6():
			return &URLError{"must write an IPv4 address as one"}
		}
		if err := guardFor(allowLAN).check(a); err != nil {
			return &URLError{"its address: " + err.Error()}
		}
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if bracketed || !validName(name) {
		return &URLError{"must name its host as a name or a plain address"}
	}
	labels := strings.Split(name, ".")
	// What ends in a number is an address to somebody: 2130706433, 0x7f.1, 0177.0.0.1, 127.1 (WHATWG URL, "ends in a number checker").
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return &URLError{"must write an address as four decimal numbers without leading zeros"}
	}
	local := len(labels) == 1 || slices.ContainsFunc(namesLocal, func(l string) bool { return name == l || strings.HasSuffix(name, "."+l) })
	if local && !allowLAN {
		return &URLError{"its name exists on a LAN only, and the operator has not allowed the LAN"}
	}
	return nil
}

// validName accepts labels of letters, digits, hyphens and, because networks are full of them, underscores.
func validName(name string) bool {
	if name == "" || len(name) > nameMax {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return notInID(r) }) {
			return false
		}
	}
	return true
}
