package upstream_test

import (
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

func tooMany(retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		reply(429, `{"error":{"type":"rate_limit_error"}}`)(w, r)
	}
}

// RELIABILITY fault 10: obeyed within a cap; nothing goes out meanwhile, and the end is told.
func TestRateLimitHolds(t *testing.T) {
	for _, c := range []struct {
		retryAfter string
		hold       time.Duration
	}{
		{"", time.Second}, {"0", time.Second}, {"-1", time.Second}, {"30", 30 * time.Second}, {"1000000000000", 5 * time.Minute},
	} {
		t.Run("Retry-After "+c.retryAfter, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, upstream.Config{})
				synctest.Wait()
				p.answers(nil, tooMany(c.retryAfter))
				if answer := p.pay(); answer.Outcome != upstream.Retryable || !answer.MaybeSent || answer.RetryAfter != c.hold {
					t.Errorf("%+v", answer)
				}
				from := time.Now()
				p.is(upstream.Online, "closed", false)
				p.alarmed(upstream.AlarmRateLimited)
				if answer := p.pay(); answer.Outcome != upstream.Retryable || answer.MaybeSent || answer.RetryAfter != c.hold || p.posts.Load() != 1 {
					t.Errorf("held: %+v, %d sent", answer, p.posts.Load())
				}
				time.Sleep(c.hold - time.Millisecond)
				p.is(upstream.Online, "closed", false)
				told := p.changes.count()
				time.Sleep(2 * time.Millisecond)
				p.is(upstream.Online, "closed", true)
				if p.changes.count() != told+1 {
					t.Errorf("%v after the 429 nobody was told that it is over", time.Since(from))
				}
				p.alarmed()
			})
		})
	}
}

// A later, shorter Retry-After does not cut a longer one short.
func TestLongestHoldHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(tooMany("1"), tooMany("60"))
		p.pay()
		time.Sleep(30 * time.Second)
		p.is(upstream.Online, "closed", false)
	})
}

// A refused key stops sends with an alarm; nothing is declined; a probe that is let in ends it.
func TestRefusedKeyHolds(t *testing.T) {
	for _, status := range []int{401, 403} {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, upstream.Config{})
			synctest.Wait()
			refuse := reply(status, `{"error":{"type":"invalid_request_error","message":"Invalid API Key provided"}}`)
			p.answers(refuse, refuse)
			if answer := p.pay(); answer.Outcome != upstream.Retryable {
				t.Errorf("%+v", answer)
			}
			p.is(upstream.Online, "closed", false)
			p.alarmed(upstream.AlarmKeyRefused)
			time.Sleep(time.Hour)
			p.is(upstream.Online, "closed", false)
			if answer := p.pay(); answer.MaybeSent || p.posts.Load() != 1 {
				t.Errorf("%+v, %d sent", answer, p.posts.Load())
			}
			p.answers(reply(200, listAnswer), reply(200, goodCharge))
			time.Sleep(2*time.Second + 10*time.Millisecond)
			p.is(upstream.Online, "closed", true)
			p.alarmed()
		})
	}
}

// A key that may list but not charge is tried ever less often.
func TestRestrictedKeyIsTriedEverLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.answers(nil, reply(403, `{"error":{"type":"invalid_request_error","message":"not permitted"}}`))
		var tried []time.Time
		for end := time.Now().Add(2 * time.Hour); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
			if p.account.Ready() {
				p.pay()
				tried = append(tried, time.Now())
			}
		}
		if n := len(tried); n < 20 || n > 40 {
			t.Fatalf("tried %d times in two hours", n)
		}
		if gap := tried[len(tried)-1].Sub(tried[len(tried)-2]); gap < 5*time.Minute || gap > 6*time.Minute {
			t.Errorf("in the end each %v", gap)
		}
	})
}

// Stripe's words for a path that it does not know, as for a base URL without its /v1.
const unrecognized = `{"error":{"type":"invalid_request_error","message":"Unrecognized request URL (POST: /charges)."}}`

// An address that does not know /charges stops sends with an alarm; nothing is declined; probes that it does not know
// either are answers of the line and lift nothing; one that succeeds does.
func TestWrongURLHolds(t *testing.T) {
	for name, refuse := range map[string]http.HandlerFunc{
		"in the processor's words": reply(404, unrecognized), "of a web server": reply(404, "404 page not found\n"), "method": reply(405, ""),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, upstream.Config{})
				synctest.Wait()
				p.answers(refuse, refuse)
				if answer := p.pay(); answer.Outcome != upstream.Retryable || !answer.MaybeSent {
					t.Errorf("%+v", answer)
				}
				p.alarmed(upstream.AlarmURLWrong)
				probed := p.probes.Load()
				time.Sleep(4 * time.Minute)
				p.is(upstream.Online, "closed", false)
				if answer := p.pay(); answer.Outcome != upstream.Retryable || answer.MaybeSent || answer.RetryAfter != 2*time.Second || p.posts.Load() != 1 {
					t.Errorf("held: %+v, %d sent", answer, p.posts.Load())
				}
				if p.probes.Load() < probed+100 {
					t.Errorf("%d probes in four minutes", p.probes.Load()-probed)
				}
				p.alarmed(upstream.AlarmURLWrong)
				p.answers(reply(200, listAnswer), reply(200, goodCharge))
				time.Sleep(2*time.Second + 10*time.Millisecond)
				p.is(upstream.Online, "closed", true)
				p.alarmed()
				if answer := p.pay(); answer.Outcome != upstream.Succeeded {
					t.Errorf("%+v", answer)
				}
			})
		})
	}
}

