package web

import (
	"path/filepath"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/store"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// newBookServer is a server in front of a real ledger, which does not run: what is delivered, a test delivers.
func newBookServer(t *testing.T) (*testServer, *ledger.Ledger) {
	t.Helper()
	dir := t.TempDir()
	file, err := store.Open(filepath.Join(dir, "jobs.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	engine, err := jobs.Open(file, jobs.Options{Queues: []jobs.QueueConfig{{Name: ledger.PaymentsQueue}, {Name: ledger.NotificationsQueue}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	keyring, err := tenants.CreateKeyring(filepath.Join(dir, "shards.key"))
	if err != nil {
		t.Fatal(err)
	}
	var book *ledger.Ledger
	ts := newTestServer(t, func(o *Options) {
		book, err = ledger.Open(t.Context(), ledger.Options{Dir: filepath.Join(dir, "shards"), Keyring: keyring, Tenants: o.Tenants, Jobs: engine,
			Accounts: upstream.NewAccounts(upstream.Config{})})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = book.Close() })
		o.Ledger = book
	})
	return ts, book
}

const (
	notificationsAt = "/api/v1/notifications"
	usersAt         = "/api/v1/users"
)

// withUser adds a user to both tenants.
func (ts *testServer) withUser(id string) {
	ts.t.Helper()
	for _, key := range []string{ts.shop, ts.bar} {
		ts.ask("POST "+usersAt, `{"id":"`+id+`","email":"`+id+`@example.org"}`, "key", key).is(201, "")
	}
}

// deliver does what the queue's job does.
func deliver(t *testing.T, book *ledger.Ledger, tenant tenants.ID, job, user, message string) string {
	t.Helper()
	id, err := book.Deliver(t.Context(), tenant, ledger.Push{JobID: job, EnqueuedAt: time.Unix(1, 0), UserID: user, Message: message})
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}

func TestNotificationsOverHTTP(t *testing.T) {
	ts, book := newBookServer(t)
	ts.withUser("ana")
	const body = `{"user_id":"ana","message":"Your order is ready"}`
	var id string
	for i := range 2 {
		a := ts.ask("POST "+notificationsAt, body, "key", ts.shop, "Idempotency-Key", "k").is(201, "")
		if (a.header.Get("Idempotent-Replayed") == "true") != (i == 1) || i == 1 && a.json["id"] != id {
			t.Errorf("request %d: %v %s", i, a.header, a.body)
		}
		if id = a.json["id"].(string); a.json["job_id"] != id || a.json["queue"] != "notifications" || a.json["object"] != "notification" ||
			a.json["user_id"] != "ana" || a.json["delivered_at"] != nil || a.json["read_at"] != nil {
			t.Fatalf("%s", a.body)
		}
	}
	ts.ask("POST "+notificationsAt, `{"message":"Your order is ready", "user_id":"ana"}`, "key", ts.shop, "Idempotency-Key", "k").is(201, "")
	ts.ask("POST "+notificationsAt, `{"user_id":"ana","message":"no"}`, "key", ts.shop, "Idempotency-Key", "k").is(422, "idempotency_mismatch")
	if a := ts.ask("POST "+notificationsAt, body, "key", ts.bar, "Idempotency-Key", "k").is(201, ""); a.json["id"] == id {
		t.Error("two tenants share a key")
	}
	deliver(t, book, "shop", id, "ana", "Your order is ready")
	for i := range 4 {
		deliver(t, book, "shop", string(rune('a'+i)), "ana", "more")
	}
	a := ts.ask("POST "+notificationsAt+"/"+id+"/read", "", "key", ts.shop).is(200, "")
	if again := ts.ask("POST "+notificationsAt+"/"+id+"/read", "", "key", ts.shop).is(200, ""); a.json["read_at"] == nil || again.body != a.body {
		t.Errorf("read %s, again %s", a.body, again.body)
	}
	if a := ts.ask("POST "+notificationsAt, body, "key", ts.shop, "Idempotency-Key", "k").is(201, ""); a.json["read_at"] == nil {
		t.Errorf("a replay is not as it now is: %s", a.body)
	}
	seen, next := map[string]bool{}, ""
	for n := 0; ; n++ {
		a := ts.ask("GET "+notificationsAt+"?user_id=ana&limit=2"+next, "", "key", ts.shop).is(200, "")
		if a.json["unread"] != 4.0 {
			t.Errorf("unread: %s", a.body)
		}
		for _, one := range objects(a.json["data"]) {
			seen[one["id"].(string)] = true
		}
		if a.json["has_more"] != true {
			if a.json["next_cursor"] != nil || n != 2 {
				t.Errorf("page %d: %s", n, a.body)
			}
			break
		}
		next = "&cursor=" + a.json["next_cursor"].(string)
	}
	if len(seen) != 5 || !seen[id] {
		t.Errorf("listed %v", seen)
	}
	if a := ts.ask("GET "+notificationsAt+"?user_id=nobody", "", "key", ts.shop).is(200, ""); a.body != `{"data":[],"has_more":false,"next_cursor":null,"unread":0}` {
		t.Errorf("nobody's inbox: %s", a.body)
	}

	p := ts.ask("GET "+usersAt+"/ana/profile", "", "key", ts.shop).is(200, "")
	if p.json["locale"] != "en" || p.json["notifications"] != true {
		t.Errorf("%s", p.body)
	}
	p = ts.ask("PATCH "+usersAt+"/ana/profile", `{"notifications":false}`, "key", ts.shop).is(200, "")
	if p.json["locale"] != "en" || p.json["notifications"] != false {
		t.Errorf("%s", p.body)
	}
	p = ts.ask("PATCH "+usersAt+"/ana/profile", `{"locale":"pt-br"}`, "key", ts.shop).is(200, "")
	if p.json["locale"] != "pt-BR" || p.json["notifications"] != false {
		t.Errorf("%s", p.body)
	}
	ts.ask("PATCH "+usersAt+"/ana/profile", `{"locale":"klingon!"}`, "key", ts.shop).is(422, "locale_invalid")
}
