package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// manager is the machine of model_test.go with somebody who looks into queues and moves jobs about by hand.
type manager struct {
	machine
	logs map[string][]string // by tenant/id
}

func (m *manager) draw(t *rapid.T) (tenant, id, key string) {
	tenant = rapid.SampledFrom(tenants).Draw(t, "tenant")
	id = m.id(t, false)
	return tenant, id, tenant + "/" + id
}

// refused says what to expect of a wish that needs one of some states, and whether it is granted.
func (m *manager) refused(t *rapid.T, key string, err error, states ...State) bool {
	j := m.jobs[key]
	switch {
	case j == nil:
		if !errors.Is(err, ErrNotFound) {
			t.Fatalf("no such job: %v", err)
		}
	case !slices.Contains(states, j.state):
		if !errors.Is(err, ErrState) {
			t.Fatalf("%+v: %v", j, err)
		}
	case err != nil:
		t.Fatalf("%+v: %v", j, err)
	default:
		return false
	}
	return true
}

func (m *manager) again(j *modelJob) {
	j.state, j.made, j.interr, j.lastError, j.runAt = Waiting, 0, 0, "", m.now
}

func (m *manager) retry(t *rapid.T) {
	tenant, id, key := m.draw(t)
	got, err := m.e.Retry(context.Background(), tenant, "q", id)
	if m.refused(t, key, err, Completed, Failed) {
		return
	}
	if m.again(m.jobs[key]); got.State != Waiting || got.AttemptsMade != 0 {
		t.Fatalf("%+v", got)
	}
}

func (m *manager) retryFailed(t *rapid.T) {
	tenant := rapid.SampledFrom(tenants).Draw(t, "tenant") // "": all
	n, err := m.e.RetryFailed(context.Background(), tenant, "q")
	for _, j := range m.jobs {
		if j.state == Failed && (tenant == "" || tenant == j.tenant) {
			m.again(j)
			n--
		}
	}
	if err != nil || n != 0 {
		t.Fatalf("%d too many, %v", n, err)
	}
}

func (m *manager) promoteOne(t *rapid.T) {
	tenant, id, key := m.draw(t)
	_, err := m.e.Promote(context.Background(), tenant, "q", id)
	if !m.refused(t, key, err, Delayed) {
		m.jobs[key].state, m.jobs[key].runAt = Waiting, m.now
	}
}

func (m *manager) remove(t *rapid.T) {
	tenant, id, key := m.draw(t)
	err := m.e.Remove(context.Background(), tenant, "q", id)
	if !m.refused(t, key, err, Waiting, Delayed, Completed, Failed) {
		delete(m.jobs, key)
	}
}

func (m *manager) drain(t *rapid.T) {
	tenant, delayed := rapid.SampledFrom(tenants).Draw(t, "tenant"), rapid.Bool().Draw(t, "delayed")
	n, err := m.e.Drain(context.Background(), tenant, "q", delayed)
	for key, j := range m.jobs {
		if j.tenant == tenant && (j.state == Waiting || delayed && j.state == Delayed) {
			delete(m.jobs, key)
			n--
		}
	}
	if err != nil || n != 0 {
		t.Fatalf("%d too many, %v", n, err)
	}
}

func (m *manager) log(t *rapid.T) {
	for key, le := range m.held {
		text := rapid.StringN(0, 20, 40).Draw(t, "text")
		j := m.jobs[key]
		r := LeaseRef{j.tenant, "q", j.id, le.job.LeaseToken}
		if err := m.e.Log(context.Background(), r, text); err != nil {
			t.Fatal(err)
		}
		m.logs[key] = append(m.logs[key], text)
		r.Token += "x"
		if err := m.e.Log(context.Background(), r, text); !errors.Is(err, ErrStaleLease) {
			t.Fatalf("somebody else's line: %v", err)
		}
		return
	}
	t.Skip("nothing is active")
}

func (m *manager) check(t *rapid.T) {
	for key := range m.logs {
		if m.jobs[key] == nil {
			delete(m.logs, key) // gone with the job
		}
	}
	m.machine.check(t)
	for key, j := range m.jobs {
		lines, err := m.e.Logs(j.tenant, "q", j.id)
		var got []string
		for _, l := range lines {
			got = append(got, l.Text)
		}
		if want := m.logs[key]; err != nil || !slices.Equal(got, want[max(0, len(want)-logLinesMax):]) {
			t.Fatalf("%s: lines %q, want %q, %v", key, got, want, err)
		}
	}
	m.lists(t)
}

// lists pages through everything.
func (m *manager) lists(t *rapid.T) {
	limit := rapid.IntRange(1, 4).Draw(t, "limit")
	for _, tenant := range tenants {
		for _, s := range []State{Waiting, Delayed, Active, Completed, Failed} {
			var want []*modelJob
			for _, j := range m.jobs {
				if j.tenant == tenant && j.state == s {
					want = append(want, j)
				}
			}
			slices.SortFunc(want, func(a, b *modelJob) int { return b.order - a.order })
			var got []Job
			for o := (ListOptions{Limit: limit}); ; {
				page, err := m.e.List(tenant, "q", s, o)
				if err != nil || len(page.Jobs) > limit || page.Next != "" && len(page.Jobs) == 0 {
					t.Fatalf("%+v, %v", page, err)
				}
				got = append(got, page.Jobs...)
				if o.After = page.Next; o.After == "" {
					break
				}
			}
			if len(got) != len(want) {
				t.Fatalf("tenant %q has %d %s jobs, %d are listed", tenant, len(want), s, len(got))
			}
			seen := map[string]bool{}
			for i, j := range got {
				switch finished := s == Completed || s == Failed; {
				case !finished && j.ID != want[i].id:
					t.Fatalf("tenant %q, %s: %s listed in place %d, want %s", tenant, s, j.ID, i, want[i].id)
				case j.State != s || seen[j.ID] || m.jobs[tenant+"/"+j.ID] == nil || finished && i > 0 && j.FinishedAt.After(got[i-1].FinishedAt):
					t.Fatalf("listed %+v as %s, in place %d", j, s, i)
				}
				seen[j.ID] = true
			}
		}
	}
}

func TestManageModel(t *testing.T) {
	t.Parallel() // its time goes into commits
	dir := t.TempDir()
	files := 0
	rapid.Check(t, func(t *rapid.T) {
		files++
		m := &manager{machine{dir: filepath.Join(dir, fmt.Sprint(files)), jobs: map[string]*modelJob{}}, map[string][]string{}}
		m.set(time.Unix(1_700_000_000, 0).UTC())
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m.open(t, m.path())
		defer func() { m.e.Close(); m.st.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"enqueue": m.enqueue, "lease": m.lease, "finish": m.finish, "finish again": m.finish, "time": m.pass, "promote": m.promote,
			"restart": m.restart, "crash": m.crash, "retry": m.retry, "retryFailed": m.retryFailed, "promoteOne": m.promoteOne,
			"remove": m.remove, "drain": m.drain, "log": m.log, "": m.check,
		})
	})
}
