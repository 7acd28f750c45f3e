package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/jobs"
)

// The specification's table, "time since start".
var sinceStart = []string{"0s", "5s", "5m5s", "35m5s", "2h35m5s", "7h35m5s", "17h35m5s", "31h35m5s", "51h35m5s", "75h35m5s"}

func TestScheduleIsTheSpecifications(t *testing.T) {
	var sum time.Duration
	for i, want := range sinceStart {
		if i > 0 {
			sum += schedule[i-1]
		}
		if d, err := time.ParseDuration(want); err != nil || sum != d {
			t.Errorf("attempt %d after %v, want %v", i+1, sum, d)
		}
	}
	if sum != scheduleLasts || len(sinceStart) != len(schedule)+1 {
		t.Errorf("it lasts %v, said is %v", sum, scheduleLasts)
	}
	for n, step := range map[int]time.Duration{-1: 5 * time.Second, 0: 5 * time.Second, 1: 5 * time.Second, 2: 5 * time.Minute, 9: 24 * time.Hour, 10: 24 * time.Hour, 1000: 24 * time.Hour} {
		for range 100 {
			if d := wait(n, 0); d < step || d > step+step/10 {
				t.Errorf("after attempt %d: %v", n, d)
			}
		}
	}
}

// inMemory makes a box whose endpoint is in memory, for a synctest bubble.
func inMemory(t *testing.T, o Options, answer func(w http.ResponseWriter, r *http.Request, n int)) (*box, *receiver) {
	t.Helper()
	o.AllowLAN = true // plain http
	b := newBox(t, "http://hook.example/", o)
	rc := &receiver{answer: answer}
	b.serve(rc)
	return b, rc
}

func status(code int) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) }
}

// An endpoint that always fails gets ten attempts over three days, with one id and a fresh timestamp and signature each.
func TestTenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, status(500))
		start := time.Now()
		id := b.send(b.event(), "we_1")
		time.Sleep(84 * time.Hour) // the schedule and its jitter
		j := b.job(id)
		if j.State != jobs.Failed || j.AttemptsMade != 10 || !strings.Contains(j.LastError, "answered 500") {
			t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
		}
		all := rc.requests()
		if len(all) != 10 {
			t.Fatalf("%d requests", len(all))
		}
		last := start
		for i, g := range all {
			if i > 0 {
				if d := g.at.Sub(last); d < schedule[i-1] || d > schedule[i-1]+schedule[i-1]/10+time.Second {
					t.Errorf("attempt %d came %v after the one before", i+1, d)
				}
			}
			last = g.at
			if g.header.Get("webhook-id") != "evt_1" || g.header.Get("webhook-timestamp") != strconv.FormatInt(g.at.Unix(), 10) || !g.signed(secretA) {
				t.Errorf("attempt %d: %v", i+1, g.header)
			}
		}
	})
}

// Fails twice, gets the event.
func TestThirdAttemptArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, func(w http.ResponseWriter, _ *http.Request, n int) {
			if n < 3 {
				w.WriteHeader(500)
			}
		})
		id := b.send(b.event(), "we_1")
		time.Sleep(10 * time.Minute)
		j := b.job(id)
		if j.State != jobs.Completed || string(j.Result) != `{"status":200,"ms":0,"attempt":3}` || len(rc.requests()) != 3 {
			t.Errorf("%s, %s, %d requests", j.State, j.Result, len(rc.requests()))
		}
	})
}

func TestRotationBetweenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, status(500))
		b.send(b.event(), "we_1")
		time.Sleep(time.Second)
		b.mu.Lock()
		b.all["we_1"] = Endpoint{URL: "http://hook.example/", Secrets: []Secret{secretB, secretA}}
		b.mu.Unlock()
		time.Sleep(10 * time.Second)
		all := rc.requests()
		if len(all) != 2 || all[0].signed(secretB) || !all[0].signed(secretA) || !all[1].signed(secretA) || !all[1].signed(secretB) {
			t.Errorf("%d requests: %v", len(all), all)
		}
	})
}

