package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	xrate "golang.org/x/time/rate"

	"tenderbox/upstream"
	"tenderbox/upstream/simulator"
	"tenderbox/upstream/upstreamtest"
)

// drained is what a drain came to.
type drained struct {
	answers, refused atomic.Int64
	took             time.Duration
}

// drain sends n payments with so many workers, each of which takes a place first, as the ledger does, and tries again what was refused.
func drain(t *testing.T, a *upstream.Account, workers, n int) *drained {
	t.Helper()
	return drainSealed(t, a, workers, n, func() {})
}

// drainSealed is drain with something between the place and the send.
func drainSealed(t *testing.T, a *upstream.Account, workers, n int, seal func()) *drained {
	t.Helper()
	d := &drained{}
	from, prefix := time.Now(), time.Now().Format(time.RFC3339Nano) // no drain repeats another's keys
	var left atomic.Int64
	left.Store(int64(n))
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := left.Add(-1); i >= 0; {
				leave, err := a.Enter(t.Context())
				if errors.Is(err, upstream.ErrNotReady) {
					time.Sleep(time.Second)
					continue
				}
				if err != nil {
					t.Errorf("enter: %v", err)
					return
				}
				seal()
				answer := pay(t.Context(), a, fmt.Sprint(prefix, i))
				leave()
				d.answers.Add(1)
				switch {
				case answer.Status == http.StatusTooManyRequests:
					d.refused.Add(1)
				case answer.Outcome == upstream.Succeeded:
					i = left.Add(-1)
				case answer.Outcome == upstream.Retryable && !answer.MaybeSent: // a pause began meanwhile
					d.answers.Add(-1)
				default:
					t.Errorf("%+v", answer)
					return
				}
			}
		})
	}
	group.Wait()
	d.took = time.Since(from)
	return d
}

// crowd is a simulator that counts who is in it.
type crowd struct {
	*simulator.Simulator
	now, most, posts atomic.Int64
}

// set changes the processor's settings, as an operator of it would.
func (c *crowd) set(t *testing.T, control string) {
	t.Helper()
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/_control", strings.NewReader(control)))
	if w.Code != http.StatusOK {
		t.Fatalf("control: %d %s", w.Code, w.Body)
	}
}

func (c *crowd) handler(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			c.posts.Add(1)
			n := c.now.Add(1)
			for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
			}
			defer c.now.Add(-1)
		}
		inner.ServeHTTP(w, r)
	})
}

// simulated is an account at a simulated processor, in a bubble. before stands before the processor; nil: nothing.
func simulated(t *testing.T, c upstream.Config, o simulator.Options, before func(*simulator.Simulator) http.Handler) (*upstream.Account, *crowd) {
	t.Helper()
	s := &crowd{Simulator: simulator.New(o)}
	inner := http.Handler(s.Simulator)
	if before != nil {
		inner = before(s.Simulator)
	}
	line := upstreamtest.NewLine(t, s.handler(inner))
	c.URL, c.Dial = upstreamtest.URL, line.Dial
	accounts, a := account(t, c)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = accounts.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	synctest.Wait()
	time.Sleep(time.Second) // the first probe is answered
	return a, s
}

// A processor that allows so many a second gets nearly all of them, and refuses few: with a bucket that fills while nothing is sent, as
// most have, and without.
func TestRateIsLearned(t *testing.T) {
	for _, c := range []struct {
		name       string
		rate       int
		latency    time.Duration
		payments   int
		withBucket bool
		part       float64 // of what is allowed
	}{
		{"quick", 100, 20 * time.Millisecond, 10_000, true, 0.95},
		{"far away", 100, 500 * time.Millisecond, 10_000, true, 0.94}, // the first seconds are spent on finding out
		{"few", 10, 20 * time.Millisecond, 2_000, true, 0.95},
		{"many", 1000, 20 * time.Millisecond, 10_000, true, 0.95},
		{"without a bucket", 100, 20 * time.Millisecond, 10_000, false, 0.92}, // each refusal costs its second's pause
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := simulator.Options{Latency: c.latency}
				if c.withBucket {
					o.Rate = c.rate
				}
				a, s := simulated(t, upstream.Config{Concurrency: 64}, o, func(s *simulator.Simulator) http.Handler {
					if c.withBucket {
						return s
					}
					return spaced(s, c.rate)
				})
				d := drain(t, a, 200, c.payments)
				got, refused := float64(c.payments)/d.took.Seconds(), float64(d.refused.Load())/float64(d.answers.Load())
				if got < c.part*float64(c.rate) {
					t.Errorf("%.1f a second, want %v of %d", got, c.part, c.rate)
				}
				if refused >= 0.02 || refused == 0 {
					t.Errorf("%.2f %% of the answers were 429, want some and fewer than 2 %%", 100*refused)
				}
				if n := s.posts.Load(); n != d.answers.Load() {
					t.Errorf("%d requests for %d answers", n, d.answers.Load())
				}
				if b := a.Breaker(); b.State != upstream.BreakerClosed || b.Failures != 0 {
					t.Errorf("throttling counts as failure: %+v", b)
				}
			})
		})
	}
}

