package upstream_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

const htmlPage = `<!doctype html><html>Accept and connect</html>`

// portal answers everything with a page.
func portal(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html")
	w.Write([]byte(htmlPage))
}

func TestOfflineUntilTheFirstAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := upstreamtest.NewLine(t, reply(200, goodCharge))
		_, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
		if l := a.Link(); l.State != upstream.Offline || a.Ready() || !strings.Contains(l.Evidence, "no answer yet") || l.Since.IsZero() {
			t.Errorf("before: %+v", l)
		}
		pay(t.Context(), a, "k") // what the judge says does not stop a send
		if l := a.Link(); l.State != upstream.Online || !a.Ready() || !strings.Contains(l.Evidence, "request: answered 200") || l.LastAnswer.IsZero() {
			t.Errorf("after: %+v", l)
		}
	})
}

// The state before is known when the process has found one, be it that nothing answered.
func TestStateBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := upstreamtest.NewLine(t, reply(200, goodCharge))
		for _, c := range []struct {
			first, then upstreamtest.Mode
			was         upstream.LinkState
		}{{upstreamtest.Up, upstreamtest.Up, ""}, {upstreamtest.Refused, upstreamtest.Up, upstream.Offline}, {upstreamtest.Up, upstreamtest.Refused, upstream.Online}} {
			_, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
			for _, mode := range []upstreamtest.Mode{c.first, c.then} {
				line.Set(mode)
				a.Get(t.Context(), "/charges/ch_1")
			}
			if l := a.Link(); l.Was != c.was {
				t.Errorf("%+v: %+v", c, l)
			}
		}
	})
}

func TestUnconfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as, a := account(t, upstream.Config{})
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := as.Run(ctx); err != nil {
			t.Error(err)
		}
		if l := a.Link(); l.State != upstream.Unconfigured || a.Ready() || a.Configured() {
			t.Errorf("%+v", l)
		}
	})
}

func TestProbesOnlyIntoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.is(upstream.Online, "closed", true)
		if n := p.probes.Load(); n != 1 {
			t.Errorf("%d probes at the start", n)
		}
		for range 100 { // real answers come more often than the interval
			time.Sleep(time.Second)
			p.pay()
		}
		if n := p.probes.Load(); n != 1 {
			t.Errorf("%d probes although answers came", n-1)
		}
		time.Sleep(20*time.Second + time.Millisecond)
		if n := p.probes.Load() - 1; n < 9 || n > 10 {
			t.Errorf("%d probes in 20 s of silence, want one each 2 s", n)
		}
	})
}

func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		var now, most atomic.Int64
		p.answers(func(w http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			hang(w, r)
		}, hang)
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
			pay(ctx, p.account, "k")
			cancel()
		}
		time.Sleep(time.Minute)
		if most.Load() != 1 {
			t.Errorf("%d probes at once", most.Load())
		}
		if n := p.probes.Load(); n > 1+75/2+8 {
			t.Errorf("%d probes in 75 s", n)
		}
	})
}

// The line goes and comes back: on return Ready flips, and OnChange fires, within one probe interval.
func TestCutAndReturn(t *testing.T) {
	for name, mode := range map[string]upstreamtest.Mode{"refused": upstreamtest.Refused, "black hole": upstreamtest.BlackHole} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, upstream.Config{})
				p.is(upstream.Online, "closed", true)
				p.line.Set(mode)
				time.Sleep(7 * time.Second)
				p.is(upstream.Offline, "closed", false)
				if l := p.changes.last(); l.State != upstream.Offline {
					t.Errorf("last told: %+v", l)
				}
				time.Sleep(time.Hour)
				told := p.changes.count()
				returned := time.Now()
				p.line.Set(upstreamtest.Up)
				for !p.account.Ready() && time.Since(returned) < time.Minute {
					time.Sleep(10 * time.Millisecond)
				}
				if took := time.Since(returned); took > 2*time.Second+20*time.Millisecond {
					t.Errorf("ready %v after the line's return", took)
				}
				p.is(upstream.Online, "closed", true)
				if p.changes.count() != told+1 || p.changes.last().State != upstream.Online {
					t.Errorf("told %d times, last %+v", p.changes.count()-told, p.changes.last())
				}
			})
		})
	}
}

// An address that refuses is offline at once, by the payment that met it.
func TestRefusedPaymentIsOfflineAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.line.Set(upstreamtest.Refused)
		p.pay()
		if l := p.account.Link(); l.State != upstream.Offline || l.Evidence != "request: connection refused" {
			t.Errorf("%+v", l)
		}
	})
}

