package jobs

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
)

const (
	listDefault, listMax = 20, 100 // INTERFACE.md

	// listBytesMax of jobs' data end a page early: a hundred jobs may have a megabyte each.
	listBytesMax = 4 << 20

	// listScan keys are looked at for one page. Only where many jobs are active, beside those that wait, is a page shorter for it.
	listScan = 10_000

	// listPriorities lines of one priority each are merged into one list, newest first. A tenant that uses more of them gets his waiting jobs
	// in the reverse of the order in which they will run.
	listPriorities = 64
)

// ListOptions page through a state's jobs, newest first.
type ListOptions struct {
	Limit int    // 1…100; 0: 20
	After string // JobPage.Next of the page before; "": from the beginning. Opaque
}

// JobPage is one page of a list. It may be shorter than asked for and still have a next one.
type JobPage struct {
	Jobs []Job
	Next string // "": no more
}

// List returns a tenant's jobs of a queue in a state, newest first: completed and failed ones by when they finished, others by when they were
// enqueued. A job that moves while somebody pages may be missed or seen in two states, never twice in one. Errors to branch on:
// ErrInvalid, ErrUnknownQueue, and the store's.
func (e *Engine) List(tenant, queue string, s State, o ListOptions) (JobPage, error) {
	page, err := e.list(tenant, queue, s, o)
	if err != nil {
		return JobPage{}, fmt.Errorf("list jobs of %q: %w", queue, err)
	}
	return page, nil
}

func (e *Engine) list(tenant, queue string, s State, o ListOptions) (JobPage, error) {
	if _, err := e.config(tenant, queue); err != nil {
		return JobPage{}, err
	}
	if o.Limit == 0 {
		o.Limit = listDefault
	}
	if o.Limit < 1 || o.Limit > listMax {
		return JobPage{}, invalid("limit", "%d: use 1 to %d", o.Limit, listMax)
	}
	l := lister{e: e, queue: queue, tenant: tenant, state: s}
	switch s {
	case Waiting, Active, Delayed:
		l.mode = bySequence
	case Completed, Failed:
		l.mode = byOrdinal
	default:
		return JobPage{}, invalid("state", "%q: use %s, %s, %s, %s or %s", s, Waiting, Delayed, Active, Completed, Failed)
	}
	if o.After != "" {
		if err := l.parse(o.After); err != nil {
			return JobPage{}, err
		}
	}
	return l.page(o.Limit)
}

// position is where in a list a page ends; the next one begins behind it. Lists go down, so the first page begins behind the highest.
type position struct {
	mode  byte
	where [orderBytes]byte // what it holds, mode says
}

const (
	bySequence = 's' // 4 bytes of zero, sequence
	byOrdinal  = 'o' // 4 bytes of zero, ordinal
	byOrder    = 'k' // priority, sequence: the end of a waiting key
)

// lister makes one page.
type lister struct {
	e             *Engine
	queue, tenant string
	state         State
	position           // of the last job that was looked at
	begun         bool // there is such a job
}

const cursorBytes = 1 + 1 + orderBytes + 4

// cursor is the position as text. It is bound to its list by a checksum: that keeps mistakes out. Who forges one can page through his own jobs.
func (l *lister) cursor() string {
	b := append([]byte{cursorListVersion, l.mode}, l.where[:]...)
	return base64.RawURLEncoding.EncodeToString(be.AppendUint32(b, l.checksum(b)))
}

const cursorListVersion = 1

func (l *lister) checksum(b []byte) uint32 {
	return checksum(l.queue, l.tenant, append([]byte(l.state), b...))
}

func (l *lister) parse(text string) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	body := b[:max(len(b)-4, 0)]
	mode := l.mode
	if err == nil && len(b) == cursorBytes && l.state == Waiting && b[1] == byOrder {
		mode = byOrder
	}
	if err != nil || len(b) != cursorBytes || b[0] != cursorListVersion || b[1] != mode || be.Uint32(b[len(body):]) != l.checksum(body) {
		return invalid("cursor", "it is not one of this list; begin without it")
	}
	l.mode, l.begun = mode, true
	copy(l.where[:], body[2:])
	return nil
}

