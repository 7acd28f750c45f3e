// Package torture kills a real box again and again, or cuts its power, while clients pay and the processor misbehaves, or while producers
// add jobs and workers take them, and then counts the money, the events and the jobs.
//
// # Promise
//
// A round of payments that ends without findings has shown, for everything that its clients did, that no acknowledged payment is
// missing or changed, none took effect twice, nothing took effect without a payment, keys replay to the same
// payment, sums agree per currency, the event stream holds each event of the journals in order and no other, and `tenderbox check` is
// clean (RELIABILITY.md, INV-1, 3 to 10 and 16). On a [Disk] whose power is cut the same goes for INV-2 and 15. A round of jobs has shown
// that every acknowledged job ran, that none that was acknowledged as done ran again, that no job was given to two workers under
// live leases, that leases outlived the deaths, and that the check is clean. A round in
// which some fault never fired, or no kill hit, fails too: it has shown nothing.
//
// # Main types
//
// Run plays one round of payments from a seed: clients (client.go), the killer (killer.go), the weather at the processor
// (weather.go). RunJobs plays one of jobs: producers and workers in the harness speak HTTP (jobclient.go), and so many jobs are kept in
// flight while the killer is at it. They write Evidence and JobEvidence, kept outside the box: each request and answer as the client
// saw it, each request and effect as the processor saw it, the box's last word. Judge and JudgeJobs read nothing but evidence, and their tests plant
// one defect after the other to see it caught; a toy box with bugs of its own shows that the rounds catch them too.
//
// # After a crash
//
// The box's crash is the subject. Of the harness itself nothing is kept but what a failed round leaves in its folder:
// the data folder, the box's log, evidence.jsonl.
//
// # Caveats
//
// A seed repeats the decisions, not the timing. kill -9 does not lose what the kernel holds: without a Disk a missing fsync is
// invisible here (RELIABILITY.md, rule 5); internal/powercut has one. A 500 that the processor stores under a key is replayed for ever; payments
// that met one may stay in doubt, and are told apart by what the processor was seen to answer. A job that nobody knows whether it
// was stored may run once or not at all. Long polls hide when a lease was given: of two leases of a job whose times overlap, the
// attempts' numbers say which came later.
package torture

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// chaosDefault is long enough for a dozen kills.
	chaosDefault = 10 * time.Second
	// clientsDefault keeps a shared two-core machine busy and leaves the drain something to do in seconds.
	clientsDefault = 12
	// graceMax bounds every wait for something that must happen: a start, a stop, an answer, the drain.
	graceMax = 90 * time.Second
	// logLineMax is how much of a line of the log is quoted.
	logLineMax = 300
	// secondTenant shares the box with tenant `default`, and the clients' keys with it, letter by letter.
	secondTenant = "second"
)

// streams number the random sources of a round, so that one part's draws do not shift another's.
const (
	conditionsStream = iota
	weatherStream
	killerStream
	clientStream // and those above: one a client
)

// signs are what the box's log must never show.
var signs = map[string]*regexp.Regexp{
	"INV-25 panic in the log": regexp.MustCompile(`\bpanic[:=]`),
	"data race in the log":    regexp.MustCompile(`WARNING: DATA RACE`), // of a box built with -race
}

// Options describe a round.
type Options struct {
	Binary  string        // of the box
	Dir     string        // empty folder for everything that the round writes
	Seed    uint64        // of all decisions
	Chaos   time.Duration // how long kills and faults go on; settling and counting come on top. 0: 10 s
	Clients int           // 0: 12
	Disk    Disk          // that Dir/data stands on, to cut its power; nil: boxes are killed
	Events  bool          // hold the event stream against the journals (INV-16), and ask for tenants, users and their mails; a toy box has none
	// Patience is how long payments may take to settle when all is well again. 0: 90 s.
	Patience time.Duration
}

// Result is what a round has shown.
type Result struct {
	Evidence Evidence
	Findings []Finding
	Tally    Tally
}

// round is a round being played.
type round struct {
	Options
	conditions conditions
	processor  *blackbox.Processor
	box        *keeper
	keys       map[string]string // API key by tenant
	history    history
	tally      tallies
	paying     atomic.Bool // clients begin new payments
}

// conditions are what the seed alone decides about a round.
type conditions struct {
	think  time.Duration // a client's longest pause between two payments
	shards int
	opens  int // failures that open the breaker
}

// The choices leave the number of payments such that the drain takes seconds, not minutes.
var (
	thinks  = []time.Duration{10 * time.Millisecond, 30 * time.Millisecond, 70 * time.Millisecond}
	shards  = []int{1, 2, 4}
	openers = []int{3, 8, 1000}
)

func (c conditions) String() string {
	return fmt.Sprintf("clients pause up to %s, %d shards, %d failures open the breaker", c.think, c.shards, c.opens)
}

func (r *round) random(stream uint64) *rand.Rand { return source(r.Seed, stream) }

// source is a source of its own for each stream; seeds and streams that are near one another have nothing in common.
func source(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%d/%d", seed, stream))))
}

