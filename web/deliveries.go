package web

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/tenants"
)

const (
	// webhooksQueue holds the deliveries. A job's id is its endpoint's, a colon and the event's.
	webhooksQueue = "webhooks"

	// WebhookTest is the type of the event that a test sends. It stands in no journal.
	WebhookTest = "webhook.test"

	deliveriesPath = webhookPath + "/deliveries"
	deliveryPath   = deliveriesPath + "/{event_id}"

	// deliveryScan and deliveryScanBytes bound what one page looks through: other endpoints' deliveries stand between.
	deliveryScan, deliveryScanBytes = 1000, 16 << 20
)

// deliveryStates are all states, in the order in which a list without a state goes through them: what is still to be done first.
var deliveryStates = []jobs.State{jobs.Active, jobs.Waiting, jobs.Delayed, jobs.Failed, jobs.Completed}

// deliveryView is an event on its way to an endpoint.
type deliveryView struct {
	Object        string                `json:"object" enum:"webhook_delivery"`
	WebhookID     string                `json:"webhook_id"`
	EventID       string                `json:"event_id" doc:"Also the webhook-id of every attempt."`
	Type          string                `json:"type" example:"payment.succeeded"`
	State         jobs.State            `json:"state" enum:"waiting,delayed,active,completed,failed" doc:"completed: the endpoint has it."`
	AttemptsMade  int                   `json:"attempts_made" doc:"Attempts begun, the present one included."`
	Status        *int                  `json:"status" doc:"What the endpoint answered last; null: nothing yet."`
	Error         *string               `json:"error" doc:"Of the last failed attempt."`
	Attempts      []deliveryAttemptView `json:"attempts" doc:"Those that ended, oldest first; of many, the newest."`
	CreatedAt     time.Time             `json:"created_at"`
	NextAttemptAt *time.Time            `json:"next_attempt_at" doc:"Of one that waits."`
	FinishedAt    *time.Time            `json:"finished_at"`
}

type deliveryAttemptView struct {
	N         int        `json:"n" doc:"From 1."`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at" doc:"null: the box ended during it."`
	Status    *int       `json:"status" doc:"null: no answer came."`
	Error     *string    `json:"error" doc:"null: it was delivered."`
}

type deliveriesInput struct {
	request
	PageQuery
	ID    string `path:"id"`
	State string `query:"state" doc:"waiting, delayed, active, completed or failed. Left out: all, those that are not over first."`
}

type deliveryInput struct {
	request
	ID      string `path:"id"`
	EventID string `path:"event_id"`
}

// newReplay is the body of POST /webhooks/{id}/replay.
type newReplay struct {
	EventID string `json:"event_id" doc:"The event to send again, or after all." example:"evt_01KB..."`
}

type (
	deliveryOutput   struct{ Body deliveryView }
	deliveriesOutput struct{ Body page[deliveryView] }
	sentOutput       struct {
		Location string `header:"Location" doc:"Where to see what came of it."`
		Body     deliveryView
	}
)

func (s *Server) registerDeliveries(op func(id, method, path, summary, description string) huma.Operation) {
	register(s, op("list-webhook-deliveries", http.MethodGet, deliveriesPath, "List what was and is to be sent to an endpoint",
		"Newest first within a state. A page may be short, even empty, though has_more is true. Kept of a tenant: the last 100 that were delivered, for a week, and 500 that failed, for "+
			"30 days."), forTenant, s.listDeliveries)
	register(s, op("get-webhook-delivery", http.MethodGet, deliveryPath, "See what came of an event", ""), forTenant, s.readDelivery)
	test := op("test-webhook", http.MethodPost, webhookPath+"/test", "Send a test event to this endpoint alone",
		"Answered 202, an event of the type "+WebhookTest+" is on the box's disk and is tried once; Location is where its outcome can be read.")
	test.DefaultStatus = http.StatusAccepted
	register(s, test, forTenant, s.testWebhook)
	replay := op("replay-webhook", http.MethodPost, webhookPath+"/replay", "Send an event to this endpoint again",
		"Under the same webhook-id. Attempts are counted anew. One that is still to be sent: 409 job_state.")
	replay.DefaultStatus = http.StatusAccepted
	register(s, replay, forTenant, s.replayWebhook)
	documentBody[newReplay](s.api, http.MethodPost, webhookPath+"/replay")
}

