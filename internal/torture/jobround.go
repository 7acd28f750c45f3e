package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tenderbox/internal/blackbox"
)

const (
	// flightDefault is how many acknowledged jobs are not done at any time while the box is killed.
	flightDefault = 100_000
	// Enough of each to keep a shared two-core machine busy.
	producersDefault, workersDefault = 4, 8
	// tortureQueue is the queue that both tenants declare.
	tortureQueue = "torture"
	// leaseDefault is how long a worker asks for. It is longer than the box is dead between two lives, so that leases are seen to outlive a death.
	leaseDefault = 4 * time.Second
	// quietMargin is how much longer than a lease nothing must be taken until all is over.
	quietMargin = 500 * time.Millisecond
	// loadBulk is how many jobs a bulk holds.
	loadBulk = 1000
)

// The streams of a round of jobs, beside those of a round of payments: producers, then workers.
const (
	jobKillerStream = 1 << 10
	producerStream  = 2 << 10
	workerStream    = 3 << 10
)

// JobOptions describe a round of jobs.
type JobOptions struct {
	Binary    string        // of the box
	Dir       string        // empty folder for everything that the round writes
	Seed      uint64        // of all decisions
	Chaos     time.Duration // how long kills go on; filling, draining and counting come on top. 0: 10 s
	Flight    int           // acknowledged jobs that are not done, at all times while kills go on. 0: 100,000
	Producers int           // 0: 4
	Workers   int           // 0: 8
	Lease     time.Duration // how long workers ask for; 0: 4 s
	Patience  time.Duration // how long the drain may take. 0: 90 s
	Disk      Disk          // that Dir/data stands on, to cut its power; nil: boxes are killed
}

// JobResult is what a round of jobs has shown.
type JobResult struct {
	Evidence JobEvidence
	Findings []Finding
	Tally    JobTally
}

// jobRound is a round of jobs being played.
type jobRound struct {
	JobOptions
	box     *keeper
	keys    map[string]string // API key by tenant
	history history           // lives and problems
	log     *jobLog
	tally   tallies
	deaths  []death     // written by the killer alone
	adding  atomic.Bool // producers go on
	working atomic.Bool // workers go on
	calm    atomic.Bool // workers do nothing but their work
}

// death is what was in flight when the box died.
type death struct{ flight, active int }

