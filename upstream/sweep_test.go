package upstream

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// What a sweep makes of a list: only one that was read whole and in order proves that something is not there.
func TestSweep(t *testing.T) {
	object := func(id string, created int64) string {
		return fmt.Sprintf(`{"object":"charge","id":%q,"amount":1,"currency":"usd","status":"succeeded","created":%d}`, id, created)
	}
	page := func(more bool, objects ...string) string {
		return fmt.Sprintf(`{"object":"list","has_more":%v,"data":[%s]}`, more, strings.Join(objects, ","))
	}
	for name, c := range map[string]struct {
		pages    map[string]string // by starting_after
		complete bool
		seen     string
	}{
		"empty":                   {map[string]string{"": page(false)}, true, ""},
		"two pages":               {map[string]string{"": page(true, object("c", 30), object("b", 20)), "b": page(false, object("a", 20))}, true, "c b a"},
		"window ignored":          {map[string]string{"": page(true, object("c", 30), object("b", 9)), "b": page(false)}, true, "c"},
		"out of order":            {map[string]string{"": page(false, object("b", 20), object("c", 30))}, false, "b"},
		"out of order over pages": {map[string]string{"": page(true, object("b", 20)), "b": page(false, object("c", 30))}, false, "b"},
		"undated":                 {map[string]string{"": page(false, object("b", 0))}, false, ""},
		"more on an empty page":   {map[string]string{"": page(true)}, false, ""},
		"the same page for ever":  {map[string]string{"": page(true, object("b", 20)), "b": page(true, object("b", 20))}, false, "b"},
		"second page broken":      {map[string]string{"": page(true, object("b", 20)), "b": `<html>`}, false, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("limit") != "1" && (r.URL.Query().Get("created[gte]") != "10" || r.URL.Query().Get("charge") != "x") {
					t.Errorf("asked for %s", r.URL)
				}
				fmt.Fprint(w, c.pages[r.URL.Query().Get("starting_after")])
			}))
			defer s.Close()
			a, err := NewAccounts(Config{URL: s.URL, Key: "sk_test"}).Get("", "", "")
			if err != nil {
				t.Fatal(err)
			}
			var seen []string
			sweep, answer := a.Sweep(t.Context(), PathCharges, map[string][]string{"charge": {"x"}}, time.Unix(10, 5), func(o Object) bool {
				seen = append(seen, o.ID)
				return true
			})
			if sweep.Complete != c.complete || strings.Join(seen, " ") != c.seen || (answer.Outcome == Succeeded) != c.complete || sweep.Objects != len(seen) {
				t.Errorf("%+v, %+v, saw %v", sweep, answer, seen)
			}
			if sweep.Began.IsZero() || sweep.KeyID != a.KeyID() || strings.Contains(sweep.KeyID, "sk_test") {
				t.Errorf("%+v", sweep)
			}
		})
	}
}
