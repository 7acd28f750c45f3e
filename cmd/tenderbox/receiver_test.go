package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tenderbox/internal/blackbox"
)

// receiver takes webhooks as somebody would who has read the specification of Standard Webhooks and not our code.
type receiver struct {
	server *httptest.Server

	mu      sync.Mutex // guards what follows
	secret  string
	answers []string // to the next requests: a status, cut or hang; then 204
	seen    []seenHook
	held    int     // requests that hang
	wrong   []error // with requests that came
}

// seenHook is a request that came, and was signed.
type seenHook struct {
	id, what string // "TYPE SUBJECT"
	body     []byte
	taken    bool
}

const (
	clockMay  = 5 * time.Minute // what the specification grants a sender's clock
	hookBytes = 1 << 20
)

func newReceiver() *receiver {
	r := &receiver{}
	r.server = httptest.NewServer(r)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	hook, err := r.verify(q)
	r.mu.Lock()
	answer := "204"
	if err != nil {
		r.wrong = append(r.wrong, err)
		answer = "400"
	} else {
		if len(r.answers) > 0 {
			answer, r.answers = r.answers[0], r.answers[1:]
		}
		hook.taken = strings.HasPrefix(answer, "2")
		r.seen = append(r.seen, hook)
		if answer == "hang" {
			r.held++
		}
	}
	r.mu.Unlock()
	switch answer {
	case "hang":
		<-q.Context().Done()
		fallthrough
	case "cut":
		panic(http.ErrAbortHandler)
	}
	status, _ := strconv.Atoi(answer) // tell has read it
	w.WriteHeader(status)
}

// verify reads a request and checks what it says of itself.
func (r *receiver) verify(q *http.Request) (h seenHook, err error) {
	if h.body, err = io.ReadAll(io.LimitReader(q.Body, hookBytes)); err != nil {
		return h, err
	}
	h.id = q.Header.Get("webhook-id")
	stamp := q.Header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > clockMay {
		return h, fmt.Errorf("webhook-timestamp %q", stamp)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.secret, "whsec_"))
	if err != nil || len(key) == 0 {
		return h, fmt.Errorf("a request came, and there is no secret: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", h.id, stamp, h.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if signatures := strings.Fields(q.Header.Get("webhook-signature")); !slices.Contains(signatures, want) {
		return h, fmt.Errorf("webhook-signature %q is not ours", signatures)
	}
	var event struct {
		SpecVersion, ID, Type, Subject, Source string
	}
	if err := json.Unmarshal(h.body, &event); err != nil {
		return h, err
	}
	if event.ID != h.id || event.SpecVersion != "1.0" || !strings.HasPrefix(event.Source, "/tenderbox/") || q.Header.Get("Content-Type") != "application/json" || q.Method != http.MethodPost {
		return h, fmt.Errorf("%s %v with webhook-id %s", q.Method, event, h.id)
	}
	h.what = strings.TrimSpace(event.Type + " " + event.Subject)
	for _, before := range r.seen {
		if before.id == h.id && !bytes.Equal(before.body, h.body) {
			return h, fmt.Errorf("%s came with another body", h.id)
		}
	}
	return h, nil
}

func (r *receiver) trusts(secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secret = secret
}

// tell says what to answer to the next requests.
func (r *receiver) tell(answers []string) error {
	for _, a := range answers {
		if n, err := strconv.Atoi(a); a != "cut" && a != "hang" && (err != nil || n < 200 || n > 599) {
			return fmt.Errorf("%q is no answer", a)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, answers...)
	return nil
}

// wait waits until seen says yes. what is asked for is told if it does not.
func (r *receiver) wait(what string, meanwhile func(context.Context) error, seen func() bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := blackbox.Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		if err := meanwhile(ctx); err != nil {
			return false, err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return seen(), errors.Join(r.wrong...)
	})
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		var came []string
		for _, h := range r.seen {
			came = append(came, fmt.Sprintf("%s (taken: %v)", h.what, h.taken))
		}
		return fmt.Errorf("%s: %w; there came %q", what, err, came)
	}
	return nil
}

// heard waits until these events were taken, and holds that no other came. One that came twice under one id is one.
func (r *receiver) heard(want []string) error {
	var taken []string
	err := r.wait("heard", func(context.Context) error { return nil }, func() bool {
		taken = nil
		var ids []string
		for _, h := range r.seen {
			if h.taken && !slices.Contains(ids, h.id) {
				ids, taken = append(ids, h.id), append(taken, h.what)
			}
		}
		return len(taken) >= len(want)
	})
	if err != nil {
		return err
	}
	slices.Sort(taken)
	if want = slices.Sorted(slices.Values(want)); !slices.Equal(taken, want) {
		return fmt.Errorf("took %q, want %q", taken, want)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.seen {
		if !slices.Contains(want, h.what) {
			return fmt.Errorf("%s came, too", h.what)
		}
	}
	return nil
}

// receiver finds one by its name.
func (s *stage) receiver(name string) (*receiver, error) {
	if r := s.receivers[name]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("there is no receiver %s", name)
}

// attempts waits until so many attempts to tell of an event were made, and makes each due that waits for its time.
func (s *stage) attempts(name, what, count string) error {
	r, err := s.receiver(name)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	b, err := s.as(operatorTokenFile)
	if err != nil {
		return err
	}
	made := func() (m int) {
		for _, h := range r.seen {
			if h.what == what {
				m++
			}
		}
		return m
	}
	err = r.wait(fmt.Sprintf("%d attempts of %s", n, what), func(ctx context.Context) error { return promoteAll(ctx, b, "webhooks") }, func() bool { return made() >= n })
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := made(); m != n {
		return fmt.Errorf("%d attempts of %s, want %d", m, what, n)
	}
	return nil
}

// promoteAll makes the first tenant's jobs due that are put off at this moment.
func promoteAll(ctx context.Context, b *box, queue string) error {
	var page struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	jobsOf, tenant := queuesPath+"/"+queue+"/jobs", func() http.Header { return http.Header{"X-Tenant-Id": {"default"}} }
	if err := b.send(ctx, http.MethodGet, jobsOf+"?state=delayed", tenant(), nil, &page); err != nil {
		return err
	}
	for _, j := range page.Data {
		err := b.send(ctx, http.MethodPost, jobsOf+"/"+url.PathEscape(j.ID)+"/promote", tenant(), nil, nil)
		if err != nil && !strings.Contains(err.Error(), "[job_state]") { // its time has come by itself
			return err
		}
	}
	return nil
}
