package shards

import "github.com/cespare/xxhash/v2"

// Slot is one of the SlotCount parts into which everything that belongs to
// users is cut. A slot lives in exactly one shard; which one, the manifest says.
type Slot uint16

// SlotCount is the number of slots of every box, for ever: it is part of each
// record's id, so it is pinned in the manifest and never an option.
const SlotCount = 1024

// SlotHash names the function behind SlotOf. The manifest pins it: a box whose
// program routes by another one would look for every user in the wrong file.
const SlotHash = "xxhash64(tenant,0x00,user)%1024"

// SlotOf tells where what belongs to a tenant's user lives: XXH64 with seed 0
// over the tenant's bytes, one zero byte and the user's bytes, modulo
// SlotCount. Tenants are DNS labels, so the zero byte cannot occur in them and
// no two pairs give the same input.
func SlotOf(tenant, user string) Slot {
	// Short ids, the usual ones, are hashed from the stack.
	var buf [128]byte
	b := append(buf[:0], tenant...)
	b = append(b, 0)
	b = append(b, user...)
	return Slot(xxhash.Sum64(b) % SlotCount)
}
