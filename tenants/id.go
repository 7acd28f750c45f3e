package tenants

import "errors"

// ID names a tenant. It is a DNS label, so that it is safe as subdomain, NATS
// token, key prefix and file name alike. [ParseID] makes one from outside text.
type ID string

// ErrIDInvalid says that a name is no tenant's name.
var ErrIDInvalid = errors.New("a tenant's name has 1 to 63 of a-z, 0-9 and inner dashes")

// idMax is the longest DNS label (RFC 1035).
const idMax = 63

// ParseID accepts [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])? and nothing else.
func ParseID(s string) (ID, error) {
	if !validLabel(s) {
		return "", ErrIDInvalid
	}
	return ID(s), nil
}

func validLabel(s string) bool {
	if len(s) == 0 || len(s) > idMax || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
