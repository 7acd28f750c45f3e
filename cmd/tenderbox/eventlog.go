package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"tenderbox/bus"
	"tenderbox/ledger"
	"tenderbox/web"
)

const (
	// eventLogPause spaces attempts to open or mend the event stream, growing to eventLogPauseMax: the disk
	// may be full or broken, and the payments need it more.
	eventLogPause    = time.Second
	eventLogPauseMax = time.Minute
	// eventLogPoll is how long a fault of the stream can stay unnoticed when nothing is published.
	eventLogPoll = 5 * time.Second
	// lifeFile stands in the stream's own folder, so that it shares the folder's fate.
	lifeFile = "life"
)

// eventLog is the event stream as the ledger needs it: a ledger.Publisher that is there from the first
// moment, though the stream behind it may open later, fail, or never come. Payments do not wait for it.
//
// Each stream has a name of its life, by which the relay keeps its cursors: a stream that was lost and
// begun anew has another, and is filled from the beginning. The relay must have looked at the tail of this
// life before it publishes into it; what it had in hand for the former one is refused.
//
// Lock order: turn before mu.
type eventLog struct {
	options bus.Options
	log     *slog.Logger
	failed  chan struct{} // poked when a publish failed: look at the stream now
	tried   chan struct{} // closed when run has tried to open the stream, or has left

	turn sync.Mutex // held while publishing, and while the stream is opened, mended or closed

	mu     sync.Mutex // guards what follows
	bus    *bus.Bus   // nil while the stream is not open
	life   string     // "" while nothing can be published
	tailed bool       // the relay knows the tail of this life
}

var _ ledger.Publisher = (*eventLog)(nil)

func newEventLog(o bus.Options, log *slog.Logger) *eventLog {
	return &eventLog{options: o, log: log, failed: make(chan struct{}, 1), tried: make(chan struct{})}
}

func (e *eventLog) current() (b *bus.Bus, life string, tailed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bus, e.life, e.tailed
}

func (e *eventLog) set(b *bus.Bus, life string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bus, e.life, e.tailed = b, life, false
}

// Publish appends the events as one durable batch.
func (e *eventLog) Publish(ctx context.Context, events []*ledger.Event) (uint64, error) {
	e.turn.Lock()
	defer e.turn.Unlock()
	b, life, tailed := e.current()
	if life == "" || !tailed {
		return 0, ledger.ErrNotPublishing
	}
	messages := make([]bus.Message, len(events))
	for i, event := range events {
		messages[i] = bus.Message{Origin: event.Origin(), Seq: event.Seq, Event: web.CloudEvent(event, e.options.Source)}
	}
	position, err := b.Publish(ctx, messages)
	if err != nil {
		select {
		case e.failed <- struct{}{}:
		default:
		}
	}
	return position, err
}

// Tail finds what the stream already holds.
func (e *eventLog) Tail(ctx context.Context, after uint64) (map[string]uint64, uint64, error) {
	e.turn.Lock()
	defer e.turn.Unlock()
	b, life, _ := e.current()
	if life == "" {
		return nil, 0, ledger.ErrNotPublishing
	}
	seqs, position, err := b.Tail(ctx, after)
	if err == nil {
		e.mu.Lock()
		e.tailed = true
		e.mu.Unlock()
	}
	return seqs, position, err
}

// Incarnation names the life of the stream, "" while there is none. It waits for the first attempt to open
// one, so that a start does not look like an outage.
func (e *eventLog) Incarnation() string {
	<-e.tried
	_, life, _ := e.current()
	return life
}

// BatchMax is how many events fit one batch.
func (e *eventLog) BatchMax() int { return bus.BatchMax }

// run opens the stream, mends it when it fails, and closes it when ctx ends. It never gives up and never
// stops the box: without a stream the events wait in the journals.
func (e *eventLog) run(ctx context.Context) error {
	tried := sync.OnceFunc(func() { close(e.tried) })
	defer tried()
	pause := eventLogPause
	for ctx.Err() == nil {
		wait := eventLogPoll
		err := e.mend(ctx)
		tried()
		if err == nil {
			pause = eventLogPause
		} else if ctx.Err() == nil {
			e.log.Warn("event stream is out of service; events wait in the journals", "err", err, "again_in", pause)
			wait, pause = pause, min(2*pause, eventLogPauseMax)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-e.failed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return e.close()
}

// mend opens the stream if it is not, and puts a failed one right.
func (e *eventLog) mend(ctx context.Context) error {
	b, life, _ := e.current()
	if b != nil && b.Err() == nil {
		return nil
	}
	e.turn.Lock()
	defer e.turn.Unlock()
	e.set(b, "")
	former, err := e.takeLife()
	if err != nil {
		return err
	}
	if life == "" {
		life = former
	}
	if b == nil {
		if b, err = bus.Open(ctx, e.options); err != nil {
			return err
		}
		e.set(b, "")
		err = b.Err()
	} else {
		err = b.Reset(ctx)
	}
	if err != nil {
		return err
	}
	if b.Recreated() || life == "" {
		life = ulid.Make().String()
		e.log.Info("event stream begins; it is filled from the journals", "life", life)
	}
	if err := writePrivate(filepath.Join(e.options.Dir, lifeFile), life); err != nil {
		return err
	}
	e.set(b, life)
	return nil
}

// takeLife reads the stream's name and removes it until the stream is open: killed in between, nobody
// would know whether it was still the same. A name lost costs a look at the whole stream, no more.
func (e *eventLog) takeLife() (string, error) {
	file := filepath.Join(e.options.Dir, lifeFile)
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil {
		err = os.Remove(file)
	}
	if err == nil {
		err = syncFolder(e.options.Dir)
	}
	if err != nil {
		return "", fmt.Errorf("event stream: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

func (e *eventLog) close() error {
	e.turn.Lock()
	defer e.turn.Unlock()
	b, _, _ := e.current()
	e.set(nil, "")
	if b == nil {
		return nil
	}
	return b.Close()
}
