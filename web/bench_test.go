package web

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// stillLedger takes every payment and keeps none: what is left is the cost of this package.
type stillLedger struct {
	fakeLedger
	payment ledger.Payment
}

func (l *stillLedger) Pay(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewPayment) (ledger.Payment, bool, error) {
	return l.payment, false, nil
}

func newStillServer(b *testing.B) *testServer {
	text := "order 17"
	return newTestServer(b, func(o *Options) {
		o.Ledger = &stillLedger{payment: ledger.Payment{ID: "pay_01KAQ0ZV2V8Z3X7M2T5N9E4R6D", Object: "payment", Amount: 1999, Currency: "usd",
			Status: ledger.Pending, Sync: ledger.Sync{State: ledger.Queued}, Metadata: map[string]string{"till": "3"}, Description: &text,
			TakenOffline: true, CreatedAt: time.UnixMilli(1795420800123).UTC()}}
	})
}

const benchBody = `{"amount":1999,"currency":"usd","source":"tok_visa","user_id":"u_123","description":"order 17","metadata":{"till":"3"}}`

// BenchmarkPay is the handler alone, without net/http's reading and writing.
func BenchmarkPay(b *testing.B) {
	ts := newStillServer(b)
	r, err := http.NewRequestWithContext(b.Context(), "POST", "/api/v1/payments", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Host = "127.0.0.1:8080"
	r.ContentLength = int64(len(benchBody))
	r.Header = http.Header{"Authorization": {"Bearer " + ts.shop}, "Content-Type": {"application/json"}, "Idempotency-Key": {"receipt-1001"},
		"User-Agent": {"bench/1"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}}
	body := bytes.NewReader(nil)
	r.Body = io.NopCloser(body)
	w := &discardWriter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset([]byte(benchBody))
		clear(w.header)
		ts.ServeHTTP(w, r)
		if w.status != 201 {
			b.Fatal(w.status)
		}
	}
}

type discardWriter struct {
	header http.Header
	status int
}

func (w *discardWriter) Header() http.Header         { return w.header }
func (w *discardWriter) WriteHeader(status int)      { w.status = status }
func (w *discardWriter) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkPayWire is a keep-alive client and the server in one process, over loopback TCP; the sub-benchmark "floor" is the
// same with a handler that only answers.
func BenchmarkPayWire(b *testing.B) {
	b.Run("api", func(b *testing.B) {
		ts := newStillServer(b)
		benchWire(b, ts.start(nil), ts.shop)
	})
	b.Run("floor", func(b *testing.B) {
		ts := newStillServer(b)
		answer := []byte(strings.Repeat("x", 500))
		benchWire(b, ts.start(func(s *http.Server) {
			s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusCreated)
				_, _ = w.Write(answer)
			})
		}), ts.shop)
	})
}

// cpuTime is what this process has used, both sides of the wire: steadier than the rate on a shared machine.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchWire(b *testing.B, address, key string) {
	benchRequests(b, address, []byte(fmt.Sprintf("POST /api/v1/payments HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"+
		"Idempotency-Key: receipt-1001\r\nContent-Length: %d\r\nAccept-Encoding: gzip\r\n\r\n%s", address, key, len(benchBody), benchBody)))
}

// benchRequests sends one request again and again over 64 connections.
func benchRequests(b *testing.B, address string, request []byte) {
	b.ReportAllocs()
	b.SetParallelism(32) // 64 connections on two cores
	began := cpuTime(b)
	defer func() { b.ReportMetric(float64((cpuTime(b)-began).Microseconds())/float64(b.N), "cpu-µs/op") }()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		in := bufio.NewReader(c)
		for pb.Next() {
			if _, err := c.Write(request); err != nil {
				b.Error(err)
				return
			}
			length := 0
			for {
				line, err := in.ReadSlice('\n')
				if err != nil {
					b.Error(err)
					return
				}
				if _, rest, ok := bytes.Cut(line, []byte("Content-Length: ")); ok {
					_, _ = fmt.Sscanf(string(rest), "%d", &length)
				}
				if len(line) == 2 {
					break
				}
			}
			if _, err := in.Discard(length); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
