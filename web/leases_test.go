package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/jobs"
)

// waiting tells when leases wait: the engine is asked with a Wait.
type waitingEngine struct {
	JobEngine
	entered chan struct{}
}

func (e *waitingEngine) Lease(ctx context.Context, r jobs.LeaseRequest) ([]jobs.Job, error) {
	if r.Wait > 0 {
		e.entered <- struct{}{}
	}
	return e.JobEngine.Lease(ctx, r)
}

// newWaitingServer's engine says when a lease waits.
func newWaitingServer(t testing.TB) (*jobServer, *waitingEngine) {
	w := &waitingEngine{entered: make(chan struct{}, waitersMax)}
	js := newJobServer(t, func(o *Options) {
		w.JobEngine = o.Jobs
		o.Jobs = w
	})
	return js, w
}

const longPoll = `{"max":10,"wait_ms":60000,"worker":"w"}`

// A lease that waits holds no place of those that are worked on, and gets the job that comes.
func TestLeaseWaits(t *testing.T) {
	js, w := newWaitingServer(t)
	got := make(chan answer, 1)
	go func() { got <- js.ask("POST "+queuesAt+"email/lease", longPoll, "key", js.shop) }()
	<-w.entered
	if in, waiting := js.admission.inFlight.Load(), js.admission.waiting.Load(); in != 0 || waiting != 1 {
		t.Errorf("%d in flight, %d waiting", in, waiting)
	}
	js.add(js.bar, "email", `{"name":"bar's"}`) // not this worker's
	id := js.add(js.shop, "email", `{"name":"n"}`)
	if all := objects((<-got).is(200, "").json["jobs"]); len(all) != 1 || all[0]["id"] != id {
		t.Errorf("leased %v", all)
	}
	if in, waiting := js.admission.inFlight.Load(), js.admission.waiting.Load(); in != 0 || waiting != 0 {
		t.Errorf("%d in flight, %d waiting at the end", in, waiting)
	}
}

func TestLeaseWaitEndsWhenTheServerLeaves(t *testing.T) {
	js, w := newWaitingServer(t)
	got := make(chan answer, 1)
	go func() { got <- js.ask("POST "+queuesAt+"email/lease", longPoll, "key", js.shop) }()
	<-w.entered
	js.Leave()
	if a := (<-got).is(200, ""); a.body != `{"jobs":[]}` {
		t.Errorf("answered %s", a.body)
	}
	if a := js.ask("POST "+queuesAt+"email/lease", longPoll, "key", js.shop).is(200, ""); a.body != `{"jobs":[]}` {
		t.Errorf("after leaving: %s", a.body)
	}
}

// A worker that hangs up leaves nothing behind: no place, and no job that is leased to nobody.
func TestLeaseWaitEndsWithItsConnection(t *testing.T) {
	js, w := newWaitingServer(t)
	ended := make(chan struct{})
	address := js.start(func(s *http.Server) {
		inner := s.Handler
		s.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			inner.ServeHTTP(rw, r)
			if strings.HasSuffix(r.URL.Path, "/lease") {
				ended <- struct{}{}
			}
		})
	})
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "POST", "http://"+address+queuesAt+"email/lease", strings.NewReader(longPoll))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Authorization": {"Bearer " + js.shop}, "Content-Type": {"application/json"}}
	go func() {
		if a, err := http.DefaultClient.Do(r); err == nil {
			a.Body.Close()
		}
	}()
	<-w.entered
	hangUp()
	<-ended
	if waiting := js.admission.waiting.Load(); waiting != 0 {
		t.Errorf("%d still wait", waiting)
	}
	js.add(js.shop, "email", `{"name":"n"}`)
	if got := js.lease(js.shop, "email", `{}`); len(got) != 1 {
		t.Errorf("%d jobs for the next worker", len(got))
	}
}

// A tenant's workers that wait are bounded, and others' still have room.
func TestLeaseWaitersHaveALimit(t *testing.T) {
	js, w := newWaitingServer(t)
	var group sync.WaitGroup
	for range tenantPollingMax {
		group.Go(func() { js.ask("POST "+queuesAt+"email/lease", longPoll, "key", js.shop).is(200, "") })
	}
	for range tenantPollingMax {
		<-w.entered
	}
	if a := js.ask("POST "+queuesAt+"email/lease", longPoll, "key", js.shop).is(429, "rate_limited"); a.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	js.ask("POST "+queuesAt+"email/lease", `{}`, "key", js.shop).is(200, "") // who does not wait is served
	group.Go(func() { js.ask("POST "+queuesAt+"email/lease", longPoll, "key", js.bar).is(200, "") })
	<-w.entered
	js.Leave()
	group.Wait()
	if in, waiting := js.admission.inFlight.Load(), js.admission.waiting.Load(); in != 0 || waiting != 0 {
		t.Errorf("%d in flight, %d waiting at the end", in, waiting)
	}
}

