package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/julienschmidt/httprouter"

	"tenderbox/jobs"
)

// JobBook is what the server asks of jobs.
type JobBook interface {
	Enqueue(context.Context, ...jobs.NewJob) ([]jobs.Job, error)
	Get(tenant, queue, id string) (jobs.Job, error)
	List(tenant, queue string, s jobs.State, o jobs.ListOptions) (jobs.JobPage, error)
	Logs(tenant, queue, id string) ([]jobs.LogLine, error)
	Watch(ctx context.Context, tenant, queue string) <-chan jobs.Transition
}

// JobMoves is what people and apps do to jobs.
type JobMoves interface {
	Retry(ctx context.Context, tenant, queue, id string) (jobs.Job, error)
	RetryFailed(ctx context.Context, tenant, queue string) (int, error)
	Promote(ctx context.Context, tenant, queue, id string) (jobs.Job, error)
	PromoteAll(ctx context.Context, tenant, queue string) (int, error)
	Remove(ctx context.Context, tenant, queue, id string) error
	Drain(ctx context.Context, tenant, queue string, delayed bool) (int, error)
}

const (
	jobsPath = queuePath + "/jobs"
	jobPath  = jobsPath + "/{id}"
)

// newJobs is the body of POST …/jobs: one job, or many.
type newJobs struct {
	Name string     `json:"name,omitempty" doc:"What the worker switches on. Required for a single job." example:"send-receipt"`
	Data rawValue   `json:"data,omitempty" doc:"Any JSON value of up to 1 MiB, kept as it is."`
	Opts newJobOpts `json:"opts,omitzero"`
	Jobs *jobList   `json:"jobs,omitempty" doc:"Instead of name, data and opts: up to 10,000 jobs, stored all or none."`
}

// jobList is a bulk.
type jobList []newJob

// UnmarshalJSONFrom is for the decoder.
func (l *jobList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return decodeList(dec, (*[]newJob)(l), "jobs", jobsMax)
}

// Schema is for the description.
func (jobList) Schema(r huma.Registry) *huma.Schema { return arrayOf[newJob](r, jobsMax) }

type queueQuery struct {
	request
	Queue string `path:"queue"`
}

type jobQuery struct {
	request
	Queue string `path:"queue"`
	ID    string `path:"id"`
}

type jobsQuery struct {
	request
	PageQuery
	Queue string `path:"queue"`
	State string `query:"state" enum:"waiting,delayed,active,completed,failed" doc:"Default: waiting."`
}

type (
	jobOutput  struct{ Body jobView }
	jobsOutput struct{ Body page[jobView] }
	logsOutput struct {
		Body struct {
			Data []logView `json:"data"`
		}
	}
	addedOutput struct {
		Location string `header:"Location" doc:"Of a single job."`
		Body     jobOrJobs
	}
	goneOutput struct{}
)

// jobOrJobs describes the answer to an enqueue.
type jobOrJobs struct{}

// Schema is for the description.
func (jobOrJobs) Schema(r huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{r.Schema(reflect.TypeFor[jobView](), true, ""),
		{Type: huma.TypeObject, Required: []string{"jobs"}, Properties: map[string]*huma.Schema{"jobs": arrayOf[jobView](r, jobsMax)}}}}
}

type logView struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

func (s *Server) registerJobs() {
	op := func(id, method, path, summary, description string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Description: description, Tags: []string{"queues"}}
	}
	add := op("add-job", http.MethodPost, jobsPath, "Add a job, or many",
		"Answered 201, they are on the box's disk. A bulk is stored all or none, and answered {jobs: […]}. A job whose opts.job_id is kept already "+
			"is not added again: the kept one is the answer.")
	add.DefaultStatus = http.StatusCreated
	registerDirect[queueQuery, addedOutput](s, add, forTenant, s.addJobs)
	documentBody[newJobs](s.api, http.MethodPost, jobsPath)
	registerDirect[jobQuery, jobOutput](s, op("get-job", http.MethodGet, jobPath, "Read a job", ""), forTenant, s.readJob)
	registerDirect[jobsQuery, jobsOutput](s, op("list-jobs", http.MethodGet, jobsPath, "List a queue's jobs in a state, newest first", ""), forTenant, s.listJobs)
	registerDirect[jobQuery, jobOutput](s, op("retry-job", http.MethodPost, jobPath+"/retry", "Let a failed or completed job wait again",
		"Its attempts are counted anew. Another state: 409 job_state."), forTenant, s.moveJob(s.jobs.Retry))
	registerDirect[jobQuery, jobOutput](s, op("promote-job", http.MethodPost, jobPath+"/promote", "Let a delayed job wait at once",
		"Another state: 409 job_state."), forTenant, s.moveJob(s.jobs.Promote))
	remove := op("remove-job", http.MethodDelete, jobPath, "Remove a job that is not active", "An active one: 409 job_state.")
	remove.DefaultStatus = http.StatusNoContent
	registerDirect[jobQuery, goneOutput](s, remove, forTenant, s.removeJob)
	registerDirect[jobQuery, logsOutput](s, op("get-job-logs", http.MethodGet, jobPath+"/logs", "Read what a job's workers logged, oldest first", ""), forTenant, s.jobLogs)
}

