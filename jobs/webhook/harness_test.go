package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	secretA = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secretB = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

// memory keeps endpoints of the tenant "shop" for a test.
type memory struct {
	mu       sync.Mutex // guards what follows
	all      map[string]Endpoint
	reasons  map[string]string
	disabled error // what Disable answers
}

func (m *memory) Endpoint(tenant, id string) (Endpoint, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.all[id]
	return e, ok && tenant == "shop"
}

func (m *memory) Disable(_ context.Context, tenant, id, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disabled != nil || tenant != "shop" {
		return m.disabled
	}
	e := m.all[id]
	e.Disabled = true
	m.all[id], m.reasons[id] = e, reason
	return nil
}

// box is an engine that delivers.
type box struct {
	*memory
	t    testing.TB
	e    *jobs.Engine
	d    *Deliverer
	logs *bytes.Buffer
	n    int
	stop func()
}

// newBox makes a box with one endpoint, "we_1".
func newBox(t testing.TB, url string, o Options) *box {
	t.Helper()
	b := &box{t: t, logs: new(bytes.Buffer), memory: &memory{all: map[string]Endpoint{}, reasons: map[string]string{}}}
	b.all["we_1"] = Endpoint{URL: url, Secrets: []Secret{secretA}}
	var err error
	b.e, err = jobs.Open(storetest.Open(t, store.Options{}), jobs.Options{Queues: []jobs.QueueConfig{{Name: Queue}},
		Logger: slog.New(slog.NewTextHandler(b.logs, nil))})
	fatalIf(t, err)
	b.d = New(b, o)
	t.Cleanup(func() {
		b.pause()
		b.d.CloseIdleConnections()
		if err := b.e.Close(); err != nil {
			t.Error(err)
		}
	})
	b.run()
	return b
}

// run starts the workers; pause ends them.
func (b *box) run() {
	b.t.Helper()
	r, err := b.e.NewRunner(jobs.RunnerOptions{Queue: Queue, Handler: b.d.Handle, DrainTimeout: -1})
	fatalIf(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("run: %v", err)
		}
	}
}

func (b *box) pause() {
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

// event makes another event.
func (b *box) event() Event {
	b.n++
	id := fmt.Sprintf("evt_%d", b.n)
	return Event{ID: id, Type: "user.created", JSON: fmt.Appendf(nil, `{"specversion":"1.0", "id":%q,"type":"user.created","data":{"name":"<Zoë> & co"}}`, id)}
}

// send enqueues an event for endpoints and returns its first job's id.
func (b *box) send(e Event, endpoints ...string) string {
	b.t.Helper()
	all, err := b.e.Enqueue(b.t.Context(), JobsFor("shop", e, endpoints)...)
	fatalIf(b.t, err)
	return all[0].ID
}

func (b *box) job(id string) jobs.Job {
	b.t.Helper()
	j, err := b.e.Get("shop", Queue, id)
	fatalIf(b.t, err)
	return j
}

// outcome waits until something has become of a job's first attempt.
func (b *box) outcome(id string) jobs.Job {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); ; runtime.Gosched() {
		if j := b.job(id); j.State != jobs.Waiting && j.State != jobs.Active {
			return j
		}
		if time.Now().After(end) {
			b.t.Fatal("nothing became of it within a minute")
		}
	}
}

// attempt sends an event to we_1 and returns what became of the first attempt, and the least and most that it can be until the next.
func (b *box) attempt() (j jobs.Job, least, most time.Duration) {
	b.t.Helper()
	before := time.Now()
	j = b.outcome(b.send(b.event(), "we_1"))
	return j, time.Until(j.RunAt), j.RunAt.Sub(before)
}

// wantRetry wants a failed attempt that is made again after the schedule's first step or more.
func wantRetry(t testing.TB, j jobs.Job, text string) {
	t.Helper()
	if j.State != jobs.Delayed || j.AttemptsMade != 1 || !strings.Contains(j.LastError, text) {
		t.Errorf("%s after %d attempts: %q; want it delayed after one: %q", j.State, j.AttemptsMade, j.LastError, text)
	}
}

// got is a request as a receiver saw it.
type got struct {
	header http.Header
	body   []byte
	at     time.Time
}

// receiver keeps the requests that come and answers with answer, or 204.
type receiver struct {
	mu     sync.Mutex // guards what follows
	all    []got
	answer func(w http.ResponseWriter, r *http.Request, n int) // n: 1 for the first request
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	rc.mu.Lock()
	rc.all = append(rc.all, got{r.Header, body, time.Now()})
	n := len(rc.all)
	rc.mu.Unlock()
	if rc.answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	rc.answer(w, r, n)
}

func (rc *receiver) requests() []got {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return append([]got(nil), rc.all...)
}

// signed says whether one of the request's signatures is the secret's. It is written from the specification, not with the library.
func (g *got) signed(secret string) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return false
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(g.header.Get("webhook-id") + "." + g.header.Get("webhook-timestamp") + "."))
	mac.Write(g.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for signature := range strings.SplitSeq(g.header.Get("webhook-signature"), " ") {
		if hmac.Equal([]byte(signature), []byte(want)) {
			return true
		}
	}
	return false
}

// pipes is a network in memory, so that days of a schedule pass in a synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

// serve serves h behind every address that the box dials.
func (b *box) serve(h http.Handler) {
	p := &pipes{make(chan net.Conn), make(chan struct{})}
	b.d.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case p.conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(p) }()
	b.t.Cleanup(func() {
		b.pause()
		_ = s.Close()
		<-done
	})
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func fatalIf(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
