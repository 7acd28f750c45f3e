package upstream_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

func TestGetIsOneAccountForEachIdentity(t *testing.T) {
	as := upstream.NewAccounts(upstream.Config{URL: "https://api.example/v1/", Account: "house", Key: "sk_house"})
	own, err := as.Get("", "", "")
	if err != nil || own.URL() != "https://api.example/v1" || own.Name() != "house" || !own.Configured() {
		t.Fatalf("own: %v, %v", own, err)
	}
	for _, same := range [][3]string{
		{"https://API.example/v1", "house", ""}, {"https://api.example/v1//", "house", "sk_house"}, {"", "house", ""},
		{"", "", "sk_house"}, {"https://api.example/v1", "", ""},
	} {
		if a, err := as.Get(same[0], same[1], same[2]); a != own || err != nil {
			t.Errorf("%v: %v, %v", same, a, err)
		}
	}
	other, err := as.Get("", "guest", "sk_guest")
	if err != nil || other == own || other.URL() != own.URL() || other.Name() != "guest" {
		t.Errorf("guest: %v, %v", other, err)
	}
	elsewhere, err := as.Get("http://127.0.0.1:9/", "guest", "sk_guest")
	if err != nil || elsewhere == other {
		t.Errorf("elsewhere: %v, %v", elsewhere, err)
	}
	if n := len(as.List()); n != 3 {
		t.Errorf("%d accounts", n)
	}
	for _, c := range []struct {
		url, account, key string
		want              error
	}{
		{"", "", "sk_guest", upstream.ErrAccountMissing},
		{"https://other.example", "", "sk_guest", upstream.ErrAccountMissing},
		{"https://other.example", "", "", upstream.ErrAccountMissing},
		{"https://other.example", "house", "", upstream.ErrKeyMissing},
		{"", "newcomer", "", upstream.ErrKeyMissing},
		{"", "house", "sk_guest", upstream.ErrKeyOfBox},
		{"ftp://x", "a", "k", upstream.ErrURLInvalid},
		{"https://", "a", "k", upstream.ErrURLInvalid},
		{"https://user:secret@x", "a", "k", upstream.ErrURLInvalid},
		{"https://x/?a=b", "a", "k", upstream.ErrURLInvalid},
		{"https://x/#f", "a", "k", upstream.ErrURLInvalid},
		{"https://x/\r\n", "a", "k", upstream.ErrURLInvalid},
		{"x", "a", "k", upstream.ErrURLInvalid},
		{"https://x", "a b", "k", upstream.ErrAccountInvalid},
		{"https://x", strings.Repeat("a", 129), "k", upstream.ErrAccountInvalid},
		{"https://x", "a", "k\n", upstream.ErrKeyInvalid},
		{"https://x", "a", "k k", upstream.ErrKeyInvalid},
		{"https://x", "a", strings.Repeat("k", 513), upstream.ErrKeyInvalid},
	} {
		if a, err := as.Get(c.url, c.account, c.key); a != nil || !errors.Is(err, c.want) {
			t.Errorf("%q %q %q: %v, %v; want %v", c.url, c.account, c.key, a, err, c.want)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error quotes a secret: %v", err)
		}
	}
}

func TestWrongSettingsAreNamedAndSendNothing(t *testing.T) {
	c := upstream.Config{URL: "nonsense", Key: "a b", Account: "a b", Version: "\n", ProbePath: "x", Timeout: -1, ProbeInterval: -1,
		BreakerWindow: -1, BreakerOpen: -1, BreakerFailures: -1}
	err := c.Validate()
	for _, part := range []string{"url", "key", "account", "version", "probe path", "timeout", "probe interval", "breaker window", "breaker open", "breaker failures"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not named: %v", part, err)
		}
	}
	if err := (upstream.Config{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	_, a := account(t, c)
	if a.Configured() || a.Link().State != upstream.Unconfigured {
		t.Errorf("%+v", a.Link())
	}
}

// One tenant's processor that is down stops nobody else's, and accounts that come later are watched too.
func TestAccountsAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.is(upstream.Online, "closed", true)
		p.answers(nil, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer sk_ill" {
				reply(500, serverError)(w, r)
				return
			}
			reply(200, goodCharge)(w, r)
		})
		ill, err := p.accounts.Get("", "ill", "sk_ill")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !ill.Ready() {
			t.Fatalf("the newcomer was not probed: %+v", ill.Link())
		}
		for range 5 {
			pay(t.Context(), ill, "k")
		}
		if ill.Ready() || ill.Breaker().State != "open" {
			t.Errorf("ill: %+v", ill.Breaker())
		}
		p.is(upstream.Online, "closed", true)
		if answer := p.pay(); answer.Outcome != upstream.Succeeded {
			t.Errorf("the other: %+v", answer)
		}
	})
}

// Everything at once, for the race detector; and a stop that leaves nothing behind.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{Key: "sk"})
		var busy sync.WaitGroup
		for i := range 8 {
			busy.Go(func() {
				for range 50 {
					p.pay()
					p.account.Get(t.Context(), "/charges/ch_1")
					p.account.Ready()
					p.account.Alarms()
					p.accounts.Get("", "other", []string{"sk_1", "sk_2"}[i%2])
					time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				}
			})
		}
		busy.Go(func() {
			for i := range 20 {
				p.line.Set(upstreamtest.Mode(i % 2))
				p.account.ForceBreaker([]string{"open", "close"}[i%2])
				time.Sleep(300 * time.Millisecond)
			}
			p.line.Set(upstreamtest.Up)
			p.account.ForceBreaker("close")
		})
		busy.Wait()
		time.Sleep(time.Minute)
		p.is(upstream.Online, "closed", true)
		if l := p.changes.last(); l.State != upstream.Online {
			t.Errorf("last told: %+v", l)
		}
	})
}

func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := upstreamtest.NewLine(t, http.HandlerFunc(hang))
		as, _ := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- as.Run(ctx) }()
		synctest.Wait() // within a probe
		from := time.Now()
		stop()
		if err := <-done; err != nil || time.Since(from) != 0 {
			t.Errorf("%v after %v", err, time.Since(from))
		}
	})
}