// spaced lets payments in only so far apart: what is not used is lost. A tenth is for the jitter of a line.
func spaced(h http.Handler, rate int) http.Handler {
	limiter := xrate.NewLimiter(xrate.Limit(rate), max(rate/10, 1))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && !limiter.Allow() {
			tooMany("")(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// A disk that stalls makes what gathered meanwhile durable at once. It is not sent at once: a processor with a small bucket would refuse it.
func TestRateOutlastsTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stalls, every = 150 * time.Millisecond, 2 * time.Second
		a, _ := simulated(t, upstream.Config{}, simulator.Options{Rate: 100, Burst: 10, Latency: 20 * time.Millisecond}, nil)
		began := time.Now()
		seal := func() {
			wait := 3 * time.Millisecond
			if at := time.Since(began) % every; at < stalls {
				wait = stalls - at
			}
			time.Sleep(wait)
		}
		const n = 4500
		d := drainSealed(t, a, 60, n, seal)
		got, refused := n/d.took.Seconds(), float64(d.refused.Load())/float64(d.answers.Load())
		// Stalls take 7.5 of 100, refusals the rest.
		if got < 84 || refused >= 0.02 {
			t.Errorf("%.1f a second, %.2f %% refused", got, 100*refused)
		}
	})
}

// When the processor allows less than before, the new rate is found; when it allows more, too.
func TestRateFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := simulated(t, upstream.Config{}, simulator.Options{Rate: 100, Latency: 20 * time.Millisecond}, nil)
		drain(t, a, 50, 3000)
		for _, rate := range []int{20, 200} {
			s.set(t, fmt.Sprintf(`{"rate":%d}`, rate))
			drain(t, a, 50, 90*rate) // finds it
			n := 60 * rate
			d := drain(t, a, 50, n)
			if got, refused := float64(n)/d.took.Seconds(), float64(d.refused.Load())/float64(n); got < 0.95*float64(rate) || refused >= 0.02 {
				t.Errorf("allowed %d: %.1f a second, %.2f %% refused", rate, got, 100*refused)
			}
		}
	})
}

// A configured rate is never exceeded, and is reached.
func TestRateConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Time
		a, _ := simulated(t, upstream.Config{Rate: 50}, simulator.Options{Latency: 100 * time.Millisecond}, func(s *simulator.Simulator) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					mu.Lock()
					at = append(at, time.Now())
					mu.Unlock()
				}
				s.ServeHTTP(w, r)
			})
		})
		d := drain(t, a, 100, 3000)
		if got := 3000 / d.took.Seconds(); got > 50.1 || got < 49 {
			t.Errorf("%.1f a second, want 50", got)
		}
		for i := range at {
			if i >= 51 && at[i].Sub(at[i-51]) < time.Second {
				t.Fatalf("52 requests within %v", at[i].Sub(at[i-51]))
			}
		}
		if p := a.Pace(); p.Rate != 50 {
			t.Errorf("%+v", p)
		}
	})
}

// The number at a time begins small, grows to the maximum while answers are good, and is not passed.
func TestConcurrencyGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := simulated(t, upstream.Config{Concurrency: 40}, simulator.Options{Latency: 20 * time.Millisecond}, nil)
		if p := a.Pace(); p.Concurrency != 4 || p.Rate != 0 {
			t.Errorf("at first %+v", p)
		}
		drain(t, a, 4, 4000) // few payments at a time prove nothing about many
		if p := a.Pace(); p.Concurrency > 9 {
			t.Errorf("grew without use: %+v", p)
		}
		d := drain(t, a, 200, 4000)
		if p := a.Pace(); p.Concurrency != 40 || p.InUse != 0 || p.Waiting != 0 {
			t.Errorf("in the end %+v", p)
		}
		if ideal := 4000 * 20 * time.Millisecond / 40; d.took > ideal*11/10 {
			t.Errorf("took %v, want about %v", d.took, ideal)
		}
		if most := s.most.Load(); most < 36 || most > 44 { // who has waited for gateMax goes
			t.Errorf("%d on their way at a time, want about 40", most)
		}
	})
}

// Without a setting, as many are sent at a time as two cores can seal in the time that an answer takes.
func TestConcurrencyFollowsTheTimeOfAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ latency, most int }{{10, 32}, {25, 40}, {200, 64}} {
			a, _ := simulated(t, upstream.Config{}, simulator.Options{Latency: time.Duration(c.latency) * time.Millisecond}, nil)
			drain(t, a, 200, 2000)
			if p := a.Pace(); p.Concurrency < c.most-2 || p.Concurrency > c.most {
				t.Errorf("at %d ms: %+v, want %d", c.latency, p, c.most)
			}
		}
	})
}

