package web

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"tenderbox/jobs"
	"tenderbox/tenants"
)

// RELIABILITY.md, "Hostile input", on the routes of queues: never a 5xx, and the member at fault is named.

// bodyRoutes are the routes that take a body, each with one that is taken as far as its form goes.
var bodyRoutes = map[string]string{
	"POST " + queuesAt + "email/jobs":            `{"name":"n"}`,
	"PUT " + queuesAt + "till":                   `{"limits":{"active":1}}`,
	"POST " + queuesAt + "email/drain":           `{"delayed":true}`,
	"POST " + queuesAt + "email/lease":           `{"max":1}`,
	"POST " + queuesAt + "email/complete":        `{"jobs":[{"id":"x","lease_token":"t"}]}`,
	"POST " + queuesAt + "email/jobs/x/complete": `{"lease_token":"t"}`,
	"POST " + queuesAt + "email/jobs/x/fail":     `{"lease_token":"t","error":"e"}`,
	"POST " + queuesAt + "email/jobs/x/extend":   `{"lease_token":"t","lease_ms":1000}`,
	"POST " + queuesAt + "email/jobs/x/progress": `{"lease_token":"t","progress":1}`,
	"POST " + queuesAt + "email/jobs/x/log":      `{"lease_token":"t","text":"l"}`,
	"PUT " + queuesAt + "email/schedules/s":      `{"every_ms":60000,"job":{"name":"n"}}`,
}

func TestHostileJobBodies(t *testing.T) {
	js := newJobServer(t, nil)
	for line, good := range bodyRoutes {
		t.Run(line, func(t *testing.T) {
			js.t = t
			with := func(member string) string { return strings.TrimSuffix(good, "}") + "," + member + "}" }
			first, _, _ := strings.Cut(strings.TrimPrefix(good, `{`), ":")
			for _, c := range []struct {
				body   string
				status int
				code   string
			}{
				{" \n", 400, "body_missing"},
				{"null", 400, "json_invalid"},
				{"[]", 400, "json_invalid"},
				{good + good, 400, "json_invalid"},
				{good + "}", 400, "json_invalid"},
				{good[:len(good)-1], 400, "json_invalid"},
				{"{/*x*/}", 400, "json_invalid"},
				{"\ufeff" + good, 400, "json_invalid"},
				{with(`"a":NaN`), 0, ""},
				{with(first + ":1"), 400, "member_duplicate"},
				{with(strings.ToUpper(first) + ":1"), 422, "member_unknown"},
				{with(`"nope":1`), 422, "member_unknown"},
				{with(`"__proto__":{}`), 422, "member_unknown"},
				{with(`"state":"completed"`), 422, "member_unknown"},
				{strings.Repeat(`{"a":`, 10_000), 400, "json_too_deep"},
				{`{"data":` + strings.Repeat("[", 10_000), 400, "json_too_deep"},
				{with("\"x\":\"\xff\""), 0, ""},
				{with(`"x":"\ud800"`), 0, ""},
				{"{\x00}", 400, "json_invalid"},
			} {
				a := js.ask(line, c.body, "key", js.shop)
				if c.status != 0 {
					a.is(c.status, c.code)
				} else if a.status != 400 && a.status != 422 {
					t.Errorf("%.60q: %d %s", c.body, a.status, a.body)
				}
			}
			js.ask(line, good, "key", js.shop, "-", "Content-Type").is(415, "content_type_unsupported")
			js.ask(line, good, "key", js.shop, "Content-Encoding", "gzip").is(415, "content_encoding_unsupported")
			js.ask(line, `{"x":"`+strings.Repeat("x", 17<<20)+`"}`, "key", js.shop).is(413, "body_too_large")
			if a := js.ask(line, "", "key", js.shop); a.status/100 != 4 && !strings.HasSuffix(line, "drain") {
				t.Errorf("without a body: %d %s", a.status, a.body)
			}
		})
	}
	js.t = t
	if log := js.log.String(); log != "" {
		t.Errorf("refusals were logged:\n%s", log)
	}
}

