package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// tillEvery is the time between a till's payments where they are spaced: 32 tills then ask for some 107 payments a second.
	tillEvery = 300 * time.Millisecond
	// settlesAfter is how long what a bank has not decided takes.
	settlesAfter = 500 * time.Millisecond
	// syncsAllowed and overheadAllowed are the goal: so many fsyncs, and so much beside, may the box add to the processor's time.
	syncsAllowed    = 8
	overheadAllowed = 2 * time.Millisecond
)

// asking is a way to ask for an outcome.
type asking struct {
	what string
	want wanted
}

var (
	askCharge = asking{"charge, Prefer: wait", wanted{path: paymentPath, body: payments["plain"], sign: `"succeeded"`, keyed: true, waits: true, every: true}}
	askIntent = asking{"intent, confirmed at once", wanted{
		path: "/v1/payment_intents", body: intentBody("pm_card_visa"), sign: `"succeeded"`, keyed: true, status: 200, every: true,
	}}
	askPolled = asking{"intent that is processing first", wanted{
		path: "/v1/payment_intents", body: intentBody("pm_card_processing"), sign: `"succeeded"`, keyed: true, status: 200, every: true,
	}}
)

func intentBody(method string) string {
	return `{"amount":1999,"currency":"usd","payment_method":"` + method + `","confirm":true,"error_on_requires_action":true}`
}

// waited is one measurement of clients that wait for outcomes.
type waited struct {
	fsync fsyncTimes
	rate  float64
	p50   time.Duration
	p99   time.Duration
	own   time.Duration // the processor's, the median of its payments
}

// added is what the box adds to the processor's time.
func (w *waited) added() time.Duration { return w.p50 - w.own }

// allowed is what it may.
func (w *waited) allowed() time.Duration { return syncsAllowed*w.fsync.p50 + overheadAllowed }

// measureWaits measures how long clients wait for an outcome.
func measureWaits(ctx context.Context, o drainOptions, binary, top string) error {
	fmt.Printf("The outcome waited for, %d clients; median (range) of %d rounds of %s (goal: the box's part below %d fsyncs of the probe + %s)\n",
		o.clients, o.rounds, o.duration, syncsAllowed, overheadAllowed)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "asked for\tprocessor works\teach client\tpayments/s\tp50, p99\tprocessor's own\tthe box's part ms\tfsync µs\tallowed ms\t")
	for _, latency := range latencies {
		for _, ask := range []asking{askCharge, askIntent} {
			for _, every := range []time.Duration{tillEvery, 0} {
				if err := o.measureWait(ctx, table, ask, latency, every, simulator.Settling{}, binary, top); err != nil {
					return err
				}
			}
		}
	}
	// Its clients' pauses would be shorter than their waits.
	if err := o.measureWait(ctx, table, askPolled, onlineLatency, 0, simulator.Settling{SettleMS: settlesAfter.Milliseconds()}, binary, top); err != nil {
		return err
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("  an intent is two requests, made and confirmed. What is processing ends %s after its confirmation, and the box asks after 1 s, 2 s, 4 s …, 20 %% more or less:\n", settlesAfter)
	fmt.Println("  its row has no goal. A client without a pause has the box settle as fast as it can, so that its wait is the number of clients over the rate")
	fmt.Println()
	return nil
}

func (o drainOptions) measureWait(ctx context.Context, table *tabwriter.Writer, ask asking, latency, every time.Duration, settling simulator.Settling, binary, top string) error {
	data, err := os.MkdirTemp(top, "wait-")
	if err != nil {
		return err
	}
	l, err := startLine(ctx, simulator.Options{Latency: latency}, binary, filepath.Join(data, "box"))
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.processor.SetSettling(settling); err != nil {
		return err
	}
	if err := l.restore(ctx); err != nil {
		return err
	}
	asked := load{address: l.address, key: l.key, connections: o.clients, want: ask.want, every: every}
	warm := asked
	warm.run, warm.duration = "warm", warmup
	if _, err := drive(ctx, warm); err != nil {
		return fmt.Errorf("%s: %w", ask.what, err)
	}
	var ws []*waited
	for round := range o.rounds {
		w := &waited{}
		if err := l.rest(ctx); err != nil {
			return err
		}
		if w.fsync, err = probeDisk(top); err != nil {
			return err
		}
		before := l.processor.Posted()
		asked.run, asked.duration = fmt.Sprintf("round-%d", round), o.duration
		r, err := drive(ctx, asked)
		if err == nil && len(r.refused) > 0 {
			err = fmt.Errorf("answers by status: %v", r.refused)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", ask.what, err)
		}
		w.rate, w.p50, w.p99, w.own = r.rate(), r.quantile(0.5), r.quantile(0.99), ownTime(l.processor.Posts()[before:])
		ws = append(ws, w)
	}
	millis := func(of func(*waited) time.Duration) string {
		return spread("%.1f", figures(ws, func(w *waited) float64 { return float64(of(w)) / float64(time.Millisecond) }))
	}
	mid := func(of func(*waited) time.Duration) string { return micros(median(figures(ws, of))) }
	pace := "at once again"
	if every > 0 {
		pace = "every " + every.String()
	}
	allowed := fmt.Sprintf("%.1f", float64(median(figures(ws, (*waited).allowed)))/float64(time.Millisecond))
	if settling != (simulator.Settling{}) {
		allowed = "-"
	}
	_, err = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s, %s\t%s\t%s\t%s\t%s\t\n", ask.what, latency, pace, spread("%.0f", figures(ws, func(w *waited) float64 { return w.rate })),
		mid(func(w *waited) time.Duration { return w.p50 }), mid(func(w *waited) time.Duration { return w.p99 }), mid(func(w *waited) time.Duration { return w.own }),
		millis((*waited).added), spread("%.0f", figures(ws, func(w *waited) float64 { return float64(w.fsync.p50) / float64(time.Microsecond) })), allowed)
	return err
}

// ownTime is what the processor has worked on a payment, in all its requests; the median.
func ownTime(posts []blackbox.Post) time.Duration {
	took := map[string]time.Duration{}
	for _, p := range posts {
		took[p.Payment] += p.Took
	}
	return median(slices.Collect(maps.Values(took)))
}
