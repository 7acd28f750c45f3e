package web

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"tenderbox/jobs"
)

func TestQueuesAreListed(t *testing.T) {
	js := newJobServer(t, nil)
	js.ask("PUT "+queuesAt+"till", `{}`, "key", js.shop).is(201, "")
	js.ask("PUT "+queuesAt+"bar-only", `{}`, "key", js.bar).is(201, "")
	names := func(key string, query string) (all []string) {
		for cursor := ""; ; {
			a := js.ask("GET /api/v1/queues?limit=2"+cursor+query, "", "key", key).is(200, "")
			for _, q := range objects(a.json["data"]) {
				all = append(all, q["name"].(string))
			}
			next, more := a.json["next_cursor"].(string)
			if !more {
				return all
			}
			cursor = "&cursor=" + next
		}
	}
	if got, want := names(js.shop, ""), []string{"data-processing", "email", "payments", "till"}; !slices.Equal(got, want) {
		t.Errorf("shop sees %v, want %v", got, want)
	}
	if got, want := names(operatorToken, ""), []string{"bar-only", "data-processing", "email", "events", "payments", "till"}; !slices.Equal(got, want) {
		t.Errorf("the operator sees %v, want %v", got, want)
	}
	q := js.ask("GET "+queuesAt+"data-processing", "", "key", js.shop).is(200, "")
	if !strings.Contains(q.body, `"tenant":null,"read_only":false,"paused":false,"defaults":{"attempts":5,"backoff":{"type":"exponential","delay_ms":5000`) {
		t.Errorf("data-processing: %s", q.body)
	}
	if q := js.ask("GET "+queuesAt+"payments", "", "key", js.shop).is(200, ""); q.json["read_only"] != true {
		t.Errorf("payments: %s", q.body)
	}
}

func TestOwnQueue(t *testing.T) {
	js := newJobServer(t, nil)
	unknown := js.ask("POST "+queuesAt+"till/jobs", `{"name":"n"}`, "key", js.shop).is(404, "queue_unknown")
	if detail := fmt.Sprint(unknown.json["detail"]); !strings.Contains(detail, "data-processing, email, payments") || strings.Contains(detail, "events") {
		t.Errorf("known are: %s", detail)
	}
	made := js.ask("PUT "+queuesAt+"till", `{"defaults":{"attempts":7,"backoff":{"type":"fixed","delay_ms":50},"remove_on_complete":true,"timeout_ms":900},
		"limits":{"active":1,"rate":{"count":100,"per_ms":1000}}}`, "key", js.shop).is(201, "")
	for _, want := range []string{`"tenant":"shop"`, `"defaults":{"attempts":7,"backoff":{"type":"fixed","delay_ms":50,`, `"remove_on_complete":true,`, `"timeout_ms":900`,
		`"limits":{"active":1,"rate":{"count":100,"per_ms":1000}}`} {
		if !strings.Contains(made.body, want) {
			t.Errorf("made: %s lacks %s", made.body, want)
		}
	}
	a := js.ask("POST "+queuesAt+"till/jobs", `{"jobs":[{"name":"a"},{"name":"b"}]}`, "key", js.shop).is(201, "")
	if !strings.Contains(a.body, `"attempts":7,"backoff":{"type":"fixed","delay_ms":50,`) {
		t.Errorf("the queue's defaults do not hold: %s", a.body)
	}
	if got := js.lease(js.shop, "till", `{"max":5}`); len(got) != 1 {
		t.Errorf("%d jobs leased of a queue that is limited to one", len(got))
	}
	changed := js.ask("PUT "+queuesAt+"till", `{"limits":{"active":2}}`, "key", js.shop).is(200, "")
	if !strings.Contains(changed.body, `"limits":{"active":2}`) {
		t.Errorf("changed: %s", changed.body)
	}
	if got := js.lease(js.shop, "till", `{"max":5}`); len(got) != 1 {
		t.Errorf("%d more jobs leased after the limit was raised to two", len(got))
	}
	// Another tenant's queue of that name is another queue, and there is none.
	js.ask("GET "+queuesAt+"till", "", "key", js.bar).is(404, "queue_unknown")
	for _, queue := range []string{"email", "payments", "events"} {
		js.ask("PUT "+queuesAt+queue, `{}`, "key", js.shop).is(403, "queue_read_only")
	}
}

