package tenants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

var (
	// ErrEndpointNotFound: the tenant has no such webhook endpoint.
	ErrEndpointNotFound = errors.New("no such webhook endpoint")
	// ErrEndpointsMax: the tenant has as many as it may have.
	ErrEndpointsMax = fmt.Errorf("a tenant has at most %d webhook endpoints", endpointsMax)
)

// Webhooks is the part of a [Registry] that keeps the tenants' webhook endpoints: settings, so that they outlive a lost queue. What
// holds for tenants holds for them: durable when answered, read from memory, copied with the file. A removed tenant's endpoints go
// with it.
type Webhooks struct{ r *Registry }

// Webhooks returns the endpoints' part of the registry.
func (r *Registry) Webhooks() Webhooks { return Webhooks{r} }

// NewEndpoint is what an endpoint begins with. Only URL is required.
type NewEndpoint struct {
	URL   string
	Types []string // nil: all
}

// Add makes an endpoint and its signing secret, which is returned here and never again. Errors: ErrNotFound (no such tenant),
// ErrEndpointsMax, *InvalidError, or the store's (of ErrUnknown: it may exist; rotate its secret).
func (w Webhooks) Add(ctx context.Context, tenant ID, n NewEndpoint) (_ Endpoint, secret string, err error) {
	h := newHook(tenant, w.now())
	h.URL, h.Types = n.URL, slices.Clone(n.Types)
	if err := h.normalise(w.r.checkURL); err != nil {
		return Endpoint{}, "", err
	}
	w.r.changeMu.Lock()
	defer w.r.changeMu.Unlock()
	s, err := w.r.current()
	if err != nil {
		return Endpoint{}, "", err
	}
	switch {
	case s.byID[tenant] == nil:
		return Endpoint{}, "", ErrNotFound
	case len(s.hooks[tenant]) >= endpointsMax:
		return Endpoint{}, "", ErrEndpointsMax
	}
	if err := w.store(ctx, s, h); err != nil {
		return Endpoint{}, "", err
	}
	w.r.log.Info("webhook added", "tenant", tenant, "webhook", h.ID)
	return h.at(w.now()), string(h.signings[0].secret), nil
}

// Get returns an endpoint, or ErrEndpointNotFound. The value is shared: read only.
func (w Webhooks) Get(tenant ID, id string) (Endpoint, error) {
	if h := w.r.snapshot.Load().hook(tenant, id); h != nil {
		return h.at(w.now()), nil
	}
	return Endpoint{}, ErrEndpointNotFound
}

// List returns a tenant's endpoints, newest first. The values are shared: read only.
func (w Webhooks) List(tenant ID) []Endpoint {
	hooks := w.r.snapshot.Load().hooks[tenant]
	out := make([]Endpoint, 0, len(hooks))
	for _, h := range slices.Backward(hooks) {
		out = append(out, h.at(w.now()))
	}
	return out
}

// Matching returns the ids of a tenant's endpoints that want events of a type, oldest first. It is asked for every event:
// from memory, and without allocating if there is none.
func (w Webhooks) Matching(tenant ID, eventType string) (ids []string) {
	for _, h := range w.r.snapshot.Load().hooks[tenant] {
		if h.Matches(eventType) {
			ids = append(ids, h.ID)
		}
	}
	return ids
}

// Update changes an endpoint: fn edits a copy, which takes effect when Update returns without error. Id, tenant, secrets and time
// of creation stay what they are whatever fn does. An error of fn is returned as it is.
func (w Webhooks) Update(ctx context.Context, tenant ID, id string, fn func(*Endpoint) error) (Endpoint, error) {
	h, err := w.change(ctx, tenant, id, func(h *hook) error {
		e := h.Endpoint
		if err := fn(&e); err != nil {
			return err
		}
		check := w.r.checkURL
		if e.URL == h.URL {
			check = nil // what has become forbidden since must not keep anybody from disabling it
		}
		h.URL, h.Types, h.Disabled, h.DisabledReason = e.URL, slices.Clone(e.Types), e.Disabled, e.DisabledReason
		return h.normalise(check)
	})
	if err != nil {
		return Endpoint{}, err
	}
	return h.at(w.now()), nil
}

