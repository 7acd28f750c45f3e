package jobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// ownQueuesMax queues may be declared by one tenant. Each costs the box memory for good.
const ownQueuesMax = 100

// Defaults of a queue's jobs; zero fields mean the package's defaults, as in NewJob.
type Defaults struct {
	Attempts         int
	Backoff          Backoff
	Timeout          time.Duration
	RemoveOnComplete Retention
	RemoveOnFail     Retention
}

// Filled are the defaults as they hold: where the queue has none, the package's.
func (d Defaults) Filled() Defaults {
	return Defaults{
		Attempts: cmp.Or(d.Attempts, attemptsDefault), Backoff: d.Backoff.withDefaults(Backoff{}), Timeout: cmp.Or(d.Timeout, timeoutDefault),
		RemoveOnComplete: d.RemoveOnComplete.withDefaults(Retention{}, keepCompletedDefault), RemoveOnFail: d.RemoveOnFail.withDefaults(Retention{}, keepFailedDefault),
	}
}

func (d Defaults) validate() error {
	if d.Attempts > math.MaxInt32 || d.Attempts < math.MinInt32 {
		return invalid("attempts", "%d: use 32 bits", d.Attempts)
	}
	return d.Backoff.withDefaults(Backoff{}).validate()
}

// QueueInfo is a queue as a tenant (or, with tenant "", the operator) sees it.
type QueueInfo struct {
	Name     string
	Tenant   string // whose own queue it is; "": it ships with the box
	ReadOnly bool   // tenants may only look (payments, webhooks)
	Internal bool   // tenants do not see it
	Paused   bool   // by the operator (whole queue) or by the tenant (its own line)
	Defaults Defaults
	Limits   Limits
	Counts   QueueStats
	Rates    QueueRates
}

// declared is what a tenant declared.
type declared struct {
	Defaults Defaults
	Limits   Limits
}

const declaredVersion, pausedVersion = 1, 1

func (d *declared) encode(queue, tenant string) ([]byte, error) {
	b, err := json.Marshal(d)
	return seal(declaredVersion, queue, tenant, b), err
}

func decodeDeclared(queue, tenant string, b []byte) (*declared, error) {
	payload, err := unseal(declaredVersion, queue, tenant, b)
	if err != nil {
		return nil, err
	}
	var d declared
	if err := json.Unmarshal(payload, &d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return &d, nil
}

// config is the queue's configuration as those of shipped queues are.
func (d *declared) config(name string) QueueConfig {
	return QueueConfig{
		Name: name, Attempts: d.Defaults.Attempts, Backoff: d.Defaults.Backoff, Timeout: d.Defaults.Timeout,
		RemoveOnComplete: d.Defaults.RemoveOnComplete, RemoveOnFail: d.Defaults.RemoveOnFail, Limits: d.Limits,
	}
}

func (c QueueConfig) defaults() Defaults {
	return Defaults{c.Attempts, c.Backoff, c.Timeout, c.RemoveOnComplete, c.RemoveOnFail}
}

// Declare makes or changes a tenant's own queue. created: it did not exist. Errors to branch on: ErrReadOnly (the name is a
// shipped queue's), ErrInvalid, ErrClosed, the store's.
func (e *Engine) Declare(ctx context.Context, tenant, queue string, d Defaults, l Limits) (created bool, err error) {
	switch {
	case !isLabel(tenant):
		return false, invalid("tenant", "%q is not a DNS label", tenant)
	case !isLabel(queue):
		return false, invalid("queue", "%q is not a DNS label", queue)
	}
	if err := d.validate(); err != nil {
		return false, within("defaults", err)
	}
	if err := l.validate(); err != nil {
		return false, within("limits", err)
	}
	if _, err = e.mayDeclare(tenant, queue); err != nil {
		return false, err
	}
	return e.declare(ctx, tenant, queue, &declared{d, l})
}

// Limit sets the limits of a shipped queue, instead of those with which the box was started, also after a restart. Errors to branch on:
// ErrUnknownQueue (also of a tenant's own), ErrReadOnly (it is internal), ErrInvalid, ErrClosed, the store's.
func (e *Engine) Limit(ctx context.Context, queue string, l Limits) error {
	if err := l.validate(); err != nil {
		return within("limits", err)
	}
	e.mu.Lock()
	q, closed := e.queues[queue], e.closed
	var err error
	switch {
	case closed:
		err = ErrClosed
	case q == nil || !q.shipped:
		err = e.unknown("", queue)
	case q.Internal:
		err = fmt.Errorf("queue %q: %w", queue, ErrReadOnly)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = e.declare(ctx, "", queue, &declared{Limits: l})
	return err
}

func (e *Engine) declare(ctx context.Context, tenant, queue string, own *declared) (created bool, err error) {
	value, err := own.encode(queue, tenant)
	if err != nil {
		return false, err
	}
	err = e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bQueues)
		created = b.Get(linePrefix(queue, tenant)) == nil
		return b.Put(linePrefix(queue, tenant), value)
	}, e.applied(func() { e.setOwn(tenant, queue, own) }))
	if err != nil {
		return false, fmt.Errorf("declare queue %q: %w", queue, err)
	}
	return created, nil
}

