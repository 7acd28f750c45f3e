package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// jobServer is a test server with a real engine behind it.
type jobServer struct {
	*testServer
	engine *jobs.Engine
}

// newJobServer has the queues that ship with the box, as far as they differ in kind.
func newJobServer(t testing.TB, edit func(*Options)) *jobServer {
	t.Helper()
	st := storetest.Open(t, store.Options{})
	engine, err := jobs.Open(st, jobs.Options{Queues: []jobs.QueueConfig{{Name: "email"}, {Name: "data-processing", Attempts: 5,
		Backoff: jobs.Backoff{Type: jobs.Exponential, Delay: 5 * time.Second}}, {Name: "payments", ReadOnly: true}, {Name: "events", Internal: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	ts := newTestServer(t, func(o *Options) {
		o.Jobs = engine
		if edit != nil {
			edit(o)
		}
	})
	return &jobServer{ts, engine}
}

const queuesAt = "/api/v1/queues/"

// add adds a job that must be taken, and returns its id.
func (js *jobServer) add(key, queue, body string) string {
	js.t.Helper()
	return js.ask("POST "+queuesAt+queue+"/jobs", body, "key", key).is(201, "").json["id"].(string)
}

// lease leases without waiting, and returns the jobs.
func (js *jobServer) lease(key, queue, body string) []map[string]any {
	js.t.Helper()
	return objects(js.ask("POST "+queuesAt+queue+"/lease", body, "key", key).is(200, "").json["jobs"])
}

func objects(list any) (out []map[string]any) {
	all, _ := list.([]any)
	for _, one := range all {
		out = append(out, one.(map[string]any))
	}
	return out
}

// showing is a body that shows a leased job's token, with more members.
func showing(leased map[string]any, more string) string {
	return fmt.Sprintf(`{"lease_token":%q%s}`, leased["lease_token"], more)
}

func TestJobLife(t *testing.T) {
	js := newJobServer(t, nil)
	const data = `{ "to" : "a@b.example",  "n": 1.0e+2, "s": "\u00e9\/é", "deep": [ [ ] , null ] }`
	a := js.ask("POST "+queuesAt+"email/jobs", `{"name":"receipt","data": `+data+` ,"opts":{"priority":7,"attempts":4,"backoff":{"type":"fixed","delay_ms":10,"jitter":0.5},
		"job_id":"order:17@x","remove_on_complete":{"count":3,"age_s":60},"remove_on_fail":false,"timeout_ms":1500}}`, "key", js.shop).is(201, "")
	if got := a.header.Get("Location"); got != queuesAt+"email/jobs/order:17@x" {
		t.Errorf("Location: %q", got)
	}
	if !strings.Contains(a.body, `"data":`+data+`,"opts":{"priority":7,"attempts":4,"backoff":{"type":"fixed","delay_ms":10,"jitter":0.5,"max_ms":3600000},`+
		`"remove_on_complete":{"count":3,"age_s":60},"remove_on_fail":false,"timeout_ms":1500},"state":"waiting","attempts_made":0`) {
		t.Errorf("added: %s", a.body)
	}
	if strings.Contains(a.body, "lease_token") || strings.Contains(a.body, `"tenant"`) {
		t.Errorf("tells too much: %s", a.body)
	}
	for _, path := range []string{a.header.Get("Location"), queuesAt + "email/jobs/order%3A17%40x"} {
		if b := js.ask("GET "+path, "", "key", js.shop).is(200, ""); b.body != a.body {
			t.Errorf("%s: read back %s\nwas %s", path, b.body, a.body)
		}
	}
	again := js.ask("POST "+queuesAt+"email/jobs", `{"name":"other","opts":{"job_id":"order:17@x"}}`, "key", js.shop).is(201, "")
	if again.body != a.body {
		t.Errorf("the second add of an id answers %s", again.body)
	}

	leased := js.lease(js.shop, "email", `{"max":5,"lease_ms":60000,"worker":"w-1"}`)
	if len(leased) != 1 || leased[0]["id"] != "order:17@x" || leased[0]["state"] != "active" || leased[0]["worker"] != "w-1" || leased[0]["attempts_made"] != 1.0 {
		t.Fatalf("leased: %v", leased)
	}
	job := queuesAt + "email/jobs/order:17@x"
	js.ask("POST "+job+"/progress", showing(leased[0], `,"progress": [ 1, 2 ]`), "key", js.shop).is(200, "")
	js.ask("POST "+job+"/log", showing(leased[0], `,"text":"half way"`), "key", js.shop).is(204, "")
	extended := js.ask("POST "+job+"/extend", showing(leased[0], `,"lease_ms":120000`), "key", js.shop).is(200, "")
	if extended.json["leased_until"].(string) <= leased[0]["leased_until"].(string) {
		t.Errorf("extended from %v to %v", leased[0]["leased_until"], extended.json["leased_until"])
	}
	now := js.ask("GET "+job, "", "key", js.shop).is(200, "")
	if !strings.Contains(now.body, `"progress":[ 1, 2 ]`) || strings.Contains(now.body, "lease_token") {
		t.Errorf("active: %s", now.body)
	}
	js.ask("DELETE "+job, "", "key", js.shop).is(409, "job_state")
	done := js.ask("POST "+job+"/complete", showing(leased[0], `,"result":{"sent": true}`), "key", js.shop).is(200, "")
	if done.json["state"] != "completed" || !strings.Contains(done.body, `"result":{"sent": true}`) || done.json["finished_at"] == nil {
		t.Errorf("completed: %s", done.body)
	}
	js.ask("POST "+job+"/complete", showing(leased[0], ""), "key", js.shop).is(409, "lease_stale")
	if history := objects(done.json["history"]); len(history) != 1 || history[0]["worker"] != "w-1" || history[0]["error"] != nil {
		t.Errorf("history: %v", history)
	}
	logs := js.ask("GET "+job+"/logs", "", "key", js.shop).is(200, "")
	if lines := objects(logs.json["data"]); len(lines) != 1 || lines[0]["text"] != "half way" {
		t.Errorf("logs: %s", logs.body)
	}
	js.ask("DELETE "+job, "", "key", js.shop).is(204, "")
	js.ask("GET "+job, "", "key", js.shop).is(404, "not_found")
}

func TestFailingJob(t *testing.T) {
	js := newJobServer(t, nil)
	id := js.add(js.shop, "email", `{"name":"n","opts":{"attempts":2,"backoff":{"delay_ms":3600000}}}`)
	job := queuesAt + "email/jobs/" + id
	leased := js.lease(js.shop, "email", `{}`)
	failed := js.ask("POST "+job+"/fail", showing(leased[0], `,"error":"no route"`), "key", js.shop).is(200, "")
	if failed.json["state"] != "delayed" || failed.json["error"] != "no route" {
		t.Errorf("after the first attempt: %s", failed.body)
	}
	js.ask("POST "+job+"/retry", "", "key", js.shop).is(409, "job_state")
	if a := js.ask("POST "+job+"/promote", "", "key", js.shop).is(200, ""); a.json["state"] != "waiting" {
		t.Errorf("promoted: %s", a.body)
	}
	js.ask("POST "+job+"/promote", "", "key", js.shop).is(409, "job_state")
	leased = js.lease(js.shop, "email", `{}`)
	failed = js.ask("POST "+job+"/fail", showing(leased[0], ""), "key", js.shop).is(200, "")
	if failed.json["state"] != "failed" || failed.json["error"] == nil || len(objects(failed.json["history"])) != 2 {
		t.Errorf("after the last attempt: %s", failed.body)
	}
	if a := js.ask("POST "+job+"/retry", "", "key", js.shop).is(200, ""); a.json["state"] != "waiting" || a.json["attempts_made"] != 0.0 {
		t.Errorf("retried: %s", a.body)
	}
	leased = js.lease(js.shop, "email", `{}`)
	if a := js.ask("POST "+job+"/fail", showing(leased[0], `,"error":"never","retry":false`), "key", js.shop).is(200, ""); a.json["state"] != "failed" {
		t.Errorf("given up: %s", a.body)
	}
	if a := js.ask("POST "+queuesAt+"email/retry-failed", "", "key", js.shop).is(200, ""); a.json["count"] != 1.0 {
		t.Errorf("retry-failed: %s", a.body)
	}
	leased = js.lease(js.shop, "email", `{}`)
	if a := js.ask("POST "+job+"/fail", showing(leased[0], `,"error":"later","delay_ms":0`), "key", js.shop).is(200, ""); a.json["state"] == "failed" {
		t.Errorf("a delay of its own: %s", a.body)
	}
}

func TestBulk(t *testing.T) {
	js := newJobServer(t, nil)
	a := js.ask("POST "+queuesAt+"email/jobs", `{"jobs":[{"name":"a","data":1},{"name":"b","opts":{"delay_ms":3600000}},{"name":"c","opts":{"priority":0}}]}`, "key", js.shop).is(201, "")
	made := objects(a.json["jobs"])
	if len(made) != 3 || made[0]["name"] != "a" || made[1]["state"] != "delayed" || made[2]["data"] != nil {
		t.Errorf("made: %s", a.body)
	}
	js.ask("POST "+queuesAt+"email/jobs", `{"jobs":[{"name":"a"},{"name":"b","opts":{"delay_ms":-1}}]}`, "key", js.shop).is(422, "member_invalid")
	if got := js.ask("GET "+queuesAt+"email", "", "key", js.shop).is(200, "").json["counts"].(map[string]any); got["waiting"] != 2.0 || got["delayed"] != 1.0 {
		t.Errorf("counts after a refused bulk: %v", got)
	}

	// As many as there may be, in an answer of several pieces.
	var b strings.Builder
	b.WriteString(`{"jobs":[`)
	for i := range jobsMax {
		fmt.Fprintf(&b, `{"name":"n","data":%d},`, i)
	}
	full := strings.TrimSuffix(b.String(), ",")
	all := objects(js.ask("POST "+queuesAt+"email/jobs", full+"]}", "key", js.shop).is(201, "").json["jobs"])
	if len(all) != jobsMax || all[jobsMax-1]["data"] != float64(jobsMax-1) {
		t.Errorf("%d jobs came back", len(all))
	}
	over := js.ask("POST "+queuesAt+"email/jobs", full+`,{"name":"n"}]}`, "key", js.shop).is(422, "member_invalid")
	if over.json["field"] != "jobs" {
		t.Errorf("one too many: %s", over.body)
	}
}

func TestJobLists(t *testing.T) {
	js := newJobServer(t, nil)
	var ids []string
	for i := range 5 {
		ids = append(ids, js.add(js.shop, "email", fmt.Sprintf(`{"name":"n%d"}`, i)))
		js.add(js.bar, "email", `{"name":"bar's"}`)
	}
	var got []string
	cursor := ""
	for pages := 0; ; pages++ {
		a := js.ask("GET "+queuesAt+"email/jobs?state=waiting&limit=2"+cursor, "", "key", js.shop).is(200, "")
		for _, j := range objects(a.json["data"]) {
			got = append(got, j["id"].(string))
		}
		if a.json["has_more"] != true {
			if a.json["next_cursor"] != nil || pages != 2 {
				t.Errorf("page %d: %s", pages, a.body)
			}
			break
		}
		cursor = "&cursor=" + a.json["next_cursor"].(string)
	}
	slices.Reverse(ids)
	if !slices.Equal(got, ids) {
		t.Errorf("listed %v, want %v", got, ids)
	}
	js.ask("GET "+queuesAt+"email/jobs?limit=2"+cursor, "", "key", js.shop).is(200, "") // waiting is the default
	js.ask("GET "+queuesAt+"email/jobs?state=delayed"+cursor, "", "key", js.shop).is(400, "cursor_invalid")
	js.ask("GET "+queuesAt+"data-processing/jobs?"+cursor[1:], "", "key", js.shop).is(400, "cursor_invalid")
	js.ask("GET "+queuesAt+"email/jobs?"+cursor[1:], "", "key", js.bar).is(400, "cursor_invalid")
	for _, state := range []string{"active", "completed", "failed", "delayed"} {
		if a := js.ask("GET "+queuesAt+"email/jobs?state="+state, "", "key", js.shop).is(200, ""); a.body != `{"data":[],"has_more":false,"next_cursor":null}` {
			t.Errorf("%s: %s", state, a.body)
		}
	}
	js.lease(js.shop, "email", `{"max":2}`)
	if a := js.ask("GET "+queuesAt+"email/jobs?state=active", "", "key", js.shop).is(200, ""); len(objects(a.json["data"])) != 2 {
		t.Errorf("active: %s", a.body)
	}
}

// What is sent of a job is what the description says, member for member.
func TestJobViewIsWhatIsSent(t *testing.T) {
	at := time.UnixMilli(1795420800123).UTC()
	bare := jobs.Job{NewJob: jobs.NewJob{Queue: "q", ID: "i", Attempts: -1, Timeout: -1, RemoveOnComplete: jobs.Retention{Remove: true},
		RemoveOnFail: jobs.Retention{Count: -1}, Backoff: jobs.Backoff{Type: jobs.Fixed}}, State: jobs.Waiting, CreatedAt: at, RunAt: at}
	whole := jobs.Job{NewJob: jobs.NewJob{Queue: "q", Tenant: "shop", ID: "i", Name: "<n>\u2028", Data: []byte(`{"a":1}`), Priority: 3, Attempts: 4, Timeout: time.Second,
		Backoff:          jobs.Backoff{Type: jobs.Exponential, Delay: time.Second, Jitter: 0.25, Max: time.Minute},
		RemoveOnComplete: jobs.Retention{Count: 7, Age: time.Hour}, RemoveOnFail: jobs.Retention{Count: -1, Age: time.Hour}},
		State: jobs.Active, AttemptsMade: 2, CreatedAt: at, RunAt: at, FinishedAt: at, LastError: "e", Result: []byte("null"), Progress: []byte("[1]"),
		LeaseToken: "t", LeasedUntil: at, Worker: "w", History: []jobs.Attempt{{N: 1, StartedAt: at, EndedAt: at, Worker: "w", Error: "e"}, {N: 2, StartedAt: at}}}
	for _, j := range []jobs.Job{bare, whole} {
		var sent jobView
		text := appendJob(nil, &j, true, true)
		if err := decodeObject(text, &sent); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		want := membersOf(reflect.TypeFor[jobView]())
		var got map[string]any
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		for _, member := range want {
			if _, ok := got[member]; !ok {
				t.Errorf("%s is described and not sent: %s", member, text)
			}
		}
		if sent.ID != j.ID || sent.Name != j.Name || *sent.Tenant != j.Tenant || sent.LeaseToken != j.LeaseToken || sent.State != j.State || len(sent.History) != len(j.History) ||
			sent.Opts.RemoveOnComplete.Retention != j.RemoveOnComplete || sent.Opts.RemoveOnFail.Retention != j.RemoveOnFail || (sent.Opts.Attempts == nil) != (j.Attempts < 0) ||
			sent.Opts.Backoff.Jitter != j.Backoff.Jitter || !sent.RunAt.Equal(j.RunAt) {
			t.Errorf("%+v was sent as %s", j, text)
		}
	}
}

func membersOf(t reflect.Type) (names []string) {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// failingEngine fails as an engine on a failing disk does.
type failingEngine struct {
	JobEngine
	err error
}

func (e *failingEngine) Enqueue(context.Context, ...jobs.NewJob) ([]jobs.Job, error) {
	return nil, e.err
}
func (e *failingEngine) Lease(context.Context, jobs.LeaseRequest) ([]jobs.Job, error) {
	return nil, e.err
}
func (e *failingEngine) Pause(context.Context, string, string) error { return e.err }

// What the engine refuses has one status for each kind, on every route (INV-14).
func TestEngineRefusals(t *testing.T) {
	failing := &failingEngine{}
	js := newJobServer(t, func(o *Options) {
		failing.JobEngine = o.Jobs
		o.Jobs = failing
	})
	for _, c := range []struct {
		err    error
		status int
		code   string
		retry  bool
	}{
		{store.ErrFull, 507, "disk_full", false}, {store.ErrOverloaded, 503, "overloaded", true}, {store.ErrUnknown, 503, "outcome_unknown", true},
		{store.ErrUnavailable, 503, "unavailable", true}, {store.ErrClosed, 503, "unavailable", true}, {jobs.ErrClosed, 503, "unavailable", true},
		{jobs.ErrDamaged, 410, "job_damaged", false}, {&jobs.InvalidError{Field: "opts.x", Message: "m"}, 422, "member_invalid", false},
		{&jobs.JobError{Index: 7, Err: &jobs.InvalidError{Field: "opts.x", Message: "m"}}, 422, "member_invalid", false},
	} {
		failing.err = fmt.Errorf("operation: %w", c.err)
		for line, body := range map[string]string{"POST " + queuesAt + "email/jobs": `{"name":"n"}`, "POST " + queuesAt + "email/lease": `{"wait_ms":1000}`, "POST " + queuesAt + "email/pause": ""} {
			a := js.ask(line, body, "key", js.shop).is(c.status, c.code)
			if (a.header.Get("Retry-After") != "") != c.retry {
				t.Errorf("%s: %v: Retry-After is %q", line, c.err, a.header.Get("Retry-After"))
			}
		}
	}
	failing.err = &jobs.JobError{Index: 7, Err: &jobs.InvalidError{Field: "opts.x", Message: "m"}}
	if a := js.ask("POST "+queuesAt+"email/jobs", `{"name":"n"}`, "key", js.shop).is(422, ""); a.json["field"] != "jobs[7].opts.x" {
		t.Errorf("names %v", a.json["field"])
	}
	if log := js.log.String(); log != "" {
		t.Errorf("foreseen refusals were logged:\n%s", log)
	}
	failing.err = errors.New("the secret cause")
	if a := js.ask("POST "+queuesAt+"email/jobs", `{"name":"n"}`, "key", js.shop).is(500, "internal"); strings.Contains(a.body, "secret") {
		t.Errorf("the cause belongs to the log alone: %s", a.body)
	}
}

// The box's own jobs, which are no tenant's, are done by the box: nobody leases them, and no tenant sees them.
func TestJobsOfNoTenant(t *testing.T) {
	js := newJobServer(t, nil)
	if _, err := js.engine.Enqueue(t.Context(), jobs.NewJob{Queue: "email", ID: "own", Name: "canary", Data: []byte("not JSON")}); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{js.shop, operatorToken} {
		if got := js.lease(who, "email", `{"max":10}`); len(got) != 0 {
			t.Errorf("leased %v", got)
		}
	}
	js.ask("GET "+queuesAt+"email/jobs/own", "", "key", js.shop).is(404, "not_found")
	js.ask("POST "+queuesAt+"email/jobs/own/complete", `{"lease_token":"x"}`, "key", js.shop).is(404, "not_found")
}
