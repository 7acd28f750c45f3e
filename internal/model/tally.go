package model

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

// Tally counts what happened. Over a run every fault and every way out must have come, or the run proves less than it says.
type Tally map[string]int

func (t Tally) add(what string) { t[what]++ }

// Add takes another tally in.
func (t Tally) Add(other Tally) {
	for what, n := range other {
		t[what] += n
	}
}

// exchanges counts how requests ended, and whether the power went while they were under way.
func (t Tally) exchanges(e Evidence) {
	for _, x := range e.Exchanges {
		what := fmt.Sprintf("%s %s", e.Asks[x.Ask].Kind, x.Said)
		if x.Code != "" {
			what += " " + x.Code
		}
		t.add(what)
		if x.Replayed {
			t.add("replayed")
		}
	}
}

// books counts the ends of payments and refunds, and the ways there.
func (t Tally) books(ctx context.Context, l *ledger.Ledger, shop tenants.ID, books Books) error {
	for _, p := range books.Payments {
		t.add("payment " + string(p.Status))
		if p.TakenOffline {
			t.add("taken offline")
		}
		if p.Sync.Attempts == 0 {
			continue
		}
		steps, err := l.Attempts(ctx, shop, string(p.ID))
		if err != nil {
			return err
		}
		for _, s := range steps {
			verdict := "cut short"
			if s.Verdict != nil {
				verdict = *s.Verdict
			}
			t.add(fmt.Sprintf("step %s: %s", s.Step, verdict))
			if s.UpstreamKey != nil && strings.Contains(strings.TrimSuffix(*s.UpstreamKey, ":confirm"), ":") {
				t.add("sent under a new key")
			}
		}
	}
	for _, r := range books.Refunds {
		t.add("refund " + string(r.Status))
	}
	return nil
}

func (t Tally) String() string {
	var lines []string
	for what, n := range t {
		lines = append(lines, fmt.Sprintf("%8d  %s", n, what))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[10:], b[10:]) })
	return strings.Join(lines, "\n")
}
