package bus

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

const (
	crashDirEnv   = "TENDERBOX_BUS_CRASH_DIR"
	crashBatchMax = 40
)

// publishUntilKilled is the process that TestKill kills. It goes on from the tail, as
// the relay does, and prints each sequence that it has an answer for. Batch k ends
// where batchEnd says, so that a half one can be seen.
func publishUntilKilled() {
	ctx := context.Background()
	b, err := Open(ctx, Options{Dir: os.Getenv(crashDirEnv), MinFree: -1})
	if err != nil {
		log.Fatal(err)
	}
	last, _, err := b.Tail(ctx, 0)
	if err != nil {
		log.Fatal(err)
	}
	for done := last["1/0"]; ; {
		n := crashBatch(done)
		ms := messages("1/0", done+1, n)
		for i := range ms { // the same event has the same id in every life
			ms[i].Event.ID = "evt_" + strconv.FormatUint(ms[i].Seq, 10)
		}
		if _, err := b.Publish(ctx, ms); err != nil {
			log.Fatal(err)
		}
		done += uint64(n)
		fmt.Println(done)
	}
}

// crashBatch is the size of the batch that begins behind sequence done.
func crashBatch(done uint64) int { return int(done*2654435761%crashBatchMax) + 1 }

func TestKilledAtAnyMomentNothingAcknowledgedIsLost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bus")
	var acked uint64
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for left := 1 + rand.IntN(30); left > 0 && lines.Scan(); left-- {
			if acked, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // answers that were on their way
			if acked, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
		}
		_ = cmd.Wait() // killed, as meant

		b := open(t, Options{Dir: dir})
		if b.Err() != nil || b.Recreated() != (acked == 0) {
			t.Fatalf("round %d: %v, recreated %v with %d acknowledged", round, b.Err(), b.Recreated(), acked)
		}
		last, seq, err := b.Tail(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		done := last["1/0"]
		if done < acked || seq != done || b.State().Messages != done {
			t.Fatalf("round %d: %d acknowledged, tail %d at stream sequence %d, state %+v", round, acked, done, seq, b.State())
		}
		end := uint64(0)
		for end < done {
			end += uint64(crashBatch(end))
		}
		if end != done {
			t.Fatalf("round %d: half a batch: %d events, a whole one ends at %d", round, done, end)
		}
		acked = done
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d events over 6 kills", acked)
}
