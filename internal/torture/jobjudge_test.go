package torture

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
)

// soundJobs is the evidence of a small round in which everything went well: a job done by one worker; one that failed once; one
// whose lease ran out; a delayed one; a bulk of two that nobody knows whether it was stored, and was; one that was not.
func soundJobs() JobEvidence {
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(n float64) time.Time { return start.Add(time.Duration(n * float64(time.Second))) }
	e := JobEvidence{Drained: true, Lives: []Life{{at(0), at(100)}}, Left: map[string]int{"default": 0, secondTenant: 0}}
	call := func(what, tenant string, sent float64, status int) Call {
		return Call{What: what, Tenant: tenant, Sent: at(sent), Answered: at(sent + 0.1), Status: status}
	}
	add := func(sent float64, status int, ws ...Wish) {
		a := Adding{Call: call("add", ws[0].Tenant, sent, status)}
		if status == 0 {
			a.HungUp = true
		}
		for _, w := range ws {
			a.Jobs = append(a.Jobs, w.Job)
		}
		e.Wishes, e.Addings = append(e.Wishes, ws...), append(e.Addings, a)
	}
	take := func(w Wish, asked float64, attempt int) Taking {
		t := Taking{Job: w.Job, Tenant: w.Tenant, ID: "job_" + w.Job, Token: fmt.Sprintf("%s/%d", w.Job, attempt), Worker: "w", Asked: at(asked), Got: at(asked + 0.1), For: 4 * time.Second, Attempt: attempt, Intact: true}
		if w.ID != "" {
			t.ID = w.ID
		}
		e.Takings = append(e.Takings, t)
		return t
	}
	say := func(t Taking, what string, sent float64, status int, final bool) {
		w := Word{Call: call(what, t.Tenant, sent, status), Job: t.Job, Token: t.Token, Final: final}
		w.HungUp = status == 0
		e.Words = append(e.Words, w)
	}

	simple := Wish{Job: "simple", Tenant: "default", ID: "own-simple"}
	add(1, http.StatusCreated, simple)
	say(take(simple, 2, 1), "complete", 3, http.StatusOK, true)

	failed := Wish{Job: "failed", Tenant: secondTenant}
	add(1, http.StatusCreated, failed)
	say(take(failed, 2, 1), "fail", 3, http.StatusOK, false)
	say(take(failed, 3.2, 2), "complete", 4, http.StatusOK, true)

	expired := Wish{Job: "expired", Tenant: "default"}
	add(1, http.StatusCreated, expired)
	first := take(expired, 2, 1)
	second := take(expired, 6.5, 2)
	say(first, "complete", 7, http.StatusConflict, true)
	say(second, "complete", 7.5, 0, true)
	say(second, "complete", 8, http.StatusConflict, true)

	delayed := Wish{Job: "delayed", Tenant: "default", Delay: 5 * time.Second}
	add(1, http.StatusCreated, delayed)
	say(take(delayed, 6, 1), "complete", 7, http.StatusOK, true)

	pair := []Wish{{Job: "left", Tenant: "default"}, {Job: "right", Tenant: "default"}}
	add(1, 0, pair...)
	for _, w := range pair {
		say(take(w, 9, 1), "complete", 9.5, http.StatusOK, true)
	}
	add(1, 0, Wish{Job: "unknown", Tenant: "default"})
	return e
}

