package web

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"
	"github.com/julienschmidt/httprouter"
)

// registerDirect adds a route that huma describes but does not serve: routing a request through it, reading the input's tags
// and transforming the answer costs some 15 µs, about as much as all the rest of a hot route. What register does for a route is
// done here too, in the same order. I and O say in the description what register's would: I's tags are the parameters,
// O's the answer. serve returns an error only before it has written anything.
func registerDirect[I, O any](s *Server, op huma.Operation, who access, serve func(*exchange, httprouter.Params) error) {
	rt := s.metrics.route(op.Method + " " + op.Path)
	hasBody := op.Method != http.MethodGet && op.Method != http.MethodDelete
	params := parametersOf[I]()
	if who != public {
		op.Security = []map[string][]string{{securityBearer: {}}, {securityBasic: {}}}
	}
	huma.Register(described{s.api}, op, func(context.Context, *I) (*O, error) { return nil, nil })
	s.router.Handle(op.Method, strings.NewReplacer("{", ":", "}", "").Replace(op.Path),
		func(w http.ResponseWriter, r *http.Request, p httprouter.Params) {
			x := w.(*exchange)
			x.route, x.hasBody = rt, hasBody
			err := s.authenticate(x, who)
			if err == nil {
				err = params.check(r.URL.RawQuery)
			}
			if err == nil {
				err = serve(x, p)
			}
			if err != nil {
				x.refuse(s.fail(x, err))
			}
		})
}

// described is an API to which routes are added for the description alone.
type described struct{ huma.API }

func (described) Adapter() huma.Adapter { return unrouted{} }

type unrouted struct{}

func (unrouted) Handle(*huma.Operation, func(huma.Context))   {}
func (unrouted) ServeHTTP(http.ResponseWriter, *http.Request) {}

// answer writes v as JSON.
func (x *exchange) answer(status int, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		x.write(status, b)
	}
	return err
}

// write sends an answer of JSON in one piece, with its length.
func (x *exchange) write(status int, b []byte) {
	h := x.Header()
	h["Content-Type"] = jsonTypes
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	x.WriteHeader(status)
	_, _ = x.Write(b) // the client has gone; there is nobody to tell
}

var jsonTypes = []string{jsonType}
