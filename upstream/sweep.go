package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strconv"
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

const (
	// sweepPage is the most that processors give at once.
	sweepPage = 100
	// sweepPagesMax ends a list that has no end: 100,000 objects are more than the days of a doubt hold.
	sweepPagesMax = 1000
	// sweepTriesMax is how often a page is asked for that the processor, or a hold, puts off, and how often one that is too large.
	sweepTriesMax = 5
	// sweepPauseMax is the longest that is waited for such a page: the caller holds a worker.
	sweepPauseMax = 30 * time.Second
	// sweepSmaller is what a page is cut by whose answer is too large to be read.
	sweepSmaller = 4
	// sweepStaleMax is how much older than the question an answer may claim to be: the processor's machines do not agree to
	// the second. A page that some deputy has kept would hide what was made since.
	sweepStaleMax = 10 * time.Second
)

// Sweep reads the collection at path (PathCharges and so on), newest first, as far as objects created at from, and calls each
// for every object until it returns false, which ends the sweep incomplete. filter may narrow it (charge=ch_…). The
// answer is that of the last page; unless it Succeeded the sweep is incomplete.
//
// It is complete only if the list proves itself: every page well-formed and fresh, all of it in the order of creation, no object
// shown twice, its end said in so many words or an object seen that is older than from, and all of it read with one API key. So
// a list that ignores a parameter makes the sweep longer, or incomplete, never wrong. What is created meanwhile comes before
// the first page and is not seen.
//
// Each page waits for its turn (Enter), and has the budget and the retries of a Get. One that is put off by the processor, or
// by what it asked for before, is asked for again a few times.
func (a *Account) Sweep(ctx context.Context, path string, filter url.Values, from time.Time, each func(Object) bool) (Sweep, Answer) {
	if a.Clock().IsZero() {
		a.Get(ctx, path+"?limit=1") // any answer tells the processor's time, which must be known before the first page is asked for
	}
	from = from.Truncate(time.Second)
	keyID, keyTurn := a.nameKey()
	s := Sweep{From: from, Began: a.Clock(), KeyID: keyID}
	p := pager{Account: a, path: path, query: url.Values{}, size: sweepPage}
	for name, values := range filter {
		p.query[name] = values
	}
	if from.Unix() > 0 {
		p.query.Set("created[gte]", strconv.FormatInt(from.Unix(), 10))
	}
	seen, newest := map[string]struct{}{}, int64(0)
	var page Answer
	unproven := func(why string) (Sweep, Answer) {
		page.Outcome, page.Reason = Unknown, why
		return s, page
	}
	ended := func() (Sweep, Answer) {
		if _, turn := a.nameKey(); turn != keyTurn {
			return unproven("the API key was replaced while the list was read")
		}
		s.Complete = true
		return s, page
	}
	for s.Pages < sweepPagesMax {
		page = p.next(ctx)
		if page.Outcome != Succeeded {
			return s, page
		}
		s.Pages++
		if !page.Date.IsZero() && page.Date.Before(s.Began.Add(-sweepStaleMax)) {
			return unproven("list is older than the question")
		}
		for _, o := range page.List {
			_, twice := seen[o.ID]
			switch {
			case o.Created <= 0:
				return unproven("list with an entry without its time")
			case newest != 0 && o.Created > newest:
				return unproven("list is not in order")
			case twice:
				return unproven("list shows an entry twice")
			case o.Created < from.Unix(): // a processor that heeds no window
				return ended()
			}
			seen[o.ID], newest = struct{}{}, o.Created
			s.Objects++
			if s.First == "" {
				s.First = o.ID
			}
			s.Last = o.ID
			if !each(o) {
				return s, page
			}
		}
		if !page.HasMore {
			return ended()
		}
		if len(page.List) == 0 {
			return unproven("list has more, and nothing on its page")
		}
		p.query.Set("starting_after", s.Last)
	}
	return unproven("list has no end")
}

// pager asks for the pages of a list.
type pager struct {
	*Account
	path  string
	query url.Values
	size  int // of a page
}

// next asks for the page that the query names.
func (p *pager) next(ctx context.Context) (page Answer) {
	for range sweepTriesMax {
		p.query.Set("limit", strconv.Itoa(p.size))
		page = p.Look(ctx, p.path+"?"+p.query.Encode())
		if page.Reason != reasonTooLarge || p.size == 1 {
			return page
		}
		p.size = max(p.size/sweepSmaller, 1)
	}
	return page
}

// Look is a Get of who is in no hurry: it waits for its turn (Enter), and is asked again a few times if it is put off, by the
// processor or by what it asked for before.
func (a *Account) Look(ctx context.Context, path string) (answer Answer) {
	for range sweepTriesMax {
		answer = a.getInTurn(ctx, path)
		if answer.Outcome != Retryable || answer.RetryAfter <= 0 || answer.RetryAfter > sweepPauseMax {
			return answer
		}
		wait := time.NewTimer(answer.RetryAfter)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return answer
		}
	}
	return answer
}

func (a *Account) getInTurn(ctx context.Context, path string) Answer {
	if leave, err := a.Enter(ctx); err == nil {
		defer leave()
	} // else Get says what is in the way
	return a.Get(ctx, path)
}

// KeyID names the account's present API key, and is none: equal keys have equal names. Of a key that can be guessed the name
// can be guessed too.
func (a *Account) KeyID() string {
	id, _ := a.nameKey()
	return id
}

// nameKey returns the name of the present API key, and which of the account's keys it is in turn.
func (a *Account) nameKey() (id string, turn int) {
	a.mu.Lock()
	key, turn := a.key, a.keyTurn
	a.mu.Unlock()
	sum := sha256.Sum256([]byte("tenderbox key id\x00" + key))
	return hex.EncodeToString(sum[:8]), turn
}
