package upstream_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

// quiet takes what test servers complain about on purpose.
var quiet = log.New(io.Discard, "", 0)

// processor is a handler whose answers can be changed, behind a line in memory, and an account that is watched.
// It lives in a synctest bubble.
type processor struct {
	t        *testing.T
	line     *upstreamtest.Line
	accounts *upstream.Accounts
	account  *upstream.Account
	changes  *changes

	mu     sync.Mutex // guards what follows
	probe  http.HandlerFunc
	post   http.HandlerFunc
	probes atomic.Int64
	posts  atomic.Int64
	keys   []string // Authorization of each request
}

const listAnswer = `{"object":"list","data":[],"has_more":false}`

func start(t *testing.T, c upstream.Config) *processor {
	t.Helper()
	p := &processor{t: t, probe: reply(200, listAnswer), post: reply(200, goodCharge), changes: &changes{}}
	p.line = upstreamtest.NewLine(t, p)
	c.URL, c.Dial = upstreamtest.URL, p.line.Dial
	p.accounts, p.account = account(t, c)
	p.accounts.OnChange(p.changes.add)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.accounts.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() { stop(); running.Wait() })
	return p
}

func (p *processor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.keys = append(p.keys, r.Header.Get("Authorization"))
	h := p.probe
	if r.Method == http.MethodPost {
		h = p.post
		p.posts.Add(1)
	} else {
		p.probes.Add(1)
	}
	p.mu.Unlock()
	h(w, r)
}

// answers sets what probes and payments get; nil leaves it.
func (p *processor) answers(probe, post http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if probe != nil {
		p.probe = probe
	}
	if post != nil {
		p.post = post
	}
}

func (p *processor) pay() upstream.Answer { return pay(p.t.Context(), p.account, "k") }

// is fails unless link, breaker and readiness are these.
func (p *processor) is(link upstream.LinkState, breaker string, ready bool) {
	p.t.Helper()
	synctest.Wait()
	l, b := p.account.Link(), p.account.Breaker()
	if l.State != link || b.State != breaker || p.account.Ready() != ready {
		p.t.Errorf("link %s (%s), breaker %s, ready %v; want %s, %s, %v", l.State, l.Evidence, b.State, p.account.Ready(), link, breaker, ready)
	}
}

// alarmed fails unless exactly these alarms are raised.
func (p *processor) alarmed(codes ...string) {
	p.t.Helper()
	got := p.account.Alarms()
	if len(got) != len(codes) {
		p.t.Errorf("alarms %+v, want %v", got, codes)
		return
	}
	for i, a := range got {
		if a.Code != codes[i] || a.Detail == "" || a.Since.IsZero() {
			p.t.Errorf("alarm %+v, want %s", a, codes[i])
		}
	}
}

// hang answers when the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// changes collects what OnChange tells.
type changes struct {
	mu   sync.Mutex
	list []upstream.Link
}

func (c *changes) add(_ *upstream.Account, l upstream.Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, l)
}

func (c *changes) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.list)
}

func (c *changes) last() upstream.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.list) == 0 {
		return upstream.Link{}
	}
	return c.list[len(c.list)-1]
}
