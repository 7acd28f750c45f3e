package torture

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// The rules of jobs.
const (
	JobLost      Rule = "acknowledged job never ran"
	JobUndone    Rule = "job was never done"
	JobLeft      Rule = "jobs are left in the queue"
	JobRepeated  Rule = "job acknowledged as done ran again"
	JobDoneTwice Rule = "job was acknowledged as done twice"
	JobTorn      Rule = "bulk was stored in part"
	JobShared    Rule = "INV-18 job was given away under a live lease"
	JobDisowned  Rule = "INV-18 live lease was refused"
	JobEarly     Rule = "delayed job ran early"
	JobForeign   Rule = "INV-20 job of another tenant"
	JobChanged   Rule = "job is not what was asked for"
	JobUnasked   Rule = "job that nobody asked for"
)

// JudgeJobs compares what producers and workers saw, and returns everything that does not fit.
func JudgeJobs(e JobEvidence) []Finding {
	j := &jobJudgement{
		e: e, wishes: map[string]Wish{}, asked: map[string]time.Time{}, acknowledged: map[string]bool{},
		taken: map[string][]Taking{}, said: map[leaseID][]Word{},
	}
	for _, w := range e.Wishes {
		j.wishes[w.Job] = w
	}
	for _, a := range e.Addings {
		for _, job := range a.Jobs {
			if first, ok := j.asked[job]; !ok || a.Sent.Before(first) {
				j.asked[job] = a.Sent
			}
			j.acknowledged[job] = j.acknowledged[job] || a.Acknowledged()
		}
	}
	for _, t := range e.Takings {
		j.taken[t.Job] = append(j.taken[t.Job], t)
	}
	for _, ts := range j.taken {
		slices.SortStableFunc(ts, func(a, b Taking) int { return cmp.Or(a.Got.Compare(b.Got), a.Attempt-b.Attempt) })
	}
	for _, w := range e.Words {
		id := leaseID{w.Job, w.Token}
		j.said[id] = append(j.said[id], w)
	}
	for _, p := range e.Problems {
		j.found(Failed, "%s: %s", p.What, p.Detail)
	}
	j.answers()
	j.takings()
	j.endings()
	if e.Drained {
		j.drained()
	}
	slices.SortStableFunc(j.findings, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.What, b.What)) })
	return j.findings
}

// leaseID names a lease.
type leaseID struct{ job, token string }

type jobJudgement struct {
	e            JobEvidence
	wishes       map[string]Wish
	asked        map[string]time.Time // when a job was first asked for
	acknowledged map[string]bool
	taken        map[string][]Taking // by job, in order
	said         map[leaseID][]Word
	findings     []Finding
}

func (j *jobJudgement) found(rule Rule, format string, args ...any) {
	j.findings = append(j.findings, Finding{rule, fmt.Sprintf(format, args...)})
}

// answers looks at each answer for itself.
func (j *jobJudgement) answers() {
	look := func(of string, c Call) {
		switch {
		case c.Status == 0 && !c.HungUp && j.served(c):
			j.found(Speechless, "%s %s, sent at %s: %s", c.What, of, clock(c.Sent), c.Error)
		case c.Status >= 500 && c.Status != http.StatusServiceUnavailable && c.Status != http.StatusInsufficientStorage:
			j.found(Internal, "%s %s was answered %d %s", c.What, of, c.Status, c.Code)
		case c.Status/100 == 2 && c.Error != "":
			j.found(Internal, "%s %s was answered %d: %s", c.What, of, c.Status, c.Error)
		}
	}
	unfit := func(of string, c Call) {
		if c.Status/100 == 4 && c.Status != http.StatusTooManyRequests {
			j.found(Unfit, "%s %s was answered %d %s", c.What, of, c.Status, c.Code)
		}
	}
	for _, a := range j.e.Addings {
		of := fmt.Sprintf("%s (of %d)", a.Jobs[0], len(a.Jobs))
		look(of, a.Call)
		unfit(of, a.Call)
	}
	for _, c := range j.e.Leases {
		look("", c)
		unfit("", c)
	}
	for _, w := range j.e.Words {
		look(w.Job, w.Call)
		if w.Status != http.StatusConflict && w.Status != http.StatusNotFound { // those are looked at with the lease
			unfit(w.Job, w.Call)
		}
	}
}

// served tells whether the box owed an answer: it was up from before the request until after it.
func (j *jobJudgement) served(c Call) bool {
	return slices.ContainsFunc(j.e.Lives, func(l Life) bool { return c.Sent.After(l.From) && c.Answered.Before(l.To) })
}

