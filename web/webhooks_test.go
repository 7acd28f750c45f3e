package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/store"
	"tenderbox/store/storetest"
	"tenderbox/tenants"
)

// postman makes jobs of a simple form, as the delivering package would.
type postman struct{ tests int }

func (p *postman) JobsFor(e *ledger.Event, endpoints []string) (js []jobs.NewJob) {
	if e.Type == ledger.JobFailed {
		return nil
	}
	for _, id := range endpoints {
		data := fmt.Sprintf(`{"endpoint":%q,"event":{"id":%q,"type":%q}}`, id, e.ID, e.Type)
		js = append(js, jobs.NewJob{Queue: webhooksQueue, Tenant: string(e.Tenant), ID: id + ":" + string(e.ID), Name: "deliver", Data: []byte(data), Attempts: 3,
			Backoff: jobs.Backoff{Type: jobs.Fixed, Delay: time.Second}})
	}
	return js
}

func (p *postman) TestJob(t tenants.ID, endpoint string, _ time.Time) jobs.NewJob {
	p.tests++
	return p.JobsFor(&ledger.Event{ID: ledger.EventID(fmt.Sprintf("evt_test%d", p.tests)), Tenant: t, Type: WebhookTest}, []string{endpoint})[0]
}

func (p *postman) Status(attempt string) (status int) {
	_, _ = fmt.Sscanf(attempt, "answered %d", &status)
	return status
}

// past is a ledger whose tenants have these events.
type past struct {
	fakeLedger
	events map[tenants.ID]map[string]ledger.EventType
}

func (l *past) Event(_ context.Context, t tenants.ID, id string) (ledger.Event, error) {
	if typ, ok := l.events[t][id]; ok {
		return ledger.Event{ID: ledger.EventID(id), Tenant: t, Type: typ}, nil
	}
	return ledger.Event{}, &ledger.Error{Kind: ledger.NotFound, Code: "not_found", Message: "no such event"}
}

// hookServer is a test server with webhooks.
type hookServer struct {
	*testServer
	engine *jobs.Engine
	past   *past
}

const hooksAt = "/api/v1/webhooks"

