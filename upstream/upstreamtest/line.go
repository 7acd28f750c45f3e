// Package upstreamtest gives tests a line between an account and a processor that exists in memory only, so that
// both ends and everything between fit into a testing/synctest bubble: no port, no real time, and a line that goes
// down in the way that the test says.
//
// Line is its one type. It lives as long as its test; nothing survives a crash.
package upstreamtest

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/sourcegraph/conc/panics"
)

// URL is the base URL to use with a Line; it is never resolved.
const URL = "http://processor.test"

// Mode is what the line does.
type Mode int

// The modes of a line. Each change but that to Up ends or silences the connections that are open.
const (
	Up        Mode = iota
	Refused        // dials are refused, open connections are cut
	BlackHole      // dials and open connections stay silent for ever
)

// Line connects Dial with a server of the handler.
type Line struct {
	server *http.Server
	conns  chan net.Conn
	done   chan struct{}
	once   sync.Once

	mu    sync.Mutex // guards what follows; a leaf
	mode  Mode
	open  map[*lineConn]bool
	dials int
}

// NewLine serves h until the test ends. In a bubble, it must be made inside.
func NewLine(t testing.TB, h http.Handler) *Line {
	t.Helper()
	l := &Line{conns: make(chan net.Conn), done: make(chan struct{}), open: map[*lineConn]bool{}}
	l.server = &http.Server{Handler: h}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := panics.Try(func() { l.server.Serve(l) }).AsError(); err != nil {
			t.Errorf("upstreamtest: %v", err)
		}
	})
	t.Cleanup(func() {
		l.server.Close()
		l.Close()
		serving.Wait()
	})
	return l
}

// Set changes what the line does.
func (l *Line) Set(m Mode) {
	l.mu.Lock()
	l.mode = m
	var cut []*lineConn
	for c := range l.open {
		switch m {
		case Refused:
			cut = append(cut, c)
		case BlackHole:
			c.silence()
		}
	}
	l.mu.Unlock()
	for _, c := range cut {
		c.Close()
	}
}

// Dials returns how often a connection was asked for.
func (l *Line) Dials() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dials
}

// Dial is for upstream.Config.Dial and http.Transport.DialContext.
func (l *Line) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	c := &lineConn{Conn: near, line: l, silent: make(chan struct{}), closed: make(chan struct{})}
	l.mu.Lock()
	l.dials++
	mode := l.mode
	if mode == Up { // from here on a change of the line finds it
		l.open[c] = true
	}
	l.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	switch mode {
	case Refused:
		return nil, refused
	case BlackHole:
		select { // a dial outlives the request that it was begun for
		case <-ctx.Done():
		case <-l.done:
		}
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}
	}
	select {
	case l.conns <- far:
		return c, nil
	case <-l.done:
		c.Close()
		return nil, refused
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
}

// Accept, Close and Addr make a Line the server's net.Listener.
func (l *Line) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends the listener.
func (l *Line) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is a made-up address.
func (l *Line) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

// lineConn is the client's end. Silenced, it swallows what is written and never has anything to read.
type lineConn struct {
	net.Conn
	line   *Line
	silent chan struct{}
	quiet  sync.Once
	closed chan struct{}
	once   sync.Once
}

func (c *lineConn) silence() { c.quiet.Do(func() { close(c.silent) }) }

func (c *lineConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.silent:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *lineConn) Write(p []byte) (int, error) {
	select {
	case <-c.silent:
		return len(p), nil
	default:
		return c.Conn.Write(p)
	}
}

func (c *lineConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.line.mu.Lock()
	delete(c.line.open, c)
	c.line.mu.Unlock()
	return c.Conn.Close()
}