func (e *Engine) mayDeclare(tenant, queue string) (created bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false, ErrClosed
	}
	owned := 0
	for _, q := range e.queues {
		if l := q.lines[tenant]; l != nil && l.own != nil {
			owned++
		}
	}
	switch q := e.queues[queue]; {
	case q != nil && q.shipped:
		return false, fmt.Errorf("queue %q: %w", queue, ErrReadOnly)
	case q != nil && q.lines[tenant] != nil && q.lines[tenant].own != nil:
		return false, nil
	case owned >= ownQueuesMax:
		return false, invalid("queue", "a tenant may declare up to %d queues", ownQueuesMax)
	}
	return true, nil
}

// setOwn makes memory know a tenant's own queue. Engine.mu is held.
func (e *Engine) setOwn(tenant, queue string, own *declared) {
	q := e.named(queue)
	switch {
	case q.shipped && tenant == "":
		q.limit(own.Limits)
		return
	case q.shipped:
		return // one of that name ships by now, and serves what waits in it
	case tenant == "":
		return // it shipped once
	}
	l := q.line(tenant)
	l.own = own
	l.limits = q.limitsOf(l)
	q.unrest(l) // the old rate keeps nobody back
	if !l.paused {
		q.unblock(l)
	}
}

// named returns what memory knows of a name. Engine.mu is held.
func (e *Engine) named(queue string) *queue {
	q := e.queues[queue]
	if q == nil {
		q = newQueue(QueueConfig{Name: queue}, false)
		e.queues[queue] = q
	}
	return q
}

// config returns the configuration of a queue that a tenant's jobs may be in: ErrUnknownQueue, ErrClosed.
func (e *Engine) config(tenant, queue string) (QueueConfig, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return QueueConfig{}, ErrClosed
	}
	return e.configOf(tenant, queue)
}

// known is config, but works while the engine closes.
func (e *Engine) known(tenant, queue string) (QueueConfig, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.configOf(tenant, queue)
}

func (e *Engine) configOf(tenant, queue string) (QueueConfig, error) {
	if q := e.queues[queue]; q != nil {
		if q.shipped {
			return q.QueueConfig, nil
		}
		if l := q.lines[tenant]; l != nil && l.own != nil {
			return l.own.config(queue), nil
		}
	}
	return QueueConfig{}, e.unknown(tenant, queue)
}

// canSee says whether there is such a queue for a tenant, or (tenant "") for anybody: ErrUnknownQueue, ErrClosed.
func (e *Engine) canSee(tenant, queue string) error {
	if tenant != "" {
		_, err := e.config(tenant, queue)
		return err
	}
	return e.exists(queue)
}

func (e *Engine) exists(queue string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	if q := e.queues[queue]; q != nil {
		if q.shipped {
			return nil
		}
		for _, l := range q.lines {
			if l.own != nil {
				return nil
			}
		}
	}
	return e.unknown("", queue)
}

// unknown is the error about a queue that a tenant does not have. It lists those that it has. Engine.mu is held.
func (e *Engine) unknown(tenant, queue string) error {
	var names []string
	for name, q := range e.queues {
		if q.shipped && !(q.Internal && tenant != "") || tenant != "" && q.lines[tenant] != nil && q.lines[tenant].own != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return fmt.Errorf("%w %q; there are: %s", ErrUnknownQueue, queue, strings.Join(names, ", "))
}

// Queues lists the queues that a tenant has: the shipped ones and its own, by name. tenant "": all, also other tenants' own.
func (e *Engine) Queues(tenant string) []QueueInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []QueueInfo
	e.reading(func(tx *bbolt.Tx) {
		out = nil
		for _, q := range e.queues {
			out = append(out, e.infos(tx, q, tenant)...)
		}
	})
	slices.SortFunc(out, func(a, b QueueInfo) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Tenant, b.Tenant))
	})
	return out
}

// Queue is one of them. ErrUnknownQueue, whose text lists the known ones.
func (e *Engine) Queue(tenant, queue string) (QueueInfo, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []QueueInfo
	if q := e.queues[queue]; q != nil {
		e.reading(func(tx *bbolt.Tx) { out = e.infos(tx, q, tenant) })
	}
	if len(out) == 0 {
		return QueueInfo{}, e.unknown(tenant, queue)
	}
	slices.SortFunc(out, func(a, b QueueInfo) int { return cmp.Compare(a.Tenant, b.Tenant) })
	return out[0], nil
}

