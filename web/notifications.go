package web

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

const notificationsPath = "/api/v1/notifications"

// Notifications is what tenants do with their users' inboxes.
type Notifications interface {
	Notify(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewNotification) (n ledger.Notification, replayed bool, err error)
	Inbox(context.Context, tenants.ID, ledger.InboxFilter) (ledger.Inbox, error)
	ReadNotification(ctx context.Context, t tenants.ID, id string) (ledger.Notification, error)
	Profile(ctx context.Context, t tenants.ID, userID string) (ledger.Profile, error)
	ChangeProfile(ctx context.Context, t tenants.ID, userID string, c ledger.ProfileChange) (ledger.Profile, error)
}

// newNotification is the body of POST /notifications.
type newNotification struct {
	UserID  string `json:"user_id" doc:"A user of the tenant's."`
	Message string `json:"message" doc:"Text of up to 2000 bytes." example:"Your order is ready"`
}

// sentNotification is a notification on its way, and the job that delivers it.
type sentNotification struct {
	ledger.Notification
	Queue string `json:"queue" enum:"notifications" doc:"The queue through which it is delivered."`
	JobID string `json:"job_id" doc:"Its job there, a moment after this answer."`
}

// inboxPage is a page of an inbox.
type inboxPage struct {
	Data       []ledger.Notification `json:"data"`
	HasMore    bool                  `json:"has_more"`
	NextCursor *string               `json:"next_cursor"`
	Unread     int                   `json:"unread" doc:"In the whole inbox."`
}

// profileChange is the body of PATCH /users/{id}/profile. What is left out stays.
type profileChange struct {
	Locale        *string `json:"locale,omitempty" doc:"BCP 47." example:"pt-BR"`
	Notifications *bool   `json:"notifications,omitempty" doc:"false: pushes end without an entry in the inbox."`
}

type inboxInput struct {
	request
	PageQuery
	UserID string `query:"user_id" doc:"Whose inbox. Required."`
}

type notificationInput struct {
	request
	ID string `path:"id"`
}

type (
	notificationOutput struct{ Body ledger.Notification }
	inboxOutput        struct{ Body inboxPage }
	profileOutput      struct{ Body ledger.Profile }
)

func (s *Server) registerNotifications() {
	op := func(id, method, path, summary, tag string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tag}}
	}
	create := op("create-notification", http.MethodPost, notificationsPath, "Send a user a message", "notifications")
	create.DefaultStatus = http.StatusCreated
	create.Description = "Durable when it is answered, and delivered a moment later by a job of the queue `notifications` that has its id: to the user's inbox, " +
		"and as `notification.created` to the event stream. For a delay, a schedule or more attempts, put a job `push-notification` into that queue."
	register(s, create, forTenant, s.createNotification)
	documentBody[newNotification](s.api, http.MethodPost, notificationsPath)
	register(s, op("list-notifications", http.MethodGet, notificationsPath, "Read a user's inbox, newest first", "notifications"), forTenant, s.inbox)
	read := op("read-notification", http.MethodPost, notificationsPath+"/{id}/read", "Note that a notification was read", "notifications")
	read.Description = "Twice is fine: the first time stays."
	register(s, read, forTenant, func(ctx context.Context, in *notificationInput) (*notificationOutput, error) {
		n, err := s.ledger.ReadNotification(ctx, in.x.caller.Tenant, in.ID)
		return &notificationOutput{n}, err
	})
	profile := usersPath + "/{id}/profile"
	register(s, op("get-profile", http.MethodGet, profile, "Read what the box keeps about a user", "users"), forTenant,
		func(ctx context.Context, in *userInput) (*profileOutput, error) {
			p, err := s.ledger.Profile(ctx, in.x.caller.Tenant, in.ID)
			return &profileOutput{p}, err
		})
	register(s, op("change-profile", http.MethodPatch, profile, "Change a user's locale, or whether they want notifications", "users"), forTenant,
		func(ctx context.Context, in *userInput) (*profileOutput, error) {
			var body profileChange
			if err := in.x.decode(&body); err != nil {
				return nil, err
			}
			p, err := s.ledger.ChangeProfile(ctx, in.x.caller.Tenant, in.ID, ledger.ProfileChange(body))
			return &profileOutput{p}, err
		})
	documentBody[profileChange](s.api, http.MethodPatch, profile)
}

func (s *Server) createNotification(ctx context.Context, in *keyInput) (*createdOutput[sentNotification], error) {
	key, err := idempotencyKey(in.x.r.Header)
	if err != nil {
		return nil, err
	}
	var body newNotification
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	n, replayed, err := s.ledger.Notify(ctx, in.x.caller.Tenant, key, ledger.NewNotification(body))
	if err != nil {
		return nil, err
	}
	return &createdOutput[sentNotification]{Replayed: replayedHeader(replayed), Body: sentNotification{n, ledger.NotificationsQueue, string(n.ID)}}, nil
}

func (s *Server) inbox(ctx context.Context, in *inboxInput) (*inboxOutput, error) {
	t := in.x.caller.Tenant
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	if in.UserID == "" {
		return nil, problem(http.StatusBadRequest, "parameter_missing", "user_id", "name the user whose inbox it is")
	}
	// Of one inbox alone: another user's positions say nothing here.
	list := "notifications/" + in.UserID
	cursor, err := s.openCursor(list, t, in.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Inbox(ctx, t, ledger.InboxFilter{UserID: in.UserID, Limit: limit, Cursor: cursor})
	if err != nil {
		return nil, err
	}
	out := &inboxOutput{inboxPage{found.Data, found.HasMore, s.sealCursor(list, t, found.NextCursor), found.Unread}}
	if out.Body.Data == nil {
		out.Body.Data = []ledger.Notification{}
	}
	return out, nil
}
