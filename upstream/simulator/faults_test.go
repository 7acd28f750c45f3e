package simulator_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream/simulator"
	"tenderbox/upstream/upstreamtest"
)

// bubble serves a simulator in memory and ends it with the test.
func bubble(t *testing.T, o simulator.Options) *processor {
	t.Helper()
	s := simulator.New(o)
	line := upstreamtest.NewLine(t, s)
	t.Cleanup(func() { s.Close() })
	return &processor{t: t, Simulator: s, url: upstreamtest.URL,
		client: &http.Client{Transport: &http.Transport{DialContext: line.Dial, DisableKeepAlives: true}}}
}

// within gives the client that long.
func (p *processor) within(d time.Duration) *processor {
	q := *p
	q.client = &http.Client{Transport: p.client.Transport, Timeout: d}
	return &q
}

// Each fault fires, and does to the money what its comment says (RELIABILITY, rule 2).
func TestFaultCanaries(t *testing.T) {
	for _, c := range []struct {
		name    string
		faults  simulator.Faults
		effects int
		check   func(reply) bool
		healed  func(reply) bool // the same request after the processor was healed
	}{
		{"refuse", simulator.Faults{Refuse: 1}, 0,
			func(r reply) bool { return r.err != nil && r.status == 0 }, created},
		{"captive_portal", simulator.Faults{CaptivePortal: 1}, 0,
			func(r reply) bool { return r.status == 200 && strings.Contains(r.body, "<html>") }, created},
		{"hang", simulator.Faults{Hang: 1}, 0,
			func(r reply) bool { return isTimeout(r.err) }, created},
		{"error429", simulator.Faults{Error429: 1}, 0,
			func(r reply) bool { return r.status == 429 && r.errorType() == "rate_limit_error" }, created},
		{"error503", simulator.Faults{Error503: 1}, 0,
			func(r reply) bool { return r.status == 503 && r.errorType() == "api_error" }, created},
		{"error500", simulator.Faults{Error500: 1}, 0,
			func(r reply) bool { return r.status == 500 && r.errorType() == "api_error" }, replayed500},
		{"error500_after_effect", simulator.Faults{Error500AfterEffect: 1}, 1,
			func(r reply) bool { return r.status == 500 }, replayed500},
		{"drop_after_effect", simulator.Faults{DropAfterEffect: 1}, 1,
			func(r reply) bool { return r.err != nil && r.status == 0 }, replayed},
		{"hang_after_effect", simulator.Faults{HangAfterEffect: 1}, 1,
			func(r reply) bool { return isTimeout(r.err) }, replayed},
		{"slow_body", simulator.Faults{SlowBody: 1}, 1,
			func(r reply) bool { return r.status == 200 && isTimeout(r.err) && len(r.body) == 10 }, replayed},
		{"garbage", simulator.Faults{Garbage: 1}, 1,
			func(r reply) bool { return r.status == 200 && r.json["amount"] != 1999.0 }, replayed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := bubble(t, simulator.Options{})
				p.faults(c.faults)
				if r := p.within(9500 * time.Millisecond).charge("k"); !c.check(r) {
					t.Errorf("got %d %q %v", r.status, r.body, r.err)
				}
				p.effects(c.effects)
				if got := p.Fired()[c.name]; got != 1 {
					t.Errorf("fired %d times", got)
				}
				p.faults(simulator.Faults{})
				r := p.charge("k")
				if !c.healed(r) {
					t.Errorf("healed: %d %q %v", r.status, r.body, r.err)
				}
				if r.status == 200 {
					p.effects(1)
				} else {
					p.effects(c.effects)
				}
			})
		})
	}
}

func created(r reply) bool { return r.status == 200 && r.header.Get("Idempotent-Replayed") == "" }

func replayed(r reply) bool {
	return r.status == 200 && r.header.Get("Idempotent-Replayed") == "true" && r.json["amount"] == 1999.0
}

func replayed500(r reply) bool {
	return r.status == 500 && r.header.Get("Idempotent-Replayed") == "true"
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

func TestGarbageTakesTurns(t *testing.T) {
	p := start(t, simulator.Options{})
	p.faults(simulator.Faults{Garbage: 1})
	seen := map[string]bool{}
	for i := range 6 {
		r := p.charge(fmt.Sprint("k", i))
		var kind string
		switch {
		case r.status != 200:
			kind = "bad status"
		case strings.Contains(r.body, "<html>"):
			kind = "html"
		case r.json == nil && strings.HasPrefix(r.body, "\x00"):
			kind = "noise"
		case r.json == nil:
			kind = "half"
		case r.json["amount"] != 1999.0:
			kind = "amount"
		case r.json["currency"] != "usd":
			kind = "currency"
		case r.json["id"] == "":
			kind = "id"
		}
		seen[kind] = true
	}
	for _, kind := range []string{"html", "noise", "half", "amount", "currency", "id"} {
		if !seen[kind] {
			t.Errorf("no garbage of the kind %q: %v", kind, seen)
		}
	}
	p.effects(6)
}

func TestProbabilitiesAreKept(t *testing.T) {
	const n = 2000
	count := func(seed int64) int64 {
		p := start(t, simulator.Options{Seed: seed})
		p.faults(simulator.Faults{Error503: 0.3})
		for range n {
			p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/charges", nil))
		}
		return p.Fired()["error503"]
	}
	got := count(7)
	if got < n*25/100 || got > n*35/100 {
		t.Errorf("fired %d of %d times, want about 30 %%", got, n)
	}
	if again := count(7); again != got {
		t.Errorf("the same seed: %d, then %d", got, again)
	}
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, simulator.Options{Rate: 5})
		limited := func() (n int) {
			for i := range 10 {
				r := p.charge(fmt.Sprint(time.Now().UnixNano(), i))
				if r.status == 429 {
					n++
					if r.header.Get("Retry-After") != "1" {
						t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
					}
				}
			}
			return n
		}
		if n := limited(); n != 5 {
			t.Errorf("%d of 10 limited, want 5", n)
		}
		time.Sleep(time.Second)
		if n := limited(); n != 5 {
			t.Errorf("a second later %d of 10 limited, want 5", n)
		}
		p.effects(10)
	})
}

