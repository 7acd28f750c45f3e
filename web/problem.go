package web

import (
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/tenants"
)

// Problem is an error as clients see it (RFC 9457). Programs branch on Code; Title and Detail are for people.
type Problem struct {
	Title  string `json:"title" doc:"The status in words."`
	Status int    `json:"status" doc:"The HTTP status."`
	Code   string `json:"code" doc:"What went wrong, for programs. Stable." example:"currency_invalid"`
	Detail string `json:"detail" doc:"What went wrong, for people."`
	Field  string `json:"field,omitzero" doc:"The member, parameter or header at fault." example:"currency"`

	Rule    string `json:"rule,omitzero" doc:"offline_limit: the rule of the offline policy that refuses." enum:"currency,max_amount,max_total,max_count,max_age_h"`
	Stands  *int64 `json:"stands,omitempty" doc:"What stands: this payment's amount for max_amount and currency, else what is outstanding without it. Minor units, payments or hours."`
	Allowed *int64 `json:"allowed,omitempty" doc:"What the rule allows."`

	retryAfter time.Duration
}

func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus is for huma.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is for huma.
func (*Problem) ContentType(string) string { return problemType }

const (
	jsonType    = "application/json"
	problemType = "application/problem+json"

	// retryAfterDefault is what a refused client is told to wait when nothing better is known. Clients in
	// lockstep are spread by their own jitter; a second is many group commits.
	retryAfterDefault = time.Second
)

func problem(status int, code, field, detail string) *Problem {
	return &Problem{Title: http.StatusText(status), Status: status, Code: code, Field: field, Detail: detail}
}

// errNotFound is the one answer for what does not exist, is another's, or is no id or path at all: equal bytes, so that nobody
// learns which (INV-22).
var errNotFound = problem(http.StatusNotFound, "not_found", "", "there is nothing here by this name")

var (
	errOverloaded = &Problem{Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable,
		Code: "overloaded", Detail: "the box is answering as many requests as it can; repeat this one with the same Idempotency-Key",
		retryAfter: retryAfterDefault}
	errTenantBusy = &Problem{Title: http.StatusText(http.StatusTooManyRequests), Status: http.StatusTooManyRequests,
		Code: "rate_limited", Detail: "this tenant has as many requests in hand as its share allows", retryAfter: retryAfterDefault}
	errRateLimited = &Problem{Title: http.StatusText(http.StatusTooManyRequests), Status: http.StatusTooManyRequests,
		Code: "rate_limited", Detail: "more requests than this tenant's rate limit allows", retryAfter: retryAfterDefault}
	errHeaderLarge   = problem(http.StatusRequestHeaderFieldsTooLarge, "header_too_large", "", "at most 100 header lines and 16 KiB in all")
	errHost          = problem(http.StatusMisdirectedRequest, "host_not_allowed", "Host", "the box does not answer to this name; the operator allows names with --allow-host")
	errOrigin        = problem(http.StatusForbidden, "cross_origin", "Origin", "browsers may call from other sites only if the operator allows it with --allow-origin")
	errMethod        = problem(http.StatusMethodNotAllowed, "method_not_allowed", "", "this method is not for this path; the Allow header lists those that are")
	errBodyLarge     = problem(http.StatusRequestEntityTooLarge, "body_too_large", "", "the body may have at most 64 KiB")
	errBodyUnread    = problem(http.StatusBadRequest, "body_unreadable", "", "the body is not framed as its headers say")
	errBodySlow      = problem(http.StatusRequestTimeout, "body_timeout", "", "the body did not arrive in time")
	errMediaType     = problem(http.StatusUnsupportedMediaType, "content_type_unsupported", "Content-Type", "send JSON in UTF-8 as application/json")
	errEncoding      = problem(http.StatusUnsupportedMediaType, "content_encoding_unsupported", "Content-Encoding", "send the body as it is, without compression")
	errTenantMissing = problem(http.StatusBadRequest, "tenant_missing", "X-Tenant-ID", tenants.ErrTenantMissing.Error())
	errInternal      = problem(http.StatusInternalServerError, "internal", "", "something went wrong inside the box; repeat the request with the same Idempotency-Key")
)

// kinds maps what the ledger refuses to statuses. Invalid is 422 when a body was sent, 400 when only parameters were.
var kinds = map[ledger.Kind]int{
	ledger.Gone:        http.StatusGone,
	ledger.Conflict:    http.StatusConflict,
	ledger.Mismatch:    http.StatusUnprocessableEntity,
	ledger.Stale:       http.StatusPreconditionFailed,
	ledger.Unavailable: http.StatusServiceUnavailable,
	ledger.Full:        http.StatusInsufficientStorage,
}

