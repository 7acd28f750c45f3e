package upstream

import (
	"context"
	"errors"
	"net/url"
	"time"
)

// Sweep is a reading of one of the account's collections from now back to a time: what proves that something is not there.
type Sweep struct {
	From     time.Time // created at or after this was asked for, by the processor's clock
	Began    time.Time // the processor's clock when the first page was asked for; zero if it tells none
	Pages    int
	Objects  int
	Complete bool   // every page was read, each well-formed and in order: what was not seen is not there
	First    string // ids of the newest and the oldest object seen
	Last     string
	KeyID    string // names the API key it was read with
}

// Sweep reads the collection at path (PathCharges and so on), newest first, as far as objects created at from, and calls each
// for every object until it returns false, which ends the sweep incomplete. filter may narrow it (charge=ch_…). The
// answer is that of the last page; unless it Succeeded the sweep is incomplete.
func (a *Account) Sweep(ctx context.Context, path string, filter url.Values, from time.Time, each func(Object) bool) (Sweep, Answer) {
	return Sweep{}, Answer{Outcome: Unknown, Reason: errors.ErrUnsupported.Error()}
}

// KeyID names the account's present API key, and is none: equal keys have equal names.
func (a *Account) KeyID() string { return "" }
