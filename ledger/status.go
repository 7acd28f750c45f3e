package ledger

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

// Overview is how a tenant's payments, or all of the box's, stand.
type Overview struct {
	Connectivity Connectivity  `json:"connectivity"`
	Breaker      Breaker       `json:"breaker"`
	Backlog      Backlog       `json:"backlog"`
	Drain        Drain         `json:"drain"`
	Exposure     []Exposure    `json:"exposure"`
	Queues       []QueueStatus `json:"queues"`
	Alarms       []Alarm       `json:"alarms"`
	Mail         *MailStatus   `json:"mail,omitempty"`
}

// Connectivity is what the link judge says of the account, and why.
type Connectivity struct {
	State    string     `json:"state"` // online, degraded, offline or unconfigured
	Since    *time.Time `json:"since"`
	Cause    string     `json:"cause,omitempty" doc:"Why the line is not online, or what is wrong although it is: captive_portal, upstream_down, no_network, no_answer, slow, clock_wrong, forced, not_tried."`
	Evidence string     `json:"evidence"`
}

// Breaker is the state of the account's circuit breaker.
type Breaker struct {
	State    string     `json:"state"` // closed, open or half-open
	Since    *time.Time `json:"since"`
	Failures int        `json:"failures"`
}

// Backlog is what waits to be settled.
type Backlog struct {
	Count    int64        `json:"count"`
	OldestAt *time.Time   `json:"oldest_at"`
	Amounts  []MoneyTotal `json:"amounts"`
	EtaS     *int64       `json:"eta_s" doc:"Seconds until nothing is left, if nothing is added; null: nothing moves."`
}

// MoneyTotal is a sum in minor units.
type MoneyTotal struct {
	Currency string `json:"currency"`
	Amount   int64  `json:"amount"`
}

// Exposure is money that a tenant has taken and that is not settled, beside what the tenant's offline policy allows.
type Exposure struct {
	Tenant   tenants.ID `json:"tenant,omitempty" doc:"Whose it is, for the operator."`
	Currency string     `json:"currency"`
	Count    int64      `json:"count"`
	Amount   int64      `json:"amount"`
	MaxCount *int64     `json:"max_count"` // null: no limit
	MaxTotal *int64     `json:"max_total"`
	OldestAt *time.Time `json:"oldest_at" doc:"When the oldest of the payments was made; null: the books could not be asked."`
}

// QueueStatus counts a queue's jobs by state.
type QueueStatus struct {
	Name          string     `json:"name"`
	Waiting       int        `json:"waiting"`
	Delayed       int        `json:"delayed"`
	Active        int        `json:"active"`
	Completed     int        `json:"completed"`
	Failed        int        `json:"failed"`
	OldestWaiting *time.Time `json:"oldest_waiting_at"`
}

// MailStatus is how e-mail stands.
type MailStatus struct {
	Mode      string     `json:"mode"`                 // smtp, or files: no mail server is configured
	Server    string     `json:"server,omitempty"`     // told to the operator
	Folder    string     `json:"folder,omitempty"`     // told to the operator: where the files are
	DownSince *time.Time `json:"down_since"`           // mail waits since then
	LastError string     `json:"last_error,omitempty"` // told to the operator
}

// Status reports how things stand for the tenant; for "" it sees the whole box.
func (l *Ledger) Status(ctx context.Context, t tenants.ID) (Overview, error) {
	tenant := tenants.Tenant{}
	if t != "" {
		var err error
		if tenant, err = l.tenants.Get(t); err != nil {
			return Overview{}, notFound("tenant")
		}
	}
	s := Overview{Queues: []QueueStatus{}}
	acc := l.account(&tenant)
	s.Connectivity, s.Breaker = link(acc)
	s.Backlog.Amounts = []MoneyTotal{}
	for c, sum := range l.exposure.of(t) {
		s.Backlog.Count += sum.Count
		s.Backlog.Amounts = append(s.Backlog.Amounts, MoneyTotal{c, sum.Amount})
	}
	slices.SortFunc(s.Backlog.Amounts, func(a, b MoneyTotal) int { return strings.Compare(a.Currency, b.Currency) })
	s.Exposure = l.Exposures(ctx, t)
	for i := range s.Exposure {
		if at := s.Exposure[i].OldestAt; at != nil && (s.Backlog.OldestAt == nil || at.Before(*s.Backlog.OldestAt)) {
			s.Backlog.OldestAt = at
		}
	}
	s.Drain = l.drain(t, acc, s.Backlog.Count)
	s.Backlog.EtaS = s.Drain.EtaS
	stats := l.jobs.Stats()
	if t != "" {
		stats = l.jobs.TenantStats(string(t))
	}
	for _, q := range stats {
		if t != "" && q.Queue == EventsQueue {
			continue // the box's own affair
		}
		s.Queues = append(s.Queues, queueStatus(q))
	}
	if l.o.Mail != nil {
		m := l.o.Mail()
		if t != "" {
			m = MailStatus{Mode: m.Mode, DownSince: m.DownSince}
		}
		s.Mail = &m
	}
	l.watchDisk()
	s.Alarms = l.alarms.of(t)
	accounts := []*upstream.Account{acc}
	if t == "" {
		accounts = l.accounts.List()
	}
	for _, a := range accounts {
		if a == nil {
			continue
		}
		for _, al := range a.Alarms() {
			s.Alarms = append(s.Alarms, Alarm{al.Code, al.Since.UTC(), al.Detail})
		}
	}
	return s, nil
}

