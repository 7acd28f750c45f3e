package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"syscall"
	"time"

	"github.com/avast/retry-go/v4"
)

const (
	// Retries beyond the first try, of a connection that failed before an answer. A POST goes out with the same
	// key and bytes each time.
	getRetriesMax  = 3
	postRetriesMax = 2
	// Full jitter: a random part of a ceiling that doubles from the first to the second.
	retryDelay    = 50 * time.Millisecond
	retryDelayMax = time.Second
	// bodyBytesMax is read of an answer at most: far more than one object has, whose 50 metadata are the largest part.
	bodyBytesMax = 1 << 20
	// listBytesMax is read of a page: 100 objects with all the metadata that one can have. (A usual page has about 300 KiB.)
	listBytesMax = 4 << 20
)

// call is one thing to ask, in as many tries as it takes.
type call struct {
	method, path   string
	body           []byte
	idempotencyKey string
	retries        uint
	probe          bool
	timeout        time.Duration // 0: Config.Timeout
}

// health is what an exchange says about line and processor, whatever it says about the payment.
type health int

const (
	abandoned   health = iota // says nothing: the caller gave up first
	answered                  // the processor answered in its own format
	ailing                    // it answered, but with a 5xx or with something that cannot be
	foreign                   // something answered that is not the processor
	silent                    // bytes may have left; no whole answer came
	unreachable               // provably nothing left
)

// result is an Answer with what the instruments need to know.
type result struct {
	Answer
	health      health
	probe       bool
	keyReplaced bool
	urlWrong    bool  // the collection is not known there
	cause       Cause // why nothing came back that the processor wrote
	start, end  time.Time
}

// urlRight reports whether the answer proves that the base URL is the processor's. A 404 or 405 does so only where it
// names what is missing in a request; for a probe, whose path a processor need not know, never.
func (r result) urlRight() bool {
	switch {
	case r.health != answered:
		return false
	case r.Status == http.StatusNotFound || r.Status == http.StatusMethodNotAllowed:
		return !r.probe && r.Failure.Code == codeMissing
	}
	return r.Outcome == Succeeded || r.Outcome == Declined || r.Made() || r.Failure.Type == "invalid_request_error"
}

// failed reports whether the breaker counts it. Answers of the 4xx class never do, whoever wrote them.
func (r result) failed() bool {
	return r.health > answered && (r.Status < 400 || r.Status > 499)
}

// throttled reports whether the processor refused it because there were too many.
func (r result) throttled() bool {
	return r.Status == http.StatusTooManyRequests && (r.health == answered || r.health == foreign)
}

// wire does HTTP for one account.
type wire struct {
	cfg       *Config
	transport http.RoundTripper
	traced    bool // the transport reports GotConn: it is net/http's
}

func newWire(cfg *Config) *wire {
	if cfg.Transport == nil {
		return &wire{cfg, newTransport(cfg), true}
	}
	_, traced := cfg.Transport.(*http.Transport)
	return &wire{cfg, cfg.Transport, traced}
}

