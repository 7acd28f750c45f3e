package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

func address(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

func TestDriveSendsWhatItCounts(t *testing.T) {
	for _, standard := range []bool{false, true} {
		t.Run(fmt.Sprintf("standard client %t", standard), func(t *testing.T) { driveSendsWhatItCounts(t, standard) })
	}
}

func driveSendsWhatItCounts(t *testing.T, standard bool) {
	var mu sync.Mutex
	keys, users := map[string]bool{}, map[string]bool{}
	plain := noop()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, user, found := strings.Cut(string(content), "user-")
		if !found {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		keys[r.Header.Get("Idempotency-Key")] = true
		users[user[:userDigits]] = true
		mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(content))
		plain.ServeHTTP(w, r)
	}))
	defer s.Close()
	const n = 1500
	r, err := drive(t.Context(), load{address: address(s), key: "secret", run: "test", want: payment("rich"), connections: 7, count: n, standard: standard})
	if err != nil {
		t.Fatal(err)
	}
	if r.done != n || len(keys) != n || len(r.latencies) != n || len(r.refused) != 0 {
		t.Errorf("%d payments, %d keys, %d latencies, %v refused; want %d of each and none refused", r.done, len(keys), len(r.latencies), r.refused, n)
	}
	if len(users) < 100 {
		t.Errorf("%d users; want the load spread", len(users))
	}
	if r.asked < 150 || r.answered < 400 || r.rate() <= 0 || r.quantile(0.5) > r.quantile(0.99) {
		t.Errorf("asked %d bytes, answered %d, rate %v, p50 %v, p99 %v", r.asked, r.answered, r.rate(), r.quantile(0.5), r.quantile(0.99))
	}
}

func TestDriveStopsWithTime(t *testing.T) {
	s := httptest.NewServer(noop())
	defer s.Close()
	r, err := drive(t.Context(), load{address: address(s), run: "test", connections: 3, duration: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.done == 0 || r.took < 50*time.Millisecond {
		t.Errorf("%d payments in %s", r.done, r.took)
	}
}

// A refusal must never pass for a payment: that is how a benchmark lies.
func TestDriveCountsRefusalsApart(t *testing.T) {
	var mu sync.Mutex
	n := 0
	plain := noop()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		refuse := n%3 == 0
		mu.Unlock()
		if refuse {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		plain.ServeHTTP(w, r)
	}))
	defer s.Close()
	r, err := drive(t.Context(), load{address: address(s), run: "test", connections: 1, count: 9})
	if err != nil {
		t.Fatal(err)
	}
	if r.done != 6 || r.refused[http.StatusServiceUnavailable] != 3 {
		t.Errorf("%d payments, %v refused; want 6 and 3", r.done, r.refused)
	}
}

func TestDriveRejectsWhatIsNoPayment(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"another object": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"object":"charge"}`)
		},
		"never a payment": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"cut":             func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(handler)
			defer s.Close()
			if r, err := drive(t.Context(), load{address: address(s), run: "test", connections: 2, count: 4}); err == nil {
				t.Errorf("%d payments counted, want an error", r.done)
			}
		})
	}
}

func TestLineReadsEveryFormOfAnswer(t *testing.T) {
	const content = `{"status":"pending"}`
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	answers := []string{
		"HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n" + content,
		"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + content[:5] + "\r\nf\r\n" + content[5:] + "\r\n0\r\n\r\n",
		"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\nRetry-After: 1\r\n\r\nno\n",
		"HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n" + content,
	}
	go func() {
		in := bufio.NewReader(server)
		for _, answer := range answers {
			request, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, request.Body)
			_, _ = io.WriteString(server, answer)
		}
	}()
	line := newLine(client, load{run: "test"}, 0)
	for i, want := range []int{201, 201, 503, 201} {
		if status, err := line.exchange(i); err != nil || status != want {
			t.Errorf("answer %d: %d, %v; want %d", i, status, err, want)
		}
	}
	if line.answered != len(content) {
		t.Errorf("answered %d bytes, want %d", line.answered, len(content))
	}
}

func TestBareLoopPostsEachOnce(t *testing.T) {
	p, err := blackbox.StartProcessor(simulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out strings.Builder
	if err := runLoop(t.Context(), []string{p.URL(), "50", "4", "amount=1999&currency=usd&metadata%5Btenderbox_payment%5D=" + samplePayment + "&source=tok_visa"}, &out); err != nil {
		t.Fatal(err)
	}
	if charges := len(p.Ledger().Charges); charges != 50 || strings.TrimSpace(out.String()) == "" {
		t.Errorf("%d charges, said %q", charges, out.String())
	}
	if p.Peak() < 1 || p.Peak() > 4 {
		t.Errorf("%d posts at once, want 1 to 4", p.Peak())
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte("4242 (a b) c) S 1 1 1 0 -1 4194560 500 0 0 0 123 45 0 0 20 0 7 0 1000"))
	if want := (cpuTime{1230 * time.Millisecond, 450 * time.Millisecond}); err != nil || got != want {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if _, err := parseStat([]byte("4242 (a) S 1")); err == nil {
		t.Error("a short line was taken")
	}
}

func TestParseMetrics(t *testing.T) {
	got, err := parseMetrics("# HELP x y\n# TYPE tenderbox_shard_commits_total counter\ntenderbox_shard_commits_total{shard=\"0\"} 12\ntenderbox_shard_commits_total{shard=\"1\"} 1.5e+01\ntenderbox_store_commits_total 3 1700000000\n")
	if err != nil || got[shardCommits] != 27 || got[storeCommits] != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseMetrics("<html>"); err == nil {
		t.Error("a page was taken for metrics")
	}
}

func TestProbeDisk(t *testing.T) {
	got, err := probeDisk(t.TempDir())
	if err != nil || got.p50 <= 0 || got.p99 < got.p50 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestPrintParts(t *testing.T) {
	const traces = `File: tenderbox
Type: cpu
-----------+-------------------------------------------------------
     1.50s   internal/runtime/syscall/linux.Syscall6
             modernc.org/sqlite/lib._walFrames
             tenderbox/shards.(*writer).run
-----------+-------------------------------------------------------
    stream:  EVENTS
     500ms   runtime.mallocgc
             modernc.org/sqlite.(*stmt).exec
-----------+-------------------------------------------------------
`
	var out strings.Builder
	if err := printParts(&out, traces, 10_000); err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"shards:", "commit", "(pages,", "fsync)", "150.0", "75", "%"},
		{"shards:", "the", "transaction's", "SQL", "50.0", "25", "%"},
		{"all", "200.0", "100", "%"},
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n")[1:] {
		if !slices.Equal(strings.Fields(line), want[i]) {
			t.Errorf("line %d is %q", i, line)
		}
	}
	if err := printParts(&out, "nothing", 1); err == nil {
		t.Error("an empty profile was taken")
	}
}
