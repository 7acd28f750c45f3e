package email

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tenderbox/jobs"
)

func TestStaggerMakesAJobOfEachMail(t *testing.T) {
	var made []jobs.NewJob
	h := StaggerHandler(func(_ context.Context, js ...jobs.NewJob) ([]jobs.Job, error) {
		made = append(made, js...)
		return nil, nil
	})
	data := `{"emails":[{"to":"a@example.org","template":"welcome"},{"to":"b@example.org","template":"welcome"},{"to":"c@example.org","template":"welcome"}]%s}`
	for every, want := range map[string]time.Duration{"": time.Second, `,"every_ms":250`: 250 * time.Millisecond} {
		made = nil
		err := h(t.Context(), job("shop", "news", StaggerJob, fmt.Sprintf(data, every)))
		if wished(err) != "done" || len(made) != 3 {
			t.Fatalf("%v, %d jobs", err, len(made))
		}
		for n, j := range made {
			if j.Name != SendJob || j.Queue != Queue || j.Tenant != "shop" || j.ID != fmt.Sprint("news:", n) || j.Priority != 5 || j.Delay != time.Duration(n)*want {
				t.Errorf("job %d: %+v", n, j)
			}
		}
	}
	for _, bad := range []string{`{"emails":[]}`, `{}`, `{"emails":[{"to":"a@example.org"}],"every_ms":-1}`, `{"emails":[{"to":"a@example.org"}],"every_ms":99999999}`, `{"mails":[]}`} {
		made = nil
		if err := h(t.Context(), job("shop", "news", StaggerJob, bad)); wished(err) != "cancel" || len(made) > 0 {
			t.Errorf("%s: %v, %d jobs", bad, err, len(made))
		}
	}
	refused := StaggerHandler(func(context.Context, ...jobs.NewJob) ([]jobs.Job, error) { return nil, errors.New("disk") })
	if err := refused(t.Context(), job("shop", "news", StaggerJob, strings.Replace(data, "%s", "", 1))); wished(err) != "retry" {
		t.Errorf("a queue that takes nothing: %v", err)
	}
}
