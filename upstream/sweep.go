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
	// sweepTriesMax is how often a page is asked for that the processor, or a hold, puts off.
	sweepTriesMax = 5
	// sweepPauseMax is the longest that is waited for such a page: the caller holds a worker.
	sweepPauseMax = 30 * time.Second
)

// Sweep reads the collection at path (PathCharges and so on), newest first, as far as objects created at from, and calls each
// for every object until it returns false, which ends the sweep incomplete. filter may narrow it (charge=ch_…). The
// answer is that of the last page; unless it Succeeded the sweep is incomplete.
func (a *Account) Sweep(ctx context.Context, path string, filter url.Values, from time.Time, each func(Object) bool) (Sweep, Answer) {
	if a.Clock().IsZero() {
		a.Get(ctx, path+"?limit=1") // any answer tells the processor's time, which must be known before the first page is asked for
	}
	from = from.Truncate(time.Second)
	s := Sweep{From: from, Began: a.Clock(), KeyID: a.KeyID()}
	query := url.Values{"limit": {strconv.Itoa(sweepPage)}}
	for name, values := range filter {
		query[name] = values
	}
	if from.Unix() > 0 {
		query.Set("created[gte]", strconv.FormatInt(from.Unix(), 10))
	}
	newest := int64(0)
	for {
		page := a.page(ctx, path+"?"+query.Encode())
		if page.Outcome != Succeeded {
			return s, page
		}
		s.Pages++
		for _, o := range page.List {
			if o.Created <= 0 || newest != 0 && o.Created > newest || o.ID == s.Last {
				page.Outcome, page.Reason = Unknown, "list is not in order"
				return s, page
			}
			newest = o.Created
			if o.Created < from.Unix() { // a processor that heeds no window
				s.Complete = s.KeyID == a.KeyID()
				return s, page
			}
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
			s.Complete = s.KeyID == a.KeyID()
			return s, page
		}
		if len(page.List) == 0 {
			page.Outcome, page.Reason = Unknown, "list has more, and nothing on its page"
			return s, page
		}
		query.Set("starting_after", s.Last)
	}
}

// page asks for a page, again if the processor puts it off.
func (a *Account) page(ctx context.Context, path string) (page Answer) {
	for range sweepTriesMax {
		page = a.Get(ctx, path)
		if page.Outcome != Retryable || page.RetryAfter <= 0 || page.RetryAfter > sweepPauseMax {
			return page
		}
		wait := time.NewTimer(page.RetryAfter)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return page
		}
	}
	return page
}

// KeyID names the account's present API key, and is none: equal keys have equal names.
func (a *Account) KeyID() string {
	sum := sha256.Sum256([]byte("tenderbox key id\x00" + a.currentKey()))
	return hex.EncodeToString(sum[:8])
}
