package tenants

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

// hooked is a box whose clock the test sets.
type hooked struct {
	*testBox
	now  time.Time
	logs bytes.Buffer
}

var errURL = &InvalidError{"url", "ends in forbidden"}

func newHooked(t *testing.T, ids ...ID) *hooked {
	t.Helper()
	b := &hooked{testBox: newTestBox(t, ""), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	b.restart()
	for _, id := range ids {
		b.add(New{ID: id})
	}
	return b
}

// restart opens the file anew.
func (b *hooked) restart() {
	b.t.Helper()
	check(b.t, b.st.Close())
	b.st = storetest.Reopen(b.t, b.file(), store.Options{})
	var err error
	b.Registry, err = Open(b.st, b.kr, Options{Now: func() time.Time { return b.now }, Logger: slog.New(slog.NewTextHandler(&b.logs, nil)),
		CheckURL: func(url string) error {
			if strings.HasSuffix(url, "forbidden") {
				return errURL
			}
			return nil
		}})
	check(b.t, err)
}

func (b *hooked) hook(tenant ID, types ...string) (Endpoint, string) {
	b.t.Helper()
	e, secret, err := b.Webhooks().Add(b.t.Context(), tenant, NewEndpoint{URL: "https://x.example/hook", Types: types})
	check(b.t, err)
	return e, secret
}

func TestEndpointsSurviveARestart(t *testing.T) {
	b := newHooked(t, "shop", "bar")
	first, secret := b.hook("shop", "user.*", "order.completed", "user.*")
	second, other := b.hook("shop")
	if secret == other || !slices.Equal(first.Types, []string{"order.completed", "user.*"}) || !slices.Equal(second.Types, []string{"*"}) {
		t.Errorf("%+v %+v", first, second)
	}
	if !strings.HasPrefix(first.ID, "we_") || len(first.ID) != 29 || first.Tenant != "shop" || !first.CreatedAt.Equal(b.now) {
		t.Errorf("%+v", first)
	}
	raw, found := strings.CutPrefix(secret, "whsec_")
	if key, err := base64.StdEncoding.DecodeString(raw); err != nil || !found || len(key) != 32 {
		t.Errorf("the secret is no whsec_ and 32 bytes: %v", err)
	}
	b.restart()
	if diff := cmp.Diff([]Endpoint{second, first}, b.Webhooks().List("shop")); diff != "" {
		t.Errorf("changed by the restart:\n%s", diff)
	}
	if got, err := b.Webhooks().Get("shop", first.ID); err != nil || string(got.Secrets[0]) != secret {
		t.Errorf("%+v %v", got, err)
	}
	if n := len(b.Webhooks().List("bar")); n != 0 { // INV-20
		t.Errorf("another tenant has %d", n)
	}
	if _, err := b.Webhooks().Get("bar", first.ID); !errors.Is(err, ErrEndpointNotFound) {
		t.Error("another tenant finds it: ", err)
	}
}

// INV-23: what is printed, logged, encoded or stored shows no secret.
func TestSigningSecretsStayHidden(t *testing.T) {
	b := newHooked(t, "shop")
	e, secret := b.hook("shop")
	e, next, err := b.Webhooks().Rotate(t.Context(), "shop", e.ID, 0)
	check(t, err)
	check(t, b.Webhooks().Disable(t.Context(), "shop", e.ID, "gone"))
	encoded, err := json.Marshal(e)
	check(t, err)
	slog.New(slog.NewTextHandler(&b.logs, nil)).Info("x", "endpoint", e)
	shown := map[string]string{"json": string(encoded), "print": fmt.Sprintf("%v %+v %#v %q", e, e, e, e.Secrets), "log": b.logs.String()}
	for _, name := range []string{b.file(), b.file() + copySuffix} {
		content, err := os.ReadFile(name)
		check(t, err)
		shown[name] = string(content)
	}
	if !strings.Contains(shown["log"], e.ID) || !strings.Contains(shown[b.file()], e.ID) {
		t.Error("the canary: neither log nor file names the endpoint")
	}
	for where, text := range shown {
		for _, s := range []string{secret, next} {
			if strings.Contains(text, s) || strings.Contains(text, strings.TrimPrefix(s, "whsec_")) {
				t.Errorf("%s shows a secret", where)
			}
		}
	}
}

func TestRotationKeepsTheOldSecretForAWhile(t *testing.T) {
	b := newHooked(t, "shop")
	e, s0 := b.hook("shop")
	in := func() []string {
		t.Helper()
		got, err := b.Webhooks().Get("shop", e.ID)
		check(t, err)
		var out []string
		for _, s := range got.Secrets {
			out = append(out, string(s))
		}
		return out
	}
	rotate := func(overlap time.Duration) string {
		t.Helper()
		got, s, err := b.Webhooks().Rotate(t.Context(), "shop", e.ID, overlap)
		check(t, err)
		if len(got.Secrets) == 0 || string(got.Secrets[0]) != s {
			t.Error("what is returned is not what signs")
		}
		return s
	}
	want := func(secrets ...string) {
		t.Helper()
		if got := in(); !slices.Equal(got, secrets) {
			t.Errorf("%d secrets sign, want %d, or they are others", len(got), len(secrets))
		}
	}
	want(s0)
	s1 := rotate(0)
	want(s1, s0)
	b.now = b.now.Add(24*time.Hour - time.Second)
	b.restart()
	want(s1, s0)
	s2 := rotate(time.Hour) // does not lengthen what s0 has left
	want(s2, s1, s0)
	b.now = b.now.Add(time.Second)
	want(s2, s1)
	b.now = b.now.Add(time.Hour)
	want(s2)
	s3 := rotate(1000 * 24 * time.Hour)
	b.now = b.now.Add(30*24*time.Hour - 1)
	want(s3, s2)
	leaked := rotate(-1)
	want(leaked)
	var last []string
	for range 6 {
		last = append([]string{rotate(0)}, last...)
	}
	want(last[:4]...)
	if _, _, err := b.Webhooks().Rotate(t.Context(), "bar", e.ID, 0); !errors.Is(err, ErrEndpointNotFound) {
		t.Error(err)
	}
}

func TestMatching(t *testing.T) {
	b := newHooked(t, "shop", "bar")
	all, _ := b.hook("shop", "*")
	users, _ := b.hook("shop", "user.*")
	one, _ := b.hook("shop", "order.completed", "user.verified")
	off, _ := b.hook("shop", "*")
	foreign, _ := b.hook("bar")
	check(t, b.Webhooks().Disable(t.Context(), "shop", off.ID, "gone"))
	for eventType, want := range map[string][]string{
		"user.created":       {all.ID, users.ID},
		"user.verified":      {all.ID, users.ID, one.ID},
		"user.address.added": {all.ID, users.ID},
		"order.completed":    {all.ID, one.ID},
		"order.completedx":   {all.ID},
		"user":               {all.ID},
		"user.":              {all.ID},
		"users.created":      {all.ID},
		"":                   nil,
	} {
		if got := b.Webhooks().Matching("shop", eventType); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", eventType, got, want)
		}
	}
	if got := b.Webhooks().Matching("bar", "user.created"); !slices.Equal(got, []string{foreign.ID}) {
		t.Errorf("%v", got)
	}
	if n := testing.AllocsPerRun(100, func() { b.Webhooks().Matching("nobody", "user.created") }); n != 0 {
		t.Errorf("%v allocations for nothing", n)
	}
}

