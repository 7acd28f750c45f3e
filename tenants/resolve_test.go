package tenants

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestResolve(t *testing.T) {
	b := newTestBox(t, "box.example")
	shop := b.add(New{ID: "shop", Domains: []string{"pay.shop.example"}})
	bar := b.add(New{ID: "bar"})
	off := b.add(New{ID: "off", Domains: []string{"off.example"}})
	if _, err := b.Disable(t.Context(), "off"); err != nil {
		t.Fatal(err)
	}
	if err := b.SetOperatorToken(t.Context(), testToken); err != nil {
		t.Fatal(err)
	}
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for _, c := range []struct {
		auth, tenant, host string // "-": no such header
		want               Caller
		err                error
	}{
		// A tenant's key
		{"Bearer " + shop, "-", "127.0.0.1", Caller{Tenant: "shop"}, nil},
		{"bearer " + shop, "-", "127.0.0.1", Caller{Tenant: "shop"}, nil},
		{"BEARER   " + shop, "-", "127.0.0.1", Caller{Tenant: "shop"}, nil},
		{basic(shop, ""), "-", "127.0.0.1", Caller{Tenant: "shop"}, nil},
		{basic(shop, "ignored"), "-", "127.0.0.1", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "shop", "127.0.0.1", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "-", "shop.box.example:8080", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "-", "SHOP.Box.Example.", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "-", "pay.shop.example", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "-", "box.example", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "-", "elsewhere.example", Caller{Tenant: "shop"}, nil},
		// The header names before the subdomain, the subdomain before the domain
		{"Bearer " + shop, "shop", "bar.box.example", Caller{Tenant: "shop"}, nil},
		{"Bearer " + shop, "bar", "shop.box.example", Caller{}, ErrTenantMismatch},
		{"Bearer " + bar, "bar", "pay.shop.example", Caller{Tenant: "bar"}, nil},
		// Named otherwise
		{"Bearer " + shop, "bar", "127.0.0.1", Caller{}, ErrTenantMismatch},
		{"Bearer " + shop, "nobody", "127.0.0.1", Caller{}, ErrTenantMismatch},
		{"Bearer " + shop, "off", "127.0.0.1", Caller{}, ErrTenantMismatch},
		{"Bearer " + shop, "-", "bar.box.example", Caller{}, ErrTenantMismatch},
		{"Bearer " + bar, "-", "pay.shop.example", Caller{}, ErrTenantMismatch},
		{"Bearer " + shop, "-", "a.shop.box.example", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "-", "sh_op.box.example", Caller{}, ErrTenantInvalid},
		// Disabled
		{"Bearer " + off, "-", "127.0.0.1", Caller{}, ErrTenantDisabled},
		{"Bearer " + testToken, "off", "127.0.0.1", Caller{}, ErrTenantDisabled},
		// The operator
		{"Bearer " + testToken, "-", "127.0.0.1", Caller{Operator: true}, nil},
		{basic(testToken, ""), "-", "127.0.0.1", Caller{Operator: true}, nil},
		{"Bearer " + testToken, "shop", "127.0.0.1", Caller{"shop", true}, nil},
		{"Bearer " + testToken, "-", "shop.box.example", Caller{"shop", true}, nil},
		{"Bearer " + testToken, "-", "pay.shop.example", Caller{"shop", true}, nil},
		{"Bearer " + testToken, "bar", "pay.shop.example", Caller{"bar", true}, nil},
		{"Bearer " + testToken, "nobody", "127.0.0.1", Caller{}, ErrTenantUnknown},
		{"Bearer " + testToken, "-", "nobody.box.example", Caller{}, ErrTenantUnknown},
		// No credential, or none that can be one. What the request names is not looked at.
		{"-", "-", "127.0.0.1", Caller{}, ErrAuthMissing},
		{"", "-", "127.0.0.1", Caller{}, ErrAuthMissing},
		{"-", "../b", "127.0.0.1", Caller{}, ErrAuthMissing},
		{"Bearer", "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer ", "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{shop, "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Token " + shop, "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer " + strings.ToUpper(shop), "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer " + shop + "a", "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer " + shop[:keyLookup] + bar[keyLookup:], "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer tbk_" + strings.Repeat("a", 56), "nobody", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer " + strings.Repeat("0", 64), "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Basic " + shop, "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Basic !!!", "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{basic("", shop), "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer " + strings.Repeat("x", 1<<20), "-", "127.0.0.1", Caller{}, ErrAuthInvalid},
		{"Bearer " + shop + ",Bearer " + shop, "-", "127.0.0.1", Caller{}, ErrHeaderDuplicate},
		// Names that cannot be
		{"Bearer " + shop, "", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "SHOP", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "shop ", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "../b", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "*", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, ">", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "%2f", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "sh\u043ep", "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, strings.Repeat("a", 64), "127.0.0.1", Caller{}, ErrTenantInvalid},
		{"Bearer " + shop, "shop,bar", "127.0.0.1", Caller{}, ErrHeaderDuplicate},
	} {
		in := Credentials{Host: c.host}
		if c.auth != "-" {
			in.Authorization = []string{c.auth}
		}
		if c.tenant != "-" {
			in.TenantHeader = []string{c.tenant}
		}
		if got, err := b.Resolve(in); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%.80q for %.80q at %s: %+v, %v; want %+v, %v", c.auth, c.tenant, c.host, got, err, c.want, c.err)
		}
	}
	for _, twice := range []Credentials{
		{Authorization: []string{"Bearer " + shop, "Bearer " + shop}},
		{Authorization: []string{"Bearer " + shop}, TenantHeader: []string{"shop", "shop"}},
		{Authorization: []string{"", ""}},
	} {
		if _, err := b.Resolve(twice); !errors.Is(err, ErrHeaderDuplicate) {
			t.Errorf("%v: %v", twice, err)
		}
		if err := b.ResolveOperator(twice); !errors.Is(err, ErrHeaderDuplicate) {
			t.Errorf("%v: %v", twice, err)
		}
	}
	for _, c := range []struct {
		in   Credentials
		want error
	}{
		{Credentials{Authorization: []string{"Bearer " + testToken}}, nil},
		{Credentials{Authorization: []string{"Bearer " + testToken}, TenantHeader: []string{"nobody"}}, nil},
		{Credentials{Authorization: []string{"Bearer " + testToken}, Host: "off.example"}, nil},
		{Credentials{Authorization: []string{"Bearer " + testToken}, TenantHeader: []string{"../b"}}, ErrTenantInvalid},
		{Credentials{Authorization: []string{"Bearer " + shop}}, ErrOperatorOnly},
		{Credentials{}, ErrAuthMissing},
	} {
		if err := b.ResolveOperator(c.in); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.in, err, c.want)
		}
	}
}

