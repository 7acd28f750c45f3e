package upstream_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/simulator"
	"tenderbox/upstream/upstreamtest"
)

// entry is an object as a list shows it.
func entry(id string, created int64) string {
	return fmt.Sprintf(`{"object":"charge","id":%q,"amount":1,"currency":"usd","status":"succeeded","created":%d}`, id, created)
}

func listOf(more bool, entries ...string) string {
	return fmt.Sprintf(`{"object":"list","has_more":%v,"data":[%s]}`, more, strings.Join(entries, ","))
}

// lists answers a sweep's pages, named by starting_after, and probes with an empty list.
func lists(page func(w http.ResponseWriter, after string, limit int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		if r.URL.RawQuery == "limit=1" { // a probe
			limit = 0
			fmt.Fprint(w, listAnswer)
			return
		}
		page(w, r.URL.Query().Get("starting_after"), limit)
	}
}

// sweepAll sweeps from the time given and returns what was seen.
func sweepAll(ctx context.Context, a *upstream.Account, from int64) (upstream.Sweep, upstream.Answer, string) {
	var seen []string
	s, answer := a.Sweep(ctx, upstream.PathCharges, nil, time.Unix(from, 5), func(o upstream.Object) bool {
		seen = append(seen, o.ID)
		return true
	})
	return s, answer, strings.Join(seen, " ")
}

// What a sweep makes of a list: only one that was read whole and in order proves that something is not there.
func TestSweep(t *testing.T) {
	for name, c := range map[string]struct {
		pages  map[string]string // by starting_after
		seen   string
		reason string // a part of it; "" if the sweep is complete
	}{
		"empty":                {map[string]string{"": listOf(false)}, "", ""},
		"two pages":            {map[string]string{"": listOf(true, entry("c", 30), entry("b", 20)), "b": listOf(false, entry("a", 20))}, "c b a", ""},
		"ends on an empty one": {map[string]string{"": listOf(true, entry("c", 30)), "c": listOf(false)}, "c", ""},
		"window ignored":       {map[string]string{"": listOf(true, entry("c", 30), entry("b", 9)), "b": `<html>`}, "c", ""},
		"made in that second":  {map[string]string{"": listOf(false, entry("c", 10))}, "c", ""},
		"of others":            {map[string]string{"": listOf(false, `{"object":"charge","id":"x","amount":0,"currency":"usd","status":null,"created":11}`)}, "x", ""},

		"out of order":            {map[string]string{"": listOf(false, entry("b", 20), entry("c", 30))}, "b", "not in order"},
		"out of order over pages": {map[string]string{"": listOf(true, entry("b", 20)), "b": listOf(false, entry("c", 30))}, "b", "not in order"},
		"undated":                 {map[string]string{"": listOf(false, entry("b", 0))}, "", "without its time"},
		"dated before all time":   {map[string]string{"": listOf(false, entry("b", -1))}, "", "without its time"},
		"more on an empty page":   {map[string]string{"": listOf(true)}, "", "nothing on its page"},
		"the same page for ever":  {map[string]string{"": listOf(true, entry("b", 20)), "b": listOf(true, entry("b", 20))}, "b", "twice"},
		"a circle":                {map[string]string{"": listOf(true, entry("b", 20), entry("c", 20)), "c": listOf(true, entry("d", 20), entry("b", 20))}, "b c d", "twice"},
		"second page is HTML":     {map[string]string{"": listOf(true, entry("b", 20)), "b": `<html>`}, "b", "without a JSON object"},
		"second page is half":     {map[string]string{"": listOf(true, entry("b", 20)), "b": listOf(false)[:20]}, "b", "without a JSON object"},
		"no word of its end":      {map[string]string{"": `{"object":"list","data":[]}`}, "", "whether there is more"},
		"another collection":      {map[string]string{"": strings.ReplaceAll(listOf(false, entry("re_1", 20)), "charge", "refund")}, "", "kind"},
		"an object":               {map[string]string{"": entry("b", 20)}, "", "not a list"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, upstream.Config{Key: "sk_test"})
				p.answers(lists(func(w http.ResponseWriter, after string, limit int) {
					if limit != 100 {
						t.Errorf("pages of %d", limit)
					}
					fmt.Fprint(w, c.pages[after])
				}), nil)
				sweep, answer, seen := sweepAll(t.Context(), p.account, 10)
				if sweep.Complete != (c.reason == "") || (answer.Outcome == upstream.Succeeded) != sweep.Complete || !strings.Contains(answer.Reason, c.reason) {
					t.Errorf("%+v, %+v", sweep, answer)
				}
				ids := strings.Fields(seen)
				if seen != c.seen || sweep.Objects != len(ids) || len(ids) > 0 && (sweep.First != ids[0] || sweep.Last != ids[len(ids)-1]) {
					t.Errorf("%+v, saw %s", sweep, seen)
				}
				if sweep.Began.IsZero() || sweep.KeyID != p.account.KeyID() || strings.Contains(sweep.KeyID, "sk_test") || !sweep.From.Equal(time.Unix(10, 0)) {
					t.Errorf("%+v", sweep)
				}
			})
		})
	}
}