// A worker with the operator's token takes from all tenants in turn, and says of each job whose it is.
func TestLeaseFromAllTenants(t *testing.T) {
	js := newJobServer(t, nil)
	for i := range 3 {
		js.add(js.shop, "email", fmt.Sprintf(`{"name":"shop-%d"}`, i))
	}
	js.add(js.bar, "email", `{"name":"bar"}`)
	var tenants []string
	var leased []map[string]any
	for range 4 {
		got := js.lease(operatorToken, "email", `{}`)
		if len(got) != 1 {
			t.Fatalf("leased %v", got)
		}
		leased = append(leased, got[0])
		tenants = append(tenants, got[0]["tenant"].(string))
	}
	if strings.Join(tenants[:2], " ") != "shop bar" && strings.Join(tenants[:2], " ") != "bar shop" {
		t.Errorf("turns: %v", tenants)
	}
	path := func(j map[string]any) string { return queuesAt + "email/jobs/" + j["id"].(string) }
	whose := func(j map[string]any) string { return fmt.Sprintf(`,"tenant":%q`, j["tenant"]) }
	js.ask("POST "+path(leased[0])+"/complete", showing(leased[0], ""), "key", operatorToken).is(400, "tenant_missing")
	js.ask("POST "+path(leased[0])+"/complete", showing(leased[0], whose(leased[0])), "key", operatorToken).is(200, "")
	js.ask("POST "+path(leased[1])+"/extend", showing(leased[1], `,"lease_ms":5000`), "key", operatorToken, "X-Tenant-ID", tenants[1]).is(200, "")
	js.ask("POST "+path(leased[1])+"/fail", showing(leased[1], `,"error":"e"`+whose(leased[1])), "key", operatorToken).is(200, "")
	a := js.ask("POST "+queuesAt+"email/complete", fmt.Sprintf(`{"jobs":[{"id":%q,"lease_token":%q,"tenant":%q},{"id":%q,"lease_token":%q,"tenant":%q}]}`,
		leased[2]["id"], leased[2]["lease_token"], leased[2]["tenant"], leased[3]["id"], leased[3]["lease_token"], leased[3]["tenant"]), "key", operatorToken).is(200, "")
	for _, one := range objects(a.json["jobs"]) {
		if one["state"] != "completed" {
			t.Errorf("completed: %s", a.body)
		}
	}
	token := showing(leased[1], "")
	for member, code := range map[string]string{`"nobody"`: "tenant_unknown", `"../b"`: "tenant_invalid", `"SHOP"`: "tenant_invalid"} {
		status := map[string]int{"tenant_unknown": 404, "tenant_invalid": 400}[code]
		js.ask("POST "+path(leased[1])+"/complete", strings.TrimSuffix(token, "}")+`,"tenant":`+member+"}", "key", operatorToken).is(status, code)
	}
	js.ask("POST "+path(leased[1])+"/complete", strings.TrimSuffix(token, "}")+`,"tenant":"bar"}`, "key", js.shop).is(403, "tenant_mismatch")
	js.ask("POST "+path(leased[1])+"/complete", strings.TrimSuffix(token, "}")+`,"tenant":"bar"}`, "key", operatorToken, "X-Tenant-ID", "shop").is(403, "tenant_mismatch")
}

func TestLeaseByName(t *testing.T) {
	js := newJobServer(t, nil)
	js.add(js.shop, "email", `{"name":"a"}`)
	js.add(js.shop, "email", `{"name":"b"}`)
	if got := js.lease(js.shop, "email", `{"max":10,"names":["b","c"]}`); len(got) != 1 || got[0]["name"] != "b" {
		t.Errorf("leased %v", got)
	}
}

// One of many whose lease is over does not keep the others from being completed.
func TestCompleteMany(t *testing.T) {
	js := newJobServer(t, nil)
	var members []string
	for range 3 {
		js.add(js.shop, "email", `{"name":"n"}`)
	}
	for _, j := range js.lease(js.shop, "email", `{"max":10}`) {
		members = append(members, fmt.Sprintf(`{"id":%q,"lease_token":%q,"result":{"n": 1}}`, j["id"], j["lease_token"]))
	}
	members[1] = strings.Replace(members[1], `"lease_token":"`, `"lease_token":"x`, 1)
	members = append(members, `{"id":"nothing","lease_token":"t"}`)
	a := js.ask("POST "+queuesAt+"email/complete", `{"jobs":[`+strings.Join(members, ",")+`]}`, "key", js.shop).is(200, "")
	all := objects(a.json["jobs"])
	if len(all) != 4 || all[0]["state"] != "completed" || all[2]["state"] != "completed" || all[1]["state"] != nil || all[3]["state"] != nil {
		t.Fatalf("answered %s", a.body)
	}
	if code := all[1]["error"].(map[string]any)["code"]; code != "lease_stale" {
		t.Errorf("a stale one: %s", a.body)
	}
	if code := all[3]["error"].(map[string]any)["code"]; code != "not_found" && code != "lease_stale" {
		t.Errorf("an unknown one: %s", a.body)
	}
	if got := js.ask("GET "+queuesAt+"email/jobs/"+all[0]["id"].(string), "", "key", js.shop).is(200, ""); !strings.Contains(got.body, `"result":{"n": 1}`) {
		t.Errorf("completed: %s", got.body)
	}
}