// Retry-After makes the next attempt later, never earlier, and at most a day.
func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	date := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "3600": time.Hour, "86401": 24 * time.Hour,
		"1000000000000": 24 * time.Hour, strings.Repeat("9", 40): 24 * time.Hour,
		"-1": 0, "+5": 0, "1.5": 0, "soon": 0, "0x10": 0, "１": 0,
		date(time.Minute): time.Minute, date(-time.Minute): 0, "Fri, 31 Dec 9999 23:59:59 GMT": 24 * time.Hour,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
		got := wait(1, want)
		if least := max(want, 5*time.Second); got < least || got > least+least/10 {
			t.Errorf("%q: again after %v", value, got)
		}
	}
	if got := retryAfter(http.Header{"Retry-After": {date(time.Minute)}, "Date": {date(-time.Hour)}}, now); got != time.Hour+time.Minute {
		t.Errorf("by the endpoint's own clock: %v", got)
	}
	if got := wait(9, time.Second); got < 24*time.Hour {
		t.Errorf("earlier than the schedule: %v", got)
	}
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, func(w http.ResponseWriter, _ *http.Request, n int) {
			w.Header().Set("Retry-After", "1800")
			w.WriteHeader([]int{503, 200}[n-1])
		})
		id := b.send(b.event(), "we_1")
		time.Sleep(time.Hour)
		all := rc.requests()
		if j := b.job(id); j.State != jobs.Completed || j.AttemptsMade != 2 || len(all) != 2 || all[1].at.Sub(all[0].at) < 30*time.Minute {
			t.Errorf("%s after %d attempts, %d requests", j.State, j.AttemptsMade, len(all))
		}
	})
}

// An endpoint that has too much to do is left in peace: its jobs wait without losing an attempt, and all arrive.
func TestThrottling(t *testing.T) {
	var freed atomic.Bool
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, func(w http.ResponseWriter, _ *http.Request, _ int) {
			if !freed.Load() {
				w.Header().Set("Retry-After", "600")
				w.WriteHeader(http.StatusTooManyRequests)
			}
		})
		b.all["we_2"] = b.all["we_1"] // another endpoint is not held up
		first := b.send(b.event(), "we_1")
		time.Sleep(time.Second)
		var ids []string
		for range 90 { // fewer than are kept once they are completed
			ids = append(ids, b.send(b.event(), "we_1"))
		}
		time.Sleep(9 * time.Minute)
		if n := len(rc.requests()); n != 1 {
			t.Errorf("%d requests to an endpoint that asked for ten minutes", n)
		}
		for _, id := range ids {
			if j := b.job(id); j.State != jobs.Delayed || j.AttemptsMade != 0 || j.LastError != "" {
				t.Fatalf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
			}
		}
		freed.Store(true)
		other := b.send(b.event(), "we_2")
		time.Sleep(time.Second)
		if j := b.job(other); j.State != jobs.Completed {
			t.Errorf("another endpoint's: %s", j.State)
		}
		time.Sleep(time.Hour)
		for i, id := range append(ids, first) {
			want := 1
			if i == len(ids) {
				want = 2
			}
			if j := b.job(id); j.State != jobs.Completed || j.AttemptsMade != want {
				t.Fatalf("%d: %s after %d attempts", i, j.State, j.AttemptsMade)
			}
		}
	})
}

// No job waits for an endpoint in its pause longer than the schedule lasts: after that its attempts are made, and end.
func TestThrottlingEnds(t *testing.T) {
	for age, want := range map[time.Duration]int{0: 0, scheduleLasts - time.Second: 0, scheduleLasts + time.Second: 1} {
		synctest.Test(t, func(t *testing.T) {
			b, rc := inMemory(t, Options{Now: func() time.Time { return time.Now().Add(age) }}, status(429))
			b.d.pauses.begin("we_1", time.Hour)
			id := b.send(b.event(), "we_1")
			time.Sleep(500 * time.Millisecond)
			if j, n := b.job(id), len(rc.requests()); n != want || j.AttemptsMade != want || j.State != jobs.Delayed {
				t.Errorf("a job of %v: %s after %d attempts, %d requests", age, j.State, j.AttemptsMade, n)
			}
		})
	}
}