// RunJobs plays one round of jobs. An error means that it could not be played to its end; what the box did wrong is in the
// findings, also those of a round that broke off. The evidence is written to Dir in either case.
func RunJobs(ctx context.Context, o JobOptions) (JobResult, error) {
	if o.Chaos <= 0 {
		o.Chaos = chaosDefault
	}
	if o.Flight <= 0 {
		o.Flight = flightDefault
	}
	if o.Producers <= 0 {
		o.Producers = producersDefault
	}
	if o.Workers <= 0 {
		o.Workers = workersDefault
	}
	if o.Lease <= 0 {
		o.Lease = leaseDefault
	}
	if o.Patience <= 0 {
		o.Patience = graceMax
	}
	log, err := os.OpenFile(filepath.Join(o.Dir, "box.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return JobResult{}, err
	}
	defer log.Close()
	r := &jobRound{JobOptions: o, log: newJobLog()}
	r.box = newKeeper(blackbox.ServeOptions{Binary: o.Binary, Data: filepath.Join(o.Dir, "data"), Log: log}, o.Disk, &r.history, &r.tally)
	defer r.box.kill()

	err = r.play(ctx)
	e := r.log.evidence(&r.history)
	err = errors.Join(err, e.write(filepath.Join(o.Dir, "evidence.jsonl")))
	return JobResult{e, JudgeJobs(e), r.tallied(e)}, err
}

// play goes through a round, from an empty folder to a stopped box that was checked.
func (r *jobRound) play(ctx context.Context) (err error) {
	if r.keys, err = r.box.open(ctx, source(r.Seed, birthStream)); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	for tenant := range r.keys {
		if err := r.declare(ctx, tenant); err != nil {
			return fmt.Errorf("declare: %w", err)
		}
	}
	if err := r.load(ctx); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	r.adding.Store(true)
	r.working.Store(true)
	var producers, workers errgroup.Group
	for i := range r.Producers {
		producers.Go(func() error { r.produce(ctx, i); return nil })
	}
	for i := range r.Workers {
		workers.Go(func() error { r.work(ctx, i); return nil })
	}
	dark, cancel := context.WithTimeout(ctx, r.Chaos)
	defer cancel()
	err = r.box.haunt(dark, source(r.Seed, jobKillerStream), func() error {
		all, active := r.log.flight()
		r.deaths = append(r.deaths, death{all, active})
		return nil
	})
	r.adding.Store(false)
	_ = producers.Wait() // neither producers nor workers return errors: what they meet is evidence
	r.calm.Store(true)
	if err == nil {
		err = r.drain(ctx)
	}
	r.working.Store(false)
	_ = workers.Wait()
	if err != nil {
		return err
	}
	if err := r.collect(ctx); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if err := r.box.audit(ctx, filepath.Join(r.Dir, "box.log"), r.keys["default"], r.keys[secondTenant]); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// load brings the jobs into flight among which the box is then killed.
func (r *jobRound) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, graceMax, errors.New("the box takes too long for the jobs"))
	defer cancel()
	var all errgroup.Group
	for i := range r.Producers {
		p := r.newProducer(i, "load")
		all.Go(func() error {
			defer p.http.CloseIdleConnections()
			for n, _ := r.log.flight(); n < r.Flight; n, _ = r.log.flight() {
				if a := p.bulk(ctx); !a.Acknowledged() {
					return fmt.Errorf("a bulk was answered %d %s %s", a.Status, a.Code, a.Error)
				}
			}
			return nil
		})
	}
	return all.Wait()
}

// drain waits until nothing was taken for longer than a lease. If that never comes, the judge will say what is left.
func (r *jobRound) drain(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	err := blackbox.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
		select {
		case <-r.box.current().Exited():
			return false, fmt.Errorf("%w: %v", blackbox.ErrExited, r.box.current().Err())
		default:
		}
		return r.log.quiet(r.Lease + quietMargin), nil
	})
	r.tally.drain = time.Since(began)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// repeatedJobsMax is how many jobs of each tenant are asked for once more at the end.
const repeatedJobsMax = 100

// collect asks once more for jobs that are done, after one more crash, sees whether anything is to be taken, and counts what is left.
func (r *jobRound) collect(ctx context.Context) error {
	if err := r.box.die(ctx, source(r.Seed, lastStream), byPower); err != nil {
		return err
	}
	if err := r.box.start(ctx); err != nil {
		return err
	}
	kept, left := r.log.kept(), map[string]int{}
	for i, tenant := range sorted(r.keys) {
		p := r.newProducer(i, "again")
		p.tenant = tenant
		defer p.http.CloseIdleConnections()
		mine := slices.DeleteFunc(slices.Clone(kept), func(w Wish) bool { return w.Tenant != tenant })
		for _, n := range p.random.Perm(len(mine))[:min(len(mine), repeatedJobsMax)] {
			p.add(ctx, true, mine[n])
		}
	}
	w := r.newWorker(0)
	defer w.http.CloseIdleConnections()
	for range 3 {
		w.end(ctx, w.lease(ctx, time.Second))
	}
	for tenant := range r.keys {
		var queue struct {
			Counts struct{ Waiting, Delayed, Active int }
		}
		if err := r.box.get(ctx, tenant, "/api/v1/queues/"+tortureQueue, &queue); err != nil {
			return err
		}
		left[tenant] = queue.Counts.Waiting + queue.Counts.Delayed + queue.Counts.Active
	}
	r.log.leave(left)
	return nil
}
