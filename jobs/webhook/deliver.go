package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"tenderbox/jobs"
)

const (
	// requestTimeout bounds an attempt, from the name's lookup to the answer's headers. The specification recommends 15 to 30 s.
	requestTimeout = 15 * time.Second
	// dialTimeout leaves an endpoint that connects slowly some time to answer.
	dialTimeout = 10 * time.Second

	// drainBytesMax and drainTimeout bound what is read of an answer's body, and that only so that the connection can be kept: the
	// status has said all by then. Nothing is decompressed.
	drainBytesMax = 16 << 10
	drainTimeout  = time.Second

	headerBytesMax = 16 << 10 // of an answer
	keepAlive      = 15 * time.Second

	// Connections are kept for bursts of events, not for long: routers of small sites forget idle ones without telling.
	idleConnsMax, idleConnsHost, idleTimeout = 32, 2, 20 * time.Second

	contentType = "application/json"
	userAgent   = "Tenderbox-Webhooks/1"
)

// Options tune a Deliverer. The zero value works.
type Options struct {
	AllowLAN bool             // the operator allows endpoints on loopback and private addresses, and plain http
	Line     func() Line      // what is known of the box's line; must be quick. nil: LineUnknown
	Resolver *net.Resolver    // nil: the machine's
	RootCAs  *x509.CertPool   // whom endpoints' certificates are to be signed by; nil: the machine's
	Now      func() time.Time // for timestamps; nil: time.Now
}

// Deliverer sends events to endpoints. Its Handle is the handler of [Queue]. It is safe for concurrent use.
type Deliverer struct {
	endpoints Endpoints
	o         Options
	guard     *guard
	pauses    pauses
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	transport *http.Transport
}

// New makes a Deliverer.
func New(endpoints Endpoints, o Options) *Deliverer {
	if o.Line == nil {
		o.Line = func() Line { return LineUnknown }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Deliverer{endpoints: endpoints, o: o, guard: guardFor(o.AllowLAN)}
	d.dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive, Resolver: o.Resolver, ControlContext: d.guard.control}).DialContext
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	d.transport = &http.Transport{
		Proxy: nil, // behind one, the address that is dialled is not the endpoint's
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return d.dial(ctx, network, address)
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
		TLSHandshakeTimeout:    dialTimeout,
		DisableCompression:     true,
		MaxIdleConns:           idleConnsMax,
		MaxIdleConnsPerHost:    idleConnsHost,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: headerBytesMax,
		Protocols:              protocols,
	}
	return d
}

// CloseIdleConnections closes connections that are kept. Call it after the last Handle.
func (d *Deliverer) CloseIdleConnections() { d.transport.CloseIdleConnections() }

// Result is what a delivery leaves as its job's result, in JSON.
type Result struct {
	Status  int   `json:"status"`  // what the endpoint answered
	MS      int64 `json:"ms"`      // how long that took
	Attempt int   `json:"attempt"` // the first is 1
}

// Handle makes one attempt to deliver a job's event.
func (d *Deliverer) Handle(ctx context.Context, j *jobs.Job) error {
	p, err := decodePayload(j.Data)
	if err != nil {
		return jobs.Cancel(err)
	}
	e, ok := d.endpoints.Endpoint(j.Tenant, p.Endpoint)
	switch {
	case !ok:
		return jobs.Cancel(errors.New("the endpoint was removed"))
	case e.Disabled:
		return jobs.Cancel(errors.New("the endpoint is disabled"))
	}
	if err := ValidateURL(e.URL, d.o.AllowLAN); err != nil { // the operator may have changed his mind
		return jobs.Cancel(fmt.Errorf("the endpoint's %w", err))
	}
	now := d.o.Now()
	age := now.Sub(j.CreatedAt)
	if left := d.pauses.left(p.Endpoint); left > 0 && age < scheduleLasts {
		return jobs.Snooze(jitter(left))
	}
	req, err := newRequest(&e, &p, now)
	if err != nil {
		return jobs.Cancel(err)
	}
	a := d.send(ctx, req)
	if a.err != nil && ctx.Err() != nil { // the box is stopping
		return ctx.Err()
	}
	return d.judge(ctx, j, &p, a, age)
}

