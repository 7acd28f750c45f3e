package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// startUp is the beginning of a drain, in which the box learns what it is allowed.
	startUp = 10 * time.Second
	// burstPart of the requests that a processor allows in a second may come at once.
	burstPart = 10
)

// stallMin is half of what fills a bucket of a tenth of a second.
const stallMin = 50 * time.Millisecond

// watchStalls counts how often this process got no processor for so long, until the function that it returns is called.
func watchStalls(long time.Duration) (count func() int) {
	stop, counted := make(chan struct{}), make(chan int)
	go func() {
		n, tick := 0, time.NewTicker(long/10)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-tick.C:
				now := time.Now()
				if now.Sub(last) > long {
					n++
				}
				last = now
			case <-stop:
				counted <- n
				return
			}
		}
	}()
	return func() int { close(stop); return <-counted }
}

// kept is what a processor with an allowance has answered within a time.
type kept struct {
	took           time.Duration
	taken, refused int
}

func (k kept) part(allowance int) float64 {
	return float64(k.taken) / k.took.Seconds() / float64(allowance)
}

func (k kept) refusals() float64 { return float64(k.refused) / float64(max(k.taken+k.refused, 1)) }

// keptOf looks at the requests that came at least so long after the first.
func keptOf(posts []blackbox.Post, after time.Duration) (k kept) {
	first, last := extent(posts)
	from := first.Add(after)
	k.took = last.Sub(from)
	for _, p := range posts {
		switch {
		case p.At.Before(from):
		case p.Status == http.StatusTooManyRequests:
			k.refused++
		case p.Status == http.StatusOK:
			k.taken++
		}
	}
	return k
}

// measureAllowance drains a backlog to a processor that has a token bucket and says so only by 429.
func measureAllowance(ctx context.Context, o drainOptions, binary, top string) error {
	burst := max(o.allowance/burstPart, 1)
	l, err := startLine(ctx, simulator.Options{Latency: onlineLatency, Rate: o.allowance, Burst: burst}, binary, filepath.Join(top, "allowance"))
	if err != nil {
		return err
	}
	defer l.close()
	n := int(o.throttled.Seconds() * float64(o.allowance))
	held := watchStalls(stallMin)
	d, err := l.drain(ctx, n, "allowance")
	stalls := held()
	if err != nil {
		return err
	}
	fmt.Printf("Drain of %d payments to a processor that works %s and allows %d/s, a token bucket of %d; the box is told nothing (goal: 0.95 of it, under 2 %% answered 429)\n",
		n, onlineLatency, o.allowance, burst)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "\ttook\tpayments/s\tof the allowance\tanswered 429\t")
	posts := l.processor.Posts()
	for _, part := range []struct {
		what  string
		after time.Duration
	}{{"from the first post", 0}, {"without the first " + startUp.String(), startUp}} {
		k := keptOf(posts, part.after)
		_, _ = fmt.Fprintf(table, "%s\t%.1f s\t%.1f\t%.3f\t%d (%.2f %%)\t\n", part.what, k.took.Seconds(), float64(k.taken)/k.took.Seconds(), k.part(o.allowance), k.refused, 100*k.refusals())
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("  line back to first post %s; the processor, which shares the box's cores, was held up for over %s %d times, which fills its bucket and then empties it at once\n\n", micros(d.wait), stallMin, stalls)
	return nil
}