func (s *Server) addJobs(x *exchange, p httprouter.Params) error {
	queue := p.ByName("queue")
	if err := s.allow(x, queue, work); err != nil {
		return err
	}
	var body newJobs
	size, err := x.decodeWithin(bulkBodyMax, &body)
	if err != nil {
		return err
	}
	if body.Jobs == nil && size > jobBodyMax {
		return bodyLarge(jobBodyMax)
	}
	t := x.caller.Tenant
	wishes, err := body.wishes(string(t), queue)
	if err != nil {
		return err
	}
	made, err := s.jobs.Enqueue(x.r.Context(), wishes...)
	if err != nil {
		return s.queueError(t, queue, err)
	}
	if body.Jobs != nil {
		x.writeJobs(http.StatusCreated, made, false)
		return nil
	}
	x.Header()["Location"] = []string{strings.Replace(jobsPath, "{queue}", queue, 1) + "/" + url.PathEscape(made[0].ID)}
	return x.writeJob(http.StatusCreated, &made[0])
}

// wishes checks what came in.
func (n *newJobs) wishes(tenant, queue string) ([]jobs.NewJob, error) {
	if n.Jobs == nil {
		j, err := (&newJob{n.Name, n.Data, n.Opts}).wish("", tenant, queue)
		return []jobs.NewJob{j}, err
	}
	if n.Name != "" || n.Data != nil || n.Opts != (newJobOpts{}) {
		return nil, memberRange("jobs", "stands instead of name, data and opts, not beside them")
	}
	if len(*n.Jobs) == 0 {
		return nil, memberRange("jobs", "must be at least one job")
	}
	wishes := make([]jobs.NewJob, len(*n.Jobs))
	for i := range *n.Jobs {
		var err error
		if wishes[i], err = (*n.Jobs)[i].wish("jobs["+strconv.Itoa(i)+"].", tenant, queue); err != nil {
			return nil, err
		}
	}
	return wishes, nil
}

// writeJob answers with one job.
func (x *exchange) writeJob(status int, j *jobs.Job) error {
	x.write(status, appendJob(make([]byte, 0, jobAnswer+len(j.Data)), j, x.caller.Operator, false))
	return nil
}

const (
	// jobAnswer is what a job's members take besides its data, mostly.
	jobAnswer = 768
	// answerChunk is how much of a long list of jobs is put together before it is sent, so that it never stands in memory as a whole.
	answerChunk = 64 << 10
)

// writeJobs answers {"jobs": […]}. Beyond a chunk it is sent piece by piece.
func (x *exchange) writeJobs(status int, js []jobs.Job, leased bool) {
	size := 0
	for i := range js {
		size += len(js[i].Data) + jobAnswer
	}
	defer x.answering(size)()
	b := append(make([]byte, 0, min(len(js)*jobAnswer, answerChunk)+jobAnswer), `{"jobs":[`...)
	for i := range js {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJob(b, &js[i], x.caller.Operator, leased)
		if len(b) >= answerChunk {
			if x.status == 0 {
				x.Header()["Content-Type"] = jsonTypes
				x.WriteHeader(status)
			}
			if _, err := x.Write(b); err != nil {
				return // the client has gone
			}
			b = b[:0]
		}
	}
	b = append(b, "]}"...)
	if x.status == 0 {
		x.Header()["Content-Type"] = jsonTypes
		x.Header()["Content-Length"] = []string{strconv.Itoa(len(b))}
		x.WriteHeader(status)
	}
	_, _ = x.Write(b) // the client has gone; there is nobody to tell
}

