package bus

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestServerLogNeitherExitsNorFloods(t *testing.T) {
	var out bytes.Buffer
	l := newLogger(slog.New(slog.NewTextHandler(&out, nil)))
	l.Fatalf("Can't start JetStream: %v", "first")
	l.Fatalf("later")
	if got := l.fatal(); got != "Can't start JetStream: first" {
		t.Errorf("reason %q", got)
	}
	for range 10 * logBurst {
		l.Errorf("authentication error - User %q", "x\ny")
	}
	l.Debugf("payload %s", "secret")
	l.Tracef("payload %s", "secret")
	if n := strings.Count(out.String(), "\n"); n > logBurst+1 {
		t.Errorf("%d lines written", n)
	}
	if strings.Contains(out.String(), "secret") {
		t.Error("payload in the log")
	}
}

func TestFaultLines(t *testing.T) {
	for line, want := range map[string]error{
		"JetStream stream '$G > EVENTS' critical write error: write 1.blk: no space left on device": ErrFull,
		"JetStream stream '$G > EVENTS' critical write error: sync 1.blk: input/output error":       ErrDown,
		"JetStream out of File resources, will be DISABLED":                                         ErrFull,
		"Filesystem permission denied while writing msg, disabling JetStream: open 2.blk":           ErrDown,
		`127.0.0.1:1 - cid:7 - authentication error - User "critical"`:                              nil,
		"JetStream resource limits exceeded for server":                                             nil,
	} {
		if got := faultIn(line); !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}
