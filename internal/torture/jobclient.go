package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

// The habits of producers and workers, as probabilities.
const (
	ownID    = 0.3  // a job has an id of its own
	delays   = 0.3  // a job is delayed
	again    = 0.05 // an acknowledged job is asked for once more
	single   = 0.2  // a job is spoken of alone, not with the others of its lease
	fails    = 0.05 // an attempt fails, to be tried again
	gives    = 0.01 // an attempt fails for good
	leaves   = 0.01 // a worker forgets a job, and its lease runs out
	extends  = 0.03 // a worker asks for more time
	progress = 0.03 // a worker says how far it is
	twice    = 0.03 // a worker says once more what was acknowledged
)

const (
	// jobsTakenMax jobs are leased at once.
	jobsTakenMax = 100
	// workMax is how long a worker pretends to work while the box is killed.
	workMax = 100 * time.Millisecond
	// produceMax is a producer's longest pause between two jobs, once enough are in flight.
	produceMax = 10 * time.Millisecond
	// failDelayMax is how soon a failed attempt is to be tried again.
	failDelayMax = 300 * time.Millisecond
	// jobAttempts are more than a round can spend.
	jobAttempts = 1000
	// jobBytesMax bounds what is read of an answer: a bulk's is some 800 bytes a job.
	jobBytesMax = 16 << 20
)

// jobName is what the box calls the jobs.
const jobName = "work"

// caller speaks to the box as somebody.
type caller struct {
	r      *jobRound
	tenant string // "": the operator, for all
	random *rand.Rand
	http   *http.Client
}

func (r *jobRound) newCaller(stream uint64, tenant string) caller {
	return caller{r, tenant, source(r.Seed, stream), &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2}}}
}

func (c *caller) hit(probability float64) bool { return c.random.Float64() < probability }

func (c *caller) within(d time.Duration) time.Duration {
	return time.Duration(c.random.Int64N(int64(d)))
}

// call exchanges one request for an answer. A 2xx is read into into.
func (c *caller) call(ctx context.Context, what, method, path string, body, into any) Call {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	x := Call{What: what, Tenant: c.tenant, Sent: time.Now()}
	if err := c.exchange(ctx, &x, method, path, body, into); err != nil {
		x.Error, x.HungUp = err.Error(), errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	}
	x.Answered = time.Now()
	return x
}