func TestHostileJobOptions(t *testing.T) {
	js := newJobServer(t, nil)
	for opts, field := range map[string]string{
		`"priority":-1`: "priority", `"priority":2147483648`: "priority", `"priority":1.5`: "priority", `"priority":"1"`: "priority", `"priority":1e400`: "priority",
		`"priority":9223372036854775808`: "priority",
		`"delay_ms":-1`:                  "delay_ms", `"delay_ms":315360000001`: "delay_ms", `"delay_ms":9223372036854775807`: "delay_ms", `"delay_ms":1e20`: "delay_ms", `"delay_ms":"5"`: "delay_ms",
		`"attempts":0`: "attempts", `"attempts":-1`: "attempts", `"attempts":1000001`: "attempts", `"attempts":true`: "attempts",
		`"backoff":5`: "backoff", `"backoff":"fixed"`: "backoff", `"backoff":{"type":"linear"}`: "backoff.type", `"backoff":{"type":""}`: "backoff.type", `"backoff":{"delay_ms":-1}`: "backoff.delay_ms",
		`"backoff":{"delay_ms":1e18}`: "backoff.delay_ms", `"backoff":{"jitter":-0.1}`: "backoff.jitter", `"backoff":{"jitter":1.1}`: "backoff.jitter", `"backoff":{"jitter":1e999}`: "backoff.jitter",
		`"backoff":{"jitter":"x"}`: "backoff.jitter", `"backoff":{"max_ms":0}`: "backoff.max_ms", `"backoff":{"max_ms":-5}`: "backoff.max_ms", `"backoff":{"delay":5}`: "backoff.delay",
		`"job_id":""`: "job_id", `"job_id":"a/b"`: "job_id", `"job_id":".."`: "job_id", `"job_id":"a b"`: "job_id", `"job_id":"ключ"`: "job_id", `"job_id":"a\r\nb"`: "job_id", `"job_id":5`: "job_id",
		`"job_id":"` + strings.Repeat("x", 256) + `"`: "job_id", `"job_id":"a%2fb"`: "job_id", `"job_id":"a\u0000"`: "job_id",
		`"remove_on_complete":-1`: "remove_on_complete", `"remove_on_complete":1.5`: "remove_on_complete", `"remove_on_complete":"yes"`: "remove_on_complete", `"remove_on_complete":{}`: "remove_on_complete",
		`"remove_on_complete":[1]`: "remove_on_complete", `"remove_on_fail":{"count":-1}`: "remove_on_fail", `"remove_on_fail":{"age_s":0}`: "remove_on_fail", `"remove_on_fail":{"age_s":-1}`: "remove_on_fail",
		`"remove_on_fail":{"age_s":1e18}`: "remove_on_fail.age_s", `"remove_on_fail":{"age":5}`: "remove_on_fail.age", `"remove_on_fail":99999999999`: "remove_on_fail",
		`"timeout_ms":0`: "timeout_ms", `"timeout_ms":-1`: "timeout_ms", `"timeout_ms":9223372036854775807`: "timeout_ms",
		`"lifo":true`: "lifo", `"repeat":{"cron":"* * * * *"}`: "repeat", `"Priority":1`: "Priority",
	} {
		t.Run(opts, func(t *testing.T) {
			js.t = t
			for at, body := range map[string]string{
				"opts.":         `{"name":"n","opts":{` + opts + `}}`,
				"jobs[1].opts.": `{"jobs":[{"name":"n"},{"name":"n","opts":{` + opts + `}}]}`,
			} {
				if a := js.ask("POST "+queuesAt+"email/jobs", body, "key", js.shop); a.status != 422 || a.json["field"] != at+field {
					t.Errorf("%d names %v, want %s: %s", a.status, a.json["field"], at+field, a.body)
				}
			}
		})
	}
	js.t = t
	for body, want := range map[string]string{
		`{}`: "name", `{"name":""}`: "name", `{"name":5}`: "name", `{"name":"a\nb"}`: "name", `{"name":"a\u0000"}`: "name", `{"name":"` + strings.Repeat("é", 128) + `"}`: "name",
		`{"name":"n","opts":[]}`: "opts", `{"jobs":[]}`: "jobs", `{"jobs":{}}`: "jobs", `{"jobs":5}`: "jobs", `{"jobs":[1]}`: "jobs[0]", `{"jobs":[{"name":"n"},{}]}`: "jobs[1].name",
		`{"jobs":[{"name":"n"}],"name":"n"}`: "jobs", `{"jobs":[{"name":"n"}],"opts":{"priority":1}}`: "jobs", `{"jobs":[{"name":"n"}],"data":null}`: "jobs",
		`{"jobs":[{"name":"n","jobs":[]}]}`: "jobs[0].jobs", `{"jobs":[{"name":"n"},{"name":"n","data":"` + strings.Repeat("x", jobDataMax) + `"}]}`: "jobs[1].data",
		`{"jobs":[` + strings.Repeat(`{"name":"n"},`, 100_000) + `{"name":"n"}]}`: "jobs",
	} {
		if a := js.ask("POST "+queuesAt+"email/jobs", body, "key", js.shop); a.status != 422 || a.json["field"] != want {
			t.Errorf("%.80s: %d names %v, want %s: %s", body, a.status, a.json["field"], want, a.body)
		}
	}
	// What is inside an app's own data is its own affair, but it must be JSON.
	for body, field := range map[string]string{`{"name":"n","data":{"a":1,"a":2}}`: "data.a", `{"name":"n","data":{"a":[NaN]}}`: "data.a[0]", `{"name":"n","data":"` + "\xff" + `"}`: "data"} {
		if a := js.ask("POST "+queuesAt+"email/jobs", body, "key", js.shop); a.status != 400 || a.json["field"] != field {
			t.Errorf("%q: %d names %v, want %s", body, a.status, a.json["field"], field)
		}
	}
	for _, data := range []string{`"\u202e"`, `"'; DROP TABLE jobs;--"`, `{"__proto__":{"cvv":"123","number":5}}`, `-0`, `1E2`, `0.1e-7`, `[[[[]]]]`, `""`, `" "`} {
		if a := js.ask("POST "+queuesAt+"email/jobs", `{"name":"n","data":`+data+`}`, "key", js.shop).is(201, ""); !strings.Contains(a.body, `"data":`+data+`,`) {
			t.Errorf("%s came back as %s", data, a.body)
		}
	}
	js.ask("POST "+queuesAt+"email/jobs", `{"name":"n","data":"`+strings.Repeat("x", 1<<20)+`"}`, "key", js.shop).is(413, "body_too_large")
	js.ask("POST "+queuesAt+"email/jobs", `{"name":"n","data":"`+strings.Repeat("x", 10<<20)+`"}`, "key", js.shop).is(413, "body_too_large")
	js.ask("POST "+queuesAt+"email/jobs", `{"name":"n","data":"`+strings.Repeat("x", 1<<20-100)+`"}`, "key", js.shop).is(201, "")
}

