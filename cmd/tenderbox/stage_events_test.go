package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// heardEvent is an event as it came.
type heardEvent struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Tenant string `json:"tenant"`
}

// hear reads so many events of the first tenant: those that are there by the list, the rest by the stream, from behind the last
// that was heard.
func (s *stage) hear(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.position == "" {
		page, err := s.events(ctx, b, "")
		if err != nil {
			return err
		}
		s.heard, s.position = page.Data, page.NextCursor
		if n -= len(page.Data); n < 0 {
			return fmt.Errorf("%d events more than expected", -n)
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/api/v1/events/stream", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+b.token)
	r.Header.Set("Last-Event-ID", s.position)
	a, err := (&http.Client{}).Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return fmt.Errorf("the event stream: %s", a.Status)
	}
	var e heardEvent
	lines := bufio.NewScanner(a.Body)
	for n > 0 && lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			s.position = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return err
			}
		case "":
			if e.ID != "" {
				s.heard = append(s.heard, e)
				n--
			}
			e = heardEvent{}
		}
	}
	if n > 0 {
		return fmt.Errorf("the stream ended %d events early: %w", n, lines.Err())
	}
	return nil
}

// eventPage is a page of the first tenant's events.
type eventPage struct {
	Data       []heardEvent `json:"data"`
	HasMore    bool         `json:"has_more"`
	NextCursor string       `json:"next_cursor"`
}

func (s *stage) events(ctx context.Context, b *box, after string) (page eventPage, err error) {
	return page, b.do(ctx, http.MethodGet, "/api/v1/events?limit=100&after="+after, nil, &page)
}

// heardAll compares what the stream told with the log: each event once, none missing.
func (s *stage) heardAll() error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	missing := map[string]string{}
	for after := ""; ; {
		page, err := s.events(context.Background(), b, after)
		if err != nil {
			return err
		}
		for _, e := range page.Data {
			missing[e.ID] = e.Type
		}
		if after = page.NextCursor; !page.HasMore {
			break
		}
	}
	logged := len(missing)
	for _, e := range s.heard {
		if missing[e.ID] != e.Type || e.Tenant != "default" {
			return fmt.Errorf("heard %s %s of %s, which the log does not have, or twice", e.Type, e.ID, e.Tenant)
		}
		delete(missing, e.ID)
	}
	if len(missing) > 0 || logged == 0 {
		return fmt.Errorf("%d of %d events were not heard", len(missing), logged)
	}
	return nil
}
