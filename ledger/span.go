package ledger

import "time"

// span is the part of a list that lies within ids and times. Ids sort by time, so all of it is a range of ids.
type span struct {
	prefix       string // of the list's ids
	older, newer string // than this id; newer: those that follow it most closely. "": unbounded
	from, to     time.Time
}

// narrow gives the conditions that a query's ids must meet.
func (s *span) narrow(and func(cond string, arg any)) {
	if s.older != "" {
		and("< ?", s.older)
	}
	if s.newer != "" {
		and("> ?", s.newer)
	}
	if !s.from.IsZero() {
		and(">= ?", idAt(s.prefix, s.from))
	}
	if !s.to.IsZero() {
		and("< ?", idAt(s.prefix, s.to))
	}
}

// order is that in which the query must look, so that its limit cuts off what is farthest.
func (s *span) order() string {
	if s.newer != "" {
		return "ASC"
	}
	return "DESC"
}

// cut cuts records, newest first and one more than limit if there are more, to those nearest to where the span begins.
func cut[T any](s *span, all []T, limit int, id func(T) string) (page []T, next string, more bool) {
	if s.newer == "" {
		page, next = cutPage(all, limit, id)
		return page, next, next != ""
	}
	if len(all) > limit {
		return all[len(all)-limit:], "", true
	}
	return all, "", false
}

// check refuses ids of another kind than the list's.
func (s *span) check() error {
	for field, id := range map[string]string{"older": s.older, "newer": s.newer} {
		if _, ok := parseID(s.prefix, id); id != "" && !ok {
			return invalid("cursor_invalid", field, "name an id of the list")
		}
	}
	return nil
}
