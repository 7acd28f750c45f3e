package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/shards"
)

// posts makes requests out of their begin and end, in milliseconds, and their status.
func posts(all ...[3]int) (out []blackbox.Post) {
	zero := time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC)
	for i, p := range all {
		out = append(out, blackbox.Post{At: zero.Add(time.Duration(p[0]) * time.Millisecond), Took: time.Duration(p[1]-p[0]) * time.Millisecond, Status: p[2], Payment: string(rune('a' + i/2))})
	}
	return out
}

func TestPeakAndExtent(t *testing.T) {
	some := posts([3]int{5, 20, 200}, [3]int{0, 10, 200}, [3]int{10, 30, 200}, [3]int{30, 31, 200}, [3]int{20, 25, 200})
	if got := peak(some); got != 2 {
		t.Errorf("%d at once, want 2: what ends as another begins is not open beside it", got)
	}
	if first, last := extent(some); last.Sub(first) != 31*time.Millisecond || !first.Equal(some[1].At) {
		t.Errorf("from %s to %s", first, last)
	}
	if peak(nil) != 0 {
		t.Error("a peak of nothing")
	}
}

func TestKeptOf(t *testing.T) {
	some := posts([3]int{0, 10, 200}, [3]int{500, 510, 429}, [3]int{1000, 1010, 200}, [3]int{1500, 1510, 429}, [3]int{1600, 2000, 200}, [3]int{1700, 1710, 0})
	if got := keptOf(some, 0); got.taken != 3 || got.refused != 2 || got.took != 2*time.Second || got.part(2) != 0.75 || got.refusals() != 0.4 {
		t.Errorf("in all: %+v", got)
	}
	if got := keptOf(some, time.Second); got.taken != 2 || got.refused != 1 || got.took != time.Second {
		t.Errorf("after a second: %+v", got)
	}
}

// An intent is two requests of one payment.
func TestOwnTime(t *testing.T) {
	if got := ownTime(posts([3]int{0, 20, 200}, [3]int{30, 40, 200}, [3]int{0, 30, 200}, [3]int{40, 60, 200}, [3]int{0, 90, 200})); got != 50*time.Millisecond {
		t.Errorf("%s, want the median of 30, 50 and 90 ms", got)
	}
}

func TestSpread(t *testing.T) {
	for want, vs := range map[string][]float64{"2.0 (1.0–3.0)": {3, 1, 2}, "2.0": {2}, "0.0": nil} {
		if got := spread("%.1f", vs); got != want {
			t.Errorf("%v: %s, want %s", vs, got, want)
		}
	}
}

// Requests that are spaced take their time from when they were due, whatever held up the one before.
func TestSpacedRequestsCountTheirWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := load{want: payment("plain"), connections: 2, every: 100 * time.Millisecond}
		line := newLine(&slowServer{first: 250 * time.Millisecond}, l, 1)
		if err := line.ask(time.Now(), 400*time.Millisecond, nil); err != nil {
			t.Fatal(err)
		}
		// Due at 50, 150, 250 and 350 ms; the first is answered at 300, and with it those that were due meanwhile.
		want := []time.Duration{250 * time.Millisecond, 150 * time.Millisecond, 50 * time.Millisecond, 0}
		if len(line.latencies) != len(want) {
			t.Fatalf("%v", line.latencies)
		}
		for i := range want {
			if line.latencies[i] != want[i] {
				t.Errorf("request %d took %s, want %s", i, line.latencies[i], want[i])
			}
		}
	})
}

func TestStallsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := watchStalls(50 * time.Millisecond)
		time.Sleep(time.Second)
		if n := count(); n != 0 {
			t.Errorf("%d stalls of a process that had none", n)
		}
	})
}

func TestCopyIsAnotherPayment(t *testing.T) {
	const tenant, old = "default", "pay_01J00000000000000000000000"
	created := time.Date(2030, 1, 2, 3, 4, 5, 678e6, time.UTC).UnixMilli()
	p := &pattern{tenant: tenant, id: old, key: "k", upstream: "ch_sim1", createdAt: created, settledAt: created + 1000}
	at := time.UnixMilli(created).Add(-time.Hour)
	c := newCopy(p, "kept-1", at, testRandom())
	if c.slot != shards.SlotOf(tenant, "key\x00kept-1") || c.newID == old || len(c.newID) != len(old) {
		t.Errorf("slot %d, id %s", c.slot, c.newID)
	}
	got := c.of(&row{table: "attempts", columns: []string{"record", "upstream_key", "started_at", "n", "evidence"},
		values: []any{old, old + ":confirm", created, int64(1), `{"id":"ch_sim1"}`}})
	if got.text("record") != c.newID || got.text("upstream_key") != c.newID+":confirm" || got.value("n") != int64(1) || got.value("started_at") != at.UnixMilli() ||
		strings.Contains(got.text("evidence"), "sim1") {
		t.Errorf("%v", got.values)
	}
	event := c.of(&row{table: "journal", columns: []string{"subject", "data"},
		values: []any{old, `{"id":"` + old + `","created_at":"2030-01-02T03:04:05.678Z","settled_at":"2030-01-02T03:04:06.678Z"}`}})
	if want := `{"id":"` + c.newID + `","created_at":"2030-01-02T02:04:05.678Z","settled_at":"2030-01-02T02:04:06.678Z"}`; event.text("data") != want {
		t.Errorf("%s, want %s", event.text("data"), want)
	}
	p.user = true
	if other := newCopy(p, "kept-2", at, testRandom()); other.slot != 0 {
		t.Errorf("a user's payment went to slot %d", other.slot)
	}
}

func testRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// slowServer answers each request with a payment, the first one after a time.
type slowServer struct {
	net.Conn
	first time.Duration
	out   bytes.Buffer
}

func (s *slowServer) Write(b []byte) (int, error) {
	held := time.NewTimer(s.first)
	<-held.C
	s.first = 0
	s.out.WriteString("HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n" + `{"status":"pending"}`)
	return len(b), nil
}

func (s *slowServer) Read(b []byte) (int, error) {
	n, err := s.out.Read(b)
	if err == io.EOF {
		err = nil
	}
	return n, err
}
