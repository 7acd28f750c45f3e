package web

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"reflect"
	"strconv"

	"tenderbox/tenants"
)

const (
	pageDefault = 20
	pageMax     = 100

	// cursorMax bounds a cursor: a position in the events of 64 shards, and its seal.
	cursorMax = 1024
	// sealBytes of HMAC-SHA256: enough that guessing one takes longer than a till lives.
	sealBytes = 12
)

// parameters are the names that a route's query may have.
type parameters map[string]bool

// parametersOf reads them from the `query` tags of a handler's input.
func parametersOf[I any]() parameters {
	known := parameters{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[I]()) {
		if name := f.Tag.Get("query"); name != "" {
			known[name] = true
		}
	}
	return known
}

// check refuses unknown, repeated and malformed parameters: a misspelt filter must not look like an empty result.
func (p parameters) check(raw string) error {
	if raw == "" {
		return nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return problem(http.StatusBadRequest, "parameter_invalid", "", "the query cannot be read")
	}
	for name, vs := range values {
		switch {
		case !p[name]:
			return problem(http.StatusBadRequest, "parameter_unknown", clip(name), "there is no such parameter")
		case len(vs) > 1:
			return problem(http.StatusBadRequest, "parameter_duplicate", name, "a parameter may be given once")
		}
	}
	return nil
}

// PageQuery is how lists are asked for. It is exported because huma looks into embedded structs only then.
type PageQuery struct {
	Limit  string `query:"limit" doc:"How many, 1 to 100." example:"20"`
	Cursor string `query:"cursor" doc:"next_cursor of the page before."`
}

func (p *PageQuery) limit() (int, error) {
	if p.Limit == "" {
		return pageDefault, nil
	}
	n, err := strconv.Atoi(p.Limit)
	if err != nil || n < 1 || n > pageMax {
		return 0, problem(http.StatusBadRequest, "limit_invalid", "limit", "must be a whole number from 1 to 100")
	}
	return n, nil
}

// sealCursor makes a list's position opaque: clients cannot make one up, nor use it as another tenant or on another list.
func (s *Server) sealCursor(list string, t tenants.ID, position string) *string {
	if position == "" {
		return nil
	}
	sealed := base64.RawURLEncoding.EncodeToString(append(s.cursorSeal(list, t, position), position...))
	return &sealed
}

// openCursor returns the position in a cursor of the same list and tenant.
func (s *Server) openCursor(list string, t tenants.ID, cursor string) (position string, err error) {
	if cursor == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(cursor) > cursorMax || len(b) <= sealBytes ||
		!hmac.Equal(b[:sealBytes], s.cursorSeal(list, t, string(b[sealBytes:]))) {
		return "", errCursor
	}
	return string(b[sealBytes:]), nil
}

var errCursor = problem(http.StatusBadRequest, "cursor_invalid", "cursor", "use next_cursor of the page before")

func (s *Server) cursorSeal(list string, t tenants.ID, position string) []byte {
	mac := hmac.New(sha256.New, s.cursorKey)
	for _, part := range []string{list, string(t), position} {
		mac.Write([]byte(part))
		mac.Write([]byte{0}) // ids and names hold none
	}
	return mac.Sum(nil)[:sealBytes]
}
