package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humahttprouter"
	"github.com/julienschmidt/httprouter"
	"github.com/prometheus/client_golang/prometheus"

	"tenderbox/ledger"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// Payments is what tenants do with the ledger.
type Payments interface {
	Pay(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewPayment) (p ledger.Payment, replayed bool, err error)
	Await(context.Context, tenants.ID, ledger.PaymentID, time.Duration) (ledger.Payment, error)
	Payment(ctx context.Context, t tenants.ID, id string) (ledger.Payment, error)
	Payments(context.Context, tenants.ID, ledger.Filter) (ledger.Page, error)
	Report(ctx context.Context, t tenants.ID, from, to time.Time) (ledger.Report, error)
}

// Box is what the operator asks of the ledger.
type Box interface {
	Status(context.Context, tenants.ID) (ledger.Overview, error)
	Ready() (ok bool, degraded []string)
	Shards() []ledger.ShardStatus
	Exposed(tenants.ID) map[string]ledger.Sum
	ChangeAccount(ctx context.Context, t tenants.ID, change func() error) error
	Exposures(context.Context, tenants.ID) []ledger.Exposure
	Drain(tenants.ID) ledger.Drain
	Links
}

// Ledger is all of it.
type Ledger interface {
	Payments
	Refunds
	Reviews
	Reconciliations
	Intents
	Users
	Orders
	Events
	History
	Notifications
	Box
}

// Accounts is what the metrics read of the upstream accounts.
type Accounts interface{ List() []*upstream.Account }

// Options say what a server serves. Ledger and Tenants are required.
type Options struct {
	Ledger   Ledger
	Tenants  *tenants.Registry
	Jobs     JobEngine // nil: no queues, and none in the metrics
	Accounts Accounts  // for the metrics; nil: none

	Analytics  Analytics  // nil: none
	Deliveries Deliveries // makes webhooks of events; nil, or no Jobs: no webhooks

	AllowHosts   []string // host names served besides loopback, IP addresses, the base domain and tenants' domains
	AllowOrigins []string // other sites whose pages may call, as scheme://host[:port]
	Source       string   // of events, as CloudEvents name it: "/tenderbox/<box id>"
	Version      string   // told by /openapi.json; "": 0

	Metrics *prometheus.Registry // where the server's metrics stand, and what /metrics shows; nil: one of its own
	Now     func() time.Time     // for reports and rate limits; nil: time.Now
	Logger  *slog.Logger         // nil: silent
}

// Server is the box's HTTP API. It is an http.Handler, safe for concurrent use.
type Server struct {
	ledger  Ledger
	source  string // of events
	jobs    JobEngine
	sums    Analytics
	tenants *tenants.Registry
	log     *slog.Logger
	now     func() time.Time

	webhooks   tenants.Webhooks
	deliveries Deliveries

	hosts     *hosts
	origins   *origins
	router    *httprouter.Router
	api       huma.API
	adapter   *adapter
	admission admission
	metrics   *metrics
	none      *route    // of requests that match no route
	bodies    sync.Pool // *[]byte of bodyMax+1
	cursorKey []byte

	boxQueues map[string]boxQueue // queues that ship with the box and are its own
	leaving   context.Context     // ended when the server is told to leave
	leave     context.CancelFunc
}

