package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Alarm is something that a person should know of; it is gone when its cause is.
type Alarm struct {
	Code   string    `json:"code"`
	Since  time.Time `json:"since"`
	Detail string    `json:"detail"`
}

// The codes of alarms.
const (
	AlarmKeyRefused  = "upstream_key_refused"  // 401 or 403: nothing is sent until a probe is let in
	AlarmRateLimited = "upstream_rate_limited" // 429: nothing is sent until the time asked for has passed
	AlarmBreakerOpen = "upstream_breaker_open"
	AlarmNotTheirs   = "upstream_not_the_processor" // something else answers in its place: a captive portal, a proxy
)

const (
	// retryAfterMin is waited after a 429 that names no time, or none that lies ahead.
	retryAfterMin = time.Second
	// retryAfterMax caps what a processor may ask for: a mistaken header must not stop a shop for a year.
	// One that means it will say so again.
	retryAfterMax = 5 * time.Minute
	// refusedMax caps the time between two tries of a refused key.
	refusedMax = 5 * time.Minute
)

// hold keeps requests back after the processor has asked for it.
type hold struct {
	cfg *Config

	mu        sync.Mutex // guards what follows; a leaf
	rateFrom  time.Time  // since when rate limited
	rateUntil time.Time
	refused   bool      // the key was refused
	refusedAt time.Time // since when
	lastRefus time.Time // the latest refusal
	status    int       // 401 or 403
	strikes   int       // refusals of requests, not probes, without a success between
}

func newHold(cfg *Config) *hold { return &hold{cfg: cfg} }

func (h *hold) observe(r result) {
	if r.health != answered && r.health != foreign {
		return
	}
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case r.Status == http.StatusTooManyRequests:
		if !h.rateUntil.After(now) {
			h.rateFrom = now
		}
		if until := now.Add(r.RetryAfter); until.After(h.rateUntil) {
			h.rateUntil = until
		}
	case r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden:
		if r.keyReplaced {
			return // the old key's refusal
		}
		if !h.refused {
			h.refused, h.refusedAt = true, now
			if !r.probe {
				h.strikes++
			}
		}
		h.lastRefus, h.status = now, r.Status
	case r.health == answered:
		// A key may be good for a probe and not for a payment: each refusal of a payment doubles the time for
		// which a good probe is not believed.
		if h.refused && r.start.After(h.refusedAt) && now.Sub(h.refusedAt) >= h.patience() {
			h.refused = false
		}
		if !r.probe && !h.refused {
			h.strikes = 0
		}
	}
}

// patience is how long after a refusal a good probe is not believed.
func (h *hold) patience() time.Duration {
	if h.strikes == 0 {
		return 0
	}
	return min(h.cfg.ProbeInterval/2<<min(h.strikes-1, 20), refusedMax)
}

func (h *hold) keyChanged() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused, h.strikes = false, 0
}

// inForce returns why and for how much longer requests are held; zero if they are not. A refused key is held until
// a probe is let in: the time is that of the next look.
func (h *hold) inForce() (reason string, remaining time.Duration) {
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused {
		return "the processor refused the key", max(h.cfg.ProbeInterval, h.patience()-now.Sub(h.refusedAt))
	}
	if remaining := h.rateUntil.Sub(now); remaining > 0 {
		return "the processor asked to wait", remaining
	}
	return "", 0
}

func (h *hold) alarms() []Alarm {
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []Alarm
	if h.refused {
		list = append(list, Alarm{AlarmKeyRefused, h.refusedAt,
			"the processor answers " + strconv.Itoa(h.status) + ": check the upstream key; payments are kept and wait"})
	}
	if h.rateUntil.After(now) {
		list = append(list, Alarm{AlarmRateLimited, h.rateFrom,
			"the processor asked to wait until " + h.rateUntil.UTC().Format(time.RFC3339)})
	}
	return list
}

// Alarms returns what a person should know about this account now.
func (a *Account) Alarms() []Alarm {
	list := a.hold.alarms()
	if b := a.Breaker(); b.State != BreakerClosed {
		detail := strconv.Itoa(b.Failures) + " failures; payments are kept and wait"
		if b.Forced {
			detail = "opened by the operator; payments are kept and wait"
		}
		list = append(list, Alarm{AlarmBreakerOpen, b.Since, detail})
	}
	if link := a.Link(); link.State == Offline && a.judge.foreign() {
		list = append(list, Alarm{AlarmNotTheirs, link.Since, link.Evidence})
	}
	return list
}

// parseRetryAfter reads a Retry-After header in both of its forms; a date is taken relative to the answer's own
// Date, so that a wrong clock here does no harm. ok is false if it is absent or says nothing.
func parseRetryAfter(header http.Header, now time.Time) (d time.Duration, ok bool) {
	v := strings.TrimSpace(header.Get("Retry-After"))
	if v == "" {
		return 0, false
	}
	if digits := strings.TrimPrefix(v, "-"); strings.Trim(digits, "0123456789") == "" && digits != "" {
		seconds, err := strconv.ParseInt(v, 10, 64)
		switch {
		case err != nil && v[0] != '-': // more digits than an int64 has
			return retryAfterMax, true
		case err != nil || seconds <= 0:
			return 0, true
		case seconds > int64(retryAfterMax/time.Second):
			return retryAfterMax, true
		}
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), retryAfterMax), true
}
