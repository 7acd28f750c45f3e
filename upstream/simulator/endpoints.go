package simulator

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// failure is Stripe's error object.
type failure struct {
	Type          string `json:"type"`
	Code          string `json:"code,omitempty"`
	DeclineCode   string `json:"decline_code,omitempty"`
	Message       string `json:"message"`
	Param         string `json:"param,omitempty"`
	Charge        string `json:"charge,omitempty"`
	PaymentIntent any    `json:"payment_intent,omitempty"`
}

func (f failure) as(status int) answer { return jsonAnswer(status, map[string]failure{"error": f}) }

func invalid(param, message string) failure {
	return failure{Type: "invalid_request_error", Param: param, Message: message}
}

func missing(kind, id string) answer {
	f := invalid("id", "No such "+kind+": '"+id+"'")
	f.Code = "resource_missing"
	return f.as(http.StatusNotFound)
}

func broken() answer {
	return failure{Type: "api_error", Message: "An unknown error occurred."}.as(http.StatusInternalServerError)
}

func tooMany(retryAfter string) answer {
	a := failure{Type: "rate_limit_error", Code: "rate_limit", Message: "Too many requests hit the API too quickly."}.as(http.StatusTooManyRequests)
	if retryAfter != "" {
		a.header = map[string]string{"Retry-After": retryAfter}
	}
	return a
}

func jsonAnswer(status int, v any) answer {
	b, err := json.Marshal(v)
	if err != nil {
		return answer{status: http.StatusInternalServerError, body: []byte(`{"error":{"type":"api_error"}}`)}
	}
	return answer{status: status, body: b}
}

// endpoint is a collection, the id in it, and what to do.
type endpoint struct{ method, collection, id, act string }

func route(method, path string) (endpoint, bool) {
	p := strings.Split(strings.TrimPrefix(path, "/"), "/")
	ep := endpoint{method: method, collection: p[0]}
	if len(p) > 1 {
		ep.id = p[1]
	}
	if len(p) > 2 {
		ep.act = p[2]
	}
	known := ep.collection == "charges" || ep.collection == "payment_intents" || ep.collection == "refunds"
	switch {
	case !known || len(p) > 3 || len(p) > 1 && ep.id == "":
		return ep, false
	case method == http.MethodGet:
		return ep, len(p) <= 2
	case method == http.MethodPost && len(p) == 1:
		return ep, true
	case method == http.MethodPost && len(p) == 3 && ep.collection == "payment_intents":
		return ep, ep.act == "confirm" || ep.act == "cancel"
	}
	return ep, false
}

// execute does what is asked, under the lock, and returns the answer complete: later changes do not touch it.
func (s *Simulator) execute(ep endpoint, p url.Values, key string) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, now := &s.state, s.o.Now().Unix()
	if ep.method == http.MethodGet {
		switch ep.collection {
		case "charges":
			return read(&st.charges, "charge", ep, p, func(c *Charge) listed { return listed{c.Created, "", c.PaymentIntent} })
		case "payment_intents":
			return read(&st.intents, "payment_intent", ep, p, func(i *Intent) listed { return listed{i.Created, "", nil} })
		default:
			return read(&st.refunds, "refund", ep, p, func(r *Refund) listed { return listed{r.Created, r.Charge, r.PaymentIntent} })
		}
	}
	switch {
	case ep.act == "" && len(metadata(p)) > metadataKeysMax:
		return invalid("metadata", "You can have up to 50 metadata keys on an object.").as(http.StatusBadRequest)
	case ep.collection == "charges":
		return st.createCharge(p, key, now)
	case ep.collection == "refunds":
		return st.createRefund(p, key, now)
	case ep.act == "":
		return st.createIntent(p, key, now)
	}
	i := st.intents.get(ep.id)
	switch {
	case i == nil:
		return missing("payment_intent", ep.id)
	case ep.act == "cancel":
		return i.cancel()
	}
	return st.confirm(i, p.Get("payment_method"), key, now)
}

// listed is what lists are narrowed by.
type listed struct {
	created int64
	charge  string  // "" if the kind has none
	intent  *string // nil if it has none
}

// fits reports whether a list that is asked for one charge's or intent's shows it. A kind that has no such member knows no such filter.
func (l listed) fits(p url.Values) bool {
	charge, intent := p.Get("charge"), p.Get("payment_intent")
	return (charge == "" || l.charge == charge) && (intent == "" || l.intent != nil && *l.intent == intent)
}

// read answers one object, or a page of them, newest first.
func read[T any](c *collection[T], kind string, ep endpoint, p url.Values, of func(*T) listed) answer {
	if ep.id != "" {
		v := c.get(ep.id)
		if v == nil {
			return missing(kind, ep.id)
		}
		return jsonAnswer(http.StatusOK, v)
	}
	limit := 10
	if v := p.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 100 {
			return invalid("limit", "Invalid limit: must be from 1 to 100.").as(http.StatusBadRequest)
		}
		limit = n
	}
	var within [4]int64 // gte, gt, lte, lt
	for i, op := range []string{"gte", "gt", "lte", "lt"} {
		within[i] = -1
		if v := p.Get("created[" + op + "]"); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				return invalid("created", "Invalid timestamp: must be an integer.").as(http.StatusBadRequest)
			}
			within[i] = n
		}
	}
	from, to := 0, len(c.items) // [from, to), walked from the end
	for _, cursor := range []string{"starting_after", "ending_before"} {
		id := p.Get(cursor)
		if id == "" {
			continue
		}
		i, ok := c.index[id]
		if !ok {
			return invalid(cursor, "No such "+kind+": '"+id+"'").as(http.StatusBadRequest)
		}
		if cursor == "starting_after" {
			to = i
		} else {
			from = i + 1
		}
	}
	fits := func(v *T) bool {
		l := of(v)
		return l.fits(p) && l.created >= within[0] && l.created > within[1] &&
			(within[2] < 0 || l.created <= within[2]) && (within[3] < 0 || l.created < within[3])
	}
	page := []*T{}
	more := false
	if p.Get("ending_before") == "" {
		for i := to - 1; i >= from && !more; i-- {
			if !fits(c.items[i]) {
				continue
			}
			if more = len(page) == limit; !more {
				page = append(page, c.items[i])
			}
		}
	} else { // the page that ends just before the cursor
		for i := from; i < to && !more; i++ {
			if !fits(c.items[i]) {
				continue
			}
			if more = len(page) == limit; !more {
				page = append([]*T{c.items[i]}, page...)
			}
		}
	}
	return jsonAnswer(http.StatusOK, map[string]any{"object": "list", "url": "/v1/" + ep.collection, "has_more": more, "data": page})
}