// infos are the queues of one name that a tenant (or, with "", the operator) sees.
func (e *Engine) infos(tx *bbolt.Tx, q *queue, tenant string) (out []QueueInfo) {
	if q.shipped {
		if q.Internal && tenant != "" {
			return nil
		}
		l := q.lines[tenant]
		return []QueueInfo{{
			Name: q.Name, ReadOnly: q.ReadOnly, Internal: q.Internal, Paused: q.paused || tenant != "" && l != nil && l.paused, Defaults: q.defaults(), Limits: q.Limits,
			Counts: e.counts(tx, q, tenant), Rates: e.ratesOf(tenant, q.Name),
		}}
	}
	for _, l := range q.lines {
		if l.own == nil || tenant != "" && l.tenant != tenant {
			continue
		}
		out = append(out, QueueInfo{
			Name: q.Name, Tenant: l.tenant, Paused: q.paused || l.paused, Defaults: l.own.Defaults, Limits: l.own.Limits,
			Counts: e.counts(tx, q, l.tenant), Rates: e.ratesOf(l.tenant, q.Name),
		})
	}
	return out
}

// Pause keeps jobs from being leased, of a tenant's line or (tenant "") of the whole queue, also after a restart. What is leased goes on.
func (e *Engine) Pause(ctx context.Context, tenant, queue string) error {
	at := be.AppendUint64(nil, nanos(e.clock.wall()))
	return e.setPause(ctx, tenant, queue, true, func(b *bbolt.Bucket, key []byte) error {
		return b.Put(key, seal(pausedVersion, queue, tenant, at))
	})
}

// Resume ends a pause of the same scope.
func (e *Engine) Resume(ctx context.Context, tenant, queue string) error {
	return e.setPause(ctx, tenant, queue, false, func(b *bbolt.Bucket, key []byte) error { return b.Delete(key) })
}

func (e *Engine) setPause(ctx context.Context, tenant, queue string, on bool, write func(b *bbolt.Bucket, key []byte) error) error {
	if tenant != "" && !isLabel(tenant) {
		return invalid("tenant", "%q is not a DNS label", tenant)
	}
	if err := e.canSee(tenant, queue); err != nil {
		return err
	}
	err := e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		b, key := tx.Bucket(bPaused), linePrefix(queue, tenant)
		if (b.Get(key) != nil) == on {
			return store.Untouched(nil)
		}
		return write(b, key)
	}, e.applied(func() { e.pause(tenant, queue, on) }))
	if err != nil {
		return fmt.Errorf("pause or resume queue %q: %w", queue, err)
	}
	return nil
}

// pause brings memory up to date. Engine.mu is held.
func (e *Engine) pause(tenant, queue string, on bool) {
	q := e.named(queue)
	if tenant == "" {
		q.paused = on
		if !on {
			q.wake()
		}
		return
	}
	l := q.line(tenant)
	l.paused = on
	if !on && l.restAt == 0 {
		q.unblock(l)
		q.drop(l, rateTime(e.clock.steady()))
	}
}

// settings are what the file says about queues, beside their jobs.
type settings struct {
	own    map[[2]string]*declared // by queue and tenant
	paused map[[2]string]bool
	broken []string // keys that could not be read
}

func readSettings(tx *bbolt.Tx) settings {
	s := settings{own: map[[2]string]*declared{}, paused: map[[2]string]bool{}}
	each := func(bucket []byte, read func(queue, tenant string, v []byte) error) {
		_ = tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			queue, tenant, rest, ok := cutLine(k)
			if !ok || len(rest) > 0 {
				s.broken = append(s.broken, fmt.Sprintf("bucket %q: key %q does not belong there", bucket, k))
			} else if err := read(string(queue), string(tenant), v); err != nil {
				s.broken = append(s.broken, fmt.Sprintf("bucket %q: queue %q, tenant %q: %v", bucket, queue, tenant, err))
			}
			return nil
		})
	}
	each(bQueues, func(queue, tenant string, v []byte) error {
		d, err := decodeDeclared(queue, tenant, bytes.Clone(v))
		if err == nil {
			s.own[[2]string{queue, tenant}] = d
		}
		return err
	})
	each(bPaused, func(queue, tenant string, v []byte) error {
		s.paused[[2]string{queue, tenant}] = true // also if its time cannot be read: better held than run against a wish
		_, err := unseal(pausedVersion, queue, tenant, v)
		return err
	})
	return s
}