// What is asked for: the window from a whole second on, the filter, the page behind the last object seen.
func TestSweepAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		var asked []string
		p.answers(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.URL.Path+"?"+r.URL.RawQuery)
			if r.URL.Query().Get("starting_after") == "" && r.URL.Query().Get("charge") != "" {
				fmt.Fprint(w, strings.ReplaceAll(listOf(true, entry("re_2", 20)), `"object":"charge"`, `"object":"refund"`))
				return
			}
			fmt.Fprint(w, listAnswer)
		}, nil)
		synctest.Wait() // the first probe
		asked = nil
		filter := url.Values{"charge": {"ch_1"}}
		if sweep, answer := p.account.Sweep(t.Context(), upstream.PathRefunds, filter, time.Unix(10, 999), func(upstream.Object) bool { return true }); !sweep.Complete || sweep.Pages != 2 {
			t.Errorf("%+v, %+v", sweep, answer)
		}
		if sweep, _ := p.account.Sweep(t.Context(), upstream.PathCharges, nil, time.Time{}, func(upstream.Object) bool { return true }); !sweep.Complete {
			t.Errorf("%+v", sweep)
		}
		want := []string{
			"/refunds?charge=ch_1&created%5Bgte%5D=10&limit=100",
			"/refunds?charge=ch_1&created%5Bgte%5D=10&limit=100&starting_after=re_2",
			"/charges?limit=100",
		}
		if !slices.Equal(asked, want) || len(filter) != 1 {
			t.Errorf("asked for %q, filter %v", asked, filter)
		}
	})
}

