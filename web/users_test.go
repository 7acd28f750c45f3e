package web

import (
	"context"
	"testing"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// oneUser is a ledger with one user, and notes what is asked of it.
type oneUser struct {
	fakeLedger
	change  ledger.UserChange
	created ledger.NewUser
	key     ledger.IdempotencyKey
}

func (l *oneUser) CreateUser(_ context.Context, _ tenants.ID, key ledger.IdempotencyKey, n ledger.NewUser) (ledger.User, bool, error) {
	replayed := key != "" && key == l.key
	l.created, l.key = n, key
	return ledger.User{ID: ledger.UserID(n.ID), Object: "user", Email: n.Email, Version: 1}, replayed, nil
}

func (l *oneUser) User(_ context.Context, _ tenants.ID, id string) (ledger.User, error) {
	if id != "ana" {
		return ledger.User{}, &ledger.Error{Kind: ledger.NotFound, Code: "not_found"}
	}
	return ledger.User{ID: "ana", Object: "user", Version: 7}, nil
}

func (l *oneUser) UserByEmail(_ context.Context, _ tenants.ID, email string) (ledger.User, bool, error) {
	return ledger.User{ID: "ana"}, email == "ana@example.org", nil
}

func (l *oneUser) ChangeUser(ctx context.Context, t tenants.ID, id string, c ledger.UserChange) (ledger.User, error) {
	l.change = c
	u, err := l.User(ctx, t, id)
	if err == nil && c.Version != 0 && c.Version != u.Version {
		err = &ledger.Error{Kind: ledger.Stale, Code: "version_mismatch", Field: "If-Match", Message: "changed meanwhile"}
	}
	return u, err
}

func (l *oneUser) VerifyUser(ctx context.Context, t tenants.ID, id string) (ledger.User, error) {
	return l.User(ctx, t, id)
}

func TestUsersOverHTTP(t *testing.T) {
	l := &oneUser{}
	ts := newTestServer(t, func(o *Options) { o.Ledger = l })
	const path = "/api/v1/users"
	for i := range 2 {
		a := ts.ask("POST "+path, `{"id":"a b/c","email":"ana@example.org"}`, "key", ts.shop, "Idempotency-Key", "k").is(201, "")
		if a.header.Get("Location") != path+"/a%20b%2Fc" || a.header.Get("ETag") != `"1"` || (a.header.Get("Idempotent-Replayed") == "true") != (i == 1) {
			t.Errorf("request %d: %v", i, a.header)
		}
	}
	if a := ts.ask("GET "+path+"/ana", "", "key", ts.shop).is(200, ""); a.header.Get("ETag") != `"7"` {
		t.Errorf("ETag %s", a.header.Get("ETag"))
	}
	ts.ask("GET "+path+"/eve", "", "key", ts.shop).is(404, "not_found")
	ts.ask("GET "+path, "", "key", ts.shop).is(400, "parameter_missing")
	for email, n := range map[string]int{"ana@example.org": 1, "eve@example.org": 0} {
		a := ts.ask("GET "+path+"?email="+email, "", "key", ts.shop).is(200, "")
		if got := a.json["data"].([]any); len(got) != n {
			t.Errorf("%s: %v", email, got)
		}
	}
	for match, want := range map[string]struct {
		status  int
		code    string
		version int64
	}{
		"":     {200, "", 0},
		"*":    {200, "", 0},
		`"7"`:  {200, "", 7},
		`"6"`:  {412, "version_mismatch", 6},
		"7":    {400, "if_match_invalid", -1},
		`W"7"`: {400, "if_match_invalid", -1},
		`"0"`:  {400, "if_match_invalid", -1},
		`"-1"`: {400, "if_match_invalid", -1},
	} {
		l.change.Version = -1
		headers := []string{"key", ts.shop}
		if match != "" {
			headers = append(headers, "If-Match", match)
		}
		ts.ask("PATCH "+path+"/ana", `{"name":"Ana"}`, headers...).is(want.status, want.code)
		if l.change.Version != want.version {
			t.Errorf("If-Match %s: version %d", match, l.change.Version)
		}
	}
	ts.ask("POST "+path, `{"email":"a@example.org","verified_at":"2026-01-01T00:00:00Z"}`, "key", ts.shop).is(422, "member_unknown")
	ts.ask("POST "+path+"/ana/verify", "", "key", ts.shop).is(200, "")
}
