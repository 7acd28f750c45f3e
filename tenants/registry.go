package tenants

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// tenantsMax is how many a box holds, removed ones included. All are kept in memory, some 500 bytes each.
const tenantsMax = 10_000

// What a change may be refused for, besides an *[InvalidError] and the errors of the store.
var (
	ErrExists      = errors.New("a tenant of this name exists or has existed")
	ErrNotFound    = errors.New("no such tenant")
	ErrDomainUsed  = errors.New("the domain belongs to another tenant")
	ErrAccountUsed = errors.New("the upstream account belongs to another tenant; the same account under another name is fine")
	ErrEnabled     = errors.New("only a disabled tenant can be removed")
	ErrTooMany     = fmt.Errorf("a box holds at most %d tenants, removed ones included", tenantsMax)
)

// What the disk may refuse a change for: the store's errors, under a name that callers of this package know. Only after
// ErrUnknown may the change have happened.
var (
	ErrFull        = store.ErrFull
	ErrUnknown     = store.ErrUnknown
	ErrOverloaded  = store.ErrOverloaded
	ErrUnavailable = store.ErrUnavailable
	ErrClosed      = store.ErrClosed
)

// Options tune a Registry. The zero value works.
type Options struct {
	BaseDomain string           // tenants are reached as ID.BaseDomain; "": not
	Now        func() time.Time // nil: time.Now
	Logger     *slog.Logger     // nil: silent

	// CheckURL judges a webhook endpoint's URL when it is saved, and returns an *InvalidError that names "url". nil: any URL will do.
	CheckURL func(url string) error
}

// Registry holds the box's tenants. Its methods are safe for concurrent use; those that only read never wait.
type Registry struct {
	st       *store.Store
	kr       *Keyring
	log      *slog.Logger
	now      func() time.Time
	checkURL func(url string) error

	snapshot atomic.Pointer[snapshot]

	changeMu sync.Mutex // one change at a time; guards stale, and the order of snapshots
	stale    bool       // a change's outcome is unknown: read the file before the next one

	keys *keysRecord // what the file says about the box's keys; set by Open and KeepKeys
}

// snapshot is an immutable view of the registry.
type snapshot struct {
	baseDomain  string
	all         []*entry // newest first, removed ones included
	byID        map[ID]*entry
	byKey       map[string]*entry // by the key's first characters
	byDomain    map[string]ID
	removed     map[ID]bool
	hooks       map[ID][]*hook // webhook endpoints, oldest first; of tenants that are there
	operator    digest
	hasOperator bool
}

// Open reads the registry. The store comes from [OpenFile].
func Open(st *store.Store, kr *Keyring, o Options) (*Registry, error) {
	r := &Registry{st: st, kr: kr, log: o.Logger, now: o.Now, checkURL: o.CheckURL}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	base := ""
	if o.BaseDomain != "" {
		var ok bool
		if base, ok = ParseDomain(o.BaseDomain); !ok {
			return nil, fmt.Errorf("base domain %q: must be a host name without scheme, port or path", o.BaseDomain)
		}
	}
	s, c, err := r.read(base)
	if err != nil {
		return nil, fmt.Errorf("tenants: %w", err)
	}
	r.snapshot.Store(s)
	r.keys = c.keys
	if c.format == 0 {
		if err := r.begin(); err != nil {
			return nil, fmt.Errorf("tenants: %w", err)
		}
	}
	if c.keys != nil || slices.ContainsFunc(s.all, func(e *entry) bool { return e.Upstream != nil }) || len(c.hooks) > 0 {
		// The key has proved to be the box's. Otherwise the caller may know: see [Registry.KeepKeys].
		if err := r.KeepKeys(context.Background()); err != nil {
			return nil, fmt.Errorf("tenants: %w", err)
		}
	}
	for d := range s.byDomain {
		if _, ok := s.below(d); ok || d == base {
			r.log.Warn("a tenant's domain is below the base domain and no longer names it", "domain", d)
		}
	}
	r.copy() // of what was just verified; it also makes up for a copy that a crash prevented
	return r, nil
}