func TestHostileWords(t *testing.T) {
	js := newJobServer(t, nil)
	js.add(js.shop, "email", `{"name":"n"}`)
	leased := js.lease(js.shop, "email", `{}`)[0]
	job := "POST " + queuesAt + "email/jobs/" + leased["id"].(string) + "/"
	for line, bad := range map[string]map[string]string{
		"POST " + queuesAt + "email/lease": {
			`{"max":0}`: "max", `{"max":-1}`: "max", `{"max":1001}`: "max", `{"max":1e9}`: "max", `{"max":null,"lease_ms":999}`: "lease_ms", `{"lease_ms":-1}`: "lease_ms",
			`{"lease_ms":99999999999}`: "lease_ms", `{"wait_ms":-1}`: "wait_ms", `{"wait_ms":60001}`: "wait_ms", `{"wait_ms":9223372036854775807}`: "wait_ms", `{"worker":5}`: "worker",
			`{"worker":"a\r\nb"}`: "worker", `{"worker":"` + strings.Repeat("w", 256) + `"}`: "worker", `{"names":[""]}`: "names[0]", `{"names":["a","\u0000"]}`: "names[1]", `{"names":"a"}`: "names",
			`{"names":[` + strings.Repeat(`"a",`, 100) + `"a"]}`: "names", `{"lease_token":"x"}`: "lease_token",
		},
		job + "complete": {`{}`: "lease_token", `{"lease_token":""}`: "lease_token", `{"lease_token":5}`: "lease_token", `{"lease_token":"` + strings.Repeat("t", 256) + `"}`: "lease_token"},
		job + "fail": {`{"error":"e"}`: "lease_token", showing(leased, `,"error":5`): "error", showing(leased, `,"retry":"no"`): "retry", showing(leased, `,"delay_ms":-1`): "delay_ms",
			showing(leased, `,"delay_ms":1e30`): "delay_ms", showing(leased, `,"error":"`+strings.Repeat("e", failTextMax+1)+`"`): "error"},
		job + "extend": {`{"lease_ms":1000}`: "lease_token", showing(leased, ""): "lease_ms", showing(leased, `,"lease_ms":0`): "lease_ms", showing(leased, `,"lease_ms":-1`): "lease_ms",
			showing(leased, `,"lease_ms":99999999999`): "lease_ms"},
		job + "progress": {`{"progress":1}`: "lease_token", showing(leased, ""): "progress", showing(leased, `,"progress":"`+strings.Repeat("p", progressMax)+`"`): "progress"},
		job + "log":      {`{"text":"t"}`: "lease_token", showing(leased, ""): "text", showing(leased, `,"text":""`): "text", showing(leased, `,"text":"`+strings.Repeat("t", logTextMax+1)+`"`): "text"},
		"POST " + queuesAt + "email/complete": {`{}`: "jobs", `{"jobs":[]}`: "jobs", `{"jobs":null}`: "jobs", `{"jobs":[{}]}`: "jobs[0].lease_token", `{"jobs":[{"lease_token":"t"}]}`: "jobs[0].id",
			`{"jobs":[{"id":"x","lease_token":"t"},{"id":"x"}]}`: "jobs[1].lease_token", `{"jobs":[` + strings.Repeat(`{"id":"x","lease_token":"t"},`, 1000) + `{"id":"x","lease_token":"t"}]}`: "jobs"},
		"PUT " + queuesAt + "till": {`{"defaults":{"attempts":0}}`: "defaults.attempts", `{"defaults":{"backoff":{"jitter":2}}}`: "defaults.backoff.jitter", `{"defaults":{"priority":1}}`: "defaults.priority",
			`{"limits":{"active":-1}}`: "limits.active", `{"limits":{"tenant_active":1e12}}`: "limits.tenant_active", `{"limits":{"rate":{"count":0,"per_ms":1}}}`: "limits.rate.count",
			`{"limits":{"rate":{"count":1,"per_ms":0}}}`: "limits.rate.per_ms", `{"limits":{"tenant_rate":{"count":1}}}`: "limits.tenant_rate.per_ms", `{"limits":{"rate":5}}`: "limits.rate"},
		"PUT " + queuesAt + "Not-A-Label": {`{}`: "queue"},
		"PUT " + queuesAt + "email/schedules/s": {`{"job":{"name":"n"}}`: "cron", `{"cron":"* * * * *","every_ms":1000,"job":{"name":"n"}}`: "cron", `{"cron":"* * * *","job":{"name":"n"}}`: "cron",
			`{"cron":"61 * * * *","job":{"name":"n"}}`: "cron", `{"cron":"` + strings.Repeat("* ", 200) + `","job":{"name":"n"}}`: "cron", `{"every_ms":999,"job":{"name":"n"}}`: "every_ms",
			`{"every_ms":-1,"job":{"name":"n"}}`: "every_ms", `{"every_ms":1e18,"job":{"name":"n"}}`: "every_ms", `{"every_ms":1500,"job":{"name":"n"}}`: "every_ms",
			`{"cron":"* * * * *","time_zone":"Mars/Olympus","job":{"name":"n"}}`: "time_zone", `{"cron":"* * * * *","time_zone":"../../etc/passwd","job":{"name":"n"}}`: "time_zone",
			`{"cron":"* * * * *","time_zone":"Local","job":{"name":"n"}}`: "time_zone", `{"cron":"* * * * *","missed":"all","job":{"name":"n"}}`: "missed", `{"cron":"* * * * *"}`: "job.name",
			`{"cron":"* * * * *","job":{"name":"n","opts":{"job_id":"x"}}}`: "job.opts.job_id", `{"cron":"* * * * *","job":{"name":"n","opts":{"delay_ms":-1}}}`: "job.opts.delay_ms"},
		"PUT " + queuesAt + "email/schedules/" + strings.Repeat("a", 129): {`{"every_ms":1000,"job":{"name":"n"}}`: "id"},
	} {
		for body, field := range bad {
			if a := js.ask(line, body, "key", js.shop); a.status != 422 || a.json["field"] != field {
				t.Errorf("%s %.80s: %d names %v, want %s: %s", line, body, a.status, a.json["field"], field, a.body)
			}
		}
	}
	if got := js.ask("GET "+queuesAt+"email/jobs/"+leased["id"].(string), "", "key", js.shop).is(200, ""); got.json["state"] != "active" {
		t.Errorf("a refused word changed the job: %s", got.body)
	}
}