// An endpoint that takes the connection and never answers costs an attempt 15 s, and does not keep the workers: others are served.
func TestSilentEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, func(w http.ResponseWriter, r *http.Request, _ int) {
			if r.URL.Path == "/silent" {
				<-r.Context().Done()
			}
		})
		b.all["we_2"] = Endpoint{URL: "http://hook.example/silent", Secrets: []Secret{secretA}}
		start := time.Now()
		id := b.send(b.event(), "we_2")
		time.Sleep(time.Second)
		for range 100 {
			b.send(b.event(), "we_2")
		}
		time.Sleep(time.Minute)
		if j := b.job(id); j.LastError != "no answer within 15s" || j.AttemptsMade < 1 {
			t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
		}
		// The workers that began together are the only ones that wait; after that, one round of them a pause.
		if n := len(rc.requests()); n > 8*4 {
			t.Errorf("%d requests in %v", n, time.Since(start))
		}
		time.Sleep(4 * time.Minute)
		good := b.send(b.event(), "we_1")
		sent := time.Now()
		for b.job(good).State != jobs.Completed && time.Since(sent) < time.Hour {
			time.Sleep(time.Second)
		}
		if d := time.Since(sent); d > requestTimeout+5*time.Second {
			t.Errorf("another endpoint's event waited %v", d)
		}
	})
}

// While the box's line is down no attempt is lost, however long that takes; the schedule begins when it is back.
func TestLineDown(t *testing.T) {
	var line atomic.Int64
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{Line: func() Line { return Line(line.Load()) }}, nil)
		line.Store(int64(LineDown))
		dial, dials := b.d.dial, atomic.Int64{}
		down := atomic.Bool{}
		down.Store(true)
		b.d.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1); down.Load() {
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
			}
			return dial(ctx, network, address)
		}
		id := b.send(b.event(), "we_1")
		time.Sleep(12 * time.Hour)
		if j := b.job(id); j.State != jobs.Delayed || j.AttemptsMade != 0 {
			t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
		}
		if most := 12 * 60 / 5; dials.Load() > int64(most+100) {
			t.Errorf("%d dials", dials.Load())
		}
		down.Store(false)
		line.Store(int64(LineUp))
		time.Sleep(pauseMax + pauseMax/10 + time.Second)
		if j := b.job(id); j.State != jobs.Completed || j.AttemptsMade != 1 || len(rc.requests()) != 1 {
			t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
		}
	})
}

// After thirty days without a line, attempts count, as the schedule has it.
func TestLineDownForGood(t *testing.T) {
	var age atomic.Int64
	synctest.Test(t, func(t *testing.T) {
		b, _ := inMemory(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(age.Load())) }}, nil)
		b.d.dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
		}
		id := b.send(b.event(), "we_1")
		age.Store(int64(29 * 24 * time.Hour))
		time.Sleep(2 * time.Hour)
		if j := b.job(id); j.State != jobs.Delayed || j.AttemptsMade != 0 {
			t.Errorf("%s after %d attempts", j.State, j.AttemptsMade)
		}
		age.Store(int64(31 * 24 * time.Hour))
		time.Sleep(time.Hour)
		if j := b.job(id); j.State != jobs.Delayed || j.AttemptsMade != 4 || j.LastError != "connection failed: connect: network is unreachable" {
			t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
		}
	})
}

