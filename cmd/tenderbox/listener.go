package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// headerBytesMax: keys, tokens and a cookie or two; more is an attack.
	headerBytesMax = 16 << 10
	// headerTimeout ends a client that sends its header byte by byte.
	headerTimeout = 10 * time.Second
	// requestTimeout bounds receiving a body; the largest one is 16 MiB over a site's network.
	requestTimeout = 30 * time.Second
	// answerTimeout is above the 30 s that `Prefer: wait` may ask for; event streams set their own.
	answerTimeout = 60 * time.Second
	// idleTimeout frees the connection of a client that says nothing more.
	idleTimeout = 90 * time.Second
	// connectionsMax keeps a flood of connections from taking every descriptor (the unit allows 65536);
	// those beyond it wait in the kernel's queue.
	connectionsMax = 10_000
	// requestsDrainMax: requests in hand may end by themselves for this long at a stop; those that wait
	// for an outcome upstream are then told what is known.
	requestsDrainMax = 8 * time.Second
	// requestsAbortMax: time to write those last answers.
	requestsAbortMax = 2 * time.Second
)

// listener is the HTTP side of the box: open from ready until told to stop.
type listener struct {
	net     net.Listener
	server  *http.Server
	leave   func()             // ends requests that wait by intention
	abort   context.CancelFunc // ends the contexts of requests in hand
	address string             // what this machine's own clients dial, such as http://127.0.0.1:8080
	pin     string             // hex SHA-256 of the TLS certificate, "" without TLS
}

// listen binds the address. Connections queue in the kernel until serve is called. leave is called when the
// stop begins: it ends what would otherwise wait for longer than a stop may take.
func listen(c *Config, handler http.Handler, leave func(), log *slog.Logger) (*listener, error) {
	base, abort := context.WithCancel(context.Background())
	l := &listener{leave: leave, abort: abort, server: &http.Server{
		Handler:           handler,
		MaxHeaderBytes:    headerBytesMax,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		BaseContext:       func(net.Listener) context.Context { return base },
		// A port scanner must not fill the log.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// What net/http answers by itself, `OPTIONS *`, it answers to any Host.
		DisableGeneralOptionsHandler: true,
	}}
	// HTTP/1.1 only, until the toolchain carries the newest HTTP/2 fixes (RELIABILITY.md).
	l.server.Protocols = new(http.Protocols)
	l.server.Protocols.SetHTTP1(true)

	scheme := "http"
	if c.TLSCert != "" {
		if err := private(c.TLSKey); err != nil {
			abort()
			return nil, fmt.Errorf("tls-key: %w", err)
		}
		pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			abort()
			return nil, hint(fmt.Errorf("tls-cert: %w", err), "both files must be PEM and belong together")
		}
		l.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		l.pin = certificateFingerprint(pair.Certificate[0])
		scheme = "https"
	}
	bound, err := net.Listen("tcp", c.Listen)
	if err != nil {
		abort()
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, hint(fmt.Errorf("address %s is in use", c.Listen), "stop what listens there, or choose another with --listen")
		case errors.Is(err, syscall.EACCES):
			return nil, hint(err, "ports below 1024 need a privilege; choose another with --listen")
		}
		return nil, hint(err, "write an address of this machine as host:port with --listen")
	}
	l.net = netutil.LimitListener(bound, connectionsMax)
	l.address = scheme + "://" + dialable(bound.Addr().String())
	return l, nil
}

// dialable turns a bound address into one that this machine can dial: a wildcard means loopback.
func dialable(bound string) string {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return bound
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// serve answers until stop is called.
func (l *listener) serve() error {
	var err error
	if l.server.TLSConfig != nil {
		err = l.server.ServeTLS(l.net, "", "")
	} else {
		err = l.server.Serve(l.net)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// stop accepts no more and finishes the requests in hand: first by themselves, then by ending their
// contexts, then by closing what is left.
func (l *listener) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), requestsDrainMax)
	defer cancel()
	l.leave()
	err := l.server.Shutdown(ctx)
	l.abort()
	if err == nil {
		return
	}
	ctx, cancel = context.WithTimeout(context.Background(), requestsAbortMax)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		_ = l.server.Close()
	}
}

// close releases the address of a listener that never served.
func (l *listener) close() error {
	l.abort()
	_ = l.net.Close() // already closed after stop
	return nil
}
