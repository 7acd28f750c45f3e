package torture

import (
	"fmt"
	"strings"
	"time"
)

// JobTally is what a round of jobs was made of.
type JobTally struct {
	Asked, Acknowledged, Unknown          int // jobs by how their adding ended
	Again                                 int // asked for once more, and acknowledged
	Delayed                               int // of those acknowledged
	Takings, Redelivered                  int // leases, and jobs with more than one
	Done, Failed, Extended, Stale, Silent int // words: final, fail to be tried again, extend; refused as stale; without an answer
	Unanswered                            int // requests of all kinds
	Killed, Recovering, Graceful, Halfway int64
	Power                                 Power
	Flight, FlightMax, Active, ActiveMax  int // at the deaths: in flight, least and most; of them with a worker
	Starts                                int
	StartMedian, StartMax                 time.Duration
	Drain                                 time.Duration
}

func (r *jobRound) tallied(e JobEvidence) JobTally {
	t := &r.tally
	s := JobTally{
		Asked: len(e.Wishes), Takings: len(e.Takings), Drain: t.drain,
		Killed: t.killed.Load(), Recovering: t.recovering.Load(), Graceful: t.graceful.Load(), Halfway: t.halfway.Load(),
		Power: t.power(r.Disk),
	}
	acknowledged, times := map[string]bool{}, map[string]int{}
	for _, a := range e.Addings {
		if a.Status == 0 {
			s.Unanswered++
		}
		if a.Again && a.Acknowledged() {
			s.Again++
		}
		for _, job := range a.Jobs {
			acknowledged[job] = acknowledged[job] || a.Acknowledged()
		}
	}
	for _, w := range e.Wishes {
		switch {
		case !acknowledged[w.Job]:
			s.Unknown++
		case w.Delay > 0:
			s.Delayed++
			fallthrough
		default:
			s.Acknowledged++
		}
	}
	for _, k := range e.Takings {
		if times[k.Job]++; times[k.Job] == 2 {
			s.Redelivered++
		}
	}
	for _, w := range e.Words {
		switch {
		case w.Unknown():
			s.Silent++
		case w.Status == 409 || w.Status == 404:
			s.Stale++
		case !w.Acknowledged():
		case w.Final:
			s.Done++
		case w.What == "fail":
			s.Failed++
		case w.What == "extend":
			s.Extended++
		}
	}
	for _, c := range e.Leases {
		if c.Status == 0 {
			s.Unanswered++
		}
	}
	for i, d := range r.deaths {
		if i == 0 {
			s.Flight, s.Active = d.flight, d.active
		}
		s.Flight, s.FlightMax = min(s.Flight, d.flight), max(s.FlightMax, d.flight)
		s.Active, s.ActiveMax = min(s.Active, d.active), max(s.ActiveMax, d.active)
	}
	s.Starts, s.StartMedian, s.StartMax = t.startTimes()
	return s
}

// Idle names what a round was meant to meet and did not: each is a reason not to believe its good end.
func (t JobTally) Idle() []string {
	var idle []string
	for _, must := range []struct {
		what string
		n    int
	}{
		{"acknowledged job", t.Acknowledged}, {"delayed job", t.Delayed}, {"job asked for again", t.Again}, {"job done", t.Done},
		{"job delivered again", t.Redelivered}, {"failed attempt", t.Failed}, {"extended lease", t.Extended}, {"stale word", t.Stale},
		{"request without an answer", t.Unanswered + t.Silent}, {"job with a worker at a death", t.ActiveMax},
		{"SIGKILL or power cut", int(t.Killed + t.Power.Cuts)}, {"SIGKILL in recovery", int(t.Recovering)},
	} {
		if must.n == 0 {
			idle = append(idle, must.what)
		}
	}
	return append(idle, t.Power.Idle()...)
}

func (t JobTally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "jobs       %d asked: %d acknowledged (%d of them delayed), %d unknown to their producer; %d asked for again\n", t.Asked, t.Acknowledged, t.Delayed, t.Unknown, t.Again)
	fmt.Fprintf(&b, "deliveries %d, of %d jobs more than once\n", t.Takings, t.Redelivered)
	fmt.Fprintf(&b, "words      %d done, %d failed to be tried again, %d extended, %d refused as stale, %d without an answer\n", t.Done, t.Failed, t.Extended, t.Stale, t.Silent)
	fmt.Fprintf(&b, "ends       %d SIGKILL, %d SIGKILL in recovery, %d SIGTERM, %d SIGTERM then SIGKILL; then in flight %d to %d jobs, with a worker %d to %d\n",
		t.Killed, t.Recovering, t.Graceful, t.Halfway, t.Flight, t.FlightMax, t.Active, t.ActiveMax)
	b.WriteString(t.Power.String())
	fmt.Fprintf(&b, "starts     %d: median %s, longest %s; drained in %s", t.Starts, t.StartMedian.Round(time.Millisecond), t.StartMax.Round(time.Millisecond), t.Drain.Round(time.Millisecond))
	return b.String()
}
