package webhook

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Line is what is known of the box's own line to the internet.
type Line int

const (
	// LineUnknown: nobody watches it.
	LineUnknown Line = iota
	// LineUp: an endpoint that cannot be reached has failed.
	LineUp
	// LineDown: it is no wonder that an endpoint cannot be reached.
	LineDown
)

// excused reports a request without an answer that is not the endpoint's failure, but the box's own line's.
func excused(line Line, lan, connected bool, err error) bool {
	switch {
	case lan: // it needs no line; only the cable may be out
		return !connected && (errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ENETDOWN))
	case line == LineUnknown:
		return !connected && noRoute(err)
	default:
		return line == LineDown
	}
}

// noRoute reports a dial that ended before it could leave: no route, or no resolver to ask.
func noRoute(err error) bool {
	for _, no := range []syscall.Errno{syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EHOSTUNREACH, syscall.EHOSTDOWN} {
		if errors.Is(err, no) {
			return true
		}
	}
	var dns *net.DNSError
	return errors.As(err, &dns) && !dns.IsNotFound && (dns.IsTimeout || dns.IsTemporary)
}

// isTimeout reports an attempt that ended because its time was over.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// explain says what kept a request from its answer, for a tenant: without the URL, whose path or query may hold a token, and without
// addresses of the box's network, and without anything of what came.
func explain(err error, connected bool) error {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.Is(err, errAddress):
		return fmt.Errorf("the URL's host is %w", errAddress)
	case errors.As(err, &dns) && dns.IsNotFound:
		return errors.New("the URL's host is not known by that name")
	case errors.As(err, &dns):
		return errors.New("the name of the URL's host could not be looked up")
	case isTimeout(err) && !connected:
		return errors.New("no connection in time")
	case isTimeout(err):
		return fmt.Errorf("no answer within %v", requestTimeout)
	case errors.As(err, &certificate):
		return fmt.Errorf("its certificate is not valid: %w", certificate.Err)
	case errors.As(err, &record):
		return errors.New("it does not speak https")
	case errors.As(err, &op):
		return fmt.Errorf("connection failed: %w", op.Err) // op itself names addresses
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it closed the connection without an answer")
	default: // what net/http says may quote what came
		return errors.New("no answer that could be understood")
	}
}

// millis is a duration as people read it.
func millis(d time.Duration) string { return d.Round(time.Millisecond).String() }
