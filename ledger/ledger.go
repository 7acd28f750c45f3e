package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

	// Derive makes jobs of an event beside the table of listeners. It is pure as far as
	// it can be: it may be asked again, and its jobs' ids follow from the event. nil: none.
	Derive func(*Event) []jobs.NewJob

	// Mail tells how e-mail stands, for the status. nil: nothing is said.
	Mail func() MailStatus

	// KeyMemory is how long the processor is trusted to remember an idempotency
	// key; 0 means 20 h, Stripe's 24 h less a margin for clocks.
	KeyMemory time.Duration
	// Concurrency is how many payments are settled at once, of all accounts; 0 means 256. An account has as many of them in hand as it can be sent
	// to ([upstream.Account.Room]), and never more than half.
	Concurrency int
	// DrainMax is how long Run waits for sends in hand when it is told to stop;
	// 0 means 10 s, twice the default timeout of a request upstream.
	DrainMax time.Duration

	Zone   *time.Location   // of the box's days, after which the ledger is compared with the processor's; nil means time.Local
	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means none
}

// ConcurrencyDefault serves several accounts at their full pace (32 requests on their way, and half as many in hand beside them), or many at less.
// One that waits costs a goroutine.
const ConcurrencyDefault = 256

func (o Options) withDefaults() Options {
	o.KeyMemory = cmp.Or(o.KeyMemory, 20*time.Hour)
	o.Concurrency = cmp.Or(o.Concurrency, ConcurrencyDefault)
	o.DrainMax = cmp.Or(o.DrainMax, 10*time.Second)
	if o.Zone == nil {
		o.Zone = time.Local
	}
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
	emails   emails
	exposure *exposure
	pulse    *pulse
	alarms   *alarms
	waiters  *waiters[PaymentID]
	refunds  *waiters[RefundID]   // wait for a refund's outcome
	hearers  *waiters[tenants.ID] // event streams
	lookups  *lookups

	reconciling reconciling
	runner      *jobs.Runner

	sendable  sync.Map      // *upstream.Account → bool: could be sent to when last heard of
	direct    *direct       // payments sent past the queue
	onWire    sync.Map      // id of a payment or refund → struct{}: sealed by this process, answer not recorded
	lineBack  poke          // an account may be sent to again
	linkMoved poke          // the line to an account may have changed
	exposed   poke          // payments were taken
	publish   poke          // rows wait for the event log
	published atomic.Uint64 // events handed to the event log since start

	// confirming lets an intent be confirmed by one request at a time, by slot: each holds room under the offline policy until it knows whether it
	// was the first, and two would keep a third intent out. Taken before any other lock.
	confirming [shards.SlotCount]sync.Mutex

	// claiming lets one verdict at a time name a charge or an intent: what it may settle is looked for in all files. Taken before any lock of a shard.
	claiming sync.Mutex

	// accountMus (tenants.ID → *sync.RWMutex) let a tenant's upstream account change
	// only while nothing is being sealed for it. Taken before any lock of a shard.
	accountMus sync.Map
}

// Open opens the shards, verifies the end of each journal against the anchor in
// the queue's file and counts what is outstanding. A damaged shard is isolated;
// the others serve. [Ledger.Run] does the work; [Ledger.Close] releases the files.
func Open(ctx context.Context, o Options) (_ *Ledger, err error) {
	o = o.withDefaults()
	l := &Ledger{o: o, log: o.Logger, keyring: o.Keyring, tenants: o.Tenants, jobs: o.Jobs, accounts: o.Accounts,
		events: o.Events, clock: &clock{wall: o.Now}, ids: newIDs(), alarms: newAlarms(), waiters: newWaiters[PaymentID](), refunds: newWaiters[RefundID](), hearers: newWaiters[tenants.ID](),
		lookups: newLookups(), reconciling: reconciling{of: map[tenants.ID]bool{}}, lineBack: newPoke(), linkMoved: newPoke(), exposed: newPoke(), publish: newPoke(), pulse: newPulse(), direct: newDirect()}
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
		l.parts = append(l.parts, &part{shard: sh, derive: newPoke(), hurry: newPoke(),
			journal: newJournal(l.set.Manifest().Epoch, o.Keyring)})
	}
	var opening errgroup.Group
	for _, p := range l.parts {
		opening.Go(func() error { return guard(func() error { l.openPart(ctx, p); return nil }) })
	}
	if err := opening.Wait(); err != nil {
		return nil, err
	}
	l.runner, err = o.Jobs.NewRunner(jobs.RunnerOptions{Queue: PaymentsQueue, Concurrency: o.Concurrency,
		Handler: l.settle, Ready: l.ready, Share: l.share, DrainTimeout: o.DrainMax})
	if err != nil {
		return nil, err
	}
	o.Accounts.OnChange(l.linkChanged)
	return l, nil
}

