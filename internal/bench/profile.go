package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// profileEnv tells the probe where to write.
	profileEnv = "BENCH_CPU_PROFILE"
	// profileConnections is where the goal of the rate is set.
	profileConnections = 64
)

// probe is a file of cmd/tenderbox that exists only in the build made here, by way of `go build -overlay`: the box that is
// shipped holds no such hook. It profiles between two SIGUSR1.
const probe = `package main

import (
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
)

func init() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		<-signals
		f, err := os.Create(os.Getenv("` + profileEnv + `"))
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			panic(err)
		}
		<-signals
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			panic(err)
		}
		if err := os.WriteFile(f.Name()+".done", nil, 0o600); err != nil {
			panic(err)
		}
	}()
}
`

// part is a share of the box's CPU time: the stacks in which one of the names stands, and that no part above took.
type part struct {
	what  string
	names []string
}

// parts are tried in this order.
var parts = []part{
	{"garbage collection", []string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.gcStart"}},
	{"journal: reading it for queue and events", []string{"ledger.readJournal"}},
	{"event stream (NATS)", []string{"nats-server/", "nats.go", "tenderbox/bus."}},
	{"queue (bbolt)", []string{"bbolt.", "tenderbox/store.", "jobs.(*Engine)"}},
	{"upstream's client", []string{"tenderbox/upstream."}},
	{"relay: the rest", []string{"ledger.(*Ledger).relay", "ledger.(*Ledger).publish"}},
	{"shards: checkpoint", []string{"walCheckpoint"}},
	{"shards: commit (pages, fsync)", []string{"_vdbeCommit", "_sqlite3BtreeCommitPhase", "_walFrames"}},
	{"shards: the transaction's SQL", []string{"modernc.org/sqlite"}},
	{"shards: the rest of the writer", []string{"shards.(*writer)"}},
	{"settler: the rest", []string{"ledger.(*Ledger).settle", "ledger.(*Ledger).seal", "ledger.(*Ledger).record"}},
	{"HTTP: ledger", []string{"ledger.(*Ledger).Pay"}},
	{"HTTP: routing, decoding, encoding", []string{"tenderbox/web.", "huma", "httprouter", "encoding/json"}},
	{"HTTP: net/http", []string{"net/http."}},
	{"scheduler and network poller", []string{"runtime."}},
}

// profile prints where the CPU time goes of payments at 64 connections, of the drain of a backlog, and of charges whose clients wait for
// a processor that takes 20 ms. The second profile's file has .drain at its end, the third's .wait; without a backlog there is the first only.
func profile(ctx context.Context, o options, top string) error {
	source, err := filepath.Abs("cmd/tenderbox")
	if err != nil {
		return err
	}
	if _, err := os.Stat(source); err != nil {
		return fmt.Errorf("-profile builds from the top of the checkout: %w", err)
	}
	written := filepath.Join(top, "probe.go")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(source, "zz_profile_of_bench.go"): written}})
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(written, []byte(probe), 0o600), os.WriteFile(filepath.Join(top, "overlay.json"), overlay, 0o600)); err != nil {
		return err
	}
	binary, err := blackbox.Build(ctx, top, "-ldflags=", "-overlay", filepath.Join(top, "overlay.json"))
	if err != nil {
		return err
	}

	processor, err := blackbox.StartProcessor(simulator.Options{})
	if err != nil {
		return err
	}
	defer processor.Close()
	processor.Cut()
	p := &profiled{binary: binary, upstream: processor.URL(), serve: o.serve}
	err = p.run(ctx, filepath.Join(top, "payments"), o.profile, func(begin func() error) (int, error) {
		if _, err := look(ctx, p.box, load{run: "warm", want: payment(o.payment), connections: profileConnections, duration: warmup}, drive); err != nil {
			return 0, err
		}
		if err := begin(); err != nil {
			return 0, err
		}
		w, err := look(ctx, p.box, load{run: "profile", want: payment(o.payment), connections: profileConnections, duration: time.Duration(o.rounds) * o.duration}, drive)
		if err != nil {
			return 0, err
		}
		fmt.Printf("%d payments at %d connections, %.0f/s; the work after the answers is in it\n", w.done, profileConnections, w.rate())
		return w.done, nil
	})
	if err != nil || o.backlog == 0 {
		return err
	}
	err = p.run(ctx, filepath.Join(top, "drain"), o.profile+".drain", func(begin func() error) (int, error) {
		w, err := drive(ctx, load{address: p.box.address, key: p.box.key, run: "backlog", connections: backlogConnections, count: o.backlog})
		if err == nil {
			err = p.box.rest(ctx)
		}
		if err == nil {
			err = begin()
		}
		if err == nil {
			err = processor.Restore(ctx)
		}
		if err == nil {
			err = p.box.settled(ctx)
		}
		if err == nil {
			err = p.box.rest(ctx)
		}
		if err != nil {
			return 0, err
		}
		fmt.Printf("\nDrain of %d payments\n", w.done)
		return w.done, nil
	})
	if err != nil {
		return err
	}
	slow, err := blackbox.StartProcessor(simulator.Options{Latency: onlineLatency})
	if err != nil {
		return err
	}
	defer slow.Close()
	p.upstream = slow.URL()
	return p.run(ctx, filepath.Join(top, "wait"), o.profile+".wait", func(begin func() error) (int, error) {
		if err := (&upline{p.box, slow}).restore(ctx); err != nil {
			return 0, err
		}
		asked := load{address: p.box.address, key: p.box.key, run: "warm", want: askCharge.want, connections: clientsWaiting, duration: warmup}
		if _, err := drive(ctx, asked); err != nil {
			return 0, err
		}
		if err := begin(); err != nil {
			return 0, err
		}
		asked.run, asked.duration = "wait", time.Duration(o.rounds)*o.duration
		w, err := drive(ctx, asked)
		if err == nil && len(w.refused) > 0 {
			err = fmt.Errorf("answers by status: %v", w.refused)
		}
		if err != nil {
			return 0, err
		}
		fmt.Printf("\n%d charges that %d clients waited for, %.0f/s\n", w.done, clientsWaiting, w.rate())
		return w.done, nil
	})
}

