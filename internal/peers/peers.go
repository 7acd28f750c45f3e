// Package peers is the program behind `make bench-peers`: the same work on other queues and on Tenderbox, in one table.
//
// # Promise
//
// Each row is measured on the same machine and disk, in turns with the others, by the same number of producers and workers, with
// the same payload, and has beside it what an acknowledged job survives there, because without that a rate says nothing.
// The peers' servers are this program's own: started for it on unix sockets with data in a folder of their own, ended by
// their process id. What is not installed is left out, and the table says so.
//
// # Main types
//
// peer is a row: something that enqueues, one by one and in bulks, and drains. server is a process that a peer needs.
//
// # Caveats
//
// This is a module of its own, so that what the peers need never enters the product's. Settings are the peers' defaults except where
// a default is there to spare the machine: River's fetch cooldown is 1 ms instead of 100 ms, and the client pools hold a
// connection for each producer. A drain ends when the last handler was called. Linux only.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	producers = 64
	workers   = 64
	bulkSize  = 1000
	// drainMax bounds a drain: a peer that stands still must not keep the table from being printed.
	drainMax = 10 * time.Minute
)

// payload is a job's data: 200 bytes of JSON.
var payload = []byte(`{"to":"guest@example.com","subject":"Your receipt","text":"` + strings.Repeat("Thank you. ", 12) + `","n":12}`)

// peer is a queue under test.
type peer interface {
	// enqueue adds one job and returns when it is acknowledged.
	enqueue(ctx context.Context) error
	// bulk adds n jobs in one call; errNoBulk if the peer has no such call.
	bulk(ctx context.Context, n int) error
	// drain runs jobs, workers at a time, and calls done for each, until ctx ends.
	drain(ctx context.Context, done func()) error
	close() error
}

var errNoBulk = errors.New("it has no bulk")

// row is a peer and what is said of it.
type row struct {
	name     string
	survives string // what an acknowledged job survives
	open     func(ctx context.Context, f folders) (peer, error)

	peer                     peer
	enqueued, bulks, drained []float64 // jobs a second, by rounds
	absent                   error     // why it could not be measured
}

// errMissing says that a peer's server is not installed.
var errMissing = errors.New("not installed")

const (
	survivesPower  = "power cut"
	survivesSecond = "end of the server; a power cut takes up to two seconds"
)