// stream opens a stream and returns what it tells, event by event; nil at its end.
func (js *jobServer) stream(ctx context.Context, address, key, queue string) (next func() map[string]any, status int) {
	js.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+address+queuesAt+queue+"/stream", nil)
	if err != nil {
		js.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		js.t.Fatal(err)
	}
	js.t.Cleanup(func() { a.Body.Close() })
	lines := bufio.NewScanner(a.Body)
	return func() map[string]any {
		event := map[string]any{}
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch {
			case name == "event":
				event["event"] = value
			case name == "data":
				if err := json.Unmarshal([]byte(value), &event); err != nil {
					js.t.Errorf("%q: %v", value, err)
				}
			case name == "" && event["event"] != nil:
				return event
			}
		}
		return nil
	}, a.StatusCode
}

// The moves of a tenant's jobs are told live, another's are not, and the stream ends when the server leaves.
func TestStream(t *testing.T) {
	js := newJobServer(t, nil)
	address := js.start(nil)
	next, status := js.stream(t.Context(), address, js.shop, "email")
	if status != 200 {
		t.Fatal(status)
	}
	js.add(js.bar, "email", `{"name":"canary"}`)
	id := js.add(js.shop, "email", `{"name":"n"}`)
	leased := js.lease(js.shop, "email", `{}`)
	js.ask("POST "+queuesAt+"email/jobs/"+id+"/progress", showing(leased[0], ",\"progress\":{\"a\":\n\n1}"), "key", js.shop).is(200, "")
	js.ask("POST "+queuesAt+"email/jobs/"+id+"/complete", showing(leased[0], ""), "key", js.shop).is(200, "")
	for _, want := range []string{"waiting", "active", "progress", "completed"} {
		e := next()
		if e == nil || e["event"] != "job" || e["id"] != id || e["name"] != "n" || e["queue"] != "email" {
			t.Fatalf("%s: got %v", want, e)
		}
		if want == "progress" {
			if fmt.Sprint(e["progress"]) != "map[a:1]" {
				t.Errorf("progress: %v", e)
			}
		} else if e["state"] != want {
			t.Errorf("got %v, want %s", e, want)
		}
	}
	if in, streams := js.admission.inFlight.Load(), js.admission.streams.Load(); in != 0 || streams != 1 {
		t.Errorf("%d in flight, %d streams", in, streams)
	}
	all, _ := js.stream(t.Context(), address, operatorToken, "email")
	js.add(js.bar, "email", `{"name":"bar's"}`)
	js.add(js.shop, "email", `{"name":"shop's"}`)
	for _, want := range []string{"bar", "shop"} {
		if e := all(); e == nil || e["tenant"] != want || e["name"] != want+"'s" {
			t.Errorf("the operator hears %v", e)
		}
	}
	if e := next(); e == nil || e["tenant"] != nil || e["name"] != "shop's" {
		t.Errorf("the tenant hears %v", e)
	}
	js.Leave()
	if e := next(); e != nil {
		t.Errorf("after leaving: %v", e)
	}
}

func TestStreamsHaveALimit(t *testing.T) {
	js := newJobServer(t, nil)
	address := js.start(nil)
	for range tenantStreamsMax {
		if _, status := js.stream(t.Context(), address, js.shop, "email"); status != 200 {
			t.Fatal(status)
		}
	}
	if a := js.ask("GET "+queuesAt+"email/stream", "", "key", js.shop).is(429, "stream_limit"); a.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	if _, status := js.stream(t.Context(), address, js.bar, "email"); status != 200 {
		t.Errorf("another tenant: %d", status)
	}
	js.Leave()
}

// lostEngine's watcher falls behind at once.
type lostEngine struct{ JobEngine }

func (lostEngine) Watch(context.Context, string, string) <-chan jobs.Transition {
	moves := make(chan jobs.Transition)
	close(moves)
	return moves
}

func TestStreamTellsThatItLost(t *testing.T) {
	js := newJobServer(t, func(o *Options) { o.Jobs = lostEngine{o.Jobs} })
	a := js.ask("GET "+queuesAt+"email/stream", "", "key", js.shop)
	if a.status != 200 || !strings.HasSuffix(a.body, "event: lost\ndata: {}\n\n") || a.header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := js.admission.streams.Load(); n != 0 {
		t.Errorf("%d streams at the end", n)
	}
}

// Each event has a deadline of its own: a stream outlives the server's, a reader who stands still does not.
func TestStreamMovesDeadlines(t *testing.T) {
	js := newJobServer(t, func(o *Options) { o.Jobs = lostEngine{o.Jobs} })
	w := &deadlineRecorder{ResponseRecorder: httptest.NewRecorder(), read: time.Now(), write: time.Now()}
	r := httptest.NewRequestWithContext(t.Context(), "GET", queuesAt+"email/stream", nil)
	r.Host = "127.0.0.1"
	r.Header = http.Header{"Authorization": {"Bearer " + js.shop}}
	js.ServeHTTP(w, r)
	if !w.read.IsZero() || time.Until(w.write) < streamWriteMax/2 {
		t.Errorf("deadlines %v and %v", w.read, w.write)
	}
}
