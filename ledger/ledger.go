package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/panics"
	"golang.org/x/sync/errgroup"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// Options say what a ledger works with. Dir, Keyring, Tenants, Jobs and Accounts
// are required.
type Options struct {
	Dir      string             // folder of the shard files
	Files    int                // shard files, at first start only; 0 means 4
	Keyring  *tenants.Keyring   // seals sources and bodies, keys the journal's chain
	Tenants  *tenants.Registry  // who exists, and under which offline policy
	Jobs     *jobs.Engine       // schedules the settling; holds the queue [PaymentsQueue]
	Accounts *upstream.Accounts // the processor, by account; its own serves tenants without one
	Events   Publisher          // nil: no event log

	// KeyMemory is how long the processor is trusted to remember an idempotency
	// key; 0 means 20 h, Stripe's 24 h less a margin for clocks.
	KeyMemory time.Duration
	// Concurrency is how many payments are settled at once; 0 means 32.
	Concurrency int
	// DrainMax is how long Run waits for sends in hand when it is told to stop;
	// 0 means 10 s, twice the default timeout of a request upstream.
	DrainMax time.Duration

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means none
}

func (o Options) withDefaults() Options {
	o.KeyMemory = cmp.Or(o.KeyMemory, 20*time.Hour)
	o.Concurrency = cmp.Or(o.Concurrency, 32)
	o.DrainMax = cmp.Or(o.DrainMax, 10*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Ledger is the box's book of payments. Its methods are safe for concurrent use.
type Ledger struct {
	o        Options
	log      *slog.Logger
	set      *shards.Set
	parts    []*part // by shard id
	keyring  *tenants.Keyring
	tenants  *tenants.Registry
	jobs     *jobs.Engine
	accounts *upstream.Accounts
	events   Publisher
	clock    *clock
	ids      *ids
	keys     *keys
	exposure *exposure
	alarms   *alarms
	waiters  *waiters
	runner   *jobs.Runner

	sendable  sync.Map      // *upstream.Account → bool: could be sent to when last heard of
	onWire    sync.Map      // PaymentID → struct{}: sealed by this process, answer not recorded
	lineBack  poke          // an account may be sent to again
	publish   poke          // rows wait for the event log
	published atomic.Uint64 // events handed to the event log since start

	// accountMu lets a tenant's upstream account change only while nothing is
	// being sealed for it. It is taken before any lock of a shard.
	accountMu sync.RWMutex
}

// Open opens the shards, verifies the end of each journal against the anchor in
// the queue's file and counts what is outstanding. A damaged shard is isolated;
// the others serve. [Ledger.Run] does the work; [Ledger.Close] releases the files.
func Open(ctx context.Context, o Options) (_ *Ledger, err error) {
	o = o.withDefaults()
	l := &Ledger{o: o, log: o.Logger, keyring: o.Keyring, tenants: o.Tenants, jobs: o.Jobs, accounts: o.Accounts,
		events: o.Events, clock: &clock{wall: o.Now}, ids: newIDs(), alarms: newAlarms(), waiters: newWaiters(),
		lineBack: newPoke(), publish: newPoke()}
	l.set, err = shards.Open(ctx, o.Dir, shards.Options{Files: o.Files, Migrations: migrations, Logger: o.Logger,
		BeforeCommit: l.beforeCommit, AfterCommit: l.afterCommit,
		OnIsolated: l.isolated, OnRestored: l.restored})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.set.Close())
		}
	}()
	l.keys = newKeys(l.set, o.Keyring)
	l.exposure = newExposure(len(l.set.All()))
	for _, sh := range l.set.All() {
		l.parts = append(l.parts, &part{shard: sh, derive: newPoke(),
			journal: newJournal(l.set.Manifest().Epoch, o.Keyring)})
	}
	for _, p := range l.parts {
		if p.shard.Err() == nil {
			err = l.openPart(ctx, p)
		}
		if p.shard.Err() != nil {
			l.isolated(p.shard, p.shard.Err())
		} else if err != nil {
			return nil, err
		}
	}
	l.runner, err = o.Jobs.NewRunner(jobs.RunnerOptions{Queue: PaymentsQueue, Concurrency: o.Concurrency,
		Handler: l.settle, Ready: l.ready, DrainTimeout: o.DrainMax})
	if err != nil {
		return nil, err
	}
	o.Accounts.OnChange(l.linkChanged)
	return l, nil
}

