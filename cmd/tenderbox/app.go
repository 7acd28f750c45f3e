package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sourcegraph/conc/panics"

	"tenderbox/bus"
	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/store"
	"tenderbox/tenants"
	"tenderbox/upstream"
	"tenderbox/web"
)

const (
	// upstreamAccount names the box's own account with the processor; a tenant may bring its own.
	upstreamAccount = "default"
	// sendsDrainMax: a send in hand ends within its own timeout (5 s unless set otherwise), and its outcome
	// is then written. What takes longer is found again at the next start, under the same key.
	sendsDrainMax = 10 * time.Second
	// stopMax bounds a whole stop: requests (10 s), sends (10 s), then closing files. The systemd unit waits
	// longer than this before it kills.
	stopMax = 30 * time.Second
)

// App is a box: built from a Config by OpenApp, working in Run, released by Close.
type App struct {
	config    Config
	log       *slog.Logger
	registry  *tenants.Registry
	accounts  *upstream.Accounts
	engine    *jobs.Engine
	ledger    *ledger.Ledger
	workers   workers
	events    *eventLog
	listener  *listener
	analytics *ledger.Analytics

	// FirstKey is the API key of tenant `default` if this start made it, else "".
	FirstKey string

	closers []closer // in the order of opening; closed from the end
	once    sync.Once
}

type closer struct {
	what  string
	close func() error
}

