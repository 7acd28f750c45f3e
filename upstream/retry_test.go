package upstream_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

// A kept-alive connection dies under a POST, after it took effect. The try that follows is refused a dial: the first may have left.
func TestSecondTryIsMaybeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var line *upstreamtest.Line
		var bodies []string
		line = upstreamtest.NewLine(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			bodies = append(bodies, r.Header.Get("Idempotency-Key")+" "+string(b))
			if len(bodies) == 2 {
				line.Set(upstreamtest.Refused)
				return
			}
			reply(200, goodCharge)(w, r)
		}))
		_, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
		if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Succeeded {
			t.Fatalf("first: %+v", answer)
		}
		answer := pay(t.Context(), a, "k")
		if answer.Outcome != upstream.Unknown || !answer.MaybeSent {
			t.Errorf("written into a dying connection, then refused: %+v", answer)
		}
		if line.Dials() < 2 {
			t.Error("nothing was tried again: this test tests nothing")
		}
		line.Set(upstreamtest.Up)
		if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Succeeded {
			t.Errorf("restored: %+v", answer)
		}
		for _, b := range bodies {
			if b != bodies[0] {
				t.Errorf("sent %q, then %q", bodies[0], b)
			}
		}
	})
}

// The processor refuses to look at the try that follows one that was cut after it took effect: the payment is in doubt, and not unsent.
// net/http sends a POST with an Idempotency-Key again by itself, and would show the 429 alone. A transport that does so with another's requests
// is seen through, too.
func TestRefusalOfSecondTryProvesNothing(t *testing.T) {
	for name, refusal := range map[string]http.HandlerFunc{"429": reply(429, `{"error":{"type":"rate_limit_error"}}`), "401": reply(401, serverError),
		"404": reply(404, `{"error":{"type":"invalid_request_error"}}`)} {
		t.Run(name, func(t *testing.T) {
			posts := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch posts++; posts {
				case 1:
					reply(200, goodCharge)(w, r)
				case 2:
					panic(http.ErrAbortHandler) // as if it had taken effect
				default:
					refusal(w, r)
				}
			}))
			defer server.Close()
			_, a := account(t, upstream.Config{URL: server.URL})
			if answer := pay(t.Context(), a, "k"); answer.Outcome != upstream.Succeeded {
				t.Fatalf("first: %+v", answer)
			}
			if answer := pay(t.Context(), a, "k2"); answer.Outcome != upstream.Unknown || !answer.MaybeSent || posts != 3 {
				t.Errorf("%d posts, %+v", posts, answer)
			}
		})
	}
}

// Connections that fail before an answer are tried again: GET 3 times, POST 2 times, with full jitter; same bytes.
func TestRetries(t *testing.T) {
	for _, c := range []struct {
		method string
		tries  int
	}{{"GET", 4}, {"POST", 3}} {
		t.Run(c.method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := upstreamtest.NewLine(t, reply(200, goodCharge))
				line.Set(upstreamtest.Refused)
				_, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
				var answer upstream.Answer
				if c.method == "GET" {
					answer = a.Get(t.Context(), "/charges/ch_1")
				} else {
					answer = pay(t.Context(), a, "k")
				}
				if answer.Outcome != upstream.Retryable || answer.MaybeSent || line.Dials() != c.tries {
					t.Errorf("%d dials, %+v; want %d", line.Dials(), answer, c.tries)
				}
			})
		})
	}
	t.Run("jitter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			line := upstreamtest.NewLine(t, reply(200, goodCharge))
			line.Set(upstreamtest.Refused)
			took := map[time.Duration]bool{}
			for range 5 {
				_, a := account(t, upstream.Config{URL: upstreamtest.URL, Dial: line.Dial})
				from := time.Now()
				pay(t.Context(), a, "k")
				took[time.Since(from)] = true
			}
			if len(took) < 4 {
				t.Errorf("retries keep step: %v", took)
			}
			for d := range took {
				if d >= 150*time.Millisecond { // ceilings 50 and 100 ms
					t.Errorf("two retries took %v", d)
				}
			}
		})
	})
	t.Run("an answer ends it", func(t *testing.T) {
		for _, status := range []int{400, 402, 409, 429, 500, 503} {
			var n atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n.Add(1)
				reply(status, serverError)(w, r)
			}))
			_, a := account(t, upstream.Config{URL: server.URL})
			pay(t.Context(), a, "k")
			if n.Load() != 1 {
				t.Errorf("%d: asked %d times", status, n.Load())
			}
			server.Close()
		}
	})
}

// What a retry is told holds only for the retry: an earlier try that may have left keeps the outcome unknown, unless
// the answer under the same key is final.
func TestRetryAfterACut(t *testing.T) {
	for _, c := range []struct {
		name    string
		second  http.HandlerFunc
		outcome upstream.Outcome
	}{
		{"succeeded", reply(200, goodCharge), upstream.Succeeded},
		{"declined", reply(402, cardError), upstream.Declined},
		{"rate limited", reply(429, serverError), upstream.Unknown},
		{"key refused", reply(401, serverError), upstream.Unknown},
		{"in progress", reply(409, serverError), upstream.Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n atomic.Int64
			var keys sync.Map
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				keys.Store(r.Header.Get("Idempotency-Key")+string(b), true)
				if n.Add(1) == 1 {
					conn, _, _ := http.NewResponseController(w).Hijack()
					conn.Close()
					return
				}
				c.second(w, r)
			}))
			defer server.Close()
			_, a := account(t, upstream.Config{URL: server.URL})
			answer := pay(t.Context(), a, "k")
			if answer.Outcome != c.outcome || !answer.MaybeSent || n.Load() != 2 {
				t.Errorf("%+v after %d requests, want %s after 2", answer, n.Load(), c.outcome)
			}
			different := 0
			keys.Range(func(any, any) bool { different++; return true })
			if different != 1 {
				t.Errorf("%d different requests", different)
			}
		})
	}
}