// profiled runs the box that was built with the probe.
type profiled struct {
	binary, upstream string
	serve            []string
	box              *server
}

// run starts the box, has work done that calls begin where the profile is to begin and returns how many payments it was
// about, and prints the parts.
func (p *profiled) run(ctx context.Context, data, keep string, work func(begin func() error) (int, error)) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	file := data + ".pprof"
	var err error
	p.box, err = startProcess(ctx, blackbox.ServeOptions{
		Binary: p.binary, Data: data, Env: []string{profileEnv + "=" + file},
		Args: append([]string{"--upstream-url", p.upstream, "--upstream-key", blackbox.ProcessorKey}, p.serve...),
	})
	if err != nil {
		return err
	}
	defer p.box.stop()
	payments, err := work(func() error { return p.box.process.Signal(syscall.SIGUSR1) })
	if err != nil {
		return err
	}
	if err := p.box.process.Signal(syscall.SIGUSR1); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	if err := blackbox.Poll(waiting, quietEvery, func() (bool, error) {
		_, err := os.Stat(file + ".done")
		return err == nil, nil
	}); err != nil {
		return fmt.Errorf("the profile is not written: %w", err)
	}
	traces, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-traces", p.binary, file).Output()
	if err != nil {
		return fmt.Errorf("go tool pprof: %w", err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return errors.Join(printParts(os.Stdout, string(traces), payments), os.WriteFile(keep, content, 0o600))
}

// printParts adds up the stacks by part and prints them.
func printParts(out io.Writer, traces string, payments int) error {
	stacks, err := parseTraces(traces)
	if err != nil {
		return err
	}
	shares, total := map[string]time.Duration{}, time.Duration(0)
	for _, s := range stacks {
		shares[partOf(s.frames)] += s.took
		total += s.took
	}
	names := make([]string, 0, len(shares))
	for name := range shares {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(shares[b] - shares[a]) })
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "part\tµs a payment\tshare")
	for _, name := range append(names, "all") {
		took := shares[name]
		if name == "all" {
			took = total
		}
		_, _ = fmt.Fprintf(table, "%s\t%.1f\t%.0f %%\n", name, float64(took)/float64(time.Microsecond)/float64(payments), 100*float64(took)/float64(total))
	}
	return table.Flush()
}

// partOf finds the part that a stack belongs to.
func partOf(frames []string) string {
	for _, p := range parts {
		for _, name := range p.names {
			if slices.ContainsFunc(frames, func(frame string) bool { return strings.Contains(frame, name) }) {
				return p.what
			}
		}
	}
	return "the rest"
}

// stack is one line of calls, the innermost first, and the time that was found in it.
type stack struct {
	took   time.Duration
	frames []string
}

// parseTraces reads what `go tool pprof -traces` prints: blocks between rules, each beginning with a time.
func parseTraces(traces string) ([]stack, error) {
	var stacks []stack
	fresh := false // a rule has just been seen
	lines := bufio.NewScanner(strings.NewReader(traces))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		switch {
		case strings.HasPrefix(line, "-----"):
			fresh = true
		case line == "":
		case fresh:
			value, frame, _ := strings.Cut(line, " ")
			if strings.HasSuffix(value, ":") {
				continue // a label; the time follows
			}
			fresh = false
			took, err := time.ParseDuration(value)
			if err != nil {
				return nil, fmt.Errorf("profile: %q: %w", line, err)
			}
			stacks = append(stacks, stack{took, []string{strings.TrimSpace(frame)}})
		case len(stacks) > 0:
			last := &stacks[len(stacks)-1]
			last.frames = append(last.frames, line)
		}
	}
	if len(stacks) == 0 {
		return nil, errors.Join(errors.New("the profile is empty"), lines.Err())
	}
	return stacks, lines.Err()
}
