package web

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"tenderbox/tenants"
)

// hosts is the list of names that the box answers to. A page on a foreign name that its owner points at this
// machine (DNS rebinding) is thereby refused, whatever the browser thinks of its origin.
type hosts struct {
	names   map[string]bool
	tenants *tenants.Registry
}

func newHosts(names []string, registry *tenants.Registry) (*hosts, error) {
	h := &hosts{names: map[string]bool{"localhost": true}, tenants: registry}
	var errs []error
	for _, n := range names {
		name, ok := tenants.HostName(n)
		if !ok {
			errs = append(errs, fmt.Errorf("allow-host: %q is no host name", n))
		}
		h.names[name] = true
	}
	return h, errors.Join(errs...)
}

// allowed reports whether a Host header names this box: loopback, any IP address (one cannot be rebound), the base
// domain, a tenant's domain, or a name that the operator allowed.
func (h *hosts) allowed(host string) bool {
	name, ok := tenants.HostName(host)
	if !ok {
		return false
	}
	if h.names[name] || strings.HasSuffix(name, ".localhost") {
		return true
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return h.tenants.HostAllowed(host)
}

// origins decides which other sites' pages may call.
type origins struct {
	check   *http.CrossOriginProtection
	trusted map[string]bool
}

func newOrigins(trusted []string) (*origins, error) {
	o := &origins{check: http.NewCrossOriginProtection(), trusted: map[string]bool{}}
	var errs []error
	for _, t := range trusted {
		u, err := url.Parse(t)
		if err == nil && (u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Host != strings.ToLower(u.Host)) {
			err = errors.New("write scheme://host or scheme://host:port in lower case")
		}
		if err == nil {
			err = o.check.AddTrustedOrigin(t)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("allow-origin: %q: %w", t, err))
			continue
		}
		o.trusted[t] = true
	}
	return o, errors.Join(errs...)
}

// What a trusted site's pages may send and read (the Fetch standard's CORS protocol).
const (
	corsMethods = "GET, POST, PUT, PATCH, DELETE"
	corsHeaders = "Authorization, Content-Type, Idempotency-Key, Prefer, Stripe-Version, X-Tenant-ID"
	corsExposed = "Idempotent-Replayed, Location, Preference-Applied, Request-Id, Retry-After, Stripe-Should-Retry"
	corsMaxAge  = "600" // seconds that a browser may remember the answer; an operator's change is seen soon
)

// permit sets the headers that let a trusted site's page read the answer. It reports whether the request was a preflight,
// which is thereby answered.
func (o *origins) permit(x *exchange) (answered bool) {
	if len(o.trusted) == 0 {
		return false
	}
	h := x.Header()
	h.Add("Vary", "Origin")
	origin := x.r.Header.Get("Origin")
	if !o.trusted[origin] {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", corsExposed)
	if x.r.Method != http.MethodOptions || x.r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", corsMethods)
	h.Set("Access-Control-Allow-Headers", corsHeaders)
	h.Set("Access-Control-Max-Age", corsMaxAge)
	x.WriteHeader(http.StatusNoContent)
	return true
}