// page collects places and reads the jobs there, until the page is full or the list at its end.
func (l *lister) page(limit int) (page JobPage, err error) {
	size := 0
	for scan := listScan; ; {
		var found []spotted
		if l.state == Active {
			found, err = l.active(limit - len(page.Jobs))
		} else {
			found, err = l.stored(limit-len(page.Jobs), scan)
		}
		if err != nil {
			return JobPage{}, err
		}
		if len(found) == 0 {
			return page, nil
		}
		jobs, err := l.read(found)
		if err != nil {
			return JobPage{}, err
		}
		scan -= len(jobs)
		for i, j := range jobs {
			l.position, l.begun = found[i].position, true
			if j == nil {
				continue
			}
			page.Jobs = append(page.Jobs, *j)
			size += len(j.Data) + len(j.Result)
			if len(page.Jobs) == limit || size >= listBytesMax {
				return l.end(page)
			}
		}
		if scan <= 0 {
			return l.end(page)
		}
	}
}

// end closes a page that is full, and looks whether there is another.
func (l *lister) end(page JobPage) (JobPage, error) {
	find := l.stored
	if l.state == Active {
		find = func(n, _ int) ([]spotted, error) { return l.active(n) }
	}
	more, err := find(1, 1)
	if err == nil && len(more) > 0 {
		page.Next = l.cursor()
	}
	return page, err
}

// spotted is a job that may belong on the page.
type spotted struct {
	place place
	position
}

// read reads what was found, or the first of it if that is enough; nil in place of what is in another state by now, or damaged.
func (l *lister) read(found []spotted) (out []*Job, err error) {
	leased := make([]bool, len(found))
	if l.state == Waiting {
		l.e.mu.Lock()
		for i, f := range found {
			_, key := f.place.key(l.queue, l.tenant)
			leased[i] = l.e.leased(l.queue, l.tenant, key) != nil
		}
		l.e.mu.Unlock()
	}
	err = l.e.st.View(func(tx *bbolt.Tx) error {
		out = out[:0]
		for i, size := 0, 0; i < len(found) && size < listBytesMax; i++ {
			out = append(out, nil)
			if leased[i] {
				continue
			}
			j, err := read(tx, l.queue, l.tenant, found[i].place)
			if errors.Is(err, ErrDamaged) {
				continue // moved in this moment; if it is damaged, Stats and Audit tell
			}
			if err != nil {
				return err
			}
			out[i] = &j
			size += len(j.Data) + len(j.Result)
		}
		return nil
	})
	for i, j := range out {
		if j == nil {
			continue
		}
		if l.e.overlay(j); j.State != l.state {
			out[i] = nil
		}
	}
	return out, err
}

// stored finds up to n places in the file, behind the position.
func (l *lister) stored(n, scan int) (found []spotted, err error) {
	n = min(n, scan)
	err = l.e.st.View(func(tx *bbolt.Tx) error {
		found = found[:0]
		line := linePrefix(l.queue, l.tenant)
		switch {
		case l.state == Completed:
			found = l.finished(tx, append(line, placeCompleted), placeCompleted, n)
		case l.state == Failed:
			found = l.finished(tx, append(line, placeFailed), placeFailed, n)
		case l.state == Delayed:
			found = l.delayed(tx, line, n)
		case l.mode == byOrder:
			found = l.waitingByOrder(tx, line, n)
		default:
			var few bool
			if found, few = l.waiting(tx, line, n); !few {
				if l.begun { // there were few when the list began
					return invalid("cursor", "the jobs have too many priorities by now; begin without it")
				}
				l.mode = byOrder
				found = l.waitingByOrder(tx, line, n)
			}
		}
		return nil
	})
	return found, err
}

// below puts c on the last key that begins with prefix and is less than prefix+at, or, at the beginning of a list, on the last one with prefix.
func (l *lister) below(c *bbolt.Cursor, prefix, at []byte) (k, v []byte) {
	if !l.begun {
		at = bytes.Repeat([]byte{0xff}, orderBytes+1)
	}
	if k, _ = c.Seek(slices.Concat(prefix, at)); k == nil {
		k, v = c.Last()
	} else {
		k, v = c.Prev()
	}
	if !bytes.HasPrefix(k, prefix) {
		return nil, nil
	}
	return k, v
}

