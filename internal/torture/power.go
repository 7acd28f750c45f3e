package torture

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

const (
	// byPower is how often a death is a power cut, if the box stands on a disk that has them; the others are a process's.
	byPower = 0.8
	// cutChangesMax is the most that a serving box changes on the disk before the power goes: some tens of commits. A box that starts has fewer to make.
	cutChangesMax, startChangesMax = 400, 150
	// cutMax is when the power goes although the box has not changed so much.
	cutMax = 500 * time.Millisecond
	// birthCuts is how often the power goes during the first start: the folder is half made then, and nothing was promised.
	birthCuts = 6
)

// The streams of what a round draws outside of its chaos, beside those of payments and jobs.
const (
	birthStream = 4 << 10
	lastStream  = 5 << 10
)

// Disk is what a box's data folder stands on, if its power can be cut. internal/powercut has one, as a module of its own, for it needs FUSE.
type Disk interface {
	// Cut takes the power away with the after-th change from now, or when ctx ends, and calls dead, which must end the box. Nothing that
	// needs the disk comes back in between.
	Cut(ctx context.Context, after int, dead func())
	// Restore gives the power back, after the box's end: the folder holds what was synced, and any part of the rest.
	Restore() error
	// Toll counts by kind what cuts took and left.
	Toll() map[string]int64
}

// changes draws how many changes a disk makes before its power goes. One is as likely as all: much goes wrong soon after a start, and much late.
func changes(random *rand.Rand, most int) int {
	return int(math.Exp(random.Float64() * math.Log(float64(most))))
}

// die ends the box without a word: its process or, with that probability if the disk has it, the power.
func (k *keeper) die(ctx context.Context, random *rand.Rand, power float64) error {
	if k.disk == nil || random.Float64() >= power {
		k.tally.killed.Add(1)
		k.kill()
		return nil
	}
	return k.cut(ctx, changes(random, cutChangesMax), cutMax)
}

// cut ends the box with the power, which comes back.
func (k *keeper) cut(ctx context.Context, after int, most time.Duration) error {
	k.tally.cuts.Add(1)
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	p := k.current()
	k.disk.Cut(ctx, after, func() {
		k.told()
		_ = p.Signal(os.Kill) // not waited for: what hangs on the disk ends only when the disk lets it
	})
	p.Kill()
	return k.disk.Restore()
}

// unplug takes the power away from a box that has stopped.
func (k *keeper) unplug() error {
	if k.disk == nil {
		return nil
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	k.tally.cuts.Add(1)
	k.disk.Cut(now, 1, func() {})
	return k.disk.Restore()
}

// dieInRecovery ends a box that was just launched, after a moment at most. One that ends by itself is a problem.
func (k *keeper) dieInRecovery(ctx context.Context, random *rand.Rand) error {
	p, moment := k.current(), time.Duration(random.Int64N(int64(recoveryMax)))
	alive := func() {
		select {
		case <-p.Exited():
			k.history.problem("the box ended by itself in recovery", fmt.Sprint(p.Err()))
		default:
			k.tally.recovering.Add(1)
		}
	}
	if k.disk != nil && random.Float64() < byPower {
		k.tally.recoveryCuts.Add(1)
		ctx, cancel := context.WithTimeout(ctx, cutMax)
		defer cancel()
		k.disk.Cut(ctx, changes(random, startChangesMax), func() {
			alive()
			_ = p.Signal(os.Kill)
		})
		p.Kill()
		return k.disk.Restore()
	}
	_ = pause(ctx, moment)
	alive()
	p.Kill()
	return nil
}

// bear starts a box on an empty folder again and again while the power goes.
func (k *keeper) bear(ctx context.Context, random *rand.Rand) error {
	if k.disk == nil {
		return nil
	}
	for range birthCuts {
		if _, err := k.launch(); err != nil {
			return err
		}
		if err := k.dieInRecovery(ctx, random); err != nil {
			return err
		}
	}
	return nil
}

// Power is what a round's power cuts were. The zero value is a round without a disk.
type Power struct {
	Cuts, RecoveryCuts int64            // the latter while the box starts
	Toll               map[string]int64 // as of the disk
}

func (t *tallies) power(d Disk) Power {
	if d == nil {
		return Power{}
	}
	return Power{t.cuts.Load(), t.recoveryCuts.Load(), d.Toll()}
}

// Idle names what the cuts never did.
func (p Power) Idle() []string {
	if p.Toll == nil {
		return nil
	}
	var idle []string
	if p.Cuts == 0 {
		idle = append(idle, "power cut")
	}
	if p.RecoveryCuts == 0 {
		idle = append(idle, "power cut in recovery")
	}
	for _, kind := range sorted(p.Toll) {
		if p.Toll[kind] == 0 {
			idle = append(idle, kind)
		}
	}
	return idle
}

func (p Power) String() string {
	if p.Toll == nil {
		return ""
	}
	line := fmt.Sprintf("power      %d cuts, %d cuts in recovery:", p.Cuts, p.RecoveryCuts)
	for _, kind := range sorted(p.Toll) {
		line += fmt.Sprintf(" %s %d,", kind, p.Toll[kind])
	}
	return strings.TrimSuffix(line, ",") + "\n"
}