// Whatever the headers hold: a caller comes out only for a credential that is one, for the tenant it belongs to, and
// every refusal is one of those that can be told to a client.
func TestResolveHostile(t *testing.T) {
	b := newTestBox(t, "box.example")
	keys := map[ID]string{"shop": b.add(New{ID: "shop", Domains: []string{"pay.shop.example"}}), "bar": b.add(New{ID: "bar"})}
	if err := b.SetOperatorToken(t.Context(), testToken); err != nil {
		t.Fatal(err)
	}
	refusals := []error{ErrAuthMissing, ErrAuthInvalid, ErrHeaderDuplicate, ErrTenantInvalid, ErrTenantMismatch, ErrTenantUnknown}
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.OneOf(rapid.SampledFrom([]string{keys["shop"], keys["bar"], testToken, "", "tbk_", keys["shop"][:keyLookup]}), rapid.String()).Draw(t, "secret")
		mangle := rapid.SampledFrom([]func(string) string{
			func(s string) string { return s },
			func(s string) string { return s + rapid.String().Draw(t, "tail") },
			func(s string) string { return rapid.String().Draw(t, "head") + s },
			func(s string) string {
				if s == "" {
					return s
				}
				c := []byte(s)
				c[rapid.IntRange(0, len(c)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
				return string(c)
			},
		}).Draw(t, "mangle")
		sent := mangle(secret)
		scheme := rapid.SampledFrom([]string{"Bearer ", "bearer ", "Basic ", "", "Bearer", "\x00 "}).Draw(t, "scheme")
		header := scheme + sent
		if scheme == "Basic " && rapid.Bool().Draw(t, "encode") {
			header = scheme + base64.StdEncoding.EncodeToString([]byte(sent+":"))
		}
		in := Credentials{Authorization: []string{header},
			Host: rapid.OneOf(rapid.SampledFrom([]string{"127.0.0.1", "shop.box.example", "bar.box.example:1", "pay.shop.example", "box.example", "[::1]:1", ".box.example"}), rapid.String()).Draw(t, "host")}
		in.TenantHeader = rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]string{"shop", "bar", "nobody", "Shop", ""}), rapid.String()), 0, 2).Draw(t, "tenant")
		got, err := b.Resolve(in)
		b.HostAllowed(in.Host)
		if err != nil {
			known := got == Caller{}
			for _, r := range refusals {
				if errors.Is(err, r) && known {
					return
				}
			}
			t.Fatalf("%+v: %+v %v", in, got, err)
		}
		switch sent = strings.TrimLeft(sent, " "); {
		case got.Operator && sent == testToken:
		case !got.Operator && keys[got.Tenant] != "" && sent == keys[got.Tenant]:
			if len(in.TenantHeader) == 1 && in.TenantHeader[0] != string(got.Tenant) {
				t.Fatalf("%+v acts for %s", in, got.Tenant)
			}
		default:
			// A Basic user name ends at the first colon: what stands behind it is the password.
			if user, _, _ := strings.Cut(sent, ":"); scheme == "Basic " && (user == keys[got.Tenant] || user == testToken) {
				return
			}
			t.Fatalf("%+v let %+v in", in, got)
		}
	})
}

