package ledger

import (
	"sync"
	"time"

	"tenderbox/tenants"
)

// pulseSpan is the time over which the drain's speed is measured: long enough to pass over a second's pause that a processor asks for,
// short enough to follow what an outage leaves.
const pulseSpan = 10

// pulse counts the payments that became final in each of the last seconds, by tenant.
type pulse struct {
	start time.Time // the seconds are counted from here, by the monotonic clock

	mu      sync.Mutex // guards what follows; a leaf
	tenants map[tenants.ID]*beat
	box     beat // all tenants
}

// beat is one tenant's.
type beat struct {
	seconds [pulseSpan]int64
	latest  int64 // the second that was last counted in
	since   int64 // the first second after a quiet pulseSpan
}

func newPulse() *pulse { return &pulse{start: time.Now(), tenants: map[tenants.ID]*beat{}} }

func (p *pulse) second() int64 { return int64(time.Since(p.start) / time.Second) }

// settled counts n payments of a tenant.
func (p *pulse) settled(t tenants.ID, n int64) {
	now := p.second()
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.tenants[t]
	if b == nil {
		b = &beat{latest: -pulseSpan}
		p.tenants[t] = b
	}
	b.add(now, n)
	p.box.add(now, n)
}

// perSecond is how many payments of a tenant ("": of all) became final a second, of late.
func (p *pulse) perSecond(t tenants.ID) float64 {
	now := p.second()
	p.mu.Lock()
	defer p.mu.Unlock()
	if t == "" {
		return p.box.perSecond(now)
	}
	b := p.tenants[t]
	if b == nil {
		return 0
	}
	if now-b.latest >= pulseSpan {
		delete(p.tenants, t) // who settles nothing costs nothing
		return 0
	}
	return b.perSecond(now)
}

func (b *beat) add(now, n int64) {
	if now-b.latest >= pulseSpan {
		b.seconds, b.since = [pulseSpan]int64{}, now
	} else {
		for s := b.latest + 1; s <= now; s++ {
			b.seconds[s%pulseSpan] = 0
		}
	}
	b.latest = now
	b.seconds[now%pulseSpan] += n
}

func (b *beat) perSecond(now int64) float64 {
	sum := int64(0)
	for s := max(now-pulseSpan+1, 0); s <= min(now, b.latest); s++ {
		if b.latest-s < pulseSpan {
			sum += b.seconds[s%pulseSpan]
		}
	}
	return float64(sum) / float64(min(now-b.since+1, pulseSpan))
}