// OpenApp opens everything that stands in the data folder and binds the address. It changes nothing
// outside the folder. When it returns without error, payments can be taken as soon as Run is called.
//
// The order is that of need, and each step gives the reason for its place:
func OpenApp(ctx context.Context, config Config, log *slog.Logger) (_ *App, err error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	a := &App{config: config, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(explain(err), a.Close())
		}
	}()
	if err := prepareFolder(config.Data); err != nil {
		return nil, err
	}

	// The keyring comes first: what follows holds sealed records and a journal chained by its key.
	keyring, err := openKeyring(&config, log)
	if err != nil {
		return nil, err
	}

	// box.db says who the tenants are and under which policy they trade. Its lock is also the first to
	// tell a second box on this folder to go away, before anything is touched.
	boxStore, boxAlarm, err := tenants.OpenFile(config.path(boxFile))
	if err != nil {
		return nil, err
	}
	a.onClose(boxFile, boxStore.Close)
	a.registry, err = tenants.Open(boxStore, keyring, tenants.Options{BaseDomain: config.BaseDomain, CheckURL: config.checkURL, Logger: log})
	if err != nil {
		return nil, err
	}

	// jobs.db before the shards: it holds the anchors by which the ledger verifies its journals, and the
	// cursors from which its relay goes on. It is derived, so that a broken one never stops the box.
	jobStore, jobsAlarm, err := openJobs(config.path(jobsFile), log)
	if err != nil {
		return nil, err
	}
	a.onClose(jobsFile, jobStore.Close)
	a.engine, err = jobs.Open(jobStore, jobs.Options{Queues: queues, Failed: ledger.FailedJobs, Logger: log})
	if err != nil {
		return nil, err
	}
	a.onClose("queues", a.engine.Close)

	// The upstream accounts do nothing until Run: the ledger only needs to know whom to ask.
	a.accounts = upstream.NewAccounts(upstream.Config{
		URL: config.UpstreamURL, Account: upstreamAccount, Key: string(config.UpstreamKey), Version: config.UpstreamVersion,
		Rate: config.UpstreamRate, Concurrency: config.UpstreamConcurrency, Timeout: config.UpstreamTimeout, ProbeInterval: config.ProbeInterval, ProbePath: config.ProbePath,
		BreakerFailures: config.BreakerFailures, BreakerWindow: config.BreakerWindow, BreakerOpen: config.BreakerOpen,
		Logger: log,
	})

	// Webhooks need the endpoints in box.db, and what the accounts know of the line.
	hooks := newWebhooks(&config, a.registry, a.accounts)
	a.onClose("webhooks", func() error { hooks.deliverer.CloseIdleConnections(); return nil })

	// The event stream is only named here. Run opens it, beside the payments: they start before it and
	// go on without it.
	position, err := ledger.EventPosition(a.engine)
	if err != nil {
		return nil, err
	}
	a.events = newEventLog(bus.Options{
		Dir: config.path(busFolder), Listen: config.NATSListen, FirstSeq: position + 1, MaxAge: config.EventsMaxAge, MaxBytes: config.EventsMaxBytes,
		Authenticate: a.authenticate, Logger: log,
	}, log)

	if err := tryAddress("nats-listen", config.NATSListen); err != nil {
		return nil, err
	}

	// Templates of e-mail are read now, when somebody looks: a broken one stops the start and not the mail.
	mailer, err := newMailer(&config, a)
	if err != nil {
		return nil, err
	}

	// The shards last of the files: with them the ledger has all it needs to verify and to count.
	a.ledger, err = ledger.Open(ctx, ledger.Options{
		Dir: config.path(shardsFolder), Files: config.Shards, Keyring: keyring, Tenants: a.registry, Jobs: a.engine,
		Accounts: a.accounts, Events: a.events, Derive: hooks.derive, Mail: mailStatus(mailer), KeyMemory: config.UpstreamKeyMemory,
		Concurrency: max(ledger.ConcurrencyDefault, 4*config.UpstreamConcurrency), // twice what one account has in hand
		DrainMax:    sendsDrainMax, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	a.onClose(shardsFolder, a.ledger.Close)
	if a.ledger.Intact() { // the journals' chains have shown that the key is this box's
		if err := a.registry.KeepKeys(ctx); err != nil {
			return nil, err
		}
	}
	// Analytics are derived from the shards: whatever is wrong with their file, the box starts, and begins it anew.
	a.analytics = a.ledger.OpenAnalytics(ctx, config.path(analyticsFile))
	a.onClose(analyticsFile, a.analytics.Close)
	a.workers, err = a.newWorkers(mailer, hooks)
	if err != nil {
		return nil, err
	}
	for code, detail := range map[string]string{"box_file_restored": boxAlarm, "queue_file_replaced": jobsAlarm} {
		if detail != "" {
			a.ledger.RaiseAlarm(code, detail) // stays until the next start: a person should have seen it
		}
	}
	source := "/tenderbox/" + a.ledger.BoxID()
	a.events.options.Source, hooks.source = source, source // nothing is derived before Run

	// The address is bound when all files are open: who can connect can soon pay.
	handler, err := web.New(web.Options{
		Ledger: a.ledger, Tenants: a.registry, Jobs: a.engine, Accounts: a.accounts, Analytics: a.analytics,
		Metrics: boxMetrics(map[string]*store.Store{boxFile: boxStore, jobsFile: jobStore}, a.ledger),
		Source:  source, Deliveries: hooks,
		AllowHosts: config.AllowHost, AllowOrigins: config.AllowOrigin, Version: version, Logger: log,
	})
	if err != nil {
		return nil, hint(err, "`tenderbox serve --help` lists the settings")
	}
	a.listener, err = listen(&config, handler, handler.Leave, log)
	if err != nil {
		return nil, err
	}
	a.onClose("listener", a.listener.close)

	// Only a box that could do all of that gets its tenant and token: after a first start that was refused,
	// the next one is still the first, and shows the key.
	a.FirstKey, err = firstRun(ctx, a.registry, config.Data)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *App) onClose(what string, fn func() error) { a.closers = append(a.closers, closer{what, fn}) }

// URL is where this machine's own clients reach the box.
func (a *App) URL() string { return a.listener.address }

// Run works until ctx ends or a part fails, and then stops in order. Its error is the failure's; an
// orderly stop returns nil.
func (a *App) Run(ctx context.Context) error {
	// Each part has its own context, because the stop has an order; each runs guarded, and the first that
	// fails ends all, with its cause kept.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	start := func(name string, run func(context.Context) error) (stop func()) {
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			var err error
			if caught := panics.Try(func() { err = run(partCtx) }).AsError(); caught != nil {
				err = caught
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				fail(fmt.Errorf("%s: %w", name, err))
			}
		}()
		return func() { cancel(); <-done }
	}
	stopAccounts := start("upstream", a.accounts.Run)
	stopLedger := start("ledger", a.ledger.Run)
	stopAnalytics := start("analytics", a.analytics.Run)
	stopWorkers := start("workers", a.workers.run)
	stopEvents := start("event stream", a.events.run)
	stopHTTP := start("http", func(context.Context) error { return a.listener.serve() })

	err := a.announce()
	if err == nil {
		<-ctx.Done()
	} else {
		fail(err)
	}
	began := time.Now()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) // without systemd there is nobody to tell
	a.log.Info("stopping")

	stopped := make(chan error, 1)
	go func() {
		var err error
		caught := panics.Try(func() {
			a.withdraw()      // nobody shall find a box that is leaving
			a.listener.stop() // accept no more, answer what is in hand: those answers still need the ledger
			stopHTTP()
			stopWorkers()   // before the ledger, in which they look up and write; what is left waits in its queue
			stopAnalytics() // the same: it reads the journals
			stopLedger()    // finish the sends in hand and write their outcomes
			stopEvents()    // after the ledger, whose last events it takes
			stopAccounts()  // last: the sends needed them
			err = a.Close()
		}).AsError()
		stopped <- errors.Join(err, caught)
	}()
	// A disk that hangs must not keep the machine from shutting down: all that was acknowledged is written,
	// and the next start repairs what is left lying here.
	overdue := time.NewTimer(stopMax)
	defer overdue.Stop()
	select {
	case cerr := <-stopped:
		err = errors.Join(err, cerr)
		a.log.Info("stopped", "after", time.Since(began).Round(time.Millisecond))
	case <-overdue.C:
		a.log.Error("stop took too long; leaving", "limit", stopMax)
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// announce tells the commands of this machine and the service manager that the box is ready.
func (a *App) announce() error {
	content := a.URL() + "\n"
	if a.listener.pin != "" {
		content += a.listener.pin + "\n" // how the commands recognise the box's certificate
	}
	if err := writePrivate(a.config.path(addressFile), content); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		a.log.Warn("service manager was not told", "err", err)
	}
	a.log.Info("ready", "url", a.URL(), "data", a.config.Data)
	return nil
}

