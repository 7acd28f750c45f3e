package upstream_test

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

func TestBreakerOpensTriesAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.is(upstream.Online, "closed", true)
		p.answers(reply(500, serverError), reply(500, serverError))
		for i := range 5 {
			if b := p.account.Breaker(); b.State != "closed" || b.Failures != i {
				t.Errorf("after %d failures: %+v", i, b)
			}
			p.pay()
		}
		p.is(upstream.Degraded, "open", false)
		p.alarmed(upstream.AlarmBreakerOpen)
		opened := time.Now()
		if b := p.account.Breaker(); b.Failures != 5 || !b.Since.Equal(opened) {
			t.Errorf("opened: %+v", b)
		}
		sent := p.posts.Load()
		answer := p.pay()
		if answer.Outcome != upstream.Retryable || answer.MaybeSent || answer.RetryAfter <= 0 || answer.RetryAfter > 10*time.Second+1 || p.posts.Load() != sent {
			t.Errorf("while open: %+v, %d sent", answer, p.posts.Load()-sent)
		}
		// A probe is the trial, not a payment; the first one fails.
		time.Sleep(10*time.Second + 100*time.Millisecond)
		p.is(upstream.Degraded, "open", false)
		if b := p.account.Breaker(); !b.Since.After(opened) || p.posts.Load() != sent {
			t.Errorf("after the trial: %+v, %d sent", b, p.posts.Load()-sent)
		}
		p.answers(reply(200, listAnswer), reply(200, goodCharge))
		told := p.changes.count()
		time.Sleep(10*time.Second + 100*time.Millisecond)
		p.is(upstream.Degraded, "closed", true) // its last trouble is some seconds old
		if p.changes.count() == told {
			t.Error("nobody was told that it closed")
		}
		if b := p.account.Breaker(); b.Failures != 0 {
			t.Errorf("closed: %+v", b)
		}
		p.alarmed()
	})
}

// Declines, other 4xx and 429 are answers of a processor that works.
func TestClientErrorsAreNoFailures(t *testing.T) {
	for _, status := range []int{400, 402, 404, 409} {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, upstream.Config{})
			synctest.Wait()
			p.answers(nil, reply(status, cardError))
			for range 50 {
				p.pay()
			}
			p.is(upstream.Online, "closed", true)
			if b := p.account.Breaker(); b.Failures != 0 {
				t.Errorf("%d: %+v", status, b)
			}
		})
	}
	t.Run("429", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, upstream.Config{})
			p.answers(nil, reply(429, serverError))
			for range 20 {
				p.pay()
				time.Sleep(1500 * time.Millisecond)
			}
			p.is(upstream.Online, "closed", true)
			if b := p.account.Breaker(); b.Failures != 0 || p.posts.Load() != 20 {
				t.Errorf("%+v after %d", b, p.posts.Load())
			}
		})
	})
}

// Many successes between failures keep it closed; failures that are half of all open it.
func TestBreakerCountsInAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		fail, succeed := reply(500, serverError), reply(200, goodCharge)
		for range 20 { // one failure in three
			for _, h := range []http.HandlerFunc{fail, succeed, succeed} {
				p.answers(nil, h)
				p.pay()
			}
		}
		if b := p.account.Breaker(); b.State != "closed" || b.Failures != 20 {
			t.Errorf("a third fails: %+v", b)
		}
		time.Sleep(2 * time.Minute)
		if b := p.account.Breaker(); b.Failures != 0 {
			t.Errorf("the window has passed: %+v", b)
		}
		for range 5 { // every other
			for _, h := range []http.HandlerFunc{succeed, fail} {
				p.answers(nil, h)
				p.pay()
			}
		}
		if b := p.account.Breaker(); b.State != "open" {
			t.Errorf("half fail: %+v", b)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(nil, reply(500, serverError))
		for range 12 { // too seldom to matter
			p.pay()
			time.Sleep(20 * time.Second)
			p.answers(nil, reply(200, goodCharge))
			p.pay()
			p.answers(nil, reply(500, serverError))
		}
		if b := p.account.Breaker(); b.State != "closed" {
			t.Errorf("three a minute: %+v", b)
		}
	})
}

// A breaker that opened for want of a line closes with the line's return, not ten seconds later.
func TestLineReturnClosesTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{BreakerOpen: time.Hour})
		synctest.Wait()
		p.answers(nil, hang)
		var paying sync.WaitGroup
		for range 16 { // in flight when the line is cut
			paying.Go(func() { p.pay() })
		}
		synctest.Wait()
		p.line.Set(upstreamtest.Refused)
		paying.Wait()
		p.is(upstream.Offline, "open", false)
		p.answers(nil, reply(200, goodCharge))
		p.line.Set(upstreamtest.Up)
		time.Sleep(2*time.Second + 10*time.Millisecond)
		p.is(upstream.Online, "closed", true)
	})
	t.Run("but not if the processor failed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, upstream.Config{})
			synctest.Wait()
			p.answers(nil, reply(500, serverError))
			for range 5 {
				p.pay()
			}
			p.line.Set(upstreamtest.Refused)
			time.Sleep(3 * time.Second)
			p.line.Set(upstreamtest.Up)
			time.Sleep(3 * time.Second)
			p.is(upstream.Online, "open", false)
		})
	})
	t.Run("nor if only payments hang", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, upstream.Config{})
			synctest.Wait()
			p.answers(nil, hang)
			var paying sync.WaitGroup
			for range 16 {
				paying.Go(func() { p.pay() })
			}
			paying.Wait()
			time.Sleep(5 * time.Second)
			p.is(upstream.Degraded, "open", false)
		})
	})
}

func TestForcedBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.is(upstream.Online, "closed", true)
		if err := p.account.ForceBreaker("ajar"); err == nil {
			t.Error("took a state that is none")
		}
		told := p.changes.count()
		if err := p.account.ForceBreaker("open"); err != nil {
			t.Fatal(err)
		}
		if p.changes.count() != told+1 {
			t.Error("nobody was told")
		}
		if answer := p.pay(); answer.Outcome != upstream.Retryable || answer.MaybeSent {
			t.Errorf("%+v", answer)
		}
		time.Sleep(time.Hour)
		p.is(upstream.Online, "open", false)
		if b := p.account.Breaker(); !b.Forced {
			t.Errorf("%+v", b)
		}
		p.alarmed(upstream.AlarmBreakerOpen)
		if err := p.account.ForceBreaker("close"); err != nil {
			t.Fatal(err)
		}
		p.is(upstream.Online, "closed", true)
		p.alarmed()
	})
}

// A call that was under way when the breaker was reset counts no more.
func TestResetForgetsCallsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{BreakerFailures: 1})
		synctest.Wait()
		p.answers(nil, hang)
		var paying sync.WaitGroup
		paying.Go(func() { p.pay() })
		synctest.Wait()
		p.account.ForceBreaker("close")
		paying.Wait()
		if b := p.account.Breaker(); b.State != "closed" {
			t.Errorf("%+v", b)
		}
	})
}
