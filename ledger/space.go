package ledger

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// diskReserve is kept free for settling: when less is left, new payments are
	// refused, and what was accepted can still be sealed, recorded and relayed. A
	// payment's way to its end writes some 3 KiB, so that this serves 20,000.
	diskReserve = 64 << 20
	// spaceEvery is how often the free space is asked for: a box that takes
	// 20,000 payments a second writes some 10 MiB in this time.
	spaceEvery = 250 * time.Millisecond
)

// space watches the free space of the disk that the shards stand on.
type space struct {
	dir     string
	reserve uint64
	asked   atomic.Int64 // Unix nanoseconds of the last look
	low     atomic.Bool
}

// short reports whether only the reserve is left.
func (s *space) short() bool {
	now := time.Now().UnixNano()
	if last := s.asked.Load(); now-last < int64(spaceEvery) && now >= last || !s.asked.CompareAndSwap(last, now) {
		return s.low.Load()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return s.low.Load() // the write itself will tell
	}
	s.low.Store(st.Bavail*uint64(st.Bsize) < s.reserve)
	return s.low.Load()
}

// room refuses a new payment when only the reserve is left.
func (l *Ledger) room() error {
	k := alarmKey{code: "disk_full"}
	if !l.space.short() {
		l.alarms.clear(k)
		return nil
	}
	detail := fmt.Sprintf("less than %d MiB are free: new payments are refused, settling goes on", l.space.reserve>>20)
	l.raise(k, detail)
	return &Error{Kind: Full, Code: "disk_full", RetryAfter: time.Minute, Message: "the disk is full; nothing was stored"}
}
