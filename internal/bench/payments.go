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
)

// The box's counters. A SQLite commit in WAL mode is one fsync, a bbolt commit two (pages, then the meta page).
const (
	shardCommits  = "tenderbox_shard_commits_total"
	storeCommits  = "tenderbox_store_commits_total"
	syncsPerShard = 1
	syncsPerStore = 2
)

const (
	// deadLine is a processor's address at which nobody listens: port 1 is reserved for a protocol of 1988.
	deadLine = "http://127.0.0.1:1/v1"
	// warmup is long enough for pools and caches to fill.
	warmup = 500 * time.Millisecond
)

// window is one measurement of one server.
type window struct {
	*result
	cpu    cpuTime // while it answered
	after  cpuTime // from then until it came to rest
	shard  float64 // commits, until it came to rest
	store  float64
	absent []string // counters that the server does not have
}

// driver is what puts a load on a server: drive or work.
type driver func(context.Context, load) (*result, error)

// look measures one load on a server, from rest to rest.
func look(ctx context.Context, s *server, l load, by driver) (*window, error) {
	l.address, l.key = s.address, s.key
	if err := s.rest(ctx); err != nil {
		return nil, err
	}
	w := &window{}
	var before, after map[string]float64
	var err error
	if s.token != "" {
		if before, err = s.metrics(ctx); err != nil {
			return nil, err
		}
	}
	cpu0, err := processCPU(s.pid)
	if err != nil {
		return nil, err
	}
	if w.result, err = by(ctx, l); err != nil {
		return nil, fmt.Errorf("%s, %d connections: %w", s.name, l.connections, err)
	}
	cpu1, err := processCPU(s.pid)
	if err != nil {
		return nil, err
	}
	if err := s.rest(ctx); err != nil {
		return nil, err
	}
	cpu2, err := processCPU(s.pid)
	if err != nil {
		return nil, err
	}
	w.cpu, w.after = cpu1.minus(cpu0), cpu2.minus(cpu1)
	if s.token != "" {
		if after, err = s.metrics(ctx); err != nil {
			return nil, err
		}
		for _, name := range []string{shardCommits, storeCommits} {
			if _, known := after[name]; !known {
				w.absent = append(w.absent, name)
			}
		}
		w.shard, w.store = after[shardCommits]-before[shardCommits], after[storeCommits]-before[storeCommits]
	}
	return w, nil
}

// measurePayments compares durable payments with the no-op handler, in turns.
func measurePayments(ctx context.Context, o options, binary, top string) error {
	plain, err := startNoop(ctx)
	if err != nil {
		return err
	}
	defer plain.stop()
	data := filepath.Join(top, "payments")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	box, err := startBox(ctx, binary, data, append([]string{"--upstream-url", deadLine, "--upstream-key", blackbox.ProcessorKey}, o.serve...)...)
	if err != nil {
		return err
	}
	defer box.stop()

	servers := []*server{plain, box}
	for _, s := range servers {
		if _, err := look(ctx, s, load{run: "warm", connections: slices.Max(o.connections), duration: warmup, want: payment(o.payment)}, drive); err != nil {
			return err
		}
	}
	fmt.Printf("Payments with the line down, beside a no-op JSON handler on httprouter; median of %d rounds of %s in turns\n", o.rounds, o.duration)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "connections\tclient\tno-op/s\tpayments/s\tratio\tp50, p99 no-op\tp50, p99 payment\tCPU µs no-op\tCPU µs payment\tof it kernel\tafter the answer\tclient µs\tcommits/payment shards\tqueue\tfsyncs/payment\t")
	refused := map[int]int{}
	var absent []string
	asked, got := map[string]int{}, map[string]int{}
	type row struct {
		connections int
		client      string
	}
	var rows []row
	for _, client := range []string{"raw", "net/http"} {
		for _, connections := range o.connections {
			rows = append(rows, row{connections, client})
		}
	}
	for i, r := range rows {
		seen := map[*server][]*window{}
		for round := range o.rounds {
			for _, s := range servers {
				w, err := look(ctx, s, load{
					run: fmt.Sprintf("row%d-r%d", i, round), connections: r.connections, duration: o.duration, want: payment(o.payment), standard: r.client != "raw",
				}, drive)
				if err != nil {
					return err
				}
				seen[s] = append(seen[s], w)
				asked[s.name], got[s.name] = w.asked, w.answered
				for status, n := range w.refused {
					refused[status] += n
				}
				if s == box {
					absent = w.absent
				}
			}
		}
		p, b := summarise(seen[plain]), summarise(seen[box])
		_, _ = fmt.Fprintf(table, "%d\t%s\t%.0f\t%.0f\t%.2f\t%s, %s\t%s, %s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f, %.1f\t%.3f\t%.3f\t%.3f\t\n",
			r.connections, r.client, p.rate, b.rate, b.rate/p.rate, micros(p.p50), micros(p.p99), micros(b.p50), micros(b.p99),
			p.cpu, b.cpu, b.kernel, b.after, p.client, b.client, b.shard, b.store, b.shard*syncsPerShard+b.store*syncsPerStore)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("  bodies: %d bytes in, %d out (no-op: %d, %d); every request has its own Idempotency-Key\n", asked["box"], got["box"], asked["no-op"], got["no-op"])
	fmt.Println("  CPU µs are the server process's own, a request; client µs the load client's beside the no-op server and beside the box")
	fmt.Println("  on the same cores: one writes prepared bytes and hardly parses, the other is net/http's, as apps in Go have it")
	fmt.Println("  fsyncs: one a shard commit, two a queue commit; the event stream's and checkpoints are not among them")
	for _, name := range absent {
		fmt.Printf("  the box's metrics have no %s: its figure above is not known, and not zero\n", name)
	}
	for _, status := range slices.Sorted(maps.Keys(refused)) {
		fmt.Printf("  %d requests were answered %d and are not counted as payments\n", refused[status], status)
	}
	memory, err := residentOf(box.pid)
	if err != nil {
		return err
	}
	fmt.Printf("  the box's RSS after all this: %s\n\n", memory)
	return nil
}

// summary is the median of some windows, by figure; CPU in µs a request.
type summary struct {
	rate, cpu, kernel, after, client, shard, store float64
	p50, p99                                       time.Duration
}

func summarise(ws []*window) summary {
	figure := func(f func(*window) float64) float64 {
		var vs []float64
		for _, w := range ws {
			vs = append(vs, f(w))
		}
		return median(vs)
	}
	each := func(d time.Duration, w *window) float64 {
		return float64(d) / float64(time.Microsecond) / float64(w.done)
	}
	return summary{
		rate:   figure(func(w *window) float64 { return w.rate() }),
		cpu:    figure(func(w *window) float64 { return each(w.cpu.total(), w) }),
		kernel: figure(func(w *window) float64 { return each(w.cpu.system, w) }),
		after:  figure(func(w *window) float64 { return each(w.after.total(), w) }),
		client: figure(func(w *window) float64 { return each(w.clientCPU, w) }),
		shard:  figure(func(w *window) float64 { return w.shard / float64(w.done) }),
		store:  figure(func(w *window) float64 { return w.store / float64(w.done) }),
		p50:    time.Duration(figure(func(w *window) float64 { return float64(w.quantile(0.50)) })),
		p99:    time.Duration(figure(func(w *window) float64 { return float64(w.quantile(0.99)) })),
	}
}
