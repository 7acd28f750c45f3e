package ledger

import (
	"context"
	"net/url"
	"sync"
	"time"

	"tenderbox/upstream"
)

const (
	// sweepObjectsMax is how many objects a look-up reads at most: 1,000 pages. What is not found in so many needs a person.
	sweepObjectsMax = 100_000
	// windowStep is what the beginning of a look-up is rounded down to, so that records sent on one day are served by one.
	windowStep = 6 * time.Hour
	// turnWait is how long a record waits for a look-up under way before its worker serves another.
	turnWait = time.Second
	// earlyPause is how old a look-up may be that only looks for what can be adopted before its time.
	earlyPause = 30 * time.Second
	// failedPause is how long one that failed is taken for the others' answer too.
	failedPause = time.Second
	// lookupKeep is how long one is kept for others, in memory.
	lookupKeep = 10 * time.Minute
)

// everything is where a look-up begins that cannot know when the record was sent.
var everything = time.Unix(0, 0)

// mark is a metadata member and its value, by which the processor's object tells whose it is.
type mark struct{ name, value string }

// sighting is an object that bears one of the box's marks.
type sighting struct {
	upstream.Object        // without its metadata
	payment, refund string // that it names
}

// reading is one look through a collection. It is not changed once it was made.
type reading struct {
	upstream.Sweep
	answer upstream.Answer
	seen   map[mark][]sighting
	full   bool      // it ended at sweepObjectsMax
	at     time.Time // of the box's monotonic clock
}

// read looks through a collection and keeps what bears a mark.
func (k *lookups) read(ctx context.Context, acc *upstream.Account, path string, filter url.Values, from time.Time) *reading {
	r := &reading{seen: map[mark][]sighting{}}
	n := 0
	r.Sweep, r.answer = acc.Sweep(ctx, path, filter, from, func(o upstream.Object) bool {
		s := sighting{Object: o, payment: o.Metadata[markPayment], refund: o.Metadata[markRefund]}
		s.Metadata = nil
		for _, name := range []string{markPayment, markRefund, markKey} {
			if v := o.Metadata[name]; v != "" {
				r.seen[mark{name, v}] = append(r.seen[mark{name, v}], s)
			}
		}
		n++
		r.full = n >= k.objectsMax
		return !r.full
	})
	r.at = time.Now()
	return r
}

// broke says why the reading is not whole.
func (r *reading) broke(s *send) string {
	if r.full {
		return "it holds too much"
	}
	return s.withoutToken(&r.answer).Reason
}

// serves reports whether the reading reaches back to from and began at or after a time of the processor's.
func (r *reading) serves(from, after time.Time) bool {
	return r != nil && r.Complete && !r.From.After(from) && !r.Began.Before(after) && time.Since(r.at) < lookupKeep
}

// of returns what bears one of the marks, each object once.
func (r *reading) of(marks []mark) (found []sighting) {
	known := map[string]bool{}
	for _, m := range marks {
		for _, s := range r.seen[m] {
			if !known[s.ID] {
				known[s.ID] = true
				found = append(found, s)
			}
		}
	}
	return found
}

// lookups share what was read of the accounts' collections: thousands of records that a cut line left in doubt are served by one reading.
type lookups struct {
	objectsMax int // that one reading takes in

	mu sync.Mutex // guards the rest
	by map[place]*shelf
	// shown are API keys that were proved to see what was sent with another, or the same.
	shown map[credentials]bool
}

// place is a collection of an account.
type place struct {
	acc  *upstream.Account
	path string
}

// credentials are an API key that was sent with, and one that is read with.
type credentials struct {
	acc        *upstream.Account
	sent, read string
}

// shelf holds the last reading of a place.
type shelf struct {
	turn  chan struct{} // its one token is held by who reads
	last  *reading
	large bool      // a reading from the beginning was full
	since time.Time // the processor's clock when this process first looked; zero while it is not known
}

func newLookups() *lookups {
	return &lookups{objectsMax: sweepObjectsMax, by: map[place]*shelf{}, shown: map[credentials]bool{}}
}

func (k *lookups) shelf(p place) *shelf {
	k.mu.Lock()
	defer k.mu.Unlock()
	sh := k.by[p]
	if sh == nil {
		sh = &shelf{turn: make(chan struct{}, 1)}
		k.by[p] = sh
	}
	if sh.since.IsZero() {
		sh.since = p.acc.Clock()
	}
	return sh
}

// since is when, by the processor's clock, this process first looked into the place; zero while that is not known.
func (k *lookups) since(p place) time.Time {
	sh := k.shelf(p)
	k.mu.Lock()
	defer k.mu.Unlock()
	return sh.since
}

// ask returns a reading of the place that reaches back to from and began at or after `after` (zero: in the last earlyPause), or one that
// failed to. The error is a wish: another record's reading is under way.
func (k *lookups) ask(ctx context.Context, p place, from, after time.Time) (*reading, error) {
	sh := k.shelf(p)
	if r := k.kept(sh, from, after); r != nil {
		return r, nil
	}
	wait := time.NewTimer(turnWait)
	defer wait.Stop()
	select {
	case sh.turn <- struct{}{}:
		defer func() { <-sh.turn }()
	case <-wait.C:
		return nil, &later{after: unsentPause, reason: "a look-up is under way"}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r := k.kept(sh, from, after); r != nil {
		return r, nil
	}
	r := k.read(ctx, p.acc, p.path, nil, from.Truncate(windowStep))
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() == nil {
		sh.last = r
		sh.large = sh.large || r.full && from.Equal(everything)
	}
	return r, nil
}

// kept is the last reading if it will do.
func (k *lookups) kept(sh *shelf, from, after time.Time) *reading {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := sh.last
	if r == nil {
		return nil
	}
	age := time.Since(r.at)
	if !r.Complete && age < failedPause || r.serves(from, after) && (!after.IsZero() || age < earlyPause) {
		return r
	}
	return nil
}

// isLarge reports whether the place was found to hold more than a reading from the beginning can take in.
func (k *lookups) isLarge(p place) bool {
	sh := k.shelf(p)
	k.mu.Lock()
	defer k.mu.Unlock()
	return sh.large
}

// forget frees what is too old to serve anybody.
func (k *lookups) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, sh := range k.by {
		if sh.last != nil && time.Since(sh.last.at) >= lookupKeep {
			sh.last = nil
		}
	}
}