func deliveryID(endpoint, event string) string { return endpoint + ":" + event }

// deliveryPlace is where a page of deliveries ended: the state, and behind which job of it.
type deliveryPlace struct {
	state int // index in deliveryStates
	after string
}

func (p deliveryPlace) String() string { return string(deliveryStates[p.state]) + " " + p.after }

func parseDeliveryPlace(text string) (p deliveryPlace) {
	state, after, _ := strings.Cut(text, " ")
	return deliveryPlace{max(slices.Index(deliveryStates, jobs.State(state)), 0), after} // sealed by us; "": from the beginning
}

func (s *Server) listDeliveries(_ context.Context, in *deliveriesInput) (*deliveriesOutput, error) {
	t := in.x.caller.Tenant
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	first, last := 0, len(deliveryStates)-1
	if in.State != "" {
		if first = slices.Index(deliveryStates, jobs.State(in.State)); first < 0 {
			return nil, problem(http.StatusBadRequest, "state_invalid", "state", "must be waiting, delayed, active, completed or failed")
		}
		last = first
	}
	if _, err := s.webhooks.Get(t, in.ID); err != nil {
		return nil, webhookError(err)
	}
	list := "deliveries/" + in.ID + "/" + in.State
	position, err := s.openCursor(list, t, in.Cursor)
	if err != nil {
		return nil, err
	}
	at := deliveryPlace{state: first}
	if position != "" {
		at = parseDeliveryPlace(position)
	}
	if err := in.x.mayAnswer(); err != nil {
		return nil, err
	}
	out := &deliveriesOutput{page[deliveryView]{Data: []deliveryView{}}}
	for looked, size := 0, 0; at.state <= last; {
		if len(out.Body.Data) >= limit || looked >= deliveryScan || size >= deliveryScanBytes {
			out.Body.HasMore, out.Body.NextCursor = true, s.sealCursor(list, t, at.String())
			break
		}
		// No more than there is room for: so the page ends where the engine's does.
		found, err := s.jobs.List(string(t), webhooksQueue, deliveryStates[at.state], jobs.ListOptions{Limit: limit - len(out.Body.Data), After: at.after})
		if err != nil {
			return nil, err
		}
		for i := range found.Jobs {
			looked, size = looked+1, size+len(found.Jobs[i].Data)
			if strings.HasPrefix(found.Jobs[i].ID, deliveryID(in.ID, "")) {
				out.Body.Data = append(out.Body.Data, s.viewOfDelivery(&found.Jobs[i]))
			}
		}
		if at.after = found.Next; at.after == "" {
			at.state++
		}
	}
	return out, nil
}

func (s *Server) readDelivery(_ context.Context, in *deliveryInput) (*deliveryOutput, error) {
	t := in.x.caller.Tenant
	if _, err := s.webhooks.Get(t, in.ID); err != nil {
		return nil, webhookError(err)
	}
	j, err := s.jobs.Get(string(t), webhooksQueue, deliveryID(in.ID, in.EventID))
	if err != nil {
		return nil, err
	}
	return &deliveryOutput{s.viewOfDelivery(&j)}, nil
}

// sendable finds an endpoint that something can be sent to.
func (s *Server) sendable(t tenants.ID, id string) error {
	e, err := s.webhooks.Get(t, id)
	if err != nil {
		return webhookError(err)
	}
	if e.Disabled {
		return problem(http.StatusConflict, "webhook_disabled", "", "the endpoint is disabled; enable it with PATCH {\"disabled\": false}")
	}
	return nil
}

func (s *Server) testWebhook(ctx context.Context, in *webhookInput) (*sentOutput, error) {
	t := in.x.caller.Tenant
	if err := s.sendable(t, in.ID); err != nil {
		return nil, err
	}
	return s.deliver(ctx, in.ID, s.deliveries.TestJob(t, in.ID, s.now().UTC()))
}

