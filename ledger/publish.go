package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"tenderbox/jobs"
)

// Publisher is the durable event log that the relay feeds.
type Publisher interface {
	// Publish appends the events as one unit; when it returns without error
	// they survive a power cut. It returns the log's position after them.
	Publish(ctx context.Context, events []*Event) (position uint64, err error)
	// Tail returns, for each origin ([Event.Origin]), the highest Seq that the
	// log holds after position, and the log's last position.
	Tail(ctx context.Context, after uint64) (seqs map[string]uint64, position uint64, err error)
	// Incarnation names this life of the log: it changes when the log was
	// lost and begun anew.
	Incarnation() string
	// BatchMax is how many events Publish takes at once.
	BatchMax() int
}

// ErrNotPublishing is what a [Publisher] returns while its log is not open.
var ErrNotPublishing = errors.New("event log not open")

// Origin names the journal that the event stands in.
func (e *Event) Origin() string { return origin(e.Shard, e.Epoch) }

func origin(shard int, epoch uint64) string {
	return strconv.FormatUint(epoch, 10) + "/" + strconv.Itoa(shard)
}

const (
	// publishBytesMax bounds the data of the events that are handed to the event log at once.
	publishBytesMax = 8 << 20
	// publishGather spaces batches of events that are not full: a batch costs the
	// event log 2 ms of CPU and six fsyncs, however small it is. The first event
	// after a quiet moment goes out at once.
	publishGather = 100 * time.Millisecond
)

// relayEvents publishes the journals to the event log, in order of each
// journal, until ctx ends. One loop serves all shards, so that one durable batch
// takes what has gathered in all of them.
func (l *Ledger) relayEvents(ctx context.Context) error {
	if l.events == nil {
		return nil
	}
	for ctx.Err() == nil {
		// The event log is a server of its own making: what it does must not reach payments.
		err := guard(func() error { return l.publishFrom(ctx) })
		if ctx.Err() != nil {
			break
		}
		k := alarmKey{code: "event_log"}
		if !errors.Is(err, ErrNotPublishing) {
			l.log.Warn("relay to the event log", "err", err)
		}
		l.raise(k, err.Error())
		_ = pause(ctx, retryPause)
	}
	return nil
}

// publishFrom finds where the event log stands and publishes from there, until
// the first error.
func (l *Ledger) publishFrom(ctx context.Context) error {
	life := l.events.Incarnation()
	if life == "" {
		return ErrNotPublishing
	}
	source := func(origin string) string { return "events/" + life + "/" + origin }
	// The cursors are written after each batch and not waited for. What was
	// published since stands behind the position that was last written: the
	// position follows its batch's cursors, and what is written is a prefix.
	position, err := EventPosition(l.jobs)
	if err != nil {
		return err
	}
	seqs, _, err := l.events.Tail(ctx, position)
	if err != nil {
		return err
	}
	next := make([]uint64, len(l.parts)) // by part: the last published row
	begun := make([]bool, len(l.parts))  // its next is known
	begin := func(i int) error {
		p := l.parts[i]
		// What a copy took along of the event log is of the epochs before; it may be ahead of the journal that was copied beside it.
		for _, o := range p.origins() {
			c, _, err := l.cursor(ctx, source(o.name))
			if err != nil {
				return err
			}
			next[i] = max(next[i], min(max(c.Offset, seqs[o.name]), o.end))
		}
		begun[i] = true
		return nil
	}
	for first := 0; ; first++ { // each shard's turn comes, however much another one has to tell
		var batch []*Event
		unread, full, size := false, false, 0
		upTo := slices.Clone(next)
		for k := range l.parts {
			i := (first + k) % len(l.parts)
			p := l.parts[i]
			room := l.events.BatchMax() - len(batch)
			if room == 0 || p.shard.Err() != nil || !p.verified.Load() {
				continue
			}
			if !begun[i] {
				if err := begin(i); err != nil {
					return err
				}
				upTo[i] = next[i]
			}
			if next[i] >= p.journal.currentHead().seq {
				continue
			}
			err := l.follow(ctx, p, next[i], room, func(e *Event) error {
				if e.Data == nil { // erased, hence read from the file and ours: it is told without its data
					e.Data = []byte("null")
				}
				if size += len(e.Data); len(batch) > 0 && size > publishBytesMax {
					return errBatchFull
				}
				batch = append(batch, e)
				upTo[i] = e.Seq
				return nil
			})
			if full = errors.Is(err, errBatchFull); full {
				break
			}
			if err != nil && ctx.Err() == nil {
				// The other shards' events do not wait for this one's.
				l.log.Warn("journal not readable for the event log", "shard", p.shard.ID(), "err", err)
				unread = true
			}
		}
		if len(batch) == 0 {
			l.alarms.clear(alarmKey{code: "event_log"})
			wait := l.publish.wait
			if unread { // every wake-up would read in vain again
				wait = pause
			}
			if err := wait(ctx, relayPoll); err != nil {
				return err
			}
			if now := l.events.Incarnation(); now != life {
				return fmt.Errorf("event log begun anew")
			}
			continue
		}
		position, err := l.events.Publish(ctx, batch)
		if err != nil {
			return err
		}
		for i, p := range l.parts {
			if upTo[i] != next[i] {
				next[i] = upTo[i]
				l.jobs.MoveCursor(source(p.origin()), jobs.Cursor{Offset: next[i]}, nil)
			}
		}
		l.jobs.MoveCursor(positionSource, jobs.Cursor{Offset: position}, nil)
		l.published.Add(uint64(len(batch)))
		if !full && len(batch) < l.events.BatchMax() {
			if err := pause(ctx, publishGather); err != nil {
				return err
			}
		}
	}
}

// positionSource names the cursor that keeps the highest position that any life
// of the event log has reached.
const positionSource = "events/position"

// EventPosition returns the highest position that the event log has reached, as
// the queue's file knows it. A log begun anew starts above it, so that a reader
// who remembers positions misses nothing.
func EventPosition(e *jobs.Engine) (uint64, error) {
	c, _, err := e.Cursor(positionSource)
	if errors.Is(err, jobs.ErrDamaged) {
		err = e.DropCursor(context.Background(), positionSource)
	}
	return c.Offset, err
}