// INV-22: what is another tenant's, what does not exist and what cannot exist get equal answers, by every route.
func TestHostileJobIDs(t *testing.T) {
	js := newJobServer(t, nil)
	js.ask("PUT "+queuesAt+"bars-own", `{}`, "key", js.bar).is(201, "")
	waiting := js.add(js.bar, "email", `{"name":"canary","data":"canary"}`)
	js.add(js.bar, "bars-own", `{"name":"canary"}`)
	js.ask("PUT "+queuesAt+"email/schedules/canary", `{"every_ms":3600000,"job":{"name":"n"}}`, "key", js.bar).is(200, "")
	js.add(js.bar, "email", `{"name":"canary","opts":{"priority":0}}`)
	leased := js.lease(js.bar, "email", `{"max":1}`)[0]
	delayed := js.add(js.bar, "email", `{"name":"canary","opts":{"delay_ms":3600000}}`)
	token := showing(leased, "")
	for _, route := range []struct{ line, body string }{
		{"GET %s", ""}, {"DELETE %s", ""}, {"POST %s/retry", ""}, {"POST %s/promote", ""}, {"GET %s/logs", ""}, {"POST %s/complete", token}, {"POST %s/fail", token},
		{"POST %s/extend", showing(leased, `,"lease_ms":1000`)}, {"POST %s/progress", showing(leased, `,"progress":1`)}, {"POST %s/log", showing(leased, `,"text":"t"`)},
	} {
		want := js.ask(fmt.Sprintf(route.line, queuesAt+"email/jobs/nothing"), route.body, "key", js.shop).is(404, "not_found")
		for _, id := range []string{waiting, delayed, leased["id"].(string), "%2e%2e", "..", "..%2f..%2fetc", "%00", "%E2%80%AE", strings.Repeat("a", 4096), "a%2Fb", "x%0ay", "%21"} {
			if a := js.ask(fmt.Sprintf(route.line, queuesAt+"email/jobs/"+id), route.body, "key", js.shop); a.status != 404 || a.body != want.body {
				t.Errorf("%s %.40s: %d %s", route.line, id, a.status, a.body)
			}
		}
	}
	many := js.ask("POST "+queuesAt+"email/complete", fmt.Sprintf(`{"jobs":[{"id":%q,"lease_token":%q},{"id":"nothing","lease_token":"t"}]}`, leased["id"], leased["lease_token"]), "key", js.shop).is(200, "")
	if all := objects(many.json["jobs"]); fmt.Sprint(all[0]["error"]) != fmt.Sprint(all[1]["error"]) {
		t.Errorf("a foreign job is told from none: %s", many.body)
	}
	for _, verb := range []string{"GET %s", "DELETE %s"} {
		want := js.ask(fmt.Sprintf(verb, queuesAt+"email/schedules/nothing"), "", "key", js.shop).is(404, "not_found")
		for _, id := range []string{"canary", "..", "%00", strings.Repeat("a", 4096)} {
			if a := js.ask(fmt.Sprintf(verb, queuesAt+"email/schedules/"+id), "", "key", js.shop); a.status != 404 || a.body != want.body {
				t.Errorf("%s %.40s: %d %s", verb, id, a.status, a.body)
			}
		}
	}
	for _, route := range []struct{ line, body string }{
		{"GET %s", ""}, {"POST %s/pause", ""}, {"POST %s/resume", ""}, {"POST %s/retry-failed", ""}, {"POST %s/promote", ""}, {"POST %s/drain", ""}, {"GET %s/jobs", ""}, {"GET %s/jobs/x", ""}, {"DELETE %s/jobs/x", ""},
		{"POST %s/jobs", `{"name":"n"}`}, {"POST %s/lease", `{}`}, {"GET %s/stream", ""}, {"GET %s/schedules", ""}, {"POST %s/jobs/x/complete", token}, {"POST %s/jobs/x/retry", ""},
		{"GET %s/jobs/x/logs", ""}, {"PUT %s/schedules/s", `{"every_ms":1000,"job":{"name":"n"}}`}, {"GET %s/schedules/s", ""}, {"DELETE %s/schedules/s", ""},
	} {
		want := js.ask(fmt.Sprintf(route.line, queuesAt+"nothing"), route.body, "key", js.shop).is(404, "queue_unknown")
		for _, queue := range []string{"bars-own", "events", "EMAIL", "%00", strings.Repeat("a", 300), "%E2%80%AE"} {
			if a := js.ask(fmt.Sprintf(route.line, queuesAt+queue), route.body, "key", js.shop); a.status != 404 || a.body != want.body {
				t.Errorf("%s of %.40s: %d %s\nwant %s", route.line, queue, a.status, a.body, want.body)
			}
		}
	}
	// All that a tenant can read says nothing of another (INV-20).
	for _, path := range []string{"", "email", "email/jobs", "email/jobs?state=active", "email/jobs?state=delayed", "email/jobs?state=completed", "email/schedules"} {
		if a := js.ask("GET "+strings.TrimSuffix(queuesAt+path, "/"), "", "key", js.shop).is(200, ""); strings.Contains(a.body, "canary") || strings.Contains(a.body, "bars-own") ||
			strings.Contains(a.body, waiting) || strings.Contains(a.body, `"waiting":1`) {
			t.Errorf("%s tells of another tenant: %s", path, a.body)
		}
	}
	if a := js.ask("POST "+queuesAt+"email/drain", `{"delayed":true}`, "key", js.shop).is(200, ""); a.json["count"] != 0.0 {
		t.Errorf("drained another tenant's: %s", a.body)
	}
	if a := js.ask("GET "+queuesAt+"email", "", "key", js.bar).is(200, ""); a.json["counts"].(map[string]any)["waiting"] != 1.0 {
		t.Errorf("something was taken from another tenant: %s", a.body)
	}
}