// Everything in which a processor, a deputy or the box itself can be in the way of one page.
func TestSweepInTheWay(t *testing.T) {
	pages := map[string]string{"": listOf(true, entry("d", 40), entry("c", 30)), "c": listOf(false, entry("b", 20))}
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, pages["c"])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for name, c := range map[string]struct {
		second  func(p *processor, w http.ResponseWriter, limit, try int) // answers the second page
		outcome upstream.Outcome
		reason  string
		tries   int
	}{
		"cut within the answer": {func(_ *processor, w http.ResponseWriter, _, _ int) { cut(w) }, upstream.Unknown, "cut within", 1},
		"cursor unknown": {func(_ *processor, w http.ResponseWriter, _, _ int) {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":{"type":"invalid_request_error","param":"starting_after","message":"No such charge"}}`)
		}, upstream.Unknown, "400", 1},
		"ill":         {func(_ *processor, w http.ResponseWriter, _, _ int) { w.WriteHeader(500) }, upstream.Unknown, "500", 1},
		"key refused": {func(_ *processor, w http.ResponseWriter, _, _ int) { w.WriteHeader(401) }, upstream.Retryable, "refused the key", 1},
		"slowed down, then let in": {func(_ *processor, w http.ResponseWriter, _, try int) {
			if try < 3 {
				w.Header().Set("Retry-After", "2")
				w.WriteHeader(429)
				return
			}
			fmt.Fprint(w, pages["c"])
		}, upstream.Succeeded, "", 3},
		"slowed down for ever": {func(_ *processor, w http.ResponseWriter, _, _ int) { w.WriteHeader(429) }, upstream.Retryable, "rate limited", 5},
		"told to come back in an hour": {func(_ *processor, w http.ResponseWriter, _, _ int) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}, upstream.Retryable, "rate limited", 1},
		"kept by a deputy": {func(_ *processor, w http.ResponseWriter, _, _ int) {
			w.Header().Set("Date", time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat))
			fmt.Fprint(w, pages["c"])
		}, upstream.Unknown, "older than the question", 1},
		"machines a little apart": {func(_ *processor, w http.ResponseWriter, _, _ int) {
			w.Header().Set("Date", time.Now().Add(-5*time.Second).UTC().Format(http.TimeFormat))
			fmt.Fprint(w, pages["c"])
		}, upstream.Succeeded, "", 1},
		"key replaced": {func(p *processor, w http.ResponseWriter, _, _ int) {
			p.accounts.Get("", "till", "sk_new")
			fmt.Fprint(w, pages["c"])
		}, upstream.Unknown, "key was replaced", 1},
		"key replaced and put back": {func(p *processor, w http.ResponseWriter, _, _ int) {
			p.accounts.Get("", "till", "sk_new")
			p.accounts.Get("", "till", "sk_old")
			fmt.Fprint(w, pages["c"])
		}, upstream.Unknown, "key was replaced", 1},
		"too large, then smaller": {func(_ *processor, w http.ResponseWriter, limit, _ int) {
			fmt.Fprint(w, pages["c"]+strings.Repeat(" ", limit*100_000))
		}, upstream.Succeeded, "", 2},
		"too large however small": {func(_ *processor, w http.ResponseWriter, _, _ int) {
			fmt.Fprint(w, pages["c"]+strings.Repeat(" ", 5<<20))
		}, upstream.Unknown, "too large", 4},
		"line gone": {func(p *processor, w http.ResponseWriter, _, _ int) {
			p.line.Set(upstreamtest.Refused)
		}, upstream.Unknown, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, upstream.Config{Key: "sk_box"})
				a, err := p.accounts.Get("", "till", "sk_old") // the box's own key changes with a restart only
				if err != nil {
					t.Fatal(err)
				}
				tries := 0
				p.answers(lists(func(w http.ResponseWriter, after string, limit int) {
					if after == "c" {
						tries++
						c.second(p, w, limit, tries)
						return
					}
					fmt.Fprint(w, pages[after])
				}), nil)
				sweep, answer, seen := sweepAll(t.Context(), a, 10)
				complete := c.outcome == upstream.Succeeded
				if sweep.Complete != complete || answer.Outcome != c.outcome || !strings.Contains(answer.Reason, c.reason) {
					t.Errorf("%+v, %+v", sweep, answer)
				}
				if tries != c.tries || !strings.HasPrefix(seen, "d c") || complete && seen != "d c b" {
					t.Errorf("%d tries, want %d; saw %s", tries, c.tries, seen)
				}
			})
		})
	}
}

// A sweep is held back as a Get is, and says so.
func TestSweepIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		if err := p.account.ForceBreaker("open"); err != nil {
			t.Fatal(err)
		}
		sweep, answer, _ := sweepAll(t.Context(), p.account, 0)
		if sweep.Complete || sweep.Pages != 0 || answer.Outcome != upstream.Retryable || answer.MaybeSent || !strings.Contains(answer.Reason, "breaker open") {
			t.Errorf("%+v, %+v", sweep, answer)
		}
	})
	a, err := upstream.NewAccounts(upstream.Config{}).Get("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if sweep, answer, _ := sweepAll(t.Context(), a, 0); sweep.Complete || answer.Outcome != upstream.Retryable || !sweep.Began.IsZero() {
		t.Errorf("unconfigured: %+v, %+v", sweep, answer)
	}
}

