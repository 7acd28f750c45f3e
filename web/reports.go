package web

import (
	"context"
	"net/http"
	"time"
	_ "time/tzdata" // a box in a bare container has no zone files, and its till still closes at local midnight

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
)

const reportPath = "/api/v1/reports/payments"

type reportInput struct {
	request
	SpanQuery
}

// SpanQuery is how a span of time is asked for. It is exported because huma looks into embedded structs only then.
type SpanQuery struct {
	From string `query:"from" doc:"First instant (RFC 3339), or a date: its midnight in tz. Default: today." example:"2026-11-23"`
	To   string `query:"to" doc:"The instant after the last (RFC 3339), or a date, which is included. Default: the end of from's day." example:"2026-11-23"`
	TZ   string `query:"tz" doc:"IANA time zone of dates. Default: UTC." example:"Europe/Berlin"`
}

type reportOutput struct{ Body report }

type report struct {
	From time.Time          `json:"from"`
	To   time.Time          `json:"to"`
	Rows []ledger.ReportRow `json:"rows" doc:"Payments taken in the span."`

	Refunds []ledger.RefundRow `json:"refunds" doc:"Refunds made in the span, whenever their payments were taken; not those that canceled a payment."`
}

func (s *Server) registerReports() {
	register(s, huma.Operation{
		OperationID: "report-payments", Method: http.MethodGet, Path: reportPath, Tags: []string{"payments"},
		Summary:     "Sum payments by currency and status",
		Description: "A till's end-of-day report, straight from the books, by created_at: from inclusive, to exclusive. At most 366 days.",
	}, forTenant, s.report)
}

func (s *Server) report(ctx context.Context, in *reportInput) (*reportOutput, error) {
	from, to, _, err := in.span(s.now())
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Report(ctx, in.x.caller.Tenant, from, to)
	if err != nil {
		return nil, err
	}
	out := &reportOutput{report{from, to, found.Payments, found.Refunds}}
	if out.Body.Rows == nil {
		out.Body.Rows = []ledger.ReportRow{}
	}
	if out.Body.Refunds == nil {
		out.Body.Refunds = []ledger.RefundRow{}
	}
	return out, nil
}

// span reads the half-open span of time, and the zone of its dates. Its instants are UTC.
func (in *SpanQuery) span(now time.Time) (from, to time.Time, zone *time.Location, err error) {
	zone = time.UTC
	if in.TZ != "" {
		if zone, err = zoneOf(in.TZ); err != nil {
			return from, to, zone, err
		}
	}
	if from, _, err = instant("from", in.From, now.In(zone), zone); err != nil {
		return from, to, zone, err
	}
	to, date, err := instant("to", in.To, from.In(zone), zone)
	if err != nil {
		return from, to, zone, err
	}
	if date {
		to = to.AddDate(0, 0, 1)
	}
	return from.UTC(), to.UTC(), zone, nil
}

// zoneOf reads a time zone's name. "Local" would be the box's own setting, which is nobody's business; the length bounds what is looked up.
func zoneOf(name string) (*time.Location, error) {
	zone, err := time.LoadLocation(name)
	if err != nil || name == "Local" || len(name) > clipMax {
		return nil, problem(http.StatusBadRequest, "time_zone_invalid", "tz", "must be an IANA time zone such as Europe/Berlin")
	}
	return zone, nil
}

// instant reads an RFC 3339 time, or a date as its midnight; nothing is the date of def.
func instant(name, s string, def time.Time, zone *time.Location) (at time.Time, date bool, err error) {
	if s == "" {
		y, m, d := def.Date()
		return time.Date(y, m, d, 0, 0, 0, 0, zone), true, nil
	}
	at, err = time.ParseInLocation(time.DateOnly, s, zone)
	if date = err == nil; !date {
		at, err = time.Parse(time.RFC3339Nano, s)
	}
	if err != nil || at.Year() < 1970 || at.Year() > 9998 {
		return at, date, problem(http.StatusBadRequest, "time_invalid", name, "must be a time such as 2026-11-23T18:00:00Z (a + is written %2B) or a date such as 2026-11-23")
	}
	return at, date, nil
}
