package upstream

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the accounts' own transports.
const (
	// idleConnsMax kept-alive connections wait for the next request at least; as many as are sent at a time, with room.
	idleConnsMax = 64
	// idleTimeout is short, because routers of small sites forget idle connections without telling; a request
	// written into one is in doubt.
	idleTimeout = 20 * time.Second
	// headerBytesMax bounds an answer's headers.
	headerBytesMax = 64 << 10
	// keepAlive finds half-open connections.
	keepAlive = 15 * time.Second
)

// newTransport returns a transport that keeps no cookies, asks for no compression, speaks HTTP/1.1 only, and whose
// connections count writes. Redirects are not its business: a RoundTripper does not follow them.
func newTransport(cfg *Config) *http.Transport {
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: cfg.Timeout, KeepAlive: keepAlive}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countedConn{Conn: conn}, nil
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    cfg.Timeout,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    max(idleConnsMax, cfg.Concurrency),
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: headerBytesMax,
		Protocols:              protocols,
	}
}

// countedConn counts the writes that were begun on a connection.
type countedConn struct {
	net.Conn
	writes atomic.Int64
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1) // before, so that a write is never missed
	return c.Conn.Write(p)
}

// witness watches one request on its way out. It is the proof behind MaybeSent.
//
// A request is given to a connection (GotConn) only after dial and TLS handshake. From then on, a write begun on
// the connection below TLS means that bytes may have left. net/http returns an error only after
// the goroutine that writes has ended, so the count is final when it is read.
type witness struct {
	mu       sync.Mutex // guards what follows; a leaf
	conns    []conn
	given    int  // how often the request was given to a connection
	unproven bool // a connection that does not count
	first    bool // the first byte of an answer came
}

type conn struct {
	*countedConn
	before int64
}

func (w *witness) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			c := info.Conn
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.given++
			if cc, ok := c.(*countedConn); ok {
				w.conns = append(w.conns, conn{cc, cc.writes.Load()})
			} else {
				w.unproven = true
			}
		},
		GotFirstResponseByte: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.first = true
		},
	}
}

func (w *witness) maybeSent() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		if c.writes.Load() != c.before {
			return true
		}
	}
	return w.unproven
}

// sentBefore reports whether bytes may have left on a connection before the last one.
func (w *witness) sentBefore() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, c := range w.conns {
		if i < len(w.conns)-1 && c.writes.Load() != c.before {
			return true
		}
	}
	return w.unproven && w.given > 1
}

func (w *witness) answerBegan() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}
