package simulator

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// listed is what lists are narrowed by.
type listed struct {
	created int64
	charge  string  // "" if it has none
	intent  *string // nil if it has none
}

// listParams are what lists of a collection can be asked for, beside what all can.
var listParams = map[string][]string{"charges": {"payment_intent"}, "refunds": {"charge", "payment_intent"}}

// page is what a list is asked for.
type page struct {
	limit          int
	within         [4]int64 // created gte, gt, lte, lt; -1: no such bound
	charge, intent string
	after, before  string // cursors
}

// pageOf reads a list's parameters; one that is not known is refused, as Stripe does.
func pageOf(collection string, p url.Values) (q page, bad *failure) {
	refuse := func(param, message string) (page, *failure) {
		f := invalid(param, message)
		return q, &f
	}
	for name := range p {
		known := slices.Contains(listParams[collection], name) ||
			slices.Contains([]string{"limit", "starting_after", "ending_before", "customer", "expand[]"}, name) || strings.HasPrefix(name, "created")
		if !known {
			f := invalid(name, "Received unknown parameter: "+name)
			f.Code = "parameter_unknown"
			return q, &f
		}
	}
	q = page{limit: 10, charge: p.Get("charge"), intent: p.Get("payment_intent"), after: p.Get("starting_after"), before: p.Get("ending_before")}
	if v := p.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 100 {
			return refuse("limit", "Invalid limit: must be from 1 to 100.")
		}
		q.limit = n
	}
	for i, op := range []string{"gte", "gt", "lte", "lt"} {
		q.within[i] = -1
		if v := p.Get("created[" + op + "]"); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				return refuse("created", "Invalid timestamp: must be an integer.")
			}
			q.within[i] = n
		}
	}
	return q, nil
}

func (q page) shows(l listed) bool {
	return l.created >= q.within[0] && l.created > q.within[1] &&
		(q.within[2] < 0 || l.created <= q.within[2]) && (q.within[3] < 0 || l.created < q.within[3]) &&
		(q.charge == "" || l.charge == q.charge) && (q.intent == "" || l.intent != nil && *l.intent == q.intent)
}

// read answers one object, or a page of them, newest first.
func read[T any](c *collection[T], kind string, ep endpoint, p url.Values, of func(*T) listed) answer {
	if ep.id != "" {
		v := c.get(ep.id)
		if v == nil {
			param := "id"
			if kind == "payment_intent" {
				param = "intent"
			}
			return missing(param, kind, ep.id)
		}
		return jsonAnswer(http.StatusOK, v)
	}
	q, bad := pageOf(ep.collection, p)
	if bad != nil {
		return bad.as(http.StatusBadRequest)
	}
	from, to := 0, len(c.items) // [from, to), walked from the end
	for cursor, id := range map[string]string{"starting_after": q.after, "ending_before": q.before} {
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
	data := []*T{}
	more := false
	take := func(v *T) (full bool) {
		if !q.shows(of(v)) {
			return false
		}
		if more = len(data) == q.limit; !more {
			data = append(data, v)
		}
		return more
	}
	if q.before == "" {
		for i := to - 1; i >= from && !take(c.items[i]); i-- {
		}
	} else { // the page that ends just before the cursor
		for i := from; i < to && !take(c.items[i]); i++ {
		}
		slices.Reverse(data)
	}
	return jsonAnswer(http.StatusOK, map[string]any{"object": "list", "url": "/v1/" + ep.collection, "has_more": more, "data": data})
}