func (s *Server) readJob(x *exchange, p httprouter.Params) error {
	queue, t := p.ByName("queue"), x.caller.Tenant
	if err := s.allow(x, queue, look); err != nil {
		return err
	}
	if err := x.mayAnswer(); err != nil {
		return err
	}
	j, err := s.jobs.Get(string(t), queue, p.ByName("id"))
	if err != nil {
		return s.queueError(t, queue, err)
	}
	return x.writeJob(http.StatusOK, &j)
}

var states = map[string]jobs.State{"": jobs.Waiting, "waiting": jobs.Waiting, "delayed": jobs.Delayed, "active": jobs.Active,
	"completed": jobs.Completed, "failed": jobs.Failed}

func (s *Server) listJobs(x *exchange, p httprouter.Params) error {
	queue, t, query := p.ByName("queue"), x.caller.Tenant, x.r.URL.Query()
	if err := s.allow(x, queue, look); err != nil {
		return err
	}
	state, ok := states[query.Get("state")]
	if !ok {
		return problem(http.StatusBadRequest, "state_invalid", "state", "must be waiting, delayed, active, completed or failed")
	}
	page := PageQuery{query.Get("limit"), query.Get("cursor")}
	limit, err := page.limit()
	if err != nil {
		return err
	}
	list := "jobs/" + queue + "/" + string(state)
	position, err := s.openCursor(list, t, page.Cursor)
	if err != nil {
		return err
	}
	if err := x.mayAnswer(); err != nil {
		return err
	}
	found, err := s.jobs.List(string(t), queue, state, jobs.ListOptions{Limit: limit, After: position})
	if err != nil {
		return s.queueError(t, queue, err)
	}
	b := append(make([]byte, 0, (len(found.Jobs)+1)*jobAnswer), `{"data":[`...)
	for i := range found.Jobs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJob(b, &found.Jobs[i], x.caller.Operator, false)
	}
	b = strconv.AppendBool(append(b, `],"has_more":`...), found.Next != "")
	next := ""
	if sealed := s.sealCursor(list, t, found.Next); sealed != nil {
		next = *sealed
	}
	x.write(http.StatusOK, append(quotedOrNull(b, `,"next_cursor":`, next), '}'))
	return nil
}

// moveJob is retry or promote.
func (s *Server) moveJob(do func(ctx context.Context, tenant, queue, id string) (jobs.Job, error)) func(*exchange, httprouter.Params) error {
	return func(x *exchange, p httprouter.Params) error {
		queue, t := p.ByName("queue"), x.caller.Tenant
		if err := s.allow(x, queue, manage); err != nil {
			return err
		}
		j, err := do(x.r.Context(), string(t), queue, p.ByName("id"))
		if err != nil {
			return s.queueError(t, queue, err)
		}
		return x.writeJob(http.StatusOK, &j)
	}
}

func (s *Server) removeJob(x *exchange, p httprouter.Params) error {
	queue, t := p.ByName("queue"), x.caller.Tenant
	if err := s.allow(x, queue, work); err != nil {
		return err
	}
	if err := s.jobs.Remove(x.r.Context(), string(t), queue, p.ByName("id")); err != nil {
		return s.queueError(t, queue, err)
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) jobLogs(x *exchange, p httprouter.Params) error {
	queue, t := p.ByName("queue"), x.caller.Tenant
	if err := s.allow(x, queue, look); err != nil {
		return err
	}
	lines, err := s.jobs.Logs(string(t), queue, p.ByName("id"))
	if err != nil {
		return s.queueError(t, queue, err)
	}
	out := logsOutput{}
	out.Body.Data = make([]logView, len(lines))
	for i, l := range lines {
		out.Body.Data[i] = logView{l.At.UTC(), l.Text}
	}
	return x.answer(http.StatusOK, out.Body)
}

// decodeList decodes a list element by element, and refuses one that is too long as soon as it is.
func decodeList[T any](dec *jsontext.Decoder, l *[]T, field string, most int) error {
	if dec.PeekKind() != '[' {
		return memberRange(field, "must be a list")
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	*l = []T{}
	for dec.PeekKind() != ']' {
		if len(*l) == most {
			return memberRange(field, fmt.Sprintf("must have at most %d elements", most))
		}
		var one T
		if err := json.UnmarshalDecode(dec, &one); err != nil {
			return err
		}
		*l = append(*l, one)
	}
	_, err := dec.ReadToken()
	return err
}

// arrayOf describes a list.
func arrayOf[T any](r huma.Registry, most int) *huma.Schema {
	one := 1
	return &huma.Schema{Type: huma.TypeArray, Items: r.Schema(reflect.TypeFor[T](), true, ""), MinItems: &one, MaxItems: &most}
}