// sentinels maps the refusals of tenants and queues. The store's are the same errors under both names.
var sentinels = []struct {
	err  error
	as   int
	code string
}{
	{tenants.ErrAuthMissing, http.StatusUnauthorized, "auth_missing"},
	{tenants.ErrAuthInvalid, http.StatusUnauthorized, "auth_invalid"},
	{tenants.ErrHeaderDuplicate, http.StatusBadRequest, "header_duplicate"},
	{tenants.ErrTenantInvalid, http.StatusBadRequest, "tenant_invalid"},
	{tenants.ErrTenantMismatch, http.StatusForbidden, "tenant_mismatch"},
	{tenants.ErrTenantDisabled, http.StatusForbidden, "tenant_disabled"},
	{tenants.ErrOperatorOnly, http.StatusForbidden, "operator_only"},
	{tenants.ErrTenantUnknown, http.StatusNotFound, "tenant_unknown"},
	{tenants.ErrNotFound, http.StatusNotFound, "tenant_unknown"},
	{tenants.ErrExists, http.StatusConflict, "tenant_exists"},
	{tenants.ErrDomainUsed, http.StatusConflict, "domain_used"},
	{tenants.ErrAccountUsed, http.StatusConflict, "upstream_account_used"},
	{tenants.ErrEnabled, http.StatusConflict, "tenant_enabled"},
	{tenants.ErrTooMany, http.StatusConflict, "tenant_limit"},
	{tenants.ErrFull, http.StatusInsufficientStorage, "disk_full"},
	{tenants.ErrUnknown, http.StatusServiceUnavailable, "outcome_unknown"},
	{tenants.ErrOverloaded, http.StatusServiceUnavailable, "overloaded"},
	{tenants.ErrUnavailable, http.StatusServiceUnavailable, "unavailable"},
	{tenants.ErrClosed, http.StatusServiceUnavailable, "unavailable"},
	{jobs.ErrReadOnly, http.StatusForbidden, "queue_read_only"},
	{jobs.ErrStaleLease, http.StatusConflict, "lease_stale"},
	{jobs.ErrDamaged, http.StatusGone, "job_damaged"},
	{jobs.ErrClosed, http.StatusServiceUnavailable, "unavailable"},
}

// explain turns any error into what the client is told. known is false for one that nobody foresaw: it is for the log.
func explain(err error, hasBody bool) (p *Problem, known bool) {
	if errors.As(err, &p) {
		return p, true
	}
	var refusal *ledger.Error
	if errors.As(err, &refusal) {
		return explainRefusal(refusal, hasBody), true
	}
	var invalid *tenants.InvalidError
	if errors.As(err, &invalid) {
		return problem(http.StatusUnprocessableEntity, "tenant_setting_invalid", invalid.Field, invalid.Message), true
	}
	if p := explainJobs(err); p != nil {
		return p, true
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			p := problem(s.as, s.code, "", s.err.Error())
			if s.as == http.StatusServiceUnavailable {
				p.retryAfter = retryAfterDefault
			}
			return p, true
		}
	}
	return errInternal, false
}

// explainJobs explains what the job engine refuses, where a sentinel's text is not all there is to say.
func explainJobs(err error) *Problem {
	var invalid *jobs.InvalidError
	switch {
	case errors.As(err, &invalid):
		field := invalid.Field
		var one *jobs.JobError
		if errors.As(err, &one) {
			field = "jobs[" + strconv.Itoa(one.Index) + "]." + field
		}
		return problem(http.StatusUnprocessableEntity, "member_invalid", clip(field), invalid.Message)
	case errors.Is(err, jobs.ErrNotFound):
		return errNotFound
	case errors.Is(err, jobs.ErrState):
		return problem(http.StatusConflict, "job_state", "", err.Error()) // which state it is
	}
	return nil
}

func explainRefusal(e *ledger.Error, hasBody bool) *Problem {
	if e.Kind == ledger.NotFound {
		return errNotFound
	}
	status, ok := kinds[e.Kind]
	switch {
	case ok:
	case e.Kind == ledger.Invalid && (!hasBody || e.Code == codeKeyInvalid):
		status = http.StatusBadRequest
	case e.Kind == ledger.Invalid:
		status = http.StatusUnprocessableEntity
	default:
		status = http.StatusInternalServerError
	}
	p := problem(status, e.Code, e.Field, e.Message)
	p.retryAfter = e.RetryAfter
	if r := e.Rule; r != nil {
		p.Rule, p.Stands, p.Allowed = r.Name, &r.Stands, &r.Allowed
	}
	if status == http.StatusServiceUnavailable && p.retryAfter <= 0 {
		p.retryAfter = retryAfterDefault
	}
	return p
}

// setHeaders writes what goes with the problem beside its body.
func (p *Problem) setHeaders(h http.Header) {
	if p.retryAfter > 0 {
		seconds := max(1, int64((p.retryAfter+time.Second-1)/time.Second))
		h["Retry-After"] = []string{strconv.FormatInt(seconds, 10)}
	}
	if p.Status == http.StatusUnauthorized {
		h["Www-Authenticate"] = bearerChallenge
	}
}

var bearerChallenge = []string{`Bearer realm="tenderbox"`}

func init() {
	// huma builds its own refusals (parameters, mostly) with this. A Problem among the details is the answer.
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		for _, err := range errs {
			var p *Problem
			if errors.As(err, &p) {
				return p
			}
		}
		for _, err := range errs {
			var d *huma.ErrorDetail
			if errors.As(err, &d) {
				where, name, _ := strings.Cut(d.Location, ".")
				if where != "body" {
					return problem(http.StatusBadRequest, "parameter_invalid", clip(name), d.Message)
				}
			}
		}
		if status >= http.StatusInternalServerError {
			return errInternal
		}
		return problem(status, "request_invalid", "", msg)
	}
}

// fail logs what nobody foresaw and returns what the client is told.
func (s *Server) fail(x *exchange, err error) *Problem {
	p, known := explain(err, x.hasBody)
	if !known && x.r.Context().Err() == nil {
		s.log.Error("request failed", slog.String("route", x.route.name), slog.String("tenant", string(x.caller.Tenant)), slog.Any("err", err))
	}
	return p
}
