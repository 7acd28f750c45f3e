package torture

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A toyqueue is the toybox's queue: jobs in an append-only file, each line a job as it is now. It is right about jobs unless it
// is told to have a bug.
type toyqueue struct {
	bug string

	mu   sync.Mutex // guards what follows
	file *os.File
	jobs map[string]*toyJob // by tenant/id
	free []*toyJob          // perhaps to be leased; what is done is dropped in passing
}

type toyJob struct {
	ID, Tenant, Name string
	Data             json.RawMessage
	Delayed          bool
	Due              time.Time
	Token            string
	Until            time.Time // of the lease
	Attempts         int
	Done             bool
}

// The toyqueue's bugs.
const (
	bugQueueLate   = "queue-late"   // answers an add before it writes
	bugQueueUndone = "queue-undone" // answers a completion before it writes
	bugQueueLeases = "queue-leases" // forgets leases in a crash
	bugQueueDelays = "queue-delays" // forgets delayed jobs in a crash
	bugQueueMixes  = "queue-mixes"  // gives a tenant's job to another
)

func openToyqueue(name, bug string) *toyqueue {
	q := &toyqueue{bug: bug, jobs: map[string]*toyJob{}}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	must(err)
	q.file = file
	in, whole := bufio.NewReader(file), int64(0)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		whole += int64(len(line))
		var js []*toyJob
		must(json.Unmarshal(line, &js))
		for _, j := range js {
			if old := q.jobs[j.Tenant+"/"+j.ID]; old != nil {
				*old = *j
				continue
			}
			q.jobs[j.Tenant+"/"+j.ID] = j
			q.free = append(q.free, j)
		}
	}
	must(file.Truncate(whole))
	for _, j := range q.free {
		if q.bug == bugQueueLeases {
			j.Token, j.Until = "", time.Time{}
		}
		if q.bug == bugQueueDelays && j.Attempts == 0 && j.Delayed {
			j.Done = true
		}
	}
	return q
}

// write appends jobs as they are now, in one line: all or none. The caller holds mu.
func (q *toyqueue) write(js ...*toyJob) {
	line, err := json.Marshal(js)
	must(err)
	_, err = q.file.Write(append(line, '\n'))
	must(err)
}

// late writes them when a kill may have come.
func (q *toyqueue) late(js ...*toyJob) {
	time.AfterFunc(200*time.Millisecond, func() { q.mu.Lock(); defer q.mu.Unlock(); q.write(js...) })
}

func (q *toyqueue) serve(w http.ResponseWriter, r *http.Request, tenant string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/queues/"+tortureQueue)
	switch {
	case r.Method == http.MethodPut:
		say(w, 201, map[string]any{})
	case r.Method == http.MethodGet:
		left := 0
		for _, j := range q.jobs {
			if j.Tenant == tenant && !j.Done {
				left++
			}
		}
		say(w, 200, map[string]any{"counts": map[string]int{"waiting": left}})
	case path == "/jobs":
		q.add(w, r, tenant)
	case path == "/lease":
		q.lease(w, r, tenant)
	case path == "/complete":
		q.complete(w, r, tenant)
	default:
		id, verb, _ := strings.Cut(strings.TrimPrefix(path, "/jobs/"), "/")
		q.word(w, r, tenant, id, verb)
	}
}

type toyNew struct {
	Name string
	Data json.RawMessage
	Opts struct {
		JobID   string `json:"job_id"`
		DelayMS int64  `json:"delay_ms"`
	}
}

func (q *toyqueue) add(w http.ResponseWriter, r *http.Request, tenant string) {
	var in struct {
		toyNew
		Jobs []toyNew
	}
	must(json.NewDecoder(r.Body).Decode(&in))
	bulk := in.Jobs != nil
	if !bulk {
		in.Jobs = []toyNew{in.toyNew}
	}
	var made, fresh []*toyJob
	for _, n := range in.Jobs {
		id := cmp.Or(n.Opts.JobID, fmt.Sprintf("job_%x", rand.Uint64()))
		j := q.jobs[tenant+"/"+id]
		if j == nil {
			j = &toyJob{ID: id, Tenant: tenant, Name: n.Name, Data: n.Data, Delayed: n.Opts.DelayMS > 0, Due: time.Now().Add(time.Duration(n.Opts.DelayMS) * time.Millisecond)}
			q.jobs[tenant+"/"+id] = j
			q.free = append(q.free, j)
			fresh = append(fresh, j)
		}
		made = append(made, j)
	}
	if q.bug == bugQueueLate {
		q.late(fresh...)
	} else {
		q.write(fresh...)
	}
	if bulk {
		say(w, 201, map[string]any{"jobs": made})
		return
	}
	say(w, 201, made[0])
}