func (l *lister) finished(tx *bbolt.Tx, prefix []byte, in byte, n int) (found []spotted) {
	c := tx.Bucket(bFinished).Cursor()
	for k, _ := l.below(c, prefix, l.where[4:]); bytes.HasPrefix(k, prefix) && len(found) < n; k, _ = c.Prev() {
		if len(k) == len(prefix)+8 {
			s := spotted{place: place{in: in, at: be.Uint64(k[len(prefix):])}, position: position{mode: byOrdinal}}
			copy(s.where[4:], k[len(prefix):])
			found = append(found, s)
		}
	}
	return found
}

func (l *lister) delayed(tx *bbolt.Tx, prefix []byte, n int) (found []spotted) {
	c := tx.Bucket(bLater).Cursor()
	for k, v := l.below(c, prefix, l.where[4:]); bytes.HasPrefix(k, prefix) && len(found) < n; k, v = c.Prev() {
		if p, ok := splitLater(k[len(prefix):], v); ok {
			found = append(found, spotted{p, sequencePosition(p.seq)})
		}
	}
	return found
}

func sequencePosition(seq uint64) position {
	p := position{mode: bySequence}
	be.PutUint64(p.where[4:], seq)
	return p
}

func (l *lister) waitingByOrder(tx *bbolt.Tx, prefix []byte, n int) (found []spotted) {
	c := tx.Bucket(bWaiting).Cursor()
	for k, _ := l.below(c, prefix, l.where[:]); bytes.HasPrefix(k, prefix) && len(found) < n; k, _ = c.Prev() {
		if len(k) == len(prefix)+orderBytes {
			s := spotted{place: place{in: placeWaiting}, position: position{mode: byOrder}}
			copy(s.where[:], k[len(prefix):])
			s.place.priority, s.place.seq = orderOf(s.where[:])
			found = append(found, s)
		}
	}
	return found
}

// waiting merges the lines of each priority. few: there are not too many of them.
func (l *lister) waiting(tx *bbolt.Tx, prefix []byte, n int) (found []spotted, few bool) {
	type source struct {
		c        *bbolt.Cursor
		prefix   []byte
		seq      uint64
		priority int32
	}
	var sources []source
	b := tx.Bucket(bWaiting)
	c := b.Cursor()
	looked := 0
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+orderBytes; looked++ {
		if looked == listPriorities {
			return nil, false
		}
		own := bytes.Clone(k[:len(prefix)+4])
		s := source{c: b.Cursor(), prefix: own}
		if last, _ := l.below(s.c, own, l.where[4:]); last != nil {
			s.priority, s.seq = orderOf(last[len(prefix):])
			sources = append(sources, s)
		}
		k, _ = c.Seek(slices.Concat(own, bytes.Repeat([]byte{0xff}, 9)))
	}
	for len(sources) > 0 && len(found) < n {
		newest := 0
		for i := range sources {
			if sources[i].seq > sources[newest].seq {
				newest = i
			}
		}
		s := &sources[newest]
		found = append(found, spotted{place{in: placeWaiting, priority: s.priority, seq: s.seq}, sequencePosition(s.seq)})
		if k, _ := s.c.Prev(); bytes.HasPrefix(k, s.prefix) {
			_, s.seq = orderOf(k[len(prefix):])
		} else {
			sources = slices.Delete(sources, newest, newest+1)
		}
	}
	return found, true
}

// active finds up to n leased jobs, behind the position. Memory knows them.
func (l *lister) active(n int) (found []spotted, err error) {
	e := l.e
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.queues[l.queue]
	if q == nil || q.lines[l.tenant] == nil {
		return nil, nil
	}
	for o, le := range q.lines[l.tenant].leases {
		p := place{in: placeWaiting}
		p.priority, p.seq = orderOf(o[:])
		if le.parking || l.begun && p.seq >= be.Uint64(l.where[4:]) || len(found) == n && p.seq < found[n-1].place.seq {
			continue
		}
		at, _ := slices.BinarySearchFunc(found, p.seq, func(s spotted, seq uint64) int { return cmp.Compare(seq, s.place.seq) })
		found = slices.Insert(found, at, spotted{p, sequencePosition(p.seq)})
		found = found[:min(len(found), n)]
	}
	return found, nil
}
