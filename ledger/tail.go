package ledger

import (
	"context"
	"sync"
)

const (
	// tailMax is how many of a journal's last rows stay in memory: what the relays
	// are behind by under full load, some 800 bytes a row. Who is further behind
	// reads the file.
	tailMax = 1024
	// tailBytesMax bounds their data: an app's own event may have a megabyte.
	tailBytesMax = 4 << 20
)

// tail keeps the last durable rows of a journal, so that the relays need not
// read back what was written a moment ago. Its rows follow each other without a gap.
type tail struct {
	mu    sync.Mutex // guards the rest
	rows  []*Event   // up to 2·tailMax, so that dropping old ones is rare
	bytes int        // of their data
}

// add appends the rows of a durable group. After a gap, as when a commit's outcome
// was unknown, the tail begins anew.
func (t *tail) add(events []*Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.rows); n > 0 && len(events) > 0 && events[0].Seq != t.rows[n-1].Seq+1 {
		t.drop(n)
	}
	t.rows = append(t.rows, events...)
	for _, e := range events {
		t.bytes += len(e.Data)
	}
	if drop := len(t.rows) - tailMax; drop >= tailMax {
		t.drop(drop)
	}
	if t.bytes > tailBytesMax { // down to half, so that this is rare as well
		n := 0
		for left := t.bytes; left > tailBytesMax/2; n++ {
			left -= len(t.rows[n].Data)
		}
		t.drop(n)
	}
}

// drop forgets the first n rows. The caller holds mu.
func (t *tail) drop(n int) {
	for _, e := range t.rows[:n] {
		t.bytes -= len(e.Data)
	}
	n = copy(t.rows, t.rows[n:])
	clear(t.rows[n:])
	t.rows = t.rows[:n]
}

// after returns up to limit rows that follow seq; known is false if the tail does not reach back to it.
func (t *tail) after(seq uint64, limit int) (rows []*Event, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rows) == 0 || seq+1 < t.rows[0].Seq || seq > t.rows[len(t.rows)-1].Seq {
		return nil, false
	}
	from := int(seq + 1 - t.rows[0].Seq)
	return append(rows, t.rows[from:from+min(len(t.rows)-from, limit)]...), true
}

// follow calls fn with up to limit rows of p's journal after seq, in order, from
// memory or from the file. fn must not change e.
func (l *Ledger) follow(ctx context.Context, p *part, seq uint64, limit int, fn func(e *Event) error) error {
	rows, known := p.journal.tail.after(seq, limit)
	if !known {
		return readJournal(ctx, p.shard, seq, limit, fn)
	}
	for _, e := range rows {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}