func TestPauseAndDrain(t *testing.T) {
	js := newJobServer(t, nil)
	js.add(js.shop, "email", `{"name":"n"}`)
	js.add(js.shop, "email", `{"name":"n","opts":{"delay_ms":3600000}}`)
	js.add(js.bar, "email", `{"name":"n"}`)
	if a := js.ask("POST "+queuesAt+"email/pause", "", "key", js.shop).is(200, ""); a.json["paused"] != true {
		t.Errorf("paused: %s", a.body)
	}
	if got := js.lease(js.shop, "email", `{}`); len(got) != 0 {
		t.Errorf("leased from a paused line: %v", got)
	}
	if got := js.lease(js.bar, "email", `{}`); len(got) != 1 {
		t.Error("one tenant's pause keeps another's jobs")
	}
	js.ask("POST "+queuesAt+"email/resume", "", "key", js.shop).is(200, "")
	js.ask("POST "+queuesAt+"email/pause", "", "key", operatorToken).is(200, "")
	if got := js.lease(js.shop, "email", `{}`); len(got) != 0 {
		t.Errorf("leased from a paused queue: %v", got)
	}
	js.ask("POST "+queuesAt+"email/resume", "", "key", js.shop).is(200, "") // ends its own pause, not the operator's
	if got := js.lease(js.shop, "email", `{}`); len(got) != 0 {
		t.Errorf("a tenant ended the operator's pause: %v", got)
	}
	if a := js.ask("POST "+queuesAt+"email/drain", "", "key", js.shop).is(200, ""); a.json["count"] != 1.0 {
		t.Errorf("drained: %s", a.body)
	}
	if a := js.ask("POST "+queuesAt+"email/drain", `{"delayed":true}`, "key", js.shop).is(200, ""); a.json["count"] != 1.0 {
		t.Errorf("drained: %s", a.body)
	}
	js.ask("POST "+queuesAt+"email/resume", "", "key", operatorToken).is(200, "")
}

// The box's own queues: tenants look, the operator pauses and retries, and nobody takes a job out.
func TestTheBoxsOwnQueues(t *testing.T) {
	js := newJobServer(t, nil)
	if _, err := js.engine.Enqueue(t.Context(), settleJobs()...); err != nil {
		t.Fatal(err)
	}
	job := queuesAt + "payments/jobs/pay_1"
	js.ask("GET "+job, "", "key", js.shop).is(200, "")
	js.ask("GET "+job, "", "key", js.bar).is(404, "not_found")
	js.ask("GET "+queuesAt+"payments/jobs", "", "key", js.shop).is(200, "")
	for _, line := range []string{"POST " + job + "/retry", "POST " + job + "/promote", "POST " + queuesAt + "payments/pause", "POST " + queuesAt + "payments/resume",
		"POST " + queuesAt + "payments/retry-failed", "POST " + queuesAt + "payments/promote"} {
		js.ask(line, "", "key", js.shop).is(403, "queue_read_only")
	}
	token := `{"lease_token":"t"}`
	for _, c := range [][2]string{{"POST " + queuesAt + "payments/jobs", `{"name":"n"}`}, {"DELETE " + job, ""}, {"POST " + queuesAt + "payments/drain", ""},
		{"POST " + queuesAt + "payments/lease", `{}`}, {"POST " + job + "/complete", token}, {"POST " + job + "/fail", token}, {"POST " + job + "/extend", token},
		{"POST " + job + "/progress", token}, {"POST " + job + "/log", token}, {"POST " + queuesAt + "payments/complete", `{"jobs":[{"id":"x","lease_token":"t"}]}`},
		{"PUT " + queuesAt + "payments/schedules/s", `{"cron":"* * * * *","job":{"name":"n"}}`}, {"DELETE " + queuesAt + "payments/schedules/s", ""}} {
		js.ask(c[0], c[1], "key", js.shop).is(403, "queue_read_only")
		js.ask(c[0], c[1], "key", operatorToken, "X-Tenant-ID", "shop").is(403, "queue_read_only")
	}
	for _, verb := range []string{"pause", "resume", "retry-failed", "promote"} {
		js.ask("POST "+queuesAt+"payments/"+verb, "", "key", operatorToken).is(200, "")
		js.ask("POST "+queuesAt+"payments/"+verb, "", "key", operatorToken, "X-Tenant-ID", "shop").is(200, "")
		js.ask("POST "+queuesAt+"events/"+verb, "", "key", operatorToken).is(200, "")
		unknown := js.ask("POST "+queuesAt+"nothing/"+verb, "", "key", js.shop).is(404, "queue_unknown")
		if internal := js.ask("POST "+queuesAt+"events/"+verb, "", "key", js.shop).is(404, "queue_unknown"); internal.body != unknown.body {
			t.Errorf("an internal queue is told from none: %s", internal.body)
		}
	}
	js.ask("POST "+job+"/promote", "", "key", operatorToken, "X-Tenant-ID", "shop").is(409, "job_state")
	if a := js.ask("GET "+job, "", "key", operatorToken, "X-Tenant-ID", "shop").is(200, ""); a.json["tenant"] != "shop" {
		t.Errorf("the operator sees %s", a.body)
	}
}

