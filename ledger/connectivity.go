package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// ConnectivityChanged is told to each tenant of an upstream account when the state of the line to it changes.
const ConnectivityChanged EventType = "connectivity.changed"

// connectivitySubject: the event is about no record of the tenant's.
const connectivitySubject = "upstream"

// connectivityBatch tenants are told in one transaction of the queue, for which everybody waits.
const connectivityBatch = 1000

// connectivityData is the data of [ConnectivityChanged].
type connectivityData struct {
	State    upstream.LinkState `json:"state"`
	Was      upstream.LinkState `json:"was"`
	Since    time.Time          `json:"since"`
	Cause    upstream.Cause     `json:"cause,omitzero"`
	Evidence string             `json:"evidence"`
}

// tellLinks tells the tenants of the changes of their accounts' lines until ctx
// ends. What a box finds when it starts is no change. A line that changes twice
// before the first was told is told as it is now.
func (l *Ledger) tellLinks(ctx context.Context) error {
	told := map[*upstream.Account]time.Time{} // since when the state was that was told
	for {
		for _, acc := range l.accounts.List() {
			link := acc.Link()
			if link.Was == "" || told[acc].Equal(link.Since) {
				continue
			}
			if err := l.tellLink(ctx, acc, link); err != nil {
				l.log.Warn("a change of the line is not told yet", "account", acc.Name(), "err", err)
				continue
			}
			told[acc] = link.Since
		}
		if l.linkMoved.wait(ctx, linkLook) != nil {
			return nil
		}
	}
}

// linkLook is how soon a change that could not be told is tried again.
const linkLook = 5 * time.Second

// tellLink enqueues the event for each tenant of the account. The jobs' ids follow
// from the change, so that telling it again is telling it once.
func (l *Ledger) tellLink(ctx context.Context, acc *upstream.Account, link upstream.Link) error {
	data, err := json.Marshal(connectivityData{link.State, link.Was, instant(link.Since.UnixMilli()), link.Cause, link.Evidence})
	if err != nil { // texts and times always encode
		panic(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d", acc.URL(), acc.Name(), link.State, link.Since.UnixNano()))
	id := "line_" + hex.EncodeToString(sum[:16])
	var js []jobs.NewJob
	for _, t := range l.tenants.List() {
		if l.account(&t) == acc {
			js = append(js, recordLater(string(t.ID), id, recordJob{ConnectivityChanged, connectivitySubject, link.Since.UTC(), data}))
		}
	}
	for batch := range slices.Chunk(js, connectivityBatch) {
		if _, err := l.jobs.Enqueue(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// ForceLink takes the line to a tenant's account, or ("") to all accounts, away by word ("offline"), or leaves it to the judge again
// ("auto"). A new process knows nothing of it.
func (l *Ledger) ForceLink(t tenants.ID, word string) error {
	return l.forced(t, func(f forcer) error { return f.ForceLink(word) })
}

// ForceBreaker opens ("open") or closes ("close") the breaker of a tenant's account, or ("") of all accounts.
func (l *Ledger) ForceBreaker(t tenants.ID, word string) error {
	return l.forced(t, func(f forcer) error { return f.ForceBreaker(word) })
}

// forcer is an account, or all of them.
type forcer interface {
	ForceLink(word string) error
	ForceBreaker(word string) error
}

func (l *Ledger) forced(t tenants.ID, do func(forcer) error) error {
	var on forcer = l.accounts
	if t != "" {
		acc := l.accountOf(t)
		if acc == nil {
			return &Error{Kind: Conflict, Code: "upstream_unconfigured", Message: "there is no line to a processor"}
		}
		on = acc
	}
	if err := do(on); err != nil {
		return &Error{Kind: NotFound, Code: "not_found", Message: err.Error()}
	}
	l.log.Warn("forced by the operator", "tenant", string(t))
	return nil
}
