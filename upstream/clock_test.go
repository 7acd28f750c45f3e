package upstream

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClockFollowsTheProcessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Account{}
		if !a.Clock().IsZero() {
			t.Fatal("a clock before any answer")
		}
		theirs := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
		a.clock.observe(result{health: foreign, Answer: Answer{Date: theirs}}, theirs)
		if !a.Clock().IsZero() {
			t.Fatal("a stranger set the clock")
		}
		a.clock.observe(result{health: answered, Answer: Answer{Date: theirs}}, theirs)
		time.Sleep(time.Hour)
		if got := a.Clock(); !got.Equal(theirs.Add(time.Hour)) {
			t.Fatalf("%v, want %v", got, theirs.Add(time.Hour))
		}
	})
}

// A box whose clock is minutes away says so, with both times, until an answer shows that it is right again.
func TestWrongClockIsSaid(t *testing.T) {
	var c processorClock
	theirs := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ours time.Time) { c.observe(result{health: answered, Answer: Answer{Date: theirs}}, ours) }
	for _, ours := range []time.Time{theirs.Add(clockWrongMin - 1), theirs.Add(1 - clockWrongMin)} {
		if at(ours); !c.wrongSince.IsZero() {
			t.Errorf("%v against %v counts as wrong", ours, theirs)
		}
	}
	first := theirs.Add(-time.Hour)
	at(first)
	at(theirs.Add(-2 * time.Hour))
	since, evidence, wrong := c.wrong()
	if !wrong || !since.Equal(first) || evidence != "the processor's clock said 2031-01-02T03:04:05Z when this box's said 2031-01-02T01:04:05Z" {
		t.Errorf("%v since %v: %s", wrong, since, evidence)
	}
	c.observe(result{health: foreign, Answer: Answer{Date: theirs.Add(-2 * time.Hour)}}, theirs.Add(-2*time.Hour))
	if _, _, wrong := c.wrong(); !wrong {
		t.Error("a stranger put the clock right")
	}
	at(theirs)
	if _, _, wrong := c.wrong(); wrong {
		t.Error("still wrong")
	}
}