// Disable stops deliveries to an endpoint until Update enables it again. One that is disabled already keeps its reason.
func (w Webhooks) Disable(ctx context.Context, tenant ID, id, reason string) error {
	if e, err := w.Get(tenant, id); err != nil || e.Disabled {
		return err
	}
	_, err := w.change(ctx, tenant, id, func(h *hook) error {
		if !h.Disabled {
			h.Disabled, h.DisabledReason = true, reason
		}
		return h.normalise(nil)
	})
	if err == nil {
		w.r.log.Info("webhook disabled", "tenant", tenant, "webhook", id, "reason", reason)
	}
	return err
}

// Rotate gives an endpoint a new secret, which is returned here and never again. The old one goes on signing beside it for overlap,
// up to 30 days (0: a day; below 0: not at all, for one that leaked).
func (w Webhooks) Rotate(ctx context.Context, tenant ID, id string, overlap time.Duration) (_ Endpoint, secret string, err error) {
	if overlap == 0 {
		overlap = secretOverlap
	}
	overlap = min(max(overlap, 0), secretOverlapMax)
	var fresh Secret
	h, err := w.change(ctx, tenant, id, func(h *hook) error { fresh = h.rotate(w.now(), overlap); return nil })
	if err != nil {
		return Endpoint{}, "", err
	}
	w.r.log.Info("webhook's secret rotated", "tenant", tenant, "webhook", id)
	return h.at(w.now()), string(fresh), nil
}

// Remove deletes an endpoint. What waits for it is not sent any more.
func (w Webhooks) Remove(ctx context.Context, tenant ID, id string) error {
	w.r.changeMu.Lock()
	defer w.r.changeMu.Unlock()
	s, err := w.r.current()
	if err != nil {
		return err
	}
	h := s.hook(tenant, id)
	if h == nil {
		return ErrEndpointNotFound
	}
	if err := w.r.apply(ctx, func(tx *bbolt.Tx) error { return tx.Bucket(bucketWebhooks).Delete(h.key()) }); err != nil {
		return err
	}
	w.r.snapshot.Store(s.withHooks(tenant, slices.DeleteFunc(slices.Clone(s.hooks[tenant]), func(x *hook) bool { return x.ID == id })))
	w.r.copy()
	w.r.log.Info("webhook removed", "tenant", tenant, "webhook", id)
	return nil
}

func (w Webhooks) now() time.Time { return w.r.now().UTC().Truncate(time.Millisecond) }

// change edits a copy of an endpoint and stores it.
func (w Webhooks) change(ctx context.Context, tenant ID, id string, fn func(*hook) error) (*hook, error) {
	w.r.changeMu.Lock()
	defer w.r.changeMu.Unlock()
	s, err := w.r.current()
	if err != nil {
		return nil, err
	}
	old := s.hook(tenant, id)
	if old == nil {
		return nil, ErrEndpointNotFound
	}
	h := old.clone()
	if err := fn(h); err != nil {
		return nil, err
	}
	return h, w.store(ctx, s, h)
}

// store makes h durable, then visible, then copies the file.
func (w Webhooks) store(ctx context.Context, s *snapshot, h *hook) error {
	rec, err := h.record(w.r.kr)
	if err != nil {
		return err
	}
	if err := w.r.put(ctx, bucketWebhooks, h.key(), rec); err != nil {
		return err
	}
	kept := slices.DeleteFunc(slices.Clone(s.hooks[h.Tenant]), func(x *hook) bool { return x.ID == h.ID })
	w.r.snapshot.Store(s.withHooks(h.Tenant, append(kept, h)))
	w.r.copy()
	return nil
}

// hook finds an endpoint; nil: there is none.
func (s *snapshot) hook(tenant ID, id string) *hook {
	for _, h := range s.hooks[tenant] {
		if h.ID == id {
			return h
		}
	}
	return nil
}

// withHooks returns a snapshot in which the tenant has these endpoints.
func (s *snapshot) withHooks(tenant ID, hooks []*hook) *snapshot {
	next := *s
	next.hooks = maps.Clone(s.hooks)
	sortHooks(hooks)
	next.hooks[tenant] = hooks
	if len(hooks) == 0 {
		delete(next.hooks, tenant)
	}
	return &next
}

// sortHooks puts the oldest first: ids are ULIDs.
func sortHooks(hooks []*hook) {
	slices.SortFunc(hooks, func(a, b *hook) int { return strings.Compare(a.ID, b.ID) })
}

// deleteHooks deletes the endpoints of a tenant that is removed.
func deleteHooks(tx *bbolt.Tx, tenant ID) error {
	b := tx.Bucket(bucketWebhooks)
	if b == nil {
		return nil
	}
	var keys [][]byte
	prefix, c := hooksOf(tenant), b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