// newRequest makes a signed request. Its errors hold no URL.
func newRequest(e *Endpoint, p *payload, now time.Time) (*http.Request, error) {
	signature, err := sign(e.Secrets, p.id, now, p.Event)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, e.URL, bytes.NewReader(p.Event))
	if err != nil {
		return nil, errors.New("the endpoint's url cannot be requested")
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, p.id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	return req, nil
}

// answer is what came of a request.
type answer struct {
	status         int
	retryAfter     time.Duration
	took           time.Duration
	err            error // why no answer came; nil: one came
	lan, connected bool
}

// send sends a request and reads the answer's status. A RoundTripper follows no redirect and keeps no cookie.
func (d *Deliverer) send(ctx context.Context, req *http.Request) (a answer) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r := new(reach)
	ctx = context.WithValue(ctx, reachKey{}, r)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { r.connection(i.Conn, d.guard) }})
	start := time.Now()
	resp, err := d.transport.RoundTrip(req.WithContext(ctx))
	a.took = time.Since(start)
	a.lan, a.connected = r.get()
	if err != nil {
		a.err = err
		return a
	}
	a.status, a.retryAfter = resp.StatusCode, retryAfter(resp.Header, d.o.Now())
	enough := time.AfterFunc(drainTimeout, cancel)
	defer enough.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, drainBytesMax) // whatever comes of it, the status stands
	_ = resp.Body.Close()
	return a
}

// judge says what becomes of the job.
func (d *Deliverer) judge(ctx context.Context, j *jobs.Job, p *payload, a answer, age time.Duration) error {
	switch {
	case a.err != nil:
		return d.unanswered(j, p, a, age)
	case a.status >= 200 && a.status <= 299:
		d.pauses.end(p.Endpoint)
		result, err := json.Marshal(Result{a.status, a.took.Milliseconds(), j.AttemptsMade})
		if err != nil {
			return err
		}
		return jobs.Done(result)
	case a.status == http.StatusGone:
		if err := d.endpoints.Disable(ctx, j.Tenant, p.Endpoint, "it answered 410 Gone"); err != nil {
			return jobs.RetryIn(wait(j.AttemptsMade, 0), fmt.Errorf(answered+"410 Gone, but could not be disabled: %w", err))
		}
		return jobs.Cancel(errors.New(answered + "410 Gone; the endpoint is now disabled"))
	}
	what := fmt.Errorf(answered+"%d %s after %s", a.status, cmp.Or(http.StatusText(a.status), "(no known status)"), millis(a.took))
	if a.status >= 300 && a.status <= 399 {
		what = fmt.Errorf("%w; redirects are not followed: save the URL that it leads to", what)
	}
	asked := a.retryAfter
	switch a.status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		d.pauses.begin(p.Endpoint, asked)
	default:
		if asked > 0 {
			d.pauses.begin(p.Endpoint, asked)
		} else {
			d.pauses.end(p.Endpoint)
		}
	}
	return jobs.RetryIn(wait(j.AttemptsMade, asked), what)
}

// unanswered judges a request without an answer.
func (d *Deliverer) unanswered(j *jobs.Job, p *payload, a answer, age time.Duration) error {
	if excused(d.o.Line(), a.lan, a.connected, a.err) && age < lineWaitMax {
		return jobs.Snooze(jitter(d.pauses.begin(p.Endpoint, 0)))
	}
	if isTimeout(a.err) {
		d.pauses.begin(p.Endpoint, 0)
	}
	return jobs.RetryIn(wait(j.AttemptsMade, 0), explain(a.err, a.connected))
}

// answered begins the error of an attempt that was answered; the status follows.
const answered = "answered "

// StatusOf returns what the endpoint answered to an attempt of which a job's history tells this error; 0: no answer came.
func StatusOf(attempt string) int {
	rest, ok := strings.CutPrefix(attempt, answered)
	text, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(text)
	if !ok || err != nil || len(text) != 3 {
		return 0
	}
	return status
}