func TestExcused(t *testing.T) {
	op := func(err error) error {
		return fmt.Errorf("x: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)})
	}
	unreachable, refused, host := op(syscall.ENETUNREACH), op(syscall.ECONNREFUSED), op(syscall.EHOSTUNREACH)
	unknown := &net.DNSError{IsNotFound: true}
	noResolver := &net.DNSError{IsTimeout: true, IsTemporary: true}
	blocked := &net.OpError{Op: "dial", Err: errAddress}
	const lan, far, connected, dialing = true, false, true, false
	for i, c := range []struct {
		line           Line
		lan, connected bool
		err            error
		want           bool
	}{
		{LineUnknown, far, dialing, unreachable, true},
		{LineUnknown, far, dialing, host, true},
		{LineUnknown, far, dialing, noResolver, true},
		{LineUnknown, far, dialing, refused, false},
		{LineUnknown, far, dialing, unknown, false},
		{LineUnknown, far, dialing, blocked, false},
		{LineUnknown, far, dialing, context.DeadlineExceeded, false}, // a black hole is likelier theirs
		{LineUnknown, far, connected, unreachable, false},
		{LineUp, far, dialing, unreachable, false}, // an address family that the box has not, say
		{LineUp, far, dialing, noResolver, false},
		{LineUp, far, connected, context.DeadlineExceeded, false},
		{LineDown, far, dialing, unreachable, true},
		{LineDown, far, dialing, unknown, true}, // a captive portal's resolver
		{LineDown, far, dialing, blocked, true},
		{LineDown, far, dialing, refused, true},
		{LineDown, far, connected, context.DeadlineExceeded, true}, // on a connection that was kept
		{LineDown, lan, dialing, refused, false},
		{LineDown, lan, dialing, host, false},
		{LineDown, lan, connected, context.DeadlineExceeded, false},
		{LineUnknown, lan, dialing, unreachable, true}, // the cable
		{LineUp, lan, dialing, unreachable, true},
	} {
		if got := excused(c.line, c.lan, c.connected, c.err); got != c.want {
			t.Errorf("%d: %+v: %v", i, c, got)
		}
	}
}

// What is told of a failure names neither URL nor addresses nor what came.
func TestExplain(t *testing.T) {
	for want, c := range map[string]struct {
		err       error
		connected bool
	}{
		"the URL's host is not a public address, and the operator has not allowed the LAN": {&net.OpError{Op: "dial", Err: errAddress}, false},
		"the URL's host is not known by that name":                                         {&net.OpError{Err: &net.DNSError{Name: "canary", Server: "canary", IsNotFound: true}}, false},
		"the name of the URL's host could not be looked up":                                {&net.DNSError{Name: "canary", Server: "canary", IsTemporary: true}, false},
		"no connection in time":                                                            {context.DeadlineExceeded, false},
		"no answer within 15s":                                                             {context.DeadlineExceeded, true},
		"connection failed: connection reset by peer":                                      {&net.OpError{Op: "read", Addr: &net.TCPAddr{Zone: "canary"}, Err: syscall.ECONNRESET}, true},
		"it closed the connection without an answer":                                       {fmt.Errorf("canary: %w", io.EOF), true},
		"no answer that could be understood":                                               {errors.New("malformed HTTP response canary"), true},
		"connection failed: connect: network is unreachable":                               {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, false},
	} {
		if got := explain(c.err, c.connected).Error(); got != want {
			t.Errorf("%v: %q, want %q", c.err, got, want)
		}
	}
}

// A box that stops gives the attempt back; the event is sent after the next start.
func TestStopDuringAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rc := inMemory(t, Options{}, func(_ http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				<-r.Context().Done()
			}
		})
		id := b.send(b.event(), "we_1")
		synctest.Wait()
		b.pause()
		if j := b.job(id); j.State != jobs.Waiting || j.AttemptsMade != 0 {
			t.Errorf("%s after %d attempts: %q", j.State, j.AttemptsMade, j.LastError)
		}
		b.run()
		time.Sleep(time.Second)
		if j := b.job(id); j.State != jobs.Completed || len(rc.requests()) != 2 {
			t.Errorf("%s: %q, %d requests", j.State, j.LastError, len(rc.requests()))
		}
	})
}

// A 200 whose body drips is a delivery, and holds the worker a second only.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := inMemory(t, Options{}, func(w http.ResponseWriter, r *http.Request, _ int) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		})
		start := time.Now()
		id := b.send(b.event(), "we_1")
		time.Sleep(5 * time.Second)
		if j := b.job(id); j.State != jobs.Completed || j.FinishedAt.Sub(start) > drainTimeout+100*time.Millisecond {
			t.Errorf("%s after %v", j.State, j.FinishedAt.Sub(start))
		}
	})
}

func TestPausesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pauses
		for i := range 3 * pausesKept {
			p.begin(fmt.Sprint(i), 0)
			if i%100 == 0 {
				time.Sleep(10 * time.Second)
			}
		}
		if len(p.all) > pausesKept+100 {
			t.Errorf("%d are kept", len(p.all))
		}
		var lasted []time.Duration
		for range 9 {
			d := p.begin("x", 0)
			lasted = append(lasted, d)
			if again := p.begin("x", 0); again != d {
				t.Errorf("lengthened by an attempt that was under way: %v, %v", d, again)
			}
			time.Sleep(d)
			if left := p.left("x"); left != 0 {
				t.Errorf("%v are left", left)
			}
		}
		if want := "[5s 10s 20s 40s 1m20s 2m40s 5m0s 5m0s 5m0s]"; fmt.Sprint(lasted) != want {
			t.Errorf("%v, want %s", lasted, want)
		}
		if d := p.begin("y", 48*time.Hour); d != time.Hour {
			t.Errorf("asked for two days, got %v", d)
		}
		p.end("y")
		if p.left("y") != 0 {
			t.Error("it goes on after its end")
		}
	})
}
