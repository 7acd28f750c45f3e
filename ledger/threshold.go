package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/tenants"
)

// ExposureHigh is told when what a tenant has taken and not settled comes near a limit of its offline policy.
const ExposureHigh EventType = "exposure.high"

const (
	// exposureHigh parts of a limit are told: a person has time left to do something before payments are refused.
	exposureHigh = 0.80
	// exposureCalm parts or fewer make the next time one to be told: a drain that hovers about the threshold is one piece of news.
	exposureCalm = 0.70
	// exposureLook spaces looks while payments are taken; exposurePoll is for what only grows older.
	exposureLook = time.Second
	exposurePoll = time.Minute
)

// exposureHighData is the data of [ExposureHigh].
type exposureHighData struct {
	Currency string    `json:"currency"`
	Count    int64     `json:"count"`
	Amount   int64     `json:"amount"`
	OldestAt time.Time `json:"oldest_at"`
	Rule     string    `json:"rule"`    // max_total, max_count or max_age_h
	Allowed  int64     `json:"allowed"` // by that rule: minor units, payments or hours
}

// threshold is a limit that a tenant may come near.
type threshold struct {
	tenant   tenants.ID
	currency string
	rule     string
}

// watchExposure tells of limits that come near until ctx ends. What it has told is in memory; a box that starts with a high exposure tells
// it again only if the oldest payment is another one by now: the event's id follows from that payment.
func (l *Ledger) watchExposure(ctx context.Context) error {
	told := map[threshold]bool{}
	for {
		if !l.uncounted() {
			l.tellExposure(ctx, told)
		}
		if l.exposed.wait(ctx, exposurePoll) != nil || pause(ctx, exposureLook) != nil {
			return nil
		}
	}
}

// tellExposure compares what stands with what is allowed.
func (l *Ledger) tellExposure(ctx context.Context, told map[threshold]bool) {
	high := map[threshold]bool{}
	for k, sum := range l.exposure.each("") {
		t, err := l.tenants.Get(k.tenant)
		if err != nil || t.Offline[k.currency] == (tenants.OfflineLimit{}) {
			continue
		}
		oldest, id, err := l.oldestIn(ctx, k.tenant, k.currency)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("the age of what is outstanding is not known", "tenant", string(k.tenant), "err", err)
		}
		if err != nil || id == "" {
			continue // what is only on its way into the books is told when it is there
		}
		limit := t.Offline[k.currency]
		for _, r := range []struct {
			name    string
			stands  float64
			allowed int64
		}{
			{"max_total", float64(sum.Amount), limit.MaxTotal},
			{"max_count", float64(sum.Count), limit.MaxCount},
			{"max_age_h", l.clock.notBefore().Sub(oldest).Hours(), int64(limit.MaxAgeH)},
		} {
			if r.allowed <= 0 {
				continue
			}
			at, part := threshold{k.tenant, k.currency, r.name}, r.stands/float64(r.allowed)
			switch {
			case told[at]:
				high[at] = part > exposureCalm
			case part >= exposureHigh:
				err := l.tellThreshold(ctx, at, id, exposureHighData{k.currency, sum.Count, sum.Amount, oldest, r.name, r.allowed})
				if high[at] = err == nil; err != nil && ctx.Err() == nil {
					l.log.Warn("a high exposure is not told yet", "tenant", string(k.tenant), "err", err)
				}
			}
		}
	}
	clear(told)
	for at := range high {
		if high[at] {
			told[at] = true
		}
	}
}

// tellThreshold enqueues the event. The job's id follows from the threshold and from the oldest payment that stands.
func (l *Ledger) tellThreshold(ctx context.Context, k threshold, oldest PaymentID, data exposureHighData) error {
	b, err := json.Marshal(data)
	if err != nil { // texts, numbers and times always encode
		panic(err)
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{k.currency, k.rule, fmt.Sprint(data.Allowed), string(oldest)}, "\x00")))
	_, err = l.jobs.Enqueue(ctx, recordLater(string(k.tenant), "exposure_"+hex.EncodeToString(sum[:16]),
		recordJob{ExposureHigh, k.currency, l.clock.now(), b}))
	return err
}
