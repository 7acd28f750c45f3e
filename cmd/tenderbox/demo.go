package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tenderbox/ledger"
	"tenderbox/upstream/simulator"
)

// simulatedKey is what the demo's box shows its simulated processor; it opens nothing else.
const simulatedKey = "sk_test_demo"

const (
	demoTills    = 8
	demoPayments = 40
	// demoPatience bounds each step: what is not seen by then is not coming.
	demoPatience = 60 * time.Second
	demoPoll     = 50 * time.Millisecond
)

type demoCommand struct {
	Exit bool `help:"Leaves when done, with a non-zero status if any payment was lost or doubled."`
}

func (demoCommand) Help() string {
	return `Needs nothing and leaves nothing: the box, its data and a simulated processor live until you press Ctrl-C.

Example:

    tenderbox demo
    tenderbox demo --exit
`
}

// Run is the product's promise, acted out and then counted.
func (c *demoCommand) Run(t *terminal) (err error) {
	folder, err := os.MkdirTemp("", "tenderbox-demo-")
	if err != nil {
		return hint(err, "the demo needs a temporary folder; TMPDIR names another place")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	processor := simulator.New(simulator.Options{Key: simulatedKey})
	defer func() { err = errors.Join(err, processor.Close()) }()
	upstream, err := processor.Start("127.0.0.1:0")
	if err != nil {
		return err
	}
	app, err := OpenApp(t.ctx, Config{
		Data: folder, Listen: "127.0.0.1:0", UpstreamURL: upstream, UpstreamKey: simulatedKey,
		// Livelier than the defaults, for people who watch.
		ProbeInterval: 250 * time.Millisecond, BreakerOpen: 500 * time.Millisecond,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(t.ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return app.Run(ctx) })
	g.Go(func() error {
		defer stop()
		d := &demo{out: t.stdout, live: isTerminal(os.Stdout), box: &box{url: app.URL(), token: app.FirstKey, client: &http.Client{Timeout: boxTimeout}}, processor: processor}
		if err := d.play(ctx); err != nil || c.Exit {
			return err
		}
		d.say("\nThe box stays up until you press Ctrl-C. In another terminal:\n")
		d.say("  curl %s/api/v1/payments -u %s: \\\n    -H 'Content-Type: application/json' -H 'Prefer: wait=5' \\\n    -d '{\"amount\": 1999, \"currency\": \"usd\", \"source\": \"tok_visa\"}'", app.URL(), app.FirstKey)
		d.say("  curl %s/api/v1/status -u %s:", app.URL(), app.FirstKey)
		<-ctx.Done()
		return nil
	})
	err = g.Wait()
	if errors.Is(err, context.Canceled) && !c.Exit {
		return nil // Ctrl-C is how one leaves
	}
	return err
}

// demo plays the scenes against a box and prints them.
type demo struct {
	out       io.Writer
	live      bool // out is a terminal that somebody watches
	box       *box
	processor *simulator.Simulator
	paid      []ledger.Payment
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) play(ctx context.Context) error {
	d.say("Tenderbox demo: a box, a simulated processor, and a line between them.\n")

	d.say("1. The line is up.")
	if err := d.until(ctx, "the box reaching the processor", func(s *ledger.Overview) bool { return s.Connectivity.State == "online" }); err != nil {
		return err
	}
	began := time.Now()
	first, err := d.box.pay(ctx, payRequest{Amount: 1999, Currency: "usd", Source: "tok_visa"}, "demo-0", "wait=10")
	if err != nil {
		return err
	}
	if first.Status != ledger.Succeeded {
		return fmt.Errorf("the first payment is %s; it should have succeeded", first.Status)
	}
	d.paid = append(d.paid, first)
	d.say("   One payment of %s: %s after %d ms.", ledger.Money{Amount: first.Amount, Currency: first.Currency}.String(), first.Status, time.Since(began).Milliseconds())

	if err := d.processor.Cut(true); err != nil {
		return err
	}
	d.say("2. The line is cut.")
	if err := d.until(ctx, "the box noticing that the line is down", func(s *ledger.Overview) bool { return s.Connectivity.State == "offline" }); err != nil {
		return err
	}
	d.say("   The box says: offline.")

	if err := d.takePayments(ctx); err != nil {
		return err
	}

	if err := d.processor.Cut(false); err != nil {
		return err
	}
	d.say("4. The line is back.")
	began = time.Now()
	err = d.until(ctx, "the backlog being settled", func(s *ledger.Overview) bool {
		d.progress(demoPayments - s.Backlog.Count)
		return s.Backlog.Count == 0
	})
	if d.live {
		d.say("")
	}
	if err != nil {
		return err
	}
	d.say("   All settled after %.1f s.", time.Since(began).Seconds())

	d.say("5. The count, in the processor's own book.")
	return d.count(ctx)
}

// takePayments lets the tills pay at once. Each fourth payment is sent twice with the same key, as a till
// does that heard no answer.
func (d *demo) takePayments(ctx context.Context) error {
	began := time.Now()
	var next atomic.Int64
	paid := make([]ledger.Payment, demoPayments)
	g, gctx := errgroup.WithContext(ctx)
	for range demoTills {
		g.Go(func() error {
			for {
				n := next.Add(1)
				if n > demoPayments {
					return nil
				}
				key := fmt.Sprintf("demo-%d", n)
				request := payRequest{Amount: 100 + 37*n, Currency: "usd", Source: "tok_visa"}
				p, err := d.box.pay(gctx, request, key, "")
				if err != nil {
					return err
				}
				if n%4 == 0 {
					again, err := d.box.pay(gctx, request, key, "")
					if err != nil {
						return err
					}
					if again.ID != p.ID {
						return fmt.Errorf("the repeat of %s made another payment", key)
					}
				}
				paid[n-1] = p
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.paid = append(d.paid, paid...)
	sum := int64(0)
	for _, p := range paid {
		sum += p.Amount
	}
	d.say("3. %d tills take %d payments, %s in all, in %d ms.", demoTills, demoPayments, ledger.Money{Amount: sum, Currency: "usd"}.String(), time.Since(began).Milliseconds())
	d.say("   Each was on the disk before its till was answered; every fourth was sent twice, as after a lost answer.")
	return nil
}

// progress draws how many are settled, over the same line of a terminal; elsewhere the end is enough.
func (d *demo) progress(settled int64) {
	const width = 40
	if d.live {
		fmt.Fprintf(d.out, "\r   [%-*s] %d of %d ", width, strings.Repeat("#", int(settled*width/demoPayments)), settled, demoPayments)
	}
}

// count compares what the tills were told with what the processor did.
func (d *demo) count(ctx context.Context) error {
	effects := d.processor.Ledger().Charges
	lost, doubled, unsettled := 0, 0, 0
	var here, there int64
	byPayment := map[string]int{}
	for _, e := range effects {
		byPayment[e.Metadata["tenderbox_payment"]]++
		there += e.Amount
	}
	for _, p := range d.paid {
		here += p.Amount
		var now ledger.Payment
		if err := d.box.do(ctx, http.MethodGet, paymentsPath+"/"+string(p.ID), nil, &now); err != nil {
			return err
		}
		if now.Status != ledger.Succeeded {
			unsettled++
		}
		switch byPayment[string(p.ID)] {
		case 0:
			lost++
		case 1:
		default:
			doubled++
		}
		delete(byPayment, string(p.ID))
	}
	d.say("   taken    %3d payments, %s", len(d.paid), ledger.Money{Amount: here, Currency: "usd"}.String())
	d.say("   charged  %3d times,    %s", len(effects), ledger.Money{Amount: there, Currency: "usd"}.String())
	if lost+doubled+unsettled+len(byPayment) > 0 || here != there {
		return fmt.Errorf("%d lost, %d doubled, %d not settled, %d charged without payment", lost, doubled, unsettled, len(byPayment))
	}
	d.say("   Nothing lost, nothing charged twice.")
	return nil
}

// until polls the box's status.
func (d *demo) until(ctx context.Context, what string, seen func(*ledger.Overview) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, demoPatience, fmt.Errorf("waited %v for %s", demoPatience, what))
	defer cancel()
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for {
		var s ledger.Overview
		if err := d.box.do(ctx, http.MethodGet, statusPath, nil, &s); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		if seen(&s) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