// One payment that fails while others do not is trouble, not the line's end.
func TestOneHangingPaymentIsDegraded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(nil, hang)
		p.pay()
		p.is(upstream.Degraded, "closed", true)
		time.Sleep(19 * time.Second)
		p.is(upstream.Degraded, "closed", true)
		time.Sleep(2 * time.Second)
		p.is(upstream.Online, "closed", true)
		if p.changes.last().State != upstream.Online {
			t.Errorf("nobody was told that the trouble is over: %+v", p.changes.last())
		}
	})
}

func TestSlowIsDegraded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(nil, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second)
			reply(200, goodCharge)(w, r)
		})
		if answer := p.pay(); answer.Outcome != upstream.Succeeded {
			t.Errorf("%+v", answer)
		}
		p.is(upstream.Degraded, "closed", true)
	})
}

// A captive portal answers 200 to everything. That is not online, and nothing is declined by it.
func TestCaptivePortal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.is(upstream.Online, "closed", true)
		p.answers(portal, portal)
		if answer := p.pay(); answer.Outcome != upstream.Unknown {
			t.Errorf("%+v", answer)
		}
		time.Sleep(2 * time.Second)
		p.is(upstream.Offline, "closed", false)
		p.alarmed(upstream.AlarmNotTheirs)
		p.answers(reply(200, listAnswer), nil)
		time.Sleep(2*time.Second + time.Millisecond)
		p.is(upstream.Online, "closed", true)
		p.alarmed()
	})
	t.Run("from the start", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			line := upstreamtest.NewLine(t, http.HandlerFunc(portal))
			as, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			as.Run(ctx)
			if l := a.Link(); l.State != upstream.Offline {
				t.Errorf("%+v", l)
			}
		})
	})
}

// A processor that knows no probe path is a processor nevertheless.
func TestProbePathUnknownThere(t *testing.T) {
	for _, status := range []int{404, 405, 501} {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, upstream.Config{})
			p.answers(reply(status, "no such page"), nil)
			time.Sleep(10 * time.Second)
			p.is(upstream.Online, "closed", true)
		})
	}
}

func TestIllProcessorIsDegraded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.answers(reply(503, serverError), nil)
		time.Sleep(10 * time.Second)
		p.is(upstream.Degraded, "closed", true) // whether to send is the breaker's to say
	})
}

// The line flaps: every state that is told is the one that holds, and the last one stays.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		for range 30 {
			p.line.Set(upstreamtest.Refused)
			time.Sleep(time.Second)
			p.line.Set(upstreamtest.Up)
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Second)
		p.is(upstream.Online, "closed", true)
		if l := p.changes.last(); l.State != upstream.Online {
			t.Errorf("last told %+v", l)
		}
		if n := p.probes.Load(); n > 35 {
			t.Errorf("%d probes in a minute", n)
		}
	})
}

// A failure that began before the line's return says nothing about the line after it.
func TestLateFailuresAreHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(hang, hang)
		var paying sync.WaitGroup
		paying.Go(func() { p.pay() })
		time.Sleep(time.Second)
		p.line.Set(upstreamtest.BlackHole)
		p.account.ForceBreaker("close") // wakes the watch
		time.Sleep(3500 * time.Millisecond)
		if l := p.account.Link(); l.State == upstream.Online {
			t.Fatalf("the line is a black hole: %+v", l)
		}
		p.answers(reply(200, listAnswer), reply(200, goodCharge))
		p.line.Set(upstreamtest.Up)
		pay(t.Context(), p.account, "other")
		paying.Wait()
		synctest.Wait()
		if l := p.account.Link(); l.State == upstream.Offline {
			t.Errorf("an old failure took the line down: %+v", l)
		}
	})
}

func TestCallerWhoGivesUpProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(nil, hang)
		for range 10 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, cancel)
			if answer := pay(ctx, p.account, "k"); answer.Outcome != upstream.Unknown || !answer.MaybeSent || answer.Reason != "given up by the caller" {
				t.Errorf("%+v", answer)
			}
		}
		p.is(upstream.Online, "closed", true)
	})
}

// A callback may use the account and may panic.
func TestOnChangeCallbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := upstreamtest.NewLine(t, reply(200, goodCharge))
		as, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
		var told []upstream.LinkState
		as.OnChange(func(a *upstream.Account, l upstream.Link) {
			if told = append(told, l.State); len(told) == 1 {
				line.Set(upstreamtest.Refused)
				pay(t.Context(), a, "again")
			}
		})
		as.OnChange(func(*upstream.Account, upstream.Link) { panic("a callback's mistake") })
		pay(t.Context(), a, "k")
		if len(told) != 2 || told[0] != upstream.Online || told[1] != upstream.Offline {
			t.Errorf("told %v", told)
		}
	})
}

