package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashDirEnv) != "" {
		publishUntilKilled()
		return
	}
	// A batch that is on its way when the server is shut down keeps the goroutine of its staging file: the server's own.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*msgBlock).flushLoop"))
}

// open answers a bus that is closed with the test.
func open(t testing.TB, o Options) *Bus {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// reopen closes the bus and opens its folder again.
func reopen(t testing.TB, b *Bus, o Options) *Bus {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

var nextID atomic.Uint64

// messages makes n messages of one origin, from sequence first on, with ids that no other test has.
func messages(origin string, first uint64, n int) []Message {
	ms := make([]Message, n)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range ms {
		ms[i] = Message{Origin: origin, Seq: first + uint64(i), Event: Event{
			ID: fmt.Sprintf("evt_%026d", nextID.Add(1)), Tenant: "default", Type: "payment.created",
			Subject: "pay_01JNZ8T6Q0W3D2C4B5A697887Z", Time: at, RecordedTime: at, Sequence: "000001.0000.0000000042",
			Data: json.RawMessage(`{"amount":1999,"currency":"usd","status":"pending"}`),
		}}
	}
	return ms
}

func publish(t testing.TB, b *Bus, ms []Message) uint64 {
	t.Helper()
	seq, err := b.Publish(t.Context(), ms)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func wantTail(t testing.TB, b *Bus, after uint64, want map[string]uint64, wantSeq uint64) {
	t.Helper()
	got, seq, err := b.Tail(t.Context(), after)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" || seq != wantSeq {
		t.Fatalf("Tail(%d) ends at %d, want %d, and differs (-want +got):\n%s", after, seq, wantSeq, diff)
	}
}

func TestPublishedMessagesAreThereAfterReopening(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	if !b.Recreated() {
		t.Error("a new stream does not say that it was created")
	}
	wantTail(t, b, 0, map[string]uint64{}, 0)

	for i, want := range []struct {
		ms  []Message
		seq uint64
	}{
		{messages("1/0", 1, 1), 1},
		{messages("1/0", 2, 2), 3},
		{append(messages("1/1", 7, 3), messages("1/0", 4, 996)...), 1002},
	} {
		if seq := publish(t, b, want.ms); seq != want.seq {
			t.Errorf("batch %d ends at sequence %d, want %d", i, seq, want.seq)
		}
	}
	if s := b.State(); s.First != 1 || s.Last != 1002 || s.Messages != 1002 || s.Bytes == 0 {
		t.Errorf("state %+v", s)
	}

	b = reopen(t, b, o)
	if b.Recreated() {
		t.Error("a recovered stream says that it was created")
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 999, "1/1": 9}, 1002)
	wantTail(t, b, 3, map[string]uint64{"1/0": 999, "1/1": 9}, 1002)
	wantTail(t, b, 6, map[string]uint64{"1/0": 999}, 1002)
	wantTail(t, b, 1002, map[string]uint64{}, 1002)
	if seq := publish(t, b, messages("1/1", 10, 5)); seq != 1007 {
		t.Errorf("sequence %d after reopening, want 1007", seq)
	}
}

func TestNothingToPublishAnswersTheLastSequence(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir(), FirstSeq: 41})
	if seq := publish(t, b, nil); seq != 40 {
		t.Errorf("sequence %d, want 40", seq)
	}
}

func TestDuplicateIsRejectedWithItsBatch(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	known := messages("1/0", 1, 3)
	publish(t, b, known)
	for name, ms := range map[string][]Message{
		"alone":              known[1:2],
		"last of a batch":    append(messages("1/0", 4, 2), known[0]),
		"first of a batch":   append(known[2:3:3], messages("1/0", 4, 20)...),
		"twice in one batch": func() []Message { ms := messages("1/0", 4, 2); return append(ms, ms[0]) }(),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := b.Publish(t.Context(), ms); !errors.Is(err, ErrDuplicate) {
				t.Fatalf("error %v, want ErrDuplicate", err)
			}
			if err := b.Err(); err != nil {
				t.Errorf("bus is out of order: %v", err)
			}
			wantTail(t, b, 0, map[string]uint64{"1/0": 3}, 3)
		})
	}
	publish(t, b, messages("1/0", 4, 2))
}