func TestEndpointSettingsAreChecked(t *testing.T) {
	b := newHooked(t, "shop")
	e, _ := b.hook("shop")
	for _, c := range []struct {
		n     NewEndpoint
		field string
	}{
		{NewEndpoint{}, "url"},
		{NewEndpoint{URL: "https://x.example/forbidden"}, "url"},
		{NewEndpoint{URL: "https://x.example/\n"}, "url"},
		{NewEndpoint{URL: "https://x.example/é"}, "url"},
		{NewEndpoint{URL: "https://x.example/" + strings.Repeat("x", 2048)}, "url"},
		{NewEndpoint{URL: "https://x.example", Types: []string{}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{""}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{"user.created", "user.*.x"}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{"user.cre*"}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{"user..created"}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{"user.>"}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{"user.created\n"}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{"User.created"}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: []string{strings.Repeat("x", 129)}}, "types"},
		{NewEndpoint{URL: "https://x.example", Types: slices.Repeat([]string{"a"}, 65)}, "types"},
	} {
		var invalid *InvalidError
		if _, _, err := b.Webhooks().Add(t.Context(), "shop", c.n); !errors.As(err, &invalid) || invalid.Field != c.field {
			t.Errorf("%.80v: %v, want it to name %s", c.n, err, c.field)
		}
		_, err := b.Webhooks().Update(t.Context(), "shop", e.ID, func(e *Endpoint) error { e.URL, e.Types = c.n.URL, c.n.Types; return nil })
		if !errors.As(err, &invalid) || invalid.Field != c.field {
			t.Errorf("update to %.80v: %v", c.n, err)
		}
	}
	if got, err := b.Webhooks().Get("shop", e.ID); err != nil || cmp.Diff(e, got) != "" || len(b.Webhooks().List("shop")) != 1 {
		t.Errorf("a refused change changed something: %+v %v", got, err)
	}
	if _, _, err := b.Webhooks().Add(t.Context(), "nobody", NewEndpoint{URL: "https://x.example"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	for range endpointsMax - 1 {
		b.hook("shop")
	}
	if _, _, err := b.Webhooks().Add(t.Context(), "shop", NewEndpoint{URL: "https://x.example"}); !errors.Is(err, ErrEndpointsMax) {
		t.Error(err)
	}
}

func TestEndpointUpdateDisableRemove(t *testing.T) {
	b := newHooked(t, "shop")
	w := b.Webhooks()
	e, secret := b.hook("shop", "user.*")
	boom := errors.New("boom")
	if _, err := w.Update(t.Context(), "shop", e.ID, func(*Endpoint) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
	got, err := w.Update(t.Context(), "shop", e.ID, func(x *Endpoint) error {
		x.URL, x.Types = "https://y.example", []string{"b", "a"}
		x.ID, x.Tenant, x.Secrets, x.CreatedAt = "we_x", "bar", nil, time.Time{}
		return nil
	})
	want := e
	want.URL, want.Types = "https://y.example", []string{"a", "b"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	check(t, w.Disable(t.Context(), "shop", e.ID, "answered 410\r\nGone "+strings.Repeat("é", 300)))
	check(t, w.Disable(t.Context(), "shop", e.ID, "again"))
	b.restart()
	w = b.Webhooks()
	got, err = w.Get("shop", e.ID)
	if err != nil || !got.Disabled || !strings.HasPrefix(got.DisabledReason, "answered 410 Gone éé") || len([]rune(got.DisabledReason)) != reasonMax {
		t.Errorf("%+v %v", got, err)
	}
	got, err = w.Update(t.Context(), "shop", e.ID, func(x *Endpoint) error { x.Disabled = false; return nil })
	if err != nil || got.Disabled || got.DisabledReason != "" || string(got.Secrets[0]) != secret {
		t.Errorf("%+v %v", got, err)
	}
	check(t, w.Remove(t.Context(), "shop", e.ID))
	b.restart()
	w = b.Webhooks()
	for what, err := range map[string]error{
		"remove": w.Remove(t.Context(), "shop", e.ID), "disable": w.Disable(t.Context(), "shop", e.ID, ""),
		"get": func() error { _, err := w.Get("shop", e.ID); return err }(),
	} {
		if !errors.Is(err, ErrEndpointNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(w.List("shop")) != 0 || w.Matching("shop", "a") != nil {
		t.Error("something is left")
	}
}

// What a URL's check has come to forbid since can still be disabled, and stays where it is.
func TestForbiddenSinceCanBeDisabled(t *testing.T) {
	b := newHooked(t, "shop")
	e, _ := b.hook("shop")
	b.checkURL = func(string) error { return errURL }
	if _, err := b.Webhooks().Update(t.Context(), "shop", e.ID, func(x *Endpoint) error { x.URL += "x"; return nil }); !errors.Is(err, errURL) {
		t.Error(err)
	}
	if got, err := b.Webhooks().Update(t.Context(), "shop", e.ID, func(x *Endpoint) error { x.Disabled = true; return nil }); err != nil || !got.Disabled {
		t.Error(got, err)
	}
}

func TestRemovedTenantsEndpointsAreGone(t *testing.T) {
	b := newHooked(t, "shop", "shop-2", "bar")
	b.hook("shop")
	b.hook("shop")
	b.hook("shop-2")
	_, err := b.Disable(t.Context(), "shop")
	check(t, err)
	check(t, b.Remove(t.Context(), "shop"))
	for range 2 {
		if len(b.Webhooks().List("shop")) != 0 || b.Webhooks().Matching("shop", "x") != nil || len(b.Webhooks().List("shop-2")) != 1 {
			t.Error("too much is left, or too little")
		}
		b.restart()
	}
	check(t, b.st.View(func(tx *bbolt.Tx) error {
		if n := tx.Bucket(bucketWebhooks).Stats().KeyN; n != 1 {
			t.Errorf("%d records are left in the file, want 1", n)
		}
		return nil
	}))
	// A version that knows no endpoints removes a tenant without them.
	e, _ := b.hook("bar")
	check(t, b.st.Update(t.Context(), func(tx *bbolt.Tx) error { return tx.Bucket(bucketTenants).Delete([]byte("bar")) }))
	b.restart()
	if _, err := b.Webhooks().Get("bar", e.ID); !errors.Is(err, ErrEndpointNotFound) {
		t.Error(err)
	}
}

// A file of a version that had no endpoints takes them.
func TestOlderFileTakesEndpoints(t *testing.T) {
	b := newHooked(t, "shop")
	check(t, b.st.Update(t.Context(), func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketWebhooks) }))
	b.restart()
	e, _ := b.hook("shop")
	b.restart()
	if _, err := b.Webhooks().Get("shop", e.ID); err != nil {
		t.Error(err)
	}
}

// A record under another's key, and secrets moved to another endpoint, are found.
func TestSwappedEndpointsAreFound(t *testing.T) {
	b := newHooked(t, "shop", "bar")
	e, _ := b.hook("shop")
	f, _ := b.hook("bar")
	one, two := b.snapshot.Load().hook("shop", e.ID), b.snapshot.Load().hook("bar", f.ID)
	put := func(key []byte, v []byte) {
		t.Helper()
		check(t, b.st.Update(t.Context(), func(tx *bbolt.Tx) error { return tx.Bucket(bucketWebhooks).Put(key, v) }))
	}
	rec, err := one.record(b.kr)
	check(t, err)
	stolen, err := two.record(b.kr)
	check(t, err)
	good, err := encodeRecord(one.key(), rec)
	check(t, err)

	moved, err := encodeRecord(two.key(), rec) // sound, but it says that it is another's
	check(t, err)
	put(two.key(), moved)
	if _, err := Open(b.st, b.kr, Options{}); !errors.Is(err, errRecord) {
		t.Errorf("under another's key: %v", err)
	}
	rec.SealedSecrets, stolen.SealedSecrets = stolen.SealedSecrets, rec.SealedSecrets
	swapped, err := encodeRecord(one.key(), rec)
	check(t, err)
	rest, err := encodeRecord(two.key(), stolen)
	check(t, err)
	put(one.key(), swapped)
	put(two.key(), rest)
	if _, err := Open(b.st, b.kr, Options{}); !errors.Is(err, ErrSealed) {
		t.Errorf("with another's secrets: %v", err)
	}
	good[len(good)-2] ^= 1
	put(one.key(), good)
	if _, err := Open(b.st, b.kr, Options{}); !errors.Is(err, errRecord) {
		t.Errorf("with a flipped bit: %v", err)
	}
}

// After an unknown outcome memory is what the file is.
func TestEndpointUnknownOutcome(t *testing.T) {
	b := newHooked(t, "shop")
	e, _ := b.hook("shop")
	restore := storetest.FailDisk(t, b.st, storetest.Dying)
	_, _, err := b.Webhooks().Add(t.Context(), "shop", NewEndpoint{URL: "https://x.example"})
	restore()
	if err == nil {
		t.Fatal("the canary: a dying disk took it")
	}
	listed := len(b.Webhooks().List("shop"))
	b.restart()
	if after := len(b.Webhooks().List("shop")); after != listed || after < 1 {
		t.Errorf("memory had %d, the file has %d (%v)", listed, after, err)
	}
	if _, err := b.Webhooks().Get("shop", e.ID); err != nil {
		t.Error(err)
	}
}
