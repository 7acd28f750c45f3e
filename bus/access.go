package bus

import (
	"crypto/rand"
	"crypto/subtle"
	"log/slog"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sourcegraph/conc/panics"
)

const (
	// boxUser is the box's own connections; no tenant can be called so.
	boxUser = "$box"

	// tenantConnsMax keeps one tenant from taking all connections.
	tenantConnsMax = 32
)

// guard decides who may connect and what they may do. The box's own connections know
// a secret that never leaves the process and may do anything. A tenant may subscribe
// to its own events and do nothing else.
type guard struct {
	secret       string
	authenticate func(user, password string) (string, bool)
	log          *slog.Logger

	mu    sync.Mutex // guards what follows
	srv   *server.Server
	conns map[string]map[uint64]struct{} // tenant → ids of its connections, also of some that have ended
}

func newGuard(authenticate func(user, password string) (string, bool), log *slog.Logger) *guard {
	return &guard{secret: rand.Text() + rand.Text(), authenticate: authenticate, log: log}
}

// watch tells the guard which server it stands before.
func (g *guard) watch(srv *server.Server) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.srv, g.conns = srv, map[string]map[uint64]struct{}{}
}

// Check is called by the server for every connection.
func (g *guard) Check(c server.ClientAuthentication) bool {
	o := c.GetOpts()
	if o.Username == boxUser {
		if subtle.ConstantTimeCompare([]byte(o.Password), []byte(g.secret)) != 1 {
			return false
		}
		c.RegisterUser(&server.User{Username: boxUser})
		return true
	}
	if c.Kind() != server.CLIENT || g.authenticate == nil {
		return false
	}
	var tenant string
	var ok bool
	// A panic on the server's goroutine would end the process.
	if err := panics.Try(func() { tenant, ok = g.authenticate(o.Username, o.Password) }).AsError(); err != nil {
		g.log.Error("panic while authenticating a NATS client", "err", err)
		return false
	}
	// The name becomes a subject: anything but a label could be a wildcard.
	if !ok || !isLabel(tenant) || !g.admit(tenant, c.GetID()) {
		return false
	}
	c.RegisterUser(&server.User{Username: tenant, Permissions: tenantPermissions(tenant)})
	return true
}

func tenantPermissions(tenant string) *server.Permissions {
	return &server.Permissions{
		Publish: &server.SubjectPermission{Deny: []string{">"}},
		Subscribe: &server.SubjectPermission{
			Allow: []string{subjectPrefix + tenant + ".>"},
			// Not allowed already; said again so that a wider Allow never opens them.
			Deny: []string{"$JS.API.>", "$SYS.>"},
		},
	}
}

// admit counts a connection in, unless the tenant has too many that are alive.
func (g *guard) admit(tenant string, id uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.srv == nil {
		return false
	}
	ids := g.conns[tenant]
	if ids == nil {
		ids = map[uint64]struct{}{}
		g.conns[tenant] = ids
	}
	if len(ids) >= tenantConnsMax {
		for id := range ids {
			if g.srv.GetClient(id) == nil {
				delete(ids, id)
			}
		}
	}
	if len(ids) >= tenantConnsMax {
		return false
	}
	ids[id] = struct{}{}
	return true
}

// Disconnect ends the connections of a tenant: its key has changed, or it was disabled.
func (b *Bus) Disconnect(tenant string) {
	g := b.guard
	g.mu.Lock()
	srv, ids := g.srv, g.conns[tenant]
	delete(g.conns, tenant)
	g.mu.Unlock()
	for id := range ids {
		_ = srv.DisconnectClientByID(id) // gone already: as wished
	}
}

// isLabel says whether s is a DNS label, as tenants' names are.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