// takings looks at what was given away, to whom and when.
func (j *jobJudgement) takings() {
	for job, ts := range j.taken {
		w, known := j.wishes[job]
		for i, t := range ts {
			switch {
			case !known:
				j.found(JobUnasked, "%q, as %s", job, t.ID)
			case t.Tenant != w.Tenant:
				j.found(JobForeign, "%s of %s was given to a worker of %s", job, w.Tenant, t.Tenant)
			case !t.Intact, w.ID != "" && t.ID != w.ID:
				j.found(JobChanged, "%s, as %s", job, t.ID)
			case t.Got.Before(j.asked[job].Add(w.Delay)):
				j.found(JobEarly, "%s, asked for at %s with a delay of %s, was taken by %s", job, clock(j.asked[job]), w.Delay, clock(t.Got))
			}
			for _, before := range ts[:i] {
				if j.shared(before, t) {
					j.found(JobShared, "%s: %s had it from %s for %s, %s got it at %s", job, before.Worker, clock(before.Got), before.For, t.Worker, clock(t.Got))
				}
			}
		}
	}
}

// shared tells whether b was certainly given away while a held. Nobody may have said anything by then that ends a.
func (j *jobJudgement) shared(a, b Taking) bool {
	later := b.Attempt > a.Attempt || b.Asked.After(a.Got)
	return a.Token != b.Token && later && b.Got.Before(a.until()) && !slices.ContainsFunc(j.said[leaseID{a.Job, a.Token}], func(w Word) bool {
		return w.Ends() && w.Sent.Before(b.Got)
	})
}

// endings looks at how leases ended: a live one is heard, and what is acknowledged as done is done.
func (j *jobJudgement) endings() {
	for job, ts := range j.taken {
		done := 0
		for i, t := range ts {
			said := j.said[leaseID{job, t.Token}]
			for _, w := range said {
				refused := w.Status == http.StatusConflict || w.Status == http.StatusNotFound
				if refused && w.Answered.Before(t.until()) && !slices.ContainsFunc(said, func(o Word) bool { return o.Ends() && o.Sent.Before(w.Sent) }) {
					j.found(JobDisowned, "%s: %s had it from %s for %s, but at %s the box answered its %s with %d %s", job, t.Worker, clock(t.Got), t.For, clock(w.Answered), w.What, w.Status, w.Code)
				}
			}
			end := slices.IndexFunc(said, func(w Word) bool { return w.Final && w.Acknowledged() })
			if end < 0 {
				continue
			}
			done++
			for k, o := range ts {
				if k != i && (o.Attempt > t.Attempt || o.Asked.After(said[end].Answered)) {
					j.found(JobRepeated, "%s: %s was acknowledged at %s, and %s got it at %s", job, said[end].What, clock(said[end].Answered), o.Worker, clock(o.Got))
				}
			}
		}
		if done > 1 {
			j.found(JobDoneTwice, "%s: %d times", job, done)
		}
	}
}

// drained looks at what must have happened by the end.
func (j *jobJudgement) drained() {
	for tenant, n := range j.e.Left {
		if n != 0 {
			j.found(JobLeft, "%d of %s", n, tenant)
		}
	}
	for job := range j.acknowledged {
		ts := j.taken[job]
		switch {
		case len(ts) == 0 && j.acknowledged[job]:
			j.found(JobLost, "%s, asked for at %s", job, clock(j.asked[job]))
		case len(ts) > 0 && !j.perhapsDone(job, ts):
			j.found(JobUndone, "%s was taken %d times, last at %s", job, len(ts), clock(ts[len(ts)-1].Got))
		}
	}
	for _, a := range j.e.Addings {
		ran := 0
		for _, job := range a.Jobs {
			if len(j.taken[job]) > 0 {
				ran++
			}
		}
		if ran > 0 && ran < len(a.Jobs) && !a.Acknowledged() { // of acknowledged ones each is looked at for itself
			j.found(JobTorn, "%d of the %d jobs asked for at %s ran", ran, len(a.Jobs), clock(a.Sent))
		}
	}
}

// perhapsDone tells whether a word ended the job, or may have.
func (j *jobJudgement) perhapsDone(job string, ts []Taking) bool {
	return slices.ContainsFunc(ts, func(t Taking) bool {
		return slices.ContainsFunc(j.said[leaseID{job, t.Token}], func(w Word) bool { return w.Final && (w.Acknowledged() || w.Unknown()) })
	})
}
