package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/jobs"
	"tenderbox/tenants"
)

// QueueBook is what the server asks of the queues as such.
type QueueBook interface {
	Queues(tenant string) []jobs.QueueInfo
	Queue(tenant, queue string) (jobs.QueueInfo, error)
	Declare(ctx context.Context, tenant, queue string, d jobs.Defaults, l jobs.Limits) (created bool, err error)
	Pause(ctx context.Context, tenant, queue string) error
	Resume(ctx context.Context, tenant, queue string) error
}

// QueueLimits is what the operator sets of the queues that ship.
type QueueLimits interface {
	Limit(ctx context.Context, queue string, l jobs.Limits) error
}

// JobEngine is what the server asks of the job engine, noun by noun.
type JobEngine interface {
	QueueBook
	QueueLimits
	JobBook
	JobMoves
	LeaseBook
	LeaseNotes
	ScheduleBook
}

const (
	queuesPath = "/api/v1/queues"
	queuePath  = queuesPath + "/{queue}"

	// knownMax queues are named to who asked for one that there is not.
	knownMax = 20

	// rateMax starts in ratePeriodMax at most: a limit that says less is a pause.
	rateMax       = 1_000_000
	ratePeriodMax = 24 * time.Hour
	// activeMax jobs at a time is more than a box can hold leases for.
	activeMax = 100_000
)

// queueView is a queue as its tenant, or the operator, sees it.
type queueView struct {
	Name            string            `json:"name"`
	Object          string            `json:"object" enum:"queue"`
	Tenant          *string           `json:"tenant" doc:"Whose own queue it is; null: it ships with the box."`
	ReadOnly        bool              `json:"read_only" doc:"Only the box puts jobs here."`
	Paused          bool              `json:"paused"`
	Defaults        queueDefaultsView `json:"defaults"`
	Limits          limitsView        `json:"limits"`
	Counts          countsView        `json:"counts"`
	OldestWaitingAt *time.Time        `json:"oldest_waiting_at"`
	Rates           ratesView         `json:"rates"`
}

type queueDefaultsView struct {
	Attempts         *int        `json:"attempts" doc:"null: no limit."`
	Backoff          backoffView `json:"backoff"`
	RemoveOnComplete retention   `json:"remove_on_complete"`
	RemoveOnFail     retention   `json:"remove_on_fail"`
	TimeoutMS        *int64      `json:"timeout_ms" doc:"null: none."`
}

type limitsView struct {
	Active       int       `json:"active,omitzero" doc:"Jobs active at a time; 0: no limit."`
	TenantActive int       `json:"tenant_active,omitzero" doc:"Of one tenant; 0: no limit."`
	Rate         *rateSpan `json:"rate,omitempty" doc:"Starts of jobs; null: no limit."`
	TenantRate   *rateSpan `json:"tenant_rate,omitempty" doc:"Of one tenant; null: no limit."`
}

// rateSpan is so many starts in each span.
type rateSpan struct {
	Count int64 `json:"count" minimum:"1"`
	PerMS int64 `json:"per_ms" minimum:"1" doc:"The span, in milliseconds."`
}

type countsView struct {
	Waiting   int `json:"waiting"`
	Delayed   int `json:"delayed"`
	Active    int `json:"active"`
	Completed int `json:"completed" doc:"That are kept."`
	Failed    int `json:"failed" doc:"That are kept."`
	Damaged   int `json:"damaged" doc:"Records that could not be read and were set aside."`
}

// ratesView are of the last minute, since the box was started.
type ratesView struct {
	Added     float64     `json:"added" doc:"Jobs a second."`
	Started   float64     `json:"started"`
	Completed float64     `json:"completed"`
	Failed    float64     `json:"failed"`
	WaitMS    percentiles `json:"wait_ms" doc:"From due to start."`
	RunMS     percentiles `json:"run_ms" doc:"From start to outcome."`
}

type percentiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// newQueue is the body of PUT /queues/{queue}.
type newQueue struct {
	Defaults newQueueDefaults `json:"defaults,omitzero" doc:"Of jobs that do not say otherwise."`
	Limits   newLimits        `json:"limits,omitzero"`
}

type newLimits struct {
	Active       int64     `json:"active,omitzero" minimum:"0" doc:"Jobs active at a time; 0: no limit."`
	TenantActive int64     `json:"tenant_active,omitzero" minimum:"0" doc:"The same, of one tenant."`
	Rate         *rateSpan `json:"rate,omitempty" doc:"Starts of jobs."`
	TenantRate   *rateSpan `json:"tenant_rate,omitempty" doc:"The same, of one tenant."`
}

type newDrain struct {
	Delayed bool `json:"delayed,omitzero" doc:"Delayed jobs too."`
}