func (a *App) withdraw() {
	if err := os.Remove(a.config.path(addressFile)); err != nil {
		a.log.Warn("address file stays", "err", err)
	}
}

// Close releases what was opened, from the last to the first: each part's files close while what they
// depend on is still open. Run does it; only an App that never ran needs it. Twice is fine.
func (a *App) Close() error {
	var err error
	a.once.Do(func() {
		for _, c := range slices.Backward(a.closers) {
			if cerr := c.close(); cerr != nil {
				err = errors.Join(err, fmt.Errorf("closing %s: %w", c.what, cerr))
			}
		}
	})
	return err
}

// authenticate lets a NATS client in that names its tenant and knows its key.
func (a *App) authenticate(user, password string) (string, bool) {
	caller, err := a.registry.Resolve(tenants.Credentials{Authorization: []string{"Bearer " + password}, TenantHeader: []string{user}})
	if err != nil || caller.Operator || caller.Tenant == "" {
		return "", false
	}
	return string(caller.Tenant), true
}

// openJobs opens jobs.db. A damaged one is moved aside, and the ledger fills a new one from its journals;
// alarm then says so.
func openJobs(file string, log *slog.Logger) (_ *store.Store, alarm string, err error) {
	st, err := store.Open(file, store.Options{Logger: log})
	var corrupt *store.CorruptError
	if !errors.As(err, &corrupt) {
		return st, "", err
	}
	aside, merr := moveAside(file, time.Now())
	if merr != nil {
		return nil, "", errors.Join(err, merr)
	}
	st, err = store.Open(file, store.Options{Logger: log})
	return st, fmt.Sprintf("%s was damaged and is rebuilt from the journals; it was moved to %s: %v", jobsFile, aside, corrupt), err
}

// tryAddress finds out at the start, when somebody is looking, that an address cannot be had. The event
// stream that listens there opens later, and its failure would only be an alarm.
func tryAddress(setting, address string) error {
	if address == "" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return hint(fmt.Errorf("%s: %w", setting, err), "choose another address")
	}
	return l.Close()
}
