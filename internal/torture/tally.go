package torture

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tenderbox/internal/blackbox"
)

// tallies count while a round is played.
type tallies struct {
	killed, recovering, graceful, halfway atomic.Int64
	cuts, recoveryCuts                    atomic.Int64
	queuesLost, eventsLost                atomic.Int64
	drain                                 time.Duration // written once, by drain
	conditions                            conditions

	startsMu sync.Mutex // guards starts
	starts   []time.Duration
}

func (t *tallies) started(took time.Duration) {
	t.startsMu.Lock()
	defer t.startsMu.Unlock()
	t.starts = append(t.starts, took)
}

// startTimes sums up how long the box took to start.
func (t *tallies) startTimes() (n int, median, longest time.Duration) {
	t.startsMu.Lock()
	defer t.startsMu.Unlock()
	if len(t.starts) == 0 {
		return 0, 0, 0
	}
	sorted := slices.Sorted(slices.Values(t.starts))
	return len(sorted), sorted[len(sorted)/2], sorted[len(sorted)-1]
}

// Tally is what a round was made of.
type Tally struct {
	Conditions                            string
	Asked, Acknowledged, Unknown, Refused int // keys by how they ended
	Exchanges, NoAnswer, Unavailable      int // requests; without an answer; with 503 or 507
	Replays, Contradicted                 int // answered as such
	Killed, Recovering, Graceful, Halfway int64
	Power                                 Power
	QueuesLost, EventsLost                int64
	Told, Hired, Newcomers                int // events in the stream, tenants and users made
	Starts                                int
	StartMedian, StartMax                 time.Duration
	Posts, Effects, Stuck                 int
	Fired                                 map[string]int64 // faults by kind, cuts of the line among them
	Drain                                 time.Duration
}

func (t *tallies) of(e Evidence, p *blackbox.Processor, d Disk) Tally {
	s := Tally{
		Conditions: t.conditions.String(), Asked: len(e.Asks), Exchanges: len(e.Exchanges), Posts: len(e.Posts), Effects: len(e.Effects), Stuck: len(stuck(e.Posts)),
		Killed: t.killed.Load(), Recovering: t.recovering.Load(), Graceful: t.graceful.Load(), Halfway: t.halfway.Load(),
		QueuesLost: t.queuesLost.Load(), EventsLost: t.eventsLost.Load(), Fired: p.Fired(), Drain: t.drain,
		Power: t.power(d), Told: len(e.Stream), Hired: len(e.Hired), Newcomers: len(e.Newcomers),
	}
	s.Fired["line cut"] = int64(p.Cuts())
	acknowledged, definite := map[askID]bool{}, map[askID]bool{}
	for _, x := range e.Exchanges {
		switch {
		case x.Status == 0:
			s.NoAnswer++
		case x.Status == 503 || x.Status == 507:
			s.Unavailable++
		case x.Act == Contradict && x.Status == 422:
			s.Contradicted++
		case x.Replayed:
			s.Replays++
		}
		acknowledged[x.id()] = acknowledged[x.id()] || x.Acknowledged()
		definite[x.id()] = definite[x.id()] || x.Act == Pay && x.Definite()
	}
	for _, a := range e.Asks {
		switch {
		case acknowledged[a.id()]:
			s.Acknowledged++
		case definite[a.id()]:
			s.Refused++
		default:
			s.Unknown++
		}
	}
	s.Starts, s.StartMedian, s.StartMax = t.startTimes()
	return s
}

// Idle names what a round was meant to meet and did not: each is a reason not to believe its good end.
func (t Tally) Idle() []string {
	var idle []string
	for _, must := range []struct {
		what string
		n    int64
	}{
		{"acknowledged payment", int64(t.Acknowledged)}, {"request without an answer", int64(t.NoAnswer)},
		{"replay", int64(t.Replays)}, {"contradiction refused", int64(t.Contradicted)}, {"invalid request refused", int64(t.Refused)},
		{"SIGKILL or power cut", t.Killed + t.Power.Cuts}, {"SIGKILL in recovery", t.Recovering}, {"effect", int64(t.Effects)},
		{"payment answered 500 for ever", int64(t.Stuck)}, {"line cut", t.Fired["line cut"]},
	} {
		if must.n == 0 {
			idle = append(idle, must.what)
		}
	}
	for _, k := range kinds {
		if t.Fired[k.name] == 0 {
			idle = append(idle, "fault "+k.name)
		}
	}
	return append(idle, t.Power.Idle()...)
}

func (t Tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "conditions %s\n", t.Conditions)
	fmt.Fprintf(&b, "payments   %d asked: %d acknowledged, %d unknown to their client, %d refused as invalid\n", t.Asked, t.Acknowledged, t.Unknown, t.Refused)
	fmt.Fprintf(&b, "requests   %d: %d without an answer, %d with 503 or 507, %d replays, %d contradictions refused\n", t.Exchanges, t.NoAnswer, t.Unavailable, t.Replays, t.Contradicted)
	fmt.Fprintf(&b, "ends       %d SIGKILL, %d SIGKILL in recovery, %d SIGTERM, %d SIGTERM then SIGKILL; %d queue files and %d event streams lost\n", t.Killed, t.Recovering, t.Graceful, t.Halfway, t.QueuesLost, t.EventsLost)
	b.WriteString(t.Power.String())
	fmt.Fprintf(&b, "starts     %d: median %s, longest %s\n", t.Starts, t.StartMedian.Round(time.Millisecond), t.StartMax.Round(time.Millisecond))
	fmt.Fprintf(&b, "processor  %d POSTs, %d effects, %d payments answered 500 for ever; drained in %s\n", t.Posts, t.Effects, t.Stuck, t.Drain.Round(time.Millisecond))
	fmt.Fprintf(&b, "events     %d in the stream; %d tenants and %d users made\n", t.Told, t.Hired, t.Newcomers)
	fmt.Fprintf(&b, "faults    ")
	for _, name := range sorted(t.Fired) {
		fmt.Fprintf(&b, " %s %d,", name, t.Fired[name])
	}
	return strings.TrimSuffix(b.String(), ",")
}