func FuzzHostName(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "A.B.:80", "[::1]:80", "[::1%eth0]", "1.2.3.4", "::1", "a..b", "-a", strings.Repeat("a.", 130), "ſ.example", "a_b", "[", "]", "[]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := HostName(s)
		if !ok {
			if name != "" {
				t.Errorf("%q is refused as %q", s, name)
			}
			return
		}
		if again, ok := HostName(name); !ok && !strings.Contains(name, ":") || ok && again != name {
			t.Errorf("%q became %q, and that %q %v", s, name, again, ok)
		}
		if name != strings.ToLower(name) && !strings.Contains(name, ":") || strings.ContainsAny(name, " /@\r\n\x00") {
			t.Errorf("%q became %q", s, name)
		}
	})
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"", "a", "a-b", "-a", "a-", "A", "a.b", "a/b", "\x00", strings.Repeat("a", 63), strings.Repeat("a", 64), "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if id != "" || !errors.Is(err, ErrIDInvalid) {
				t.Errorf("%q: %q %v", s, id, err)
			}
			return
		}
		if string(id) != s || strings.ContainsAny(s, "./\\ *>\x00:") || len(s) > 63 || http.CanonicalHeaderKey(s) == "" {
			t.Errorf("%q became %q", s, id)
		}
	})
}

func BenchmarkResolve(bench *testing.B) {
	b := newTestBox(bench, "box.example")
	in := bearer(b.add(New{ID: "shop"}))
	in.Host = "127.0.0.1:8080"
	bench.ReportAllocs()
	for bench.Loop() {
		if _, err := b.Resolve(in); err != nil {
			bench.Fatal(err)
		}
	}
}
