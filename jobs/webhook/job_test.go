package webhook

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tenderbox/jobs"
)

// Derived twice is enqueued once, and each endpoint has a job of its own.
func TestJobsFor(t *testing.T) {
	rc := &receiver{}
	url := listen(t, rc)
	b := newBox(t, url, Options{AllowLAN: true})
	b.all["we_2"] = b.all["we_1"]
	e := b.event()
	one, two := JobsFor("shop", e, []string{"we_1", "we_2"}), JobsFor("shop", e, []string{"we_1", "we_2"})
	if diff := cmp.Diff(one, two); diff != "" {
		t.Error(diff)
	}
	if len(one) != 2 || one[0].ID != "we_1:evt_1" || one[1].ID != "we_2:evt_1" || one[0].Queue != "webhooks" || one[0].Tenant != "shop" || one[0].Attempts != 10 || one[0].Timeout <= requestTimeout+drainTimeout {
		t.Errorf("%+v", one)
	}
	for _, ids := range [][]string{{"we_1", "we_2"}, {"we_2", "we_1"}} {
		b.send(e, ids...)
	}
	for _, id := range []string{"we_1:evt_1", "we_2:evt_1"} {
		if j := b.outcome(id); j.State != jobs.Completed {
			t.Errorf("%s: %q", j.State, j.LastError)
		}
	}
	b.send(e, "we_1")
	b.outcome(b.send(b.event(), "we_1"))
	var ids []string
	for _, g := range rc.requests() {
		ids = append(ids, g.header.Get("webhook-id"))
	}
	if slices.Sort(ids); !slices.Equal(ids, []string{"evt_1", "evt_1", "evt_2"}) {
		t.Errorf("%v", ids)
	}
	if JobsFor("shop", e, nil) != nil {
		t.Error("jobs for nobody")
	}
}

// The news of a failed delivery is not delivered; that of any other job is.
func TestOwnFailureIsNotDelivered(t *testing.T) {
	for body, want := range map[string]int{
		`{"data":{"queue":"webhooks","job_id":"we_1:evt_1"}}`: 0,
		`{"data":{"queue":"email"}}`:                          1,
		`{"data":"webhooks"}`:                                 1,
		`{}`:                                                  1,
		`garbage`:                                             1,
	} {
		if n := len(JobsFor("shop", Event{ID: "evt_1", Type: "job.failed", JSON: []byte(body)}, []string{"we_1"})); n != want {
			t.Errorf("%s: %d jobs", body, n)
		}
	}
	if n := len(JobsFor("shop", Event{ID: "evt_1", Type: "custom", JSON: []byte(`{"data":{"queue":"webhooks"}}`)}, []string{"we_1"})); n != 1 {
		t.Errorf("another event: %d jobs", n)
	}
}

// An event that is too large goes thin: as a job that cannot be stored it would hold up the relay.
func TestLargeEvents(t *testing.T) {
	large := strings.Repeat("x", eventBytesMax)
	for name, c := range map[string]struct{ json, want string }{
		"data": {`{"specversion":"1.0","id":"evt_1","source":"/tenderbox/b","type":"t","sequence":"7","datacontenttype":"application/json","data":"` + large + `"}`,
			`{"dataomitted":true,"id":"evt_1","sequence":"7","source":"/tenderbox/b","specversion":"1.0","type":"t"}`},
		"binary":    {`{"id":"evt_1","data_base64":"` + large + `"}`, `{"dataomitted":true,"id":"evt_1"}`},
		"attribute": {`{"id":"evt_1","subject":"` + large + `"}`, `{"dataomitted":true,"id":"evt_1","source":"/tenderbox","specversion":"1.0","type":"t"}`},
		"garbage":   {large + "x", `{"dataomitted":true,"id":"evt_1","source":"/tenderbox","specversion":"1.0","type":"t"}`},
	} {
		p, err := decodePayload(JobsFor("shop", Event{ID: "evt_1", Type: "t", JSON: []byte(c.json)}, []string{"we_1"})[0].Data)
		if err != nil || string(p.Event) != c.want {
			t.Errorf("%s: %v, %.200s", name, err, p.Event)
		}
	}
	whole := `{"id":"evt_1","data":"` + large[:eventBytesMax-100] + `"}`
	p, err := decodePayload(JobsFor("shop", Event{ID: "evt_1", Type: "t", JSON: []byte(whole)}, []string{"we_1"})[0].Data)
	if err != nil || string(p.Event) != whole {
		t.Errorf("just small enough: %v, %d bytes", err, len(p.Event))
	}
}

// A job of another version, or of nobody, fails at once and says so.
func TestPoisonJobs(t *testing.T) {
	rc := &receiver{}
	b := newBox(t, listen(t, rc), Options{AllowLAN: true})
	for i, data := range []string{"", "null", "7", "[]", "{", `{"endpoint":7}`, `{"endpoint":"we_1"}`, `{"endpoint":"we_1","event":null}`, `{"endpoint":"we_1","event":{"id":""}}`,
		`{"endpoint":"we_1","event":{"id":"a.b"}}`, `{"endpoint":"we_1","event":{"id":"a\r\nx: y"}}`, `{"endpoint":"we_1","event":{"id":"é"}}`,
		`{"event":{"id":"evt_1"}}`, `{"endpoint":"we_1","event":{"id":"` + strings.Repeat("x", eventIDMax+1) + `"}}`, strings.Repeat("[", 100_000)} {
		all, err := b.e.Enqueue(t.Context(), jobs.NewJob{Queue: Queue, Tenant: "shop", ID: fmt.Sprint(i), Data: []byte(data)})
		fatalIf(t, err)
		if j := b.outcome(all[0].ID); j.State != jobs.Failed || j.AttemptsMade != 1 || j.LastError == "" {
			t.Errorf("%.80s: %s %q", data, j.State, j.LastError)
		}
	}
	if n := len(rc.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	// INV-20: a tenant's job does not reach another's endpoint.
	j := JobsFor("bar", b.event(), []string{"we_1"})[0]
	_, err := b.e.Enqueue(t.Context(), j)
	fatalIf(t, err)
	for {
		if got, err := b.e.Get("bar", Queue, j.ID); err != nil {
			t.Fatal(err)
		} else if got.State == jobs.Failed {
			break
		} else if got.State == jobs.Completed {
			t.Fatal("another tenant's event was delivered")
		}
	}
}

// Whatever an event holds arrives as it is, and its id is what is signed.
func FuzzPayload(f *testing.F) {
	f.Add("we_1", `{"id":"evt_1","data":"<&>\u2028é"}`)
	f.Add("we_\"", ` { "id" : "evt_1" } `)
	f.Fuzz(func(t *testing.T, endpoint, event string) {
		p, err := decodePayload(encodePayload(endpoint, []byte(event)))
		if err != nil {
			return
		}
		if json.Valid([]byte(event)) && strings.TrimSpace(event) != string(p.Event) {
			t.Errorf("%q became %q", event, p.Event)
		}
		if p.id == "" || strings.ContainsFunc(p.id, notInID) {
			t.Errorf("id %q", p.id)
		}
	})
}
