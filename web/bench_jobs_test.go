package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/julienschmidt/httprouter"

	"tenderbox/jobs"
)

// stillEngine takes and leases jobs and keeps none: what is left is the cost of this package.
type stillEngine struct {
	JobEngine
	leased []jobs.Job
	added  []jobs.Job
}

func newStillEngine() *stillEngine {
	at := time.UnixMilli(1795420800123).UTC()
	e := &stillEngine{}
	for i := range 100 {
		e.leased = append(e.leased, jobs.Job{NewJob: jobs.NewJob{Queue: "email", Tenant: "shop", ID: fmt.Sprintf("job_01KAQ0ZV2V8Z3X7M2T5N9E4%03d", i), Name: "send-receipt",
			Data: []byte(benchData), Attempts: 3, Timeout: 10 * time.Minute, Backoff: jobs.Backoff{Type: jobs.Exponential, Delay: 2 * time.Second, Max: time.Hour},
			RemoveOnComplete: jobs.Retention{Count: 10}, RemoveOnFail: jobs.Retention{Count: 5}},
			State: jobs.Active, AttemptsMade: 1, CreatedAt: at, RunAt: at, LeaseToken: "tok_0123456789abcdef", LeasedUntil: at.Add(30 * time.Second), Worker: "bench"})
	}
	e.added = e.leased[:1]
	return e
}

func (*stillEngine) Stats() []jobs.QueueStats       { return nil }
func (*stillEngine) Queues(string) []jobs.QueueInfo { return nil }
func (e *stillEngine) Enqueue(context.Context, ...jobs.NewJob) ([]jobs.Job, error) {
	return e.added, nil
}
func (e *stillEngine) Lease(context.Context, jobs.LeaseRequest) ([]jobs.Job, error) {
	return e.leased, nil
}
func (e *stillEngine) CompleteMany(_ context.Context, done []jobs.Completion) ([]jobs.Job, []error) {
	return nil, make([]error, len(done))
}

// benchData is a payload of 200 bytes.
var benchData = `{"to":"somebody@shop.example","template":"receipt","order":"ord_01KAQ0ZV2V8Z3X7M2T5N9E4R6D","note":"` + strings.Repeat("x", 97) + `"}`

var benchAdd = `{"name":"send-receipt","data":` + benchData + `,"opts":{"priority":1,"attempts":5,"backoff":{"type":"fixed","delay_ms":1000}}}`

func benchComplete() string {
	var b strings.Builder
	b.WriteString(`{"jobs":[`)
	for i := range 100 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":"job_01KAQ0ZV2V8Z3X7M2T5N9E4%03d","lease_token":"tok_0123456789abcdef","result":{"ok":true}}`, i)
	}
	return b.String() + "]}"
}

// BenchmarkQueues are the hot routes alone, without net/http's reading and writing, beside a handler that decodes and encodes the same
// with encoding/json and does nothing else.
func BenchmarkQueues(b *testing.B) {
	ts := newTestServer(b, func(o *Options) { o.Jobs = newStillEngine() })
	for _, c := range []struct{ name, path, body string }{
		{"add", "/api/v1/queues/email/jobs", benchAdd},
		{"lease-100", "/api/v1/queues/email/lease", `{"max":100,"lease_ms":30000,"worker":"bench"}`},
		{"complete-100", "/api/v1/queues/email/complete", benchComplete()},
	} {
		b.Run(c.name, func(b *testing.B) { benchHandler(b, ts, ts.shop, c.path, c.body) })
	}
	b.Run("floor-add", func(b *testing.B) { benchHandler(b, noopQueues(), ts.shop, "/api/v1/queues/email/jobs", benchAdd) })
}

func benchHandler(b *testing.B, h http.Handler, key, path, text string) {
	r, err := http.NewRequestWithContext(b.Context(), "POST", path, nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Host, r.ContentLength = "127.0.0.1:8080", int64(len(text))
	r.Header = http.Header{"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}, "User-Agent": {"bench/1"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}}
	body := bytes.NewReader(nil)
	r.Body = io.NopCloser(body)
	w := &discardWriter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset([]byte(text))
		clear(w.header)
		h.ServeHTTP(w, r)
		if w.status/100 != 2 {
			b.Fatal(w.status)
		}
	}
}

// noopQueues answers an enqueue without doing it.
func noopQueues() http.Handler {
	router := httprouter.New()
	router.POST("/api/v1/queues/:queue/jobs", func(w http.ResponseWriter, r *http.Request, p httprouter.Params) {
		content, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var in struct {
			Name string          `json:"name"`
			Data json.RawMessage `json:"data"`
			Opts map[string]any  `json:"opts"`
		}
		if err := json.Unmarshal(content, &in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		at := time.Now().UTC()
		answer, err := json.Marshal(jobView{ID: "job_01KAQ0ZV2V8Z3X7M2T5N9E4R6D", Object: "job", Queue: p.ByName("queue"), Name: in.Name,
			Data: rawValue(in.Data), State: jobs.Waiting, CreatedAt: at, RunAt: at})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(answer)
	})
	return router
}

// BenchmarkQueuesWire is a box's queue with its file, over loopback TCP with 64 keep-alive connections, beside a handler that only decodes
// and encodes: "add" is one durable job a request, "work" leases and completes a hundred at a time and counts jobs.
func BenchmarkQueuesWire(b *testing.B) {
	add := func(address, key string) []byte {
		return []byte(fmt.Sprintf("POST /api/v1/queues/email/jobs HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1\r\nAuthorization: Bearer %s\r\n"+
			"Content-Type: application/json\r\nContent-Length: %d\r\nAccept-Encoding: gzip\r\n\r\n%s", address, key, len(benchAdd), benchAdd))
	}
	b.Run("add", func(b *testing.B) {
		js := newJobServer(b, nil)
		address := js.start(nil)
		benchRequests(b, address, add(address, js.shop))
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	})
	b.Run("add-floor", func(b *testing.B) {
		js := newJobServer(b, nil)
		address := js.start(func(s *http.Server) { s.Handler = noopQueues() })
		benchRequests(b, address, add(address, js.shop))
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	})
	b.Run("work", func(b *testing.B) {
		js := newJobServer(b, nil)
		address := js.start(nil)
		wishes := make([]jobs.NewJob, 10_000)
		for left := b.N; left > 0; left -= len(wishes) {
			wishes = wishes[:min(left, len(wishes))]
			for i := range wishes {
				wishes[i] = jobs.NewJob{Queue: "email", Tenant: "shop", Name: "send-receipt", Data: []byte(benchData)}
			}
			if _, err := js.engine.Enqueue(b.Context(), wishes...); err != nil {
				b.Fatal(err)
			}
		}
		b.ResetTimer()
		began := cpuTime(b)
		var group sync.WaitGroup
		for range 16 {
			group.Go(func() {
				w := &worker{url: "http://" + address, key: js.shop, queue: "email"}
				for {
					var leased struct{ Jobs []workerJob }
					if err := w.post(b.Context(), "/lease", map[string]any{"max": 100, "worker": "bench"}, &leased); err != nil {
						b.Error(err)
						return
					}
					if len(leased.Jobs) == 0 {
						return
					}
					done := make([]map[string]any, len(leased.Jobs))
					for i, j := range leased.Jobs {
						done[i] = map[string]any{"id": j.ID, "lease_token": j.LeaseToken}
					}
					if err := w.post(b.Context(), "/complete", map[string]any{"jobs": done}, nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		b.ReportMetric(float64((cpuTime(b)-began).Microseconds())/float64(b.N), "cpu-µs/op")
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	})
}