// An address whose probes succeed and whose payments do not is tried ever less often; one whose probes are not
// known is tried by payments every five minutes, for a processor need not know the probe's path.
func TestWrongURLIsTriedRarely(t *testing.T) {
	for name, c := range map[string]struct {
		probe    http.HandlerFunc
		min, max int
	}{
		"probes succeed": {reply(200, listAnswer), 20, 40}, "probes not known": {reply(404, unrecognized), 23, 25},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, upstream.Config{})
				p.answers(c.probe, reply(404, unrecognized))
				var tried []time.Time
				for end := time.Now().Add(2 * time.Hour); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
					if p.account.Ready() {
						p.pay()
						tried = append(tried, time.Now())
					}
				}
				if n := len(tried); n < c.min || n > c.max {
					t.Fatalf("tried %d times in two hours", n)
				}
				if gap := tried[len(tried)-1].Sub(tried[len(tried)-2]); gap < 5*time.Minute || gap > 6*time.Minute {
					t.Errorf("in the end each %v", gap)
				}
				p.alarmed(upstream.AlarmURLWrong)
				p.answers(nil, reply(200, goodCharge)) // the address proves right by a payment
				for !p.account.Ready() {
					time.Sleep(time.Second)
				}
				if answer := p.pay(); answer.Outcome != upstream.Succeeded {
					t.Errorf("%+v", answer)
				}
				p.is(upstream.Online, "closed", true)
				p.alarmed()
			})
		})
	}
}

// A source that does not exist declines one payment and holds nothing; nor does an object that is looked up in vain.
func TestMissingResourceHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		missing := reply(404, `{"error":{"type":"invalid_request_error","code":"resource_missing","param":"source","message":"No such source"}}`)
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(missing, missing)
		if answer := p.pay(); answer.Outcome != upstream.Declined {
			t.Errorf("%+v", answer)
		}
		if answer := p.account.Get(t.Context(), "/charges/ch_1"); answer.Outcome != upstream.Unknown || !answer.Missing() {
			t.Errorf("%+v", answer)
		}
		p.is(upstream.Online, "closed", true)
		p.alarmed()
	})
}

// Payments under way together that all meet the wrong address are one strike.
func TestWaveOfWrongURLIsOneStrike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(nil, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(100 * time.Millisecond)
			reply(404, unrecognized)(w, r)
		})
		var wave sync.WaitGroup
		for range 16 {
			wave.Go(func() { p.pay() })
		}
		wave.Wait()
		p.is(upstream.Online, "closed", false)
		time.Sleep(2*time.Second + 10*time.Millisecond)
		p.is(upstream.Online, "closed", true)
	})
}

// Changed settings of the account end the hold: another key at once.
func TestChangedSettingsFreeTheURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{Key: "sk_box"})
		a, err := p.accounts.Get("", "acct_2", "sk_old")
		if err != nil {
			t.Fatal(err)
		}
		p.answers(reply(404, unrecognized), reply(404, unrecognized))
		pay(t.Context(), a, "k")
		synctest.Wait()
		if list := a.Alarms(); a.Ready() || len(list) != 1 || list[0].Code != upstream.AlarmURLWrong {
			t.Fatalf("ready %v, alarms %+v", a.Ready(), list)
		}
		if _, err := p.accounts.Get("", "acct_2", "sk_new"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !a.Ready() || len(a.Alarms()) != 0 {
			t.Errorf("ready %v, alarms %+v", a.Ready(), a.Alarms())
		}
	})
}

// Another key lifts the hold that the old one earned, and is the one that is sent.
func TestRotatedKeyIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{Key: "sk_box"})
		a, err := p.accounts.Get("", "acct_2", "sk_old")
		if err != nil {
			t.Fatal(err)
		}
		handler := func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.Header.Get("Authorization") != "Bearer sk_new" {
				reply(401, `{"error":{"type":"invalid_request_error"}}`)(w, r)
				return
			}
			reply(200, goodCharge)(w, r)
		}
		p.answers(handler, handler)
		pay(t.Context(), a, "k")
		synctest.Wait()
		if a.Ready() || len(a.Alarms()) != 1 {
			t.Fatalf("the old key: ready %v, alarms %+v", a.Ready(), a.Alarms())
		}
		told := p.changes.count()
		b, err := p.accounts.Get("", "acct_2", "sk_new")
		if err != nil || b != a {
			t.Fatalf("%v, %v", b, err)
		}
		synctest.Wait()
		if !a.Ready() || len(a.Alarms()) != 0 || p.changes.count() == told {
			t.Errorf("the new key: ready %v, alarms %+v, told %d", a.Ready(), a.Alarms(), p.changes.count()-told)
		}
		if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Succeeded {
			t.Errorf("%+v", answer)
		}
		// The same name without a key: the account as it is.
		if c, err := p.accounts.Get("", "acct_2", ""); c != a || err != nil {
			t.Errorf("%v, %v", c, err)
		}
	})
}

// The refusal of the old key, which arrives after the new one came, holds nothing.
func TestLateRefusalOfTheOldKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := upstreamtest.NewLine(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.Header.Get("Authorization") == "Bearer sk_old" {
				time.Sleep(time.Second)
				reply(401, `{"error":{"type":"invalid_request_error"}}`)(w, r)
				return
			}
			reply(200, goodCharge)(w, r)
		}))
		as := upstream.NewAccounts(upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
		defer as.CloseIdleConnections()
		a, _ := as.Get("", "acct_2", "sk_old")
		done := make(chan upstream.Answer)
		go func() { done <- pay(t.Context(), a, "k") }()
		synctest.Wait()
		as.Get("", "acct_2", "sk_new")
		if answer := <-done; answer.Outcome != upstream.Retryable {
			t.Errorf("%+v", answer)
		}
		if !a.Ready() || len(a.Alarms()) != 0 {
			t.Errorf("ready %v, %+v", a.Ready(), a.Alarms())
		}
	})
}
