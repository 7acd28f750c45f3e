package web

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/jobs"
)

// What a job may ask for.
const (
	// jobsMax jobs in one bulk: one transaction must stay short, because everybody waits for it.
	jobsMax = 10_000
	// jobDataMax bytes of one job's data, in a bulk too.
	jobDataMax = jobBodyMax
	// jobNameMax and jobIDMax, in bytes.
	jobNameMax = 255
	jobIDMax   = 255
	// prioritiesMax: as in Bull 0 runs first; the box has room for more than its two million.
	prioritiesMax = math.MaxInt32
	// attemptsMax is beyond all patience: at the longest backoff it is a century.
	attemptsMax = 1_000_000
	// spanMax bounds delays, ages and timeouts: ten years; beyond it a typing error is likelier than a wish.
	spanMax = 10 * 365 * 24 * time.Hour
	// keptMax bounds how many finished jobs may be asked to be kept by count. Not to remove any is another wish.
	keptMax = 1_000_000_000
)

// rawValue is any JSON value, kept byte for byte as it came.
type rawValue []byte

// UnmarshalJSONFrom is for the decoder.
func (v *rawValue) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	raw, err := dec.ReadValue()
	*v = append((*v)[:0], raw...)
	return err
}

// MarshalJSONTo is for the encoder, which drops white space between the tokens. Where that matters, answers are put together by hand.
func (v rawValue) MarshalJSONTo(enc *jsontext.Encoder) error {
	if !v.shown() {
		return enc.WriteToken(jsontext.Null)
	}
	return enc.WriteValue(jsontext.Value(v))
}

// shown reports whether there is a JSON value to show: what the box's own jobs carry may be nothing or something else.
func (v rawValue) shown() bool { return len(v) > 0 && jsontext.Value(v).IsValid() }

// Schema is for the description: any value.
func (rawValue) Schema(huma.Registry) *huma.Schema { return &huma.Schema{} }

// newJob is a job as it comes in.
type newJob struct {
	Name string     `json:"name" doc:"What the worker switches on." example:"send-receipt"`
	Data rawValue   `json:"data,omitempty" doc:"Any JSON value of up to 1 MiB, kept as it is."`
	Opts newJobOpts `json:"opts,omitzero"`
}

// newJobOpts are a job's options. What is left out is the queue's default.
type newJobOpts struct {
	Priority         int64       `json:"priority,omitzero" doc:"0 runs first, then 1 and so on, within a tenant." minimum:"0"`
	DelayMS          int64       `json:"delay_ms,omitzero" doc:"Not before so many milliseconds from now." minimum:"0"`
	Attempts         *int64      `json:"attempts,omitempty" doc:"How often it is tried in all. Default 3." minimum:"1"`
	Backoff          *newBackoff `json:"backoff,omitempty"`
	JobID            *string     `json:"job_id,omitempty" doc:"An id of the app's own: as long as the job is kept, adding it again answers the kept one."`
	RemoveOnComplete *retention  `json:"remove_on_complete,omitempty"`
	RemoveOnFail     *retention  `json:"remove_on_fail,omitempty"`
	TimeoutMS        *int64      `json:"timeout_ms,omitempty" doc:"Of one attempt by a worker in the box; one outside has its lease. Default 10 minutes." minimum:"1"`
}

// newBackoff is how long to wait between attempts.
type newBackoff struct {
	Type    *string  `json:"type,omitempty" enum:"exponential,fixed" doc:"exponential (the default): delay_ms, then twice that, and so on up to max_ms."`
	DelayMS *int64   `json:"delay_ms,omitempty" doc:"Default 2000." minimum:"0"`
	Jitter  *float64 `json:"jitter,omitempty" doc:"The share of each wait that is drawn at random." minimum:"0" maximum:"1"`
	MaxMS   *int64   `json:"max_ms,omitempty" doc:"Default one hour, or delay_ms if that is longer." minimum:"1"`
}

// retention is bool, count or {count, age_s}.
type retention struct{ jobs.Retention }

var keepAll = jobs.Retention{Count: -1}

