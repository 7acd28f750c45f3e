package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// streamDir is where JetStream keeps the stream.
func streamDir(dir string) string {
	return filepath.Join(dir, "jetstream", "$G", "streams", streamName)
}

func brokenFolders(t testing.TB, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(dir + brokenMark + "*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func flipByte(t testing.TB, name string, find string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(data, []byte(find))
	if i < 0 {
		t.Fatalf("%s does not hold %q", name, find)
	}
	data[i] ^= 1
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

func TestBrokenFolderIsMovedAsideAndBegunAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string, ms []Message){
		"description damaged": func(t *testing.T, dir string, _ []Message) {
			flipByte(t, filepath.Join(streamDir(dir), "meta.inf"), "EVENTS")
		},
		"description missing": func(t *testing.T, dir string, _ []Message) {
			remove(t, filepath.Join(streamDir(dir), "meta.inf"))
		},
		"an event damaged in the middle": func(t *testing.T, dir string, ms []Message) {
			remove(t, filepath.Join(streamDir(dir), "msgs", "index.db")) // as after a crash
			flipByte(t, filepath.Join(streamDir(dir), "msgs", "1.blk"), ms[10].Event.ID)
		},
		"events cut off": func(t *testing.T, dir string, _ []Message) {
			if err := os.Truncate(filepath.Join(streamDir(dir), "msgs", "1.blk"), 100); err != nil {
				t.Fatal(err)
			}
		},
		"events missing": func(t *testing.T, dir string, _ []Message) {
			remove(t, filepath.Join(streamDir(dir), "msgs", "1.blk"))
		},
		"a file where a folder was": func(t *testing.T, dir string, _ []Message) {
			remove(t, filepath.Join(dir, "jetstream"))
			if err := os.WriteFile(filepath.Join(dir, "jetstream"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"the process died at it every time": func(t *testing.T, dir string, _ []Message) {
			for range startsMax {
				if crashed, err := countStart(dir); err != nil || crashed {
					t.Fatal(crashed, err)
				}
			}
		},
		"older than the cursor": func(t *testing.T, dir string, _ []Message) {
			old := open(t, Options{Dir: dir + "-old"})
			publish(t, old, messages("1/0", 1, 5))
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			remove(t, dir)
			if err := os.Rename(dir+"-old", dir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "bus [1]*"), FirstSeq: 201}
			b := open(t, Options{Dir: o.Dir})
			ms := messages("1/0", 1, 200)
			publish(t, b, ms)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, o.Dir, ms)

			b = open(t, o)
			if err := b.Err(); err != nil {
				t.Fatal(err)
			}
			if !b.Recreated() {
				t.Error("not created anew")
			}
			entries, err := os.ReadDir(filepath.Dir(o.Dir))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "bus [1]*"+brokenMark) }) {
				t.Errorf("nothing was moved aside: %v", entries)
			}
			wantTail(t, b, 200, map[string]uint64{}, 200)
			if seq := publish(t, b, ms); seq != 400 { // the same ids: refilled from the journal
				t.Errorf("sequence %d after refilling, want 400", seq)
			}
			b = reopen(t, b, o)
			if b.Recreated() {
				t.Error("created anew once more")
			}
			wantTail(t, b, 200, map[string]uint64{"1/0": 200}, 400)
		})
	}
}

func TestDeletedFolderIsAnEmptyStream(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	publish(t, b, messages("1/0", 1, 7))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	remove(t, o.Dir)
	o.FirstSeq = 8
	b = open(t, o)
	if !b.Recreated() || b.Err() != nil {
		t.Fatalf("recreated %v, error %v", b.Recreated(), b.Err())
	}
	if seq := publish(t, b, messages("1/0", 8, 1)); seq != 8 {
		t.Errorf("sequence %d, want 8", seq)
	}
	if found := brokenFolders(t, o.Dir); len(found) != 0 {
		t.Errorf("moved aside: %v", found)
	}
}