func TestHostileJobParameters(t *testing.T) {
	js := newJobServer(t, nil)
	for query, code := range map[string]string{
		"state=nope": "state_invalid", "state=WAITING": "state_invalid", "state=waiting&state=failed": "parameter_duplicate", "limit=0": "limit_invalid", "limit=101": "limit_invalid",
		"limit=-1": "limit_invalid", "limit=x": "limit_invalid", "cursor=x": "cursor_invalid", "cursor=" + strings.Repeat("A", 9000): "cursor_invalid", "nope=1": "parameter_unknown",
		"State=waiting": "parameter_unknown", "limit=%zz": "parameter_invalid",
	} {
		js.ask("GET "+queuesAt+"email/jobs?"+query, "", "key", js.shop).is(400, code)
	}
	for _, line := range []string{"GET /api/v1/queues?state=x", "GET " + queuesAt + "email?x=1", "POST " + queuesAt + "email/lease?max=1", "GET " + queuesAt + "email/stream?last=1",
		"DELETE " + queuesAt + "email/jobs/x?force=1"} {
		js.ask(line, "", "key", js.shop).is(400, "parameter_unknown")
	}
	for line, allow := range map[string]string{"PUT " + queuesAt + "email/jobs": "POST", "DELETE " + queuesAt + "email": "PUT", "GET " + queuesAt + "email/lease": "POST", "PATCH " + queuesAt + "email/jobs/x": "DELETE"} {
		if a := js.ask(line, "", "key", js.shop).is(405, "method_not_allowed"); !strings.Contains(a.header.Get("Allow"), allow) {
			t.Errorf("%s: Allow is %q", line, a.header.Get("Allow"))
		}
	}
	for _, path := range []string{"queues/", "queues//jobs", "queues/email/", "queues/email/jobs/", "queues/email/jobs/x/", "queues/email/jobs/x/complete/", "queues/email/nope", "queues/email/jobs/x/nope"} {
		js.ask("GET /api/v1/"+path, "", "key", js.shop).is(404, "not_found")
	}
}

