package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
)

type serveCommand struct {
	Config
}

func (serveCommand) Help() string {
	return `Every flag is also a variable TENDERBOX_<FLAG> and a key of tenderbox.toml; the flag wins over the variable, the variable over the file.

Example:

    tenderbox serve --data /var/lib/tenderbox --upstream-url https://api.example.com/v1 --upstream-key @/etc/tenderbox/upstream.key
`
}

// BeforeResolve is kong's moment to say where values come from that the command line does not give.
func (c *serveCommand) BeforeResolve(ctx *kong.Context) error {
	return loadSettings(ctx, serveFlags(ctx))
}

func (c *serveCommand) Run(t *terminal) error {
	if err := c.prepare(); err != nil {
		return hint(err, "`tenderbox serve --help` lists the settings")
	}
	roomForDisk()
	roomForGarbage()
	app, err := OpenApp(t.ctx, c.Config, c.logger())
	if err != nil {
		return err
	}
	if app.FirstKey != "" && isTerminal(os.Stdout) {
		fmt.Fprintf(t.stdout, "\n  A new box. Its API is at %s, the key of tenant default:\n\n    %s\n\n  It is also in %s; the operator's token is beside it.\n\n",
			app.URL(), app.FirstKey, c.path(defaultKeyFile))
	}
	return app.Run(t.ctx)
}

// diskWaitersMax is how many writers wait for the disk at a time, mostly: one shard's, and the queue's or the event stream's.
const diskWaitersMax = 2

// roomForDisk lets Go run as much as there are processors while writers are inside an fsync. The scheduler counts a thread in a
// system call as running until it looks, and on a small machine that was a tenth of the payments. GOMAXPROCS overrides it.
func roomForDisk() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + diskWaitersMax)
	}
}

const (
	// gcPercent lets the heap grow to three times what is in use before it is collected: a twelfth of a busy box's CPU time less than at twice,
	// for a fifth more memory.
	gcPercent = 200
	// heapShare of the memory, or of the control group's part of it, is where collecting gets busier instead: the rest is for SQLite's and the
	// disk's caches, and for the shop's own programs.
	heapShare = 0.5
	// heapMin is what a box may have in any case: with less it would collect all the time instead of taking payments.
	heapMin = 64 << 20
)

// roomForGarbage trades memory that there is for CPU time. GOGC and GOMEMLIMIT (or AUTOMEMLIMIT, the share) override it.
func roomForGarbage() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// Without a limit the box runs as well, so that an error has no consequence.
	_, _ = memlimit.Set(memlimit.WithRatio(heapShare), memlimit.WithMin(heapMin), memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)))
}

// isTerminal tells whether a person reads f. A key must never go to a log by way of a pipe.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
