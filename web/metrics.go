package web

import (
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/julienschmidt/httprouter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const metricsPath = "/metrics"

// latencyBuckets, in seconds: from a read out of memory to the longest wait that a client may ask for.
var latencyBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// metrics is what the server counts. Labels never hold what a client made up; tenants, whom the operator makes, stand only beside their
// money, of which there is none without them.
type metrics struct {
	registry *prometheus.Registry
	latency  *prometheus.HistogramVec
	requests *prometheus.CounterVec
	panics   prometheus.Counter
}

func newMetrics(r *prometheus.Registry) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
		r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	m := &metrics{
		registry: r,
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tenderbox_http_request_seconds", Help: "Time from a request's header to the end of its answer.", Buckets: latencyBuckets,
		}, []string{"route"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenderbox_http_requests_total", Help: "Requests answered.",
		}, []string{"route", "status"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tenderbox_http_panics_total", Help: "Requests that ended in a panic.",
		}),
	}
	r.MustRegister(m.latency, m.requests, m.panics)
	return m
}

// route is one route's part of the metrics, looked up once.
type route struct {
	name     string
	latency  prometheus.Observer
	requests *prometheus.CounterVec
	byStatus [600]atomic.Pointer[prometheus.Counter]
}

func (m *metrics) route(name string) *route {
	return &route{name: name, latency: m.latency.WithLabelValues(name), requests: m.requests.MustCurryWith(prometheus.Labels{"route": name})}
}

func (rt *route) observe(status int, took time.Duration) {
	rt.latency.Observe(took.Seconds())
	if status <= 0 || status >= len(rt.byStatus) {
		status = 0
	}
	c := rt.byStatus[status].Load()
	if c == nil {
		made := rt.requests.WithLabelValues(strconv.Itoa(status))
		c = &made
		rt.byStatus[status].Store(c)
	}
	(*c).Inc()
}

// watch adds what is read from the rest of the box when somebody asks.
func (m *metrics) watch(o *Options, a *admission, now func() time.Time) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tenderbox_http_in_flight", Help: "Requests being worked on."},
			func() float64 { return float64(a.inFlight.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tenderbox_http_waiting", Help: "Requests waiting for an outcome (Prefer: wait) or for a job (lease)."},
			func() float64 { return float64(a.waiting.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tenderbox_http_streams", Help: "Event streams that are open."},
			func() float64 { return float64(a.streams.Load()) }),
		&boxCollector{ledger: o.Ledger, jobs: o.Jobs, accounts: o.Accounts, now: now},
	)
}

// registerMetrics serves them, to the operator. The route stands outside the API's description: its form is Prometheus's.
func (s *Server) registerMetrics() {
	rt := s.metrics.route("GET " + metricsPath)
	show := promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesMax})
	s.router.GET(metricsPath, func(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
		x := w.(*exchange)
		x.route = rt
		if err := s.authenticate(x, operatorOnly); err != nil {
			x.refuse(s.fail(x, err))
			return
		}
		show.ServeHTTP(x, r)
	})
}

// scrapesMax scrapes at once: each reads every shard.
const scrapesMax = 4

// boxCollector reads the ledger, the queues and the accounts at each scrape.
type boxCollector struct {
	ledger   Ledger
	jobs     JobEngine
	accounts Accounts
	now      func() time.Time
}

