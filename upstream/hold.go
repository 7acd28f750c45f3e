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
	AlarmURLWrong    = "upstream_url_wrong"    // 404 or 405 to a payment: nothing is sent until the address proves right
	AlarmRateLimited = "upstream_rate_limited" // 429: nothing is sent until the time asked for has passed
	AlarmBreakerOpen = "upstream_breaker_open"
	AlarmNotTheirs   = "upstream_not_the_processor" // something else answers in its place: a captive portal, a proxy
	AlarmLinkForced  = "link_forced"                // offline by the operator's word
	AlarmClockWrong  = "clock_wrong"                // this box's clock and the processor's differ
)

const (
	// retryAfterMin is waited after a 429 that names no time, or none that lies ahead.
	retryAfterMin = time.Second
	// retryAfterMax caps what a processor may ask for: a mistaken header must not stop a shop for a year.
	// One that means it will say so again.
	retryAfterMax = 5 * time.Minute
	// refusedMax caps the time between two tries of a refused key, and of an address that knows no payments.
	refusedMax = 5 * time.Minute
)

// hold keeps requests back after the processor has asked for it, or would not look at them.
type hold struct {
	cfg *Config

	mu        sync.Mutex // guards what follows; a leaf
	rateFrom  time.Time  // since when rate limited
	rateUntil time.Time
	key       refusal // 401, 403
	url       refusal // 404, 405 to a payment
}

// refusal is one reason for which the processor will not look at any request.
type refusal struct {
	raised  bool
	since   time.Time
	latest  time.Time // when the refusal came that the patience counts from
	status  int
	strikes int // refusals of requests, not probes, without a success between
}

func (f *refusal) raise(r result, now time.Time) {
	if !f.raised {
		f.raised, f.since = true, now
	} else if r.probe || !r.start.After(f.latest) || now.Sub(f.latest) < refusedMax {
		f.status = r.Status
		return // no new try: a probe, or sent before the first refusal came
	}
	f.latest, f.status = now, r.Status
	if !r.probe {
		f.strikes++
	}
}

// lift ends the refusal by an answer to what was sent after it, once the patience is over.
func (f *refusal) lift(r result, now time.Time, cfg *Config) {
	if f.raised && r.start.After(f.latest) && now.Sub(f.latest) >= f.patience(cfg) {
		f.raised = false
	}
	if !r.probe && !f.raised {
		f.strikes = 0
	}
}

// patience is how long after a refusal a good probe is not believed: what is good for a probe may not be for a
// payment, so each refusal of a payment doubles it.
func (f *refusal) patience(cfg *Config) time.Duration {
	if f.strikes == 0 {
		return 0
	}
	return min(cfg.ProbeInterval/2<<min(f.strikes-1, 20), refusedMax)
}

// nextLook is when a probe may lift the refusal.
func (f *refusal) nextLook(cfg *Config, now time.Time) time.Duration {
	return max(cfg.ProbeInterval, f.patience(cfg)-now.Sub(f.latest))
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
		if !r.keyReplaced { // else it is the old key's
			h.key.raise(r, now)
		}
	case r.urlWrong:
		if !r.keyReplaced {
			h.url.raise(r, now)
		}
	case r.health == answered:
		h.key.lift(r, now, h.cfg)
		if r.urlRight() {
			h.url.lift(r, now, h.cfg)
		}
	}
}

func (h *hold) keyChanged() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.key, h.url = refusal{}, refusal{}
}

// inForce returns why and for how much longer requests are held; zero if they are not. A refused key is held until
// a probe is let in: the time is that of the next look. So is an address that knows no payments; but since a
// processor need not know the probe's path, requests themselves may try it again every refusedMax.
func (h *hold) inForce() (reason string, remaining time.Duration) {
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.key.raised {
		return "the processor refused the key", h.key.nextLook(h.cfg, now)
	}
	if h.url.raised {
		if remaining := refusedMax - now.Sub(h.url.latest); remaining > 0 {
			return "the upstream URL does not take payments", min(remaining, h.url.nextLook(h.cfg, now))
		}
	}
	if remaining := h.rateUntil.Sub(now); remaining > 0 {
		return "the processor asked to wait", remaining
	}
	return "", 0
}

// pause is how long the processor asked to wait; 0 if it did not, or if requests are held for another reason too.
func (h *hold) pause() time.Duration {
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.key.raised || h.url.raised && now.Sub(h.url.latest) < refusedMax {
		return 0
	}
	return max(h.rateUntil.Sub(now), 0)
}

func (h *hold) alarms() []Alarm {
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []Alarm
	if h.key.raised {
		list = append(list, Alarm{AlarmKeyRefused, h.key.since,
			"the processor answers " + strconv.Itoa(h.key.status) + ": check the upstream key; payments are kept and wait"})
	}
	if h.url.raised {
		list = append(list, Alarm{AlarmURLWrong, h.url.since,
			"payments are answered " + strconv.Itoa(h.url.status) + ": check the upstream URL; payments are kept and wait"})
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
	if link := a.Link(); link.Cause == Forced {
		list = append(list, Alarm{AlarmLinkForced, link.Since, "payments are taken as offline and nothing is sent, by the operator's word"})
	} else if link.State == Offline && a.judge.foreign() {
		list = append(list, Alarm{AlarmNotTheirs, link.Since, link.Evidence})
	}
	if since, evidence, wrong := a.clock.wrong(); wrong {
		list = append(list, Alarm{AlarmClockWrong, since, evidence})
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
