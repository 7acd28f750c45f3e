package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

const (
	// The box serves for a while between two deaths: at least long enough to settle something.
	serveMin, serveMax = 250 * time.Millisecond, 2 * time.Second
	// recoveryMax is how long after its start a box is killed again; a start takes 50 to 200 ms.
	recoveryMax = 150 * time.Millisecond
	// drainKillMax is how long after SIGTERM the impatient operator's SIGKILL comes.
	drainKillMax = 150 * time.Millisecond
	// The kinds of death, as probabilities; the rest is a plain SIGKILL.
	inRecovery = 0.35 // killed again before it is ready, up to recoveriesMax times in a row
	gracefully = 0.12 // SIGTERM, and waited for
	halfway    = 0.13 // SIGTERM, then SIGKILL
	// What is derived from the shards may be lost with a death: the queue's file, the event stream.
	losesQueue  = 0.08
	losesEvents = 0.08
	// recoveriesMax bounds the deaths in a row.
	recoveriesMax = 3
)

// killer ends the box again and again until ctx ends, and leaves it running. A box that ends by itself is a problem.
func (r *round) killer(ctx context.Context) error {
	random := r.random(killerStream)
	whole := context.WithoutCancel(ctx) // a start that began in the dark is waited for in the light
	for first := true; ; first = false {
		over := ctx.Done()
		if first {
			over = nil // however slow the machine is, the box dies once while it serves and once in recovery
		}
		select {
		case <-over:
			return nil
		case <-r.box.current().Exited():
			r.history.problem("the box ended by itself", fmt.Sprint(r.box.current().Err()))
			if err := r.box.start(whole); err != nil {
				return err
			}
			continue
		case <-time.After(serveMin + time.Duration(random.Int64N(int64(serveMax-serveMin)))):
		}
		switch fate := random.Float64(); {
		case first:
			r.tally.killed.Add(1)
			r.box.kill()
		case fate < gracefully:
			r.tally.graceful.Add(1)
			stop, cancel := context.WithTimeout(whole, graceMax)
			if err := r.box.stop(stop); err != nil {
				r.history.problem("stop", err.Error())
			}
			cancel()
		case fate < gracefully+halfway:
			r.tally.halfway.Add(1)
			r.box.terminate()
			_ = pause(whole, time.Duration(random.Int64N(int64(drainKillMax))))
			r.box.kill()
		default:
			r.tally.killed.Add(1)
			r.box.kill()
		}
		if err := r.lose(random); err != nil {
			return err
		}
		for i := 0; i < recoveriesMax && (random.Float64() < inRecovery || first && i == 0); i++ {
			p, err := r.box.launch()
			if err != nil {
				return err
			}
			_ = pause(whole, time.Duration(random.Int64N(int64(recoveryMax))))
			select {
			case <-p.Exited():
				r.history.problem("the box ended by itself in recovery", fmt.Sprint(p.Err()))
			default:
				r.tally.recovering.Add(1)
			}
			p.Kill()
		}
		if err := r.box.start(whole); err != nil {
			return err
		}
	}
}

// lose takes from a box that is dead, now and then, what it must be able to do without (INV-15).
func (r *round) lose(random *rand.Rand) error {
	var err error
	if random.Float64() < losesQueue {
		r.tally.queuesLost.Add(1)
		err = os.RemoveAll(filepath.Join(r.box.options.Data, "jobs.db"))
	}
	if random.Float64() < losesEvents {
		r.tally.eventsLost.Add(1)
		err = errors.Join(err, os.RemoveAll(filepath.Join(r.box.options.Data, "bus")))
	}
	return err
}
