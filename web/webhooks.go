package web

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/tenants"
)

const (
	webhooksPath = "/api/v1/webhooks"
	webhookPath  = webhooksPath + "/{id}"

	// overlapMax seconds for which a rotated secret may go on signing: the registry's 30 days.
	overlapMax = 30 * 24 * 60 * 60
)

// Deliveries is what the server asks of whoever delivers events to endpoints: it knows their form, the server does not.
type Deliveries interface {
	// JobsFor makes a job of each endpoint's delivery of an event.
	JobsFor(e *ledger.Event, endpoints []string) []jobs.NewJob
	// TestJob makes the job of a test event to one endpoint.
	TestJob(t tenants.ID, endpoint string, now time.Time) jobs.NewJob
	// Status is what the endpoint answered to an attempt with this error; 0: no answer came.
	Status(attempt string) int
}

// webhookView is an endpoint. Its secrets are not shown.
type webhookView struct {
	ID             string    `json:"id"`
	Object         string    `json:"object" enum:"webhook"`
	URL            string    `json:"url"`
	Types          []string  `json:"types" doc:"Types of events that it is told of."`
	Disabled       bool      `json:"disabled" doc:"Nothing is sent; what waited for it has failed and can be replayed."`
	DisabledReason *string   `json:"disabled_reason" doc:"Why the box disabled it."`
	Secrets        int       `json:"secrets" doc:"How many secrets sign at present: more than one after a rotation."`
	CreatedAt      time.Time `json:"created_at"`
}

// webhookWithSecret is an endpoint whose secret was just made.
type webhookWithSecret struct {
	webhookView
	Secret string `json:"secret" doc:"Shown now and never again: whsec_ and base64, as Standard Webhooks libraries take it."`
}

// newWebhook is the body of POST /webhooks.
type newWebhook struct {
	URL   string   `json:"url" doc:"https to a public address; what the operator allows beyond that, the refusal says." example:"https://shop.example/hooks"`
	Types []string `json:"types,omitempty" doc:"Such as user.created, user.* or *; left out: all." example:"[\"payment.*\",\"order.completed\"]"`
}

// webhookChange is the body of PATCH /webhooks/{id}. What is left out stays.
type webhookChange struct {
	URL      given[string]   `json:"url"`
	Types    given[[]string] `json:"types"`
	Disabled given[bool]     `json:"disabled"`
}

// webhookChangeForm documents webhookChange.
type webhookChangeForm struct {
	URL      string   `json:"url,omitempty"`
	Types    []string `json:"types,omitempty"`
	Disabled bool     `json:"disabled,omitempty" doc:"false also enables one that the box disabled."`
}

// newRotation is the body of POST /webhooks/{id}/rotate-secret.
type newRotation struct {
	OverlapS *int64 `json:"overlap_s,omitempty" minimum:"0" maximum:"2592000" doc:"Seconds for which the former secret signs beside the new one; 0: not at all, for one that leaked. Default: a day."`
}

type webhookInput struct {
	request
	ID string `path:"id"`
}

type webhooksInput struct {
	request
	PageQuery
}

type (
	webhookOutput       struct{ Body webhookView }
	webhooksOutput      struct{ Body page[webhookView] }
	webhookSecretOutput struct {
		Location string `header:"Location"`
		Body     webhookWithSecret
	}
)

func (s *Server) registerWebhooks() {
	op := func(id, method, path, summary, description string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Description: description, Tags: []string{"webhooks"}}
	}
	create := op("create-webhook", http.MethodPost, webhooksPath, "Add an endpoint that is told of events",
		"Signed as Standard Webhooks has it. The secret is shown in this answer alone. Events from now on are told, each at least once.")
	create.DefaultStatus = http.StatusCreated
	register(s, create, forTenant, s.createWebhook)
	documentBody[newWebhook](s.api, http.MethodPost, webhooksPath)
	register(s, op("list-webhooks", http.MethodGet, webhooksPath, "List endpoints, newest first", ""), forTenant, s.listWebhooks)
	register(s, op("get-webhook", http.MethodGet, webhookPath, "Read an endpoint", ""), forTenant, s.readWebhook)
	register(s, op("change-webhook", http.MethodPatch, webhookPath, "Change, disable or enable an endpoint",
		"Holds for deliveries that wait already."), forTenant, s.changeWebhook)
	documentBody[webhookChangeForm](s.api, http.MethodPatch, webhookPath)
	remove := op("remove-webhook", http.MethodDelete, webhookPath, "Remove an endpoint", "What waits for it is not sent any more.")
	remove.DefaultStatus = http.StatusNoContent
	register(s, remove, forTenant, s.removeWebhook)
	register(s, op("rotate-webhook-secret", http.MethodPost, webhookPath+"/rotate-secret", "Give an endpoint a new secret",
		"It is shown in this answer alone. The former one signs beside it for overlap_s. The body may be left out."), forTenant, s.rotateWebhook)
	documentBody[newRotation](s.api, http.MethodPost, webhookPath+"/rotate-secret")
	s.registerDeliveries(op)
}