// begin writes what an empty file lacks.
func (r *Registry) begin() error {
	rec := r.kr.record()
	value, err := encodeRecord(keyFormat, formatNow)
	if err != nil {
		return err
	}
	keys, err := encodeRecord(keyKeys, rec)
	if err != nil {
		return err
	}
	r.keys = &rec
	return r.st.Update(context.Background(), func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketTenants, bucketBox, bucketWebhooks} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		box := tx.Bucket(bucketBox)
		return errors.Join(box.Put(keyFormat, value), box.Put(keyKeys, keys))
	})
}

// read builds a snapshot from the file.
func (r *Registry) read(baseDomain string) (_ *snapshot, c contents, err error) {
	err = r.st.View(func(tx *bbolt.Tx) (err error) { c, err = readContents(tx); return err })
	if errors.Is(err, errRecord) {
		err = &store.CorruptError{Path: r.st.Path(), Cause: err}
	}
	if err != nil {
		return nil, c, err
	}
	if c.keys != nil {
		if err := r.kr.fits(c.keys); err != nil {
			return nil, c, err
		}
	}
	entries := make([]*entry, 0, len(c.tenants))
	for i := range c.tenants {
		e, err := c.tenants[i].entry(r.kr)
		if err != nil {
			return nil, c, fmt.Errorf("%s: %w", r.kr.path, err)
		}
		entries = append(entries, e)
	}
	s := newSnapshot(baseDomain, entries)
	for i := range c.hooks {
		h, err := c.hooks[i].hook(r.kr)
		if err != nil {
			return nil, c, fmt.Errorf("%s: %w", r.kr.path, err)
		}
		if s.byID[h.Tenant] != nil { // an older version, which knows no endpoints, may have removed their tenant
			s.hooks[h.Tenant] = append(s.hooks[h.Tenant], h)
		}
	}
	for _, hooks := range s.hooks {
		sortHooks(hooks)
	}
	if c.operator != nil {
		s.operator, s.hasOperator = *c.operator, true
	}
	return s, c, nil
}

func newSnapshot(baseDomain string, entries []*entry) *snapshot {
	s := &snapshot{baseDomain: baseDomain, all: entries, byID: map[ID]*entry{}, byKey: map[string]*entry{},
		byDomain: map[string]ID{}, removed: map[ID]bool{}, hooks: map[ID][]*hook{}}
	slices.SortFunc(s.all, func(a, b *entry) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(string(b.ID), string(a.ID)))
	})
	for _, e := range entries {
		if e.removed {
			s.removed[e.ID] = true
			continue
		}
		s.byID[e.ID], s.byKey[e.KeyPrefix] = e, e
		for _, d := range e.Domains {
			s.byDomain[d] = e.ID
		}
	}
	return s
}

// with returns a snapshot in which e stands, in place of the entry of its id.
func (s *snapshot) with(e *entry) *snapshot {
	all := make([]*entry, 0, len(s.all)+1)
	for _, old := range s.all {
		if old.ID != e.ID {
			all = append(all, old)
		}
	}
	next := newSnapshot(s.baseDomain, append(all, e))
	next.hooks, next.operator, next.hasOperator = s.hooks, s.operator, s.hasOperator
	if e.removed {
		return next.withHooks(e.ID, nil)
	}
	return next
}

// Get returns a tenant, or ErrNotFound. The value is shared: read only.
func (r *Registry) Get(id ID) (Tenant, error) {
	if e := r.snapshot.Load().byID[id]; e != nil {
		return e.Tenant, nil
	}
	return Tenant{}, ErrNotFound
}

// List returns all tenants, newest first. The values are shared: read only.
func (r *Registry) List() []Tenant {
	s := r.snapshot.Load()
	out := make([]Tenant, 0, len(s.byID))
	for _, e := range s.all {
		if !e.removed {
			out = append(out, e.Tenant)
		}
	}
	return out
}