func TestSchedules(t *testing.T) {
	js := newJobServer(t, nil)
	at := queuesAt + "email/schedules/nightly"
	a := js.ask("PUT "+at, `{"cron":"0 6 * * 1-5","time_zone":"Europe/Berlin","missed":"skip","job":{"name":"report","data":{"a":[1, 2]},"opts":{"priority":2,"attempts":9}}}`,
		"key", js.shop).is(200, "")
	for _, want := range []string{`"id":"nightly"`, `"cron":"0 6 * * 1-5"`, `"every_ms":null`, `"time_zone":"Europe/Berlin"`, `"missed":"skip"`, `"paused":false`,
		`"job":{"name":"report","data":{"a":[1,2]},"opts":{"priority":2,"attempts":9}}`, `"last_at":null`} {
		if !strings.Contains(a.body, want) {
			t.Errorf("made: %s lacks %s", a.body, want)
		}
	}
	if a.json["next_at"] == nil {
		t.Errorf("no next occurrence: %s", a.body)
	}
	b := js.ask("PUT "+at, `{"every_ms":60000,"paused":true,"job":{"name":"report"}}`, "key", js.shop).is(200, "")
	if b.json["next_at"] != nil || b.json["every_ms"] != 60000.0 || b.json["cron"] != nil || b.json["missed"] != "run_once" {
		t.Errorf("changed: %s", b.body)
	}
	if got := js.ask("GET "+at, "", "key", js.shop).is(200, ""); got.body != b.body {
		t.Errorf("read back %s, was %s", got.body, b.body)
	}
	if all := objects(js.ask("GET "+queuesAt+"email/schedules", "", "key", js.shop).is(200, "").json["data"]); len(all) != 1 {
		t.Errorf("listed: %v", all)
	}
	if none := js.ask("GET "+queuesAt+"email/schedules", "", "key", js.bar).is(200, ""); len(objects(none.json["data"])) != 0 {
		t.Errorf("another tenant sees %s", none.body)
	}
	js.ask("DELETE "+at, "", "key", js.bar).is(404, "not_found")
	js.ask("DELETE "+at, "", "key", js.shop).is(204, "")
	js.ask("GET "+at, "", "key", js.shop).is(404, "not_found")
	js.ask("DELETE "+at, "", "key", js.shop).is(404, "not_found")
}

// settleJobs are two of the box's own, such as the ledger derives.
func settleJobs() []jobs.NewJob {
	return []jobs.NewJob{{Queue: "payments", Tenant: "shop", ID: "pay_1", Name: "settle", Attempts: -1, RemoveOnComplete: jobs.Retention{Remove: true}},
		{Queue: "events", Tenant: "shop", ID: "failed_1", Name: "record-event"}}
}

