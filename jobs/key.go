package jobs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"go.etcd.io/bbolt"
)

// Buckets and their keys; DESIGN.md says why. Names hold no zero byte, so a zero byte ends a name.
//
//	waiting   queue 0 tenant 0 priority seq           → record   (active ones too: a lease is memory)
//	delayed   queue 0 due tenant 0 priority seq       → record
//	finished  queue 0 tenant 0 state ordinal          → record
//	ids       queue 0 tenant 0 id                     → place
//	finished_ids                                      → as in ids, of finished jobs
//	leased    queue 0 tenant 0 priority seq           → what an outside worker holds of the waiting record of that key
//	queues    queue 0 tenant 0                        → a tenant's own queue: defaults, limits
//	paused    queue 0 tenant 0                        → since when; tenant "": the whole queue
//	parked    queue 0 tenant 0 place                  → a record that cannot be read, and where it was
//	cursors   source                                  → cursor
//	meta      "clean", "clock"
//	later     queue 0 tenant 0 seq                    → due and priority of a delayed job: a tenant's own, in order of age
//	logs      queue 0 tenant 0 seq number             → a line of a job's log
//	schedules tenant 0 queue 0 id                     → plan
var (
	bWaiting     = []byte("waiting")
	bDelayed     = []byte("delayed")
	bFinished    = []byte("finished")
	bIDs         = []byte("ids")
	bFinishedIDs = []byte("finished_ids")
	bParked      = []byte("parked")
	bLeased      = []byte("leased")
	bQueues      = []byte("queues")
	bPaused      = []byte("paused")
	bCursors     = []byte("cursors")
	bMeta        = []byte("meta")

	bLater     = []byte("later")
	bLogs      = []byte("logs")
	bSchedules = []byte("schedules")

	buckets = [][]byte{bWaiting, bDelayed, bFinished, bIDs, bFinishedIDs, bParked, bLeased, bQueues, bPaused, bCursors, bMeta, bLater, bLogs, bSchedules}
	indexes = [][]byte{bIDs, bFinishedIDs} // where the places of jobs are noted, by their ids
)

const (
	orderBytes    = 4 + 8 // the end of a waiting and a delayed key: priority and sequence
	finishedBytes = 1 + 8 // the end of a finished key: state and ordinal
)

// A place's first byte says in which bucket the record is.
const (
	placeWaiting   = 'w'
	placeDelayed   = 'd'
	placeCompleted = 'c'
	placeFailed    = 'f'
	placeBytes     = 1 + 8 + orderBytes
)

var be = binary.BigEndian

// linePrefix begins all keys of one tenant in one queue.
func linePrefix(queue, tenant string) []byte {
	b := make([]byte, 0, len(queue)+len(tenant)+2+placeBytes) // what is mostly appended to it
	return append(append(append(append(b, queue...), 0), tenant...), 0)
}

func queuePrefix(queue string) []byte { return append([]byte(queue), 0) }

// appendOrder makes lower priorities, then lower sequences, sort first.
func appendOrder(b []byte, priority int32, seq uint64) []byte {
	return be.AppendUint64(be.AppendUint32(b, uint32(priority)^1<<31), seq)
}

// order is where a job stands in its line: the end of its waiting key.
type order [orderBytes]byte

// orderIn cuts it off a waiting key.
func orderIn(key []byte) order { return order(key[len(key)-orderBytes:]) }

func orderOf(b []byte) (priority int32, seq uint64) {
	return int32(be.Uint32(b) ^ 1<<31), be.Uint64(b[4:])
}

func nanos(t time.Time) uint64   { return uint64(max(t.UnixNano(), 0)) }
func timeOf(ns uint64) time.Time { return time.Unix(0, int64(min(ns, math.MaxInt64))).UTC() }

// place says where a record is.
type place struct {
	in       byte   // one of the place constants
	at       uint64 // delayed: due, in ns; completed and failed: the ordinal; waiting: 0
	priority int32
	seq      uint64
}

func (p place) encode() []byte {
	return appendOrder(be.AppendUint64([]byte{p.in}, p.at), p.priority, p.seq)
}

