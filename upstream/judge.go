package upstream

import (
	"fmt"
	"sync"
	"time"
)

// LinkState is what the link judge says about the line to one account.
//
//	unconfigured  nothing to reach; never changes
//	offline       nothing answers, or what answers is not the processor. The state of a new process.
//	              → online, by an answer of the processor
//	online        the processor answers
//	              → degraded, by a failed or slow call or a 5xx · → offline, by an unreachable address
//	degraded      it answers, but something failed or was slow of late
//	              → online, when the trouble is degradedFor old · → offline, by an unreachable address
//	              or by two failed probes in a row
type LinkState string

// The link states. Payments are sent while online or degraded.
const (
	Online       LinkState = "online"
	Degraded     LinkState = "degraded"
	Offline      LinkState = "offline"
	Unconfigured LinkState = "unconfigured"
)

// Cause says in a word why a line is not simply online.
type Cause string

// The causes. The evidence says more.
const (
	CaptivePortal Cause = "captive_portal" // something else answers in the processor's place: a portal, a proxy, another certificate
	UpstreamDown  Cause = "upstream_down"  // there is a network, and the processor refuses connections or answers 5xx
	NoNetwork     Cause = "no_network"     // the name is not resolved, or there is no route
	NoAnswer      Cause = "no_answer"      // bytes go out and none come back, or the connection is cut
	SlowAnswers   Cause = "slow"
	ClockWrong    Cause = "clock_wrong" // this box's clock and the processor's differ
	Forced        Cause = "forced"      // offline by the operator's word
	NotTried      Cause = "not_tried"   // the process has just begun
)

// Link is the judge's verdict with what it rests on.
type Link struct {
	State LinkState `json:"state"`
	// Cause is why the line is not online, or what is wrong although it is; empty: nothing.
	Cause Cause `json:"cause,omitzero"`
	// Was is the state before this one; empty for the first that the process found.
	Was LinkState `json:"was,omitzero"`
	// Since is when this state began.
	Since time.Time `json:"since"`
	// Evidence says in a few words what the state rests on; safe to show to a tenant.
	Evidence string `json:"evidence"`
	// LastAnswer is when the processor last answered anything; zero if never.
	LastAnswer time.Time `json:"last_answer,omitzero"`
}

const (
	// probeFailuresMax probes in a row without an answer say offline. One alone may be a lost packet or a slow
	// answer; an unreachable address needs no second.
	probeFailuresMax = 2
	// degradedIntervals probe intervals (20 s by default) after the last trouble the line counts as online again.
	degradedIntervals = 10
	// slowPart: an answer that took longer than the timeout divided by it is trouble.
	slowPart = 2
	// suspectPart: a suspicion brings the next probe forward to an interval divided by it after the last one. A hail
	// of failures is no hail of probes.
	suspectPart = 4
)

type judge struct {
	cfg *Config

	mu         sync.Mutex // guards what follows; a leaf
	state      LinkState
	was        LinkState // the state before; empty while this is the first that was found
	since      time.Time
	evidence   string
	cause      Cause
	forced     bool // offline by the operator's word; the rest goes on as it would
	before     Link // what is told of the time before, while it is forced
	lastAnswer time.Time
	answerFrom time.Time // the latest start of a call that was answered
	returned   time.Time // when the line last came back: failures that began before are history
	trouble    time.Time // last trouble; zero if none since the line returned
	probeStart time.Time
	probeFails int  // in a row
	suspect    bool // a probe is wanted early
	stranger   bool // the last failure was something else answering
}

// nothingYet is the evidence of a process that has not tried the line.
const nothingYet = "no answer yet since the start"

// movement is what an observation changed.
type movement struct {
	returned bool // offline → online or degraded
	lost     bool // → offline, or still offline after another failure
	suspect  bool // a probe is wanted early
}

func newJudge(cfg *Config, configured bool) *judge {
	j := &judge{cfg: cfg, state: Unconfigured, since: cfg.Now(), evidence: "no upstream configured"}
	if configured {
		j.state, j.evidence, j.cause = Offline, nothingYet, NotTried
	}
	return j
}