func (q *toyqueue) lease(w http.ResponseWriter, r *http.Request, tenant string) {
	var in struct {
		Max     int
		LeaseMS int64 `json:"lease_ms"`
	}
	must(json.NewDecoder(r.Body).Decode(&in))
	now := time.Now()
	type view struct {
		ID           string          `json:"id"`
		Name         string          `json:"name"`
		Tenant       string          `json:"tenant"`
		Data         json.RawMessage `json:"data"`
		LeaseToken   string          `json:"lease_token"`
		AttemptsMade int             `json:"attempts_made"`
	}
	out, changed := []view{}, []*toyJob{}
	rest := q.free[:0]
	for _, j := range q.free {
		if j.Done {
			continue
		}
		rest = append(rest, j)
		switch {
		case len(out) == in.Max,
			tenant != "" && tenant != j.Tenant && (q.bug != bugQueueMixes || len(out)%2 == 0),
			j.Due.After(now), j.Until.After(now):
			continue
		}
		j.Attempts++
		j.Token, j.Until = fmt.Sprintf("%x", rand.Uint64()), now.Add(time.Duration(in.LeaseMS)*time.Millisecond)
		out = append(out, view{j.ID, j.Name, j.Tenant, j.Data, j.Token, j.Attempts})
		changed = append(changed, j)
	}
	clear(q.free[len(rest):])
	q.free = rest
	if len(changed) > 0 {
		q.write(changed...)
	}
	say(w, 200, map[string]any{"jobs": out})
}

type toyWord struct {
	ID         string
	LeaseToken string `json:"lease_token"`
	Tenant     string
	Retry      *bool
	DelayMS    int64 `json:"delay_ms"`
	LeaseMS    int64 `json:"lease_ms"`
}

// held finds a job under its present token.
func (q *toyqueue) held(tenant string, in toyWord) *toyJob {
	if j := q.jobs[cmp.Or(tenant, in.Tenant)+"/"+in.ID]; j != nil && !j.Done && j.Token != "" && j.Token == in.LeaseToken {
		return j
	}
	return nil
}

func (q *toyqueue) complete(w http.ResponseWriter, r *http.Request, tenant string) {
	var in struct{ Jobs []toyWord }
	must(json.NewDecoder(r.Body).Decode(&in))
	var out []map[string]any
	var changed []*toyJob
	for _, word := range in.Jobs {
		j := q.held(tenant, word)
		if j == nil {
			out = append(out, map[string]any{"id": word.ID, "error": map[string]any{"status": 409, "code": "lease_stale"}})
			continue
		}
		changed = append(changed, q.end(j))
		out = append(out, map[string]any{"id": word.ID, "state": "completed"})
	}
	q.ended(changed...)
	say(w, 200, map[string]any{"jobs": out})
}

// end marks a job as done and returns what is to be written.
func (q *toyqueue) end(j *toyJob) *toyJob {
	j.Done, j.Token = true, ""
	return j
}

func (q *toyqueue) ended(js ...*toyJob) {
	if q.bug == bugQueueUndone {
		q.late(js...)
		return
	}
	q.write(js...)
}

func (q *toyqueue) word(w http.ResponseWriter, r *http.Request, tenant, id, verb string) {
	in := toyWord{}
	must(json.NewDecoder(r.Body).Decode(&in))
	in.ID = id
	j := q.held(tenant, in)
	if j == nil {
		say(w, 409, map[string]any{"code": "lease_stale"})
		return
	}
	switch {
	case verb == "complete", verb == "fail" && in.Retry != nil && !*in.Retry:
		q.ended(q.end(j))
	case verb == "fail":
		j.Token, j.Until, j.Due = "", time.Time{}, time.Now().Add(time.Duration(in.DelayMS)*time.Millisecond)
		q.write(j)
	case verb == "extend":
		j.Until = time.Now().Add(time.Duration(in.LeaseMS) * time.Millisecond)
		q.write(j)
	}
	say(w, 200, map[string]any{})
}

// TestTortureCatchesABrokenQueue plays short rounds with the toyqueue: without a bug nothing is found, with each of its bugs the
// round says so by name.
func TestTortureCatchesABrokenQueue(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for bug, rules := range map[string][]Rule{
		bugNone:        nil, // nothing is to be found
		bugQueueLate:   {JobLost},
		bugQueueUndone: {JobRepeated},
		bugQueueLeases: {JobShared, JobDisowned}, // as it comes: the job is given away, or its worker speaks first
		bugQueueDelays: {JobLost},
		bugQueueMixes:  {JobForeign},
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			binary := filepath.Join(t.TempDir(), toyPrefix+bug)
			if err := os.Symlink(self, binary); err != nil {
				t.Fatal(err)
			}
			o := JobOptions{Binary: binary, Dir: t.TempDir(), Seed: 7, Chaos: toyChaos, Flight: 5000, Producers: 2, Workers: 3, Lease: time.Second}
			if bug == bugQueueLeases {
				o.Lease = leaseDefault // it has to outlive the time in which the toy is dead, also on a slow machine
			}
			result, err := RunJobs(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if rules != nil {
				if !slices.ContainsFunc(result.Findings, func(f Finding) bool { return slices.Contains(rules, f.Rule) }) {
					t.Errorf("not caught as one of %q; findings: %v\n%s", rules, result.Findings[:min(len(result.Findings), 10)], result.Tally)
				}
				return
			}
			for _, f := range result.Findings {
				t.Error(f)
			}
			for _, what := range result.Tally.Idle() {
				t.Errorf("no %s in the whole round:\n%s", what, result.Tally)
			}
			awakeToJobs(t, result.Evidence)
		})
	}
}
