package web

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

const usersPath = "/api/v1/users"

// Users is what tenants do with their users.
type Users interface {
	CreateUser(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewUser) (u ledger.User, replayed bool, err error)
	User(ctx context.Context, t tenants.ID, id string) (ledger.User, error)
	UserByEmail(ctx context.Context, t tenants.ID, email string) (u ledger.User, found bool, err error)
	ChangeUser(ctx context.Context, t tenants.ID, id string, c ledger.UserChange) (ledger.User, error)
	VerifyUser(ctx context.Context, t tenants.ID, id string) (ledger.User, error)
}

// newUser is the body of POST /users.
type newUser struct {
	ID    string `json:"id,omitempty" doc:"An id of the app's own; left out, the box makes one." example:"customer-17"`
	Email string `json:"email" doc:"Unique in its tenant, in any case of letters." example:"ana@example.org"`
	Name  string `json:"name,omitempty" example:"Ana Lima"`
}

// userChange is the body of PATCH /users/{id}. What is left out stays.
type userChange struct {
	Email *string `json:"email,omitempty" doc:"A new address is not verified."`
	Name  *string `json:"name,omitempty"`
}

type keyInput struct {
	request
	IdempotencyKey string `header:"Idempotency-Key" doc:"Names this request: sent again with the same key, it is the same record."`
}

type userInput struct {
	request
	ID string `path:"id"`
}

type changeInput struct {
	request
	ID      string `path:"id"`
	IfMatch string `header:"If-Match" doc:"The ETag of the version that is changed; another one: 412."`
}

type usersInput struct {
	request
	Email string `query:"email" doc:"The address to look for."`
}

// createdOutput is a record that a request with an optional key made.
type createdOutput[T any] struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Replayed string `header:"Idempotent-Replayed" doc:"true: the key had been used for this request before."`
	Body     T
}

func replayedHeader(replayed bool) string {
	if replayed {
		return "true"
	}
	return ""
}

type (
	userOutput struct {
		ETag string `header:"ETag" doc:"The version, for If-Match."`
		Body ledger.User
	}
	usersOutput struct{ Body page[ledger.User] }
)

func showUser(u ledger.User, err error) (*userOutput, error) {
	if err != nil {
		return nil, err
	}
	return &userOutput{versionTag(u.Version), u}, nil
}

func versionTag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

func (s *Server) registerUsers() {
	op := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"users"}}
	}
	one := usersPath + "/{id}"
	create := op("create-user", http.MethodPost, usersPath, "Add a user")
	create.DefaultStatus = http.StatusCreated
	register(s, create, forTenant, func(ctx context.Context, in *keyInput) (*createdOutput[ledger.User], error) {
		key, err := idempotencyKey(in.x.r.Header)
		if err != nil {
			return nil, err
		}
		var body newUser
		if err := in.x.decode(&body); err != nil {
			return nil, err
		}
		u, replayed, err := s.ledger.CreateUser(ctx, in.x.caller.Tenant, key, ledger.NewUser(body))
		if err != nil {
			return nil, err
		}
		return &createdOutput[ledger.User]{usersPath + "/" + url.PathEscape(string(u.ID)), versionTag(u.Version), replayedHeader(replayed), u}, nil
	})
	documentBody[newUser](s.api, http.MethodPost, usersPath)
	register(s, op("get-user", http.MethodGet, one, "Read a user"), forTenant, func(ctx context.Context, in *userInput) (*userOutput, error) {
		return showUser(s.ledger.User(ctx, in.x.caller.Tenant, in.ID))
	})
	register(s, op("find-user", http.MethodGet, usersPath, "Find a user by e-mail address"), forTenant, func(ctx context.Context, in *usersInput) (*usersOutput, error) {
		if in.Email == "" {
			return nil, problem(http.StatusBadRequest, "parameter_missing", "email", "name the e-mail address to look for")
		}
		u, found, err := s.ledger.UserByEmail(ctx, in.x.caller.Tenant, in.Email)
		if err != nil {
			return nil, err
		}
		out := &usersOutput{page[ledger.User]{Data: []ledger.User{}}}
		if found {
			out.Body.Data = append(out.Body.Data, u)
		}
		return out, nil
	})
	register(s, op("change-user", http.MethodPatch, one, "Change a user"), forTenant, func(ctx context.Context, in *changeInput) (*userOutput, error) {
		version, err := ifMatch(in.x.r.Header)
		if err != nil {
			return nil, err
		}
		var body userChange
		if err := in.x.decode(&body); err != nil {
			return nil, err
		}
		return showUser(s.ledger.ChangeUser(ctx, in.x.caller.Tenant, in.ID, ledger.UserChange{Email: body.Email, Name: body.Name, Version: version}))
	})
	documentBody[userChange](s.api, http.MethodPatch, one)
	verify := op("verify-user", http.MethodPost, one+"/verify", "Note that a user's e-mail address was proven")
	verify.Description = "Twice is fine: the first time stays."
	register(s, verify, forTenant, func(ctx context.Context, in *userInput) (*userOutput, error) {
		return showUser(s.ledger.VerifyUser(ctx, in.x.caller.Tenant, in.ID))
	})
}

// ifMatch reads the version that a change is meant for; 0: any (no header, or *).
func ifMatch(h http.Header) (int64, error) {
	values := h["If-Match"]
	if len(values) == 0 || len(values) == 1 && strings.TrimSpace(values[0]) == "*" {
		return 0, nil
	}
	bad := problem(http.StatusBadRequest, "if_match_invalid", "If-Match", "give one ETag that the box has answered, or *")
	if len(values) != 1 {
		return 0, bad
	}
	text, quoted := strings.CutPrefix(strings.TrimSpace(values[0]), `"`)
	text, closed := strings.CutSuffix(text, `"`)
	version, err := strconv.ParseInt(text, 10, 64)
	if !quoted || !closed || err != nil || version < 1 {
		return 0, bad
	}
	return version, nil
}