// openPart brings one shard into service: verified, its head read, its sums
// counted. A damaged one is isolated; one that cannot be read now is tried again
// by [Ledger.Run], and takes nothing until then.
func (l *Ledger) openPart(ctx context.Context, p *part) {
	k := alarmKey{code: "shard_unverified", subject: p.shard.Path()}
	err := p.shard.Err()
	if err != nil {
		l.isolated(p.shard, err)
		return
	}
	for _, step := range []func(context.Context, *part) error{l.readEpochs, l.verifyAnchor, l.beginEpoch, l.takeOver, l.readLatest} {
		if err == nil {
			err = step(ctx, p)
		}
	}
	p.verified.Store(err == nil)
	switch {
	case err == nil:
		l.alarms.clear(k)
		l.alarmCopy(p)
		if err := l.keys.fillShard(ctx, p.shard, fillAtOpen); err != nil {
			l.log.Warn("idempotency keys not indexed yet", "shard", p.shard.ID(), "err", err) // Run goes on with it
		}
	case errors.Is(err, ErrJournal):
		p.shard.Isolate(err)
	default:
		l.keys.passOver(p.shard)
		l.raise(k, fmt.Sprintf("shard %d is not in service yet and takes nothing until it is: %v", p.shard.ID(), err))
	}
}

// Intact reports whether every shard takes writes, and its journal has been verified.
func (l *Ledger) Intact() bool {
	return !slices.ContainsFunc(l.parts, func(p *part) bool { return p.shard.Err() != nil || !p.verified.Load() })
}

// serve relays one shard's journal, once the shard is in service.
func (l *Ledger) serve(ctx context.Context, p *part) error {
	for !p.verified.Load() {
		if err := pause(ctx, retryPause); err != nil {
			return nil
		}
		if p.shard.Err() == nil {
			l.openPart(ctx, p)
		}
	}
	if err := l.startCursor(ctx, p); err != nil {
		return err
	}
	return l.relayJobs(ctx, p)
}

// readLatest tells the clock the last time that the shard has written.
func (l *Ledger) readLatest(ctx context.Context, p *part) error {
	sh := p.shard
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
// hand, at most for DrainMax. A loop that fails or panics is begun again; only the
// settler's failure ends Run, for without it there is no box.
func (l *Ledger) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	start := func(name string, fn func(context.Context) error) {
		g.Go(func() error { return l.keepRunning(ctx, name, fn) })
	}
	for _, p := range l.parts {
		start("relay", func(ctx context.Context) error { return l.serve(ctx, p) })
	}
	start("event relay", l.relayEvents)
	start("drain", l.promote)
	start("line teller", l.tellLinks)
	start("exposure teller", l.watchExposure)
	start("key index", func(ctx context.Context) error { return l.keys.fill(ctx, l.log) })
	start("sweeper", l.sweep)
	start("scrubber", l.scrub)
	start("daily reconciliation", l.reconcileDaily)
	g.Go(func() error { return l.direct.run(ctx, l.o.DrainMax) })
	g.Go(func() error {
		if err := guard(func() error { return l.runner.Run(ctx) }); err != nil {
			return fmt.Errorf("ledger: settler: %w", err)
		}
		return nil
	})
	return g.Wait()
}

// guard turns a panic into an error.
func guard(fn func() error) (err error) {
	if perr := panics.Try(func() { err = fn() }).AsError(); perr != nil {
		return perr
	}
	return err
}

// keepRunning runs a loop of the ledger, again after a failure, until it ends by itself.
func (l *Ledger) keepRunning(ctx context.Context, name string, loop func(context.Context) error) error {
	k := alarmKey{code: "loop_failed", subject: name}
	for {
		err := guard(func() error { return loop(ctx) })
		if err == nil || ctx.Err() != nil {
			return nil
		}
		l.log.Error("loop failed and is begun again", "loop", name, "err", err)
		l.raise(k, "the "+name+" failed and was begun again; the log says why")
		if pause(ctx, retryPause) != nil {
			return nil
		}
	}
}

// Close releases the shard files. Run must have returned.
func (l *Ledger) Close() error { return l.set.Close() }

// account returns the client of the tenant's upstream account, or the box's own;
// nil when none is configured.
func (l *Ledger) account(t *tenants.Tenant) *upstream.Account {
	var url, name, key string
	if u := t.Upstream; u != nil {
		url, name, key = u.URL, u.Account, string(u.Key)
	}
	acc, err := l.accounts.Get(url, name, key)
	k := alarmKey{tenant: t.ID, code: "upstream_invalid"}
	if err != nil {
		l.raise(k, err.Error())
		return nil
	}
	l.alarms.clear(k)
	if !acc.Configured() {
		return nil
	}
	if t.Upstream != nil {
		acc.SetRate(t.Upstream.Rate)
	}
	return acc
}

// accountMu returns the tenant's lock of accountMus.
func (l *Ledger) accountMu(t tenants.ID) *sync.RWMutex {
	mu, _ := l.accountMus.LoadOrStore(t, &sync.RWMutex{})
	return mu.(*sync.RWMutex)
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

// share says which account a tenant's payments are sent to, and how many of them, with other tenants', are to be in hand.
func (l *Ledger) share(t string) (account any, most int) {
	acc := l.accountOf(tenants.ID(t))
	if acc == nil {
		return nil, 0
	}
	return acc, max(min(acc.Room(), l.o.Concurrency/2), 1)
}

// linkChanged hears of each change of an account's link or breaker.
func (l *Ledger) linkChanged(acc *upstream.Account, _ upstream.Link) {
	now := acc.Ready()
	if before, _ := l.sendable.Swap(acc, now); now && before != true {
		l.lineBack.wake()
	}
	l.linkMoved.wake()
	l.runner.Poke()
	l.refunds.wakeAll()
	l.waiters.wakeAll() // who waits for an outcome looks again: the line may be down
}
