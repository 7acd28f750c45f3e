package ledger

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tenderbox/shards"
)

func TestIDsCarryTheirSlotAndTime(t *testing.T) {
	g := newIDs()
	rapid.Check(t, func(t *rapid.T) {
		slot := shards.Slot(rapid.IntRange(0, shards.SlotCount-1).Draw(t, "slot"))
		at := time.UnixMilli(rapid.Int64Range(1, 1<<47).Draw(t, "ms")).UTC()
		id := g.payment(at, slot)
		if got, ok := id.slot(); !ok || got != slot {
			t.Fatalf("%s carries slot %d (%v), want %d", id, got, ok, slot)
		}
		if parsed, ok := ParsePaymentID(string(id)); !ok || parsed != id {
			t.Fatalf("%s does not parse", id)
		}
		if idAt(paymentPrefix, at) > string(id) || idAt(paymentPrefix, at.Add(time.Millisecond)) <= string(id) {
			t.Fatalf("%s is not within the range of its millisecond", id)
		}
	})
}

func TestIDsAreUnique(t *testing.T) {
	g, seen := newIDs(), map[PaymentID]bool{}
	at := time.UnixMilli(1)
	for range 10000 {
		id := g.payment(at, 7)
		if seen[id] {
			t.Fatalf("%s was made twice", id)
		}
		seen[id] = true
	}
}

func TestParsePaymentIDRefuses(t *testing.T) {
	good := string(newIDs().payment(time.UnixMilli(1), 7))
	for _, s := range []string{"", "pay_", good[1:], good + "0", strings.ToLower(good), "ord_" + good[4:],
		"pay_../../../../../etc/passwd", "pay_" + strings.Repeat("Z", 26), "pay_" + strings.Repeat("U", 26)} {
		if _, ok := ParsePaymentID(s); ok {
			t.Errorf("%q parses", s)
		}
	}
}

func TestRandomSlotStaysInRange(t *testing.T) {
	g := newIDs()
	for range 5000 {
		if s := g.randomSlot(); s >= shards.SlotCount {
			t.Fatalf("slot %d", s)
		}
	}
}