func decodePlace(b []byte) (p place, err error) {
	if len(b) != placeBytes {
		return p, fmt.Errorf("%w: place of %d bytes", ErrDamaged, len(b))
	}
	p.in, p.at = b[0], be.Uint64(b[1:])
	p.priority, p.seq = orderOf(b[9:])
	return p, nil
}

// bucket is where the record is. Nil for a place that makes no sense.
func (p place) bucket() []byte {
	switch p.in {
	case placeWaiting:
		return bWaiting
	case placeDelayed:
		return bDelayed
	case placeCompleted, placeFailed:
		return bFinished
	default:
		return nil
	}
}

// key returns the record's bucket and key. Nil for a place that makes no sense.
func (p place) key(queue, tenant string) (bucket, key []byte) {
	switch p.in {
	case placeWaiting:
		key = appendOrder(linePrefix(queue, tenant), p.priority, p.seq)
	case placeDelayed:
		key = be.AppendUint64(queuePrefix(queue), p.at)
		key = appendOrder(append(append(key, tenant...), 0), p.priority, p.seq)
	case placeCompleted, placeFailed:
		key = be.AppendUint64(append(linePrefix(queue, tenant), p.in), p.at)
	}
	return p.bucket(), key
}

// parkedKey is where a record goes that was at p and cannot be read.
func parkedKey(queue, tenant string, p place) []byte {
	return append(linePrefix(queue, tenant), p.encode()...)
}

func idKey(queue, tenant, id string) []byte {
	b := make([]byte, 0, len(queue)+len(tenant)+2+len(id))
	return append(append(append(append(append(b, queue...), 0), tenant...), 0), id...)
}

// cutLine cuts a key (other than a delayed one) into its line and the rest.
func cutLine(k []byte) (queue, tenant, rest []byte, ok bool) {
	queue, rest, ok = bytes.Cut(k, []byte{0})
	if !ok {
		return nil, nil, nil, false
	}
	tenant, rest, ok = bytes.Cut(rest, []byte{0})
	return queue, tenant, rest, ok
}

// cutDelayed cuts a delayed key.
func cutDelayed(k []byte) (queue, tenant []byte, p place, ok bool) {
	queue, after, ok := bytes.Cut(k, []byte{0})
	if !ok || len(after) < 8 {
		return nil, nil, p, false
	}
	tenant, order, ok := bytes.Cut(after[8:], []byte{0})
	if !ok || len(order) != orderBytes {
		return nil, nil, p, false
	}
	p = place{in: placeDelayed, at: be.Uint64(after)}
	p.priority, p.seq = orderOf(order)
	return queue, tenant, p, true
}

func splitDelayed(k []byte) (queue, tenant string, p place, ok bool) {
	q, t, p, ok := cutDelayed(k)
	return string(q), string(t), p, ok
}

// lastIn returns the last key that begins with prefix, or nil. Keys in finished go on with eight bytes.
func lastIn(c *bbolt.Cursor, prefix []byte) []byte {
	k, _ := c.Seek(append(bytes.Clone(prefix), bytes.Repeat([]byte{0xff}, 9)...))
	if k == nil {
		k, _ = c.Last()
	} else {
		k, _ = c.Prev()
	}
	if k == nil {
		// The beginning of the bucket, or a page that this transaction has emptied: a step back ends there, a step on does not.
		for next, _ := c.Seek(prefix); bytes.HasPrefix(next, prefix); next, _ = c.Next() {
			k = next
		}
	}
	if bytes.HasPrefix(k, prefix) {
		return k
	}
	return nil
}

// laterKey is where a line's delayed job is found by its age. The delayed bucket itself is in order of time, all tenants mixed.
func laterKey(queue, tenant string, seq uint64) []byte {
	return be.AppendUint64(linePrefix(queue, tenant), seq)
}

func (p place) later() []byte {
	return appendOrder(be.AppendUint64(nil, p.at), p.priority, p.seq)
}

// splitLater reads the end of a later key, and its value.
func splitLater(end, v []byte) (p place, ok bool) {
	if len(end) != 8 || len(v) != 8+orderBytes || be.Uint64(end) != be.Uint64(v[8+4:]) {
		return p, false
	}
	p = place{in: placeDelayed, at: be.Uint64(v)}
	p.priority, p.seq = orderOf(v[8:])
	return p, true
}
