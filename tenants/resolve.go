package tenants

import (
	"encoding/base64"
	"errors"
	"strings"
)

// Why a request's caller is refused. Messages are safe to show; none tells whether a foreign tenant exists.
var (
	ErrAuthMissing     = errors.New("no API key: send Authorization: Bearer KEY")                                  // 401
	ErrAuthInvalid     = errors.New("the API key is not valid")                                                    // 401
	ErrHeaderDuplicate = errors.New("the headers Authorization and X-Tenant-ID may be given once, with one value") // 400
	ErrTenantInvalid   = errors.New("the request names a tenant that cannot exist")                                // 400
	ErrTenantMissing   = errors.New("the operator's token acts for the tenant that the request names")             // 400
	ErrTenantMismatch  = errors.New("the request names another tenant than the one that the key is for")           // 403
	ErrTenantDisabled  = errors.New("the tenant is disabled")                                                      // 403
	ErrOperatorOnly    = errors.New("only the operator may do this")                                               // 403
	ErrTenantUnknown   = errors.New("no such tenant")                                                              // 404, told to the operator only
)

// Credentials are the parts of a request that say who is calling, as they came.
type Credentials struct {
	Authorization []string // all values of the header
	TenantHeader  []string // all values of X-Tenant-ID
	Host          string   // the request's Host, with or without port
}

// Caller is who is calling.
type Caller struct {
	Tenant   ID   // whom the request acts for; "" when the operator names none
	Operator bool // the credential is the operator's token
}

// Resolve says who is calling and for whom. The named tenant is the header's, else the subdomain's of the base domain,
// else the one that registered the host; none named: the key's own. A tenant's key acts for its own tenant only.
// A request without valid credentials learns nothing but that. Callers decide on ErrTenantMissing: not every route needs a tenant.
func (r *Registry) Resolve(c Credentials) (Caller, error) {
	s := r.snapshot.Load()
	own, operator, err := s.authenticate(c)
	if err != nil {
		return Caller{}, err
	}
	named, err := s.named(c)
	if err != nil {
		return Caller{}, err
	}
	if operator {
		if named == "" {
			return Caller{Operator: true}, nil
		}
		if own = s.byID[named]; own == nil {
			return Caller{}, ErrTenantUnknown
		}
	}
	if named != "" && named != own.ID {
		return Caller{}, ErrTenantMismatch
	}
	if own.Disabled {
		return Caller{}, ErrTenantDisabled
	}
	return Caller{Tenant: own.ID, Operator: operator}, nil
}

// ResolveOperator checks the operator's token where no tenant is acted for; whom the request names does not matter, how does.
func (r *Registry) ResolveOperator(c Credentials) error {
	s := r.snapshot.Load()
	_, operator, err := s.authenticate(c)
	if err != nil {
		return err
	}
	if !operator {
		return ErrOperatorOnly
	}
	_, err = s.named(c)
	return err
}

// HostAllowed reports whether the host is one of the box's own names: the base domain, a name directly below
// it, or a domain of a tenant.
func (r *Registry) HostAllowed(host string) bool {
	name, ok := HostName(host)
	if !ok {
		return false
	}
	s := r.snapshot.Load()
	if s.baseDomain != "" && name == s.baseDomain {
		return true
	}
	if below, ok := s.below(name); ok {
		return validLabel(below)
	}
	_, ok = s.byDomain[name]
	return ok
}

// authenticate finds the tenant whose key it is, or the operator. Work and time are the same for a key that is unknown and
// one that is wrong: one hash, two comparisons.
func (s *snapshot) authenticate(c Credentials) (own *entry, operator bool, err error) {
	if len(c.Authorization) > 1 || len(c.TenantHeader) > 1 {
		return nil, false, ErrHeaderDuplicate
	}
	if len(c.Authorization) == 0 || c.Authorization[0] == "" {
		return nil, false, ErrAuthMissing
	}
	header := c.Authorization[0]
	if strings.IndexByte(header, ',') >= 0 { // how proxies join two headers into one; no credential holds a comma
		return nil, false, ErrHeaderDuplicate
	}
	credential, ok := credentialIn(header)
	if !ok {
		return nil, false, ErrAuthInvalid
	}
	given := digestOf(credential)
	want := &noDigest
	if len(credential) == keyLen {
		if own = s.byKey[credential[:keyLookup]]; own != nil {
			want = &own.key
		}
	}
	right := given.equal(want)
	operator = given.equal(&s.operator) && s.hasOperator
	switch {
	case operator:
		return nil, true, nil
	case right && own != nil:
		return own, false, nil
	}
	return nil, false, ErrAuthInvalid
}

// credentialIn takes the credential out of an Authorization header: Bearer, or Basic with it as the user name, any password.
func credentialIn(header string) (string, bool) {
	scheme, rest, found := strings.Cut(header, " ")
	if !found || len(rest) > 2*credentialMx {
		return "", false
	}
	rest = strings.TrimLeft(rest, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
	case strings.EqualFold(scheme, "Basic"):
		decoded, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return "", false
		}
		if rest, _, found = strings.Cut(string(decoded), ":"); !found {
			return "", false
		}
	default:
		return "", false
	}
	if rest == "" || len(rest) > credentialMx {
		return "", false
	}
	for i := range len(rest) {
		if rest[i] <= ' ' || rest[i] > '~' {
			return "", false
		}
	}
	return rest, true
}

// named returns the tenant that the request names, "" when it names none.
func (s *snapshot) named(c Credentials) (ID, error) {
	if len(c.TenantHeader) > 0 {
		value := c.TenantHeader[0]
		if strings.IndexByte(value, ',') >= 0 {
			return "", ErrHeaderDuplicate
		}
		id, err := ParseID(value)
		if err != nil {
			return "", ErrTenantInvalid
		}
		return id, nil
	}
	if s.baseDomain == "" && len(s.byDomain) == 0 {
		return "", nil
	}
	name, ok := HostName(c.Host)
	if !ok {
		return "", nil // an odd host names nobody; whether it is served at all is HostAllowed's question
	}
	if below, ok := s.below(name); ok {
		id, err := ParseID(below)
		if err != nil {
			return "", ErrTenantInvalid
		}
		return id, nil
	}
	return s.byDomain[name], nil
}

// below returns what stands before the base domain, if anything does.
func (s *snapshot) below(name string) (string, bool) {
	if s.baseDomain == "" {
		return "", false
	}
	rest, ok := strings.CutSuffix(name, s.baseDomain)
	if !ok || !strings.HasSuffix(rest, ".") {
		return "", false
	}
	return rest[:len(rest)-1], true
}