func (c *caller) exchange(ctx context.Context, x *Call, method, path string, body, into any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, c.r.box.url()+"/api/v1/queues/"+tortureQueue+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	key := c.r.box.token
	if c.tenant != "" {
		key = c.r.keys[c.tenant]
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	answer, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	received, err := io.ReadAll(io.LimitReader(answer.Body, jobBytesMax))
	if err != nil {
		return err // a cut answer is none: the status of half an answer promises nothing
	}
	x.Status = answer.StatusCode
	if x.Status/100 != 2 {
		var problem struct{ Code, Detail string }
		_ = json.Unmarshal(received, &problem) // without a code the status must do
		x.Code = problem.Code
		return nil
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(received, into)
}

// keepsAll is the tenant whose queue keeps what is done: only there may a job be asked for again under its own id and be expected
// not to run again. The other one's keeps the last few.
const keepsAll = secondTenant

func (r *jobRound) declare(ctx context.Context, tenant string) error {
	c := r.newCaller(0, tenant)
	defer c.http.CloseIdleConnections()
	defaults := map[string]any{}
	if tenant == keepsAll {
		defaults = map[string]any{"remove_on_complete": false, "remove_on_fail": false}
	}
	x := c.call(ctx, "declare", http.MethodPut, "", map[string]any{"defaults": defaults}, nil)
	if !x.Acknowledged() {
		return fmt.Errorf("%s: answered %d %s %s", tenant, x.Status, x.Code, x.Error)
	}
	return nil
}

// producer adds jobs.
type producer struct {
	caller
	name string
	made int
}

func (r *jobRound) newProducer(i int, name string) *producer {
	tenant := []string{"default", secondTenant}[i%2]
	return &producer{caller: r.newCaller(producerStream+uint64(i)+uint64(len(name))<<5, tenant), name: fmt.Sprintf("%s%d", name, i)}
}

// produce adds jobs until the round stops it: in bulks while too few are in flight, one by one otherwise.
func (r *jobRound) produce(ctx context.Context, i int) {
	p := r.newProducer(i, "p")
	defer p.http.CloseIdleConnections()
	var past []Wish
	for r.adding.Load() {
		if all, _ := r.log.flight(); all < r.Flight {
			if a := p.bulk(ctx); !a.Acknowledged() && pause(ctx, retryPause) != nil {
				return
			}
			continue
		}
		w := p.wish(p.hit(ownID))
		r.log.wish(w)
		a := p.add(ctx, false, w)
		for w.ID != "" && !a.Acknowledged() && r.adding.Load() { // under its own id it may be asked for until it is there
			if pause(ctx, retryPause) != nil {
				return
			}
			a = p.add(ctx, false, w)
		}
		if w.ID != "" && a.Acknowledged() {
			past = append(past, w)
		}
		if len(past) > 0 && p.hit(again) {
			p.add(ctx, true, past[p.random.IntN(len(past))])
		}
		if pause(ctx, p.within(produceMax)) != nil {
			return
		}
	}
}

// wish makes up a job.
func (p *producer) wish(own bool) Wish {
	p.made++
	w := Wish{Job: fmt.Sprintf("%s-%d", p.name, p.made), Tenant: p.tenant, Priority: p.random.IntN(3)}
	if own && p.tenant == keepsAll {
		w.ID = "own-" + w.Job
	}
	if p.hit(delays) {
		w.Delay = p.within(p.r.Chaos).Truncate(time.Millisecond)
	}
	return w
}

// bulk adds many jobs in one request.
func (p *producer) bulk(ctx context.Context) Adding {
	ws := make([]Wish, loadBulk)
	for i := range ws {
		ws[i] = p.wish(false)
	}
	p.r.log.wish(ws...)
	return p.add(ctx, false, ws...)
}

// add asks for jobs. What was asked under an id of its own must be answered with that.
func (p *producer) add(ctx context.Context, repeat bool, ws ...Wish) Adding {
	type addedJob struct{ ID string }
	var added struct {
		addedJob
		Jobs []addedJob
	}
	a := Adding{Again: repeat}
	bodies := make([]map[string]any, len(ws))
	longest := time.Duration(0)
	for i, w := range ws {
		bodies[i] = w.body()
		a.Jobs = append(a.Jobs, w.Job)
		longest = max(longest, w.Delay)
	}
	if len(ws) == 1 {
		a.Call = p.call(ctx, "add", http.MethodPost, "/jobs", bodies[0], &added)
		added.Jobs = []addedJob{added.addedJob}
	} else {
		a.Call = p.call(ctx, "add", http.MethodPost, "/jobs", map[string]any{"jobs": bodies}, &added)
	}
	if a.Acknowledged() {
		if len(added.Jobs) != len(ws) {
			a.Error = fmt.Sprintf("%d jobs were asked for, %d are in the answer", len(ws), len(added.Jobs))
		} else if ws[0].ID != "" && added.Jobs[0].ID != ws[0].ID {
			a.Error = fmt.Sprintf("asked under %q, answered %q", ws[0].ID, added.Jobs[0].ID)
		}
	}
	p.r.log.adding(a, longest)
	return a
}

// body is a job as the API takes it.
func (w Wish) body() map[string]any {
	opts := map[string]any{
		"attempts": jobAttempts, "backoff": map[string]any{"type": "fixed", "delay_ms": 50},
		"priority": w.Priority, "delay_ms": w.Delay.Milliseconds(),
	}
	if w.ID != "" {
		opts["job_id"] = w.ID
	}
	return map[string]any{"name": jobName, "data": map[string]string{"job": w.Job, "tenant": w.Tenant, "padding": padding}, "opts": opts}
}

// padding makes a job's data as large as in the benchmarks, some 200 bytes.
const padding = "Thank you for your order. It has left our kitchen and is on its way to your table. " +
	"Please do not hesitate to call us if anything is missing."

// worker takes jobs and ends them. Every third one is the operator's and serves all tenants.
type worker struct {
	caller
	name string
}

func (r *jobRound) newWorker(i int) *worker {
	tenant := []string{"", "default", secondTenant}[i%3]
	return &worker{r.newCaller(workerStream+uint64(i), tenant), fmt.Sprintf("worker-%d", i)}
}

func (r *jobRound) work(ctx context.Context, i int) {
	w := r.newWorker(i)
	defer w.http.CloseIdleConnections()
	for r.working.Load() {
		taken := w.lease(ctx, 500*time.Millisecond)
		if r.calm.Load() {
			w.end(ctx, taken)
			continue
		}
		if pause(ctx, w.within(workMax)) != nil {
			return
		}
		w.speak(ctx, taken)
	}
}

// lease takes jobs.
func (w *worker) lease(ctx context.Context, wait time.Duration) []Taking {
	var answer struct {
		Jobs []struct {
			ID, Name, Tenant string
			LeaseToken       string `json:"lease_token"`
			AttemptsMade     int    `json:"attempts_made"`
			Data             map[string]string
		}
	}
	c := w.call(ctx, "lease", http.MethodPost, "/lease", map[string]any{
		"max": 1 + w.random.IntN(jobsTakenMax), "lease_ms": w.r.Lease.Milliseconds(), "wait_ms": wait.Milliseconds(), "worker": w.name,
	}, &answer)
	if !c.Acknowledged() {
		w.r.log.refused(c)
		_ = pause(ctx, retryPause) // who called the round off will be noticed by the next call
		return nil
	}
	ts := make([]Taking, len(answer.Jobs))
	for i, j := range answer.Jobs {
		ts[i] = Taking{
			Job: j.Data["job"], Tenant: w.tenant, ID: j.ID, Token: j.LeaseToken, Worker: w.name, Asked: c.Sent, Got: c.Answered, For: w.r.Lease,
			Attempt: j.AttemptsMade, Intact: j.Name == jobName && j.Data["padding"] == padding && len(j.Data) == 3,
		}
		if w.tenant == "" {
			ts[i].Tenant = j.Tenant
		}
		ts[i].Intact = ts[i].Intact && j.Data["tenant"] == ts[i].Tenant
	}
	w.r.log.taking(ts)
	return ts
}

// speak says something of each job that was taken, as the worker's habits are.
func (w *worker) speak(ctx context.Context, taken []Taking) {
	var together []Taking
	for _, t := range taken {
		if w.hit(extends) {
			w.say(ctx, t, "extend", map[string]any{"lease_ms": w.r.Lease.Milliseconds()}, false)
		}
		if w.hit(progress) {
			w.say(ctx, t, "progress", map[string]any{"progress": 50}, false)
		}
		switch fate := w.random.Float64(); {
		case fate < leaves:
		case fate < leaves+fails:
			w.insist(ctx, t, "fail", map[string]any{"error": "as it was told", "delay_ms": w.within(failDelayMax).Milliseconds()}, false)
		case fate < leaves+fails+gives:
			w.insist(ctx, t, "fail", map[string]any{"error": "as it was told", "retry": false}, true)
		case fate < leaves+fails+gives+single:
			said := w.insist(ctx, t, "complete", map[string]any{"result": map[string]string{"of": t.Job}}, true)
			if said.Acknowledged() && w.hit(twice) {
				w.say(ctx, t, "complete", map[string]any{}, true)
			}
		default:
			together = append(together, t)
		}
	}
	w.end(ctx, together)
}

// say says one thing of one job.
func (w *worker) say(ctx context.Context, t Taking, verb string, body map[string]any, final bool) Word {
	body["lease_token"] = t.Token
	if w.tenant == "" {
		body["tenant"] = t.Tenant
	}
	said := Word{Job: t.Job, Token: t.Token, Final: final}
	said.Call = w.call(ctx, verb, http.MethodPost, "/jobs/"+url.PathEscape(t.ID)+"/"+verb, body, nil)
	w.r.log.word(said)
	return said
}

// insist says it until there is an answer, or the lease may be over.
func (w *worker) insist(ctx context.Context, t Taking, verb string, body map[string]any, final bool) Word {
	for {
		said := w.say(ctx, t, verb, body, final)
		if !said.Unknown() || time.Now().After(t.until()) || pause(ctx, retryPause) != nil {
			return said
		}
	}
}

// end completes jobs together, again and again while there is no answer and their leases hold.
func (w *worker) end(ctx context.Context, taken []Taking) {
	for len(taken) > 0 {
		c := w.complete(ctx, taken)
		if !c.Unknown() || time.Now().After(taken[0].until()) || pause(ctx, retryPause) != nil {
			return
		}
	}
}

// complete completes jobs in one request, of which each is answered for itself.
func (w *worker) complete(ctx context.Context, taken []Taking) Call {
	bodies := make([]map[string]any, len(taken))
	for i, t := range taken {
		bodies[i] = map[string]any{"id": t.ID, "lease_token": t.Token, "result": map[string]string{"of": t.Job}}
		if w.tenant == "" {
			bodies[i]["tenant"] = t.Tenant
		}
	}
	var answer struct {
		Jobs []struct {
			ID, State string
			Error     *struct {
				Status int
				Code   string
			}
		}
	}
	c := w.call(ctx, "complete", http.MethodPost, "/complete", map[string]any{"jobs": bodies}, &answer)
	if c.Acknowledged() && len(answer.Jobs) != len(taken) {
		c.Error = fmt.Sprintf("%d jobs were spoken of, %d are in the answer", len(taken), len(answer.Jobs))
	}
	for i, t := range taken {
		said := Word{Call: c, Job: t.Job, Token: t.Token, Final: true}
		if c.Acknowledged() {
			switch of := answer.Jobs[i]; {
			case of.ID != t.ID:
				said.Error = fmt.Sprintf("of %q, answered of %q", t.ID, of.ID)
			case of.Error != nil:
				said.Status, said.Code = of.Error.Status, of.Error.Code
			case of.State != "completed":
				said.Error = fmt.Sprintf("it is answered %q", of.State)
			}
		}
		w.r.log.word(said)
	}
	return c
}