// A processor that slows down under many requests gets fewer of them, and all of them when it is well again.
func TestConcurrencyIsHalvedWhenAnswersAreSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := simulated(t, upstream.Config{Concurrency: 64}, simulator.Options{Latency: 100 * time.Millisecond}, nil)
		drain(t, a, 100, 2000)
		if p := a.Pace(); p.Concurrency != 64 {
			t.Fatalf("%+v", p)
		}
		s.set(t, `{"latency_ms":1000}`)
		drain(t, a, 100, 200)
		if p := a.Pace(); p.Concurrency > 32 || p.Concurrency < 1 {
			t.Errorf("slow: %+v", p)
		}
		s.set(t, `{"latency_ms":100}`)
		drain(t, a, 100, 20_000)
		if p := a.Pace(); p.Concurrency < 60 {
			t.Errorf("well again: %+v", p)
		}
	})
}

// Answers of trouble halve it once for all that were on their way, not once each.
func TestConcurrencyIsHalvedOncePerRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := simulated(t, upstream.Config{BreakerFailures: 1000, Concurrency: 64}, simulator.Options{Latency: 20 * time.Millisecond}, nil)
		drain(t, a, 100, 2000)
		var group sync.WaitGroup
		if err := s.SetFaults(simulator.Faults{Error503: 1}); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			group.Go(func() { pay(t.Context(), a, "") })
			group.Go(func() { pay(t.Context(), a, "k") })
		}
		group.Wait()
		if p := a.Pace(); p.Concurrency != 32 {
			t.Errorf("%+v, want half of 64", p)
		}
	})
}

// Who asked first goes first; a place that is given up is the next one's; nobody waits longer than he wants to.
func TestPlacesAreGivenInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := simulated(t, upstream.Config{Concurrency: 1}, simulator.Options{}, nil)
		leave, err := a.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var order []int
		var group sync.WaitGroup
		for i := range 3 {
			group.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i == 1 {
					ctx, cancel = context.WithTimeout(t.Context(), time.Second)
					defer cancel()
				}
				leave, err := a.Enter(ctx)
				if i == 1 {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("waited beyond its time: %v", err)
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i)
				leave()
				leave() // does nothing more
			})
			synctest.Wait()
		}
		if p := a.Pace(); p.InUse != 1 || p.Waiting != 3 {
			t.Errorf("%+v", p)
		}
		time.Sleep(2 * time.Second)
		leave()
		group.Wait()
		if fmt.Sprint(order) != "[0 2]" {
			t.Errorf("went in the order %v", order)
		}
		if p := a.Pace(); p.InUse != 0 || p.Waiting != 0 {
			t.Errorf("%+v", p)
		}
	})
}

// While the processor asked to wait, places wait; when nothing may be sent at all, they are refused, also to those who wait already.
func TestPlacesFollowTheAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		synctest.Wait()
		p.answers(nil, tooMany("30"))
		p.pay()
		from := time.Now()
		leave, err := p.account.Enter(t.Context())
		if err != nil || time.Since(from) != 30*time.Second {
			t.Fatalf("waited %v: %v", time.Since(from), err)
		}
		leave()
		p.pay()
		if got := p.account.Pace(); !got.Throttled {
			t.Errorf("%+v", got)
		}
		done := make(chan error)
		go func() {
			_, err := p.account.Enter(t.Context())
			done <- err
		}()
		synctest.Wait()
		if err := p.account.ForceBreaker("open"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, upstream.ErrNotReady) {
			t.Errorf("the breaker opened while it waited: %v", err)
		}
	})
}

// Who would rather not wait gets a place that is free, if nobody waits for it.
func TestPlaceWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := simulated(t, upstream.Config{Concurrency: 1}, simulator.Options{}, nil)
		leave, ok := a.TryEnter()
		if !ok {
			t.Fatal("a free place was refused")
		}
		if _, ok := a.TryEnter(); ok {
			t.Error("two in one place")
		}
		if p := a.Pace(); p.InUse != 1 || p.Waiting != 0 {
			t.Errorf("after a refusal: %+v", p)
		}
		entered := make(chan func())
		go func() {
			leave, err := a.Enter(t.Context())
			if err != nil {
				t.Error(err)
			}
			entered <- leave
		}()
		synctest.Wait()
		leave()
		leave() // does nothing more
		if _, ok := a.TryEnter(); ok {
			t.Error("overtook who was waiting")
		}
		(<-entered)()
		if err := a.ForceBreaker("open"); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.TryEnter(); ok {
			t.Error("entered with the breaker open")
		}
		if p := a.Pace(); p.InUse != 0 || p.Waiting != 0 {
			t.Errorf("at the end: %+v", p)
		}
	})
}
