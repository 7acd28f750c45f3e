package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
)

// eventsPart is the argument with which the program measures events.
const eventsPart = "events"

// eventsOptions are the flags of that part.
type eventsOptions struct {
	dir      string
	rounds   int
	duration time.Duration
	events   int
	clients  int
}

// benchEvents measures how soon events are heard, how fast the event stream is filled, and what a listener costs.
func benchEvents(ctx context.Context, args []string) error {
	var o eventsOptions
	flags := flag.NewFlagSet("bench events", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "bin", "folder on the disk to measure; a folder below it is made and removed")
	flags.IntVar(&o.rounds, "rounds", 3, "measurements of each kind, in turns")
	flags.DurationVar(&o.duration, "duration", 5*time.Second, "length of one measurement of latency")
	flags.IntVar(&o.events, "events", 100_000, "events with which the event stream is filled")
	flags.IntVar(&o.clients, "clients", 1000, "listeners that are held")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.rounds < 1 || o.duration < 100*time.Millisecond || o.events < 1000 || o.clients < 1 {
		return errors.New("want at least one round, 100ms a measurement, 1000 events and one client")
	}
	return onDisk(o.dir, true, func(top string) error {
		binary, err := blackbox.Build(ctx, top)
		if err != nil {
			return err
		}
		for _, part := range []struct {
			name    string
			measure func(ctx context.Context, o eventsOptions, binary, top string) error
		}{{"heard", measureHearing}, {"filled", measureFilling}, {"held", measureHolding}} {
			if err := part.measure(ctx, o, binary, top); err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
		return nil
	})
}

// eventRates are those at which the latency is asked for.
var eventRates = []int{100, 2000}

// measureHearing tells events at a steady rate and takes the time from the answer, which follows the commit, to
// the arrival on a stream. What arrives before its answer counts as 0.
func measureHearing(ctx context.Context, o eventsOptions, binary, top string) error {
	box, err := startBox(ctx, binary, filepath.Join(top, "heard"), "--upstream-url", deadLine)
	if err != nil {
		return err
	}
	defer box.stop()
	ear, err := listen(ctx, box, box.key)
	if err != nil {
		return err
	}
	defer ear.close()
	fmt.Printf("Heard by Server-Sent Events: from the answer of POST /events (after its commit) to the arrival, one listener; %d rounds of %s\n", o.rounds, o.duration)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "events/s wanted\ttold/s\tp50\tp99\tfrom the request: p50\tp99\t")
	for _, rate := range eventRates {
		var behind, whole []time.Duration
		told := 0
		for range o.rounds {
			all, err := tellEvents(ctx, box, rate, o.duration)
			if err != nil {
				return err
			}
			told += len(all)
			for _, t := range all {
				at, err := ear.arrival(ctx, t.id)
				if err != nil {
					return err
				}
				behind, whole = append(behind, max(0, at.Sub(t.answered))), append(whole, at.Sub(t.asked))
			}
		}
		slices.Sort(behind)
		slices.Sort(whole)
		at := func(ds []time.Duration, q float64) string { return micros(ds[min(int(q*float64(len(ds))), len(ds)-1)]) }
		_, _ = fmt.Fprintf(table, "%d\t%.0f\t%s\t%s\t%s\t%s\t\n", rate, float64(told)/(float64(o.rounds)*o.duration.Seconds()),
			at(behind, 0.5), at(behind, 0.99), at(whole, 0.5), at(whole, 0.99))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// measureFilling takes the event stream away from a box whose journals are full, and measures how fast the relay fills a new one,
// beside a loop that publishes as many messages of that size to a stream of its own, in the same batches, synced as often.
func measureFilling(ctx context.Context, o eventsOptions, binary, top string) error {
	data := filepath.Join(top, "filled")
	box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
	if err != nil {
		return err
	}
	_, err = drive(ctx, load{address: box.address, key: box.key, run: "fill", connections: 64, count: o.events})
	if err == nil {
		err = box.rest(ctx)
	}
	box.process.Terminate()
	<-box.process.Exited()
	if err != nil {
		return err
	}
	var relayed, bare []float64
	for range o.rounds {
		if err := os.RemoveAll(filepath.Join(data, "bus")); err != nil {
			return err
		}
		rate, err := fill(ctx, binary, data, o.events)
		if err != nil {
			return err
		}
		relayed = append(relayed, rate)
		if rate, err = publishBare(ctx, filepath.Join(top, "bare-bus"), o.events); err != nil {
			return err
		}
		bare = append(bare, rate)
	}
	fmt.Printf("Filling a lost event stream with %d events (payment.created) from the journals, beside a loop that publishes prepared messages to a stream of its own, both synced at each\nbatch; medians of %d rounds in turns\n",
		o.events, o.rounds)
	fmt.Printf("  relay %.0f/s, bare loop %.0f/s, ratio %.2f (goal 0.5)\n\n", median(relayed), median(bare), median(relayed)/median(bare))
	return nil
}

// fill starts the box and returns the rate from the first events published to the last.
func fill(ctx context.Context, binary, data string, events int) (float64, error) {
	box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
	if err != nil {
		return 0, err
	}
	defer func() {
		box.process.Terminate()
		<-box.process.Exited()
	}()
	ctx, cancel := context.WithTimeout(ctx, quietMax)
	defer cancel()
	var first, last time.Time
	var from, to float64
	err = blackbox.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		m, err := box.metrics(ctx)
		if err != nil {
			return false, err
		}
		n := m["tenderbox_events_published_total"]
		if from == 0 && n > 0 {
			first, from = time.Now(), n
		}
		last, to = time.Now(), n
		return n >= float64(events), nil
	})
	if err != nil {
		return 0, err
	}
	return (to - from) / last.Sub(first).Seconds(), nil
}

// measureHolding holds many listeners on a quiet box and takes what each costs.
func measureHolding(ctx context.Context, o eventsOptions, binary, top string) error {
	box, err := startBox(ctx, binary, filepath.Join(top, "held"), "--upstream-url", deadLine)
	if err != nil {
		return err
	}
	defer box.stop()
	keys := []string{box.key}
	for i := 1; len(keys)*streamsEach < o.clients; i++ {
		key, err := box.addTenant(ctx, fmt.Sprintf("shop-%d", i))
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	before, err := residentOf(box.pid)
	if err != nil {
		return err
	}
	for i := range o.clients {
		ear, err := listen(ctx, box, keys[i/streamsEach])
		if err != nil {
			return fmt.Errorf("listener %d: %w", i, err)
		}
		defer ear.close()
	}
	if err := box.rest(ctx); err != nil {
		return err
	}
	after, err := residentOf(box.pid)
	if err != nil {
		return err
	}
	told, err := tellEvents(ctx, box, 100, time.Second)
	if err != nil {
		return err
	}
	fmt.Printf("%d listeners held: RSS %.1f MiB before, %.1f with them, %.1f KiB each; %d events told meanwhile\n\n", o.clients, before.all, after.all,
		(after.all-before.all)*1024/float64(o.clients), len(told))
	return nil
}

// streamsEach is how many streams the box lets one tenant have.
const streamsEach = 64

// addTenant makes a tenant and returns its key.
func (s *server) addTenant(ctx context.Context, name string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.address+"/api/v1/tenants", strings.NewReader(`{"id":"`+name+`"}`))
	if err != nil {
		return "", err
	}
	var made struct {
		APIKey string `json:"api_key"`
	}
	return made.APIKey, s.ask(r, s.token, &made)
}
