package web

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/julienschmidt/httprouter"
)

// adapter puts huma's operations on the router, except a direct one, of which huma only keeps the description.
type adapter struct {
	huma.Adapter
	router *httprouter.Router
	direct httprouter.Handle // serves the next operation; nil: huma does
}

// Handle is for huma.
func (a *adapter) Handle(op *huma.Operation, handler func(huma.Context)) {
	if a.direct == nil {
		a.Adapter.Handle(op, handler)
		return
	}
	a.router.Handle(op.Method, strings.NewReplacer("{", ":", "}", "").Replace(op.Path), a.direct)
	a.direct = nil
}

// registerDirect adds a route that reads its request and writes its answer by itself: what huma does between costs some
// 6 µs, which counts where thousands ask each second. I and O describe it; fn's errors become problems.
func registerDirect[I, O any](s *Server, op huma.Operation, who access, fn func(x *exchange, ps httprouter.Params) error) {
	enter := s.entrance(&op, who, parametersOf[I]())
	s.adapter.direct = func(w http.ResponseWriter, _ *http.Request, ps httprouter.Params) {
		x := w.(*exchange)
		if !enter(x) {
			return
		}
		if err := fn(x, ps); err != nil {
			x.problem(s.fail(x, err))
		}
	}
	huma.Register(s.api, op, func(context.Context, *I) (*O, error) { return nil, errors.ErrUnsupported }) // never called
}

// answer writes v as JSON.
func (x *exchange) answer(status int, v any) error {
	x.Header()["Content-Type"] = jsonTypes
	x.WriteHeader(status)
	_ = marshal(x, v) // the client has gone; there is nobody to tell
	return nil
}

var jsonTypes = []string{jsonType}

// write sends an answer of JSON that is put together already, with its length.
func (x *exchange) write(status int, b []byte) {
	defer x.answering(len(b))()
	h := x.Header()
	h["Content-Type"] = jsonTypes
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	x.WriteHeader(status)
	_, _ = x.Write(b) // the client has gone; there is nobody to tell
}
