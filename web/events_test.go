package web

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// eventBook is a ledger whose tenants have the events that the test gives them; a position is their number.
type eventBook struct {
	fakeLedger
	mu     sync.Mutex // guards what follows
	events map[tenants.ID][]ledger.Event
	news   chan struct{}
	heard  int // Hear minus leave
	types  []string
}

func positionOf(n int) ledger.Position {
	at, _ := ledger.ParsePosition("\x01" + string(rune(n))) // epoch 1, one shard; below 128 a byte is a number
	return at
}

func (b *eventBook) Events(_ context.Context, t tenants.ID, f ledger.EventFilter) (ledger.EventPage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.types = f.Types
	n := 0
	if s := f.After.String(); len(s) > 1 {
		n = int(s[1])
	}
	page := ledger.EventPage{Next: positionOf(n)}
	for ; n < len(b.events[t]) && len(page.Events) < f.Limit; n++ {
		page.Next = positionOf(n + 1)
		page.Events = append(page.Events, b.events[t][n])
		page.Behind = append(page.Behind, page.Next)
	}
	page.More = n < len(b.events[t])
	return page, nil
}

func (b *eventBook) Emit(_ context.Context, t tenants.ID, key ledger.IdempotencyKey, n ledger.NewEvent) (ledger.Event, bool, error) {
	e := ledger.Event{ID: ledger.EventID(fmt.Sprintf("evt_%d", len(b.events[t]))), Tenant: t, Type: ledger.EventType(n.Type), Data: n.Data, OccurredAt: time.UnixMilli(1795420800000).UTC()}
	b.tell(e)
	return e, false, nil
}

func (b *eventBook) tell(e ledger.Event) {
	b.mu.Lock()
	b.events[e.Tenant] = append(b.events[e.Tenant], e)
	b.mu.Unlock()
	select {
	case b.news <- struct{}{}:
	default:
	}
}

func (b *eventBook) Hear(tenants.ID) (<-chan struct{}, func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard++
	return b.news, func() { b.mu.Lock(); b.heard--; b.mu.Unlock() }
}

func (b *eventBook) Now() ledger.Position {
	b.mu.Lock()
	defer b.mu.Unlock()
	return positionOf(len(b.events["shop"]))
}

func newEventServer(t *testing.T) (*testServer, *eventBook) {
	book := &eventBook{events: map[tenants.ID][]ledger.Event{}, news: make(chan struct{}, 1)}
	return newTestServer(t, func(o *Options) { o.Ledger, o.Source = book, "/tenderbox/test" }), book
}

