package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tenderbox/tenants"
)

// readAll pages through the tenant's events.
func (b *testBox) readAll(t tenants.ID, f EventFilter) (all []Event, end Position) {
	b.t.Helper()
	for {
		page := must(b.Events(b.t.Context(), t, f))(b.t)
		all = append(all, page.Events...)
		if f.After = page.Next; !page.More {
			return all, page.Next
		}
	}
}

// INV-16, INV-20: the pages hold each of the tenant's events once, in order for each record, however
// the tenants' rows are mixed, from memory and from the files; and a position goes on over a restart.
func TestEventsArePagedCompletely(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	for _, id := range []tenants.ID{"other", "third"} {
		if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(7, 7))
	want := map[tenants.ID][]string{}
	write := func(n int) {
		for range n {
			who := []tenants.ID{testTenant, "other", "third"}[random.IntN(3)]
			e, _, err := b.Emit(t.Context(), who, "", NewEvent{Type: fmt.Sprintf("till.%c", 'a'+random.IntN(3)), Data: fmt.Appendf(nil, `{"of":%q}`, who)})
			if err != nil {
				t.Fatal(err)
			}
			want[who] = append(want[who], string(e.ID))
		}
	}
	same := func(who tenants.ID, got []Event, want []string) {
		t.Helper()
		var ids []string
		for _, e := range got {
			if e.Tenant != who || !strings.Contains(string(e.Data), string(who)) {
				t.Fatalf("%s is told of %s's %s", who, e.Tenant, e.Data)
			}
			ids = append(ids, string(e.ID))
		}
		slices.Sort(ids)
		if want = slices.Clone(want); !slices.Equal(ids, slices.Sorted(slices.Values(want))) {
			t.Fatalf("%s: %d events, want %d", who, len(ids), len(want))
		}
	}
	write(300)
	full := func(from string) { // what is not wanted takes no place on a page
		t.Helper()
		page := must(b.Events(t.Context(), testTenant, EventFilter{Types: []string{"user.*", "till.a", "tills.*"}, Limit: 20}))(t)
		if len(page.Events) != 20 || !page.More || slices.ContainsFunc(page.Events, func(e Event) bool { return e.Type != "till.a" }) {
			t.Errorf("%d events on a page of 20, more %t, from %s", len(page.Events), page.More, from)
		}
	}
	full("memory")
	ends := map[tenants.ID]Position{}
	for who := range want {
		all, end := b.readAll(who, EventFilter{Limit: 7})
		same(who, all, want[who])
		for i := range all[1:] {
			if all[i+1].OccurredAt.Before(all[i].OccurredAt) {
				t.Fatalf("%s: event %d is older than the one before", who, i+1)
			}
		}
		ends[who] = end
	}
	before := map[tenants.ID]int{}
	for who := range want {
		before[who] = len(want[who])
	}
	b = b.reopen(nil) // the tail in memory is gone
	full("the files")
	for who := range want {
		all, _ := b.readAll(who, EventFilter{Limit: 9})
		same(who, all, want[who])
	}
	write(200)
	for who := range want {
		at, ok := ParsePosition(ends[who].String())
		if !ok {
			t.Fatal("a position is not read back")
		}
		all, _ := b.readAll(who, EventFilter{After: at, Limit: 3})
		same(who, all, want[who][before[who]:])
	}
	// Behind says where each event ends: reading on from any of them misses and repeats nothing.
	page := must(b.Events(t.Context(), testTenant, EventFilter{Limit: 100}))(t)
	for i, at := range page.Behind {
		rest, _ := b.readAll(testTenant, EventFilter{After: at, Limit: 50})
		if len(rest) != len(want[testTenant])-i-1 {
			t.Fatalf("%d events behind the %dth of %d", len(rest), i+1, len(want[testTenant]))
		}
	}
	only, _ := b.readAll(testTenant, EventFilter{Types: []string{"till.a", "order.*"}, Limit: 2})
	n := 0
	all, _ := b.readAll(testTenant, EventFilter{})
	for _, e := range all {
		if e.Type == "till.a" {
			n++
		}
	}
	if len(only) != n || n == 0 {
		t.Errorf("%d events of till.a, want %d", len(only), n)
	}
	b.sound()
}