type queueInput struct {
	request
	Queue string `path:"queue"`
}

type queuesInput struct {
	request
	PageQuery
}

type (
	queueOutput  struct{ Body queueView }
	queuesOutput struct{ Body page[queueView] }
	madeOutput   struct {
		Status int
		Body   queueView
	}
	countOutput struct {
		Body struct {
			Count int `json:"count" doc:"How many jobs it was done to."`
		}
	}
)

func (s *Server) registerQueues() {
	op := func(id, method, path, summary, description string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Description: description, Tags: []string{"queues"}}
	}
	register(s, op("list-queues", http.MethodGet, queuesPath, "List queues, by name",
		"Those that ship with the box, and the tenant's own. The operator, naming no tenant, sees all."), forAnyone, s.listQueues)
	register(s, op("get-queue", http.MethodGet, queuePath, "See how a queue stands", ""), forAnyone, s.readQueue)
	put := op("put-queue", http.MethodPut, queuePath, "Declare a queue of the tenant's own, or change it",
		"Answers 201 if it is new. Queues that ship with the box have the box's defaults; the operator, naming no tenant, sets their limits.")
	put.Responses = map[string]*huma.Response{"201": {Description: "Created: as 200"}}
	register(s, put, forAnyone, s.putQueue)
	documentBody[newQueue](s.api, http.MethodPut, queuePath)
	register(s, op("pause-queue", http.MethodPost, queuePath+"/pause", "Start no more jobs, also after a restart",
		"A tenant pauses its own line; the operator, naming no tenant, the whole queue. What is active goes on."), forAnyone,
		func(ctx context.Context, in *queueInput) (*queueOutput, error) { return s.turn(ctx, in, s.jobs.Pause) })
	register(s, op("resume-queue", http.MethodPost, queuePath+"/resume", "Start jobs again",
		"Ends a pause of the same scope."), forAnyone,
		func(ctx context.Context, in *queueInput) (*queueOutput, error) { return s.turn(ctx, in, s.jobs.Resume) })
	register(s, op("retry-failed", http.MethodPost, queuePath+"/retry-failed", "Retry all failed jobs",
		"Of the tenant; the operator, naming no tenant, those of all."), forAnyone, s.retryFailed)
	register(s, op("promote-delayed", http.MethodPost, queuePath+"/promote", "Make all delayed jobs due now",
		"Of the tenant; the operator, naming no tenant, those of all. Of the queue payments: what was put off is sent at once, if the line is up."), forAnyone, s.promoteAll)
	register(s, op("drain-queue", http.MethodPost, queuePath+"/drain", "Remove all waiting jobs of the tenant",
		"What is active goes on. Nobody can drain a read-only queue: the box's work has to be done."), forTenant, s.drain)
	documentBody[newDrain](s.api, http.MethodPost, queuePath+"/drain")
}

// boxQueue is what only the box may do with a queue that ships with it.
type boxQueue struct{ readOnly, internal bool }

// boxQueuesOf reads them once: which queues ship does not change while the box runs.
func boxQueuesOf(book QueueBook) map[string]boxQueue {
	own := map[string]boxQueue{}
	for _, q := range book.Queues("") {
		if q.Tenant == "" && (q.ReadOnly || q.Internal) {
			own[q.Name] = boxQueue{q.ReadOnly, q.Internal}
		}
	}
	return own
}

// act is what somebody wants with a queue.
type act int

const (
	look   act = iota // read
	manage            // pause, resume, retry, promote: the operator may, in any queue
	work              // put jobs in, take them out, speak for their worker: the box alone, in its own queues
)

// allow refuses what is for the box alone to do in its own queues: a payment's job that somebody else takes or removes would leave the
// payment unsettled. What is internal is unknown to tenants.
func (s *Server) allow(x *exchange, queue string, a act) error {
	own, ok := s.boxQueues[queue]
	switch {
	case !ok:
		return nil
	case own.internal && !x.caller.Operator:
		return s.unknownQueue(x.caller.Tenant)
	case a == look, a == manage && x.caller.Operator:
		return nil
	}
	return errReadOnly
}

var errReadOnly = problem(http.StatusForbidden, "queue_read_only", "queue", "this queue belongs to the box: look at it, and leave its jobs to it")

// unknownQueue lists the queues that there are, and does not repeat the name that there is not.
func (s *Server) unknownQueue(t tenants.ID) *Problem {
	var names []string
	for _, q := range s.jobs.Queues(string(t)) {
		if t == "" && q.Tenant != "" {
			continue
		}
		names = append(names, q.Name)
	}
	slices.Sort(names)
	more := ""
	if len(names) > knownMax {
		more = fmt.Sprintf(" and %d more", len(names)-knownMax)
		names = names[:knownMax]
	}
	return problem(http.StatusNotFound, "queue_unknown", "queue",
		"there is no such queue; there are "+strings.Join(names, ", ")+more+"; PUT /api/v1/queues/{queue} declares one")
}