var (
	descBacklog       = prometheus.NewDesc("tenderbox_payments_unsettled", "Payments taken and not settled.", []string{"currency"}, nil)
	descBacklogAmount = prometheus.NewDesc("tenderbox_payments_unsettled_amount", "Their sum in minor units.", []string{"currency"}, nil)
	descExposed       = prometheus.NewDesc("tenderbox_exposure_payments", "Payments that a tenant has taken and that are not settled.", []string{"tenant", "currency"}, nil)
	descExposedAmount = prometheus.NewDesc("tenderbox_exposure_amount", "Their sum in minor units.", []string{"tenant", "currency"}, nil)
	descExposedAge    = prometheus.NewDesc("tenderbox_exposure_oldest_seconds", "Age of the oldest of them.", []string{"tenant", "currency"}, nil)
	descDrainRate     = prometheus.NewDesc("tenderbox_drain_per_second", "Payments that became final a second, over the last ten.", nil, nil)
	descDrainEta      = prometheus.NewDesc("tenderbox_drain_eta_seconds", "Time until nothing is left, if nothing is added. Absent while nothing moves.", nil, nil)
	descDrain         = prometheus.NewDesc("tenderbox_drain", "1 for what becomes of the payments that wait.", []string{"state"}, nil)
	descPace          = prometheus.NewDesc("tenderbox_upstream_concurrency", "Payments that may be on their way to the account at a time, at present.", []string{"url", "account"}, nil)
	descPaceUsed      = prometheus.NewDesc("tenderbox_upstream_in_flight", "Payments that are being sealed and sent.", []string{"url", "account"}, nil)
	descPaceRate      = prometheus.NewDesc("tenderbox_upstream_rate_limit", "Payments a second that the account allows, set or learned. Absent while no limit is known.", []string{"url", "account"}, nil)
	descLinkCause     = prometheus.NewDesc("tenderbox_upstream_link_cause", "1 for why the line to the account is not online, or what is wrong although it is.", []string{"url", "account", "cause"}, nil)
	descReady         = prometheus.NewDesc("tenderbox_ready", "1 when payments can be taken.", nil, nil)
	descShardUp       = prometheus.NewDesc("tenderbox_shard_up", "1 when the shard is in service.", []string{"shard"}, nil)
	descShardCommits  = prometheus.NewDesc("tenderbox_shard_commits_total", "Group commits; each one fsync.", []string{"shard"}, nil)
	descShardWrites   = prometheus.NewDesc("tenderbox_shard_writes_total", "Writes in them.", []string{"shard"}, nil)
	descShardWAL      = prometheus.NewDesc("tenderbox_shard_wal_bytes", "Write-ahead log in use.", []string{"shard"}, nil)
	descLink          = prometheus.NewDesc("tenderbox_upstream_link", "1 for the state that the line to the account is in.", []string{"url", "account", "state"}, nil)
	descBreaker       = prometheus.NewDesc("tenderbox_upstream_breaker", "1 for the state that the account's breaker is in.", []string{"url", "account", "state"}, nil)
)

// Describe sends nothing: which queues, shards and accounts there are may change.
func (*boxCollector) Describe(chan<- *prometheus.Desc) {}

// Collect reads everything anew.
func (c *boxCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	ready, _ := c.ledger.Ready()
	gauge(descReady, truth(ready))
	for currency, sum := range c.ledger.Exposed("") {
		gauge(descBacklog, float64(sum.Count), currency)
		gauge(descBacklogAmount, float64(sum.Amount), currency)
	}
	now := c.now()
	for _, x := range c.ledger.Exposures(context.Background(), "") {
		gauge(descExposed, float64(x.Count), string(x.Tenant), x.Currency)
		gauge(descExposedAmount, float64(x.Amount), string(x.Tenant), x.Currency)
		if x.OldestAt != nil {
			gauge(descExposedAge, max(now.Sub(*x.OldestAt).Seconds(), 0), string(x.Tenant), x.Currency)
		}
	}
	drain := c.ledger.Drain("")
	gauge(descDrain, 1, string(drain.State))
	gauge(descDrainRate, drain.PerS)
	if drain.EtaS != nil {
		gauge(descDrainEta, float64(*drain.EtaS))
	}
	for _, sh := range c.ledger.Shards() {
		id := strconv.Itoa(sh.ID)
		gauge(descShardUp, truth(sh.Err == nil), id)
		counter(descShardCommits, sh.Stats.Commits, id)
		counter(descShardWrites, sh.Stats.Closures, id)
		gauge(descShardWAL, float64(sh.Stats.WALBytes), id)
	}
	if c.jobs != nil {
		collectQueues(c.jobs, now, gauge)
	}
	if c.accounts != nil {
		for _, a := range c.accounts.List() {
			link, pace := a.Link(), a.Pace()
			gauge(descLink, 1, a.URL(), a.Name(), string(link.State))
			if link.Cause != "" {
				gauge(descLinkCause, 1, a.URL(), a.Name(), string(link.Cause))
			}
			gauge(descPace, float64(pace.Concurrency), a.URL(), a.Name())
			gauge(descPaceUsed, float64(pace.InUse), a.URL(), a.Name())
			if pace.Rate > 0 {
				gauge(descPaceRate, pace.Rate, a.URL(), a.Name())
			}
			gauge(descBreaker, 1, a.URL(), a.Name(), string(a.Breaker().State))
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