// openPart brings one healthy shard into service, or isolates it.
func (l *Ledger) openPart(ctx context.Context, p *part) error {
	err := l.verifyAnchor(ctx, p, newChain(l.keyring))
	if errors.Is(err, ErrJournal) {
		p.shard.Isolate(err)
		return nil
	}
	if err != nil {
		return err
	}
	// An empty group reads the journal's head and counts what is outstanding.
	if err := p.refresh(ctx); err != nil {
		return err
	}
	return l.readLatest(ctx, p.shard)
}

// readLatest tells the clock the last time that the shard has written.
func (l *Ledger) readLatest(ctx context.Context, sh *shards.Shard) error {
	var row head
	err := sh.View(ctx, func(tx *shards.Tx) (err error) {
		row, err = readHead(tx)
		return err
	})
	if err != nil || row.seq == 0 {
		return err
	}
	return readJournal(ctx, sh, row.seq-1, 1, func(e *Event) error {
		l.clock.wrote(e.OccurredAt)
		return nil
	})
}

// isolated is told of each shard that goes out of service.
func (l *Ledger) isolated(sh *shards.Shard, err error) {
	l.raise(alarmKey{code: "shard_isolated", subject: sh.Path()}, fmt.Sprintf(
		"shard %d is out of service and nothing was deleted: %v", sh.ID(), err))
}

// restored is told of each shard that serves again after a passing fault.
func (l *Ledger) restored(sh *shards.Shard) {
	l.alarms.clear(alarmKey{code: "shard_isolated", subject: sh.Path()})
}

func (l *Ledger) raise(k alarmKey, detail string) {
	if l.alarms.raise(k, l.clock.now(), detail) {
		l.log.Warn("alarm", "code", k.code, "tenant", string(k.tenant), "detail", detail)
	}
}

// Run relays, settles and sweeps until ctx ends; then it finishes the sends in
// hand, at most for DrainMax. A panic in one of its loops stops it with an error.
func (l *Ledger) Run(ctx context.Context) error {
	for _, p := range l.parts {
		if p.shard.Err() == nil {
			if err := l.startCursor(ctx, p); err != nil {
				return err
			}
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	start := func(name string, fn func(context.Context) error) {
		g.Go(func() (err error) {
			if perr := panics.Try(func() { err = fn(ctx) }).AsError(); perr != nil {
				err = perr
			}
			if err != nil {
				return fmt.Errorf("ledger: %s: %w", name, err)
			}
			return nil
		})
	}
	for _, p := range l.parts {
		start("relay", func(ctx context.Context) error { return l.relayJobs(ctx, p) })
	}
	start("event relay", l.relayEvents)
	start("settler", l.runner.Run)
	start("drain", l.promote)
	start("key index", func(ctx context.Context) error { return l.keys.fill(ctx, l.log) })
	start("sweeper", l.sweep)
	start("scrubber", l.scrub)
	return g.Wait()
}

// Close releases the shard files. Run must have returned.
func (l *Ledger) Close() error { return l.set.Close() }

// account returns the client of the tenant's upstream account, or the box's own;
// nil when none is configured.
func (l *Ledger) account(t *tenants.Tenant) *upstream.Account {
	var url, name, key string
	if u := t.Upstream; u != nil {
		url, name, key = u.URL, cmp.Or(u.Account, string(t.ID)), string(u.Key)
	}
	acc, err := l.accounts.Get(url, name, key)
	if err != nil {
		l.raise(alarmKey{tenant: t.ID, code: "upstream_invalid"}, err.Error())
		return nil
	}
	if !acc.Configured() {
		return nil
	}
	return acc
}

func (l *Ledger) accountOf(t tenants.ID) *upstream.Account {
	tenant, err := l.tenants.Get(t)
	if err != nil {
		return nil
	}
	return l.account(&tenant)
}

// ready reports whether the tenant's payments may be sent at this moment.
func (l *Ledger) ready(t string) bool {
	acc := l.accountOf(tenants.ID(t))
	return acc != nil && acc.Ready()
}

// linkChanged hears of each change of an account's link or breaker.
func (l *Ledger) linkChanged(acc *upstream.Account, _ upstream.Link) {
	now := acc.Ready()
	if before, _ := l.sendable.Swap(acc, now); now && before != true {
		l.lineBack.wake()
	}
	l.runner.Poke()
	l.waiters.wakeAll() // who waits for an outcome looks again: the line may be down
}