// Who is calling is asked on every route, before anything else is.
func TestQueuesNeedACaller(t *testing.T) {
	js := newJobServer(t, nil)
	lines := []string{"GET /api/v1/queues", "GET " + queuesAt + "email", "POST " + queuesAt + "email/pause", "POST " + queuesAt + "email/resume", "POST " + queuesAt + "email/retry-failed",
		"GET " + queuesAt + "email/jobs", "GET " + queuesAt + "email/jobs/x", "DELETE " + queuesAt + "email/jobs/x", "POST " + queuesAt + "email/jobs/x/retry", "POST " + queuesAt + "email/jobs/x/promote",
		"GET " + queuesAt + "email/jobs/x/logs", "GET " + queuesAt + "email/stream", "GET " + queuesAt + "email/schedules", "GET " + queuesAt + "email/schedules/s", "DELETE " + queuesAt + "email/schedules/s"}
	for line := range bodyRoutes {
		lines = append(lines, line)
	}
	for _, line := range lines {
		js.ask(line, bodyRoutes[line]).is(401, "auth_missing")
		js.ask(line, bodyRoutes[line], "key", "tbk_"+strings.Repeat("z", 56)).is(401, "auth_invalid")
		js.ask(line, bodyRoutes[line], "key", js.shop, "X-Tenant-ID", "bar").is(403, "tenant_mismatch")
		if method, _, _ := strings.Cut(line, " "); method != "GET" {
			js.ask(line, bodyRoutes[line], "key", js.shop, "Origin", "https://evil.example").is(403, "cross_origin")
		}
	}
}

