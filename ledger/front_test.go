package ledger

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/upstream/simulator"
)

// front is a processor behind a desk that counts what it is asked, and may answer in its place or lose its answers.
type front struct {
	sim   *simulator.Simulator
	url   string
	clock *manualClock

	mu    sync.Mutex // guards the rest
	asked map[string]int
	desk  func(w http.ResponseWriter, r *http.Request) bool // reports whether it has dealt with the request
	lose  func(r *http.Request) bool                        // the request takes effect, and its answer is cut
}

// newFront serves a simulator that forgets keys after a day, whose clock the test sets.
func newFront(t testing.TB) *front {
	f := &front{clock: &manualClock{at: time.Now()}, asked: map[string]int{}}
	f.sim = simulator.New(simulator.Options{Now: f.clock.now, ForgetKeys: 24 * time.Hour})
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

// what names a request: method and path, with ids left out.
func what(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) > 1 {
		parts[1] = "…"
	}
	return r.Method + " " + strings.Join(parts, "/")
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked[what(r)]++
	if r.Method == http.MethodGet && r.URL.Query().Get("limit") == "100" {
		f.asked["pages"]++ // of a look-up, and no probe
	}
	desk, lose := f.desk, f.lose
	f.mu.Unlock()
	if desk != nil {
		if r.Method == http.MethodPost {
			_ = r.ParseForm()
			body := r.PostForm.Encode()
			r.Body = http.NoBody
			if desk(w, r) {
				return
			}
			r.Body, r.Form, r.PostForm = bodyOf(body), nil, nil
		} else if desk(w, r) {
			return
		}
	}
	if lose != nil && lose(r) {
		f.sim.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}
	f.sim.ServeHTTP(w, r)
}

type textBody struct{ *strings.Reader }

func (textBody) Close() error { return nil }

func bodyOf(s string) textBody { return textBody{strings.NewReader(s)} }

// set says what the desk does from now on.
func (f *front) set(desk func(w http.ResponseWriter, r *http.Request) bool, lose func(r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desk, f.lose = desk, lose
}

// losing cuts the answers of requests of that kind.
func (f *front) losing(kind string) {
	f.set(nil, func(r *http.Request) bool { return what(r) == kind })
}

func (f *front) count(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[kind]
}

// answering gives every request of a kind one answer.
func (f *front) answering(kind string, status int, body string) {
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if what(r) != kind {
			return false
		}
		w.Header().Set("Date", f.clock.now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
		return true
	}, nil)
}

// openFronted opens an idle box in front of the processor, on its clock, which it has heard.
func openFronted(t testing.TB, f *front) *testBox {
	b := openBox(t, t.TempDir(), testOptions{idle: true, now: f.clock.now, sim: f.sim, url: f.url})
	b.hear()
	return b
}

// hear asks the processor for anything, so that its time is known, as the probes of a running box do.
func (b *testBox) hear() {
	b.t.Helper()
	if a := b.accountOf(testTenant).Get(b.t.Context(), "/charges?limit=1"); a.Status == 0 {
		b.t.Fatalf("the processor does not answer: %s", a.Reason)
	}
}

// pass lets time go by, which the box notices.
func (b *testBox) pass(f *front, d time.Duration) {
	b.t.Helper()
	f.clock.add(d)
	b.hear()
}

// step settles the record once, as the queue does.
func (b *testBox) step(id string) error {
	return b.settle(b.t.Context(), &jobs.Job{NewJob: jobs.NewJob{Tenant: string(testTenant), ID: id}})
}

// mustWait takes a step that must not end the record's way.
func (b *testBox) mustWait(id string) {
	b.t.Helper()
	if err := b.step(id); err == nil {
		b.t.Fatalf("%s: its job is done", id)
	}
}

// now reads the payment.
func (b *testBox) now(id PaymentID) Payment {
	b.t.Helper()
	return must(b.Payment(b.t.Context(), testTenant, string(id)))(b.t)
}

func (b *testBox) refundNow(id RefundID) Refund {
	b.t.Helper()
	return must(b.Refund(b.t.Context(), testTenant, string(id)))(b.t)
}

// story is the record's steps, each with what it found.
func (b *testBox) story(payment PaymentID, record string) (steps []string) {
	b.t.Helper()
	for _, a := range must(b.Attempts(b.t.Context(), testTenant, string(payment)))(b.t) {
		if a.Record != record {
			continue
		}
		text := a.Step
		if a.UpstreamKey != nil {
			text += " " + strings.TrimPrefix(*a.UpstreamKey, record)
		}
		if a.Verdict != nil {
			text += " " + *a.Verdict
		}
		steps = append(steps, text)
	}
	return steps
}

// byHand makes a charge at the processor that bears the payment's mark, as a box that nobody knows of would.
func (f *front) byHand(t testing.TB, path string, form url.Values) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	f.sim.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
}

// marked is the form of a charge for the payment.
func marked(id string, amount string) url.Values {
	return url.Values{"amount": {amount}, "currency": {"usd"}, "source": {"tok_visa"}, "metadata[" + markPayment + "]": {id}}
}

// refunds counts what was given back, by refund.
func (f *front) refunds() map[string]int {
	m := map[string]int{}
	for _, e := range f.sim.Ledger().Refunds {
		m[e.Metadata[markRefund]]++
	}
	return m
}
