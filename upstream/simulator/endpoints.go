package simulator

import (
	"encoding/json"
	"net/http"
	"net/url"
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

func missing(param, kind, id string) answer {
	f := invalid(param, "No such "+kind+": '"+id+"'")
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
	st := &s.state
	st.now = s.o.Now()
	if ep.method == http.MethodGet {
		st.settle(ep.id)
		switch ep.collection {
		case "charges":
			return read(&st.charges, "charge", ep, p, func(c *Charge) listed { return listed{c.Created, "", c.PaymentIntent} })
		case "payment_intents":
			return read(&st.intents, "payment_intent", ep, p, func(i *Intent) listed { return listed{i.Created, "", nil} })
		default:
			return read(&st.refunds, "refund", ep, p, func(r *Refund) listed { return listed{r.Created, r.Charge, r.PaymentIntent} })
		}
	}
	st.settle("")
	switch {
	case ep.act == "" && len(metadata(p)) > metadataKeysMax:
		return invalid("metadata", "You can have up to 50 metadata keys on an object.").as(http.StatusBadRequest)
	case ep.collection == "charges":
		return st.createCharge(p, key)
	case ep.collection == "refunds":
		return st.createRefund(p, key)
	case ep.act == "":
		return st.createIntent(p, key)
	}
	i := st.intents.get(ep.id)
	switch {
	case i == nil:
		return missing("intent", "payment_intent", ep.id)
	case ep.act == "cancel":
		return i.cancel(p)
	}
	return st.confirm(i, p, key)
}