func TestDamageFoundWhileReadingTakesTheStreamOutOfUse(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	ms := messages("1/0", 1, 24)
	for i := range ms { // more than a block, for the last one is read at start
		ms[i].Event.Data = json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)
	}
	publish(t, b, ms)
	b = reopen(t, b, o)
	if err := os.Truncate(filepath.Join(streamDir(o.Dir), "msgs", "1.blk"), 100); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Tail(t.Context(), 0); !errors.Is(err, ErrDown) || !errors.Is(b.Err(), ErrDown) {
		t.Fatalf("Tail: %v, Err: %v, want ErrDown of both", err, b.Err())
	}
	if err := b.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if seq := publish(t, b, ms); seq != 48 {
		t.Errorf("sequence %d, want 48", seq)
	}
}

func TestFolderDeletedUnderARunningBus(t *testing.T) {
	for _, n := range []int{1, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
			b := open(t, o)
			publish(t, b, messages("1/0", 1, 9))
			remove(t, o.Dir)
			if _, err := b.Publish(t.Context(), messages("1/0", 10, n)); err == nil {
				t.Fatal("published into nowhere")
			}
			for b.Err() == nil { // a refusal is believed after a few
				if _, err := b.Publish(t.Context(), messages("1/0", 10, n)); err == nil {
					t.Fatal("published into nowhere")
				}
			}
			if !errors.Is(b.Err(), ErrDown) {
				t.Fatalf("Err: %v, want ErrDown", b.Err())
			}
			if _, err := b.Publish(t.Context(), messages("1/0", 10, n)); !errors.Is(err, ErrDown) {
				t.Errorf("Publish: %v, want ErrDown", err)
			}
			if s := b.State(); s.Last < 9 {
				t.Errorf("state %+v", s)
			}
			if err := b.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !b.Recreated() || b.Err() != nil {
				t.Fatalf("recreated %v, error %v", b.Recreated(), b.Err())
			}
			if seq := publish(t, b, messages("1/0", 1, 9)); seq < 18 {
				t.Errorf("sequence %d, used before", seq)
			}
		})
	}
}

func TestStreamThatRefusesEveryBatchIsReset(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	publish(t, b, messages("1/0", 1, 1))
	if err := os.WriteFile(filepath.Join(streamDir(o.Dir), "batches"), nil, 0o600); err != nil { // batches are staged in a folder of this name
		t.Fatal(err)
	}
	for i := range refusalsMax {
		if err := b.Err(); err != nil {
			t.Fatalf("given up after %d refusals: %v", i, err)
		}
		if _, err := b.Publish(t.Context(), messages("1/0", 2, 2)); !errors.Is(err, ErrDown) {
			t.Fatalf("Publish: %v, want ErrDown", err)
		}
	}
	if !errors.Is(b.Err(), ErrDown) {
		t.Fatalf("Err: %v, want ErrDown", b.Err())
	}
	if err := b.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if seq := publish(t, b, messages("1/0", 2, 2)); seq != 3 {
		t.Errorf("sequence %d, want 3", seq)
	}
}

func TestOnlyTheNewestBrokenFolderIsKept(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	o := Options{Dir: filepath.Join(t.TempDir(), "bus"), Now: func() time.Time { now = now.Add(time.Second); return now }}
	b := open(t, o)
	for i := range 3 {
		publish(t, b, messages("1/0", uint64(i+1), 1))
		if err := b.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if found := brokenFolders(t, o.Dir); len(found) != 1 || !strings.HasSuffix(found[0], "20260101T000003.000000000Z") {
		t.Errorf("kept: %v", found)
	}
	if seq := publish(t, b, messages("1/0", 4, 1)); seq != 4 {
		t.Errorf("sequence %d, want 4", seq)
	}
}

func TestFullDiskStopsPublishingUntilThereIsRoom(t *testing.T) {
	b := open(t, Options{Dir: t.TempDir()})
	publish(t, b, messages("1/0", 1, 3))
	measure := b.free
	b.free = func(string) (int64, error) { return DefaultMinFree - 1, nil }
	for _, n := range []int{1, 5} {
		if _, err := b.Publish(t.Context(), messages("1/0", 4, n)); !errors.Is(err, ErrFull) {
			t.Fatalf("Publish: %v, want ErrFull", err)
		}
	}
	if err := b.Reset(t.Context()); !errors.Is(err, ErrFull) || !errors.Is(b.Err(), ErrFull) {
		t.Errorf("Reset: %v, Err: %v, want ErrFull", err, b.Err())
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 3}, 3)
	b.free = measure
	if err := b.Err(); err != nil {
		t.Errorf("Err: %v although there is room", err)
	}
	if err := b.Reset(t.Context()); err != nil { // not needed, and no harm
		t.Errorf("Reset: %v", err)
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 3}, 3)
	publish(t, b, messages("1/0", 4, 5))
}

