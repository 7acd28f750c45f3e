package powercut

import (
	"math/rand/v2"
	"slices"
)

// A change is a write, or a new size, since the file's last sync.
type change struct {
	off  int64
	data []byte // nil: the size was set
	size int64  // of the file afterwards
}

// content is a file's bytes: as programs see them, and as the disk holds them.
type content struct {
	seen    []byte
	durable []byte
	pending []change // since the last sync; durable with all of them is seen
}

// write puts data at off. The file grows by zeros if it must.
func (c *content) write(off int64, data []byte) {
	data = slices.Clone(data) // the caller's buffer is used again
	c.seen = put(c.seen, off, data)
	c.pending = append(c.pending, change{off, data, int64(len(c.seen))})
}

// resize cuts the file, or adds zeros.
func (c *content) resize(size int64) {
	c.seen = fit(c.seen, size)
	c.pending = append(c.pending, change{size: size})
}

// sync makes durable what is seen.
func (c *content) sync() {
	for _, ch := range c.pending {
		c.durable = ch.apply(c.durable)
	}
	c.pending = nil
}

// resized tells whether the file's size is other than the disk's.
func (c *content) resized() bool { return len(c.seen) != len(c.durable) }

func (ch change) apply(to []byte) []byte {
	if ch.data == nil {
		return fit(to, ch.size)
	}
	return put(to, ch.off, ch.data)
}

// put writes data into b at off, and lengthens b with zeros as needed.
func put(b []byte, off int64, data []byte) []byte {
	if end := off + int64(len(data)); end > int64(len(b)) {
		b = fit(b, end)
	}
	copy(b[off:], data)
	return b
}

// fit returns b in another size: its beginning, or with zeros behind it.
func fit(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size] // what is cut off must not come back as anything but zeros
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// A mood is how much of a file's unsynced writes had reached the disk when the power went.
type mood int

const (
	nothing    mood = iota // the cache had written nothing yet
	some                   // each block on its own: any of its versions
	most                   // each block on its own: its last version, nine times of ten
	everything             // all of it, only the sync was missing
	moods
)

// toll counts what a file lost and kept.
type toll struct{ lost, kept, torn int64 }

// strike takes the power away: of what was not synced, a part is left that a disk below a page cache could hold. A block of unit bytes
// is in one of the versions that it had, whichever; blocks of one write may differ (it is torn), and so may those of writes in a row (they are
// reordered). The size is one of those that the file had. A file that grew and whose bytes were not written holds zeros there. After a file was
// cut shorter, nothing that was written later survives unless the cut does: file systems keep both in one order, for else a file
// would show blocks that were freed.
func (c *content) strike(random *rand.Rand, unit int64) toll {
	if len(c.pending) == 0 {
		return toll{}
	}
	m := mood(random.IntN(int(moods)))
	sizes := len(c.pending) // how many changes' sizes survive
	switch m {
	case nothing:
		sizes = 0
	case some:
		sizes = random.IntN(len(c.pending) + 1)
	case most:
		sizes -= random.IntN(min(2, len(c.pending)) + 1)
	}
	size, limit := int64(len(c.durable)), len(c.pending)
	for i, ch := range c.pending {
		if i < sizes {
			size = ch.size
		} else if ch.data == nil && limit == len(c.pending) {
			limit = i
		}
	}
	left := c.versions(random, unit, m, limit)
	var t toll
	for i, ch := range c.pending[:limit] {
		if ch.data == nil {
			if i < sizes {
				c.durable = fit(c.durable, ch.size)
			}
			continue
		}
		kept, blocks := 0, 0
		for from := ch.off; from < ch.off+int64(len(ch.data)); blocks++ {
			to := min((from/unit+1)*unit, ch.off+int64(len(ch.data)))
			if left[from/unit] > i {
				c.durable = put(c.durable, from, ch.data[from-ch.off:to-ch.off])
				kept++
			}
			from = to
		}
		switch kept {
		case blocks:
			t.kept++
		case 0:
			t.lost++
		default:
			t.torn++
		}
	}
	t.lost += int64(len(c.pending) - limit)
	c.durable = slices.Clone(fit(c.durable, size))
	c.seen, c.pending = slices.Clone(c.durable), nil
	return t
}

// versions chooses for each block that was written behind which change, counted from one, it was last written to the disk; 0: never.
func (c *content) versions(random *rand.Rand, unit int64, m mood, limit int) map[int64]int {
	written := map[int64][]int{}
	var blocks []int64 // in an order that the seed repeats
	for i, ch := range c.pending[:limit] {
		for b := ch.off / unit; ch.data != nil && b*unit < ch.off+int64(len(ch.data)); b++ {
			if written[b] == nil {
				blocks = append(blocks, b)
			}
			written[b] = append(written[b], i+1)
		}
	}
	left := map[int64]int{}
	for _, b := range blocks {
		all := written[b]
		switch {
		case m == everything, m == most && random.IntN(10) > 0:
			left[b] = all[len(all)-1]
		case m == some:
			left[b] = append([]int{0}, all...)[random.IntN(len(all)+1)]
		}
	}
	return left
}