// Every route of the queues is described, served ones and those that huma serves alike, with what it takes and answers.
func TestQueuesAreDescribed(t *testing.T) {
	js := newJobServer(t, nil)
	paths := js.ask("GET /openapi.json", "").is(200, "").json["paths"].(map[string]any)
	docs := js.ask("GET /docs", "").is(200, "").body
	routes := map[string]bool{}
	for line := range bodyRoutes {
		routes[line] = true
	}
	for line := range routes {
		method, path, _ := strings.Cut(line, " ")
		path = strings.NewReplacer("/email", "/{queue}", "/till", "/{queue}", "/jobs/x", "/jobs/{id}", "/schedules/s", "/schedules/{id}").Replace(path)
		item, _ := paths[path].(map[string]any)
		op, _ := item[strings.ToLower(method)].(map[string]any)
		body, _ := op["requestBody"].(map[string]any)
		if body == nil || op["responses"] == nil || op["security"] == nil || !strings.Contains(docs, "<code>"+method+" "+path+"</code>") {
			t.Errorf("%s %s is described as %v", method, path, op)
		}
	}
	n := 0
	for path, item := range paths {
		if strings.HasPrefix(path, "/api/v1/queues") {
			n += len(item.(map[string]any))
		}
	}
	if n != 27 {
		t.Errorf("%d operations are described", n)
	}
	stream := paths["/api/v1/queues/{queue}/stream"].(map[string]any)["get"].(map[string]any)
	if !strings.Contains(fmt.Sprint(stream), "text/event-stream") {
		t.Errorf("the stream is described as %v", stream)
	}
}

// The metrics know the queues that ship by name, and those that tenants named together: no label is made up by a client.
func TestQueueMetrics(t *testing.T) {
	js := newJobServer(t, nil)
	js.ask("PUT "+queuesAt+"canary", `{}`, "key", js.shop).is(201, "")
	js.ask("PUT "+queuesAt+"canary", `{}`, "key", js.bar).is(201, "")
	js.add(js.shop, "canary", `{"name":"canary-job"}`)
	js.add(js.bar, "canary", `{"name":"canary-job"}`)
	js.add(js.shop, "email", `{"name":"canary-job","opts":{"delay_ms":60000}}`)
	js.ask("POST "+queuesAt+"email/pause", "", "key", operatorToken).is(200, "")
	m := js.ask("GET /metrics", "", "key", operatorToken)
	for _, want := range []string{`tenderbox_jobs{queue="own",state="waiting"} 2`, `tenderbox_jobs{queue="email",state="delayed"} 1`, `tenderbox_queue_paused{queue="email"} 1`,
		`tenderbox_queue_paused{queue="payments"} 0`, `tenderbox_jobs_oldest_waiting_seconds{queue="email"} 0`, `tenderbox_jobs_per_second{queue="events",what="failed"} 0`,
		`tenderbox_jobs_wait_seconds{quantile="0.99",queue="email"} 0`, `tenderbox_http_streams 0`} {
		if !strings.Contains(m.body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(m.body, "canary") || strings.Contains(m.body, "shop") {
		t.Error("metrics name a tenant's queue, job or the tenant")
	}
}

// The operator, naming no tenant, sets the limits of queues that ship; nobody their defaults.
func TestOperatorLimitsShippedQueues(t *testing.T) {
	js := newJobServer(t, nil)
	a := js.ask("PUT "+queuesAt+"email", `{"limits":{"tenant_active":1,"rate":{"count":100,"per_ms":60000}}}`, "key", operatorToken).is(200, "")
	if limits := a.json["limits"].(map[string]any); limits["tenant_active"] != 1.0 || limits["rate"].(map[string]any)["count"] != 100.0 {
		t.Errorf("limits: %s", a.body)
	}
	for range 3 {
		js.ask("POST "+queuesAt+"email/jobs", `{"name":"n"}`, "key", js.shop).is(201, "")
	}
	if got := js.lease(js.shop, "email", `{"max":3}`); len(got) != 1 {
		t.Errorf("%d leased beside a limit of 1", len(got))
	}
	js.ask("PUT "+queuesAt+"payments", `{"limits":{"active":8}}`, "key", operatorToken).is(200, "")
	js.ask("PUT "+queuesAt+"email", `{"limits":{}}`, "key", js.shop).is(403, "queue_read_only")
	js.ask("PUT "+queuesAt+"payments", `{"limits":{}}`, "key", js.shop).is(403, "queue_read_only")
	js.ask("PUT "+queuesAt+"nowhere", `{"limits":{}}`, "key", operatorToken).is(404, "queue_unknown")
	if a := js.ask("PUT "+queuesAt+"email", `{"defaults":{"attempts":2}}`, "key", operatorToken).is(422, "member_invalid"); a.json["field"] != "defaults" {
		t.Errorf("defaults: %s", a.body)
	}
	if a := js.ask("PUT "+queuesAt+"email", `{"limits":{"active":-1}}`, "key", operatorToken).is(422, "member_invalid"); a.json["field"] != "limits.active" {
		t.Errorf("a limit below zero: %s", a.body)
	}
}