// The verdict names what keeps the processor from answering.
func TestCauses(t *testing.T) {
	dial := func(err error) func(context.Context, string, string) (net.Conn, error) {
		return func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	for _, c := range []struct {
		name   string
		dial   func(context.Context, string, string) (net.Conn, error) // nil: a line to answer
		answer http.HandlerFunc
		state  upstream.LinkState
		cause  upstream.Cause
	}{
		{"well", nil, reply(200, listAnswer), upstream.Online, ""},
		{"portal", nil, portal, upstream.Offline, upstream.CaptivePortal},
		{"ill", nil, reply(500, serverError), upstream.Degraded, upstream.UpstreamDown},
		{"refuses", dial(syscall.ECONNREFUSED), nil, upstream.Offline, upstream.UpstreamDown},
		{"no route", dial(syscall.ENETUNREACH), nil, upstream.Offline, upstream.NoNetwork},
		{"no name", dial(&net.DNSError{Err: "no such host", IsNotFound: true}), nil, upstream.Offline, upstream.NoNetwork},
		{"foreign certificate", dial(x509.UnknownAuthorityError{}), nil, upstream.Offline, upstream.CaptivePortal},
		{"silent", nil, hang, upstream.Offline, upstream.NoAnswer},
		{"another time", nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			reply(200, listAnswer)(w, r)
		}, upstream.Online, upstream.ClockWrong},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := upstream.Config{URL: upstreamtest.URL, Dial: c.dial}
				if c.dial == nil {
					cfg.Dial = upstreamtest.NewLine(t, c.answer).Dial
				}
				as, a := account(t, cfg)
				if l := a.Link(); l.Cause != upstream.NotTried {
					t.Errorf("at first: %+v", l)
				}
				ctx, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				as.Run(ctx)
				l := a.Link()
				if l.State != c.state || l.Cause != c.cause || l.Evidence == "" {
					t.Errorf("%+v, want %s, %s", l, c.state, c.cause)
				}
				if clock := slices.ContainsFunc(a.Alarms(), func(al upstream.Alarm) bool { return al.Code == upstream.AlarmClockWrong }); clock != (c.cause == upstream.ClockWrong) {
					t.Errorf("alarms: %+v", a.Alarms())
				}
			})
		})
	}
}

// Offline by word, nothing but probes is sent, also for accounts that come later; the judge's own word holds again as soon as that ends.
func TestForcedOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{Key: "sk"})
		p.is(upstream.Online, "closed", true)
		if err := p.accounts.ForceLink("down"); err == nil {
			t.Error("an unknown word was taken")
		}
		if err := p.accounts.ForceLink("offline"); err != nil {
			t.Fatal(err)
		}
		p.is(upstream.Offline, "closed", false)
		p.alarmed(upstream.AlarmLinkForced)
		if l := p.account.Link(); l.Cause != upstream.Forced || l.Was != upstream.Online || !l.Since.Equal(time.Now()) {
			t.Errorf("%+v", l)
		}
		later, err := p.accounts.Get("", "later", "sk_2")
		if err != nil || later.Link().Cause != upstream.Forced {
			t.Errorf("%+v: %v", later.Link(), err)
		}
		probes := p.probes.Load()
		time.Sleep(time.Minute)
		if answer := p.pay(); answer.Outcome != upstream.Retryable || answer.MaybeSent || p.posts.Load() != 0 {
			t.Errorf("%+v, %d sent", answer, p.posts.Load())
		}
		if _, err := p.account.Enter(t.Context()); !errors.Is(err, upstream.ErrNotReady) {
			t.Errorf("a place was given: %v", err)
		}
		if p.probes.Load() == probes {
			t.Error("the judge has stopped looking")
		}
		if l := p.account.Link(); l.State != upstream.Offline || !l.Since.Equal(time.Now().Add(-time.Minute)) {
			t.Errorf("%+v", l)
		}
		told := p.changes.count()
		if err := p.accounts.ForceLink("auto"); err != nil {
			t.Fatal(err)
		}
		p.is(upstream.Online, "closed", true)
		p.alarmed()
		if l := p.account.Link(); l.Cause != "" || l.Was != upstream.Offline || p.changes.count() <= told {
			t.Errorf("%+v", l)
		}
		if answer := p.pay(); answer.Outcome != upstream.Succeeded {
			t.Errorf("%+v", answer)
		}

		// In an outage it changes nothing that is told.
		p.line.Set(upstreamtest.Refused)
		p.pay()
		down := p.account.Link()
		p.account.ForceLink("offline")
		time.Sleep(time.Second)
		if l := p.account.Link(); l.Was != down.Was || !l.Since.Equal(down.Since) || l.Cause != upstream.Forced {
			t.Errorf("%+v, was %+v", l, down)
		}
		p.account.ForceLink("auto")
		if l := p.account.Link(); l.Was != down.Was || !l.Since.Equal(down.Since) || l.Cause != upstream.UpstreamDown {
			t.Errorf("%+v, was %+v", l, down)
		}
	})
}
