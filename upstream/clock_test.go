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
		a.clock.observe(result{health: foreign, Answer: Answer{Date: theirs}})
		if !a.Clock().IsZero() {
			t.Fatal("a stranger set the clock")
		}
		a.clock.observe(result{health: answered, Answer: Answer{Date: theirs}})
		time.Sleep(time.Hour)
		if got := a.Clock(); !got.Equal(theirs.Add(time.Hour)) {
			t.Fatalf("%v, want %v", got, theirs.Add(time.Hour))
		}
	})
}