func TestJudgeJobs(t *testing.T) {
	if findings := JudgeJobs(soundJobs()); len(findings) > 0 {
		t.Errorf("a sound round: %v", findings)
	}
	taking := func(e *JobEvidence, token string) *Taking {
		return &e.Takings[slices.IndexFunc(e.Takings, func(k Taking) bool { return k.Token == token })]
	}
	word := func(e *JobEvidence, token, what string) *Word {
		return &e.Words[slices.IndexFunc(e.Words, func(w Word) bool { return w.Token == token && w.What == what })]
	}
	forget := func(e *JobEvidence, job string) {
		e.Takings = slices.DeleteFunc(e.Takings, func(k Taking) bool { return k.Job == job })
	}
	// again is a second delivery of a job, so long after the first.
	again := func(e *JobEvidence, token string, after time.Duration) *Taking {
		k := *taking(e, token)
		k.Token, k.Attempt = k.Token+"/again", k.Attempt+1
		k.Asked, k.Got = k.Asked.Add(after), k.Got.Add(after)
		e.Takings = append(e.Takings, k)
		return &e.Takings[len(e.Takings)-1]
	}
	for name, planted := range map[string]struct {
		plant func(e *JobEvidence)
		rule  Rule
	}{
		"lost":          {func(e *JobEvidence) { forget(e, "simple") }, JobLost},
		"lost, delayed": {func(e *JobEvidence) { forget(e, "delayed") }, JobLost},
		"never done":    {func(e *JobEvidence) { word(e, "simple/1", "complete").Status = http.StatusConflict }, JobUndone},
		"never tried again": {func(e *JobEvidence) {
			e.Takings = slices.DeleteFunc(e.Takings, func(k Taking) bool { return k.Token == "failed/2" })
		}, JobUndone},
		"left":              {func(e *JobEvidence) { e.Left["default"] = 1 }, JobLeft},
		"ran again":         {func(e *JobEvidence) { again(e, "simple/1", 10*time.Second) }, JobRepeated},
		"ran again at once": {func(e *JobEvidence) { again(e, "simple/1", time.Second) }, JobRepeated},
		"done twice": {func(e *JobEvidence) {
			word(e, "expired/1", "complete").Status = 200
			word(e, "expired/2", "complete").Status = 200
		}, JobDoneTwice},
		"torn":                {func(e *JobEvidence) { forget(e, "left") }, JobTorn},
		"shared":              {func(e *JobEvidence) { again(e, "expired/1", 2*time.Second) }, JobShared},
		"shared, no counter":  {func(e *JobEvidence) { again(e, "expired/1", 2*time.Second).Attempt = 1 }, JobShared},
		"disowned":            {func(e *JobEvidence) { word(e, "failed/1", "fail").Status = http.StatusConflict }, JobDisowned},
		"disowned, forgotten": {func(e *JobEvidence) { word(e, "failed/1", "fail").Status = http.StatusNotFound }, JobDisowned},
		"early":               {func(e *JobEvidence) { k := taking(e, "delayed/1"); k.Got = k.Got.Add(-time.Second) }, JobEarly},
		"foreign":             {func(e *JobEvidence) { taking(e, "simple/1").Tenant = secondTenant }, JobForeign},
		"changed":             {func(e *JobEvidence) { taking(e, "simple/1").Intact = false }, JobChanged},
		"renamed":             {func(e *JobEvidence) { taking(e, "simple/1").ID = "job_other" }, JobChanged},
		"unasked":             {func(e *JobEvidence) { taking(e, "simple/1").Job = "" }, JobUnasked},
		"refused":             {func(e *JobEvidence) { e.Addings[0].Status = http.StatusUnprocessableEntity }, Unfit},
		"broken": {func(e *JobEvidence) {
			e.Leases = append(e.Leases, Call{What: "lease", Status: http.StatusInternalServerError})
		}, Internal},
		"garbled":    {func(e *JobEvidence) { e.Addings[0].Error = "999 jobs are in the answer" }, Internal},
		"speechless": {func(e *JobEvidence) { e.Addings[0].Status = 0 }, Speechless},
		"died": {func(e *JobEvidence) {
			e.Problems = append(e.Problems, Problem{"the box ended by itself", "exit status 2"})
		}, Failed},
	} {
		t.Run(name, func(t *testing.T) {
			e := soundJobs()
			planted.plant(&e)
			findings := JudgeJobs(e)
			if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Rule == planted.rule }) {
				t.Errorf("not caught as %q; findings: %v", planted.rule, findings)
			}
		})
	}
}