// New makes a server. Its errors name every setting that cannot be used.
func New(o Options) (*Server, error) {
	s := &Server{ledger: o.Ledger, source: o.Source, jobs: o.Jobs, sums: o.Analytics, tenants: o.Tenants, log: o.Logger, now: o.Now,
		webhooks: o.Tenants.Webhooks(), deliveries: o.Deliveries}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	var errHosts, errOrigins error
	s.hosts, errHosts = newHosts(o.AllowHosts, o.Tenants)
	s.origins, errOrigins = newOrigins(o.AllowOrigins)
	if err := errors.Join(errHosts, errOrigins); err != nil {
		return nil, err
	}
	s.leaving, s.leave = context.WithCancel(context.Background())
	s.bodies.New = func() any { b := make([]byte, bodyMax+1); return &b }
	s.cursorKey = o.Tenants.Subkey("list cursor")
	s.metrics = newMetrics(o.Metrics)
	s.metrics.watch(&o, &s.admission, s.now)
	s.none = s.metrics.route("none")

	s.router = &httprouter.Router{
		// Both kinds of redirect would answer for paths that do not exist, and on the decoded path.
		RedirectTrailingSlash: false, RedirectFixedPath: false,
		HandleMethodNotAllowed: true, HandleOPTIONS: false,
		NotFound:         http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.(*exchange).refuse(errNotFound) }),
		MethodNotAllowed: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.(*exchange).refuse(errMethod) }),
	}
	s.adapter = &adapter{Adapter: humahttprouter.New(s.router, apiConfig(o.Version)).Adapter(), router: s.router}
	s.api = huma.NewAPI(apiConfig(o.Version), s.adapter)
	s.registerPayments()
	s.registerRefunds()
	s.registerReviews()
	s.registerReports()
	s.registerReconciliations()
	s.registerUsers()
	s.registerOrders()
	s.registerEvents()
	s.registerNotifications()
	s.registerStatus()
	s.registerLinks()
	s.registerTenants()
	s.registerStripe()
	if s.jobs != nil {
		s.boxQueues = boxQueuesOf(s.jobs)
		s.registerQueues()
		s.registerJobs()
		s.registerLeases()
		s.registerSchedules()
		s.registerStream()
	}
	if s.sums != nil {
		s.registerAnalytics()
	}
	if s.jobs != nil && s.deliveries != nil {
		s.registerWebhooks()
	}
	s.registerHealth()
	s.registerMetrics()
	return s, s.registerDocs()
}

// ServeHTTP answers one request: see the package comment for the order of what it checks.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, r: r, s: s, route: s.none}
	defer s.finish(x, time.Now())
	if isStripe(r.URL.Path) {
		x.stripeHeaders()
	}
	if len(r.TransferEncoding) > 0 {
		// net/http takes a Content-Length beside it away. A proxy in front may have gone by that one and have seen a body in what
		// looks like the next request here: nothing more is read of such a connection (RFC 9112, 6.1).
		x.Header()["Connection"] = closing
	}
	if p := s.receive(x); p != nil {
		x.refuse(p)
		return
	}
	h := x.Header()
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = noStore
	if s.origins.permit(x) {
		return
	}
	s.router.ServeHTTP(x, r)
}

var (
	nosniff = []string{"nosniff"}
	noStore = []string{"no-store"}
)

// receive holds the checks that need no route.
func (s *Server) receive(x *exchange) *Problem {
	r := x.r
	if !isProbe(r.URL.Path) {
		held, ok := s.admission.admit()
		if !ok {
			return errOverloaded
		}
		x.held = held
	}
	switch {
	case !headerFits(r.Header):
		return errHeaderLarge
	case r.ProtoMajor != 1:
		return problem(http.StatusBadRequest, "protocol_unsupported", "", "the box speaks HTTP/1.1")
	case !s.hosts.allowed(r.Host):
		return errHost
	case s.origins.check.Check(r) != nil:
		return errOrigin
	case len(r.Header["Upgrade"]) > 0:
		return problem(http.StatusBadRequest, "upgrade_unsupported", "Upgrade", "the box speaks HTTP/1.1 and nothing else")
	case !plainPath(r):
		return errNotFound
	}
	return nil
}

// isProbe names the two questions that are answered under overload too: who asks them restarts a box that does not answer.
func isProbe(path string) bool { return path == healthPath || path == readyPath }

// plainPath refuses targets that can be read in two ways. The router sees the decoded path, others the raw one: where they
// differ beyond doubt-free escapes nothing of ours can be meant.
func plainPath(r *http.Request) bool {
	return (r.URL.RawPath == "" || doubtFree.Replace(r.URL.RawPath) == (&url.URL{Path: r.URL.Path}).EscapedPath()) &&
		strings.HasPrefix(r.URL.Path, "/") && !strings.Contains(r.URL.Path, "//")
}

