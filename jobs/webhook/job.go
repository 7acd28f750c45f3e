package webhook

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"tenderbox/jobs"
)

const (
	// Queue is the queue of deliveries.
	Queue = "webhooks"
	// Name is what its jobs are called.
	Name = "deliver-webhook"

	// eventBytesMax bounds what is sent. The specification recommends less than 20 kB; above this, receivers' own limits begin.
	eventBytesMax = 256 << 10
	// eventIDMax bounds the webhook-id.
	eventIDMax = 200

	// jobTimeout is longer than the longest attempt (requestTimeout and drainTimeout); it only bounds what should not happen.
	jobTimeout = 2 * requestTimeout

	// The delivery log: what a person looks back at, and what may still be sent again. Counted for a tenant.
	keepCompleted, keepFailed       = 100, 500
	keepCompletedAge, keepFailedAge = 7 * 24 * time.Hour, 30 * 24 * time.Hour
)

// Event is what is delivered.
type Event struct {
	ID   string // letters, digits, '-' and '_'; becomes the webhook-id
	Type string
	JSON []byte // CloudEvents 1.0 in JSON; sent as it is
}

// typeJobFailed is the event of a job that failed for good.
const typeJobFailed = "job.failed"

// JobsFor turns an event into one job for each of the tenant's endpoints that want it, given by their ids. It is a pure function, and a
// job's id is made of the endpoint's and the event's: deriving twice is deriving once. Ids of an endpoint's jobs begin with its own.
func JobsFor(tenant string, e Event, endpoints []string) []jobs.NewJob {
	if len(endpoints) == 0 || e.ownFailure() {
		return nil
	}
	body := e.body()
	all := make([]jobs.NewJob, 0, len(endpoints))
	for _, id := range endpoints {
		all = append(all, jobs.NewJob{
			Queue: Queue, Tenant: tenant, ID: id + ":" + e.ID, Name: Name, Data: encodePayload(id, body),
			Attempts: len(schedule) + 1, Timeout: jobTimeout,
			RemoveOnComplete: jobs.Retention{Count: keepCompleted, Age: keepCompletedAge},
			RemoveOnFail:     jobs.Retention{Count: keepFailed, Age: keepFailedAge},
		})
	}
	return all
}

// ownFailure reports the news that a delivery failed for good. Delivered in turn, it would fail in turn, for ever, and with two endpoints
// down twice as often each time.
func (e *Event) ownFailure() bool {
	if e.Type != typeJobFailed {
		return false
	}
	var told struct {
		Data struct {
			Queue string `json:"queue"`
		} `json:"data"`
	}
	return json.Unmarshal(e.JSON, &told) == nil && told.Data.Queue == Queue
}

// body is the event as it is sent: whole, or without its data if it is too large. A job that is too large could not be stored, and
// would hold up all events behind it.
func (e *Event) body() []byte {
	if len(e.JSON) <= eventBytesMax {
		return e.JSON
	}
	thin := map[string]json.RawMessage{}
	if json.Unmarshal(e.JSON, &thin) == nil {
		for _, name := range []string{"data", "data_base64", "datacontenttype"} {
			delete(thin, name)
		}
		thin["dataomitted"] = json.RawMessage("true")
		if out, err := json.Marshal(thin); err == nil && len(out) <= eventBytesMax {
			return out
		}
	}
	out, err := json.Marshal(map[string]any{"specversion": "1.0", "id": e.ID, "source": "/tenderbox", "type": e.Type, "dataomitted": true})
	if err != nil { // strings always encode
		panic(err)
	}
	return out
}

// payload is a job's data.
type payload struct {
	Endpoint string          `json:"endpoint"`
	Event    json.RawMessage `json:"event"` // byte for byte what is sent and signed
	id       string
}

// encodePayload joins by hand what an encoder would compact and escape anew.
func encodePayload(endpoint string, event []byte) []byte {
	id, err := json.Marshal(endpoint)
	if err != nil { // strings always encode
		panic(err)
	}
	return fmt.Appendf(nil, `{"endpoint":%s,"event":%s}`, id, event)
}

func decodePayload(data []byte) (p payload, err error) {
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("the job is no delivery: %w", err)
	}
	var event struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(p.Event, &event); err != nil || p.Endpoint == "" {
		return p, fmt.Errorf("the job is no delivery: it needs an endpoint and an event")
	}
	// It becomes a header and a part of what is signed, in which a dot would move the border to the timestamp.
	if event.ID == "" || len(event.ID) > eventIDMax || strings.ContainsFunc(event.ID, notInID) {
		return p, fmt.Errorf("the event's id cannot be a webhook-id")
	}
	p.id = event.ID
	return p, nil
}

func notInID(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}