// A bucket that holds less than a second's requests.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, simulator.Options{Rate: 100, Burst: 3})
		taken := func() (n int) {
			for i := range 10 {
				if p.charge(fmt.Sprint(time.Now().UnixNano(), i)).status == 200 {
					n++
				}
			}
			return n
		}
		if n := taken(); n != 3 {
			t.Errorf("%d of 10 at once were taken, want 3", n)
		}
		time.Sleep(20 * time.Millisecond)
		if n := taken(); n != 2 {
			t.Errorf("%d of 10 were taken 20 ms later, want 2", n)
		}
	})
}

func TestKeyInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, simulator.Options{Latency: time.Second})
		var first reply
		var client sync.WaitGroup
		client.Go(func() { first = p.charge("k") })
		synctest.Wait()
		if r := p.charge("k"); r.status != 409 || r.errorCode() != "idempotency_key_in_use" || r.header.Get("Stripe-Should-Retry") != "true" {
			t.Errorf("meanwhile: %d %s", r.status, r.body)
		}
		client.Wait()
		if first.status != 200 {
			t.Errorf("first: %+v", first)
		}
		if r := p.charge("k"); !replayed(r) {
			t.Errorf("afterwards: %d %s", r.status, r.body)
		}
		p.effects(1)
	})
}

// A client that goes away does not stop what is being worked on.
func TestEffectAfterTheClientLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, simulator.Options{Latency: 3 * time.Second})
		if r := p.within(time.Second).charge("k"); !isTimeout(r.err) {
			t.Errorf("got %+v", r)
		}
		p.effects(0)
		time.Sleep(3 * time.Second)
		p.effects(1)
		if r := p.charge("k"); !replayed(r) {
			t.Errorf("retry: %d %s", r.status, r.body)
		}
		p.effects(1)
	})
}

func TestForgottenKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, simulator.Options{ForgetKeys: time.Hour})
		p.charge("k")
		time.Sleep(time.Hour - time.Second)
		if r := p.charge("k"); !replayed(r) {
			t.Errorf("remembered: %d %s", r.status, r.body)
		}
		p.effects(1)
		time.Sleep(2 * time.Second)
		if r := p.charge("k"); !created(r) {
			t.Errorf("forgotten: %d %s", r.status, r.body)
		}
		p.effects(2) // this is how a blind retry charges twice
	})
}

// A repeat is declined only where the first request took effect, without the mark of a replay; a repeat of that one bears it.
func TestDeclinedRepeat(t *testing.T) {
	p := start(t, simulator.Options{})
	p.charge("k")
	declined := p.post("/charges", "d", "amount", "1", "currency", "usd", "source", "tok_chargeDeclined")
	p.faults(simulator.Faults{DeclineRepeat: 1})
	if r := p.charge("new"); !created(r) {
		t.Errorf("a first request: %d %s", r.status, r.body)
	}
	if r := p.post("/charges", "d", "amount", "1", "currency", "usd", "source", "tok_chargeDeclined"); r.body != declined.body || r.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("a repeat of what had no effect: %d %s", r.status, r.body)
	}
	first := p.charge("k")
	if first.status != 402 || first.errorType() != "card_error" || first.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("a repeat: %d %s", first.status, first.body)
	}
	p.faults(simulator.Faults{})
	if again := p.charge("k"); again.body != first.body || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("its repeat: %d %s", again.status, again.body)
	}
	p.effects(2)
	if got := p.Fired()["decline_repeat"]; got != 1 {
		t.Errorf("fired %d times", got)
	}
}

func TestSlowBodyArrivesInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubble(t, simulator.Options{})
		p.faults(simulator.Faults{SlowBody: 1})
		from := time.Now()
		r := p.charge("k")
		if r.status != 200 || r.json["amount"] != 1999.0 {
			t.Errorf("got %+v", r)
		}
		if took := time.Since(from); took < time.Duration(len(r.body)-1)*time.Second {
			t.Errorf("%d bytes in %v", len(r.body), took)
		}
	})
}

func BenchmarkCharge(b *testing.B) {
	s := simulator.New(simulator.Options{})
	for i := 0; b.Loop(); i++ {
		req := httptest.NewRequestWithContext(b.Context(), "POST", "/charges",
			strings.NewReader("amount=1999&currency=usd&source=tok_visa&metadata%5Btenderbox_payment%5D=pay_1"))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Idempotency-Key", fmt.Sprint("k", i))
		s.ServeHTTP(httptest.NewRecorder(), req)
	}
}