// UnmarshalJSONFrom is for the decoder.
func (r *retention) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case 't', 'f':
		var remove bool
		err := json.UnmarshalDecode(dec, &remove)
		r.Retention = keepAll
		if remove {
			r.Retention = jobs.Retention{Remove: true}
		}
		return err
	case '{':
		var form retentionForm
		if err := json.UnmarshalDecode(dec, &form); err != nil {
			return err
		}
		return r.from(form)
	}
	var n int64
	if err := json.UnmarshalDecode(dec, &n); err != nil {
		return err
	}
	return r.from(retentionForm{Count: &n})
}

type retentionForm struct {
	Count *int64 `json:"count"`
	AgeS  *int64 `json:"age_s"`
}

// errRetention becomes the decoder's error, which knows the member.
var errRetention = fmt.Errorf("a bool, a count from 0 to %d, or {count, age_s} with an age from 1 second to ten years", keptMax)

func (r *retention) from(f retentionForm) error {
	r.Retention = keepAll
	switch {
	case f.Count == nil && f.AgeS == nil,
		f.Count != nil && (*f.Count < 0 || *f.Count > keptMax),
		f.AgeS != nil && (*f.AgeS < 1 || *f.AgeS > int64(spanMax/time.Second)):
		return errRetention
	case f.Count != nil && *f.Count == 0:
		r.Retention = jobs.Retention{Remove: true}
		return nil
	case f.Count != nil:
		r.Count = int(*f.Count)
	}
	if f.AgeS != nil {
		r.Age = time.Duration(*f.AgeS) * time.Second
	}
	return nil
}

// appendRetention writes a retention as it may be asked for.
func appendRetention(b []byte, r jobs.Retention) []byte {
	switch {
	case r.Remove:
		return append(b, "true"...)
	case r.Age <= 0 && r.Count < 0:
		return append(b, "false"...)
	case r.Age <= 0:
		return strconv.AppendInt(b, int64(r.Count), 10)
	}
	b = append(b, '{')
	if r.Count >= 0 {
		b = append(strconv.AppendInt(append(b, `"count":`...), int64(r.Count), 10), ',')
	}
	return append(strconv.AppendInt(append(b, `"age_s":`...), int64(r.Age/time.Second), 10), '}')
}

// MarshalJSONTo is for the encoder.
func (r retention) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteValue(appendRetention(nil, r.Retention))
}

// Schema is for the description.
func (retention) Schema(huma.Registry) *huma.Schema {
	zero, one := 0.0, 1.0
	count := &huma.Schema{Type: huma.TypeInteger, Minimum: &zero}
	return &huma.Schema{
		Description: "true: keep none; false: keep all; a number: keep the newest so many; {count, age_s}: and none that is older. Default: 10 completed, 5 failed.",
		OneOf: []*huma.Schema{{Type: huma.TypeBoolean}, count, {Type: huma.TypeObject, AdditionalProperties: false, Properties: map[string]*huma.Schema{
			"count": count, "age_s": {Type: huma.TypeInteger, Minimum: &one},
		}}},
	}
}

// memberRange says that a member's value is out of range.
func memberRange(field, rule string) *Problem {
	return problem(http.StatusUnprocessableEntity, "member_invalid", field, rule)
}

// between checks a whole number.
func between(field string, n, least, most int64) error {
	if n < least || n > most {
		return memberRange(field, fmt.Sprintf("must be a whole number from %d to %d", least, most))
	}
	return nil
}

// milliseconds checks a span of time.
func milliseconds(field string, ms, least int64, most time.Duration) (time.Duration, error) {
	err := between(field, ms, least, most.Milliseconds())
	return time.Duration(ms) * time.Millisecond, err
}

// wish checks a job that came in and turns it into the engine's form. at is what its members' names begin with.
func (n *newJob) wish(at, tenant, queue string) (jobs.NewJob, error) {
	j := jobs.NewJob{Queue: queue, Tenant: tenant, Name: n.Name, Data: n.Data}
	if !isText(n.Name, jobNameMax) || n.Name == "" {
		return j, memberRange(at+"name", fmt.Sprintf("must be 1 to %d bytes without control characters", jobNameMax))
	}
	if len(n.Data) > jobDataMax {
		return j, memberRange(at+"data", fmt.Sprintf("must be at most %d bytes", jobDataMax))
	}
	return j, n.Opts.onto(&j, at+"opts.")
}

