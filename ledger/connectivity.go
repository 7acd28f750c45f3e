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
	data, err := json.Marshal(connectivityData{link.State, link.Was, instant(link.Since.UnixMilli()), link.Evidence})
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
