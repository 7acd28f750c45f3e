package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// tailMessages and tailBytes bound one question of Tail, and so the memory that it needs.
	tailMessages = 500
	tailBytes    = 1 << 20

	// Statuses of JetStream's direct reads.
	statusEnd      = 204 // the batch is complete
	statusNotFound = 404 // nothing there
)

// Tail reads the stream from behind sequence after to its end, which it answers as
// streamSeq, and says for each origin met the highest journal sequence. What Publish
// did not answer for is in it, if it was stored. A streamSeq below after means that the
// stream lost its end and is to be Reset.
func (b *Bus) Tail(ctx context.Context, after uint64) (last map[string]uint64, streamSeq uint64, err error) {
	in, err := b.up()
	if err != nil {
		return nil, 0, err
	}
	info, err := streamInfo(ctx, in.wire)
	if errors.Is(err, errNoResponders) {
		b.fail(in, fmt.Errorf("%w: JetStream is off", ErrDown))
		return nil, 0, b.Err()
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading the stream's end: %w", err)
	}
	b.mu.Lock()
	if b.in == in {
		b.last = max(b.last, info.State.LastSeq)
	}
	b.mu.Unlock()
	last = map[string]uint64{}
	streamSeq = info.State.LastSeq
	for next := max(after+1, info.State.FirstSeq); next <= streamSeq; {
		read, err := readPart(ctx, in.wire, next, last)
		if errors.Is(err, errGap) {
			// The server passes over what it cannot read. Only at the front may events be
			// gone, because a limit was reached meanwhile.
			if info, err = streamInfo(ctx, in.wire); err == nil && info.State.FirstSeq > next {
				next = info.State.FirstSeq
				continue
			}
			err := fmt.Errorf("%w: the event at sequence %d cannot be read", ErrDown, next)
			b.fail(in, err)
			return nil, 0, err
		}
		if err != nil {
			return nil, 0, fmt.Errorf("reading the stream from sequence %d: %w", next, err)
		}
		next = read + 1
	}
	return last, streamSeq, nil
}

// errGap: there is no event at the sequence asked for.
var errGap = errors.New("gap in the stream")

// readPart notes the origins of some messages from sequence next on and answers the
// sequence of the last one read. It stops before a gap, and says errGap when that comes first.
func readPart(ctx context.Context, w *wire, next uint64, last map[string]uint64) (read uint64, err error) {
	body, err := json.Marshal(server.JSApiMsgGetRequest{Seq: next, Batch: tailMessages, MaxBytes: tailBytes})
	if err != nil {
		return 0, err
	}
	id, reply, answers := w.expect(tailMessages + 1)
	defer w.forget(id)
	read = next - 1
	if err := w.write(appendPub(nil, "$JS.API.DIRECT.GET."+streamName, reply, body)); err != nil {
		return 0, err
	}
	for {
		var f frame
		select {
		case f = <-answers:
		case <-w.dead.done:
			return 0, w.dead.err
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		switch f.status {
		case 0:
		case statusEnd, statusNotFound:
			if read < next {
				return 0, errGap
			}
			return read, nil
		case noResponders:
			return 0, errNoResponders
		default:
			return 0, errors.New("status " + strconv.Itoa(f.status))
		}
		seq, err := strconv.ParseUint(headerValue(f.header, "Nats-Sequence"), 10, 64)
		if err != nil {
			return 0, err
		}
		if seq != read+1 {
			if read < next {
				return 0, errGap
			}
			return read, nil
		}
		read = seq
		if origin, seq, ok := parseOrigin(headerValue(f.header, headerOrigin)); ok {
			last[origin] = max(last[origin], seq)
		}
	}
}

func parseOrigin(s string) (origin string, seq uint64, ok bool) {
	origin, text, ok := strings.Cut(s, " ")
	if !ok {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(text, 10, 64)
	return origin, seq, err == nil
}