// Run plays one round. An error means that the round could not be played to its end; what a box did wrong is in the
// findings, also those of a round that broke off. The evidence is written to Dir in either case.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Chaos <= 0 {
		o.Chaos = chaosDefault
	}
	if o.Clients <= 0 {
		o.Clients = clientsDefault
	}
	if o.Patience <= 0 {
		o.Patience = graceMax
	}
	log, err := os.OpenFile(filepath.Join(o.Dir, "box.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Result{}, err
	}
	defer log.Close()
	r := &round{Options: o, keys: map[string]string{}}
	draw := r.random(conditionsStream)
	r.conditions = conditions{thinks[draw.IntN(len(thinks))], shards[draw.IntN(len(shards))], openers[draw.IntN(len(openers))]}
	r.tally.conditions = r.conditions
	if r.processor, err = blackbox.StartProcessor(simulator.Options{Seed: int64(o.Seed)}); err != nil {
		return Result{}, err
	}
	defer r.processor.Close()
	r.box = newKeeper(blackbox.ServeOptions{Binary: o.Binary, Data: filepath.Join(o.Dir, "data"), Log: log, Args: []string{
		"--upstream-url", r.processor.URL(), "--upstream-key", blackbox.ProcessorKey,
		// A site's hours in seconds: what takes five seconds outside takes one here.
		"--upstream-timeout", "1s", "--probe-interval", "250ms",
		"--breaker-failures", strconv.Itoa(r.conditions.opens), "--breaker-window", "5s", "--breaker-open", "400ms",
		"--shards", strconv.Itoa(r.conditions.shards),
	}}, o.Disk, &r.history, &r.tally)
	defer r.box.kill()

	err = r.play(ctx)
	e := r.history.evidence(r.processor)
	err = errors.Join(err, e.write(filepath.Join(o.Dir, "evidence.jsonl")))
	return Result{e, Judge(e), r.tally.of(e, r.processor, o.Disk)}, err
}

// play goes through a round, from an empty folder to a stopped box that was checked.
func (r *round) play(ctx context.Context) error {
	for _, act := range []struct {
		name string
		play func(context.Context) error
	}{
		{"open", r.open},
		{"chaos", r.chaos},
		{"drain", r.drain},
		{"collect", r.collect},
		{"announced", r.announced},
		{"audit", r.audit},
	} {
		if err := act.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", act.name, err)
		}
	}
	return nil
}

// open starts the box for the first time and registers the second tenant.
func (r *round) open(ctx context.Context) (err error) {
	r.keys, err = r.box.open(ctx, r.random(birthStream))
	return err
}

// chaos lets clients pay while the killer and the weather do their worst, then sees to it that each fault has
// fired at least once, while clients still pay, and then lets the clients end what they began.
func (r *round) chaos(ctx context.Context) error {
	r.paying.Store(true)
	var clients errgroup.Group
	for i := range r.Clients {
		clients.Go(func() error { r.client(ctx, i); return nil })
	}
	clients.Go(func() error { r.clerk(ctx); return nil })
	dark, cancel := context.WithTimeout(ctx, r.Chaos)
	defer cancel()
	pests, dark := errgroup.WithContext(dark)
	pests.Go(func() error { return r.weather(dark) })
	pests.Go(func() error {
		random := r.random(killerStream)
		return r.box.haunt(dark, random, func() error { return r.lose(random) })
	})
	err := pests.Wait()
	if err == nil {
		err = r.encore(ctx)
	}
	r.paying.Store(false)
	_ = clients.Wait() // none returns an error: what clients meet is evidence
	return errors.Join(err, r.brighten(ctx))
}

// drain waits until every payment that can be settled is. If that never comes it is a finding.
func (r *round) drain(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	err := blackbox.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
		n, err := r.box.backlog(ctx)
		if errors.Is(err, blackbox.ErrExited) {
			return false, err
		}
		if err != nil || n > len(stuck(r.processor.Posts())) {
			return false, nil // asked again, also if it was not answered
		}
		return r.settled(ctx), nil
	})
	r.tally.drain = time.Since(began)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// settled tells whether the box lists no payment as pending but those that cannot be settled. (Their number alone says less: some of them are settled
// after all, when they are found in the processor's list.)
func (r *round) settled(ctx context.Context) bool {
	never := stuck(r.processor.Posts())
	for tenant := range r.keys {
		pending, err := r.box.payments(ctx, tenant, "pending")
		if err != nil || slices.ContainsFunc(pending, func(p Payment) bool { return !p.final() && !never[p.ID] }) {
			return false
		}
	}
	return true
}

// collect reads the box's last word, after one more crash and more repetitions of old requests.
func (r *round) collect(ctx context.Context) error {
	if err := r.box.die(ctx, r.random(lastStream), byPower); err != nil {
		return err
	}
	if err := r.box.start(ctx); err != nil {
		return err
	}
	r.repeatOld(ctx, r.history.acknowledged())
	kept, reports := map[string][]Payment{}, map[string][]ReportRow{}
	for tenant := range r.keys {
		var err error
		if kept[tenant], err = r.box.payments(ctx, tenant, ""); err != nil {
			return err
		}
		if reports[tenant], err = r.box.report(ctx, tenant); err != nil {
			return err
		}
	}
	r.history.keep(kept, reports)
	return nil
}

// audit stops the box in good order, runs `tenderbox check`, and looks for secrets in the box's log.
func (r *round) audit(ctx context.Context) error {
	return r.box.audit(ctx, filepath.Join(r.Dir, "box.log"), blackbox.ProcessorKey, r.keys["default"], r.keys[secondTenant], "tok_visa", "tok_chargeDeclined")
}