func TestFailedStartsAreNotCrashes(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	publish(t, b, messages("1/0", 1, 3))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	taken := o
	taken.Listen, taken.Authenticate = l.Addr().String(), func(string, string) (string, bool) { return "", false }
	for range startsMax + 1 {
		if _, err := Open(t.Context(), taken); !errors.Is(err, ErrListen) {
			t.Fatalf("error %v, want ErrListen", err)
		}
	}
	if b = open(t, o); b.Recreated() {
		t.Error("a good stream was given up")
	}
}

func TestFullDiskAtOpenLeavesTheFolderAlone(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
	b := open(t, o)
	publish(t, b, messages("1/0", 1, 3))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	full := o
	full.MinFree = 1 << 60
	b = open(t, full)
	if !errors.Is(b.Err(), ErrFull) || b.Recreated() {
		t.Fatalf("Err: %v, recreated %v", b.Err(), b.Recreated())
	}
	if _, _, err := b.Tail(t.Context(), 0); !errors.Is(err, ErrFull) {
		t.Errorf("Tail: %v, want ErrFull", err)
	}
	b.free = func(string) (int64, error) { return 1 << 60, nil }
	if err := b.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.Recreated() {
		t.Error("a good stream was given up")
	}
	wantTail(t, b, 0, map[string]uint64{"1/0": 3}, 3)
}

// The server tells of a failed write in its log only. Its lines are these (nats-server 2.15.2, stream.go).
func TestFailedWriteIsReadFromTheLog(t *testing.T) {
	for _, test := range []struct {
		errno syscall.Errno
		want  error
		anew  bool
	}{
		{syscall.ENOSPC, ErrFull, false},
		{syscall.EIO, ErrDown, true},
	} {
		t.Run(test.errno.Error(), func(t *testing.T) {
			o := Options{Dir: filepath.Join(t.TempDir(), "bus")}
			b := open(t, o)
			publish(t, b, messages("1/0", 1, 3))
			b.in.log.Errorf("JetStream stream '%s > %s' critical write error: %v", "$G", streamName,
				&os.PathError{Op: "write", Path: "1.blk", Err: test.errno})
			if !errors.Is(b.Err(), test.want) {
				t.Fatalf("Err: %v, want %v", b.Err(), test.want)
			}
			if _, err := b.Publish(t.Context(), messages("1/0", 4, 1)); !errors.Is(err, test.want) {
				t.Errorf("Publish: %v, want %v", err, test.want)
			}
			if err := b.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if b.Recreated() != test.anew {
				t.Errorf("recreated %v, want %v", b.Recreated(), test.anew)
			}
			publish(t, b, messages("1/0", 4, 1))
		})
	}
}

func TestJetStreamThatShutItselfDown(t *testing.T) {
	b := open(t, Options{Dir: filepath.Join(t.TempDir(), "bus")})
	publish(t, b, messages("1/0", 1, 3))
	if err := b.in.srv.ShutdownJetStream(); err != nil { // what the server does at a disk that is full or read-only
		t.Fatal(err)
	}
	if _, err := b.Publish(t.Context(), messages("1/0", 4, 2)); !errors.Is(err, ErrDown) {
		t.Fatalf("Publish: %v, want ErrDown", err)
	}
	if _, _, err := b.Tail(t.Context(), 0); !errors.Is(err, ErrDown) {
		t.Errorf("Tail: %v, want ErrDown", err)
	}
	if err := b.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if seq := publish(t, b, messages("1/0", 1, 3)); seq != 6 {
		t.Errorf("sequence %d, want 6", seq)
	}
}

// A stream that nothing was published to is whole, also after its process was killed.
func TestEmptyStreamIsKept(t *testing.T) {
	for _, first := range []uint64{0, 1, 77} {
		dir := filepath.Join(t.TempDir(), "bus")
		b := reopen(t, open(t, Options{Dir: dir, FirstSeq: first}), Options{Dir: dir, FirstSeq: first})
		if b.Recreated() || len(brokenFolders(t, dir)) > 0 {
			t.Fatalf("first sequence %d: an empty stream was moved aside", first)
		}
	}
}
