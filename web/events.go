package web

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/julienschmidt/httprouter"

	"tenderbox/bus"
	"tenderbox/ledger"
	"tenderbox/tenants"
)

const (
	eventsPath      = "/api/v1/events"
	eventStreamPath = eventsPath + "/stream"

	// eventPoll is how often a stream looks for events that it was not woken for.
	eventPoll = streamBeat
)

// Events is what tenants hear and tell.
type Events interface {
	Events(context.Context, tenants.ID, ledger.EventFilter) (ledger.EventPage, error)
	Event(ctx context.Context, t tenants.ID, id string) (ledger.Event, error)
	Emit(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewEvent) (e ledger.Event, replayed bool, err error)
	Hear(tenants.ID) (news <-chan struct{}, leave func())
	Now() ledger.Position
}

// CloudEvent is an event in the form in which it leaves the box (CloudEvents 1.0).
func CloudEvent(e *ledger.Event, source string) bus.Event {
	return bus.Event{ID: string(e.ID), Source: source, Tenant: string(e.Tenant), Type: string(e.Type), Subject: e.Subject,
		Time: e.OccurredAt, RecordedTime: e.RecordedAt(), Sequence: e.Sequence(), Data: e.Data}
}

// eventView describes an event.
type eventView struct {
	SpecVersion     string    `json:"specversion" enum:"1.0"`
	ID              string    `json:"id" doc:"The same whenever and however often it is told."`
	Source          string    `json:"source" doc:"The box."`
	Type            string    `json:"type" example:"payment.succeeded"`
	Subject         string    `json:"subject" doc:"The id of what it tells of."`
	Time            time.Time `json:"time"`
	Tenant          string    `json:"tenant"`
	RecordedTime    time.Time `json:"recordedtime,omitzero"`
	Sequence        string    `json:"sequence" doc:"Orders the events of a user and of a record, compared as text."`
	DataContentType string    `json:"datacontenttype"`
	Data            rawValue  `json:"data"`
}

// newEvent is the body of POST /events.
type newEvent struct {
	Type string   `json:"type" doc:"Dotted lower-case words, not of the box's own types." example:"till.opened"`
	Data rawValue `json:"data,omitempty" doc:"Any JSON."`
}

type eventsInput struct {
	request
	Limit string `query:"limit" doc:"How many, 1 to 100." example:"20"`
	After string `query:"after" doc:"next_cursor of the page before, or the id: of an event of the stream. Without it from the first event."`
	Types string `query:"types" doc:"Separated by commas; user.* and * match many." example:"payment.*,order.paid"`
}

type streamInput struct {
	request
	LastEventID string `header:"Last-Event-ID" doc:"The id: of the last event that was heard: the stream goes on behind it, also over restarts of the box."`
	After       string `query:"after" doc:"The same, for clients that cannot set the header."`
	Types       string `query:"types" doc:"Separated by commas; user.* and * match many."`
}

type (
	eventsOutput      struct{ Body page[eventView] }
	eventStreamOutput struct{ Body eventView }
)

func (s *Server) registerEvents() {
	op := func(id, method, path, summary, description string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Description: description, Tags: []string{"events"}}
	}
	registerDirect[eventsInput, eventsOutput](s, op("list-events", http.MethodGet, eventsPath, "Read events, oldest first",
		"A log: next_cursor is always given, to ask on with later. A page may be empty though has_more is true."), forTenant, s.listEvents)
	registerDirect[streamInput, eventStreamOutput](s, op("stream-events", http.MethodGet, eventStreamPath, "Hear events live (Server-Sent Events)",
		"Each event once and in order; after a break go on with Last-Event-ID. Without it nothing is missed after the answer's headers. A reader who is too "+
			"slow is cut off, and goes on likewise."), forTenant, s.streamEvents)
	answer := s.api.OpenAPI().Paths[eventStreamPath].Get.Responses["200"]
	answer.Content = map[string]*huma.MediaType{"text/event-stream": answer.Content[jsonType]}
	emit := op("emit-event", http.MethodPost, eventsPath, "Tell an event of the app's own", "")
	emit.DefaultStatus = http.StatusCreated
	registerDirect[keyInput, createdOutput[eventView]](s, emit, forTenant, s.emitEvent)
	documentBody[newEvent](s.api, http.MethodPost, eventsPath)
}

// eventPosition opens what a client was told as a place in its events.
func (s *Server) eventPosition(t tenants.ID, field, cursor string) (ledger.Position, error) {
	sealed, err := s.openCursor("events", t, cursor)
	if err == nil {
		if at, ok := ledger.ParsePosition(sealed); ok {
			return at, nil
		}
	}
	return ledger.Position{}, problem(http.StatusBadRequest, "cursor_invalid", field, "use next_cursor of a page, or the id: of an event that was heard")
}

