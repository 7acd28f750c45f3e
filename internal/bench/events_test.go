package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// echo is a server of events: what is told comes on every stream, except the one event that it loses.
func echo(t *testing.T, lose int64) (*server, *atomic.Int64) {
	t.Helper()
	told := &atomic.Int64{}
	events := make(chan string, 1<<16)
	h := http.NewServeMux()
	h.HandleFunc("POST /api/v1/events", func(w http.ResponseWriter, r *http.Request) {
		n := told.Add(1)
		id := fmt.Sprint("evt_", n)
		if n != lose {
			events <- id
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"id":%q}`, id)
	})
	h.HandleFunc("GET /api/v1/events/stream", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case id := <-events:
				if id == "end" {
					return
				}
				fmt.Fprintf(w, "id: x\ndata: {\"specversion\":\"1.0\",\"id\":%q}\n\n", id)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &server{address: strings.TrimPrefix(s.URL, "http://"), key: "k", stop: func() { events <- "end" }}, told
}

func TestEventsAreToldAndHeard(t *testing.T) {
	s, count := echo(t, 0)
	e, err := listen(t.Context(), s, s.key)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	all, err := tellEvents(t.Context(), s, 500, 200*time.Millisecond)
	if err != nil || len(all) == 0 || int64(len(all)) != count.Load() {
		t.Fatalf("%d told of %d, %v", len(all), count.Load(), err)
	}
	for _, one := range all {
		at, err := e.arrival(t.Context(), one.id)
		if err != nil || at.Before(one.asked) {
			t.Fatalf("%s arrived %v after it was asked for, %v", one.id, at.Sub(one.asked), err)
		}
	}
}

// An event that never comes is an error, not a latency.
func TestLostEventIsNoticed(t *testing.T) {
	s, _ := echo(t, 1)
	e, err := listen(t.Context(), s, s.key)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	all, err := tellEvents(t.Context(), s, 500, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	for _, one := range all {
		if _, err := e.arrival(t.Context(), one.id); err != nil {
			return
		}
	}
	t.Error("the lost event was heard")
}

func TestBarePublishing(t *testing.T) {
	rate, err := publishBare(t.Context(), filepath.Join(t.TempDir(), "bus"), 1500)
	if err != nil || rate <= 0 {
		t.Fatal(rate, err)
	}
}