// Who stops looking has not seen the rest.
func TestSweepStoppedIsIncomplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		p.answers(lists(func(w http.ResponseWriter, _ string, _ int) { fmt.Fprint(w, listOf(false, entry("b", 20))) }), nil)
		sweep, answer := p.account.Sweep(t.Context(), upstream.PathCharges, nil, time.Time{}, func(upstream.Object) bool { return false })
		if sweep.Complete || sweep.Objects != 1 || answer.Outcome != upstream.Succeeded {
			t.Errorf("%+v, %+v", sweep, answer)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if sweep, answer, _ := sweepAll(ctx, p.account, 0); sweep.Complete || answer.Outcome != upstream.Retryable {
			t.Errorf("given up: %+v, %+v", sweep, answer)
		}
	})
}

// A list without end is left after a thousand pages.
func TestSweepEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, upstream.Config{})
		next := int64(1_000_000)
		p.answers(lists(func(w http.ResponseWriter, _ string, _ int) {
			next--
			fmt.Fprint(w, listOf(true, entry(fmt.Sprint("ch_", next), next)))
		}), nil)
		sweep, answer, _ := sweepAll(t.Context(), p.account, 1)
		if sweep.Complete || sweep.Pages != 1000 || sweep.Objects != 1000 || answer.Outcome != upstream.Unknown || answer.Reason != "list has no end" {
			t.Errorf("%+v, %+v", sweep, answer)
		}
	})
}

// Over the simulator's lists, while others charge: everything that was there when the sweep began is seen once, in
// each collection, and nothing older than the window.
func TestSweepOverTheSimulator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulator.New(simulator.Options{Key: "sk"})
		t.Cleanup(func() { s.Close() })
		line := upstreamtest.NewLine(t, s)
		_, a := account(t, upstream.Config{URL: upstreamtest.URL, Key: "sk", Dial: line.Dial})
		n := 0
		charge := func(r upstream.ChargeRequest) upstream.Object {
			t.Helper()
			n++
			r.Amount, r.Currency, r.Metadata = int64(100+n), "usd", map[string]string{"tenderbox_payment": fmt.Sprint("pay_", n)}
			path, body := r.Encode()
			answer := a.Post(t.Context(), path, body, fmt.Sprint("pay_", n))
			if answer.Object.ID == "" {
				t.Fatalf("%+v", answer)
			}
			return answer.Object
		}
		const before, within = 30, 250
		for range before {
			charge(upstream.ChargeRequest{Source: "tok_visa"})
		}
		time.Sleep(time.Minute)
		from := time.Now()
		want := map[string]bool{}
		for i := range within {
			if i%40 == 0 {
				time.Sleep(time.Second) // else they share a second
			}
			o := charge(upstream.ChargeRequest{Source: "tok_visa"})
			want[o.ID] = true
			if i < 5 {
				path, body := upstream.RefundRequest{Amount: 1, Charge: o.ID}.Encode()
				a.Post(t.Context(), path, body, "re_"+o.ID)
				charge(upstream.ChargeRequest{PaymentMethod: "pm_card_visa"})
			}
		}
		began := time.Now()
		time.Sleep(time.Second)
		sweep, answer := a.Sweep(t.Context(), upstream.PathCharges, nil, from, func(o upstream.Object) bool {
			if !want[o.ID] {
				t.Errorf("%s is seen twice, or was not there", o.ID)
			}
			delete(want, o.ID)
			if n%3 == 0 {
				charge(upstream.ChargeRequest{Source: "tok_visa"}) // meanwhile
			}
			n++
			return true
		})
		if !sweep.Complete || len(want) != 0 || sweep.Objects != within || sweep.Pages != 3 {
			t.Errorf("%+v, %+v, %d not seen", sweep, answer, len(want))
		}
		if sweep.Began.Before(began.Truncate(time.Second)) || sweep.Began.After(time.Now()) {
			t.Errorf("began at %v", sweep.Began)
		}
		count := func(path string, filter url.Values) (objects int) {
			sweep, answer := a.Sweep(t.Context(), path, filter, time.Time{}, func(upstream.Object) bool { return true })
			if !sweep.Complete {
				t.Errorf("%s: %+v, %+v", path, sweep, answer)
			}
			return sweep.Objects
		}
		if i, r, one := count(upstream.PathIntents, nil), count(upstream.PathRefunds, nil), count(upstream.PathRefunds, url.Values{"charge": {sweep.First}}); i != 5 || r != 5 || one != 0 {
			t.Errorf("%d intents, %d refunds, %d of one charge", i, r, one)
		}
	})
}

