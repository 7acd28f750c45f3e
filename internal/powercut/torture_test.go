package powercut

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/internal/torture"
)

var (
	boxFlag      = flag.String("box", "", "the tenderbox to torture; `make torture-power` builds and names it")
	seedFlag     = flag.Uint64("seed", 0, "seed of the first round; 0 takes a new one")
	roundsFlag   = flag.Int("rounds", 1, "rounds of payments, and as many of jobs; seeds count up")
	durationFlag = flag.Duration("duration", 10*time.Second, "how long the power goes and comes back in a round")
	flightFlag   = flag.Int("flight", 2000, "jobs that are acknowledged and not done at all times meanwhile")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := able(); err != nil {
		fmt.Fprintf(os.Stderr, "power cuts need root and %s: %v\n", deviceFile, err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// able mounts a disk once.
func able() error {
	dir, err := os.MkdirTemp("", "tenderbox-power-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := Mount(dir, Options{})
	if err != nil {
		return err
	}
	return d.Close()
}

// TestPower plays rounds of payments.
func TestPower(t *testing.T) {
	play(t, nil, func(ctx context.Context, dir string, seed uint64, d *Disk) ([]torture.Finding, []string, string, error) {
		r, err := torture.Run(ctx, torture.Options{Binary: *boxFlag, Dir: dir, Seed: seed, Chaos: *durationFlag, Disk: d, Events: true})
		return r.Findings, r.Tally.Idle(), r.Tally.String(), err
	})
}

// TestPowerJobs plays rounds of jobs.
func TestPowerJobs(t *testing.T) {
	play(t, nil, func(ctx context.Context, dir string, seed uint64, d *Disk) ([]torture.Finding, []string, string, error) {
		r, err := torture.RunJobs(ctx, torture.JobOptions{Binary: *boxFlag, Dir: dir, Seed: seed, Chaos: *durationFlag, Flight: *flightFlag, Disk: d})
		return r.Findings, r.Tally.Idle(), r.Tally.String(), err
	})
}

// A player plays a round and returns what was found, what did not happen, and what did.
type player func(ctx context.Context, dir string, seed uint64, d *Disk) (findings []torture.Finding, idle []string, tally string, err error)

// play plays as many rounds as the flags say. What is left of a failed one (box's log, evidence, data folder) is kept.
func play(t *testing.T, lie func(string) bool, one player) {
	needsBox(t)
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc // so that evidence is written before the test binary is ended
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-10*time.Second))
		defer cancel()
	}
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1_000_000) + 1
	}
	for i := range *roundsFlag {
		seed := first + uint64(i)
		t.Logf("seed %d, %s; again: make torture-power SEED=%d ROUNDS=1 DURATION=%s", seed, *durationFlag, seed, *durationFlag)
		dir, err := os.MkdirTemp("", fmt.Sprintf("tenderbox-power-%d-", seed))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		d, err := Mount(filepath.Join(dir, "data"), Options{Seed: seed, Lie: lie})
		if err != nil {
			t.Fatal(err)
		}
		findings, idle, tally, err := one(ctx, dir, seed, d)
		t.Logf("seed %d, played in %s\n%s", seed, time.Since(began).Round(time.Millisecond), tally)
		report(t, seed, findings)
		switch {
		case err != nil:
			t.Errorf("seed %d: %v", seed, err)
		case len(idle) > 0:
			t.Errorf("seed %d: never in the whole round, which has shown nothing about it: %s", seed, strings.Join(idle, ", "))
		}
		if err := d.Close(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if t.Failed() {
			t.Logf("what is left of it is in %s; the end of the box's log:\n%s", dir, tail(filepath.Join(dir, "box.log")))
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
}

// findingsShown is how many findings of a rule are printed: one defect may touch a thousand payments.
const findingsShown = 6

func report(t *testing.T, seed uint64, findings []torture.Finding) {
	t.Helper()
	count := map[torture.Rule]int{}
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

// tailLines of a log are printed where the folder is gone with the machine.
const tailLines = 60

func tail(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// TestJudgeCatchesAMissingSync plays rounds on a disk that lies about the syncs of one file: what the judge must find then was lost by the real box.
func TestJudgeCatchesAMissingSync(t *testing.T) {
	needsBox(t)
	for name, lie := range map[string]struct {
		suffixes []string
		jobs     bool
		rule     torture.Rule // that must be found to be broken; "": any
		mends    bool         // nothing must be found
	}{
		// Were the payments' log the only one, the box would see by the anchors in jobs.db what is missing, and take nothing any more.
		"payments' log and anchors": {suffixes: []string{".db-wal", "jobs.db"}, rule: torture.Lost},
		"queue":                     {suffixes: []string{"jobs.db"}, jobs: true},
		"event stream":              {suffixes: []string{".blk", ".inf", ".sum"}, mends: true}, // filled again from the journals
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			for seed := range uint64(lieRounds) {
				findings, err := liedTo(t, lie.suffixes, lie.jobs, lie.mends, seed)
				count := map[torture.Rule]int{}
				for _, f := range findings {
					count[f.Rule]++
				}
				t.Logf("seed %d: found %v; the round ended with: %v", seed, count, err)
				switch {
				case lie.mends:
					report(t, seed, findings)
					return
				case lie.rule == "" && len(count) > 0, count[lie.rule] > 0:
					return
				}
			}
			t.Errorf("not caught %s", lie.rule)
		})
	}
}

// liedTo plays a short round on a disk that lies about the syncs of files whose names end so.
func liedTo(t *testing.T, suffixes []string, jobs, patient bool, seed uint64) (findings []torture.Finding, err error) {
	dir := t.TempDir()
	d, err := Mount(filepath.Join(dir, "data"), Options{Seed: seed, Lie: func(name string) bool {
		return slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, patience := t.Context(), time.Duration(0)
	if !patient {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lieMax)
		defer cancel()
		patience = liePatience
	}
	if jobs {
		r, err := torture.RunJobs(ctx, torture.JobOptions{Binary: *boxFlag, Dir: dir, Seed: seed, Chaos: lieChaos, Flight: 500, Patience: patience, Disk: d})
		return r.Findings, err
	}
	r, err := torture.Run(ctx, torture.Options{Binary: *boxFlag, Dir: dir, Seed: seed, Chaos: lieChaos, Patience: patience, Disk: d, Events: true})
	return r.Findings, err
}

const (
	// lieChaos is long enough for a cut or two, and liePatience for nothing: what was lost does not settle.
	lieChaos, liePatience = time.Second, time.Second
	// lieRounds are played at most: a cut may leave by chance what nobody synced.
	lieRounds = 5
	// lieMax ends the round of a box that does not come back from what it lost.
	lieMax = 15 * time.Second
)

func needsBox(t *testing.T) {
	t.Helper()
	if *boxFlag == "" {
		t.Fatal("which box? `make torture-power` builds one and passes it as -box")
	}
}
