package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Config describes the box's own upstream account and the behaviour of all accounts.
// The zero value works and is unconfigured: payments are kept, nothing is sent.
type Config struct {
	// URL is the base URL: `/charges` is appended to it. Empty: unconfigured.
	URL string
	// Account names the box's own account at the processor. Default "default".
	Account string
	// Key is the API key, sent as bearer token.
	Key string
	// Version is sent as Stripe-Version. Default 2022-11-15.
	Version string
	// Timeout is the budget of one call, from the dial to the last byte of the answer, its retries
	// included. Default 5 s; negative is refused.
	Timeout time.Duration
	// Concurrency is how many payments are on their way to an account at a time, at most: it begins with few and finds out how many
	// do the processor good. 0: 32 to 64, the more the longer answers take. Up to 1024.
	Concurrency int
	// Rate is how many payments a second the box's own account is sent at most. 0: what the processor allows is learned from its 429s. Other
	// accounts have theirs by Account.SetRate.
	Rate int
	// ProbeInterval is how long the line may be silent before it is probed. Default 2 s.
	ProbeInterval time.Duration
	// ProbePath is what a probe asks for. Default /charges?limit=1.
	ProbePath string
	// BreakerFailures opens the breaker: so many failures in a row, or as many within BreakerWindow when they
	// are at least half of all calls in it. Default 5.
	BreakerFailures int
	// BreakerWindow is the rolling window of the count. Default 60 s.
	BreakerWindow time.Duration
	// BreakerOpen is how long the breaker stays open before one trial. Default 10 s.
	BreakerOpen time.Duration
	// Transport replaces the transport of all accounts; nil makes one for each. A transport that is no
	// *http.Transport cannot prove that nothing left: every failure of it counts as maybe sent.
	Transport http.RoundTripper
	// Dial replaces the dialler of the accounts' own transports. nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger gets link changes, breaker changes and alarms. nil: none.
	Logger *slog.Logger
	// Now is the clock of holds, the link judge and `since`. nil: time.Now. (The breaker and all timers
	// use the time package: test those in a synctest bubble.)
	Now func() time.Time
}

const (
	defaultAccount         = "default"
	defaultVersion         = "2022-11-15"
	defaultTimeout         = 5 * time.Second
	defaultProbeInterval   = 2 * time.Second
	defaultProbePath       = "/charges?limit=1"
	defaultBreakerFailures = 5
	defaultBreakerWindow   = 60 * time.Second
	defaultBreakerOpen     = 10 * time.Second
)

func (c Config) withDefaults() Config {
	if c.Account == "" {
		c.Account = defaultAccount
	}
	if c.Version == "" {
		c.Version = defaultVersion
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.ProbeInterval == 0 {
		c.ProbeInterval = defaultProbeInterval
	}
	if c.ProbePath == "" {
		c.ProbePath = defaultProbePath
	}
	if c.BreakerFailures == 0 {
		c.BreakerFailures = defaultBreakerFailures
	}
	if c.BreakerWindow == 0 {
		c.BreakerWindow = defaultBreakerWindow
	}
	if c.BreakerOpen == 0 {
		c.BreakerOpen = defaultBreakerOpen
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Validate names every setting that cannot work, joined into one error. Zero values are fine.
func (c Config) Validate() error {
	c = c.withDefaults()
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.URL != "" {
		if _, err := parseBase(c.URL); err != nil {
			problems = append(problems, err)
		}
	}
	if err := checkKey(c.Key); err != nil {
		problems = append(problems, err)
	}
	if !validAccount(c.Account) {
		problems = append(problems, ErrAccountInvalid)
	}
	if !headerSafe(c.Version) {
		bad("upstream version: printable ASCII only")
	}
	if !requestPath(c.ProbePath) {
		bad("probe path %q: must begin with one slash and be printable ASCII", c.ProbePath)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"timeout", c.Timeout}, {"probe interval", c.ProbeInterval},
		{"breaker window", c.BreakerWindow}, {"breaker open time", c.BreakerOpen},
	} {
		if d.d < 0 {
			bad("upstream %s %v: must not be negative", d.name, d.d)
		}
	}
	if c.BreakerFailures < 0 {
		bad("breaker failures %d: must not be negative", c.BreakerFailures)
	}
	if c.Concurrency < 0 || c.Concurrency > paceMaxMost {
		bad("upstream concurrency %d: use 1 to %d, or 0 for what suits the time that answers take", c.Concurrency, paceMaxMost)
	}
	if c.Rate < 0 {
		bad("upstream rate %d: must not be negative", c.Rate)
	}
	return errors.Join(problems...)
}