// queueError explains an error of the engine that may be about the queue itself.
func (s *Server) queueError(t tenants.ID, queue string, err error) error {
	switch {
	case errors.Is(err, jobs.ErrUnknownQueue):
		return s.unknownQueue(t)
	case errors.Is(err, jobs.ErrNotFound):
		if _, qerr := s.jobs.Queue(string(t), queue); errors.Is(qerr, jobs.ErrUnknownQueue) {
			return s.unknownQueue(t)
		}
	}
	return err
}

func (s *Server) listQueues(_ context.Context, in *queuesInput) (*queuesOutput, error) {
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	position, err := s.openCursor("queues", t, in.Cursor)
	if err != nil {
		return nil, err
	}
	all := s.jobs.Queues(string(t))
	slices.SortFunc(all, func(a, b jobs.QueueInfo) int { return strings.Compare(queuePosition(&a), queuePosition(&b)) })
	if position != "" {
		from, found := slices.BinarySearchFunc(all, position, func(q jobs.QueueInfo, p string) int { return strings.Compare(queuePosition(&q), p) })
		if found {
			from++
		}
		all = all[from:]
	}
	out := &queuesOutput{page[queueView]{Data: []queueView{}}}
	for i := range all[:min(limit, len(all))] {
		out.Body.Data = append(out.Body.Data, viewOfQueue(&all[i]))
	}
	if out.Body.HasMore = len(all) > limit; out.Body.HasMore {
		out.Body.NextCursor = s.sealCursor("queues", t, queuePosition(&all[limit-1]))
	}
	return out, nil
}

// queuePosition is a queue's place in the list. No name holds a slash.
func queuePosition(q *jobs.QueueInfo) string { return q.Name + "/" + q.Tenant }

func (s *Server) readQueue(_ context.Context, in *queueInput) (*queueOutput, error) {
	if err := s.allow(in.x, in.Queue, look); err != nil {
		return nil, err
	}
	return s.queueNow(in.x.caller.Tenant, in.Queue)
}

func (s *Server) queueNow(t tenants.ID, queue string) (*queueOutput, error) {
	q, err := s.jobs.Queue(string(t), queue)
	if err != nil {
		return nil, s.queueError(t, queue, err)
	}
	return &queueOutput{viewOfQueue(&q)}, nil
}

func (s *Server) putQueue(ctx context.Context, in *queueInput) (*madeOutput, error) {
	var form newQueue
	if err := in.x.decode(&form); err != nil {
		return nil, err
	}
	if in.x.caller.Tenant == "" {
		return s.limitQueue(ctx, in.Queue, &form)
	}
	if _, ok := s.boxQueues[in.Queue]; ok {
		return nil, errReadOnly
	}
	if _, err := tenants.ParseID(in.Queue); err != nil { // the same rule: a DNS label
		return nil, memberRange("queue", "a queue's name is a DNS label: 1 to 63 of a-z, 0-9 and -, which is neither first nor last")
	}
	defaults, err := form.Defaults.read("defaults.")
	if err != nil {
		return nil, err
	}
	limits, err := form.Limits.read("limits.")
	if err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	created, err := s.jobs.Declare(ctx, string(t), in.Queue, defaults, limits)
	if err != nil {
		return nil, err
	}
	now, err := s.queueNow(t, in.Queue)
	if err != nil {
		return nil, err
	}
	out := &madeOutput{http.StatusOK, now.Body}
	if created {
		out.Status = http.StatusCreated
	}
	return out, nil
}

// limitQueue sets the limits of a queue that ships: the operator's, who names no tenant.
func (s *Server) limitQueue(ctx context.Context, queue string, form *newQueue) (*madeOutput, error) {
	if form.Defaults != (newQueueDefaults{}) {
		return nil, memberRange("defaults", "queues that ship have the box's defaults; name the tenant whose own queue is meant")
	}
	limits, err := form.Limits.read("limits.")
	if err == nil {
		err = s.queueError("", queue, s.jobs.Limit(ctx, queue, limits))
	}
	if err != nil {
		return nil, err
	}
	now, err := s.queueNow("", queue)
	if err != nil {
		return nil, err
	}
	return &madeOutput{http.StatusOK, now.Body}, nil
}