// Equal keys have equal names, others others, and no name tells the key.
func TestKeyID(t *testing.T) {
	as := upstream.NewAccounts(upstream.Config{URL: "http://processor.test", Key: "sk_live_1"})
	own, _ := as.Get("", "", "")
	other, err := as.Get("http://other.test", "other", "sk_live_1")
	if err != nil {
		t.Fatal(err)
	}
	first := own.KeyID()
	if first == "" || first != other.KeyID() || strings.Contains(first, "sk_live") || len(first) > 20 {
		t.Errorf("%q and %q", first, other.KeyID())
	}
	as.Get("http://other.test", "other", "sk_live_2")
	if other.KeyID() == first || own.KeyID() != first {
		t.Errorf("after a rotation: %q", other.KeyID())
	}
	as.Get("http://other.test", "other", "sk_live_1")
	if other.KeyID() != first {
		t.Errorf("put back: %q", other.KeyID())
	}
}

// Whatever the processor does to its answers, a sweep that says complete has seen everything.
func TestSweepNeverLies(t *testing.T) {
	complete, incomplete := 0, 0
	for seed := range int64(40) {
		synctest.Test(t, func(t *testing.T) {
			s := simulator.New(simulator.Options{Key: "sk", Seed: seed})
			t.Cleanup(func() { s.Close() })
			line := upstreamtest.NewLine(t, s)
			_, a := account(t, upstream.Config{URL: upstreamtest.URL, Key: "sk", Dial: line.Dial})
			const there = 350
			want := map[string]bool{}
			for i := range there {
				path, body := upstream.ChargeRequest{Amount: 1, Currency: "usd", Source: "tok_visa"}.Encode()
				want[a.Post(t.Context(), path, body, fmt.Sprint("k", i)).Object.ID] = true
			}
			s.SetFaults(simulator.Faults{Garbage: 0.1, CaptivePortal: 0.02, Error500: 0.02, Error429: 0.1, Hang: 0.02, DropAfterEffect: 0.05, Refuse: 0.05})
			for range 5 {
				_ = a.ForceBreaker("close")
				sweep, answer, seen := sweepAll(t.Context(), a, 0)
				if sweep.Complete != (answer.Outcome == upstream.Succeeded) {
					t.Errorf("seed %d: %+v, %+v", seed, sweep, answer)
				}
				if !sweep.Complete {
					incomplete++
					continue
				}
				complete++
				ids := strings.Fields(seen)
				for _, id := range ids {
					if !want[id] {
						t.Errorf("seed %d: %q was not there", seed, id)
					}
				}
				if len(ids) != there {
					t.Errorf("seed %d: complete with %d of %d", seed, len(ids), there)
				}
			}
		})
	}
	if complete < 20 || incomplete < 20 {
		t.Errorf("%d complete, %d not: the processor was too kind, or too hostile", complete, incomplete)
	}
}