func TestInvalidMessageIsNamedAndNothingStored(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	long := func(n int) string { return string(make([]byte, n)) }
	for name, spoil := range map[string]func(*Message){
		"no tenant":            func(m *Message) { m.Event.Tenant = "" },
		"wildcard tenant":      func(m *Message) { m.Event.Tenant = "*" },
		"tenant of two tokens": func(m *Message) { m.Event.Tenant = "a.b" },
		"no type":              func(m *Message) { m.Event.Type = "" },
		"wildcard in type":     func(m *Message) { m.Event.Type = "payment.>" },
		"empty token":          func(m *Message) { m.Event.Type = "payment..created" },
		"dot at the end":       func(m *Message) { m.Event.Type = "payment." },
		"command in type":      func(m *Message) { m.Event.Type = "x 0\r\n\r\nPUB $JS.API.STREAM.DELETE.EVENTS 0\r\n" },
		"no id":                func(m *Message) { m.Event.ID = "" },
		"header in id":         func(m *Message) { m.Event.ID = "evt_1\r\nNats-Rollup: all" },
		"long id":              func(m *Message) { m.Event.ID = long(idMax + 1) },
		"space in origin":      func(m *Message) { m.Origin = "1 0" },
		"no origin":            func(m *Message) { m.Origin = "" },
		"too large":            func(m *Message) { m.Event.Data = json.RawMessage(`"` + long(payloadMax) + `"`) },
	} {
		t.Run(name, func(t *testing.T) {
			ms := messages("1/0", 1, 3)
			spoil(&ms[1])
			_, err := b.Publish(t.Context(), ms)
			var bad *MessageError
			if !errors.As(err, &bad) || !errors.Is(err, ErrInvalid) || bad.Index != 1 {
				t.Fatalf("error %v, want a MessageError about message 1", err)
			}
			if s := b.State(); s.Messages != 0 {
				t.Errorf("%d messages stored", s.Messages)
			}
		})
	}
	if _, err := b.Publish(t.Context(), messages("1/0", 1, BatchMax+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v for a batch too long, want ErrInvalid", err)
	}
}

func TestLargeEventsAreSplitIntoBatches(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	ms := messages("1/0", 1, 40)
	for i := range ms {
		data := make([]byte, 1<<20)
		for j := range data {
			data[j] = 'x'
		}
		data[0], data[len(data)-1] = '"', '"'
		ms[i].Event.Data = data
	}
	if seq := publish(t, b, ms); seq != 40 {
		t.Errorf("sequence %d, want 40", seq)
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 40}, 40)
}

func TestEndedContext(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Publish(ctx, messages("1/0", 1, 2)); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("Publish: %v", err)
	}
	if _, err := b.Subscribe(ctx, "evt.>", func(string, []byte) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("Subscribe: %v", err)
	}
	if err := b.Reset(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Reset: %v", err)
	}
	if _, err := Open(ctx, Options{Dir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open: %v", err)
	}
	wantTail(t, b, 0, map[string]uint64{}, 0)
}

func TestClosed(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	publish(t, b, messages("1/0", 1, 2))
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Publish(t.Context(), messages("1/0", 3, 1))
	_, _, tailErr := b.Tail(t.Context(), 0)
	_, subErr := b.Subscribe(t.Context(), "evt.>", func(string, []byte) {})
	for what, err := range map[string]error{"Publish": err, "Tail": tailErr, "Subscribe": subErr, "Reset": b.Reset(t.Context()), "Err": b.Err()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", what, err)
		}
	}
	if s := b.State(); s.Last != 2 {
		t.Errorf("state of a closed bus %+v", s)
	}
}

func TestOldestEventsGoWhenTheStreamIsFull(t *testing.T) {
	o := Options{Dir: t.TempDir(), MaxBytes: 1 << 20}
	b := open(t, o)
	var last uint64
	for range 4 {
		last = publish(t, b, messages("1/0", last+1, 999))
	}
	s := b.State()
	if s.First == 1 || s.Bytes > 1<<20 || s.Last != 4*999 {
		t.Fatalf("state %+v", s)
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": last}, last)

	o.MaxBytes = 2 << 20 // a limit may change from start to start
	b = reopen(t, b, o)
	if b.Recreated() {
		t.Error("a stream that lost its oldest events was taken for broken")
	}
	publish(t, b, messages("1/0", last+1, 999))
	if s := b.State(); s.Bytes <= 1<<20 {
		t.Errorf("the new limit is not in force: %+v", s)
	}
}

func TestManyAtOnce(t *testing.T) {
	b := open(t, Options{Dir: filepath.Join(t.TempDir(), "bus")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	busy := func(do func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := do(); errors.Is(err, ErrClosed) {
					return
				} else if err != nil && !errors.Is(err, ErrDown) && !errors.Is(err, ErrUnknown) && !errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
			}
		})
	}
	var published atomic.Int64
	for origin := range 3 {
		busy(func() error {
			_, err := b.Publish(ctx, messages(fmt.Sprint("1/", origin), 1, 1+origin*20))
			if err == nil {
				published.Add(1)
			}
			return err
		})
	}
	busy(func() error { _, _, err := b.Tail(ctx, b.State().Last-min(b.State().Last, 10)); return err })
	busy(func() error { b.State(); b.Recreated(); b.Addr(); return b.Err() })
	busy(func() error {
		stop, err := b.Subscribe(ctx, "evt.>", func(string, []byte) {})
		if err == nil {
			stop()
		}
		return err
	})
	for round := range int64(4) {
		for published.Load() < 20*(round+1) && !t.Failed() {
			runtime.Gosched()
		}
		if err := b.Reset(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestWrongOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no folder":            {},
		"open to everyone":     {Dir: t.TempDir(), Listen: "127.0.0.1:0"},
		"negative age":         {Dir: t.TempDir(), MaxAge: -1},
		"address of elsewhere": {Dir: t.TempDir(), Listen: "203.0.113.1:4222", Authenticate: func(string, string) (string, bool) { return "", false }},
	} {
		t.Run(name, func(t *testing.T) {
			if b, err := Open(t.Context(), o); err == nil {
				t.Errorf("opened; closing: %v", b.Close())
			}
		})
	}
}
