// Package simulator is a payment processor that speaks Stripe's dialect and keeps state, for trying the box out and
// for testing it: what a processor may do to its clients, this one does on request.
//
// # Promise
//
// It behaves as Stripe does where money depends on it. A request with an idempotency key takes effect once: the same
// parameters again get the stored answer (Idempotent-Replayed: true), also when that answer was a 500; other
// parameters get 400 idempotency_error; a request that is still being worked on gets 409
// idempotency_key_in_use. Answers of validation (400, 404), of the rate limit and of a wrong key are not stored. Keys
// are forgotten after Options.ForgetKeys, if set, and all at once when /_control says so. An intent is charged once, whatever
// the keys of its confirmations. GET /_ledger lists every charge and refund that took effect, in
// order, with the key and metadata that it came with: it is the judge in tests that count effects.
//
// # Main types
//
// Simulator is an http.Handler for /charges, /payment_intents and /refunds (with and without /v1) and for
// its own /_ledger and /_control. What becomes of a charge follows from its token, by the names of Stripe's test tokens (token.go);
// Settling says how what is pending comes to an end. Start also gives it a listener, which Cut can take away, so that a dial is refused by
// the operating system. Faults are the probabilities with which it misbehaves (faults.go says what each one does
// to the request, and whether there is an effect).
//
// # After a crash
//
// Everything is in memory and gone. Memory grows with what was charged, about 1.5 KiB a charge.
//
// # Caveats
//
// /_control and /_ledger ask for no key and no fault touches them: listen on loopback. Nothing here is
// meant to hold real money's data. Lock order: Simulator.listenMu before Simulator.mu.
package simulator

import (
	"cmp"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Options are the simulator's settings; the zero value works.
type Options struct {
	// Key is the API key that requests must carry, as bearer token or basic user. Empty: any, also none.
	Key string
	// Rate is how many requests a second are let in before 429. 0: no limit.
	Rate int
	// Burst is how many of them may come at once, the size of the token bucket. 0: as many as Rate.
	Burst int
	// ForgetKeys is how long an idempotency key is remembered. 0: for ever.
	ForgetKeys time.Duration
	// Latency is how long each request is worked on; meanwhile its key is in use.
	Latency time.Duration
	// Seed makes the draws of faults repeatable. 0: a fixed seed.
	Seed int64
	// Now is the simulator's clock. nil: time.Now.
	Now func() time.Time
	// Logger gets errors of serving. nil: none.
	Logger *slog.Logger
}

// Simulator is the processor. All methods may be called at any time from any goroutine.
type Simulator struct {
	o        Options
	closed   chan struct{} // ends hanging requests
	requests atomic.Int64

	listenMu sync.Mutex // guards what follows; before mu
	server   *http.Server
	listener net.Listener // of server
	serving  sync.WaitGroup
	address  string // of the listener, kept over cuts
	release  func() // gives the port back, which is held from Start on
	isClosed bool

	mu      sync.Mutex // guards what follows; a leaf
	limiter *rate.Limiter
	random  *rand.Rand
	control Control
	fired   map[string]int64
	cut     bool
	state   state
}

// New makes a processor without a listener: serve it with net/http or httptest, or call Start.
func New(o Options) *Simulator {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Simulator{
		o:       o,
		closed:  make(chan struct{}),
		random:  rand.New(rand.NewPCG(uint64(o.Seed), 0x7e4de2b0)),
		control: Control{LatencyMS: o.Latency.Milliseconds(), Rate: o.Rate},
		fired:   map[string]int64{},
		state:   newState(o.ForgetKeys, uint64(o.Seed)),
	}
	s.setRate(o.Rate)
	return s
}

func (s *Simulator) setRate(n int) {
	if n <= 0 {
		s.limiter = nil
		return
	}
	s.limiter = rate.NewLimiter(rate.Limit(n), cmp.Or(s.o.Burst, n))
}