func TestHearIsPokedForItsTenantOnly(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	news, leave := b.Hear(testTenant)
	emit := func(who tenants.ID) {
		if _, _, err := b.Emit(t.Context(), who, "", NewEvent{Type: "till.opened"}); err != nil {
			t.Fatal(err)
		}
	}
	emit("other")
	select {
	case <-news:
		t.Fatal("poked for another tenant's event")
	default:
	}
	emit(testTenant)
	select { // the poke comes before the answer
	case <-news:
	default:
		t.Fatal("not poked")
	}
	leave()
	if emit(testTenant); !b.hearers.none() {
		t.Fatal("somebody hears after leave")
	}
}

func TestEmittedEventIsReplayed(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	first, _, err := b.Emit(t.Context(), testTenant, "k", NewEvent{Type: "till.opened", Data: []byte(`{"till": 3}`)})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again, replayed, err := b.Emit(t.Context(), testTenant, "k", NewEvent{Type: "till.opened", Data: []byte(`{ "till":3 }`)})
		if err != nil || !replayed || again.ID != first.ID || string(again.Data) != string(first.Data) || again.Seq == 0 {
			t.Fatalf("%v %v %+v", replayed, err, again)
		}
		if _, _, err := b.Emit(t.Context(), testTenant, "k", NewEvent{Type: "till.closed"}); code(err) != "idempotency_mismatch" {
			t.Fatal(err)
		}
		b = b.reopen(nil)
	}
	b.sound()
}

func TestEventRefusals(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	for want, n := range map[string]NewEvent{
		"type_invalid":          {Type: "opened"},
		"type_reserved":         {Type: "payment.succeeded"},
		"data_invalid":          {Type: "till.opened", Data: []byte(`{`)},
		"data_too_long":         {Type: "till.opened", Data: slices.Repeat([]byte("1"), eventDataMax+1)},
		"card_data_not_allowed": {Type: "till.opened", Data: []byte(`{"note":"4242 4242 4242 4242"}`)},
	} {
		if _, _, err := b.Emit(t.Context(), testTenant, "", n); code(err) != want {
			t.Errorf("%+v: %v, want %s", n, err, want)
		}
	}
	for _, typ := range []string{"Till.opened", "till..opened", "till.>", "till.*", ".till", "till.", "till.ä", strings.Repeat("a.", 60)} {
		if _, _, err := b.Emit(t.Context(), testTenant, "", NewEvent{Type: typ}); code(err) != "type_invalid" {
			t.Errorf("%q: %v", typ, err)
		}
	}
	for want, f := range map[string]EventFilter{
		"limit_invalid": {Limit: 101},
		"types_invalid": {Types: []string{"user.>"}},
		"after_invalid": {After: Position{seqs: make([]uint64, 99)}},
		"events_gone":   {After: Position{epoch: 77, seqs: []uint64{1}}},
	} {
		if _, err := b.Events(t.Context(), testTenant, f); code(err) != want {
			t.Errorf("%+v: %v, want %s", f, err, want)
		}
	}
	if _, ok := ParsePosition("\xff\xff"); ok {
		t.Error("a cut position is read")
	}
	// A position ahead of the journals is no way to look around, and no crash.
	far := Position{b.set.Manifest().Epoch, []uint64{1 << 62, 1 << 62, 1 << 62, 1 << 62}}
	if page, err := b.Events(t.Context(), testTenant, EventFilter{After: far}); err != nil || len(page.Events) > 0 {
		t.Errorf("%+v, %v", page, err)
	}
}
