package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/sourcegraph/conc/panics"
	"golang.org/x/sync/errgroup"
)

// Errors of Accounts.Get.
var (
	// ErrURLInvalid: a base URL must be http or https with a host, and nothing but a path behind it.
	ErrURLInvalid = errors.New("upstream url: want http(s)://host[:port][/path], without user, query or fragment")
	// ErrKeyInvalid: a key that cannot stand in a header.
	ErrKeyInvalid = errors.New("upstream key: printable ASCII only, at most 512 characters")
	// ErrAccountInvalid: an account name that cannot stand in a log line.
	ErrAccountInvalid = errors.New("upstream account: 1 to 128 letters, digits, '-', '_' or '.'")
	// ErrAccountMissing: an upstream that is not the box's own needs a name. Without one, two tenants' keys
	// would share an account, and one tenant's charges could be sent with the other's key.
	ErrAccountMissing = errors.New("upstream account: an upstream with its own url or key needs an account name")
	// ErrKeyMissing: the box's own key is never sent to another account or URL.
	ErrKeyMissing = errors.New("upstream key: missing for an upstream that is not the box's own")
	// ErrKeyOfBox: another key was given for the box's own account.
	ErrKeyOfBox = errors.New("upstream key: the box's own account takes its key from the box's settings only; name the account differently")
)

// keyLengthMax bounds a header that goes out with every request; Stripe's keys have about 110 characters.
const keyLengthMax = 512

// Accounts is the set of upstream accounts in use, one for each (base URL, account name).
type Accounts struct {
	cfg   Config
	own   identity // the box's own account
	ownIs bool     // own is configured

	mu        sync.Mutex // guards what follows; before an Account's locks
	all       map[identity]*Account
	callbacks []func(*Account, Link)
	forced    bool          // every line is offline by word, those of accounts to come too
	added     chan struct{} // closed and replaced when an account is added
}

type identity struct{ url, account string }

// NewAccounts makes the set; defaults describes the box's own account and every account's behaviour.
// Settings that Validate would refuse leave the box's own account unconfigured.
func NewAccounts(defaults Config) *Accounts {
	cfg := defaults.withDefaults()
	as := &Accounts{cfg: cfg, all: map[identity]*Account{}, added: make(chan struct{})}
	if base, err := parseBase(cfg.URL); err == nil && cfg.Validate() == nil {
		as.own, as.ownIs = identity{base, cfg.Account}, true
	} else {
		if cfg.URL != "" {
			cfg.Logger.Error("upstream settings cannot work: nothing will be sent", "error", errors.Join(err, cfg.Validate()))
		}
		as.own = identity{"", cfg.Account}
	}
	as.all[as.own] = newAccount(as, as.own, cfg.Key)
	as.all[as.own].SetRate(cfg.Rate)
	return as
}

// Get returns the account of that base URL and name, making it on first use. All empty: the box's own account,
// which may be unconfigured. url empty: the box's URL. key empty: the key that the account already has.
//
// Equal (url, account) is one account: one breaker, one judge, one hold. Another key for it replaces the old one
// and lifts the hold that the old one earned.
func (as *Accounts) Get(url, account, key string) (*Account, error) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if url == "" && account == "" && (key == "" || key == as.cfg.Key) {
		return as.all[as.own], nil
	}
	id := identity{as.own.url, account}
	if url != "" {
		base, err := parseBase(url)
		if err != nil {
			return nil, err
		}
		id.url = base
	}
	if account == "" {
		if id.url != as.own.url || key != "" && key != as.cfg.Key {
			return nil, ErrAccountMissing
		}
		id.account = as.own.account
	} else if !validAccount(account) {
		return nil, ErrAccountInvalid
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if id == as.own {
		if key != "" && key != as.cfg.Key {
			return nil, ErrKeyOfBox
		}
		return as.all[as.own], nil
	}
	if a := as.all[id]; a != nil {
		if key != "" {
			a.rotate(key)
		}
		return a, nil
	}
	if key == "" {
		return nil, ErrKeyMissing
	}
	a := newAccount(as, id, key)
	a.judge.force(as.forced)
	as.all[id] = a
	close(as.added)
	as.added = make(chan struct{})
	return a, nil
}

// List returns all accounts, in no order.
func (as *Accounts) List() []*Account {
	as.mu.Lock()
	defer as.mu.Unlock()
	list := make([]*Account, 0, len(as.all))
	for _, a := range as.all {
		list = append(list, a)
	}
	return list
}

// ForceLink is Account.ForceLink for all accounts, those to come too.
func (as *Accounts) ForceLink(state string) error {
	offline, err := forcedOffline(state)
	if err != nil {
		return err
	}
	as.mu.Lock()
	as.forced = offline
	as.mu.Unlock()
	for _, a := range as.List() {
		err = errors.Join(err, a.ForceLink(state))
	}
	return err
}

// ForceBreaker is Account.ForceBreaker for all accounts there are.
func (as *Accounts) ForceBreaker(state string) error {
	var err error
	for _, a := range as.List() {
		err = errors.Join(err, a.ForceBreaker(state))
	}
	return err
}

// OnChange adds a function that is called after each change of an account's link state, breaker state or
// readiness. Calls for one account come one after the other, the last of them with the state that
// stays; changes that overtake each other may share a call. No lock is held meanwhile, but sends on the
// account wait for nobody, so a slow function delays only its successors.
func (as *Accounts) OnChange(f func(*Account, Link)) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.callbacks = append(as.callbacks, f)
}

// Run probes every account, those added later too, until ctx ends; then it closes idle connections and returns nil.
// It must run for an account ever to become ready when nothing is sent on it. Run it once.
func (as *Accounts) Run(ctx context.Context) error {
	defer as.CloseIdleConnections()
	group, ctx := errgroup.WithContext(ctx)
	started := map[*Account]bool{}
	for {
		as.mu.Lock()
		added := as.added
		as.mu.Unlock()
		for _, a := range as.List() {
			if !started[a] {
				started[a] = true
				group.Go(func() error {
					if err := panics.Try(func() { a.watch(ctx) }).AsError(); err != nil {
						return fmt.Errorf("watch upstream account %s: %w", a.id.account, err)
					}
					return nil
				})
			}
		}
		select {
		case <-added:
		case <-ctx.Done():
			return group.Wait()
		}
	}
}

// CloseIdleConnections closes kept-alive connections that are not in use, for a stop without leftovers.
func (as *Accounts) CloseIdleConnections() {
	for _, a := range as.List() {
		a.closeIdle()
	}
}

// parseBase returns the base URL in the form in which it identifies an account.
func parseBase(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "" ||
		u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || !headerSafe(raw) {
		return "", ErrURLInvalid // never quoting it: it may hold a password
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	return u.Scheme + "://" + strings.ToLower(u.Host) + path, nil
}

func checkKey(key string) error {
	if len(key) > keyLengthMax || !headerSafe(key) || strings.Contains(key, " ") {
		return ErrKeyInvalid
	}
	return nil
}

// validAccount reports whether name may name an account.
func validAccount(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// headerSafe reports whether s is printable ASCII only.
func headerSafe(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}

// requestPath reports whether p may be appended to the base URL.
func requestPath(p string) bool {
	return strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "//") && headerSafe(p) && !strings.ContainsAny(p, " #\\")
}
