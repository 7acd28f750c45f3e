package web

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/julienschmidt/httprouter"

	"tenderbox/jobs"
)

const (
	// streamBeat is how often a quiet stream shows that it lives: below the minute after which proxies cut.
	streamBeat = 15 * time.Second
	// streamWriteMax is how long one event may take to be written: a reader who is slower is gone, or as good as.
	streamWriteMax = 10 * time.Second
	// streamRetryMS is what a browser is told to wait before it comes again.
	streamRetryMS = "2000"
)

var errStreams = &Problem{Title: http.StatusText(http.StatusTooManyRequests), Status: http.StatusTooManyRequests, Code: "stream_limit",
	Detail: "this tenant has as many event streams open as it may", retryAfter: retryAfterDefault}

// transitionView is what is told of one move of a job.
type transitionView struct {
	ID       string     `json:"id"`
	Queue    string     `json:"queue"`
	Tenant   *string    `json:"tenant,omitempty" doc:"Told to the operator."`
	Name     string     `json:"name"`
	State    jobs.State `json:"state"`
	At       time.Time  `json:"at"`
	Progress rawValue   `json:"progress,omitempty" doc:"If that is what changed."`
}

type streamOutput struct{ Body transitionView }

func (s *Server) registerStream() {
	registerDirect[queueQuery, streamOutput](s, huma.Operation{
		OperationID: "stream-jobs", Method: http.MethodGet, Path: queuePath + "/stream", Tags: []string{"queues"},
		Summary: "Follow a queue's jobs live (Server-Sent Events)",
		Description: "One event `job` for each move of a job from now on; they are not kept, so a stream that is opened anew begins with now. A reader who is " +
			"too slow gets an event `lost` and the end of the stream: read the lists anew. The operator, naming no tenant, hears of all.",
	}, forAnyone, s.streamJobs)
	answer := s.api.OpenAPI().Paths[queuePath+"/stream"].Get.Responses["200"]
	answer.Content = map[string]*huma.MediaType{"text/event-stream": answer.Content[jsonType]}
}

// streamJobs tells the moves of a tenant's jobs, or to the operator of all, until the client goes, falls behind, or the server leaves.
func (s *Server) streamJobs(x *exchange, p httprouter.Params) error {
	queue, t := p.ByName("queue"), x.caller.Tenant
	if err := s.allow(x, queue, look); err != nil {
		return err
	}
	if _, err := s.jobs.Queue(string(t), queue); err != nil {
		return s.queueError(t, queue, err)
	}
	done, err := x.held.stream(&s.admission)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := s.untilLeaving(x.r.Context())
	defer cancel()
	moves := s.jobs.Watch(ctx, string(t), queue)
	out := newEventStream(x)
	if out.write([]byte("retry: "+streamRetryMS+"\n\n")) != nil {
		return nil // the client has gone
	}
	beat := time.NewTicker(streamBeat)
	defer beat.Stop()
	var b []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			b = append(b[:0], ": still here\n\n"...)
		case m, ok := <-moves:
			if !ok {
				if ctx.Err() == nil {
					_ = out.write([]byte("event: lost\ndata: {}\n\n")) // it ends either way
				}
				return nil
			}
			b = append(appendTransition(append(b[:0], "event: job\ndata: "...), &m, x.caller.Operator), "\n\n"...)
		}
		if out.write(b) != nil {
			return nil
		}
	}
}

// appendTransition writes a move in one line: no JSON value holds a line break, once its white space is gone.
func appendTransition(b []byte, m *jobs.Transition, operator bool) []byte {
	b = quoted(b, `{"id":`, m.ID)
	b = quoted(b, `,"queue":`, m.Queue)
	if operator {
		b = quoted(b, `,"tenant":`, m.Tenant)
	}
	b = quoted(b, `,"name":`, m.Name)
	b = quoted(b, `,"state":`, string(m.State))
	b = stamp(b, `,"at":`, m.At)
	if len(m.Progress) > 0 {
		b = compact(b, `,"progress":`, rawValue(m.Progress))
	}
	return append(b, '}')
}

// eventStream writes Server-Sent Events, each within a deadline of its own.
type eventStream struct {
	x *exchange
	c *http.ResponseController
}

func newEventStream(x *exchange) *eventStream {
	h := x.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["X-Accel-Buffering"] = []string{"no"} // proxies of that kind would keep events back
	e := &eventStream{x, http.NewResponseController(x.ResponseWriter)}
	// Without this the read deadline would end the request's context, and with it the stream.
	_ = e.c.SetReadDeadline(time.Time{}) // not every writer has deadlines; then there are none to move
	x.WriteHeader(http.StatusOK)
	return e
}

func (e *eventStream) write(b []byte) error {
	_ = e.c.SetWriteDeadline(time.Now().Add(streamWriteMax))
	if _, err := e.x.Write(b); err != nil {
		return err
	}
	return e.c.Flush()
}

// untilLeaving is ctx, ended also when the server is told to leave.
func (s *Server) untilLeaving(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.leaving, cancel)
	return ctx, func() { stop(); cancel() }
}

// Leave ends what waits by intention: leases without a job, event streams. Other requests end by themselves. It is for the
// beginning of a shutdown; what comes afterwards is still answered, and does not wait.
func (s *Server) Leave() { s.leave() }
