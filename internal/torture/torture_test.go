package torture

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tenderbox/internal/blackbox"
)

var (
	boxFlag      = flag.String("box", "", "binary to torture, such as one built with -race; empty builds this checkout's")
	seedFlag     = flag.Uint64("seed", 0, "seed of the first round; 0 takes a new one")
	roundsFlag   = flag.Int("rounds", 1, "rounds, each on a box of its own; seeds count up")
	durationFlag = flag.Duration("duration", chaosDefault, "how long kills and faults go on in a round")
)

// TestTorture plays rounds against the real program. A round's folder (data, box's log, evidence) is kept if it fails.
func TestTorture(t *testing.T) {
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		// End before the test binary is ended, so that the boxes are, and the evidence is written.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-10*time.Second))
		defer cancel()
	}
	top, err := os.MkdirTemp("", "tenderbox-torture-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what is left of failed rounds is in %s", top)
		} else if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	binary := *boxFlag
	if binary == "" {
		if binary, err = blackbox.Build(ctx, top); err != nil {
			t.Fatal(err)
		}
	}
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1_000_000) + 1
	}
	for i := range *roundsFlag {
		playRound(ctx, t, binary, top, seed+uint64(i))
		if ctx.Err() != nil {
			return
		}
	}
}

func playRound(ctx context.Context, t *testing.T, binary, top string, seed uint64) {
	t.Logf("seed %d, %s; again: make torture SEED=%d ROUNDS=1 DURATION=%s", seed, *durationFlag, seed, *durationFlag)
	dir := filepath.Join(top, fmt.Sprintf("seed-%d", seed))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	result, err := Run(ctx, Options{Binary: binary, Dir: dir, Seed: seed, Chaos: *durationFlag})
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	t.Logf("seed %d, played in %s\n%s", seed, time.Since(began).Round(time.Millisecond), result.Tally)
	report(t, seed, result.Findings)
	if t.Failed() {
		t.Logf("the end of the box's log:\n%s", tail(filepath.Join(dir, "box.log")))
	}
	if err != nil {
		return // a round that broke off met less than it was meant to
	}
	for _, what := range result.Tally.Idle() {
		t.Errorf("seed %d: no %s in the whole round: it has shown nothing about that", seed, what)
	}
	awake(t, result.Evidence)
	if !t.Failed() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
}

// findingsShown is how many findings of a rule are printed: one defect may touch a thousand payments.
const findingsShown = 6

func report(t *testing.T, seed uint64, findings []Finding) {
	t.Helper()
	count := map[Rule]int{}
	for _, f := range findings {
		if count[f.Rule]++; count[f.Rule] <= findingsShown {
			t.Errorf("seed %d: %s", seed, f)
		}
	}
	for rule, n := range count {
		if n > findingsShown {
			t.Errorf("seed %d: %s: %d in all", seed, rule, n)
		}
	}
}

// tail returns the last lines of a file: where a test runs far away, its folder is gone with the machine.
func tail(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), logLineMax)]
	}
	return strings.Join(lines, "\n")
}

const tailLines = 25

// awake plants defects into the evidence of the round that was just played, to see that the judge would have
// caught them there too, and not only among the few payments of its own tests.
func awake(t *testing.T, e Evidence) {
	t.Helper()
	if !e.Collected || len(e.Effects) == 0 {
		return
	}
	victim := e.Effects[len(e.Effects)/2]
	id := victim.Metadata["tenderbox_payment"]
	for _, d := range []planted{
		{"lost", func(e *Evidence) {
			for tenant, payments := range e.Kept {
				e.Kept[tenant] = drop(append([]Payment(nil), payments...), id)
			}
		}, Orphan},
		{"changed", func(e *Evidence) {
			for tenant, payments := range e.Kept {
				e.Kept[tenant] = append([]Payment(nil), payments...)
				change(e, tenant, id, func(p *Payment) { p.Amount++ })
			}
		}, Changed},
		{"doubled", func(e *Evidence) { e.Effects = append(e.Effects[:len(e.Effects):len(e.Effects)], victim) }, Doubled},
	} {
		planted := e
		planted.Kept = map[string][]Payment{}
		for tenant, payments := range e.Kept {
			planted.Kept[tenant] = payments
		}
		d.plant(&planted)
		caught := false
		for _, f := range Judge(planted) {
			caught = caught || f.Rule == d.rule
		}
		if !caught {
			t.Errorf("the judge did not notice that %s was %s", id, d.name)
		}
	}
}
