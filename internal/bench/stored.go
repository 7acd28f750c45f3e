package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

const (
	// farOff is a delay that does not end while anybody measures.
	farOff = 30 * 24 * time.Hour
	// storedStarts is how often a box is started on a filled file.
	storedStarts = 3
)

// stock is what lies in a queue while others go through it.
type stock struct {
	state   string
	delay   time.Duration
	tenants int
}

func (s stock) String() string { return fmt.Sprintf("%s/%d", s.state, s.tenants) }

var stocks = []stock{
	{"waiting", 0, 1}, {"waiting", 0, 30},
	{"delayed", farOff, 1}, {"delayed", farOff, 30},
}

// measureStored compares a queue that holds many jobs with an empty one, and starts the box on what the first one left.
func measureStored(ctx context.Context, o jobsOptions, binary, top string) error {
	if o.stored == 0 {
		return nil
	}
	fmt.Printf("With %d jobs stored, beside an empty queue; median of %d rounds of %d jobs in turns (goal: ratios from 0.90)\n", o.stored, o.rounds, o.jobs)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "stored\ttenants\twhat\tempty/s\tstored/s\tratio\tCPU µs empty\tCPU µs stored\t")
	var rows []*stocked
	wanted := slices.DeleteFunc(slices.Clone(stocks), func(s stock) bool { return o.stock != "" && o.stock != s.String() })
	for i, s := range wanted {
		dir := filepath.Join(top, fmt.Sprintf("stock-%d", i))
		r, err := s.measure(ctx, o, binary, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		rows = append(rows, r)
		for _, step := range []struct {
			what string
			seen [2][]done
		}{
			{fmt.Sprintf("enqueue, %d goroutines", enqueuers), r.enqueued}, {fmt.Sprintf("run, %d at a time", runners), r.ran},
		} {
			empty, full := middle(step.seen[0], done.rate), middle(step.seen[1], done.rate)
			_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%.0f\t%.0f\t%.2f\t%.1f\t%.1f\t\n", s.state, s.tenants, step.what, empty, full, full/empty,
				middle(step.seen[0], done.cpu), middle(step.seen[1], done.cpu))
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nThe same files, and the box started on them, median of %d (goals at 1,000,000: ready under 1 s, RSS under 150 MiB)\n", storedStarts)
	_, _ = fmt.Fprintln(table, "stored\ttenants\tfilled, jobs/s\tfile\tRSS of the engine after the load\tbox: start to ready\tCPU of it\tRSS of the box at rest\t")
	for i, s := range wanted {
		r := rows[i]
		_, _ = fmt.Fprintf(table, "%s\t%d\t%.0f\t%d MiB\t%s\t%.2f s\t%.2f s\t%s\t\n", s.state, s.tenants, r.filled, r.bytes>>20, r.held, r.ready.Seconds(), r.readyCPU.Seconds(), r.box)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// stocked is what was measured with one stock.
type stocked struct {
	filled        float64   // jobs a second in bulks
	enqueued, ran [2][]done // with nothing stored, and with the stock
	held          resident  // of the engine's process after all that
	bytes         int64     // of the file
	ready         time.Duration
	readyCPU      time.Duration
	box           resident
}

func (s stock) measure(ctx context.Context, o jobsOptions, binary, dir string) (*stocked, error) {
	r := &stocked{}
	data := filepath.Join(dir, "data") // a box's folder, whose queue is filled and measured while the box is off
	if err := makeBox(ctx, binary, data); err != nil {
		return nil, err
	}
	var queues [2]*queue // empty, stored
	for i, at := range []string{filepath.Join(dir, "empty"), data} {
		q, err := startQueue(ctx, engineKind, at)
		if err != nil {
			return nil, err
		}
		defer q.close()
		queues[i] = q
	}
	fill, err := queues[1].do(task{Do: enqueueTask, Jobs: o.stored, At: 1, Bulk: bulkSize, Tenants: s.tenants, Delay: s.delay})
	if err != nil {
		return nil, err
	}
	r.filled = fill.rate()
	// Anew, so that both have the same past.
	if err := queues[1].close(); err != nil {
		return nil, err
	}
	if queues[1], err = startQueue(ctx, engineKind, data); err != nil {
		return nil, err
	}
	defer queues[1].close()

	for range o.rounds {
		for _, step := range []struct {
			task task
			seen *[2][]done
		}{
			{task{Do: enqueueTask, Jobs: o.jobs, At: enqueuers, Tenants: s.tenants}, &r.enqueued},
			{task{Do: runTask, Jobs: o.jobs, At: runners}, &r.ran},
		} {
			for i, q := range queues {
				d, err := q.do(step.task)
				if err != nil {
					return nil, err
				}
				step.seen[i] = append(step.seen[i], d)
			}
		}
	}
	if r.held, err = residentOf(queues[1].pid()); err != nil {
		return nil, err
	}
	if err := errors.Join(queues[0].close(), queues[1].close()); err != nil {
		return nil, err
	}
	info, err := os.Stat(filepath.Join(data, "jobs.db"))
	if err != nil {
		return nil, err
	}
	r.bytes = info.Size()
	return r, r.start(ctx, binary, data)
}

// makeBox lets a box make its folder.
func makeBox(ctx context.Context, binary, data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	return box.process.Stop(ctx)
}

// start starts the box on a folder, kills it and starts it again, and notes how long it takes until it is ready and what it holds
// when it has come to rest.
func (r *stocked) start(ctx context.Context, binary, data string) error {
	var ready, cpu []time.Duration
	for range storedStarts {
		began := time.Now()
		box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
		if err != nil {
			return err
		}
		ready = append(ready, time.Since(began))
		used, err := processCPU(box.pid)
		if err == nil {
			err = box.rest(ctx)
		}
		if err == nil {
			r.box, err = residentOf(box.pid)
		}
		box.stop()
		if err != nil {
			return err
		}
		cpu = append(cpu, used.total())
	}
	r.ready, r.readyCPU = median(ready), median(cpu)
	return nil
}
