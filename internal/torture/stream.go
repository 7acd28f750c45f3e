package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	// streamName is the event stream's name within bus/.
	streamName = "EVENTS"
	// streamPause is how long a box runs again that had not told all of its events when it was stopped.
	streamPause = 500 * time.Millisecond
	// streamAnswer bounds the wait for the next event of a stream that was said to hold it.
	streamAnswer = 10 * time.Second
)

// Event is the part of a CloudEvent that the judge looks at.
type Event struct {
	ID       string `json:"id"`
	Tenant   string `json:"tenant"`
	Type     string `json:"type"`
	Subject  string `json:"subject"`
	Sequence string `json:"sequence"`
	On       string `json:"on,omitempty"` // subject that the stream has it under
}

// events lists all of a tenant's events, as the journals have them.
func (k *keeper) events(ctx context.Context, tenant string) ([]Event, error) {
	var all []Event
	for cursor := ""; ; {
		var page struct {
			Data       []Event `json:"data"`
			HasMore    bool    `json:"has_more"`
			NextCursor string  `json:"next_cursor"`
		}
		query := url.Values{"limit": {"100"}}
		if cursor != "" {
			query.Set("after", cursor)
		}
		if err := k.get(ctx, tenant, "/api/v1/events?"+query.Encode(), &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if !page.HasMore {
			return all, nil
		}
		cursor = page.NextCursor
	}
}

// announced reads the journals, and then the event stream of the stopped box. As long as the stream
// lacks something, or a user a mail, the box is given time for it.
func (r *round) announced(ctx context.Context) error {
	if !r.Events {
		return nil
	}
	journal := map[string][]Event{}
	for tenant := range r.keys {
		var err error
		if journal[tenant], err = r.box.events(ctx, tenant); err != nil {
			return err
		}
	}
	if err := r.inspect(ctx); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	for {
		if err := r.box.stop(ctx); err != nil {
			r.history.problem("stop", err.Error())
		}
		stream, err := readStream(filepath.Join(r.box.options.Data, "bus"), filepath.Join(r.Dir, "stream"))
		r.history.announce(journal, stream)
		to, mailErr := mailed(r.box.options.Data)
		err = errors.Join(err, mailErr)
		lost := r.tally.queuesLost.Load() > 0
		without := r.history.mailed(to, lost)
		if err := r.box.start(ctx); err != nil {
			return err
		}
		if err == nil && len(untold(journal, stream)) == 0 && (without == 0 || lost) {
			return nil
		}
		if pause(patience, streamPause) == nil {
			continue
		}
		if err != nil {
			r.history.problem("event stream or mails cannot be read", err.Error())
		}
		return ctx.Err()
	}
}

// untold are the events that journals have and the stream has not.
func untold(journal map[string][]Event, stream []Event) []Event {
	told := map[string]bool{}
	for _, e := range stream {
		told[e.ID] = true
	}
	var missing []Event
	for _, tenant := range sorted(journal) {
		for _, e := range journal[tenant] {
			if !told[e.ID] {
				missing = append(missing, e)
			}
		}
	}
	return missing
}

// readStream reads all events of a stopped box's stream, in a copy of its folder: the server that reads it may write there. No folder is an empty stream.
func readStream(dir, scratch string) (events []Event, err error) {
	if err := os.RemoveAll(scratch); err != nil {
		return nil, err
	}
	if err := os.CopyFS(scratch, os.DirFS(dir)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	srv, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true, JetStream: true, DisableJetStreamBanner: true,
		StoreDir: scratch, JetStreamMaxMemory: 1 << 20, JetStreamMaxStore: math.MaxInt64})
	if err != nil {
		return nil, err
	}
	srv.Start()
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		return nil, err
	}
	info, err := js.StreamInfo(streamName)
	if err != nil {
		return nil, err
	}
	all, err := js.SubscribeSync("", nats.OrderedConsumer(), nats.BindStream(streamName))
	if err != nil {
		return nil, err
	}
	for range info.State.Msgs {
		m, err := all.NextMsg(streamAnswer)
		if err != nil {
			return nil, fmt.Errorf("event %d of %d: %w", len(events)+1, info.State.Msgs, err)
		}
		e := Event{On: m.Subject}
		if err := json.Unmarshal(m.Data, &e); err != nil {
			return nil, fmt.Errorf("event %d of %d: %w", len(events)+1, info.State.Msgs, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// events looks at the stream: it has each event of the journals, under its tenant's name, those of one
// journal (and so of a user and of a record) in their order, and no other.
func (j *judgement) events() {
	for _, e := range untold(j.e.Journal, j.e.Stream) {
		j.found(Untold, "%s: %s %s of %s, %s", e.Tenant, e.ID, e.Type, e.Subject, e.Sequence)
	}
	kept, end := map[string]Event{}, map[string]string{} // by id; the last sequence of each journal
	for _, events := range j.e.Journal {
		for _, e := range events {
			kept[e.ID] = e
			end[journalOf(e)] = max(end[journalOf(e)], e.Sequence)
		}
	}
	seen, last := map[string]bool{}, map[string]Event{}
	for _, e := range j.e.Stream {
		same, journalled := kept[e.ID]
		same.On = "evt." + e.Tenant + "." + e.Type
		if _, asked := j.e.Journal[e.Tenant]; !asked {
			continue // of a tenant that the clerk made
		}
		switch {
		case !journalled && e.Sequence > end[journalOf(e)]: // arose after the journals were read
		case !journalled, e != same:
			j.found(Invented, "%s on %s: %s %s of %s, %s", e.ID, e.On, e.Tenant, e.Type, e.Subject, e.Sequence)
		}
		if seen[e.ID] {
			continue // at least once
		}
		seen[e.ID] = true
		if before := last[journalOf(e)]; e.Sequence < before.Sequence {
			j.found(Disordered, "%s of %s (%s) is told behind %s of %s (%s)", e.Type, e.Subject, e.Sequence, before.Type, before.Subject, before.Sequence)
		}
		last[journalOf(e)] = e
	}
}

// journalOf is the part of an event's sequence that names its journal: epoch and shard.
func journalOf(e Event) string { return e.Sequence[:strings.LastIndexByte(e.Sequence, '-')+1] }