// Large bodies share a budget: what does not fit is told to come again, holds nothing, and leaves room for other tenants.
func TestLargeBodiesHaveABudget(t *testing.T) {
	js := newJobServer(t, nil)
	hold := &holding{admission: &js.admission}
	shop, _ := js.tenants.Get("shop")
	if err := hold.enter(&shop, js.now()); err != nil {
		t.Fatal(err)
	}
	if err := hold.grow(tenantLargeBodiesMax); err != nil {
		t.Fatal(err)
	}
	large := `{"name":"n","data":"` + strings.Repeat("x", 200<<10) + `"}`
	if a := js.ask("POST "+queuesAt+"email/jobs", large, "key", js.shop).is(429, "rate_limited"); a.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	js.ask("POST "+queuesAt+"email/jobs", `{"name":"n"}`, "key", js.shop).is(201, "")
	js.ask("POST "+queuesAt+"email/jobs", large, "key", js.bar).is(201, "")
	hold.release()
	js.ask("POST "+queuesAt+"email/jobs", large, "key", js.shop).is(201, "")
	if n := js.admission.large.Load(); n != 0 {
		t.Errorf("%d bytes are still held", n)
	}
}

// Answers that nobody reads are bounded too: beyond that nothing is read or leased, and what is small goes on.
func TestLargeAnswersHaveABudget(t *testing.T) {
	js := newJobServer(t, nil)
	id := js.add(js.shop, "email", `{"name":"n","data":"`+strings.Repeat("x", 200<<10)+`"}`)
	js.add(js.bar, "email", `{"name":"n"}`)
	var slow exchange
	slow.s = js.Server
	l, _ := js.admission.lanes.Load(tenants.ID("shop"))
	slow.lane = l.(*lane)
	sent := slow.answering(tenantLargeAnswersMax + 1)
	for _, line := range []string{"GET " + queuesAt + "email/jobs", "GET " + queuesAt + "email/jobs/" + id, "POST " + queuesAt + "email/lease"} {
		body := ""
		if strings.HasPrefix(line, "POST") {
			body = "{}"
		}
		if a := js.ask(line, body, "key", js.shop).is(429, "rate_limited"); a.header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
		js.ask(strings.TrimSuffix(line, "/"+id), body, "key", js.bar).is(200, "")
	}
	js.ask("GET "+queuesAt+"email", "", "key", js.shop).is(200, "")
	sent()
	if got := js.lease(js.shop, "email", `{}`); len(got) != 1 {
		t.Errorf("leased %v", got)
	}
	js.ask("GET "+queuesAt+"email/jobs/"+id, "", "key", js.shop).is(200, "")
	if n, m := js.admission.answers.Load(), slow.lane.answers.Load(); n != 0 || m != 0 {
		t.Errorf("%d and %d bytes are still counted", n, m)
	}
}

