package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"tenderbox/internal/blackbox"
)

// jobsPart is the argument with which the program measures queues.
const jobsPart = "jobs"

const (
	// enqueuers and runners are the concurrencies at which the goals are set.
	enqueuers = 256
	runners   = 64
)

// jobsOptions are the flags of that part.
type jobsOptions struct {
	dir    string
	rounds int
	jobs   int
	stored int
	stock  string
	only   string
}

// benchJobs measures queues: the engine from Go, the box over HTTP, both with many jobs stored.
func benchJobs(ctx context.Context, args []string) error {
	var o jobsOptions
	flags := flag.NewFlagSet("bench jobs", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "bin", "folder on the disk to measure; a folder below it is made and removed")
	flags.IntVar(&o.rounds, "rounds", 5, "measurements of each kind, in turns")
	flags.IntVar(&o.jobs, "jobs", 100_000, "jobs of one measurement")
	flags.IntVar(&o.stored, "stored", 1_000_000, "jobs that are stored while others are measured; 10000000 takes minutes, 0 leaves that part out")
	flags.StringVar(&o.stock, "stock", "", "one kind of stored jobs only: waiting/1, waiting/30, delayed/1 or delayed/30, by their tenants")
	flags.StringVar(&o.only, "only", "", "one part only: go, http or stored")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.rounds < 1 || o.jobs < bulkSize || o.stored < 0 {
		return fmt.Errorf("want at least one round and %d jobs, and no negative number of stored ones", bulkSize)
	}
	parts := []struct {
		name    string
		measure func(ctx context.Context, o jobsOptions, binary, top string) error
	}{{"go", measureEngine}, {"http", measureAPI}, {"stored", measureStored}}
	return onDisk(o.dir, true, func(top string) error {
		binary, err := blackbox.Build(ctx, top)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if o.only != "" && o.only != part.name {
				continue
			}
			if err := part.measure(ctx, o, binary, top); err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
		return nil
	})
}

// measureEngine compares the engine with the bare loop, in turns. What was enqueued is run before the next measurement, so that
// both begin each on an empty queue.
func measureEngine(ctx context.Context, o jobsOptions, _, top string) error {
	kinds := []string{bareKind, engineKind}
	queues := map[string]*queue{}
	for _, kind := range kinds {
		q, err := startQueue(ctx, kind, filepath.Join(top, kind))
		if err != nil {
			return err
		}
		defer q.close()
		queues[kind] = q
	}
	steps := []struct {
		what string
		task task
		goal string
	}{
		{fmt.Sprintf("enqueue, %d goroutines", enqueuers), task{Do: enqueueTask, Jobs: o.jobs, At: enqueuers}, "0.6"},
		{fmt.Sprintf("run, %d at a time (bare: delete)", runners), task{Do: runTask, Jobs: o.jobs, At: runners}, "0.4"},
		{fmt.Sprintf("enqueue, %d goroutines", runners), task{Do: enqueueTask, Jobs: o.jobs, At: runners}, ""},
		{fmt.Sprintf("run, %d at a time (bare: delete)", enqueuers), task{Do: runTask, Jobs: o.jobs, At: enqueuers}, ""},
		{fmt.Sprintf("bulks of %d, one goroutine", bulkSize), task{Do: enqueueTask, Jobs: o.jobs, At: 1, Bulk: bulkSize}, "0.6 or 150,000/s"},
		{"", task{Do: runTask, Jobs: o.jobs, At: enqueuers}, ""}, // not shown: the bulk has to go
	}
	seen := map[string][][]done{bareKind: make([][]done, len(steps)), engineKind: make([][]done, len(steps))}
	for range o.rounds {
		for i, step := range steps {
			for _, kind := range kinds {
				d, err := queues[kind].do(step.task)
				if err != nil {
					return err
				}
				seen[kind][i] = append(seen[kind][i], d)
			}
		}
	}
	fmt.Printf("Jobs from Go: %d bytes of data, durable, last 10 completed kept, beside a bare loop of puts (deletes) with the same group commit; median of %d rounds of %d jobs in turns\n", len(payload), o.rounds, o.jobs)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "what\tbare/s\tjobs/s\tratio\tgoal\tCPU µs bare\tCPU µs job\tfsyncs bare\tfsyncs job\t")
	for i, step := range steps {
		if step.what == "" {
			continue
		}
		b, e := seen[bareKind][i], seen[engineKind][i]
		_, _ = fmt.Fprintf(table, "%s\t%.0f\t%.0f\t%.2f\t%s\t%.1f\t%.1f\t%.4f\t%.4f\t\n", step.what, middle(b, done.rate), middle(e, done.rate),
			middle(e, done.rate)/middle(b, done.rate), step.goal, middle(b, done.cpu), middle(e, done.cpu),
			syncsPerStore*middle(b, done.commits), syncsPerStore*middle(e, done.commits))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("  run at %d beside bare puts at %d: %.2f (goal 0.4)\n", runners, runners, middle(seen[engineKind][1], done.rate)/middle(seen[bareKind][2], done.rate))
	for _, kind := range kinds {
		held, err := residentOf(queues[kind].pid())
		if err != nil {
			return err
		}
		fmt.Printf("  %s, RSS after all this: %s\n", kind, held)
	}
	fmt.Println()
	var errs []error
	for _, q := range queues {
		errs = append(errs, q.close())
	}
	return errors.Join(errs...)
}

// middle is a figure's median.
func middle(ds []done, figure func(done) float64) float64 {
	var vs []float64
	for _, d := range ds {
		vs = append(vs, figure(d))
	}
	return median(vs)
}
