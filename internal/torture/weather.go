package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

// A kind is one of the processor's faults: how often it falls in a storm of its own and in a drizzle of all.
type kind struct {
	name    string // as the simulator counts it
	storm   float64
	drizzle float64
	set     func(*simulator.Faults, float64)
	stored  bool // the answer is stored under the key and given for ever
}

// kinds are all faults, with the line's below. The two whose answer is stored for ever stay rare: a payment that
// meets one is lost to the judge's strictest rule.
var kinds = []kind{
	{"refuse", 0.8, 0.02, func(f *simulator.Faults, p float64) { f.Refuse = p }, false},
	{"captive_portal", 1, 0.02, func(f *simulator.Faults, p float64) { f.CaptivePortal = p }, false},
	{"hang", 0.5, 0.02, func(f *simulator.Faults, p float64) { f.Hang = p }, false},
	{"error429", 0.5, 0.01, func(f *simulator.Faults, p float64) { f.Error429 = p }, false},
	{"error503", 0.8, 0.02, func(f *simulator.Faults, p float64) { f.Error503 = p }, false},
	{"error500", 0.02, 0.002, func(f *simulator.Faults, p float64) { f.Error500 = p }, true},
	{"error500_after_effect", 0.02, 0.002, func(f *simulator.Faults, p float64) { f.Error500AfterEffect = p }, true},
	{"drop_after_effect", 0.8, 0.03, func(f *simulator.Faults, p float64) { f.DropAfterEffect = p }, false},
	{"hang_after_effect", 0.5, 0.03, func(f *simulator.Faults, p float64) { f.HangAfterEffect = p }, false},
	{"slow_body", 0.5, 0.02, func(f *simulator.Faults, p float64) { f.SlowBody = p }, false},
	{"garbage", 0.8, 0.03, func(f *simulator.Faults, p float64) { f.Garbage = p }, false},
	{"decline_repeat", 0.8, 0.02, func(f *simulator.Faults, p float64) { // there are repeats where answers get lost
		f.DeclineRepeat, f.DropAfterEffect = p/2, max(f.DropAfterEffect, p/2)
	}, false},
}

const (
	// Each weather lasts this long.
	weatherMin, weatherMax = 150 * time.Millisecond, time.Second
	// The kinds of weather, as probabilities; the rest is clear.
	drizzles = 0.35
	storms   = 0.30
	cuts     = 0.15
	// encoreMax bounds the wait for a fault to fire once.
	encoreMax = 20 * time.Second
	// encoreStored is low enough for probes to come through: a box that thinks the line is down sends no payment.
	encoreStored = 0.25
)

// retryAfters are what a processor may say with a 429. Longer ones are obeyed, within a cap that is longer than a round.
var retryAfters = []string{"", "0", "1", "-1", "soon"}

// weather changes what the processor does to the box until ctx ends.
func (r *round) weather(ctx context.Context) error {
	random := r.random(weatherStream)
	for {
		var faults simulator.Faults
		switch draw := random.Float64(); {
		case draw < drizzles:
			for _, k := range kinds {
				k.set(&faults, k.drizzle)
			}
		case draw < drizzles+storms:
			k := kinds[random.IntN(len(kinds))]
			k.set(&faults, k.storm)
		case draw < drizzles+storms+cuts:
			r.processor.Cut()
		}
		if err := errors.Join(r.processor.SetFaults(faults), r.sayRetryAfter(random)); err != nil {
			return err
		}
		over := pause(ctx, weatherMin+time.Duration(random.Int64N(int64(weatherMax-weatherMin)))) != nil
		if err := r.restore(ctx); err != nil {
			return err
		}
		if over {
			return nil
		}
	}
}

// sayRetryAfter chooses the header of the next 429s.
func (r *round) sayRetryAfter(random *rand.Rand) error {
	header := retryAfters[random.IntN(len(retryAfters))]
	request, err := http.NewRequest(http.MethodPost, "/_control", bytes.NewReader(fmt.Appendf(nil, `{"retry_after":%q}`, header)))
	if err != nil {
		return err
	}
	answer := discard{http.Header{}, http.StatusOK}
	r.processor.Simulator.ServeHTTP(&answer, request)
	if answer.status != http.StatusOK {
		return fmt.Errorf("the simulator does not take retry_after %q: %d", header, answer.status)
	}
	return nil
}

// discard is an answer of which only the status matters.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// restore brings the line back if it is cut.
func (r *round) restore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceMax)
	defer cancel()
	return r.processor.Restore(ctx)
}

// brighten ends all faults.
func (r *round) brighten(ctx context.Context) error {
	return errors.Join(r.processor.SetFaults(simulator.Faults{}), r.restore(ctx))
}

// encore gives each fault that has not fired yet the stage for itself, until it has: a round in which a fault
// never happened has not shown that the box survives it.
func (r *round) encore(ctx context.Context) error {
	if r.processor.Cuts() == 0 {
		r.processor.Cut()
	}
	if err := r.restore(ctx); err != nil {
		return err
	}
	for _, k := range kinds {
		if r.met(k, 0, 0) {
			continue
		}
		fired, kept := r.processor.Fired()[k.name], len(stuck(r.processor.Posts()))
		var faults simulator.Faults
		if k.stored {
			k.set(&faults, encoreStored)
		} else {
			k.set(&faults, 1)
		}
		if err := r.processor.SetFaults(faults); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, encoreMax)
		// One that does not fire even so is named by the tally.
		_ = blackbox.Poll(wait, time.Millisecond, func() (bool, error) { return r.met(k, fired, kept), nil })
		cancel()
		if err := r.processor.SetFaults(simulator.Faults{}); err != nil {
			return err
		}
	}
	return nil
}

// met tells whether a fault has fired more often than before. A 500 counts when a payment met it: a probe's is not stored.
func (r *round) met(k kind, fired int64, kept int) bool {
	return r.processor.Fired()[k.name] > fired && (!k.stored || len(stuck(r.processor.Posts())) > kept)
}