func TestEventsOverHTTP(t *testing.T) {
	ts, book := newEventServer(t)
	for i := range 5 {
		ts.ask("POST /api/v1/events", fmt.Sprintf(`{"type":"till.opened","data":{"n": %d}}`, i), "key", ts.shop).is(201, "")
	}
	first := ts.ask("GET /api/v1/events?limit=3", "", "key", ts.shop).is(200, "")
	if data := first.json["data"].([]any); len(data) != 3 || first.json["has_more"] != true {
		t.Fatalf("%s", first.body)
	}
	e := first.json["data"].([]any)[2].(map[string]any)
	for member, want := range map[string]any{"specversion": "1.0", "source": "/tenderbox/test", "type": "till.opened", "tenant": "shop",
		"datacontenttype": "application/json", "time": "2026-11-23T08:00:00Z"} {
		if e[member] != want {
			t.Errorf("%s is %v, want %v", member, e[member], want)
		}
	}
	rest := ts.ask("GET /api/v1/events?after="+first.json["next_cursor"].(string)+"&types=till.*,order.paid", "", "key", ts.shop).is(200, "")
	if data := rest.json["data"].([]any); len(data) != 2 || rest.json["has_more"] != false || len(book.types) != 2 {
		t.Fatalf("%s, types %v", rest.body, book.types)
	}
	// The log goes on where it ended.
	end := rest.json["next_cursor"].(string)
	if again := ts.ask("GET /api/v1/events?after="+end, "", "key", ts.shop).is(200, ""); again.json["next_cursor"] != end {
		t.Errorf("an empty page ends elsewhere: %s", again.body)
	}
	ts.ask("GET /api/v1/events?after="+end, "", "key", ts.bar).is(400, "cursor_invalid")
	ts.ask("GET /api/v1/events?after="+end[:len(end)-2]+"AA", "", "key", ts.shop).is(400, "cursor_invalid")
	ts.ask("GET /api/v1/events?cursor="+end, "", "key", ts.shop).is(400, "parameter_unknown")
	for name, c := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"too large": {`{"type":"till.opened","data":"` + strings.Repeat("x", jobBodyMax) + `"}`, 413, "body_too_large"},
		"unknown":   {`{"type":"till.opened","tenant":"other"}`, 422, "member_unknown"},
		"no body":   {` `, 400, "body_missing"},
		"deep":      {`{"type":"till.opened","data":` + strings.Repeat("[", 10_000) + `}`, 400, "json_too_deep"},
	} {
		t.Run(name, func(t *testing.T) { ts.ask("POST /api/v1/events", c.body, "key", ts.shop).is(c.status, c.code) })
	}
	for name, headers := range map[string][]string{
		"made up":     {"Last-Event-ID", "evt_1"},
		"huge":        {"Last-Event-ID", strings.Repeat("A", 4000)},
		"twice":       {"Last-Event-ID", end, "Last-Event-ID", end},
		"not base 64": {"Last-Event-ID", "%%%"},
	} {
		a := ts.ask("GET /api/v1/events/stream", "", append(headers, "key", ts.shop)...)
		if a.status != 400 || a.json["field"] != "Last-Event-ID" && a.json["code"] != "header_duplicate" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	ts.ask("GET /api/v1/events/stream", "", "key", ts.bar, "Last-Event-ID", end).is(400, "cursor_invalid")
	if book.heard != 0 {
		t.Errorf("%d streams were not given back", book.heard)
	}
}

// A stream without a position misses nothing after its headers; one with a position goes on behind it.
func TestEventStream(t *testing.T) {
	ts, book := newEventServer(t)
	told := func(n int) ledger.Event {
		return ledger.Event{ID: ledger.EventID(fmt.Sprint("evt_", n)), Tenant: "shop", Type: "till.opened", Data: fmt.Appendf(nil, `{"n":%d}`, n)}
	}
	book.tell(told(0))
	server := httptest.NewServer(ts)
	defer server.Close()
	open := func(last string) (*bufio.Scanner, context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/api/v1/events/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+ts.shop)
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%s, %s", a.Status, a.Header.Get("Content-Type"))
		}
		t.Cleanup(func() { a.Body.Close() })
		return bufio.NewScanner(a.Body), cancel
	}
	next := func(lines *bufio.Scanner) (id, data string) {
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch {
			case name == "id":
				id = value
			case name == "data":
				return id, value
			}
		}
		t.Fatal("the stream ended", lines.Err())
		return "", ""
	}
	live, hangUp := open("")
	var ids []string
	for n := 1; n <= 4; n++ {
		book.tell(told(n))
		id, data := next(live)
		if ids = append(ids, id); !strings.Contains(data, fmt.Sprintf(`"data":{"n":%d}`, n)) {
			t.Fatalf("event %d came as %s", n, data)
		}
	}
	hangUp()
	resumed, hangUp := open(ids[1])
	for n := 3; n <= 4; n++ {
		if _, data := next(resumed); !strings.Contains(data, fmt.Sprintf(`"data":{"n":%d}`, n)) {
			t.Fatalf("behind event 2 came %s", data)
		}
	}
	// A line that is cut before the first event loses none.
	cut, hangUpEarly := open(ids[1])
	first := ""
	for first == "" && cut.Scan() {
		if id, ok := strings.CutPrefix(cut.Text(), "id: "); ok {
			first = id
		}
	}
	hangUpEarly()
	again, hangUpAgain := open(first)
	for n := 3; n <= 4; n++ {
		if _, data := next(again); !strings.Contains(data, fmt.Sprintf(`"data":{"n":%d}`, n)) {
			t.Fatalf("behind event 2 came %s", data)
		}
	}
	hangUpAgain()
	ts.Leave() // a server that leaves ends its streams
	for resumed.Scan() {
		if strings.HasPrefix(resumed.Text(), "data") {
			t.Errorf("after the end: %s", resumed.Text())
		}
	}
	hangUp()
}
