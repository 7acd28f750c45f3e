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
	// The kinds of death, as probabilities; the rest is a plain SIGKILL, or a power cut.
	inRecovery = 0.35 // killed again before it is ready, up to recoveriesMax times in a row
	gracefully = 0.12 // SIGTERM, and waited for
	halfway    = 0.13 // SIGTERM, then SIGKILL or a power cut
	// What is derived from the shards may be lost with a death: the queue's file, the event stream.
	losesQueue  = 0.08
	losesEvents = 0.08
	// recoveriesMax bounds the deaths in a row.
	recoveriesMax = 3
)

// haunt ends the box again and again until ctx ends, and leaves it running. A box that ends by itself is a problem. While it is
// dead, dead is called.
func (k *keeper) haunt(ctx context.Context, random *rand.Rand, dead func() error) error {
	whole := context.WithoutCancel(ctx) // a start that began in the dark is waited for in the light
	for first := true; ; first = false {
		over := ctx.Done()
		if first {
			over = nil // however slow the machine is, the box dies once while it serves and once in recovery
		}
		select {
		case <-over:
			return nil
		case <-k.current().Exited():
			k.history.problem("the box ended by itself", fmt.Sprint(k.current().Err()))
			if err := k.start(whole); err != nil {
				return err
			}
			continue
		case <-time.After(serveMin + time.Duration(random.Int64N(int64(serveMax-serveMin)))):
		}
		var err error
		switch fate := random.Float64(); {
		case first:
			err = k.die(whole, random, 1)
		case fate < gracefully:
			k.tally.graceful.Add(1)
			stop, cancel := context.WithTimeout(whole, graceMax)
			if err := k.stop(stop); err != nil {
				k.history.problem("stop", err.Error())
			}
			cancel()
			err = k.unplug()
		case fate < gracefully+halfway:
			k.tally.halfway.Add(1)
			k.terminate()
			if k.disk != nil {
				err = k.cut(whole, changes(random, startChangesMax), drainKillMax)
			} else {
				_ = pause(whole, time.Duration(random.Int64N(int64(drainKillMax))))
				k.kill()
			}
		default:
			err = k.die(whole, random, byPower)
		}
		if err == nil {
			err = dead()
		}
		if err != nil {
			return err
		}
		for i := 0; i < recoveriesMax && (random.Float64() < inRecovery || first && i == 0); i++ {
			if _, err := k.launch(); err != nil {
				return err
			}
			if err := k.dieInRecovery(whole, random); err != nil {
				return err
			}
		}
		if err := k.start(whole); err != nil {
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
