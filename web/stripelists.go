package web

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

const (
	stripePageDefault = 10 // Stripe's
	stripePageMax     = 100

	// createdMax is the last second of year 9999: what lies behind it is a mistake, and no id's time reaches it.
	createdMax = 253402300799
)

// stripeList is part of a list, newest first.
type stripeList[T any] struct {
	Object  string `json:"object"`
	Data    []T    `json:"data"`
	HasMore bool   `json:"has_more"`
	URL     string `json:"url"`
}

// stripeListOf makes the views of a page.
func stripeListOf[R, T any](url string, records []R, more bool, view func(*R) T) stripeList[T] {
	list := stripeList[T]{"list", make([]T, 0, len(records)), more, stripePath + url}
	for i := range records {
		list.Data = append(list.Data, view(&records[i]))
	}
	return list
}

// listRules are the parameters of every list, with those of one. Others are filters that the box does not have: ignored, they would
// show records that nobody asked for.
func listRules(more stripeRules) stripeRules {
	rules := stripeRules{"limit": takes, "starting_after": takes, "ending_before": takes, "expand": ignores,
		"created": {nested: true, with: map[string]bool{"gte": true, "gt": true, "lte": true, "lt": true}}}
	for name, rule := range more {
		rules[name] = rule
	}
	return rules
}

// stripePage is what a list is asked for. older and newer are the record's own ids.
type stripePage struct {
	limit        int
	older, newer string    // than this one; newer: those that follow it most closely
	from, to     time.Time // made at from or later, before to; zero: unbounded
}

// page reads the parameters of a list of so called objects. ledgers turns an id that the list shows into the ledger's own. It need not
// be there any more: an id is a place in the list.
func (ps stripeParams) page(kind string, ledgers func(id string) (string, bool)) (q stripePage, err error) {
	n, found, err := ps.integer("limit")
	if err != nil {
		return q, err
	}
	if q.limit = stripePageDefault; found {
		if n < 1 || n > stripePageMax {
			return q, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_integer", Param: "limit",
				Message: "Invalid limit: it is from 1 to " + strconv.Itoa(stripePageMax) + "."}
		}
		q.limit = int(n)
	}
	for _, c := range []struct {
		name string
		id   *string
	}{{"starting_after", &q.older}, {"ending_before", &q.newer}} {
		p, ok := ps.get(c.name)
		if !ok {
			continue
		}
		if *c.id, ok = ledgers(p.text); !ok {
			return q, missing(kind, c.name, p.text)
		}
	}
	if q.older != "" && q.newer != "" {
		return q, &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameters_exclusive", Param: "ending_before",
			Message: "You may only specify one of these parameters: starting_after, ending_before."}
	}
	return q, ps.created(&q)
}

// created reads created=, and created[gte] and its like: whole seconds, of which a record has the one in which it was made.
func (ps stripeParams) created(q *stripePage) error {
	from, to := int64(0), int64(math.MaxInt64) // from ≤ second < to
	for _, bound := range []struct {
		name string
		set  func(second int64)
	}{
		{"created", func(t int64) { from, to = t, t+1 }},
		{"created[gte]", func(t int64) { from = max(from, t) }},
		{"created[gt]", func(t int64) { from = max(from, t+1) }},
		{"created[lt]", func(t int64) { to = min(to, t) }},
		{"created[lte]", func(t int64) { to = min(to, t+1) }},
	} {
		t, found, err := ps.integer(bound.name)
		switch {
		case err != nil:
			return err
		case !found:
			continue
		case t < 0 || t > createdMax:
			return &stripeError{status: http.StatusBadRequest, Type: invalidRequest, Code: "parameter_invalid_integer", Param: bound.name,
				Message: "Invalid timestamp: " + strconv.FormatInt(t, 10) + " must be a Unix time in seconds."}
		}
		bound.set(t)
	}
	if from > 0 {
		q.from = time.Unix(from, 0)
	}
	if to < math.MaxInt64 {
		q.to = time.Unix(to, 0)
	}
	return nil
}
