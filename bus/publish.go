package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// BatchMax is how many messages Publish takes: JetStream's batches hold 1000, one
	// below it leaves room for a marker.
	BatchMax = 999

	// batchBytesMax is where a batch of large events is split: everything in it is in
	// memory several times over until it is written.
	batchBytesMax = 8 << 20

	// publishTimeout is how long a commit may take. A dying card can hold an fsync for ten seconds.
	publishTimeout = 30 * time.Second

	// refusalsMax: a stream that refuses this many batches in a row for reasons that no
	// batch gives will refuse the next as well.
	refusalsMax = 3
)

// Message is an event and where it stands in the journals.
type Message struct {
	Event  Event
	Origin string // whose journal: "epoch/shard"
	Seq    uint64 // its number there
}

// MessageError is an ErrInvalid: the message at Index can never be published, nothing
// of the batch was. The caller passes over it, or it blocks those behind it for ever.
type MessageError struct {
	Index  int
	ID     string
	Reason string
}

func (e *MessageError) Error() string {
	return fmt.Sprintf("%v: number %d, id %q: %s", ErrInvalid, e.Index, e.ID, e.Reason)
}

// Unwrap answers ErrInvalid.
func (e *MessageError) Unwrap() error { return ErrInvalid }

// Publish writes up to BatchMax messages as one atomic batch and answers the stream
// sequence of the last. When it returns nil they are on disk, synced. Above 8 MiB of
// events it writes several batches one after the other.
//
// ErrDuplicate, ErrFull, ErrDown, ErrInvalid and ErrClosed mean that nothing was
// stored, or nothing of the batch at hand where it had to be split. ErrUnknown means
// that it may have been; it wraps its cause, which can be one of the others, so ask for
// it first. After any error the caller Resets the bus if Err has one, reads Tail and
// goes on from there. An end of ctx counts until the batch is sent; later it is
// ErrUnknown.
func (b *Bus) Publish(ctx context.Context, ms []Message) (streamSeq uint64, err error) {
	if len(ms) > BatchMax {
		return 0, fmt.Errorf("%w: %d in a batch of at most %d", ErrInvalid, len(ms), BatchMax)
	}
	b.publishing.Lock()
	defer b.publishing.Unlock()
	in, err := b.up()
	if err != nil {
		return 0, err
	}
	if err := b.enc.payloads(ms, b.o.Source); err != nil {
		return 0, err
	}
	err = b.checkFree()
	b.mu.Lock()
	b.full = err != nil
	streamSeq = b.last
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	for len(ms) > 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := b.enc.group(ms)
		if streamSeq, err = b.publishGroup(ctx, in, ms[:n]); err != nil {
			return 0, err
		}
		ms = ms[n:]
	}
	return streamSeq, nil
}

// ack is the stream's answer to a message or a batch.
type ack struct {
	Error     *server.ApiError `json:"error"`
	Sequence  uint64           `json:"seq"`
	Duplicate bool             `json:"duplicate"`
	Count     int              `json:"count"`
}

// publishGroup sends one batch and waits until it is on disk. Only its last message
// asks for an answer. Needs b.publishing.
func (b *Bus) publishGroup(ctx context.Context, in *instance, ms []Message) (uint64, error) {
	id, reply, answers := in.wire.expect(1)
	defer in.wire.forget(id)
	timeout := time.NewTimer(publishTimeout)
	defer timeout.Stop()

	unknown := func(cause error) (uint64, error) { return 0, fmt.Errorf("%w: %w", ErrUnknown, cause) }
	if err := in.wire.write(b.enc.batch(ms, reply)); err != nil {
		b.fail(in, err)
		return unknown(err)
	}
	var f frame
	select {
	case f = <-answers:
	case <-in.wire.dead.done:
		b.fail(in, in.wire.dead.err)
		return unknown(in.wire.dead.err)
	case <-ctx.Done():
		return unknown(context.Cause(ctx))
	case <-timeout.C:
		return unknown(fmt.Errorf("no answer within %v", publishTimeout))
	}

	var a ack
	if f.status == noResponders {
		// JetStream has shut itself down; the reason stands in the log.
		b.fail(in, fmt.Errorf("%w: JetStream is off", ErrDown))
		return 0, b.Err()
	}
	if err := json.Unmarshal(f.data, &a); err != nil {
		return unknown(fmt.Errorf("answer %q: %w", f.data, err))
	}
	switch {
	case a.Error != nil:
		return 0, b.refused(in, a.Error)
	case a.Duplicate:
		return 0, ErrDuplicate
	case len(ms) > 1 && a.Count != len(ms):
		return unknown(fmt.Errorf("%d of %d messages were stored", a.Count, len(ms)))
	case in.gone():
		// The server writes on into files that have no name any more.
		err := fmt.Errorf("%w: the folder of the event stream was deleted", ErrDown)
		b.fail(in, err)
		return unknown(err)
	}
	in.tries = 0
	if !in.proven {
		in.proven = true
		clearStarts(b.o.Dir)
	}
	b.mu.Lock()
	b.last = max(b.last, a.Sequence)
	b.mu.Unlock()
	return a.Sequence, nil
}

// refused makes an error of the stream's "no": nothing was stored.
func (b *Bus) refused(in *instance, api *server.ApiError) error {
	if isAPIError(api, server.JSAtomicPublishContainsDuplicateMessageErr) {
		return ErrDuplicate
	}
	if err := b.checkFree(); err != nil {
		return err
	}
	err := fmt.Errorf("%w: refused: %w", ErrDown, error(api))
	if isAPIError(api, server.JSInsufficientResourcesErr) || isAPIError(api, server.JSStorageResourcesExceededErr) {
		err = fmt.Errorf("%w: %w", ErrFull, error(api))
	}
	if in.tries++; in.tries >= refusalsMax || errors.Is(err, ErrFull) {
		b.fail(in, err)
	}
	return err
}