func (s *Server) sealPosition(t tenants.ID, at ledger.Position) string {
	return *s.sealCursor("events", t, at.String()) // a position of the ledger is never empty
}

func splitTypes(types string) []string {
	if types == "" {
		return nil
	}
	return strings.Split(types, ",")
}

func (s *Server) listEvents(x *exchange, _ httprouter.Params) error {
	t, query := x.caller.Tenant, x.r.URL.Query()
	limit, err := (&PageQuery{Limit: query.Get("limit")}).limit()
	if err != nil {
		return err
	}
	f := ledger.EventFilter{Types: splitTypes(query.Get("types")), Limit: limit}
	if f.After, err = s.eventPosition(t, "after", query.Get("after")); err != nil {
		return err
	}
	page, err := s.ledger.Events(x.r.Context(), t, f)
	if err != nil {
		return err
	}
	b := []byte(`{"data":[`)
	for i := range page.Events {
		if i > 0 {
			b = append(b, ',')
		}
		b = CloudEvent(&page.Events[i], s.source).AppendJSON(b)
	}
	b = strconv.AppendBool(append(b, `],"has_more":`...), page.More)
	b = append(quoted(b, `,"next_cursor":`, s.sealPosition(t, page.Next)), "}\n"...)
	x.write(http.StatusOK, b)
	return nil
}

// streamEvents tells a tenant's events as they become durable. Each is read from the journals, the live ones
// from their ends in memory: so that what a resumed stream hears and what a lasting one hears is the same.
func (s *Server) streamEvents(x *exchange, _ httprouter.Params) error {
	t, query := x.caller.Tenant, x.r.URL.Query()
	field, last := "after", query.Get("after")
	if values := x.r.Header["Last-Event-Id"]; len(values) > 0 {
		if field, last = "Last-Event-ID", values[0]; len(values) > 1 {
			return problem(http.StatusBadRequest, "header_duplicate", field, "may be given once")
		}
	}
	f := ledger.EventFilter{Types: splitTypes(query.Get("types")), Limit: 100}
	var err error
	if f.After, err = s.eventPosition(t, field, last); err != nil {
		return err
	}
	if last == "" {
		f.After = s.ledger.Now()
	}
	news, leave := s.ledger.Hear(t) // before the first look: what comes between wakes
	defer leave()
	page, err := s.ledger.Events(x.r.Context(), t, f) // what is wrong with the request is answered, not streamed
	if err != nil {
		return err
	}
	done, err := x.held.stream(&s.admission)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := s.untilLeaving(x.r.Context())
	defer cancel()
	out := newEventStream(x)
	// The place before the page: whose line is cut behind this resumes there, and hears the page.
	b := append([]byte("retry: "+streamRetryMS+"\n"), s.positionLine(t, f.After)...)
	if out.write(append(b, '\n')) != nil {
		return nil // the client has gone
	}
	beat := time.NewTicker(eventPoll)
	defer beat.Stop()
	for {
		b = b[:0]
		for i := range page.Events {
			e := &page.Events[i]
			b = append(append(append(b, "event: "...), e.Type...), '\n')
			b = append(append(b, s.positionLine(t, page.Behind[i])...), "data: "...)
			b = append(CloudEvent(e, s.source).AppendJSON(b), "\n\n"...)
		}
		if len(b) > 0 && out.write(b) != nil {
			return nil
		}
		if !page.More {
			select {
			case <-ctx.Done():
				return nil
			case <-news:
			case <-beat.C:
				// A quiet filter moves on too, so that the next resume begins here.
				if out.write(append(append(b[:0], ": still here\n"...), s.positionLine(t, page.Next)+"\n"...)) != nil {
					return nil
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		f.After = page.Next
		next, err := s.ledger.Events(ctx, t, f)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// A shard cannot be read just now. The stream goes on; nothing is passed over.
			var refusal *ledger.Error
			if !errors.As(err, &refusal) || refusal.Kind != ledger.Unavailable {
				return nil
			}
			next = ledger.EventPage{Next: page.Next}
		}
		page = next
	}
}

func (s *Server) positionLine(t tenants.ID, at ledger.Position) string {
	return "id: " + s.sealPosition(t, at) + "\n"
}

func (s *Server) emitEvent(x *exchange, _ httprouter.Params) error {
	key, err := idempotencyKey(x.r.Header)
	if err != nil {
		return err
	}
	var body newEvent
	if _, err := x.decodeWithin(jobBodyMax, &body); err != nil {
		return err
	}
	e, replayed, err := s.ledger.Emit(x.r.Context(), x.caller.Tenant, key, ledger.NewEvent{Type: body.Type, Data: body.Data})
	if err != nil {
		return err
	}
	if replayed {
		x.Header()["Idempotent-Replayed"] = []string{"true"}
	}
	x.write(http.StatusCreated, append(CloudEvent(&e, s.source).AppendJSON(nil), '\n'))
	return nil
}