// onto brings the options onto a job.
func (o *newJobOpts) onto(j *jobs.NewJob, at string) (err error) {
	if err := between(at+"priority", o.Priority, 0, prioritiesMax); err != nil {
		return err
	}
	j.Priority = int(o.Priority)
	if j.Delay, err = milliseconds(at+"delay_ms", o.DelayMS, 0, spanMax); err != nil {
		return err
	}
	if id := o.JobID; id != nil {
		if !isJobID(*id) {
			return memberRange(at+"job_id", fmt.Sprintf("must be 1 to %d of the characters a-z A-Z 0-9 - _ . ~ : @ + =, and not only dots", jobIDMax))
		}
		j.ID = *id
	}
	var d jobs.Defaults
	if d, err = (newQueueDefaults{o.Attempts, o.Backoff, o.RemoveOnComplete, o.RemoveOnFail, o.TimeoutMS}).read(at); err != nil {
		return err
	}
	j.Attempts, j.Backoff, j.Timeout, j.RemoveOnComplete, j.RemoveOnFail = d.Attempts, d.Backoff, d.Timeout, d.RemoveOnComplete, d.RemoveOnFail
	return nil
}

// newQueueDefaults are the options that a queue may have defaults for.
type newQueueDefaults struct {
	Attempts         *int64      `json:"attempts,omitempty" minimum:"1"`
	Backoff          *newBackoff `json:"backoff,omitempty"`
	RemoveOnComplete *retention  `json:"remove_on_complete,omitempty"`
	RemoveOnFail     *retention  `json:"remove_on_fail,omitempty"`
	TimeoutMS        *int64      `json:"timeout_ms,omitempty" minimum:"1"`
}

func (q newQueueDefaults) read(at string) (d jobs.Defaults, err error) {
	if n := q.Attempts; n != nil {
		if err := between(at+"attempts", *n, 1, attemptsMax); err != nil {
			return d, err
		}
		d.Attempts = int(*n)
	}
	if ms := q.TimeoutMS; ms != nil {
		if d.Timeout, err = milliseconds(at+"timeout_ms", *ms, 1, spanMax); err != nil {
			return d, err
		}
	}
	if q.RemoveOnComplete != nil {
		d.RemoveOnComplete = q.RemoveOnComplete.Retention
	}
	if q.RemoveOnFail != nil {
		d.RemoveOnFail = q.RemoveOnFail.Retention
	}
	if q.Backoff != nil {
		d.Backoff, err = q.Backoff.read(at + "backoff.")
	}
	return d, err
}

func (n *newBackoff) read(at string) (b jobs.Backoff, err error) {
	b.Type = jobs.Exponential
	if n.Type != nil {
		if b.Type = jobs.BackoffType(*n.Type); b.Type != jobs.Exponential && b.Type != jobs.Fixed {
			return b, memberRange(at+"type", "must be exponential or fixed")
		}
	}
	if n.DelayMS != nil {
		if b.Delay, err = milliseconds(at+"delay_ms", *n.DelayMS, 0, spanMax); err != nil {
			return b, err
		}
		b.Delay = max(b.Delay, time.Millisecond) // to the engine 0 means the default
	}
	if n.MaxMS != nil {
		if b.Max, err = milliseconds(at+"max_ms", *n.MaxMS, 1, spanMax); err != nil {
			return b, err
		}
	}
	if n.Jitter != nil {
		if b.Jitter = *n.Jitter; !(b.Jitter >= 0 && b.Jitter <= 1) {
			return b, memberRange(at+"jitter", "must be from 0 to 1")
		}
	}
	return b, nil
}

// isJobID accepts ids that mean the same in a path, whoever writes them there.
func isJobID(id string) bool {
	dots := 0
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '_', c == '~', c == ':', c == '@', c == '+', c == '=':
		case c == '.':
			dots++
		default:
			return false
		}
	}
	return len(id) <= jobIDMax && len(id) > dots
}

// isText accepts what a person may read in a line. The decoder has checked that it is UTF-8.
func isText(s string, most int) bool {
	for _, r := range s {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return false
		}
	}
	return len(s) <= most
}
