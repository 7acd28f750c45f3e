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
	streamName    = "EVENTS"
	subjectPrefix = "evt."

	// duplicateWindow is how long the stream remembers ids. The relay resumes from the
	// tail and needs no memory at all; this catches a batch that is repeated at once,
	// without the 130 bytes an event that the default of two minutes costs for longer.
	duplicateWindow = 20 * time.Second

	// apiTimeout bounds a question to the stream: a recovering disk may be slow.
	apiTimeout = 10 * time.Second
)

// State is what the stream holds. An empty one has First = Last + 1.
type State struct {
	First, Last     uint64 // stream sequences
	Messages, Bytes uint64
}

func (b *Bus) streamConfig(first uint64) *server.StreamConfig {
	c := &server.StreamConfig{
		Name:               streamName,
		Subjects:           []string{subjectPrefix + ">"},
		Storage:            server.FileStorage,
		Retention:          server.LimitsPolicy,
		Discard:            server.DiscardOld,
		MaxConsumers:       -1,
		MaxMsgs:            -1,
		MaxMsgsPer:         -1,
		MaxMsgSize:         -1,
		MaxBytes:           b.o.MaxBytes,
		MaxAge:             b.o.MaxAge,
		Replicas:           1,
		Duplicates:         duplicateWindow,
		AllowAtomicPublish: true,
		AllowDirect:        true, // Tail reads by it
	}
	if c.MaxAge > 0 {
		c.Duplicates = min(c.Duplicates, c.MaxAge)
	}
	if first > 1 {
		c.FirstSeq = first
	}
	return c
}

// openStream checks the stream that the server found on disk, or makes one when there
// was nothing. Any error means that the folder is of no use.
func (b *Bus) openStream(ctx context.Context, w *wire, existed bool, first uint64) (last uint64, created bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err := streamInfo(ctx, w)
	switch {
	case isAPIError(err, server.JSStreamNotFoundErr) && !existed:
		if info, err = streamCall(ctx, w, "CREATE", b.streamConfig(first)); err != nil {
			return 0, false, fmt.Errorf("creating the stream: %w", err)
		}
		return info.State.LastSeq, true, nil
	case err != nil:
		// The server passes over a stream whose description it cannot read; a new one on
		// top of what is left would inherit the damage.
		return 0, false, fmt.Errorf("recovering the stream: %w", err)
	}
	s := info.State
	held := s.LastSeq + 1 - s.FirstSeq
	if s.LastSeq == 0 { // nothing was ever published; the server then says 0 for both
		held = 0
	}
	if s.Msgs != held {
		// Events leave at the front only, so a hole is damage.
		return 0, false, fmt.Errorf("%d events are missing between sequences %d and %d", held-s.Msgs, s.FirstSeq, s.LastSeq)
	}
	if lostFront(info) {
		return 0, false, fmt.Errorf("the events before sequence %d are missing", s.FirstSeq)
	}
	if s.LastSeq+1 < first {
		return 0, false, fmt.Errorf("the stream ends at sequence %d, which is older than %d", s.LastSeq, first)
	}
	want := b.streamConfig(info.Config.FirstSeq)
	have := info.Config
	if have.MaxBytes != want.MaxBytes || have.MaxAge != want.MaxAge || have.Duplicates != want.Duplicates || !have.AllowAtomicPublish || !have.AllowDirect {
		if info, err = streamCall(ctx, w, "UPDATE", want); err != nil {
			return 0, false, fmt.Errorf("changing the stream's limits: %w", err)
		}
	}
	return info.State.LastSeq, false, nil
}

// lostFront says whether events have gone from the front that no limit can have
// removed: a block that is missing or cut short leaves no other trace. After its limit was
// raised a stream may be taken for damaged once; that costs a refill, not an event.
func lostFront(info *server.StreamInfo) bool {
	s, c := info.State, info.Config
	if s.FirstSeq <= max(1, c.FirstSeq) || c.MaxAge > 0 {
		return false
	}
	return c.MaxBytes < 0 || int64(s.Bytes)+payloadMax+headerMax < c.MaxBytes
}

// State asks what the stream holds. While the bus is out of order it answers the last sequence known.
func (b *Bus) State() State {
	if in, err := b.up(); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
		defer cancel()
		if info, err := streamInfo(ctx, in.wire); err == nil {
			s := info.State
			return State{First: s.FirstSeq, Last: s.LastSeq, Messages: s.Msgs, Bytes: s.Bytes}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return State{First: b.last + 1, Last: b.last}
}

func streamInfo(ctx context.Context, w *wire) (*server.StreamInfo, error) {
	return streamCall(ctx, w, "INFO", nil)
}

// streamCall asks JetStream's API about EVENTS. Its CREATE, UPDATE and INFO answer alike.
func streamCall(ctx context.Context, w *wire, verb string, config *server.StreamConfig) (*server.StreamInfo, error) {
	var body []byte
	if config != nil {
		var err error
		if body, err = json.Marshal(config); err != nil {
			return nil, err
		}
	}
	data, err := w.request(ctx, "$JS.API.STREAM."+verb+"."+streamName, body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error *server.ApiError `json:"error"`
		server.StreamInfo
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("answer of the stream: %w", err)
	}
	if answer.Error != nil {
		return nil, answer.Error
	}
	return &answer.StreamInfo, nil
}

func isAPIError(err error, id server.ErrorIdentifier) bool {
	var api *server.ApiError
	return errors.As(err, &api) && api.ErrCode == uint16(id)
}
