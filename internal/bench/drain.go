package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// backlogPoll is how often the box is asked what is left.
	backlogPoll = 100 * time.Millisecond
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

func (d *drained) ratio() float64 { return d.rate / d.bare }

// measureDrains lets a backlog go when the line returns, and sends as much by a bare loop, in turns.
func measureDrains(ctx context.Context, n, rounds int, latencies []time.Duration, binary, top string) error {
	fmt.Printf("Drain of %d payments when the line returns, beside a bare loop of the same posts to the same processor at the same concurrency; median (range) of %d rounds in turns\n", n, rounds)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "processor works\tat once\tbox/s\tbare loop/s\tratio\tline back to first post\tto all settled\tCPU µs payment\t")
	for _, latency := range latencies {
		ds, err := measureDrain(ctx, n, rounds, latency, binary, filepath.Join(top, "drain-"+latency.String()))
		if err != nil {
			return fmt.Errorf("processor at %s: %w", latency, err)
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\t%.1f s\t%.0f\t\n", latency,
			median(figures(ds, func(d *drained) int { return d.concurrency })),
			spread("%.0f", figures(ds, func(d *drained) float64 { return d.rate })), spread("%.0f", figures(ds, func(d *drained) float64 { return d.bare })),
			spread("%.2f", figures(ds, (*drained).ratio)), micros(median(figures(ds, func(d *drained) time.Duration { return d.wait }))),
			median(figures(ds, func(d *drained) float64 { return d.settled.Seconds() })),
			median(figures(ds, func(d *drained) float64 { return float64(d.cpu) / float64(time.Microsecond) })))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

func measureDrain(ctx context.Context, n, rounds int, latency time.Duration, binary, data string) ([]*drained, error) {
	l, err := startLine(ctx, simulator.Options{Latency: latency}, binary, data)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var all []*drained
	for round := range rounds {
		d, err := l.drain(ctx, n, fmt.Sprintf("backlog-%d", round))
		if err != nil {
			return nil, err
		}
		if d.bare, err = l.loop(ctx, n, d.concurrency); err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// upline is a box and its processor, with a line between them that can be cut.
type upline struct {
	*server
	processor *blackbox.Processor
}

// startLine starts both; the line is cut.
func startLine(ctx context.Context, o simulator.Options, binary, data string, args ...string) (*upline, error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	processor, err := blackbox.StartProcessor(o)
	if err != nil {
		return nil, err
	}
	processor.Cut()
	box, err := startBox(ctx, binary, data, append([]string{"--upstream-url", processor.URL(), "--upstream-key", blackbox.ProcessorKey}, args...)...)
	if err != nil {
		processor.Close()
		return nil, err
	}
	return &upline{box, processor}, nil
}

func (l *upline) close() {
	l.stop()
	l.processor.Close()
}

// cut cuts the line and waits until the box has noticed, and has done with what it had in hand.
func (l *upline) cut(ctx context.Context) error {
	l.processor.Cut()
	waiting, cancel := context.WithTimeoutCause(ctx, graceMax, errors.New("the box does not notice that the line is down"))
	defer cancel()
	err := blackbox.Poll(waiting, backlogPoll, func() (bool, error) {
		now, err := l.status(ctx)
		return err == nil && now.Connectivity.State == "offline", err
	})
	if err != nil {
		return err
	}
	return l.rest(ctx)
}

// restore gives the line back and waits until the box has noticed.
func (l *upline) restore(ctx context.Context) error {
	if err := l.processor.Restore(ctx); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeoutCause(ctx, graceMax, errors.New("the box does not notice that the line is back"))
	defer cancel()
	return blackbox.Poll(waiting, backlogPoll, func() (bool, error) {
		now, err := l.status(ctx)
		return err == nil && now.Connectivity.State == "online", err
	})
}

// fill has the box take payments while the line is down.
func (l *upline) fill(ctx context.Context, n int, run string) error {
	if err := l.cut(ctx); err != nil {
		return err
	}
	taken, err := drive(ctx, load{address: l.address, key: l.key, run: run, connections: backlogConnections, count: n})
	if err != nil {
		return err
	}
	if taken.done != n {
		return fmt.Errorf("only %d of %d payments were taken; other answers by status: %v", taken.done, n, taken.refused)
	}
	return l.rest(ctx)
}

// drain takes payments while the line is down and lets them go.
func (l *upline) drain(ctx context.Context, n int, run string) (*drained, error) {
	if err := l.fill(ctx, n, run); err != nil {
		return nil, err
	}
	charged, before := len(l.processor.Ledger().Charges), l.processor.Posted()
	d := &drained{}
	cpu, err := processCPU(l.pid)
	if err != nil {
		return nil, err
	}
	back := time.Now()
	if err := l.processor.Restore(ctx); err != nil {
		return nil, err
	}
	if err := l.settled(ctx); err != nil {
		return nil, err
	}
	d.settled = time.Since(back)
	posts := l.processor.Posts()[before:]
	if charges := len(l.processor.Ledger().Charges) - charged; charges != n {
		return nil, fmt.Errorf("%d payments took effect %d times", n, charges)
	}
	first, last := extent(posts)
	d.wait, d.rate, d.concurrency = first.Sub(back), float64(n)/last.Sub(first).Seconds(), peak(posts)
	if err := l.rest(ctx); err != nil {
		return nil, err
	}
	used, err := processCPU(l.pid)
	if err != nil {
		return nil, err
	}
	d.cpu = used.minus(cpu).total() / time.Duration(n)
	return d, nil
}

// extent is from the first request's arrival to the last one's answer.
func extent(posts []blackbox.Post) (first, last time.Time) {
	for _, p := range posts {
		if first.IsZero() || p.At.Before(first) {
			first = p.At
		}
		if end := p.At.Add(p.Took); end.After(last) {
			last = end
		}
	}
	return first, last
}

// peak is how many of the requests were open at once at most.
func peak(posts []blackbox.Post) (most int) {
	type turn struct {
		at time.Time
		by int
	}
	var turns []turn
	for _, p := range posts {
		turns = append(turns, turn{p.At, 1}, turn{p.At.Add(p.Took), -1})
	}
	// What ends as another begins was not open beside it.
	slices.SortFunc(turns, func(a, b turn) int { return 2*a.at.Compare(b.at) + (a.by-b.by)/2 })
	open := 0
	for _, t := range turns {
		open += t.by
		most = max(most, open)
	}
	return most
}

// settled waits until the box calls nothing unsettled.
func (s *server) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, drainMax, errors.New("the backlog does not drain"))
	defer cancel()
	return blackbox.Poll(ctx, backlogPoll, func() (bool, error) {
		now, err := s.status(ctx)
		return err == nil && now.Backlog.Count == 0, err
	})
}

// standing is what the box says of itself.
type standing struct {
	Connectivity struct {
		State string `json:"state"`
	} `json:"connectivity"`
	Backlog *struct {
		Count int `json:"count"`
	} `json:"backlog"`
}

func (s *server) status(ctx context.Context) (*standing, error) {
	content, err := s.get(ctx, "/api/v1/status")
	if err != nil {
		return nil, err
	}
	var now standing
	if err := json.Unmarshal([]byte(content), &now); err != nil {
		return nil, err
	}
	if now.Backlog == nil {
		return nil, fmt.Errorf("the status tells no backlog: %s", content)
	}
	return &now, nil
}

// loop runs the bare loop in a process of its own: the box's own posts, under other ids.
func (l *upline) loop(ctx context.Context, n, concurrency int) (rate float64, err error) {
	form := string(l.processor.Sample())
	at := strings.Index(form, "pay_")
	if at < 0 || len(form) < at+len(samplePayment) {
		return 0, fmt.Errorf("no payment's id in %q", form)
	}
	form = form[:at] + samplePayment + form[at+len(samplePayment):]
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	before := len(l.processor.Ledger().Charges)
	command := exec.CommandContext(ctx, self, loopPart, l.processor.URL(), strconv.Itoa(n), strconv.Itoa(concurrency), form)
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		return 0, fmt.Errorf("bare loop: %w", err)
	}
	var nanoseconds int64
	if _, err := fmt.Sscan(string(out), &nanoseconds); err != nil {
		return 0, fmt.Errorf("bare loop said %q: %w", out, err)
	}
	if charges := len(l.processor.Ledger().Charges) - before; charges != n {
		return 0, fmt.Errorf("%d posts of the bare loop took effect %d times", n, charges)
	}
	return float64(n) / time.Duration(nanoseconds).Seconds(), nil
}
