package bus

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"
)

// listen subscribes and answers the ids of the events that come.
func listen(t *testing.T, b *Bus, ctx context.Context, subject string) (ids <-chan string, stop func()) {
	t.Helper()
	ch := make(chan string, 4096)
	stop, err := b.Subscribe(ctx, subject, func(_ string, data []byte) {
		var e Event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Error(err)
		}
		ch <- e.ID
		if e.Type == "test.panic" {
			panic("of the test")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return ch, stop
}

func wantIDs(t *testing.T, ids <-chan string, ms []Message) {
	t.Helper()
	for _, m := range ms {
		select {
		case id := <-ids:
			if id != m.Event.ID {
				t.Fatalf("got %s, want %s", id, m.Event.ID)
			}
		case <-time.After(patience):
			t.Fatalf("%s did not come", m.Event.ID)
		}
	}
}

func TestSubscriberHearsWhatIsPublishedFromNowOn(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	publish(t, b, messages("1/0", 1, 3))
	ctx, cancel := context.WithCancel(t.Context())
	all, _ := listen(t, b, t.Context(), "evt.>")
	stopped, stop := listen(t, b, t.Context(), "evt.default.>")
	ended, _ := listen(t, b, ctx, "evt.default.>")
	none, _ := listen(t, b, t.Context(), "evt.other.>")

	ms := messages("1/0", 4, 100)
	ms[50].Event.Type = "test.panic" // a subscriber's panic is its own
	publish(t, b, ms)
	for _, ids := range []<-chan string{all, stopped, ended} {
		wantIDs(t, ids, ms)
	}
	stop()
	stop()
	cancel()
	ms = messages("1/0", 104, 5)
	publish(t, b, ms)
	wantIDs(t, all, ms)
	if len(stopped) > 0 || len(none) > 0 {
		t.Errorf("%d after stop, %d for another tenant", len(stopped), len(none))
	}
}

func TestSubscriptionOutlivesAReset(t *testing.T) {
	b := open(t, Options{Dir: filepath.Join(t.TempDir(), "bus")})
	ids, _ := listen(t, b, t.Context(), "evt.default.>")
	ms := messages("1/0", 1, 3)
	publish(t, b, ms)
	wantIDs(t, ids, ms)
	if err := b.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It is back after a moment of its own; what is published until then is not heard.
	deadline := time.After(patience)
	for n := uint64(4); ; n++ {
		publish(t, b, messages("1/0", n, 1))
		select {
		case <-ids:
			return
		case <-deadline:
			t.Fatal("the subscription did not come back")
		default:
		}
	}
}

func TestSubscribingWhileTheBusIsDown(t *testing.T) {
	b := open(t, Options{Dir: filepath.Join(t.TempDir(), "bus"), MinFree: 1 << 60})
	ids, _ := listen(t, b, t.Context(), "evt.>")
	b.free = func(string) (int64, error) { return 1 << 60, nil }
	if err := b.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(patience)
	for n := uint64(1); ; n++ {
		publish(t, b, messages("1/0", n, 1))
		select {
		case <-ids:
			return
		case <-deadline:
			t.Fatal("nothing is heard")
		default:
		}
	}
}