// BaseDomain is the one that the registry was opened with, normalised.
func (r *Registry) BaseDomain() string { return r.snapshot.Load().baseDomain }

// Add makes a tenant and its API key, which is returned here and never again. Errors: ErrExists, ErrDomainUsed, ErrAccountUsed, ErrTooMany,
// *InvalidError, or the store's (of store.ErrUnknown: the tenant may exist; rotate its key).
func (r *Registry) Add(ctx context.Context, n New) (_ Tenant, key string, err error) {
	e := &entry{Tenant: Tenant{ID: n.ID, Domains: n.Domains, Offline: n.Offline, Upstream: n.Upstream, RateLimit: n.RateLimit,
		CreatedAt: r.now().UTC().Truncate(time.Millisecond)}.clone()}
	if err := e.normalise(r.BaseDomain()); err != nil {
		return Tenant{}, "", err
	}
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	s, err := r.current()
	if err != nil {
		return Tenant{}, "", err
	}
	switch {
	case s.byID[n.ID] != nil || s.removed[n.ID]:
		return Tenant{}, "", ErrExists
	case len(s.all) >= tenantsMax:
		return Tenant{}, "", ErrTooMany
	}
	key = s.newKeyFor(e)
	if err := r.store(ctx, s, e); err != nil {
		return Tenant{}, "", err
	}
	r.log.Info("tenant added", "tenant", e.ID)
	return e.Tenant, key, nil
}

// newKeyFor gives e a key whose visible characters no other key has.
func (s *snapshot) newKeyFor(e *entry) string {
	for {
		key, d := newKey()
		if s.byKey[key[:keyLookup]] == nil {
			e.key, e.KeyPrefix = d, key[:keyLookup]
			return key
		}
	}
}

// Update changes a tenant's settings: fn edits a copy, which takes effect when Update returns without error. Id, key and time
// of creation stay what they are whatever fn does. An error of fn is returned as it is.
func (r *Registry) Update(ctx context.Context, id ID, fn func(*Tenant) error) (Tenant, error) {
	e, err := r.change(ctx, id, func(_ *snapshot, e *entry) error {
		t := e.Tenant
		if err := fn(&t); err != nil {
			return err
		}
		t.ID, t.KeyPrefix, t.CreatedAt = e.ID, e.KeyPrefix, e.CreatedAt
		e.Tenant = t.clone() // fn may keep what it was given and what it put in
		return e.normalise(r.BaseDomain())
	})
	if err != nil {
		return Tenant{}, err
	}
	return e.Tenant, nil
}

// Disable refuses the tenant's requests from now on. What it has taken is still settled.
func (r *Registry) Disable(ctx context.Context, id ID) (Tenant, error) {
	return r.Update(ctx, id, func(t *Tenant) error { t.Disabled = true; return nil })
}

// Enable serves a disabled tenant again.
func (r *Registry) Enable(ctx context.Context, id ID) (Tenant, error) {
	return r.Update(ctx, id, func(t *Tenant) error { t.Disabled = false; return nil })
}

// RotateKey replaces the tenant's API key. The old one stops at once; the new one is returned here and never again.
func (r *Registry) RotateKey(ctx context.Context, id ID) (key string, err error) {
	_, err = r.change(ctx, id, func(s *snapshot, e *entry) error { key = s.newKeyFor(e); return nil })
	if err != nil {
		return "", err
	}
	r.log.Info("tenant's key rotated", "tenant", id)
	return key, nil
}

// Remove takes a disabled tenant out of the registry (else ErrEnabled). Its id is never given again, because the books under that
// id remain. Whether all it took is settled is for the caller to know: nothing of a removed tenant is sent any more.
func (r *Registry) Remove(ctx context.Context, id ID) error {
	_, err := r.change(ctx, id, func(_ *snapshot, e *entry) error {
		if !e.Disabled {
			return ErrEnabled
		}
		// What outlives it is its id; its key's hash and its upstream key do not.
		*e = entry{removed: true, Tenant: Tenant{ID: e.ID, Disabled: true, CreatedAt: e.CreatedAt}}
		return nil
	})
	if err == nil {
		r.log.Info("tenant removed", "tenant", id)
	}
	return err
}