// A bulk of a million empty jobs is refused where the list becomes too long, and costs what its bytes cost.
func TestHostileBulkIsFlat(t *testing.T) {
	js := newJobServer(t, nil)
	body := `{"jobs":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := httptest.NewRequestWithContext(t.Context(), "POST", queuesAt+"email/jobs", strings.NewReader(body))
	r.Host, r.ContentLength = "127.0.0.1", -1
	r.Header = http.Header{"Authorization": {"Bearer " + js.shop}, "Content-Type": {"application/json"}}
	js.serve(r).is(422, "member_invalid")
	runtime.ReadMemStats(&after)
	if each := after.TotalAlloc - before.TotalAlloc; each > 24<<20 {
		t.Errorf("%d bytes allocated for a body of %d", each, len(body))
	}
}

// A body whose length is not told is read no further than it may be long.
func TestEndlessJobBody(t *testing.T) {
	js := newJobServer(t, nil)
	for limit, c := range map[int]struct{ line, start string }{
		bulkBodyMax: {"POST " + queuesAt + "email/jobs", `{"name":"n","data":"`},
		jobBodyMax:  {"POST " + queuesAt + "email/jobs/x/complete", `{"lease_token":"t","result":"`},
		bodyMax:     {"POST " + queuesAt + "email/lease", `{"worker":"`},
	} {
		method, target, _ := strings.Cut(c.line, " ")
		endless := &countingReader{start: strings.NewReader(c.start)}
		r := httptest.NewRequestWithContext(t.Context(), method, target, endless)
		r.Host, r.ContentLength = "127.0.0.1", -1
		r.Header = http.Header{"Authorization": {"Bearer " + js.shop}, "Content-Type": {"application/json"}}
		js.serve(r).is(413, "body_too_large")
		if endless.read > limit+1 {
			t.Errorf("%s: %d bytes were read, %d may be sent", c.line, endless.read, limit)
		}
	}
}

// countingReader goes on for ever.
type countingReader struct {
	start io.Reader
	read  int
}

func (c *countingReader) Read(p []byte) (n int, err error) {
	if n, err = c.start.Read(p); err != nil {
		for n = range p {
			p[n] = 'x'
		}
		n = len(p)
	}
	c.read += n
	return n, nil
}

// Whatever is added is refused as the client's mistake or comes back as it was.
func FuzzNewJobs(f *testing.F) {
	for _, s := range []string{`{"name":"n"}`, `{"name":"n","data":{"a":[1,2.50,"\u00e9"]},"opts":{"priority":1,"delay_ms":5,"attempts":2,"backoff":{"type":"fixed","delay_ms":0},"job_id":"a:b","timeout_ms":1}}`,
		`{"jobs":[{"name":"a"},{"name":"b","opts":{"remove_on_complete":{"count":1,"age_s":2},"remove_on_fail":false}}]}`, `{"jobs":[]}`, `{"name":"n","opts":{"remove_on_fail":0}}`,
		`{"name":"\ud800"}`, `{"name":"n","data": [ ] }`, "", "null", `{"jobs":[`, `{"jobs":[{}`, `{"name":"n","opts":{"backoff":{"jitter":1e-320}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var in newJobs
		err := decodeDeep(body, dataDepthMax, &in)
		var wishes []jobs.NewJob
		if err == nil {
			wishes, err = in.wishes("shop", "email")
		}
		if err != nil {
			var p *Problem
			if !errors.As(err, &p) || p.Status != 400 && p.Status != 422 || len(p.Field) > clipMax+len("…") {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		for _, n := range wishes {
			text := appendJob(nil, &jobs.Job{NewJob: n, State: jobs.Waiting}, false, false)
			var view jobView
			if err := decodeDeep(text, dataDepthMax+2, &view); err != nil {
				t.Fatalf("%q became %s: %v", body, text, err)
			}
			if len(n.Data) > 0 && string(view.Data) != string(n.Data) || view.Name != n.Name || view.ID != n.ID {
				t.Errorf("%q became %s", body, text)
			}
		}
	})
}
