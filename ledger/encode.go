package ledger

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The two texts of each accepted payment, its event's and its answer's, are written by hand: finding the members by reflection took a twentieth of
// what a payment costs. A test holds them against the structs, which remain what describes them.

// AppendJSON appends the payment's outward form.
func (p *Payment) AppendJSON(b []byte) []byte {
	b = appendText(b, `{"id":`, string(p.ID))
	b = appendText(b, `,"object":`, p.Object)
	b = appendNumber(b, `,"amount":`, p.Amount)
	b = appendText(b, `,"currency":`, p.Currency)
	b = appendText(b, `,"status":`, string(p.Status))
	b = appendText(b, `,"sync":{"state":`, string(p.Sync.State))
	b = appendNumber(b, `,"attempts":`, int64(p.Sync.Attempts))
	b = appendTime(b, `,"first_sent_at":`, p.Sync.FirstSentAt)
	b = appendTime(b, `,"next_attempt_at":`, p.Sync.NextAttemptAt)
	b = appendOptional(b, `,"last_error":`, p.Sync.LastError)
	b = appendOptional(b, `},"upstream_id":`, p.UpstreamID)
	b = appendFailure(b, `,"failure":`, p.Failure)
	b = appendNumber(b, `,"amount_refunded":`, p.AmountRefunded)
	b = appendOptional(b, `,"order_id":`, p.OrderID)
	b = appendOptional(b, `,"user_id":`, p.UserID)
	b = appendOptional(b, `,"description":`, p.Description)
	b = append(b, `,"metadata":{`...)
	if len(p.Metadata) > 0 {
		for i, name := range slices.Sorted(maps.Keys(p.Metadata)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(append(appendText(b, "", name), ':'), "", p.Metadata[name])
		}
	}
	b = appendFlag(b, `},"taken_offline":`, p.TakenOffline)
	b = appendTime(b, `,"created_at":`, &p.CreatedAt)
	b = appendTime(b, `,"settled_at":`, p.SettledAt)
	return append(b, '}')
}

func (d *eventData) appendJSON(b []byte) []byte {
	b = appendText(b, `{"id":`, string(d.ID))
	b = appendText(b, `,"object":`, d.Object)
	b = appendNumber(b, `,"amount":`, d.Amount)
	b = appendText(b, `,"currency":`, d.Currency)
	b = appendText(b, `,"status":`, string(d.Status))
	b = appendOptional(b, `,"upstream_id":`, d.UpstreamID)
	b = appendFailure(b, `,"failure":`, d.Failure)
	b = appendOptional(b, `,"order_id":`, d.OrderID)
	b = appendOptional(b, `,"user_id":`, d.UserID)
	b = appendFlag(b, `,"taken_offline":`, d.TakenOffline)
	b = appendTime(b, `,"created_at":`, &d.CreatedAt)
	b = appendTime(b, `,"settled_at":`, d.SettledAt)
	return append(b, '}')
}

// Each of these appends a member: what leads up to its value, and the value.

func appendText(b []byte, lead, s string) []byte {
	b, _ = jsontext.AppendQuote(append(b, lead...), s) // of bytes that are no text, which the ledger takes none of, U+FFFD
	return b
}

func appendOptional(b []byte, lead string, s *string) []byte {
	if s == nil {
		return append(append(b, lead...), "null"...)
	}
	return appendText(b, lead, *s)
}

func appendNumber(b []byte, lead string, n int64) []byte {
	return strconv.AppendInt(append(b, lead...), n, 10)
}

func appendFlag(b []byte, lead string, is bool) []byte {
	return strconv.AppendBool(append(b, lead...), is)
}

func appendTime(b []byte, lead string, at *time.Time) []byte {
	b = append(b, lead...)
	if at == nil {
		return append(b, "null"...)
	}
	return append(at.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
}

func appendFailure(b []byte, lead string, f *Failure) []byte {
	b = append(b, lead...)
	if f == nil {
		return append(b, "null"...)
	}
	b = appendText(b, `{"code":`, f.Code)
	b = appendText(b, `,"decline_code":`, f.DeclineCode)
	return append(appendText(b, `,"message":`, f.Message), '}')
}
