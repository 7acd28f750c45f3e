package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"tenderbox/internal/blackbox"
)

// drainPart is the argument with which the program measures settling.
const drainPart = "drain"

// onlineLatency is what a processor takes where its own time matters.
const onlineLatency = 20 * time.Millisecond

// clientsWaiting wait for an outcome where that has a goal.
const clientsWaiting = 32

// drainOptions are the flags of that part.
type drainOptions struct {
	dir       string
	rounds    int
	duration  time.Duration
	backlog   int
	allowance int
	throttled time.Duration
	clients   int
	stored    int
	check     bool
	only      string
}

// benchDrain measures settling: the drain of a backlog, at the processor's own pace and at the one that it allows; the outcome that is
// waited for; and payments that are taken while a backlog drains, or beside many that are settled.
func benchDrain(ctx context.Context, args []string) error {
	var o drainOptions
	flags := flag.NewFlagSet("bench drain", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "bin", "folder on the disk to measure; a folder below it is made and removed")
	flags.IntVar(&o.rounds, "rounds", 3, "measurements of each kind, in turns")
	flags.DurationVar(&o.duration, "duration", 3*time.Second, "length of one measurement")
	flags.IntVar(&o.backlog, "backlog", 20_000, "payments that wait when the line returns")
	flags.IntVar(&o.allowance, "allowance", 100, "payments a second that the processor allows, where it allows so many")
	flags.DurationVar(&o.throttled, "throttled", 75*time.Second, "how long a drain at that allowance takes")
	flags.IntVar(&o.clients, "clients", clientsWaiting, "clients that wait for an outcome")
	flags.IntVar(&o.stored, "stored", 1_000_000, "settled payments that are stored while others are taken")
	flags.BoolVar(&o.check, "check", true, "let `tenderbox check` look at the box that holds them")
	flags.StringVar(&o.only, "only", "", "one part only: backlog, allowance, wait, taking or stored")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if o.rounds < 1 || o.duration < 100*time.Millisecond || o.backlog < 1 || o.allowance < 1 || o.throttled < 2*startUp || o.clients < 1 || o.stored < 1 {
		return fmt.Errorf("want at least one of everything, 100ms a measurement, and %s of a drain at the processor's allowance", 2*startUp)
	}
	parts := []struct {
		name    string
		measure func(ctx context.Context, o drainOptions, binary, top string) error
	}{
		{"backlog", func(ctx context.Context, o drainOptions, binary, top string) error {
			return measureDrains(ctx, o.backlog, o.rounds, []time.Duration{onlineLatency}, binary, top)
		}},
		{"allowance", measureAllowance}, {"wait", measureWaits}, {"taking", measureTaking}, {"stored", measureSettled},
	}
	return onDisk(o.dir, true, func(top string) error {
		binary, err := blackbox.Build(ctx, top)
		if err != nil {
			return err
		}
		known := o.only == ""
		for _, part := range parts {
			if o.only != "" && o.only != part.name {
				continue
			}
			known = true
			if err := part.measure(ctx, o, binary, top); err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
		if !known {
			return fmt.Errorf("-only %q: want backlog, allowance, wait, taking or stored", o.only)
		}
		return nil
	})
}
