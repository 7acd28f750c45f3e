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
		Description: "A till's end-of-day report, straight from the books, by created_at: from inclusive, to exclusive. At most 366 days of tz.",
	}, forTenant, s.report)
}

func (s *Server) report(ctx context.Context, in *reportInput) (*reportOutput, error) {
	from, to, zone, err := in.span(s.now())
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Report(ctx, in.x.caller.Tenant, from.In(zone), to)
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
	if from, _, err = instants("from", in.From, ledger.DayOf(now.In(zone)), zone); err != nil {
		return from, to, zone, err
	}
	_, to, err = instants("to", in.To, ledger.DayOf(from.In(zone)), zone)
	return from.UTC(), to.UTC(), zone, err
}

// zoneOf reads a time zone's name. "Local" would be the box's own setting, which is nobody's business; the length bounds what is looked up.
func zoneOf(name string) (*time.Location, error) {
	zone, err := time.LoadLocation(name)
	if err != nil || name == "Local" || len(name) > clipMax {
		return nil, problem(http.StatusBadRequest, "time_zone_invalid", "tz", "must be an IANA time zone such as Europe/Berlin")
	}
	return zone, nil
}

// instants reads an RFC 3339 time, which is both, or a date: its first instant in the zone, and the next day's. Nothing is the date def.
func instants(name, s string, def ledger.Day, zone *time.Location) (from, to time.Time, err error) {
	if s == "" {
		from, to = def.Span(zone)
		return from, to, nil
	}
	day, date := ledger.ParseDay(s)
	if date {
		from, to = day.Span(zone)
	} else {
		from, err = time.Parse(time.RFC3339Nano, s)
		to = from
	}
	if err != nil || from.Year() < 1970 || from.Year() > 9998 {
		return from, to, problem(http.StatusBadRequest, "time_invalid", name, "must be a time such as 2026-11-23T18:00:00Z (a + is written %2B) or a date such as 2026-11-23")
	}
	return from, to, nil
}
