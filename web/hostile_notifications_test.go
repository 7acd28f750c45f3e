package web

import (
	"fmt"
	"strings"
	"testing"
)

// RELIABILITY.md, "Hostile input", on inboxes and profiles: never a 5xx, the member at fault is named, nothing is stored.

func TestHostileNotificationBodies(t *testing.T) {
	ts, _ := newBookServer(t)
	ts.withUser("ana")
	with := func(message string) string { return `{"user_id":"ana","message":` + message + `}` }
	for _, c := range []struct {
		body   string
		status int
		code   string
		field  string
	}{
		{" ", 400, "body_missing", ""},
		{"null", 400, "json_invalid", ""},
		{"[]", 400, "json_invalid", ""},
		{with(`"m"`) + "{}", 400, "json_invalid", ""},
		{`{"message":"m"}`, 422, "user_missing", "user_id"},
		{`{"user_id":"","message":"m"}`, 422, "user_missing", "user_id"},
		{`{"user_id":7,"message":"m"}`, 422, "", "user_id"},
		{`{"user_id":"nobody","message":"m"}`, 422, "user_unknown", "user_id"},
		{`{"user_id":"a\r\nb","message":"m"}`, 422, "text_invalid", "user_id"},
		{`{"user_id":"` + strings.Repeat("u", 300) + `","message":"m"}`, 422, "text_too_long", "user_id"},
		{`{"user_id":"ana"}`, 422, "message_missing", "message"},
		{with(`""`), 422, "message_missing", "message"},
		{with(`null`), 422, "", "message"},
		{with(`{"a":1}`), 422, "", "message"},
		{with(`"` + strings.Repeat("é", 1001) + `"`), 422, "text_too_long", "message"},
		{with(`"a\u0000"`), 422, "text_invalid", "message"},
		{with(`"\u001b[2J"`), 422, "text_invalid", "message"},
		{with(`"\ud800"`), 400, "", ""},
		{with("\"\xff\""), 400, "", ""},
		{with(`"pay 4242-4242-4242-4242 now"`), 422, "card_data_not_allowed", "message"},
		{`{"user_id":"ana","message":"m","message":"n"}`, 400, "member_duplicate", "message"},
		{`{"user_id":"ana","Message":"m"}`, 422, "member_unknown", "Message"},
		{`{"user_id":"ana","message":"m","read_at":"2026-01-01T00:00:00Z"}`, 422, "member_unknown", "read_at"},
		{`{"user_id":"ana","message":"m","tenant":"bar"}`, 422, "member_unknown", "tenant"},
		{`{"user_id":"ana","message":"m","__proto__":{}}`, 422, "member_unknown", "__proto__"},
		{strings.Repeat(`{"a":`, 10_000), 400, "json_too_deep", ""},
		{with(`"` + strings.Repeat("m", 70_000) + `"`), 413, "body_too_large", ""},
	} {
		a := ts.ask("POST "+notificationsAt, c.body, "key", ts.shop)
		if a.status != c.status || c.code != "" && a.json["code"] != c.code || c.field != "" && a.json["field"] != c.field {
			t.Errorf("%.60q: %d %s, want %d %s of %s", c.body, a.status, a.body, c.status, c.code, c.field)
		}
		if strings.Contains(a.body, "4242") {
			t.Errorf("shown back: %s", a.body)
		}
	}
	for _, key := range []string{"", strings.Repeat("k", 256), "a\tb", "ключ"} {
		ts.ask("POST "+notificationsAt, with(`"m"`), "key", ts.shop, "Idempotency-Key", key).is(400, "idempotency_key_invalid")
	}
	ts.ask("POST "+notificationsAt, with(`"m"`), "key", ts.shop, "-", "Content-Type").is(415, "content_type_unsupported")
	for body, field := range map[string]string{`{"locale":5}`: "locale", `{"locale":""}`: "locale", `{"locale":"../../etc/passwd"}`: "locale", `{"locale":"` + strings.Repeat("a-", 9000) + `"}`: "locale",
		`{"locale":"en\r\nX: y"}`: "locale", `{"notifications":"yes"}`: "notifications", `{"notifications":1}`: "notifications", `{"unread":0}`: "unread", `{"user_id":"eve"}`: "user_id"} {
		if a := ts.ask("PATCH "+usersAt+"/ana/profile", body, "key", ts.shop); a.status != 422 || a.json["field"] != field {
			t.Errorf("%.60s: %d %s", body, a.status, a.body)
		}
	}
	// What people write comes back as it was.
	for _, message := range []string{`\u202eevil`, `<script>alert(1)</script>`, `'; DROP TABLE notifications;--`, `=cmd()`, `two\nlines`, `e\u0301 \ud83d\ude00`, `0101-2026 is no card`} {
		ts.ask("POST "+notificationsAt, with(`"`+message+`"`), "key", ts.shop).is(201, "")
	}
	if a := ts.ask("GET "+usersAt+"/ana/profile", "", "key", ts.shop).is(200, ""); a.json["locale"] != "en" || a.json["created_at"] != nil {
		t.Errorf("a refused change left something: %s", a.body)
	}
	if log := ts.log.String(); log != "" {
		t.Errorf("refusals were logged:\n%s", log)
	}
}