// webhookError explains what the registry of endpoints refuses.
func webhookError(err error) error {
	var invalid *tenants.InvalidError
	switch {
	case errors.Is(err, tenants.ErrEndpointNotFound):
		return errNotFound
	case errors.Is(err, tenants.ErrEndpointsMax):
		return problem(http.StatusConflict, "webhook_limit", "", tenants.ErrEndpointsMax.Error())
	case errors.As(err, &invalid):
		return problem(http.StatusUnprocessableEntity, invalid.Field+"_invalid", invalid.Field, invalid.Message)
	}
	return err
}

func (s *Server) createWebhook(ctx context.Context, in *bareInput) (*webhookSecretOutput, error) {
	var body newWebhook
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	e, secret, err := s.webhooks.Add(ctx, in.x.caller.Tenant, tenants.NewEndpoint{URL: body.URL, Types: body.Types})
	if err != nil {
		return nil, webhookError(err)
	}
	return &webhookSecretOutput{webhooksPath + "/" + e.ID, webhookWithSecret{viewOfWebhook(&e), secret}}, nil
}

func (s *Server) listWebhooks(_ context.Context, in *webhooksInput) (*webhooksOutput, error) {
	t := in.x.caller.Tenant
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	position, err := s.openCursor("webhooks", t, in.Cursor)
	if err != nil {
		return nil, err
	}
	all := s.webhooks.List(t) // newest first, which is by id
	if position != "" {
		all = slices.DeleteFunc(all, func(e tenants.Endpoint) bool { return e.ID >= position })
	}
	out := &webhooksOutput{page[webhookView]{Data: []webhookView{}}}
	for i := range all[:min(limit, len(all))] {
		out.Body.Data = append(out.Body.Data, viewOfWebhook(&all[i]))
	}
	if out.Body.HasMore = len(all) > limit; out.Body.HasMore {
		out.Body.NextCursor = s.sealCursor("webhooks", t, all[limit-1].ID)
	}
	return out, nil
}

func (s *Server) readWebhook(_ context.Context, in *webhookInput) (*webhookOutput, error) {
	return showWebhook(s.webhooks.Get(in.x.caller.Tenant, in.ID))
}

func (s *Server) changeWebhook(ctx context.Context, in *webhookInput) (*webhookOutput, error) {
	var body webhookChange
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	return showWebhook(s.webhooks.Update(ctx, in.x.caller.Tenant, in.ID, func(e *tenants.Endpoint) error {
		if body.URL.set {
			e.URL = body.URL.value
		}
		if body.Types.set {
			e.Types = body.Types.value
		}
		if body.Disabled.set && e.Disabled != body.Disabled.value {
			e.Disabled, e.DisabledReason = body.Disabled.value, ""
		}
		return nil
	}))
}

func (s *Server) removeWebhook(ctx context.Context, in *webhookInput) (*struct{}, error) {
	if err := s.webhooks.Remove(ctx, in.x.caller.Tenant, in.ID); err != nil {
		return nil, webhookError(err)
	}
	return nil, nil
}

func (s *Server) rotateWebhook(ctx context.Context, in *webhookInput) (*webhookSecretOutput, error) {
	var body newRotation
	if in.x.r.ContentLength != 0 { // the body is all options, and may be left out
		if err := in.x.decode(&body); err != nil {
			return nil, err
		}
	}
	overlap := time.Duration(0) // the registry's default
	if o := body.OverlapS; o != nil {
		if err := between("overlap_s", *o, 0, overlapMax); err != nil {
			return nil, err
		}
		if overlap = time.Duration(*o) * time.Second; overlap == 0 {
			overlap = -1 // none at all
		}
	}
	e, secret, err := s.webhooks.Rotate(ctx, in.x.caller.Tenant, in.ID, overlap)
	if err != nil {
		return nil, webhookError(err)
	}
	return &webhookSecretOutput{"", webhookWithSecret{viewOfWebhook(&e), secret}}, nil
}

func showWebhook(e tenants.Endpoint, err error) (*webhookOutput, error) {
	if err != nil {
		return nil, webhookError(err)
	}
	return &webhookOutput{viewOfWebhook(&e)}, nil
}

func viewOfWebhook(e *tenants.Endpoint) webhookView {
	return webhookView{ID: e.ID, Object: "webhook", URL: e.URL, Types: e.Types, Disabled: e.Disabled, DisabledReason: textOrNil(e.DisabledReason),
		Secrets: len(e.Secrets), CreatedAt: e.CreatedAt}
}
