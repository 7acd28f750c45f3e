package shards_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"tenderbox/shards"
)

// The values are part of the file format: a change of any would lose every user.
func TestSlotOfIsPinned(t *testing.T) {
	for _, c := range []struct {
		tenant, user string
		want         shards.Slot
	}{
		{"", "", 872},
		{"default", "user_1", 13},
		{"default", "user_2", 830},
		{"a", "b", 193},
		{"ab", "", 456},
		{"ship", "an id that is far longer than what fits into the buffer on the stack, so that it takes the other way through the function, which must give the same answer", 400},
	} {
		if got := shards.SlotOf(c.tenant, c.user); got != c.want {
			t.Errorf("SlotOf(%q, %q) = %d, want %d", c.tenant, c.user, got, c.want)
		}
	}
}

func TestSlotOfSeparatesTenantAndUser(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant := rapid.StringMatching(`[a-z0-9]{1,20}`).Draw(t, "tenant")
		user := rapid.String().Draw(t, "user")
		slot := shards.SlotOf(tenant, user)
		if slot >= shards.SlotCount {
			t.Fatalf("slot %d", slot)
		}
		if again := shards.SlotOf(tenant, user); again != slot {
			t.Fatalf("%d, then %d", slot, again)
		}
	})
}

func TestSlotOfSpreads(t *testing.T) {
	const users = 200 * shards.SlotCount
	var hits [shards.SlotCount]int
	for i := range users {
		hits[shards.SlotOf("default", fmt.Sprintf("user_%d", i))]++
	}
	for slot, n := range hits {
		if n < 100 || n > 320 { // mean 200, standard deviation 14
			t.Errorf("slot %d has %d users of 200 expected", slot, n)
		}
	}
}