func (f *newLimits) read(at string) (l jobs.Limits, err error) {
	for _, n := range []struct {
		name string
		in   int64
		out  *int
	}{{"active", f.Active, &l.Active}, {"tenant_active", f.TenantActive, &l.TenantActive}} {
		if err := between(at+n.name, n.in, 0, activeMax); err != nil {
			return l, err
		}
		*n.out = int(n.in)
	}
	for _, r := range []struct {
		name string
		in   *rateSpan
		out  *jobs.RateLimit
	}{{"rate", f.Rate, &l.Rate}, {"tenant_rate", f.TenantRate, &l.TenantRate}} {
		if r.in == nil {
			continue
		}
		if err := between(at+r.name+".count", r.in.Count, 1, rateMax); err != nil {
			return l, err
		}
		r.out.Count = int(r.in.Count)
		if r.out.Per, err = milliseconds(at+r.name+".per_ms", r.in.PerMS, 1, ratePeriodMax); err != nil {
			return l, err
		}
	}
	return l, nil
}

// turn pauses or resumes.
func (s *Server) turn(ctx context.Context, in *queueInput, do func(ctx context.Context, tenant, queue string) error) (*queueOutput, error) {
	if err := s.allow(in.x, in.Queue, manage); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	if err := do(ctx, string(t), in.Queue); err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	return s.queueNow(t, in.Queue)
}

func (s *Server) retryFailed(ctx context.Context, in *queueInput) (*countOutput, error) {
	if err := s.allow(in.x, in.Queue, manage); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	n, err := s.jobs.RetryFailed(ctx, string(t), in.Queue)
	if err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	out := &countOutput{}
	out.Body.Count = n
	return out, nil
}

func (s *Server) promoteAll(ctx context.Context, in *queueInput) (*countOutput, error) {
	if err := s.allow(in.x, in.Queue, manage); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	n, err := s.jobs.PromoteAll(ctx, string(t), in.Queue)
	if err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	out := &countOutput{}
	out.Body.Count = n
	return out, nil
}

func (s *Server) drain(ctx context.Context, in *queueInput) (*countOutput, error) {
	var form newDrain
	if in.x.r.ContentLength != 0 { // the body is all options, and may be left out
		if err := in.x.decode(&form); err != nil {
			return nil, err
		}
	}
	if err := s.allow(in.x, in.Queue, work); err != nil {
		return nil, err
	}
	t := in.x.caller.Tenant
	n, err := s.jobs.Drain(ctx, string(t), in.Queue, form.Delayed)
	if err != nil {
		return nil, s.queueError(t, in.Queue, err)
	}
	out := &countOutput{}
	out.Body.Count = n
	return out, nil
}

func viewOfQueue(q *jobs.QueueInfo) queueView {
	d := q.Defaults.Filled()
	v := queueView{Name: q.Name, Object: "queue", ReadOnly: q.ReadOnly, Paused: q.Paused,
		Defaults: queueDefaultsView{
			Attempts: limitOrNil(d.Attempts), Backoff: viewOfBackoff(d.Backoff),
			RemoveOnComplete: retention{d.RemoveOnComplete}, RemoveOnFail: retention{d.RemoveOnFail},
			TimeoutMS: timeoutOrNil(d.Timeout),
		},
		Limits: limitsView{q.Limits.Active, q.Limits.TenantActive, viewOfRate(q.Limits.Rate), viewOfRate(q.Limits.TenantRate)},
		Counts: countsView{q.Counts.Waiting, q.Counts.Delayed, q.Counts.Active, q.Counts.Completed, q.Counts.Failed, q.Counts.Damaged},
		Rates: ratesView{q.Rates.Added, q.Rates.Started, q.Rates.Completed, q.Rates.Failed,
			percentiles{inMS(q.Rates.WaitP50), inMS(q.Rates.WaitP99)}, percentiles{inMS(q.Rates.RunP50), inMS(q.Rates.RunP99)}},
	}
	if q.Tenant != "" {
		v.Tenant = &q.Tenant
	}
	if !q.Counts.OldestWaiting.IsZero() {
		at := q.Counts.OldestWaiting.UTC()
		v.OldestWaitingAt = &at
	}
	return v
}

func viewOfBackoff(b jobs.Backoff) backoffView {
	return backoffView{b.Type, b.Delay.Milliseconds(), b.Jitter, b.Max.Milliseconds()}
}

func viewOfRate(r jobs.RateLimit) *rateSpan {
	if r.Count == 0 {
		return nil
	}
	return &rateSpan{int64(r.Count), cmp.Or(r.Per, time.Second).Milliseconds()}
}

func limitOrNil(attempts int) *int {
	if attempts < 0 {
		return nil
	}
	return &attempts
}

func timeoutOrNil(d time.Duration) *int64 {
	if d < 0 {
		return nil
	}
	ms := d.Milliseconds()
	return &ms
}

func inMS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
