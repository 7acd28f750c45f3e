package tenants

import (
	"net/netip"
	"strings"
)

// domainMax is the length of a host name in text (RFC 1035, section 2.3.4, less the trailing dot).
const domainMax = 253

// HostName returns the name or address in a Host header's value: without port, brackets and trailing dot, in lower case.
// ok is false when it is neither a host name nor an IP address.
func HostName(host string) (name string, ok bool) {
	if len(host) > domainMax+len(".:65535") {
		return "", false
	}
	if rest, found := strings.CutPrefix(host, "["); found {
		address, port, found := strings.Cut(rest, "]")
		if a, err := netip.ParseAddr(address); !found || err != nil || !a.Is6() || a.Zone() != "" || (port != "" && !validPort(port)) {
			return "", false
		}
		return address, true
	}
	if i := strings.IndexByte(host, ':'); i >= 0 {
		if !validPort(host[i:]) {
			return "", false
		}
		host = host[:i]
	}
	name = strings.ToLower(strings.TrimSuffix(host, "."))
	if !validHostName(name) {
		return "", false
	}
	return name, true
}

// ParseDomain returns the one spelling of a domain that a tenant may register: a host name that is no IP address and no
// name of this machine itself.
func ParseDomain(s string) (string, bool) {
	name, ok := HostName(s)
	if !ok || strings.ContainsAny(s, ":[") || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return "", false
	}
	// What ends in a number is an address to somebody (WHATWG URL, "ends in a number checker").
	last := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "", false
	}
	return name, true
}

func validPort(s string) bool { // ":1" to ":65535"; browsers also send none
	if len(s) < 2 || len(s) > 6 || s[0] != ':' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// validHostName accepts letters, digits, hyphens, and, because networks are full of them, underscores.
func validHostName(s string) bool {
	if s == "" || len(s) > domainMax {
		return false
	}
	label := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			if label == 0 || label > idMax || s[i-1] == '-' || s[i-label] == '-' {
				return false
			}
			label = 0
			continue
		}
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
		label++
	}
	return true
}
