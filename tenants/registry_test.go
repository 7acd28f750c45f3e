package tenants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tenderbox/store"
	"tenderbox/store/storetest"
)

const testToken = "tbo_0123456789abcdefghijklmnopqrstuvwxyz"

// testBox is a registry on a file that can be opened again.
type testBox struct {
	*Registry
	t    testing.TB
	dir  string
	kr   *Keyring
	st   *store.Store
	base string
}

func newTestBox(t testing.TB, base string) *testBox {
	t.Helper()
	b := &testBox{t: t, dir: t.TempDir(), base: base}
	var err error
	if b.kr, err = CreateKeyring(filepath.Join(b.dir, "box.key")); err != nil {
		t.Fatal(err)
	}
	b.open()
	return b
}

func (b *testBox) file() string { return filepath.Join(b.dir, "box.db") }

func (b *testBox) open() {
	b.t.Helper()
	b.st = storetest.Reopen(b.t, b.file(), store.Options{})
	var err error
	if b.Registry, err = Open(b.st, b.kr, Options{BaseDomain: b.base}); err != nil {
		b.t.Fatal(err)
	}
}

// reopen closes the file and opens it as the program does at start.
func (b *testBox) reopen() (alarm string, err error) {
	b.t.Helper()
	if err := b.st.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.st, alarm, err = OpenFile(b.file())
	if err != nil {
		return alarm, err
	}
	b.t.Cleanup(func() { _ = b.st.Close() })
	b.Registry, err = Open(b.st, b.kr, Options{BaseDomain: b.base})
	return alarm, err
}

func (b *testBox) add(n New) string {
	b.t.Helper()
	_, key, err := b.Add(b.t.Context(), n)
	if err != nil {
		b.t.Fatal(err)
	}
	return key
}

func bearer(key string) Credentials { return Credentials{Authorization: []string{"Bearer " + key}} }

