package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
)

// newStandardClient is net/http's, as apps in Go have it, with as many connections as are kept busy.
func newStandardClient(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true}}
}

// carryBy has the line's requests asked by client instead of on a connection of its own.
func (c *line) carryBy(ctx context.Context, client *http.Client, l load) {
	c.carry = func(n int, _ bool) (status int, content []byte, err error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.address+c.path, bytes.NewReader(c.body))
		if err != nil {
			return 0, nil, err
		}
		r.Header.Set("Authorization", "Bearer "+l.key)
		r.Header.Set("Content-Type", "application/json")
		if l.want.waits {
			r.Header.Set("Prefer", "wait=30")
		}
		if c.prefix != "" {
			r.Header.Set("Idempotency-Key", c.prefix+strconv.Itoa(n))
		}
		a, err := client.Do(r)
		if err != nil {
			return 0, nil, err
		}
		defer a.Body.Close()
		if content, err = io.ReadAll(io.LimitReader(a.Body, answerMax)); err == nil && a.StatusCode == c.wanted {
			c.answered = len(content)
		}
		return a.StatusCode, content, err
	}
}
