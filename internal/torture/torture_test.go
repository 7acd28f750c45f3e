package torture

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

	"tenderbox/internal/blackbox"
)

var (
	boxFlag      = flag.String("box", "", "binary to torture, such as one built with -race; empty builds this checkout's")
	seedFlag     = flag.Uint64("seed", 0, "seed of the first round; 0 takes a new one")
	roundsFlag   = flag.Int("rounds", 1, "rounds, each on a box of its own; seeds count up")
	durationFlag = flag.Duration("duration", chaosDefault, "how long kills and faults go on in a round")
	flightFlag   = flag.Int("flight", 20_000, "jobs that are acknowledged and not done at all times while kills go on")
)

// TestTorture plays rounds of payments against the real program.
func TestTorture(t *testing.T) { playRounds(t, playRound) }

// TestTortureJobs plays rounds of jobs against the real program.
func TestTortureJobs(t *testing.T) { playRounds(t, playJobRound) }

// playRounds plays as many rounds as the flags say. A round's folder (data, box's log, evidence) is kept if it fails.
func playRounds(t *testing.T, play func(ctx context.Context, t *testing.T, binary, dir string, seed uint64) error) {
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
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1_000_000) + 1
	}
	for i := range *roundsFlag {
		seed := first + uint64(i)
		t.Logf("seed %d, %s; again: make torture SEED=%d ROUNDS=1 DURATION=%s", seed, *durationFlag, seed, *durationFlag)
		dir := filepath.Join(top, fmt.Sprintf("seed-%d", seed))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := play(ctx, t, binary, dir, seed); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if t.Failed() {
			t.Logf("the end of the box's log:\n%s", tail(filepath.Join(dir, "box.log")))
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func playRound(ctx context.Context, t *testing.T, binary, dir string, seed uint64) error {
	began := time.Now()
	result, err := Run(ctx, Options{Binary: binary, Dir: dir, Seed: seed, Chaos: *durationFlag, Events: true})
	t.Logf("seed %d, played in %s\n%s", seed, time.Since(began).Round(time.Millisecond), result.Tally)
	report(t, seed, result.Findings)
	if err != nil {
		return err // a round that broke off met less than it was meant to
	}
	met(t, seed, result.Tally.Idle())
	awake(t, result.Evidence)
	return nil
}

func playJobRound(ctx context.Context, t *testing.T, binary, dir string, seed uint64) error {
	began := time.Now()
	result, err := RunJobs(ctx, JobOptions{Binary: binary, Dir: dir, Seed: seed, Chaos: *durationFlag, Flight: *flightFlag})
	t.Logf("seed %d, played in %s\n%s", seed, time.Since(began).Round(time.Millisecond), result.Tally)
	report(t, seed, result.Findings)
	if err != nil {
		return err
	}
	met(t, seed, result.Tally.Idle())
	awakeToJobs(t, result.Evidence)
	return nil
}

func met(t *testing.T, seed uint64, idle []string) {
	t.Helper()
	for _, what := range idle {
		t.Errorf("seed %d: no %s in the whole round: it has shown nothing about that", seed, what)
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

// awakeToJobs plants defects into the evidence of a round of jobs, to see that the judge would have caught them there.
func awakeToJobs(t *testing.T, e JobEvidence) {
	t.Helper()
	var done *Word
	for i := range e.Words {
		if w := &e.Words[i]; w.Final && w.Acknowledged() {
			done = w
			break
		}
	}
	if !e.Drained || done == nil {
		return
	}
	at := slices.IndexFunc(e.Takings, func(k Taking) bool { return k.Job == done.Job && k.Token == done.Token })
	if at < 0 {
		t.Errorf("%s was acknowledged as done, and no lease of it is in the evidence", done.Job)
		return
	}
	lost, rerun := e, e
	lost.Takings = slices.DeleteFunc(slices.Clone(e.Takings), func(k Taking) bool { return k.Job == done.Job })
	ran := e.Takings[at]
	ran.Attempt++
	ran.Token, ran.Asked, ran.Got = "another", done.Answered.Add(time.Second), done.Answered.Add(2*time.Second)
	rerun.Takings = append(slices.Clone(e.Takings), ran)
	for _, planted := range []struct {
		what string
		e    JobEvidence
		rule Rule
	}{{"lost", lost, JobLost}, {"run again", rerun, JobRepeated}} {
		if !slices.ContainsFunc(JudgeJobs(planted.e), func(f Finding) bool { return f.Rule == planted.rule }) {
			t.Errorf("the judge did not notice that %s was %s", done.Job, planted.what)
		}
	}
}
