package simulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/sourcegraph/conc/panics"
)

const (
	headerTimeout  = 10 * time.Second
	headerBytesMax = 16 << 10
)

// Start listens on address ("127.0.0.1:0" picks a port), serves until Close, and returns the base URL.
func (s *Simulator) Start(address string) (url string, err error) {
	s.listenMu.Lock()
	defer s.listenMu.Unlock()
	switch {
	case s.isClosed:
		return "", errors.New("simulator: closed")
	case s.server != nil:
		return "", errors.New("simulator: already started")
	}
	bound, release, err := holdPort(address)
	if err != nil {
		return "", fmt.Errorf("simulator: %w", err)
	}
	l, err := net.Listen("tcp", bound)
	if err != nil {
		release()
		return "", fmt.Errorf("simulator: %w", err)
	}
	s.release = release
	s.address = l.Addr().String()
	s.serve(l)
	return "http://" + s.address, nil
}

// serve starts a server on l. The caller holds listenMu.
func (s *Simulator) serve(l net.Listener) {
	s.listener = l
	server := &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: headerBytesMax}
	s.server = server
	s.serving.Go(func() {
		err := panics.Try(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				s.o.Logger.Error("simulator stopped serving", "error", err)
			}
		}).AsError()
		if err != nil {
			s.o.Logger.Error("simulator panicked", "error", err)
		}
	})
}

// Cut cuts the line, or restores it. Of a simulator that was started, the listener and all connections are
// closed, so that the operating system refuses a dial; the port stays reserved. Otherwise, and through /_control,
// each connection is closed as its request arrives. What is being worked on takes effect nevertheless.
func (s *Simulator) Cut(cut bool) error {
	s.listenMu.Lock()
	defer s.listenMu.Unlock()
	s.mu.Lock()
	was := s.cut
	s.cut = cut
	s.mu.Unlock()
	if s.server == nil || s.isClosed || was == cut {
		return nil
	}
	if cut {
		// The server does not know its listener before its goroutine runs.
		if err := s.listener.Close(); err != nil {
			return err
		}
		return s.closeServer()
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return fmt.Errorf("simulator: listen again: %w", err)
	}
	s.serve(l)
	return nil
}

// closeServer ends the server and its connections. Its listener may be closed already.
func (s *Simulator) closeServer() error {
	if err := s.server.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Close stops serving and ends all requests, also those that hang. A second Close does nothing.
func (s *Simulator) Close() error {
	s.listenMu.Lock()
	defer s.listenMu.Unlock()
	if s.isClosed {
		return nil
	}
	s.isClosed = true
	close(s.closed)
	var err error
	if s.server != nil {
		err = s.closeServer()
	}
	if s.release != nil {
		s.release()
	}
	s.serving.Wait()
	return err
}

// Run starts on address, calls started with the URL, and closes when ctx ends.
func (s *Simulator) Run(ctx context.Context, address string, started func(url string)) error {
	url, err := s.Start(address)
	if err != nil {
		return err
	}
	started(url)
	<-ctx.Done()
	return s.Close()
}
