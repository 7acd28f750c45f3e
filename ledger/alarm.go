package ledger

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tenderbox/tenants"
)

// Alarm is a condition that a person should know of. It stays until its cause is gone.
type Alarm struct {
	Code   string    `json:"code"`
	Since  time.Time `json:"since"`
	Detail string    `json:"detail"`
}

// alarms holds what is raised, by code and subject.
type alarms struct {
	count  atomic.Int64 // of raised
	mu     sync.Mutex   // guards raised
	raised map[alarmKey]Alarm
}

// alarmKey names an alarm: its tenant ("" concerns the whole box) and what it is about.
type alarmKey struct {
	tenant  tenants.ID
	code    string
	subject string
}

func newAlarms() *alarms { return &alarms{raised: map[alarmKey]Alarm{}} }

// raise sets an alarm, and reports whether it is new.
func (a *alarms) raise(k alarmKey, at time.Time, detail string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.raised[k]; ok {
		old.Detail = detail
		a.raised[k] = old
		return false
	}
	a.raised[k] = Alarm{k.code, at, detail}
	a.count.Store(int64(len(a.raised)))
	return true
}

// clear takes an alarm back. It costs next to nothing while none is raised: it is
// called on the way of every payment.
func (a *alarms) clear(k alarmKey) {
	if a.count.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.raised, k)
	a.count.Store(int64(len(a.raised)))
}

// of returns the tenant's alarms; of "" every one.
func (a *alarms) of(t tenants.ID) []Alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []Alarm{}
	for k, al := range a.raised {
		if t == "" || k.tenant == t {
			out = append(out, al)
		}
	}
	slices.SortFunc(out, func(x, y Alarm) int { return strings.Compare(x.Code+x.Detail, y.Code+y.Detail) })
	return out
}
