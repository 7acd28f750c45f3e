package main

import (
	"errors"
	"fmt"
	"testing"

	"tenderbox/jobs/notify"
	"tenderbox/ledger"
)

// What can never be taken is told from what cannot be taken now; what nobody foresaw stays what it is, and is tried again.
func TestLedgerRefusalsForTheQueue(t *testing.T) {
	for kind, want := range map[ledger.Kind]error{
		ledger.Invalid: notify.ErrRefused, ledger.NotFound: notify.ErrRefused,
		ledger.Unavailable: notify.ErrUnavailable, ledger.Full: notify.ErrUnavailable,
		ledger.Conflict: nil,
	} {
		cause := &ledger.Error{Kind: kind, Code: "c", Message: "m"}
		got := forQueue(fmt.Errorf("deliver: %w", cause))
		for _, class := range []error{notify.ErrRefused, notify.ErrUnavailable} {
			if errors.Is(got, class) != (class == want) {
				t.Errorf("%s: %v", kind, got)
			}
		}
		if !errors.Is(got, cause) {
			t.Errorf("%s: the cause is lost: %v", kind, got)
		}
	}
	if forQueue(nil) != nil {
		t.Error("nothing is an error")
	}
}
