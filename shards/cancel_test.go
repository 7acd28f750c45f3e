package shards_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"tenderbox/shards"
)

// A caller that leaves while the writer takes up its operation touches nothing that
// the writer may have handed to another caller: nil means that the closure ran, a
// cancellation that it did not.
func TestCancelledUpdatesLeaveNothingBehind(t *testing.T) {
	_, sh := open(t, options())
	const callers, rounds = 32, 1500
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range rounds {
				ctx, cancel := context.WithCancel(t.Context())
				go cancel()
				ran := false
				err := sh.Update(ctx, func(*shards.Tx) error {
					ran = true
					return nil
				})
				switch {
				case err == nil && !ran:
					t.Error("acknowledged, and did not run")
					return
				case errors.Is(err, context.Canceled) && ran:
					t.Error("refused as cancelled, and ran")
					return
				case err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, shards.ErrOverloaded):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