// Exposures tells what each tenant ("": of all; else of one) has taken and not settled, by tenant and currency.
func (l *Ledger) Exposures(ctx context.Context, t tenants.ID) []Exposure {
	out := []Exposure{}
	for k, sum := range l.exposure.each(t) {
		x := Exposure{Currency: k.currency, Count: sum.Count, Amount: sum.Amount}
		if t == "" {
			x.Tenant = k.tenant
		}
		if tenant, err := l.tenants.Get(k.tenant); err == nil {
			if limit := tenant.Offline[k.currency]; limit.MaxCount > 0 {
				x.MaxCount = &limit.MaxCount
			}
			if limit := tenant.Offline[k.currency]; limit.MaxTotal > 0 {
				x.MaxTotal = &limit.MaxTotal
			}
		}
		if at, id, err := l.oldestIn(ctx, k.tenant, k.currency); err == nil && id != "" {
			x.OldestAt = &at
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Exposure) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Currency, b.Currency))
	})
	return out
}

func link(acc *upstream.Account) (Connectivity, Breaker) {
	if acc == nil {
		return Connectivity{State: string(upstream.Unconfigured), Evidence: "no upstream is configured; payments are kept and queued"},
			Breaker{State: "closed"}
	}
	lk, br := acc.Link(), acc.Breaker()
	return Connectivity{string(lk.State), sinceOrNil(lk.Since), string(lk.Cause), lk.Evidence}, Breaker{string(br.State), sinceOrNil(br.Since), br.Failures}
}

func sinceOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func queueStatus(q jobs.QueueStats) QueueStatus {
	return QueueStatus{q.Queue, q.Waiting, q.Delayed, q.Active, q.Completed, q.Failed, sinceOrNil(q.OldestWaiting)}
}

// ShardStatus is how one shard file stands.
type ShardStatus struct {
	ID    int
	Err   error // nil when in service
	Stats shards.Stats
}

// Shards reports on every shard file.
func (l *Ledger) Shards() []ShardStatus {
	out := make([]ShardStatus, 0, len(l.parts))
	for _, p := range l.parts {
		out = append(out, ShardStatus{p.shard.ID(), p.shard.Err(), p.shard.Stats()})
	}
	return out
}

// Ready reports whether payments can be taken, and what is degraded.
func (l *Ledger) Ready() (ok bool, degraded []string) {
	l.watchDisk()
	for _, a := range l.alarms.of("") {
		degraded = append(degraded, a.Code)
	}
	return len(l.healthy()) > 0 && !l.set.Short(), slices.Compact(degraded)
}

// watchDisk keeps the alarm of a full disk true.
func (l *Ledger) watchDisk() {
	k := alarmKey{code: "disk_full"}
	if !l.set.Short() {
		l.alarms.clear(k)
		return
	}
	l.raise(k, "new payments are refused; settling goes on from the reserve")
}

// BoxID names this box for ever: a copy of its folder carries the same.
func (l *Ledger) BoxID() string { return l.set.Manifest().BoxID }

// Exposed returns the unsettled sums of a tenant (of all, for "") by currency.
func (l *Ledger) Exposed(t tenants.ID) map[string]Sum { return l.exposure.of(t) }

// Published counts the events handed to the event log since start.
func (l *Ledger) Published() uint64 { return l.published.Load() }

// RaiseAlarm sets an alarm that concerns the whole box, found outside the ledger.
func (l *Ledger) RaiseAlarm(code, detail string) { l.raise(alarmKey{code: code}, detail) }