func (s *Server) replayWebhook(ctx context.Context, in *webhookInput) (*sentOutput, error) {
	var body newReplay
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	if err := s.sendable(t, in.ID); err != nil {
		return nil, err
	}
	j, err := s.jobs.Retry(ctx, string(t), webhooksQueue, deliveryID(in.ID, body.EventID))
	if err == nil {
		return s.sent(in.ID, &j), nil
	}
	if !errors.Is(err, jobs.ErrNotFound) && !errors.Is(err, jobs.ErrDamaged) {
		return nil, err
	}
	// It was never sent there, or that is long ago: what happened still stands in the journal.
	e, err := s.ledger.Event(ctx, t, body.EventID)
	var refusal *ledger.Error
	if errors.As(err, &refusal) && refusal.Kind == ledger.NotFound {
		return nil, errEventUnknown
	}
	if err != nil {
		return nil, err
	}
	made := s.deliveries.JobsFor(&e, []string{in.ID})
	if len(made) == 0 {
		return nil, problem(http.StatusConflict, "event_not_sent", "event_id", "the news of a webhook that failed is not sent by webhook")
	}
	return s.deliver(ctx, in.ID, made[0])
}

var errEventUnknown = problem(http.StatusNotFound, "event_unknown", "event_id",
	"no delivery of this event to this endpoint is kept, and the event was not found by its id; GET /api/v1/events lists those that there are")

// deliver makes the job durable.
func (s *Server) deliver(ctx context.Context, endpoint string, j jobs.NewJob) (*sentOutput, error) {
	made, err := s.jobs.Enqueue(ctx, j)
	if err != nil {
		return nil, err
	}
	return s.sent(endpoint, &made[0]), nil
}

func (s *Server) sent(endpoint string, j *jobs.Job) *sentOutput {
	v := s.viewOfDelivery(j)
	return &sentOutput{webhooksPath + "/" + endpoint + "/deliveries/" + url.PathEscape(v.EventID), v}
}

func (s *Server) viewOfDelivery(j *jobs.Job) deliveryView {
	endpoint, event, _ := strings.Cut(j.ID, ":")
	v := deliveryView{Object: "webhook_delivery", WebhookID: endpoint, EventID: event, Type: typeOfDelivery(j.Data), State: j.State, AttemptsMade: j.AttemptsMade,
		Error: textOrNil(strings.ToValidUTF8(j.LastError, "\uFFFD")), Attempts: make([]deliveryAttemptView, len(j.History)), CreatedAt: j.CreatedAt.UTC(), FinishedAt: timeOrNil(j.FinishedAt)}
	if j.State == jobs.Waiting || j.State == jobs.Delayed {
		v.NextAttemptAt = timeOrNil(j.RunAt)
	}
	for i, a := range j.History {
		one := deliveryAttemptView{N: a.N, StartedAt: a.StartedAt.UTC(), EndedAt: timeOrNil(a.EndedAt), Error: textOrNil(strings.ToValidUTF8(a.Error, "\uFFFD"))}
		one.Status = numberOrNil(s.deliveries.Status(a.Error))
		if a.Error == "" && !a.EndedAt.IsZero() {
			one.Status = numberOrNil(statusOfResult(j.Result))
		}
		v.Attempts[i] = one
		if one.Status != nil {
			v.Status = one.Status
		}
	}
	return v
}

// typeOfDelivery reads the event's type from the job; "" from one that is no delivery.
func typeOfDelivery(data []byte) string {
	var d struct {
		Event struct {
			Type string `json:"type"`
		} `json:"event"`
	}
	_ = json.Unmarshal(data, &d) // a job that is none has no type
	return d.Event.Type
}

// statusOfResult reads what the endpoint answered to the attempt that was taken.
func statusOfResult(result []byte) int {
	var r struct {
		Status int `json:"status"`
	}
	_ = json.Unmarshal(result, &r) // one that is kept no more has no status
	return r.Status
}

func numberOrNil(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}