// INV-20, INV-22: what is another tenant's, what does not exist and what cannot exist get equal answers; nothing of one inbox is seen in another.
func TestHostileNotificationIDs(t *testing.T) {
	ts, book := newBookServer(t)
	ts.withUser("ana")
	ts.ask("POST "+usersAt, `{"id":"bars-own","email":"own@example.org"}`, "key", ts.bar).is(201, "")
	foreign := deliver(t, book, "bar", "j", "ana", "canary")
	want := ts.ask("POST "+notificationsAt+"/nothing/read", "", "key", ts.shop).is(404, "not_found")
	for _, id := range []string{foreign, strings.ToLower(foreign), "pay_" + foreign[4:], "ntf_", "ntf_00000000000000000000000000", "..", "%2e%2e", "..%2f..%2fetc", "%00", "%E2%80%AE", "a%2Fb", strings.Repeat("a", 4096), "x%0ay"} {
		if a := ts.ask("POST "+notificationsAt+"/"+id+"/read", "", "key", ts.shop); a.status != 404 || a.body != want.body {
			t.Errorf("%.40s: %d %s", id, a.status, a.body)
		}
	}
	for _, line := range []string{"GET %s/profile", "PATCH %s/profile"} {
		body := strings.Repeat(`{"locale":"de"}`, strings.Count(line, "PATCH"))
		want := ts.ask(fmt.Sprintf(line, usersAt+"/nobody"), body, "key", ts.shop).is(404, "not_found")
		for _, id := range []string{"bars-own", "..", "%00", strings.Repeat("a", 4096), "%E2%80%AE"} {
			if a := ts.ask(fmt.Sprintf(line, usersAt+"/"+id), body, "key", ts.shop); a.status != 404 || a.body != want.body {
				t.Errorf("%s of %.40s: %d %s", line, id, a.status, a.body)
			}
		}
	}
	unknown := ts.ask("POST "+notificationsAt, `{"user_id":"nobody","message":"m"}`, "key", ts.shop).is(422, "user_unknown")
	if a := ts.ask("POST "+notificationsAt, `{"user_id":"bars-own","message":"m"}`, "key", ts.shop); a.status != 422 || a.body != unknown.body {
		t.Errorf("another tenant's user: %d %s", a.status, a.body)
	}
	deliver(t, book, "bar", "j", "bars-own", "canary")
	empty := ts.ask("GET "+notificationsAt+"?user_id=nobody", "", "key", ts.shop).is(200, "")
	for _, user := range []string{"ana", "bars-own"} {
		if a := ts.ask("GET "+notificationsAt+"?user_id="+user, "", "key", ts.shop).is(200, ""); a.body != empty.body {
			t.Errorf("the inbox of %s: %s", user, a.body)
		}
	}
	if a := ts.ask("GET "+notificationsAt+"?user_id=ana", "", "key", ts.bar).is(200, ""); a.json["unread"] != 1.0 {
		t.Errorf("another tenant changed it: %s", a.body)
	}
	ts.ask("GET "+notificationsAt+"?user_id=ana", "", "key", operatorToken).is(400, "tenant_missing")
	ts.ask("GET "+notificationsAt+"?user_id=ana", "", "key", operatorToken, "X-Tenant-ID", "bar").is(200, "")
	ts.ask("GET "+notificationsAt+"?user_id=ana", "", "key", ts.shop, "X-Tenant-ID", "bar").is(403, "tenant_mismatch")
	ts.ask("GET "+notificationsAt+"?user_id=ana", "").is(401, "auth_missing")
}

func TestHostileInboxParameters(t *testing.T) {
	ts, book := newBookServer(t)
	ts.withUser("ana")
	ts.withUser("bob")
	for _, job := range []string{"1", "2"} {
		deliver(t, book, "shop", job, "ana", "m")
		deliver(t, book, "shop", job, "bob", "m")
	}
	cursor := ts.ask("GET "+notificationsAt+"?user_id=ana&limit=1", "", "key", ts.shop).is(200, "").json["next_cursor"].(string)
	flipped := []byte(cursor)
	flipped[3] ^= 1
	for query, code := range map[string]string{
		"": "parameter_missing", "?user_id=": "parameter_missing", "?user_id=ana&user_id=bob": "parameter_duplicate", "?user=ana": "parameter_unknown", "?user_id=ana&read=1": "parameter_unknown",
		"?user_id=ana&limit=0": "limit_invalid", "?user_id=ana&limit=101": "limit_invalid", "?user_id=ana&limit=-1": "limit_invalid", "?user_id=ana&limit=x": "limit_invalid",
		"?user_id=ana&cursor=x": "cursor_invalid", "?user_id=ana&cursor=" + string(flipped): "cursor_invalid", "?user_id=bob&cursor=" + cursor: "cursor_invalid",
		"?user_id=ana&cursor=" + strings.Repeat("A", 9000): "cursor_invalid", "?user_id=%00": "text_invalid", "?user_id=" + strings.Repeat("u", 300): "text_too_long", "?user_id=%zz": "parameter_invalid",
	} {
		ts.ask("GET "+notificationsAt+query, "", "key", ts.shop).is(400, code)
	}
	ts.ask("GET "+notificationsAt+"?user_id=ana&cursor="+cursor, "", "key", ts.bar).is(400, "cursor_invalid")
	ts.ask("GET "+notificationsAt+"?user_id=ana&cursor="+cursor, "", "key", ts.shop).is(200, "")
	ts.ask("DELETE "+notificationsAt+"?user_id=ana", "", "key", ts.shop).is(405, "method_not_allowed")
	ts.ask("GET "+notificationsAt+"/", "", "key", ts.shop).is(404, "not_found")
}
