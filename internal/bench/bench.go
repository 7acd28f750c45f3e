// Package bench is the program behind `make bench`, `make bench-drain`, `make bench-jobs` and `make bench-events`: it measures the built box from outside, and the
// queues' engine in a process of its own, and prints tables.
//
// # Promise
//
// Every figure of the box stands beside one of a plainer thing that was measured in the same run, in turns with it:
// durable payments and jobs beside a no-op JSON handler on httprouter that takes and gives as many bytes; the drain of a
// backlog beside a bare loop of the same requests; the engine beside a bare loop of puts into the same kind of file, and beside
// itself with a million jobs stored; all of it between two probes of the disk's fsync. Medians over
// rounds; CPU time from the kernel's count of the server's process, with the work that a payment still causes after its
// answer; fsyncs from the box's own count of commits.
//
// # Main types
//
// load drives keep-alive connections with prepared requests (load.go); server is a process under load (server.go), queue one
// that plays the engine or the bare loop of puts (queue.go); window is one measurement. The program runs itself again as
// whatever the box is compared with, so that both sides of a comparison are processes of their own.
//
// # Caveats
//
// Client and server share the machine's cores, on both sides of each comparison: the client writes prepared bytes and
// parses little, and its cost is printed. The first thing that a slow disk changes is the rate at one connection.
// Linux only: it reads /proc.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tenderbox/internal/blackbox"
)

// options are the program's flags.
type options struct {
	dir         string
	duration    time.Duration
	rounds      int
	connections []int
	backlog     int
	starts      int
	payment     string
	profile     string
	serve       []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the program; its first argument may be one of the parts that it plays against itself.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case noopPart:
			return serveNoop(ctx, os.Stdout)
		case loopPart:
			return runLoop(ctx, args[1:], os.Stdout)
		case queuePart:
			return playQueue(ctx, args[1:], os.Stdin, os.Stdout)
		case jobsPart:
			return benchJobs(ctx, args[1:])
		case eventsPart:
			return benchEvents(ctx, args[1:])
		case drainPart:
			return benchDrain(ctx, args[1:])
		}
	}
	var o options
	var connections, serve string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "bin", "folder on the disk to measure; a folder below it is made and removed")
	flags.DurationVar(&o.duration, "duration", 3*time.Second, "length of one measurement")
	flags.IntVar(&o.rounds, "rounds", 5, "measurements of each kind, in turns")
	flags.StringVar(&connections, "connections", "1,64,256", "numbers of connections")
	flags.IntVar(&o.backlog, "backlog", 5000, "payments that wait when the line returns; 0 leaves the drain out")
	flags.IntVar(&o.starts, "starts", 5, "starts on an empty folder")
	flags.StringVar(&o.payment, "payment", "plain", "what is asked for: plain (amount, currency, source) or rich (also user, description, metadata)")
	flags.StringVar(&serve, "serve", "", "more `flags` of tenderbox serve for the box that takes payments, such as '--shards 1'")
	flags.StringVar(&o.profile, "profile", "", "instead of the table, say where the box's CPU time goes, and write a profile to this file")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	o.serve = strings.Fields(serve)
	for _, field := range strings.Split(connections, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 {
			return fmt.Errorf("-connections %q: want numbers from 1, with commas between them", connections)
		}
		o.connections = append(o.connections, n)
	}
	if o.rounds < 1 || o.duration < 100*time.Millisecond || o.starts < 1 || o.backlog < 0 {
		return errors.New("want at least one round and start, 100ms a measurement, and no negative backlog")
	}
	if payments[o.payment] == "" {
		return fmt.Errorf("-payment %q: want plain or rich", o.payment)
	}
	return measure(ctx, o)
}

// measure takes all measurements and prints each part of the tables when it is known.
func measure(ctx context.Context, o options) error {
	return onDisk(o.dir, o.profile == "", func(top string) error {
		if o.profile != "" {
			return profile(ctx, o, top)
		}
		binary, err := blackbox.Build(ctx, top)
		if err != nil {
			return err
		}
		if err := measureFootprint(ctx, o, binary, top); err != nil {
			return fmt.Errorf("footprint: %w", err)
		}
		if err := measurePayments(ctx, o, binary, top); err != nil {
			return fmt.Errorf("payments: %w", err)
		}
		if o.backlog > 0 {
			if err := measureDrains(ctx, o.backlog, 1, latencies, binary, top); err != nil {
				return fmt.Errorf("drain: %w", err)
			}
		}
		return nil
	})
}

// onDisk prints what machine this is, and measures in a folder below dir that is made for it and removed; with probe, between two
// looks at what the disk's fsync costs.
func onDisk(dir string, probe bool, measure func(top string) error) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	top, err := os.MkdirTemp(dir, "bench-")
	if err != nil {
		return err
	}
	if top, err = filepath.Abs(top); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(top)) }()
	printMachine(top)
	look := func(when, end string) error {
		if !probe {
			return nil
		}
		times, err := probeDisk(top)
		if err == nil {
			fmt.Printf("fsync, 4 KiB write + fdatasync, %s: %s%s\n", when, times, end)
		}
		return err
	}
	if err := look("before", "\n"); err != nil {
		return err
	}
	if err := measure(top); err != nil {
		return err
	}
	return look("after", "")
}
