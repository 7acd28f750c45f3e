package model

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "first seed; 0 takes the fixed ones and as many new ones")
	seedsFlag    = flag.Int("seeds", 150, "how many seeds; they count up")
	failuresFlag = flag.Int("failures", 1, "end after so many seeds that failed")
)

// TestModel plays seeds. The fixed ones are the same each time; the new ones are printed, and so is the story of the first that fails.
func TestModel(t *testing.T) {
	dir, err := Scratch()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var from *template
	synctest.Test(t, func(t *testing.T) {
		if from, err = makeTemplate(t, dir); err != nil {
			t.Fatal(err)
		}
	})
	first := *seedFlag
	fresh := rand.Uint64N(1_000_000_000) + 1_000_000
	if first == 0 {
		t.Logf("new seeds from %d", fresh)
	}
	tally, began, failed := Tally{}, time.Now(), 0
	for i := range *seedsFlag {
		seed := first + uint64(i)
		if first == 0 {
			if seed = uint64(i) + 1; i >= *seedsFlag/2 {
				seed = fresh + uint64(i)
			}
		}
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { play(t, from, seed, tally) }) }) {
			t.Logf("seed %d failed; again: make model SEED=%d SEEDS=1", seed, seed)
			if failed++; failed >= *failuresFlag {
				t.FailNow()
			}
		}
	}
	t.Logf("%d seeds, %v each\n%v", *seedsFlag, (time.Since(began) / time.Duration(*seedsFlag)).Round(time.Millisecond), tally)
}

func play(t *testing.T, from *template, seed uint64, tally Tally) {
	w := NewWorld(t, from, seed)
	e, err := w.Live(t.Context())
	var findings []Finding
	if err == nil {
		findings = Judge(e)
	}
	if err != nil || len(findings) > 0 || t.Failed() {
		t.Logf("the story of seed %d:\n%s", seed, w.log.Story())
	}
	if err != nil {
		t.Error(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
	tally.Add(w.tally)
}
