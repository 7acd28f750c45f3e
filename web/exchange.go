package web

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humahttprouter"
	json "github.com/go-json-experiment/json"

	"tenderbox/tenants"
)

// exchange is one request and its answer on their way through the server. It is the http.ResponseWriter that handlers see.
type exchange struct {
	http.ResponseWriter
	r       *http.Request
	s       *Server
	route   *route
	caller  tenants.Caller
	held    holding // what the request occupies, and must give back
	lane    *lane   // the tenant's share; nil: nobody's
	status  int     // 0: nothing is written yet
	hasBody bool    // the route takes a body
}

// WriteHeader notes the status.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 || x.status < 200 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write notes that the answer has begun.
func (x *exchange) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	return x.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// refuse answers with a problem before the body is read.
func (x *exchange) refuse(p *Problem) {
	if x.r.Body != nil && x.r.Body != http.NoBody {
		// The rest of a body that nobody wants is not worth receiving.
		x.Header()["Connection"] = closing
	}
	x.problem(p)
}

// problem answers with a problem, below /v1 in Stripe's form.
func (x *exchange) problem(p *Problem) {
	if isStripe(x.r.URL.Path) {
		x.stripeProblem(p)
		return
	}
	h := x.Header()
	p.setHeaders(h)
	h["Content-Type"] = problemTypes
	x.WriteHeader(p.Status)
	_ = json.MarshalWrite(x, p) // the client has gone; there is nobody to tell
}

var (
	problemTypes = []string{problemType}
	closing      = []string{"close"}
)

// request is what every handler's input embeds: it gives the handler its exchange.
type request struct{ x *exchange }

// Resolve is for huma.
func (q *request) Resolve(ctx huma.Context) []error {
	q.x = exchangeOf(ctx)
	return nil
}

func (q *request) exchange() *exchange { return q.x }

func exchangeOf(ctx huma.Context) *exchange {
	_, w, _ := humahttprouter.Unwrap(ctx)
	return w.(*exchange)
}

// credentials are the parts of the request that say who is calling.
func credentials(r *http.Request) tenants.Credentials {
	return tenants.Credentials{Authorization: r.Header["Authorization"], TenantHeader: r.Header["X-Tenant-Id"], Host: r.Host}
}

// bodyMax is the limit of a body. The largest request of these endpoints, a tenant with all its limits, has a tenth of it.
const bodyMax = 64 << 10

// decode reads the request's body and decodes it into v.
func (x *exchange) decode(v any) error {
	if err := checkMediaType(x.r.Header); err != nil {
		return err
	}
	buf := x.s.bodies.Get().(*[]byte)
	defer x.s.bodies.Put(buf)
	body, err := x.readBody(*buf)
	if err != nil {
		return err
	}
	return decodeObject(body, v)
}

// readBody reads the whole body into buf, which has room for one byte more than a body may have.
func (x *exchange) readBody(buf []byte) ([]byte, error) {
	if x.r.ContentLength > bodyMax {
		return nil, errBodyLarge
	}
	n, err := readUpTo(x.r.Body, buf)
	if err != nil {
		return nil, bodyError(err)
	}
	if n > bodyMax {
		return nil, errBodyLarge
	}
	return buf[:n], nil
}

// readUpTo fills buf until r ends or buf is full.
func readUpTo(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// bodyError says whose fault it is that a body could not be read: the client's, always.
func bodyError(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errBodySlow
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return errBodyLarge
	}
	return errBodyUnread
}

func checkMediaType(h http.Header) error {
	if e := h["Content-Encoding"]; len(e) > 1 || (len(e) == 1 && !strings.EqualFold(e[0], "identity")) {
		return errEncoding
	}
	values := h["Content-Type"]
	if len(values) != 1 {
		return errMediaType
	}
	if values[0] == jsonType {
		return nil
	}
	kind, params, err := mime.ParseMediaType(values[0])
	if err != nil || kind != jsonType {
		return errMediaType
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return errMediaType
		}
	}
	return nil
}

// mayTake lets the handler go on beyond the server's deadlines by d: a wait that the client asked for.
func (x *exchange) mayTake(d time.Duration) {
	c := http.NewResponseController(x.ResponseWriter)
	// Without this the read deadline would end the request's context in the middle of the wait.
	_ = c.SetReadDeadline(time.Time{}) // not every writer has deadlines; then there are none to move
	_ = c.SetWriteDeadline(time.Now().Add(d + writeMargin))
}

// writeMargin is the time to write an answer after a wait.
const writeMargin = 10 * time.Second