type options struct {
	dir, box, only string
	jobs, rounds   int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (failed error) {
	var o options
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", ".", "folder on the disk to measure; a folder below it is made and removed")
	flags.StringVar(&o.box, "box", "", "the tenderbox binary to ask over HTTP; none: that row is left out")
	flags.IntVar(&o.jobs, "jobs", 20_000, "jobs of one measurement")
	flags.IntVar(&o.rounds, "rounds", 3, "measurements of each kind, in turns")
	flags.StringVar(&o.only, "only", "", "only rows whose name has this in it")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.jobs < bulkSize || o.rounds < 1 {
		return fmt.Errorf("want at least one round and %d jobs", bulkSize)
	}
	f, err := makeFolders(o.dir)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, f.remove()) }()
	rows := []*row{
		{name: "asynq + Redis, appendfsync always", survives: survivesPower, open: openAsynq("always")},
		{name: "asynq + Redis, appendfsync everysec", survives: survivesSecond, open: openAsynq("everysec")},
		{name: "River + PostgreSQL", survives: survivesPower, open: openRiver},
		{name: "Tenderbox, Go API", survives: survivesPower, open: openEngine},
		{name: "Tenderbox, HTTP", survives: survivesPower, open: openBox(o.box)},
	}
	rows = slices.DeleteFunc(rows, func(r *row) bool { return !strings.Contains(r.name, o.only) })
	for _, r := range rows {
		p, err := r.open(ctx, f)
		if errors.Is(err, errMissing) {
			r.absent = err
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		r.peer = p
		defer func() { failed = errors.Join(failed, p.close()) }()
	}
	for range o.rounds {
		for _, r := range rows {
			if r.absent != nil {
				continue
			}
			if err := r.measure(ctx, o.jobs); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return printTable(o, rows)
}

// measure goes through one round; it begins and ends with an empty queue.
func (r *row) measure(ctx context.Context, n int) error {
	if took, err := produce(n, 1, producers, func(int) error { return r.peer.enqueue(ctx) }); err != nil {
		return fmt.Errorf("enqueue: %w", err)
	} else {
		r.enqueued = append(r.enqueued, float64(n)/took.Seconds())
	}
	took, err := r.drain(ctx, n)
	if err != nil {
		return err
	}
	r.drained = append(r.drained, float64(n)/took.Seconds())
	took, err = produce(n, bulkSize, 1, func(k int) error { return r.peer.bulk(ctx, k) })
	if errors.Is(err, errNoBulk) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bulk: %w", err)
	}
	r.bulks = append(r.bulks, float64(n)/took.Seconds())
	_, err = r.drain(ctx, n) // what the bulks left is not measured again
	return err
}

// produce asks for n jobs in portions, from a number of goroutines.
func produce(n, portion, goroutines int, do func(k int) error) (time.Duration, error) {
	began := time.Now()
	var next atomic.Int64
	var all errgroup.Group
	for range goroutines {
		all.Go(func() error {
			for {
				from := int(next.Add(int64(portion))) - portion
				if from >= n {
					return nil
				}
				if err := do(min(portion, n-from)); err != nil {
					return err
				}
			}
		})
	}
	err := all.Wait()
	return time.Since(began), err
}

// drain runs n jobs and says how long it took until the last handler was called.
func (r *row) drain(ctx context.Context, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, drainMax)
	defer cancel()
	var ended atomic.Int64
	began := time.Now()
	var took time.Duration
	err := r.peer.drain(ctx, func() {
		if ended.Add(1) == int64(n) {
			took = time.Since(began)
			cancel()
		}
	})
	if err == nil && ended.Load() < int64(n) {
		err = errors.New("it stands still")
	}
	if err != nil {
		return 0, fmt.Errorf("drain: %w, after %d of %d jobs", err, ended.Load(), n)
	}
	return took, nil
}

// printTable prints the table, and what is not in it.
func printTable(o options, rows []*row) error {
	fmt.Printf("%d cores, %s, %s/%s; jobs of %d bytes, %d producers, %d workers; bulks of %d from one producer; median of %d rounds of %d jobs in turns\n\n",
		runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, len(payload), producers, workers, bulkSize, o.rounds, o.jobs)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "jobs/s\tenqueue\tbulk\tdrain\tan acknowledged job survives")
	for _, r := range rows {
		if r.absent == nil {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.name, figure(r.enqueued), figure(r.bulks), figure(r.drained), r.survives)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.absent != nil {
			fmt.Printf("  %s is left out: %v\n", r.name, r.absent)
		}
	}
	return nil
}

func figure(rates []float64) string {
	if len(rates) == 0 {
		return "–"
	}
	slices.Sort(rates)
	return fmt.Sprintf("%.0f", rates[len(rates)/2])
}

// folders are where servers keep their data and their sockets. A socket's path may not be long, so it is not on the disk that
// is measured.
type folders struct{ data, sockets string }

func makeFolders(dir string) (folders, error) {
	data, err := os.MkdirTemp(dir, "peers-")
	if err == nil {
		data, err = filepath.Abs(data)
	}
	if err != nil {
		return folders{}, err
	}
	sockets, err := os.MkdirTemp("", "peers-")
	if err == nil {
		// A server that runs as another user passes through here.
		err = errors.Join(os.Chmod(data, 0o755), os.Chmod(sockets, 0o755))
	}
	return folders{data, sockets}, err
}

func (f folders) remove() error {
	return errors.Join(os.RemoveAll(f.data), os.RemoveAll(f.sockets))
}