func TestTenantsSurviveARestart(t *testing.T) {
	b := newTestBox(t, "")
	all := New{ID: "shop", Domains: []string{"Pay.Shop.Example."}, Offline: map[string]OfflineLimit{"usd": {MaxAmount: 1, MaxTotal: 2, MaxCount: 3, MaxAgeH: 4}, "eur": {}},
		Upstream: &Upstream{"HTTPS://Pay.Example:443/v1/", "main", "sk_live_canary", 0}, RateLimit: &RateLimit{PerSecond: 5, Burst: 6}}
	key := b.add(all)
	b.add(New{ID: "none", Offline: map[string]OfflineLimit{}})
	b.add(New{ID: "bare"})
	if err := b.SetOperatorToken(t.Context(), testToken); err != nil {
		t.Fatal(err)
	}
	before := b.List()
	if len(before) != 3 || before[0].Domains != nil && before[0].ID == "bare" {
		t.Errorf("%+v", before)
	}
	if _, err := b.reopen(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, b.List()); diff != "" {
		t.Errorf("changed by the restart:\n%s", diff)
	}
	shop, err := b.Get("shop")
	if err != nil || shop.Domains[0] != "pay.shop.example" || shop.Upstream.URL != "https://pay.example/v1" || shop.Upstream.Key != "sk_live_canary" {
		t.Errorf("%+v %v", shop, err)
	}
	if none, _ := b.Get("none"); none.Offline == nil {
		t.Error("every currency refused became no limit at all")
	}
	if bare, _ := b.Get("bare"); bare.Offline != nil {
		t.Error("no limit at all became every currency refused")
	}
	for credential, want := range map[string]Caller{key: {Tenant: "shop"}, testToken: {Operator: true}} {
		if got, err := b.Resolve(bearer(credential)); got != want || err != nil {
			t.Errorf("resolved %+v %v, want %+v", got, err, want)
		}
	}
	for _, name := range []string{b.file(), b.file() + ".copy"} {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{key, key[keyLookup:], testToken, "sk_live_canary"} { // INV-23
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%s holds a secret in clear", name)
			}
		}
		if info, _ := os.Stat(name); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

func TestWhatIsReturnedIsNotTheRegistrysOwn(t *testing.T) {
	b := newTestBox(t, "")
	n := New{ID: "shop", Domains: []string{"a.example"}, Offline: map[string]OfflineLimit{"usd": {MaxCount: 1}}, Upstream: &Upstream{"https://x.example", "a", "k", 0}}
	b.add(n)
	n.Domains[0], n.Offline["usd"], n.Upstream.Key = "b.example", OfflineLimit{}, "other"
	var kept *Tenant
	_, err := b.Update(t.Context(), "shop", func(t *Tenant) error {
		t.Domains = append(t.Domains, "c.example")
		t.ID, t.KeyPrefix = "bar", "tbk_mine"
		kept = t
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	kept.Domains[0] = "d.example"
	got, _ := b.Get("shop")
	if !slices.Equal(got.Domains, []string{"a.example", "c.example"}) || got.Offline["usd"].MaxCount != 1 || got.Upstream.Key != "k" || got.ID != "shop" || got.KeyPrefix == "tbk_mine" {
		t.Errorf("%+v", got)
	}
}

func TestFailedChangeChangesNothing(t *testing.T) {
	b := newTestBox(t, "box.example")
	key := b.add(New{ID: "shop", Domains: []string{"a.example"}, Upstream: &Upstream{"https://x.example/v1", "a", "k", 0}})
	b.add(New{ID: "bar"})
	before := b.List()
	boom := errors.New("boom")
	var invalid *InvalidError
	for name, c := range map[string]struct {
		fn   func(*Tenant) error
		want error
	}{
		"its own error":  {func(*Tenant) error { return boom }, boom},
		"foreign domain": {func(t *Tenant) error { t.Domains = []string{"A.example"}; return nil }, ErrDomainUsed},
		"foreign account": {func(t *Tenant) error {
			t.Upstream = &Upstream{"HTTPS://X.example:443/v1//", "a", "other", 0}
			return nil
		}, ErrAccountUsed},
		"below the base": {func(t *Tenant) error { t.Domains = []string{"x.box.example"}; return nil }, nil},
		"the base":       {func(t *Tenant) error { t.Domains = []string{"box.example"}; return nil }, nil},
		"bad limit":      {func(t *Tenant) error { t.Offline = map[string]OfflineLimit{"usd": {MaxAgeH: -1}}; return nil }, nil},
	} {
		_, err := b.Update(t.Context(), "bar", c.fn)
		if c.want == nil && !errors.As(err, &invalid) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := b.Add(t.Context(), New{ID: "shop"}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if _, err := b.RotateKey(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.RotateKey(ended, "shop"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if diff := cmp.Diff(before, b.List()); diff != "" {
		t.Error(diff)
	}
	if _, err := b.Resolve(bearer(key)); err != nil {
		t.Error(err)
	}
	if _, err := b.reopen(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, b.List()); diff != "" {
		t.Error(diff)
	}
}

func TestKeysAndDisabling(t *testing.T) {
	b := newTestBox(t, "")
	old := b.add(New{ID: "shop"})
	key, err := b.RotateKey(t.Context(), "shop")
	if err != nil || key == old {
		t.Fatal(key, err)
	}
	shop, _ := b.Get("shop")
	if !strings.HasPrefix(key, shop.KeyPrefix) || strings.HasPrefix(old, shop.KeyPrefix) {
		t.Error("the prefix is not the new key's")
	}
	if _, err := b.Resolve(bearer(old)); !errors.Is(err, ErrAuthInvalid) {
		t.Error("the old key lives: ", err)
	}
	if _, err := b.Disable(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resolve(bearer(key)); !errors.Is(err, ErrTenantDisabled) {
		t.Error(err)
	}
	if _, err := b.reopen(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resolve(bearer(key)); !errors.Is(err, ErrTenantDisabled) {
		t.Error("the restart enabled it: ", err)
	}
	if _, err := b.Enable(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Resolve(bearer(key)); got.Tenant != "shop" || err != nil {
		t.Error(got, err)
	}
}

func TestRemove(t *testing.T) {
	b := newTestBox(t, "")
	key := b.add(New{ID: "shop", Domains: []string{"a.example"}})
	if err := b.Remove(t.Context(), "shop"); !errors.Is(err, ErrEnabled) {
		t.Fatal(err)
	}
	if _, err := b.Disable(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.Get("shop"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if _, err := b.Resolve(bearer(key)); !errors.Is(err, ErrAuthInvalid) {
			t.Error(err)
		}
		if _, _, err := b.Add(t.Context(), New{ID: "shop"}); !errors.Is(err, ErrExists) {
			t.Error("the id was given again: its new owner would see the old one's books: ", err)
		}
		if len(b.List()) != 0 || b.HostAllowed("a.example") {
			t.Error("something is left")
		}
		if _, err := b.reopen(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOperatorToken(t *testing.T) {
	b := newTestBox(t, "")
	if b.HasOperatorToken() {
		t.Error("a token from nowhere")
	}
	// The comparison with no token at all must not succeed, whatever is sent.
	if err := b.ResolveOperator(bearer("x")); !errors.Is(err, ErrAuthInvalid) {
		t.Error(err)
	}
	for _, bad := range []string{"", "short", strings.Repeat("x", 256), strings.Repeat("x", 40) + " ", strings.Repeat("x", 40) + "\n", strings.Repeat("é", 40),
		"tbk_" + strings.Repeat("x", 56), strings.Repeat("x,", 30), strings.Repeat("x:", 30)} {
		if err := b.SetOperatorToken(t.Context(), bad); !errors.Is(err, ErrOperatorToken) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := b.SetOperatorToken(t.Context(), testToken); err != nil {
		t.Fatal(err)
	}
	second := strings.ToUpper(testToken)
	if err := b.SetOperatorToken(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.ResolveOperator(bearer(testToken)); !errors.Is(err, ErrAuthInvalid) {
			t.Error("the old token lives: ", err)
		}
		if err := b.ResolveOperator(bearer(second)); err != nil || !b.HasOperatorToken() {
			t.Error(err)
		}
		if _, err := b.reopen(); err != nil {
			t.Fatal(err)
		}
	}
}

// Requests resolve while tenants change, and never see half a change.
func TestResolveDuringChanges(t *testing.T) {
	b := newTestBox(t, "")
	keys := map[ID]string{}
	for i := range 4 {
		id := ID(fmt.Sprintf("t%d", i))
		keys[id] = b.add(New{ID: id})
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for id, key := range keys {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got, err := b.Resolve(bearer(key)); err == nil && got.Tenant != id || err != nil && !errors.Is(err, ErrTenantDisabled) {
					t.Errorf("%s: %v %v", id, got, err)
					return
				}
				b.List()
				b.HostAllowed("a.example")
			}
		})
	}
	var writers sync.WaitGroup
	for id := range maps.Keys(keys) {
		writers.Go(func() {
			for i := range 20 {
				if _, err := b.Update(t.Context(), id, func(t *Tenant) error { t.Disabled = i%2 == 0; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
