package web

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"tenderbox/tenants"
)

// What the server admits at once. The http.Server around it must bound connections, header bytes (16 KiB) and the
// times of header, body, answer and idleness; these bound the work behind it.
const (
	// inFlightMax requests are worked on at a time: one full group commit of the ledger and a little more. On the slowest disks
	// a place in this queue is worth some 100 ms; what does not fit is told so at once.
	inFlightMax = 1024

	// tenantInFlightMax of those may be one tenant's, so that a flood of one leaves room for the others.
	tenantInFlightMax = inFlightMax * 3 / 4

	// waitersMax requests may wait for an outcome (Prefer: wait), beside those in flight: each costs a
	// goroutine and its connection, some 20 KiB. Beyond it the answer comes at once, as RFC 7240 allows.
	waitersMax = 2048

	// tenantPollingMax of them may be one tenant's leases that wait for a job: more workers than a site has.
	tenantPollingMax = waitersMax / 4

	// streamsMax event streams are open at a time, tenantStreamsMax of them one tenant's: a page or two on each of its screens. Each
	// costs two goroutines and its connection.
	streamsMax       = 1024
	tenantStreamsMax = 64

	// headerLinesMax and headerBytesMax bound what a request's header may hold. net/http allows 4 KiB more than it is told.
	headerLinesMax = 100
	headerBytesMax = 16 << 10
)

// admission counts what is in hand.
type admission struct {
	inFlight atomic.Int64
	waiting  atomic.Int64
	large    atomic.Int64 // bytes of large bodies
	answers  atomic.Int64 // bytes of large answers that are being written
	streams  atomic.Int64
	lanes    sync.Map // tenants.ID → *lane
}

// lane is one tenant's share.
type lane struct {
	inFlight atomic.Int64
	polling  atomic.Int64 // leases that wait for a job
	large    atomic.Int64 // bytes of large bodies
	answers  atomic.Int64 // bytes of large answers
	streams  atomic.Int64
	limiter  atomic.Pointer[limiter]
}

type limiter struct {
	of tenants.RateLimit
	*rate.Limiter
}

// holding is what one request occupies.
type holding struct {
	admission *admission // nil: nothing
	lane      *lane      // nil: no tenant's share yet
	large     int64      // bytes of a large body
}

// admit takes a place for a request.
func (a *admission) admit() (holding, bool) {
	if a.inFlight.Add(1) > inFlightMax {
		a.inFlight.Add(-1)
		return holding{}, false
	}
	return holding{admission: a}, true
}

// enter takes a place in the tenant's share.
func (h *holding) enter(t *tenants.Tenant, now time.Time) error {
	l, ok := h.admission.lanes.Load(t.ID)
	if !ok {
		l, _ = h.admission.lanes.LoadOrStore(t.ID, new(lane))
	}
	lane := l.(*lane)
	if t.RateLimit != nil && !lane.allow(*t.RateLimit, now) {
		return errRateLimited
	}
	if lane.inFlight.Add(1) > tenantInFlightMax {
		lane.inFlight.Add(-1)
		return errTenantBusy
	}
	h.lane = lane
	return nil
}

// allow asks the tenant's rate limiter, made anew when the setting has changed.
func (l *lane) allow(of tenants.RateLimit, now time.Time) bool {
	lim := l.limiter.Load()
	if lim == nil || lim.of != of {
		burst := of.Burst
		if burst == 0 {
			burst = of.PerSecond
		}
		lim = &limiter{of, rate.NewLimiter(rate.Limit(of.PerSecond), burst)}
		l.limiter.Store(lim)
	}
	return lim.AllowN(now, 1)
}

// release gives everything back. Twice is fine.
func (h *holding) release() {
	if h.lane != nil {
		h.lane.inFlight.Add(-1)
		h.lane.large.Add(-h.large)
	}
	if h.admission != nil {
		h.admission.inFlight.Add(-1)
		h.admission.large.Add(-h.large)
	}
	*h = holding{}
}

// wait swaps the request's place among those in flight for one among those that wait. false: no room to wait.
func (h *holding) wait(a *admission) (done func(), ok bool) {
	if a.waiting.Add(1) > waitersMax {
		a.waiting.Add(-1)
		return nil, false
	}
	h.release()
	return func() { a.waiting.Add(-1) }, true
}

// poll swaps the request's place among those in flight for one among those that wait, of which a tenant's workers may hold a part.
// An error says that there is no room: who asks for work and is answered with none at once would only ask again.
func (h *holding) poll(a *admission) (done func(), err error) {
	l := h.lane
	if l != nil && !take(&l.polling, 1, tenantPollingMax) {
		return nil, errTenantBusy
	}
	ended, ok := h.wait(a)
	if !ok {
		if l != nil {
			l.polling.Add(-1)
		}
		return nil, errOverloaded
	}
	return func() {
		ended()
		if l != nil {
			l.polling.Add(-1)
		}
	}, nil
}

// stream swaps the request's place among those in flight for one among the event streams.
func (h *holding) stream(a *admission) (done func(), err error) {
	l := h.lane
	if l != nil && !take(&l.streams, 1, tenantStreamsMax) {
		return nil, errStreams
	}
	if !take(&a.streams, 1, streamsMax) {
		if l != nil {
			l.streams.Add(-1)
		}
		return nil, errOverloaded
	}
	h.release()
	return func() {
		a.streams.Add(-1)
		if l != nil {
			l.streams.Add(-1)
		}
	}, nil
}

// headerFits reports whether the header is within its limits.
func headerFits(h http.Header) bool {
	lines, size := 0, 0
	for name, values := range h {
		for _, v := range values {
			lines++
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	return lines <= headerLinesMax && size <= headerBytesMax
}
