package ledger

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"tenderbox/tenants"
)

func ana() NewUser { return NewUser{Email: "Ana@Example.org", Name: "Ana"} }

func (b *testBox) user(n NewUser) User {
	b.t.Helper()
	u, _, err := b.CreateUser(b.t.Context(), testTenant, "", n)
	if err != nil {
		b.t.Fatal(err)
	}
	return u
}

func TestUserIsCreatedChangedAndVerified(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	u := b.user(ana())
	if u.Email != "Ana@Example.org" || u.VerifiedAt != nil || u.Version != 1 {
		t.Fatalf("%+v", u)
	}
	v := must(b.VerifyUser(t.Context(), testTenant, string(u.ID)))(t)
	again := must(b.VerifyUser(t.Context(), testTenant, string(u.ID)))(t)
	if v.VerifiedAt == nil || again != v && *again.VerifiedAt != *v.VerifiedAt || again.Version != v.Version {
		t.Fatalf("verified twice: %+v, %+v", v, again)
	}
	name, mail := "Ana Lima", "ana.lima@example.org"
	c := must(b.ChangeUser(t.Context(), testTenant, string(u.ID), UserChange{Name: &name, Version: v.Version}))(t)
	if c.Name != name || c.VerifiedAt == nil {
		t.Errorf("a new name: %+v", c)
	}
	if _, err := b.ChangeUser(t.Context(), testTenant, string(u.ID), UserChange{Name: &name, Version: v.Version}); code(err) != "version_mismatch" {
		t.Errorf("a change of an older version: %v", err)
	}
	c = must(b.ChangeUser(t.Context(), testTenant, string(u.ID), UserChange{Email: &mail}))(t)
	if c.VerifiedAt != nil {
		t.Error("the new address counts as verified")
	}
	b = b.reopen(nil)
	if got := must(b.User(t.Context(), testTenant, string(u.ID)))(t); got.Email != mail || got.Version != c.Version {
		t.Errorf("after a restart: %+v", got)
	}
	if _, err := b.User(t.Context(), testTenant, "nobody"); code(err) != "not_found" {
		t.Errorf("an unknown user: %v", err)
	}
	types := map[EventType]int{}
	for _, p := range b.parts {
		if err := readJournal(t.Context(), p.shard, 0, 100, func(e *Event) error { types[e.Type]++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if types[UserCreated] != 1 || types[UserVerified] != 1 {
		t.Errorf("events: %v", types)
	}
	b.sound()
}

// An address is unique in its tenant, over all shards, in any case of letters, however many ask at once.
func TestEmailIsUniqueOverShards(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, taken := 0, 0
	for i := range 40 {
		wg.Go(func() {
			mail := "straße@example.org"
			if i%2 == 0 {
				mail = "STRASSE@Example.org"
			}
			_, _, err := b.CreateUser(t.Context(), testTenant, "", NewUser{ID: fmt.Sprint("u", i), Email: mail})
			mu.Lock()
			defer mu.Unlock()
			switch code(err) {
			case "<nil>":
				made++
			case "email_taken":
				taken++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 || taken != 39 {
		t.Fatalf("%d made, %d refused", made, taken)
	}
	b = b.reopen(nil)
	if _, _, err := b.CreateUser(t.Context(), testTenant, "", NewUser{Email: "Strasse@example.org"}); code(err) != "email_taken" {
		t.Errorf("after a restart: %v", err)
	}
	other := b.user(ana())
	mail := "strasse@EXAMPLE.org"
	if _, err := b.ChangeUser(t.Context(), testTenant, string(other.ID), UserChange{Email: &mail}); code(err) != "email_taken" {
		t.Errorf("changed to a taken address: %v", err)
	}
	own := "ANA@example.org"
	if _, err := b.ChangeUser(t.Context(), testTenant, string(other.ID), UserChange{Email: &own}); err != nil {
		t.Errorf("changed to its own address: %v", err)
	}
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.CreateUser(t.Context(), "other", "", NewUser{Email: mail}); err != nil {
		t.Errorf("another tenant's user: %v", err)
	}
	if _, ok, err := b.UserByEmail(t.Context(), "other", own); ok || err != nil {
		t.Errorf("another tenant finds the address: %v, %v", ok, err)
	}
}

func TestUsersKeyIsReplayed(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	for _, id := range []string{"", "staff:7", "usr_01ARZ3NDEKTSV4RRFFQ69G5FAV"} {
		key := IdempotencyKey("user key " + id)
		n := NewUser{ID: id, Email: fmt.Sprintf("m%d@example.org", len(id))}
		first, replayed, err := b.CreateUser(t.Context(), testTenant, key, n)
		if err != nil || replayed {
			t.Fatal(replayed, err)
		}
		for range 2 { // before and after a restart
			again, replayed, err := b.CreateUser(t.Context(), testTenant, key, n)
			if err != nil || !replayed || again.ID != first.ID {
				t.Fatalf("%q: %v %v, %+v", id, replayed, err, again)
			}
			if _, _, err := b.Pay(t.Context(), testTenant, key, validPayment()); !errors.Is(err, errKeyMismatch) {
				t.Fatalf("the key of a user serves a payment: %v", err)
			}
			b = b.reopen(nil)
		}
	}
	b.sound()
}

func TestUserRefusals(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	b.user(NewUser{ID: "taken", Email: "taken@example.org"})
	for _, c := range []struct {
		n    NewUser
		code string
	}{
		{NewUser{}, "email_invalid"},
		{NewUser{Email: "ana"}, "email_invalid"},
		{NewUser{Email: "Ana <ana@example.org>"}, "email_invalid"},
		{NewUser{Email: "a@example.org, b@example.org"}, "email_invalid"},
		{NewUser{Email: "a@example.org\r\nBcc: b@example.org"}, "email_invalid"},
		{NewUser{Email: strings.Repeat("a", 250) + "@example.org"}, "email_invalid"},
		{NewUser{ID: "a/b", Email: "a@example.org"}, "id_invalid"},
		{NewUser{ID: "..", Email: "a@example.org"}, "id_invalid"},
		{NewUser{ID: "a\x00", Email: "a@example.org"}, "text_invalid"},
		{NewUser{Email: "a@example.org", Name: "a\nb"}, "text_invalid"},
		{NewUser{Email: "a@example.org", Name: "4242 4242 4242 4242"}, "card_data_not_allowed"},
		{NewUser{Email: "4242424242424242@example.org"}, "card_data_not_allowed"},
		{NewUser{ID: "taken", Email: "a@example.org"}, "user_exists"},
	} {
		if _, _, err := b.CreateUser(t.Context(), testTenant, "", c.n); code(err) != c.code {
			t.Errorf("%+v: %v, want %s", c.n, err, c.code)
		}
	}
}
