package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// backlogPoll is how often the box is asked what is left.
	backlogPoll = 50 * time.Millisecond
	// drainMax bounds a drain.
	drainMax = 5 * time.Minute
	// backlogConnections take the payments that are then drained.
	backlogConnections = 64
)

// latencies are how long the processor works on each request.
var latencies = []time.Duration{0, 20 * time.Millisecond}

// drained is one drain and the bare loop beside it.
type drained struct {
	wait        time.Duration // from the line's return to the first request
	rate        float64       // payments a second, from the first request to the last answer
	settled     time.Duration // from the line's return until the box calls nothing unsettled
	concurrency int           // most requests that were open at once
	cpu         time.Duration // of the box, a payment
	bare        float64       // requests a second of the bare loop
}

// measureDrains lets a backlog go when the line returns, and sends as much by a bare loop.
func measureDrains(ctx context.Context, o options, binary, top string) error {
	fmt.Printf("Drain of %d payments when the line returns, beside a bare loop of the same posts at the same concurrency\n", o.backlog)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "processor works\tat once\tbox/s\tbare loop/s\tratio\tline back to first post\tto all settled\tCPU µs payment\t")
	for _, latency := range latencies {
		d, err := measureDrain(ctx, o.backlog, latency, binary, filepath.Join(top, "drain-"+latency.String()))
		if err != nil {
			return fmt.Errorf("processor at %s: %w", latency, err)
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%.0f\t%.0f\t%.2f\t%s\t%.1f s\t%.0f\t\n", latency, d.concurrency, d.rate, d.bare, d.rate/d.bare, micros(d.wait), d.settled.Seconds(), float64(d.cpu)/float64(time.Microsecond))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

func measureDrain(ctx context.Context, n int, latency time.Duration, binary, data string) (*drained, error) {
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	processor, err := blackbox.StartProcessor(simulator.Options{Latency: latency})
	if err != nil {
		return nil, err
	}
	defer processor.Close()
	processor.Cut()
	box, err := startBox(ctx, binary, data, "--upstream-url", processor.URL(), "--upstream-key", blackbox.ProcessorKey)
	if err != nil {
		return nil, err
	}
	defer box.stop()
	taken, err := drive(ctx, load{address: box.address, key: box.key, run: "backlog", connections: backlogConnections, count: n})
	if err != nil {
		return nil, err
	}
	if taken.done != n {
		return nil, fmt.Errorf("only %d of %d payments were taken; other answers by status: %v", taken.done, n, taken.refused)
	}
	if err := box.rest(ctx); err != nil {
		return nil, err
	}

	d := &drained{}
	cpu, err := processCPU(box.pid)
	if err != nil {
		return nil, err
	}
	back := time.Now()
	if err := processor.Restore(ctx); err != nil {
		return nil, err
	}
	if err := box.settled(ctx); err != nil {
		return nil, err
	}
	d.settled = time.Since(back)
	posts := processor.Posts()
	if charges := len(processor.Ledger().Charges); charges != n {
		return nil, fmt.Errorf("%d payments took effect %d times", n, charges)
	}
	first, last := posts[0].At, back
	for _, p := range posts {
		if p.At.Before(first) {
			first = p.At
		}
		if end := p.At.Add(p.Took); end.After(last) {
			last = end
		}
	}
	d.wait, d.rate, d.concurrency = first.Sub(back), float64(n)/last.Sub(first).Seconds(), processor.Peak()
	if err := box.rest(ctx); err != nil {
		return nil, err
	}
	used, err := processCPU(box.pid)
	if err != nil {
		return nil, err
	}
	d.cpu = used.minus(cpu).total() / time.Duration(n)
	box.stop()
	d.bare, err = measureLoop(ctx, n, d.concurrency, latency)
	return d, err
}

// settled waits until the box calls nothing unsettled.
func (s *server) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, drainMax, errors.New("the backlog does not drain"))
	defer cancel()
	return blackbox.Poll(ctx, backlogPoll, func() (bool, error) {
		left, err := s.backlog(ctx)
		return left == 0, err
	})
}

// backlog is how many payments the box calls unsettled.
func (s *server) backlog(ctx context.Context) (int, error) {
	content, err := s.get(ctx, "/api/v1/status")
	if err != nil {
		return 0, err
	}
	var status struct {
		Backlog *struct {
			Count int `json:"count"`
		} `json:"backlog"`
	}
	if err := json.Unmarshal([]byte(content), &status); err != nil {
		return 0, err
	}
	if status.Backlog == nil {
		return 0, fmt.Errorf("the status tells no backlog: %s", content)
	}
	return status.Backlog.Count, nil
}

// measureLoop runs the bare loop in a process of its own against a fresh processor.
func measureLoop(ctx context.Context, n, concurrency int, latency time.Duration) (float64, error) {
	processor, err := blackbox.StartProcessor(simulator.Options{Latency: latency})
	if err != nil {
		return 0, err
	}
	defer processor.Close()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	command := exec.CommandContext(ctx, self, loopPart, processor.URL(), strconv.Itoa(n), strconv.Itoa(concurrency))
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		return 0, fmt.Errorf("bare loop: %w", err)
	}
	var nanoseconds int64
	if _, err := fmt.Sscan(string(out), &nanoseconds); err != nil {
		return 0, fmt.Errorf("bare loop said %q: %w", out, err)
	}
	return float64(n) / time.Duration(nanoseconds).Seconds(), nil
}