func newHookServer(t *testing.T) *hookServer {
	t.Helper()
	st := storetest.Open(t, store.Options{})
	engine, err := jobs.Open(st, jobs.Options{Queues: []jobs.QueueConfig{{Name: webhooksQueue, ReadOnly: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &hookServer{engine: engine, past: &past{events: map[tenants.ID]map[string]ledger.EventType{}}}
	h.testServer = newTestServer(t, func(o *Options) { o.Jobs, o.Ledger, o.Deliveries = engine, h.past, &postman{} })
	return h
}

// add adds an endpoint that must be taken.
func (h *hookServer) add(key, body string) (id, secret string) {
	h.t.Helper()
	a := h.ask("POST "+hooksAt, body, "key", key).is(201, "")
	id, secret = a.json["id"].(string), a.json["secret"].(string)
	if a.header.Get("Location") != hooksAt+"/"+id || !strings.HasPrefix(secret, "whsec_") {
		h.t.Errorf("added: %v %s", a.header, a.body)
	}
	return id, secret
}

// tell enqueues the delivery of an event, as the relay would.
func (h *hookServer) tell(endpoint, event string) {
	h.t.Helper()
	e := &ledger.Event{ID: ledger.EventID(event), Tenant: "shop", Type: "user.created"}
	if _, err := h.engine.Enqueue(h.t.Context(), (&postman{}).JobsFor(e, []string{endpoint})...); err != nil {
		h.t.Fatal(err)
	}
}

// work runs what is due with a handler, n attempts in all.
func (h *hookServer) work(n int, handler jobs.Handler) {
	h.t.Helper()
	ctx, stop := context.WithCancel(h.t.Context())
	left := n
	r, err := h.engine.NewRunner(jobs.RunnerOptions{Queue: webhooksQueue, Concurrency: 1, Handler: func(ctx context.Context, j *jobs.Job) error {
		if left--; left == 0 {
			stop()
		}
		return handler(ctx, j)
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		h.t.Fatal(err)
	}
}

func TestWebhooksOverHTTP(t *testing.T) {
	h := newHookServer(t)
	id, secret := h.add(h.shop, `{"url":"https://shop.example/hooks?token=t0ken","types":["user.*","order.paid","user.*"]}`)
	one := h.ask("GET "+hooksAt+"/"+id, "", "key", h.shop).is(200, "")
	for member, want := range map[string]any{"id": id, "object": "webhook", "url": "https://shop.example/hooks?token=t0ken", "types": []any{"order.paid", "user.*"},
		"disabled": false, "disabled_reason": nil, "secrets": 1.0} {
		if fmt.Sprint(one.json[member]) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", member, one.json[member], want)
		}
	}
	ids := []string{id}
	for range 4 {
		more, _ := h.add(h.shop, `{"url":"https://shop.example/more"}`)
		ids = append([]string{more}, ids...)
	}
	var listed []string
	for cursor := ""; ; {
		page := h.ask("GET "+hooksAt+"?limit=2"+cursor, "", "key", h.shop).is(200, "")
		for _, e := range objects(page.json["data"]) {
			listed = append(listed, e["id"].(string))
		}
		if page.json["has_more"] != true {
			break
		}
		next := page.json["next_cursor"].(string)
		h.ask("GET "+hooksAt+"?cursor="+next, "", "key", h.bar).is(400, "cursor_invalid")
		cursor = "&cursor=" + next
	}
	if fmt.Sprint(listed) != fmt.Sprint(ids) {
		t.Errorf("listed %v, want %v", listed, ids)
	}
	off := h.ask("PATCH "+hooksAt+"/"+id, `{"disabled":true,"types":["*"]}`, "key", h.shop).is(200, "")
	if off.json["disabled"] != true || fmt.Sprint(off.json["types"]) != "[*]" || off.json["url"] != one.json["url"] {
		t.Errorf("changed: %s", off.body)
	}
	on := h.ask("PATCH "+hooksAt+"/"+id, `{"disabled":false}`, "key", h.shop).is(200, "")
	if on.json["disabled"] != false {
		t.Errorf("enabled: %s", on.body)
	}
	rotated := h.ask("POST "+hooksAt+"/"+id+"/rotate-secret", `{"overlap_s":60}`, "key", h.shop).is(200, "")
	second := rotated.json["secret"].(string)
	if second == secret || rotated.json["secrets"] != 2.0 {
		t.Errorf("rotated: %s", rotated.body)
	}
	leaked := h.ask("POST "+hooksAt+"/"+id+"/rotate-secret", `{"overlap_s":0}`, "key", h.shop).is(200, "")
	third := leaked.json["secret"].(string)
	if leaked.json["secrets"] != 1.0 {
		t.Errorf("rotated after a leak: %s", leaked.body)
	}
	h.ask("POST "+hooksAt+"/"+id+"/rotate-secret", "", "key", h.shop).is(200, "")
	for _, line := range []string{"GET " + hooksAt, "GET " + hooksAt + "/" + id} {
		a := h.ask(line, "", "key", h.shop)
		for _, s := range []string{secret, second, third, "whsec_"} {
			if strings.Contains(a.body, s) || strings.Contains(h.log.String(), s) {
				t.Errorf("%s shows a secret", line)
			}
		}
	}
	h.ask("DELETE "+hooksAt+"/"+id, "", "key", h.shop).is(204, "")
	h.ask("DELETE "+hooksAt+"/"+id, "", "key", h.shop).is(404, "not_found")
	for range 16 - 4 {
		h.add(h.shop, `{"url":"https://shop.example/more"}`)
	}
	h.ask("POST "+hooksAt, `{"url":"https://shop.example/one-more"}`, "key", h.shop).is(409, "webhook_limit")
	if strings.Contains(h.log.String(), "t0ken") {
		t.Error("a URL's token was logged")
	}
}

func TestHostileWebhooks(t *testing.T) {
	h := newHookServer(t)
	id, _ := h.add(h.shop, `{"url":"https://shop.example/hooks"}`)
	at := hooksAt + "/" + id
	for _, c := range []struct {
		line, body string
		status     int
		code       string
	}{
		{"POST " + hooksAt, ``, 415, "content_type_unsupported"},
		{"POST " + hooksAt, `[]`, 400, "json_invalid"},
		{"POST " + hooksAt, `{}`, 422, "url_invalid"},
		{"POST " + hooksAt, `{"url":null}`, 422, ""},
		{"POST " + hooksAt, `{"url":5}`, 422, ""},
		{"POST " + hooksAt, `{"url":"https://shop.example/\r\nHost: x"}`, 422, "url_invalid"},
		{"POST " + hooksAt, `{"url":"https://shop.example/` + strings.Repeat("x", 5000) + `"}`, 422, "url_invalid"},
		{"POST " + hooksAt, `{"url":"https://shop.example/","types":[]}`, 422, "types_invalid"},
		{"POST " + hooksAt, `{"url":"https://shop.example/","types":["user.*.x"]}`, 422, "types_invalid"},
		{"POST " + hooksAt, `{"url":"https://shop.example/","types":[""]}`, 422, "types_invalid"},
		{"POST " + hooksAt, `{"url":"https://shop.example/","types":"*"}`, 422, ""},
		{"POST " + hooksAt, `{"url":"https://shop.example/","types":["` + strings.Repeat(`a","`, 100) + `b"]}`, 0, ""},
		{"POST " + hooksAt, `{"url":"https://shop.example/","secret":"whsec_mine"}`, 422, "member_unknown"},
		{"POST " + hooksAt, `{"url":"https://shop.example/","tenant":"bar"}`, 422, "member_unknown"},
		{"POST " + hooksAt, `{"url":"https://a.example/","url":"https://b.example/"}`, 400, "member_duplicate"},
		{"POST " + hooksAt, `{"URL":"https://a.example/"}`, 422, "member_unknown"},
		{"PATCH " + at, `{"url":""}`, 422, "url_invalid"},
		{"PATCH " + at, `{"disabled":"yes"}`, 422, ""},
		{"PATCH " + at, `{"disabled_reason":"x"}`, 422, "member_unknown"},
		{"POST " + at + "/rotate-secret", `{"overlap_s":-1}`, 422, "member_invalid"},
		{"POST " + at + "/rotate-secret", `{"overlap_s":2592001}`, 422, "member_invalid"},
		{"POST " + at + "/rotate-secret", `{"overlap_s":9223372036854775807}`, 422, "member_invalid"},
		{"POST " + at + "/rotate-secret", `{"overlap_s":1.5}`, 422, ""},
		{"POST " + at + "/replay", ``, 415, ""},
		{"POST " + at + "/replay", `{}`, 404, "event_unknown"},
		{"POST " + at + "/replay", `{"event_id":"../../etc/passwd"}`, 404, "event_unknown"},
		{"POST " + at + "/replay", `{"event_id":"` + strings.Repeat("x", 40_000) + `"}`, 404, "event_unknown"},
		{"POST " + at + "/replay", `{"event_id":"a\u0000b"}`, 404, "event_unknown"},
		{"GET " + at + "/deliveries?state=done", ``, 400, "state_invalid"},
		{"GET " + at + "/deliveries?limit=0", ``, 400, "limit_invalid"},
		{"GET " + at + "/deliveries?limit=101", ``, 400, "limit_invalid"},
		{"GET " + at + "/deliveries?cursor=AAAA", ``, 400, "cursor_invalid"},
		{"GET " + at + "/deliveries?nope=1", ``, 400, "parameter_unknown"},
		{"GET " + at + "/deliveries/" + strings.Repeat("x", 4096), ``, 404, "not_found"},
		{"GET " + hooksAt + "/%2e%2e%2fshop", ``, 404, "not_found"},
	} {
		a := h.ask(c.line, c.body, "key", h.shop)
		switch {
		case c.status != 0 && c.code != "":
			a.is(c.status, c.code)
		case c.status == 0 && (a.status < 400 || a.status > 499), c.status != 0 && a.status != c.status:
			t.Errorf("%s %.60q: %d %s", c.line, c.body, a.status, a.body)
		}
	}
	if log := h.log.String(); log != "" {
		t.Errorf("refusals were logged:\n%s", log)
	}
}

// INV-20, INV-22: another tenant's endpoint and one that there is not are told apart by nothing.
func TestWebhooksOfOthers(t *testing.T) {
	h := newHookServer(t)
	id, _ := h.add(h.shop, `{"url":"https://canary.example/hooks"}`)
	h.tell(id, "evt_canary")
	h.past.events["shop"] = map[string]ledger.EventType{"evt_past": "user.created"}
	own, _ := h.add(h.bar, `{"url":"https://bar.example/hooks"}`)
	for _, c := range []struct{ line, body string }{
		{"GET " + hooksAt + "/ID", ""},
		{"PATCH " + hooksAt + "/ID", `{"url":"https://bar.example/steal"}`},
		{"PATCH " + hooksAt + "/ID", `{"types":[]}`},
		{"DELETE " + hooksAt + "/ID", ""},
		{"POST " + hooksAt + "/ID/test", ""},
		{"POST " + hooksAt + "/ID/rotate-secret", ""},
		{"GET " + hooksAt + "/ID/deliveries", ""},
		{"GET " + hooksAt + "/ID/deliveries/evt_canary", ""},
		{"POST " + hooksAt + "/ID/replay", `{"event_id":"evt_canary"}`},
	} {
		foreign := h.ask(strings.Replace(c.line, "ID", id, 1), c.body, "key", h.bar).is(404, "not_found")
		unknown := h.ask(strings.Replace(c.line, "ID", "we_01JZZZZZZZZZZZZZZZZZZZZZZZ", 1), c.body, "key", h.bar).is(404, "not_found")
		if foreign.body != unknown.body {
			t.Errorf("%s: foreign %s, unknown %s", c.line, foreign.body, unknown.body)
		}
		h.ask(strings.Replace(c.line, "ID", id, 1), c.body).is(401, "auth_missing")
	}
	foreign := h.ask("POST "+hooksAt+"/"+own+"/replay", `{"event_id":"evt_past"}`, "key", h.bar).is(404, "event_unknown")
	unknown := h.ask("POST "+hooksAt+"/"+own+"/replay", `{"event_id":"evt_none"}`, "key", h.bar).is(404, "event_unknown")
	if foreign.body != unknown.body {
		t.Errorf("foreign event %s, unknown %s", foreign.body, unknown.body)
	}
	for _, line := range []string{"GET " + hooksAt, "GET " + hooksAt + "/" + own + "/deliveries"} {
		if a := h.ask(line, "", "key", h.bar).is(200, ""); strings.Contains(a.body, "canary") {
			t.Errorf("%s tells another tenant's: %s", line, a.body)
		}
	}
	if a := h.ask("GET "+hooksAt+"/"+id, "", "key", h.shop).is(200, ""); a.json["url"] != "https://canary.example/hooks" {
		t.Errorf("another tenant changed it: %s", a.body)
	}
}

func TestDeliveryLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHookServer(t)
		id, _ := h.add(h.shop, `{"url":"https://shop.example/hooks"}`)
		other, _ := h.add(h.shop, `{"url":"https://shop.example/other"}`)
		at := hooksAt + "/" + id
		h.tell(id, "evt_1")
		h.work(3, func(_ context.Context, j *jobs.Job) error {
			switch j.AttemptsMade {
			case 1:
				return errors.New("answered 500 Internal Server Error after 3ms")
			case 2:
				return errors.New("connection failed: refused")
			}
			return jobs.Done([]byte(`{"status":204,"ms":2,"attempt":3}`))
		})
		d := h.ask("GET "+at+"/deliveries/evt_1", "", "key", h.shop).is(200, "")
		attempts := objects(d.json["attempts"])
		if d.json["state"] != "completed" || d.json["status"] != 204.0 || d.json["type"] != "user.created" || d.json["webhook_id"] != id || len(attempts) != 3 ||
			attempts[0]["status"] != 500.0 || attempts[1]["status"] != nil || attempts[1]["error"] != "connection failed: refused" || attempts[2]["status"] != 204.0 || attempts[2]["error"] != nil {
			t.Errorf("delivered: %s", d.body)
		}
		if h.ask("GET "+hooksAt+"/"+other+"/deliveries/evt_1", "", "key", h.shop).status != 404 {
			t.Error("another endpoint has the delivery")
		}

		// A list goes through the states, each delivery once, and no other endpoint's.
		h.tell(id, "evt_2")
		h.work(1, func(context.Context, *jobs.Job) error {
			return jobs.Cancel(errors.New("answered 410 Gone; the endpoint is now disabled"))
		})
		want := map[string]string{"evt_1": "completed", "evt_2": "failed"}
		for i := range 30 {
			event := fmt.Sprintf("evt_w%d", i)
			h.tell(id, event)
			h.tell(other, event)
			want[event] = "waiting"
		}
		got := map[string]string{}
		for cursor := ""; ; {
			page := h.ask("GET "+at+"/deliveries?limit=7"+cursor, "", "key", h.shop).is(200, "")
			for _, d := range objects(page.json["data"]) {
				event := d["event_id"].(string)
				if got[event] != "" || d["webhook_id"] != id {
					t.Fatalf("%v twice, or another's", d)
				}
				got[event] = d["state"].(string)
			}
			if page.json["has_more"] != true {
				break
			}
			cursor = "&cursor=" + page.json["next_cursor"].(string)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("listed %v, want %v", got, want)
		}
		failed := h.ask("GET "+at+"/deliveries?state=failed", "", "key", h.shop).is(200, "")
		if data := objects(failed.json["data"]); len(data) != 1 || data[0]["event_id"] != "evt_2" || data[0]["status"] != 410.0 || failed.json["next_cursor"] != nil {
			t.Errorf("failed: %s", failed.body)
		}
	})
}

func TestTestAndReplay(t *testing.T) {
	h := newHookServer(t)
	id, _ := h.add(h.shop, `{"url":"https://shop.example/hooks"}`)
	h.add(h.shop, `{"url":"https://shop.example/other"}`)
	at := hooksAt + "/" + id
	test := h.ask("POST "+at+"/test", "", "key", h.shop).is(202, "")
	if test.json["type"] != "webhook.test" || test.json["state"] != "waiting" || test.json["webhook_id"] != id {
		t.Errorf("tested: %s", test.body)
	}
	if seen := h.ask("GET "+test.header.Get("Location"), "", "key", h.shop).is(200, ""); seen.body != test.body {
		t.Errorf("answered %s, is %s", test.body, seen.body)
	}
	if info, err := h.engine.Queue("shop", webhooksQueue); err != nil || info.Counts.Waiting != 1 {
		t.Errorf("%d jobs, %v: the test goes to one endpoint", info.Counts.Waiting, err)
	}
	replay := func(event string) answer {
		body, err := json.Marshal(map[string]string{"event_id": event})
		if err != nil {
			t.Fatal(err)
		}
		return h.ask("POST "+at+"/replay", string(body), "key", h.shop)
	}
	replay(test.json["event_id"].(string)).is(409, "job_state")
	h.work(1, func(context.Context, *jobs.Job) error { return nil })
	if again := replay(test.json["event_id"].(string)).is(202, ""); again.json["state"] != "waiting" {
		t.Errorf("replayed: %s", again.body)
	}
	h.past.events["shop"] = map[string]ledger.EventType{"evt_past": "order.paid", "evt_job": ledger.JobFailed}
	if old := replay("evt_past").is(202, ""); old.json["type"] != "order.paid" || old.json["event_id"] != "evt_past" {
		t.Errorf("from the journal: %s", old.body)
	}
	replay("evt_job").is(409, "event_not_sent")
	replay("evt_none").is(404, "event_unknown")
	h.ask("PATCH "+at, `{"disabled":true}`, "key", h.shop).is(200, "")
	h.ask("POST "+at+"/test", "", "key", h.shop).is(409, "webhook_disabled")
	replay("evt_past").is(409, "webhook_disabled")
}