func (w *wire) closeIdle() {
	if t, ok := w.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// do asks, trying again when a connection failed before an answer, all within one budget of time.
func (w *wire) do(ctx context.Context, base, key string, c call) result {
	timeout := c.timeout
	if timeout == 0 {
		timeout = w.cfg.Timeout
	}
	budget, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var r result
	start, sends := w.cfg.Now(), 0
	err := retry.Do(func() error {
		var again bool
		var seen witness
		r, again = w.try(budget, base, key, c, &seen)
		if sends > 0 && r.Outcome == Retryable {
			// An earlier try may have taken effect; that this one did not proves nothing about it.
			r.Outcome = Unknown
		}
		if r.MaybeSent {
			sends++
		}
		if seen.sentBefore() {
			sends++
		}
		r.MaybeSent, r.Sends = sends > 0, sends
		if again {
			return errFailed
		}
		return nil
	},
		retry.Context(budget),
		retry.Attempts(1+c.retries),
		retry.Delay(retryDelay/2), // the library's first ceiling is twice this
		retry.MaxDelay(retryDelayMax),
		retry.DelayType(retry.FullJitterBackoffDelay),
		retry.LastErrorOnly(true),
	)
	if r.Outcome == "" { // the context had ended before the first try
		r.Answer = Answer{Outcome: Retryable, Reason: "not sent: " + err.Error()}
	}
	if ctx.Err() != nil && r.Status == 0 {
		r.health = abandoned
	}
	r.probe, r.start, r.end = c.probe, start, w.cfg.Now()
	return r
}

// try is one request. again: a new connection may do better.
func (w *wire) try(ctx context.Context, base, key string, c call, seen *witness) (r result, again bool) {
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, seen.trace()), c.method, base+c.path, bytes.NewReader(c.body))
	if err != nil {
		return result{Answer: Answer{Outcome: Retryable, Reason: "not sent: malformed request"}, health: abandoned}, false
	}
	if c.method == http.MethodPost {
		// net/http sends a request that bears an Idempotency-Key again by itself when a kept connection is cut, and shows only the last answer: a
		// 429 to the second would hide that the first took effect. Without GetBody, and with a body, it does not.
		req.GetBody = nil
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if c.idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", c.idempotencyKey)
	}
	req.Header.Set("Stripe-Version", w.cfg.Version)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "tenderbox")

	resp, err := w.transport.RoundTrip(req)
	if err != nil {
		sent := seen.maybeSent() || !w.traced
		r = result{Answer: Answer{Outcome: Unknown, MaybeSent: sent, Reason: reason(ctx, err)}, health: silent, cause: causeOf(err)}
		if !sent {
			r.Outcome, r.health = Retryable, unreachable
		}
		if ctx.Err() == nil && seen.answerBegan() && !cut(err) {
			r.health, r.Reason, r.cause = foreign, "answer is not HTTP", CaptivePortal
		}
		return r, ctx.Err() == nil && !seen.answerBegan() && !hopeless(err)
	}
	defer resp.Body.Close()
	q := newAsk(c)
	bytesMax := int64(bodyBytesMax)
	if q.list && !q.probe {
		bytesMax = listBytesMax
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, bytesMax+1))
	r = result{Answer: Answer{Outcome: Unknown, MaybeSent: true, Status: resp.StatusCode}}
	switch {
	case err != nil && ctx.Err() != nil:
		r.Reason, r.health = reason(ctx, err)+" within the answer", silent
	case err != nil:
		r.Reason, r.health = "connection cut within the answer", silent
	case int64(len(body)) > bytesMax:
		r.Reason, r.health = reasonTooLarge, foreign
	default:
		r.Answer, r.health = classify(q, resp.StatusCode, resp.Header, q.without(key, body), w.cfg.Now())
		r.redact(key)
		if r.Outcome == Retryable && seen.sentBefore() {
			r.Outcome = Unknown // as in do
		}
		r.urlWrong = collectionUnknown(q, r.Answer)
	}
	switch r.health {
	case silent:
		r.cause = NoAnswer
	case foreign:
		r.cause = CaptivePortal
	}
	if r.health == silent && resp.StatusCode >= 400 {
		// The status line is not the answer: what kind of 4xx it was to be is not known.
		r.Status = 0
	}
	return r, false
}

const reasonTooLarge = "answer too large"

// cut reports a connection that ended before its time.
func cut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// hopeless reports errors that a second try at once does not cure.
func hopeless(err error) bool {
	var dns *net.DNSError
	return untrusted(err) || errors.As(err, &dns) && dns.IsNotFound
}

// untrusted reports a TLS handshake that failed for what the other side is, not for the line.
func untrusted(err error) bool {
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		alert   tls.AlertError
	)
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &host) ||
		errors.As(err, &invalid) || errors.As(err, &record) || errors.As(err, &alert)
}

// reason names an error without quoting it: errors of package net hold addresses.
func reason(ctx context.Context, err error) string {
	var (
		dns *net.DNSError
		op  *net.OpError
	)
	dial := errors.As(err, &op) && op.Op == "dial"
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return "given up by the caller"
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "timeout"
	case untrusted(err):
		return "certificate or TLS handshake not accepted"
	case errors.As(err, &dns):
		return "host name not resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN):
		return "no route to the processor"
	case dial:
		return "connection failed"
	default:
		return "connection cut before an answer"
	}
}

// causeOf sorts an error by what keeps the processor from answering.
func causeOf(err error) Cause {
	var dns *net.DNSError
	switch {
	case untrusted(err):
		return CaptivePortal
	case errors.As(err, &dns), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN):
		return NoNetwork
	case errors.Is(err, syscall.ECONNREFUSED):
		return UpstreamDown
	}
	return NoAnswer
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
