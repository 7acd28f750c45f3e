package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// measureFootprint prints what the box costs before it does anything.
func measureFootprint(ctx context.Context, o options, binary, top string) error {
	info, err := os.Stat(binary)
	if err != nil {
		return err
	}
	var first, again []time.Duration
	var memory []float64
	for i := range o.starts {
		data := filepath.Join(top, fmt.Sprintf("start-%d", i))
		if err := os.Mkdir(data, 0o700); err != nil {
			return err
		}
		for _, times := range []*[]time.Duration{&first, &again} {
			began := time.Now()
			box, err := startBox(ctx, binary, data, "--upstream-url", deadLine)
			if err != nil {
				return err
			}
			*times = append(*times, time.Since(began))
			if times == &first {
				err = box.rest(ctx)
			}
			held, merr := residentOf(box.pid)
			stopCtx, cancel := context.WithTimeout(ctx, graceMax)
			serr := box.process.Stop(stopCtx)
			cancel()
			if times == &first {
				memory = append(memory, held.all)
			}
			for _, err := range []error{err, merr, serr} {
				if err != nil {
					return err
				}
			}
		}
	}
	fmt.Printf("start to ready, median of %d: %.0f ms on an empty folder, %.0f ms on one that is there; idle RSS %.1f MiB; binary %.1f MiB\n\n",
		o.starts, float64(median(first))/1e6, float64(median(again))/1e6, median(memory), float64(info.Size())/(1<<20))
	return nil
}
