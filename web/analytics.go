package web

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

const analyticsPath = "/api/v1/analytics"

// Analytics is what is asked of the sums by time.
type Analytics interface {
	Sums(ctx context.Context, t tenants.ID, q ledger.AnalyticsQuery) (ledger.Sums, error)
	Rebuild(ctx context.Context) error
}

type analyticsInput struct {
	request
	Bucket string `query:"bucket" doc:"hour or day, in tz. Default: day." example:"hour"`
	SpanQuery
}

// analyticsOutput is an answer with rows of one kind.
type analyticsOutput[T any] struct {
	Body struct {
		Bucket string     `json:"bucket" enum:"hour,day"`
		From   time.Time  `json:"from" doc:"First instant, moved back to its bucket's beginning."`
		To     time.Time  `json:"to" doc:"The instant after the last, moved on to its bucket's end."`
		Data   []T        `json:"data" doc:"Oldest first. Buckets in which nothing happened are left out."`
		Lag    ledger.Lag `json:"lag" doc:"How far the sums are behind your events."`
	}
}

// paymentSums is what happened to payments in a bucket. Amounts are minor units.
type paymentSums struct {
	Start     time.Time    `json:"start" doc:"The bucket's first instant."`
	Currency  string       `json:"currency"`
	Created   ledger.Tally `json:"created" doc:"Taken, whatever became of them."`
	Succeeded ledger.Tally `json:"succeeded" doc:"Settled with success, whenever they were taken."`
	Failed    ledger.Tally `json:"failed" doc:"Declined for good."`
	Canceled  ledger.Tally `json:"canceled"`
	Refunded  ledger.Tally `json:"refunded" doc:"Refunds that succeeded, and their own amounts."`
}

// orderSums is what happened to orders in a bucket. Amounts are the orders' totals, in minor units.
type orderSums struct {
	Start     time.Time    `json:"start" doc:"The bucket's first instant."`
	Currency  string       `json:"currency"`
	Created   ledger.Tally `json:"created"`
	Paid      ledger.Tally `json:"paid"`
	Completed ledger.Tally `json:"completed"`
	Canceled  ledger.Tally `json:"canceled"`
}

// userSums is what happened to users in a bucket.
type userSums struct {
	Start    time.Time `json:"start" doc:"The bucket's first instant."`
	Created  int64     `json:"created"`
	Verified int64     `json:"verified"`
}

func (s *Server) registerAnalytics() {
	registerSums(s, "payments", "Sum what happened to payments by hour or day", []ledger.Noun{ledger.PaymentNoun, ledger.RefundNoun}, func(r *ledger.AnalyticsRow) paymentSums {
		return paymentSums{r.Start, r.Currency, r.Tallies[ledger.PaymentCreated], r.Tallies[ledger.PaymentSucceeded], r.Tallies[ledger.PaymentFailed],
			r.Tallies[ledger.PaymentCanceled], r.Tallies[ledger.RefundSucceeded]}
	})
	registerSums(s, "orders", "Sum what happened to orders by hour or day", []ledger.Noun{ledger.OrderNoun}, func(r *ledger.AnalyticsRow) orderSums {
		return orderSums{r.Start, r.Currency, r.Tallies[ledger.OrderCreated], r.Tallies[ledger.OrderPaid], r.Tallies[ledger.OrderCompleted], r.Tallies[ledger.OrderCanceled]}
	})
	registerSums(s, "users", "Count what happened to users by hour or day", []ledger.Noun{ledger.UserNoun}, func(r *ledger.AnalyticsRow) userSums {
		return userSums{r.Start, r.Tallies[ledger.UserCreated].Count, r.Tallies[ledger.UserVerified].Count}
	})
	register(s, huma.Operation{
		OperationID: "rebuild-analytics", Method: http.MethodPost, Path: analyticsPath + "/rebuild", Tags: []string{"operator"},
		Summary:       "Count everything anew from the journals",
		Description:   "In the background; until it is done, the answers' lag says how far it is.",
		DefaultStatus: http.StatusAccepted,
	}, operatorOnly, func(ctx context.Context, _ *bareInput) (*struct{}, error) {
		return nil, s.sums.Rebuild(ctx)
	})
}

// registerSums adds the route of one noun's sums.
func registerSums[T any](s *Server, noun, summary string, of []ledger.Noun, show func(*ledger.AnalyticsRow) T) {
	register(s, huma.Operation{
		OperationID: "analytics-" + noun, Method: http.MethodGet, Path: analyticsPath + "/" + noun, Tags: []string{"analytics"},
		Summary: summary,
		Description: "Each change counts in the bucket of its own time, not of the record's creation: what is taken at 9:59 and settled at 10:01 is created " +
			"in one hour and succeeded in the next. Hours and days are those of tz. By the hour at most 31 days, by the day at most 366. " +
			"The sums follow the books by some seconds; lag says how far: events_behind of your events are not counted yet, and all before as_of are. " +
			"as_of is null while the sums are being filled anew or a part of the books is out of service; events_behind are then at least so many.",
	}, forTenant, func(ctx context.Context, in *analyticsInput) (*analyticsOutput[T], error) {
		from, to, zone, err := in.span(s.now())
		if err != nil {
			return nil, err
		}
		bucket := ledger.Bucket(cmp.Or(in.Bucket, string(ledger.ByDay)))
		sums, err := s.sums.Sums(ctx, in.x.caller.Tenant, ledger.AnalyticsQuery{Nouns: of, Bucket: bucket, From: from, To: to, Zone: zone})
		if err != nil {
			return nil, err
		}
		out := &analyticsOutput[T]{}
		out.Body.Bucket, out.Body.From, out.Body.To, out.Body.Lag = string(bucket), sums.From, sums.To, sums.Lag
		out.Body.Data = make([]T, 0, len(sums.Rows))
		for i := range sums.Rows {
			out.Body.Data = append(out.Body.Data, show(&sums.Rows[i]))
		}
		return out, nil
	})
}