// doubtFree undoes the escapes that clients' libraries write, and need not, of characters that an app's own job id may hold.
var doubtFree = strings.NewReplacer("%3A", ":", "%3a", ":", "%40", "@", "%2B", "+", "%2b", "+", "%3D", "=", "%3d", "=", "%7E", "~", "%7e", "~")

// finish gives back what the request held, counts it, and turns a panic into an answer.
func (s *Server) finish(x *exchange, began time.Time) {
	x.held.release()
	if caught := recover(); caught != nil {
		s.panicked(x, caught)
	}
	x.route.observe(x.status, time.Since(began))
}

func (s *Server) panicked(x *exchange, caught any) {
	if caught == http.ErrAbortHandler { //nolint:errorlint // the documented way to compare it
		panic(caught)
	}
	s.metrics.panics.Inc()
	s.log.Error("panic in a request", slog.String("route", x.route.name), slog.Any("panic", caught), slog.String("stack", string(debug.Stack())))
	if x.status != 0 {
		x.route.observe(x.status, 0)
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
	x.refuse(errInternal)
}

// access says who may use a route.
type access int

const (
	public            access = iota // no credential is looked at
	forTenant                       // a tenant, or the operator who names one
	forAnyone                       // a tenant, or the operator with or without naming one
	operatorOnly                    // the operator
	operatorForTenant               // the operator, who names a tenant
)

// input is a handler's input: a struct that embeds request.
type input[T any] interface {
	*T
	exchange() *exchange
}

// register adds a route. fn's errors become problems.
func register[I, O any, P input[I]](s *Server, op huma.Operation, who access, fn func(context.Context, *I) (*O, error)) {
	enter := s.entrance(&op, who, parametersOf[I]())
	op.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		x := exchangeOf(ctx)
		delete(x.r.Header, "Accept") // JSON is what there is; nothing is negotiated
		if enter(x) {
			next(ctx)
		}
	}}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := fn(ctx, in)
		if err != nil {
			x := P(in).exchange()
			p := s.fail(x, err)
			p.setHeaders(x.Header())
			return nil, p
		}
		return out, nil
	})
}

// entrance completes an operation, and returns what each request to it passes first; false: it was refused.
func (s *Server) entrance(op *huma.Operation, who access, params parameters) func(x *exchange) bool {
	if who != public {
		op.Security = []map[string][]string{{securityBearer: {}}, {securityBasic: {}}}
	}
	op.SkipValidateBody = true
	rt := s.metrics.route(op.Method + " " + op.Path)
	hasBody := op.Method == http.MethodPost || op.Method == http.MethodPut || op.Method == http.MethodPatch
	return func(x *exchange) bool {
		x.route, x.hasBody = rt, hasBody
		err := s.authenticate(x, who)
		if err == nil {
			err = params.check(x.r.URL.RawQuery)
		}
		if err != nil {
			x.refuse(s.fail(x, err))
		}
		return err == nil
	}
}

// authenticate says who is calling, and takes a place in the tenant's share.
func (s *Server) authenticate(x *exchange, who access) (err error) {
	switch who {
	case public:
		return nil
	case operatorOnly:
		x.caller.Operator = true
		return s.tenants.ResolveOperator(credentials(x.r))
	}
	if x.caller, err = s.tenants.Resolve(credentials(x.r)); err != nil {
		return err
	}
	if who == operatorForTenant && !x.caller.Operator {
		return tenants.ErrOperatorOnly
	}
	if x.caller.Tenant == "" {
		if who == forTenant || who == operatorForTenant {
			return errTenantMissing
		}
		return nil
	}
	t, err := s.tenants.Get(x.caller.Tenant)
	if err != nil {
		return err
	}
	err = x.held.enter(&t, s.now())
	x.lane = x.held.lane
	return err
}
