package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"tenderbox/bus"
)

// tellers is how many connections tell events: enough for their answers, each a commit, not to hold up the rate.
const tellers = 64

// told is an event that was told.
type told struct {
	id              string
	asked, answered time.Time
}

// tellEvents tells events of an app's own at a rate, for d.
func tellEvents(ctx context.Context, s *server, perSecond int, d time.Duration) ([]told, error) {
	limit := rate.NewLimiter(rate.Limit(perSecond), 1)
	over := time.Now().Add(d)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: tellers}}
	defer client.CloseIdleConnections()
	var mu sync.Mutex // guards all
	var all []told
	g, ctx := errgroup.WithContext(ctx)
	for range tellers {
		g.Go(func() error {
			for {
				if err := limit.Wait(ctx); err != nil || time.Now().After(over) {
					return err
				}
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.address+"/api/v1/events", strings.NewReader(`{"type":"till.opened","data":{"till":3}}`))
				if err != nil {
					return err
				}
				t := told{asked: time.Now()}
				var e struct {
					ID string `json:"id"`
				}
				if err := ask(client, r, s.key, &e); err != nil {
					return err
				}
				t.id, t.answered = e.ID, time.Now()
				mu.Lock()
				all = append(all, t)
				mu.Unlock()
			}
		})
	}
	return all, g.Wait()
}

// ask sends a request with a body of JSON and decodes the answer.
func (s *server) ask(r *http.Request, key string, out any) error {
	return ask(http.DefaultClient, r, key, out)
}

func ask(c *http.Client, r *http.Request, key string, out any) error {
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	a, err := c.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	content, err := io.ReadAll(io.LimitReader(a.Body, answerMax))
	if err != nil {
		return err
	}
	if a.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %d %s", r.Method, r.URL.Path, a.StatusCode, content)
	}
	return json.Unmarshal(content, out)
}

// ear is a listener: it notes when each event arrived.
type ear struct {
	body io.Closer
	news chan struct{} // poked at each arrival

	mu  sync.Mutex // guards at and err
	at  map[string]time.Time
	err error
}

// listen opens a stream of a tenant's events, and returns when its headers are there.
func listen(ctx context.Context, s *server, key string) (*ear, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address+"/api/v1/events/stream", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	a, err := (&http.Transport{}).RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if a.StatusCode != http.StatusOK {
		a.Body.Close()
		return nil, fmt.Errorf("event stream: %s", a.Status)
	}
	e := &ear{body: a.Body, news: make(chan struct{}, 1), at: map[string]time.Time{}}
	go e.read(bufio.NewScanner(a.Body)) // ends with the body
	return e, nil
}

func (e *ear) read(lines *bufio.Scanner) {
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), `data: {"specversion":"1.0","id":"`)
		if !ok {
			continue
		}
		now := time.Now()
		id, _, _ := strings.Cut(data, `"`)
		e.note(func() { e.at[id] = now })
	}
	e.note(func() { e.err = errors.Join(errors.New("the event stream ended"), lines.Err()) })
}

// note changes what is known and pokes who waits for it.
func (e *ear) note(change func()) {
	e.mu.Lock()
	change()
	e.mu.Unlock()
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// arrival waits until an event is there and says when it came.
func (e *ear) arrival(ctx context.Context, id string) (time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, graceMax, fmt.Errorf("event %s was not heard", id))
	defer cancel()
	for {
		e.mu.Lock()
		at, ok := e.at[id]
		err := e.err
		e.mu.Unlock()
		if ok || err != nil {
			return at, err
		}
		select {
		case <-e.news:
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
}

func (e *ear) close() { _ = e.body.Close() }

// publishBare publishes as many messages as the relay would, prepared beforehand, to a stream in a folder of its own, and returns their
// rate. It is the event stream alone: no journals are read and no cursor is kept.
func publishBare(ctx context.Context, dir string, events int) (_ float64, err error) {
	b, err := bus.Open(ctx, bus.Options{Dir: dir, Source: "/tenderbox/bench"})
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := b.Close(); err == nil {
			err = cerr
		}
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	now := time.Now().UTC()
	data := json.RawMessage(`{"id":"pay_01J00000000000000000000000","object":"payment","amount":1999,"currency":"usd","status":"pending","upstream_id":null,"failure":null,"order_id":null,"user_id":null,"taken_offline":true,"created_at":"2026-11-25T12:00:00.123Z","settled_at":null}`)
	var took time.Duration
	for done := 0; done < events; {
		batch := make([]bus.Message, min(bus.BatchMax, events-done))
		for i := range batch {
			n := done + i
			batch[i] = bus.Message{Origin: "1/0", Seq: uint64(n + 1), Event: bus.Event{ID: fmt.Sprintf("evt_%026d", n), Tenant: "default", Type: "payment.created",
				Subject: "pay_01J00000000000000000000000", Time: now, RecordedTime: now, Sequence: fmt.Sprintf("00000001-0000-%016d", n), Data: data}}
		}
		began := time.Now()
		if _, err := b.Publish(ctx, batch); err != nil {
			return 0, err
		}
		took += time.Since(began)
		done += len(batch)
	}
	return float64(events) / took.Seconds(), nil
}
