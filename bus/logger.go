package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// logBurst and logEvery bound what the server may write to the log: strangers on the
// TCP port make it write a line each.
const (
	logBurst = 20
	logEvery = time.Second
)

// logger takes the server's lines. The server's own logger ends the process at
// Fatalf; this one remembers the reason. A failed write is told nowhere but in an error line,
// so these are read.
type logger struct {
	log   *slog.Logger
	limit *rate.Limiter

	mu       sync.Mutex // guards what follows
	fatalMsg string
	fault    error
	tell     func(error)
	withheld int
}

func newLogger(l *slog.Logger) *logger {
	return &logger{log: l.With("from", "nats"), limit: rate.NewLimiter(rate.Every(logEvery), logBurst)}
}

// Noticef is the server's chatter about starting and stopping.
func (l *logger) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Warnf passes a warning on.
func (l *logger) Warnf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }

// Errorf passes an error on, and tells the bus of one after which the stream takes no more.
func (l *logger) Errorf(format string, v ...any) {
	l.write(slog.LevelError, format, v)
	if reason := faultIn(fmt.Sprintf(format, v...)); reason != nil {
		l.mu.Lock()
		if l.fault == nil {
			l.fault = reason
		}
		tell := l.tell
		l.mu.Unlock()
		if tell != nil {
			tell(reason)
		}
	}
}

// Fatalf keeps the reason for fatal; the caller, inside the server, returns after it.
func (l *logger) Fatalf(format string, v ...any) {
	l.write(slog.LevelError, format, v)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatalMsg == "" {
		l.fatalMsg = fmt.Sprintf(format, v...)
	}
}

// Debugf and Tracef are off in the server; they could hold payloads.
func (l *logger) Debugf(string, ...any) {}

// Tracef see Debugf.
func (l *logger) Tracef(string, ...any) {}

func (l *logger) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatalMsg
}

// onFault has fn told of a fault, also of one that came before.
func (l *logger) onFault(fn func(error)) {
	l.mu.Lock()
	l.tell = fn
	fault := l.fault
	l.mu.Unlock()
	if fault != nil {
		fn(fault)
	}
}

func (l *logger) write(level slog.Level, format string, v []any) {
	if !l.limit.Allow() {
		l.mu.Lock()
		l.withheld++
		l.mu.Unlock()
		return
	}
	l.mu.Lock()
	n := l.withheld
	l.withheld = 0
	l.mu.Unlock()
	attrs := []any{"line", strings.TrimSpace(fmt.Sprintf(format, v...))}
	if n > 0 {
		attrs = append(attrs, "withheld", n)
	}
	l.log.Log(context.Background(), level, "nats server", attrs...)
}

// faultIn reads an error line of nats-server 2.15: after these the stream answers nothing any more.
func faultIn(line string) error {
	switch {
	case strings.Contains(line, "critical write error"),
		strings.Contains(line, "will be DISABLED"),
		strings.Contains(line, "disabling JetStream"):
	default:
		return nil
	}
	if strings.Contains(line, syscall.ENOSPC.Error()) || strings.Contains(line, syscall.EDQUOT.Error()) ||
		strings.Contains(line, "out of") {
		return fmt.Errorf("%w: %w", ErrFull, errors.New(line))
	}
	return fmt.Errorf("%w: %w", ErrDown, errors.New(line))
}
