package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

// busy is one round of taking payments without and beside a drain.
type busy struct {
	down, draining *result // payments taken with the line down, and while a backlog drains
	alone, beside  float64 // payments settled a second, with none taken and while they were
}

func (b *busy) taken() float64   { return b.draining.rate() / b.down.rate() }
func (b *busy) settled() float64 { return b.beside / b.alone }

// measureTaking compares the taking of payments while a backlog drains with the same while the line is down.
func measureTaking(ctx context.Context, o drainOptions, binary, top string) error {
	l, err := startLine(ctx, simulator.Options{Latency: onlineLatency}, binary, filepath.Join(top, "taking"))
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.fill(ctx, o.backlog, "backlog"); err != nil {
		return err
	}
	var all []*busy
	for round := range o.rounds {
		b := &busy{}
		taking := load{address: l.address, key: l.key, connections: backlogConnections, duration: o.duration}
		if err := l.cut(ctx); err != nil {
			return err
		}
		taking.run = fmt.Sprintf("down-%d", round)
		if b.down, err = drive(ctx, taking); err != nil {
			return err
		}
		if err := l.rest(ctx); err != nil {
			return err
		}
		if err := l.drains(ctx); err != nil {
			return err
		}
		b.alone, err = l.settling(func() error { return pass(ctx, o.duration) })
		if err != nil {
			return err
		}
		taking.run = fmt.Sprintf("draining-%d", round)
		b.beside, err = l.settling(func() (err error) { b.draining, err = drive(ctx, taking); return err })
		if err != nil {
			return err
		}
		now, err := l.status(ctx)
		if err != nil {
			return err
		}
		if now.Backlog.Count == 0 {
			return errors.New("nothing was left to drain: take a longer -backlog")
		}
		all = append(all, b)
	}
	fmt.Printf("Payments taken over %d connections while a backlog drains to a processor that works %s, beside the same with the line down; median (range) of %d rounds of %s in turns\n",
		backlogConnections, onlineLatency, o.rounds, o.duration)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "taken/s, line down\ttaken/s, draining\tratio\tp99 line down\tp99 draining\tsettled/s, none taken\tsettled/s beside\tratio\t")
	part := func(format string, of func(*busy) float64) string { return spread(format, figures(all, of)) }
	_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n",
		part("%.0f", func(b *busy) float64 { return b.down.rate() }), part("%.0f", func(b *busy) float64 { return b.draining.rate() }), part("%.2f", (*busy).taken),
		micros(median(figures(all, func(b *busy) time.Duration { return b.down.quantile(0.99) }))), micros(median(figures(all, func(b *busy) time.Duration { return b.draining.quantile(0.99) }))),
		part("%.0f", func(b *busy) float64 { return b.alone }), part("%.0f", func(b *busy) float64 { return b.beside }), part("%.2f", (*busy).settled))
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// underWay posts have been answered when a drain counts as going on at its pace.
const underWay = 500

// drains gives the line back and waits until the drain is under way.
func (l *upline) drains(ctx context.Context) error {
	before := l.processor.Posted()
	if err := l.processor.Restore(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, graceMax, errors.New("the backlog does not begin to drain"))
	defer cancel()
	return blackbox.Poll(ctx, backlogPoll, func() (bool, error) { return l.processor.Posted()-before >= underWay, nil })
}

// settling is how many payments a second the processor answers meanwhile.
func (l *upline) settling(meanwhile func() error) (rate float64, err error) {
	before, began := l.processor.Posted(), time.Now()
	if err := meanwhile(); err != nil {
		return 0, err
	}
	return float64(l.processor.Posted()-before) / time.Since(began).Seconds(), nil
}

// pass lets time pass.
func pass(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
