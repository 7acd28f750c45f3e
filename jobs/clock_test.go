package jobs

import (
	"testing"
	"time"
)

func TestClockNeverRunsBackwards(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	wall := start
	var c clock
	c.init(func() time.Time { return wall }, time.Time{})
	for _, step := range []struct {
		wall, want time.Duration
	}{
		{0, 0},
		{time.Second, time.Second},
		{-24 * time.Hour, time.Second}, // set back: stands still until it has caught up (or runs on, if it can tell)
		{2 * time.Second, 2 * time.Second},
		{10 * 365 * 24 * time.Hour, 10 * 365 * 24 * time.Hour},
		{3 * time.Second, 10 * 365 * 24 * time.Hour},
	} {
		wall = start.Add(step.wall)
		if got := c.now().Sub(start); got != step.want {
			t.Errorf("machine at %v: %v, want %v", step.wall, got, step.want)
		}
	}
	c = clock{}
	c.init(func() time.Time { return start }, start.Add(time.Hour)) // booted with an old clock
	if got := c.now(); !got.Equal(start.Add(time.Hour)) {
		t.Errorf("after a restart: %v", got)
	}
}

// TestClockRunsOnWithoutTheWall: the machine's own clock has a monotonic reading to go by.
func TestClockRunsOnWithoutTheWall(t *testing.T) {
	var c clock
	ahead := time.Now().Add(time.Hour)
	c.init(nil, ahead) // as if the wall clock had been set back by an hour before this start
	first := c.now()
	for second := first; !second.After(first); second = c.now() {
	}
	if d := first.Sub(ahead); d < 0 || d > time.Minute {
		t.Errorf("started %v off", d)
	}
}