// SetOperatorToken makes token the operator's; a former one stops at once. Errors: ErrOperatorToken, or the store's.
func (r *Registry) SetOperatorToken(ctx context.Context, token string) error {
	if err := operatorToken(token); err != nil {
		return err
	}
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	s, err := r.current()
	if err != nil {
		return err
	}
	next := *s
	next.operator, next.hasOperator = digestOf(token), true
	if err := r.put(ctx, bucketBox, keyOperator, next.operator); err != nil {
		return err
	}
	r.snapshot.Store(&next)
	r.copy()
	return nil
}

// HasOperatorToken reports whether there is an operator's token.
func (r *Registry) HasOperatorToken() bool { return r.snapshot.Load().hasOperator }

// change edits a copy of a tenant's entry and stores it.
func (r *Registry) change(ctx context.Context, id ID, fn func(*snapshot, *entry) error) (*entry, error) {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	s, err := r.current()
	if err != nil {
		return nil, err
	}
	old := s.byID[id]
	if old == nil {
		return nil, ErrNotFound
	}
	e := &entry{Tenant: old.clone(), key: old.key}
	if err := fn(s, e); err != nil {
		return nil, err
	}
	return e, r.store(ctx, s, e)
}

// current returns the snapshot to build on. After an unknown outcome it is read from the file first.
func (r *Registry) current() (*snapshot, error) {
	s := r.snapshot.Load()
	if !r.stale {
		return s, nil
	}
	s, _, err := r.read(s.baseDomain)
	if err != nil {
		return nil, err
	}
	r.snapshot.Store(s)
	r.stale = false
	return s, nil
}

// store makes e durable, then visible, then copies the file.
func (r *Registry) store(ctx context.Context, s *snapshot, e *entry) error {
	for _, d := range e.Domains {
		if owner, taken := s.byDomain[d]; taken && owner != e.ID {
			return fmt.Errorf("%w: %s", ErrDomainUsed, d)
		}
	}
	// An account is known upstream by address and name: two tenants under one name would send each other's money with their keys.
	if u := e.Upstream; u != nil {
		for _, other := range s.byID {
			if o := other.Upstream; other.ID != e.ID && o != nil && o.URL == u.URL && o.Account == u.Account {
				return ErrAccountUsed
			}
		}
	}
	value, err := encodeRecord([]byte(e.ID), e.record(r.kr))
	if err != nil {
		return err
	}
	err = r.apply(ctx, func(tx *bbolt.Tx) error {
		if e.removed {
			if err := deleteHooks(tx, e.ID); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketTenants).Put([]byte(e.ID), value)
	})
	if err != nil {
		return err
	}
	r.snapshot.Store(s.with(e))
	r.copy()
	return nil
}

func (r *Registry) put(ctx context.Context, bucket, key []byte, v any) error {
	value, err := encodeRecord(key, v)
	if err != nil {
		return err
	}
	return r.apply(ctx, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket) // a file of an older version lacks some
		if err != nil {
			return err
		}
		return b.Put(key, value)
	})
}

// apply makes a change to the file durable.
func (r *Registry) apply(ctx context.Context, fn func(*bbolt.Tx) error) error {
	err := r.st.Update(ctx, fn)
	if errors.Is(err, store.ErrUnknown) {
		r.stale = true
		if _, rerr := r.current(); rerr != nil { // a revoked key must not live on in memory if the file can be read
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// copy keeps the second copy of the file. The change itself is durable already, so that a failure is no
// reason to refuse it; the next change, or start, tries again.
func (r *Registry) copy() {
	if err := writeCopy(r.st); err != nil {
		r.log.Error("box.db could not be copied; it stands alone until the next change", "err", err)
	}
}

// Subkey derives a key for one purpose from the box's own, see [Keyring.Subkey].
func (r *Registry) Subkey(purpose string) []byte { return r.kr.Subkey(purpose) }
