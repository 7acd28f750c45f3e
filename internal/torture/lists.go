package torture

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"tenderbox/internal/blackbox"
)

// stuck returns the payments whose upstream key the processor has answered 500. It stores that answer and
// replays it for ever, whether or not there was an effect, so that such a payment cannot be settled by repetition.
func stuck(posts []blackbox.Post) map[string]bool {
	ids := map[string]bool{}
	for _, p := range posts {
		if p.Status == http.StatusInternalServerError {
			ids[p.Payment] = true
		}
	}
	return ids
}

func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func sortedAsks[V any](m map[askID]V) []askID {
	return slices.SortedFunc(maps.Keys(m), func(a, b askID) int { return strings.Compare(a.String(), b.String()) })
}

func union[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
