package main

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// seeds are settled by a box and then copied.
	seeds = 2000
	// settledStarts is how often a box is started on them.
	settledStarts = 5
	// catchUpMax bounds the wait for the first box on the copies, which tells the event log of them and counts them.
	catchUpMax = 15 * time.Minute
)

// measureSettled compares a box that holds many settled payments with an empty one, and starts one on them.
func measureSettled(ctx context.Context, o drainOptions, binary, top string) error {
	empty, full := filepath.Join(top, "none-settled"), filepath.Join(top, "settled")
	began := time.Now()
	if err := makeSettled(ctx, o, binary, full); err != nil {
		return err
	}
	filled := time.Since(began)
	size, err := sizeOf(filepath.Join(full, "shards"))
	if err != nil {
		return err
	}
	fmt.Printf("%d settled payments stored, in %.0f s: %d MiB of shards\n", o.stored, filled.Seconds(), size>>20)
	if o.check {
		began := time.Now()
		if _, err := blackbox.Run(ctx, binary, "check", "--data", full); err != nil {
			return err
		}
		fmt.Printf("  tenderbox check finds no fault with them, in %.0f s\n", time.Since(began).Seconds())
	}
	if err := caughtUp(ctx, binary, full); err != nil {
		return err
	}
	if err := os.Mkdir(empty, 0o700); err != nil {
		return err
	}
	var boxes [2]*server
	for i, data := range []string{empty, full} {
		if boxes[i], err = startBox(ctx, binary, data, "--upstream-url", deadLine); err != nil {
			return err
		}
		defer boxes[i].stop()
		if _, err := look(ctx, boxes[i], load{run: "warm", connections: backlogConnections, duration: warmup}, drive); err != nil {
			return err
		}
	}
	var seen [2][]*window
	for round := range o.rounds {
		for i, box := range boxes {
			w, err := look(ctx, box, load{run: fmt.Sprintf("round-%d", round), connections: backlogConnections, duration: o.duration}, drive)
			if err != nil {
				return err
			}
			seen[i] = append(seen[i], w)
		}
	}
	held, err := residentOf(boxes[1].pid)
	if err != nil {
		return err
	}
	var ratios []float64
	for i := range seen[0] {
		ratios = append(ratios, seen[1][i].rate()/seen[0][i].rate())
	}
	rates := func(ws []*window) string {
		return spread("%.0f", figures(ws, func(w *window) float64 { return w.rate() }))
	}
	none, many := summarise(seen[0]), summarise(seen[1])
	fmt.Printf("Payments taken over %d connections, line down, by a box that holds them, beside an empty one; median (range) of %d rounds of %s in turns (goal: 0.90)\n", backlogConnections, o.rounds, o.duration)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "empty/s\tsettled/s\tratio of each round\tCPU µs empty, settled\tRSS with them\t")
	_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%.0f, %.0f\t%s\t\n", rates(seen[0]), rates(seen[1]), spread("%.2f", ratios), none.cpu+none.after, many.cpu+many.after, held)
	if err := table.Flush(); err != nil {
		return err
	}
	for _, box := range boxes {
		box.stop()
	}
	return startSettled(ctx, o, binary, map[string]string{"empty": empty, fmt.Sprintf("%d settled", o.stored): full})
}

// makeSettled makes a box's folder that holds settled payments.
func makeSettled(ctx context.Context, o drainOptions, binary, data string) error {
	l, err := startLine(ctx, simulator.Options{}, binary, data)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.restore(ctx); err != nil {
		return err
	}
	few := min(seeds, o.stored)
	for _, part := range []struct {
		kind  string
		count int
	}{{"plain", few - few/4}, {"rich", few / 4}} {
		if part.count == 0 {
			continue
		}
		taken := load{address: l.address, key: l.key, run: "seed-" + part.kind, connections: backlogConnections, count: part.count, want: payment(part.kind)}
		if _, err := drive(ctx, taken); err != nil {
			return err
		}
	}
	if err := l.settled(ctx); err != nil {
		return err
	}
	if err := l.end(ctx); err != nil {
		return err
	}
	return multiply(ctx, data, o.stored-few)
}

// end stops a box in good order.
func (s *server) end(ctx context.Context) error {
	if err := s.rest(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	return s.process.Stop(ctx)
}

// caughtUp lets a box publish and count what was copied, and stops it.
func caughtUp(ctx context.Context, binary, data string) error {
	box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
	if err != nil {
		return err
	}
	defer box.stop()
	waiting, cancel := context.WithTimeout(ctx, catchUpMax)
	defer cancel()
	// Every ten seconds analytics see that there is more.
	for range 2 {
		for {
			err := box.rest(waiting)
			if err == nil {
				break
			}
			if waiting.Err() != nil {
				return err
			}
		}
		if err := pass(waiting, analyticsLook); err != nil {
			return err
		}
	}
	return box.end(waiting)
}

// analyticsLook is longer than analytics take to notice rows that nobody told them of.
const analyticsLook = 11 * time.Second

// startSettled starts a box on each folder, kills it and starts it again.
func startSettled(ctx context.Context, o drainOptions, binary string, folders map[string]string) error {
	fmt.Printf("Started again after SIGKILL with the payments of these rounds waiting; median (range) of %d (goal: ready under 1 s)\n", settledStarts)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "holds\tready, s\tCPU until then, s\tfirst payment with a key answered, s\t")
	for _, what := range []string{"empty", fmt.Sprintf("%d settled", o.stored)} {
		var ready, cpu, paid []float64
		for i := range settledStarts {
			began := time.Now()
			box, err := startBox(ctx, binary, folders[what], "--upstream-url", deadLine)
			if err != nil {
				return err
			}
			ready = append(ready, time.Since(began).Seconds())
			used, err := processCPU(box.pid)
			if err == nil {
				err = box.pay(ctx, fmt.Sprintf("first-%d", i))
			}
			paid = append(paid, time.Since(began).Seconds())
			if err == nil {
				err = box.rest(ctx) // an event stream under which the process dies each time at once is begun anew
			}
			box.stop()
			if err != nil {
				return err
			}
			cpu = append(cpu, used.total().Seconds())
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t\n", what, spread("%.2f", ready), spread("%.2f", cpu), spread("%.2f", paid))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// pay has one payment taken.
func (s *server) pay(ctx context.Context, key string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.address+paymentPath, strings.NewReader(payments["plain"]))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+s.key)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", key)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	if err := answer.Body.Close(); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusCreated {
		return fmt.Errorf("a payment was answered %d", answer.StatusCode)
	}
	return nil
}

// sizeOf a folder's files.
func sizeOf(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	return bytes, err
}