func (j *judge) link() Link {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.settle(j.cfg.Now())
	if j.forced {
		return Link{State: Offline, Cause: Forced, Was: j.before.Was, Since: j.before.Since, Evidence: "offline by the operator's word", LastAnswer: j.lastAnswer}
	}
	return Link{State: j.state, Cause: j.cause, Was: j.was, Since: j.since, Evidence: j.evidence, LastAnswer: j.lastAnswer}
}

// force makes the line offline by word, or ends that.
func (j *judge) force(offline bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state == Unconfigured || j.forced == offline {
		return
	}
	now := j.cfg.Now()
	j.settle(now)
	j.forced = offline
	switch {
	case offline && j.state == Offline: // no change
		j.before = Link{Was: j.was, Since: j.since}
	case offline:
		j.before = Link{Was: j.state, Since: now}
	case j.state == Offline:
		j.was, j.since = j.before.Was, j.before.Since
	default:
		j.was, j.since = Offline, now
	}
}

func (j *judge) isForced() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.forced
}

// settle lets trouble grow old.
func (j *judge) settle(now time.Time) {
	if j.state == Degraded && now.Sub(j.trouble) >= degradedIntervals*j.cfg.ProbeInterval {
		j.move(Online, now, fmt.Sprintf("no trouble for %v", degradedIntervals*j.cfg.ProbeInterval), "")
	}
}

func (j *judge) move(to LinkState, now time.Time, evidence string, cause Cause) {
	if j.state != to {
		if j.evidence != nothingYet {
			j.was = j.state
		}
		j.state, j.since = to, now
	}
	j.evidence, j.cause = evidence, cause
}

func (j *judge) observe(r result) movement {
	if r.health == abandoned {
		return movement{}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state == Unconfigured {
		return movement{}
	}
	now := j.cfg.Now()
	j.settle(now)
	what := "request: "
	if r.probe {
		what = "probe: "
	}
	if r.health == answered || r.health == ailing {
		return j.answer(r, now, what)
	}
	if r.start.Before(j.returned) {
		return movement{} // sent into the line as it was before it returned
	}
	j.stranger = r.health == foreign
	overtaken := j.answerFrom.After(r.start) // something sent later was answered
	if r.probe {
		j.probeFails++
	}
	lost := r.health == unreachable && !overtaken || r.probe && j.probeFails >= probeFailuresMax
	switch {
	case j.state == Offline:
		j.evidence, j.cause = what+r.Reason, r.cause
		return movement{lost: true}
	case lost:
		j.move(Offline, now, what+r.Reason, r.cause)
		j.suspect = false
		return movement{lost: true}
	default:
		j.trouble = now
		j.move(Degraded, now, what+r.Reason, r.cause)
		j.suspect = true
		return movement{suspect: true}
	}
}

func (j *judge) answer(r result, now time.Time, what string) movement {
	j.lastAnswer = now
	if r.start.After(j.answerFrom) {
		j.answerFrom = r.start
	}
	j.probeFails, j.suspect = 0, false
	took := r.end.Sub(r.start)
	evidence := fmt.Sprintf("%sanswered %d in %v", what, r.Status, took.Round(time.Millisecond))
	was := j.state
	if was == Offline {
		j.returned, j.trouble = now, time.Time{}
	}
	switch {
	case r.health == ailing:
		j.trouble = now
		j.move(Degraded, now, what+r.Reason, UpstreamDown)
	case took > j.cfg.Timeout/slowPart:
		j.trouble = now
		j.move(Degraded, now, evidence+", slow", SlowAnswers)
	case was == Offline:
		j.move(Online, now, evidence, "")
	case was == Online:
		j.evidence = evidence
	}
	return movement{returned: was == Offline}
}

// foreign reports whether the latest failure was something else answering in the processor's place.
func (j *judge) foreign() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stranger
}

// probing notes that a probe begins.
func (j *judge) probing() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.probeStart = j.cfg.Now()
}

// probeDue is how long from now the next probe is due; zero or less: now.
func (j *judge) probeDue() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.probeStart.IsZero() && j.lastAnswer.IsZero() {
		return 0
	}
	now := j.cfg.Now()
	if j.suspect {
		return j.cfg.ProbeInterval/suspectPart - now.Sub(j.probeStart)
	}
	last := j.probeStart
	if j.lastAnswer.After(last) {
		last = j.lastAnswer
	}
	return j.cfg.ProbeInterval - now.Sub(last)
}
