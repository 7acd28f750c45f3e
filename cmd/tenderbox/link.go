package main

import (
	"fmt"
	"net/http"

	"tenderbox/ledger"
)

// linkCommand takes the lines to the processors away by word, for drills.
type linkCommand struct {
	Offline linkOffline `cmd:"" help:"Takes payments as if the line were down; nothing is sent until it is auto again, or the box restarts."`
	Auto    linkAuto    `cmd:"" help:"Leaves it to the box again to find out how the line is."`
}

// breakerCommand opens and closes the breakers.
type breakerCommand struct {
	Open  breakerOpen  `cmd:"" help:"Sends nothing until it is closed, or the box restarts."`
	Close breakerClose `cmd:"" help:"Closes it and forgets the failures that opened it."`
}

// lineFlags say whose lines are meant.
type lineFlags struct {
	boxFlags
	Tenant string `placeholder:"NAME" help:"Only this tenant's account; default: every account."`
}

// force asks the box and tells how the line stands then.
func (f *lineFlags) force(t *terminal, path string) error {
	b, err := f.open()
	if err != nil {
		return err
	}
	header := http.Header{}
	if f.Tenant != "" {
		header.Set("X-Tenant-ID", f.Tenant)
	}
	var now struct {
		Connectivity ledger.Connectivity `json:"connectivity"`
		Breaker      ledger.Breaker      `json:"breaker"`
	}
	if err := b.send(t.ctx, http.MethodPost, "/api/v1/"+path, header, nil, &now); err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.stdout, "The line is %s, the breaker %s.\n", now.Connectivity.State, now.Breaker.State)
	return err
}

type linkOffline struct{ lineFlags }

func (linkOffline) Help() string {
	return "For a drill of what happens without a line.\n\nExample:\n\n    tenderbox link offline\n"
}

func (c *linkOffline) Run(t *terminal) error { return c.force(t, "link/offline") }

type linkAuto struct{ lineFlags }

func (linkAuto) Help() string { return "Example:\n\n    tenderbox link auto\n" }

func (c *linkAuto) Run(t *terminal) error { return c.force(t, "link/auto") }

type breakerOpen struct{ lineFlags }

func (breakerOpen) Help() string { return "Example:\n\n    tenderbox breaker open\n" }

func (c *breakerOpen) Run(t *terminal) error { return c.force(t, "breaker/open") }

type breakerClose struct{ lineFlags }

func (breakerClose) Help() string { return "Example:\n\n    tenderbox breaker close\n" }

func (c *breakerClose) Run(t *terminal) error { return c.force(t, "breaker/close") }
