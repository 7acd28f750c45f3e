package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// leaseBatch jobs are leased, and completed, in one request.
const leaseBatch = 100

// leaseBody asks for them.
var leaseBody = fmt.Appendf(nil, `{"max":%d,"lease_ms":60000,"worker":"bench"}`, leaseBatch)

// work lets workers outside the server lease and complete l.count jobs, a batch at a time over as many connections as l says.
// done counts jobs, latencies are of a batch from the request for a lease to the answer to its completion.
func work(ctx context.Context, l load) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, drainMax)
	defer cancel()
	lines := make([]*line, l.connections)
	for i := range lines {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.address)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		lines[i] = newLine(conn, l, i)
	}
	// The end of ctx cuts the connections.
	unhook := context.AfterFunc(ctx, func() {
		for _, line := range lines {
			_ = line.conn.Close()
		}
	})
	defer unhook()
	quota := &tickets{left: l.count / leaseBatch}
	lease, complete := head(l, leasePath), head(l, completePath)
	r := &result{refused: map[int]int{}}
	cpu, began := clientCPU(), time.Now()
	var all errgroup.Group
	for _, line := range lines {
		all.Go(func() error {
			for quota.take() {
				sent := time.Now()
				if err := line.batch(lease, complete); err != nil {
					return err
				}
				line.latencies = append(line.latencies, time.Since(sent))
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	r.took, r.clientCPU = time.Since(began), clientCPU()-cpu
	for _, line := range lines {
		r.latencies = append(r.latencies, line.latencies...)
		r.answered = max(r.answered, line.answered)
	}
	slices.Sort(r.latencies)
	r.done = leaseBatch * len(r.latencies)
	return r, nil
}

// batch leases and completes a batch.
func (c *line) batch(lease, complete []byte) error {
	content, err := c.post(lease, leaseBody)
	if err != nil {
		return err
	}
	c.answered = len(content)
	if c.body, err = completion(c.body[:0], content); err != nil {
		return err
	}
	content, err = c.post(complete, c.body)
	if n := bytes.Count(content, []byte(`"completed"`)); err == nil && n != leaseBatch {
		err = fmt.Errorf("%d jobs of %d were completed: %.300s", n, leaseBatch, content)
	}
	return err
}

// post sends a body and returns what is answered 200.
func (c *line) post(head, body []byte) ([]byte, error) {
	c.buffer = append(c.buffer[:0], head...)
	c.buffer = fmt.Appendf(c.buffer, "Content-Length: %d\r\n\r\n", len(body))
	c.buffer = append(c.buffer, body...)
	if _, err := c.conn.Write(c.buffer); err != nil {
		return nil, err
	}
	status, content, err := c.answer(true)
	if err == nil && status != 200 {
		err = fmt.Errorf("answered %d: %.300s", status, content)
	}
	return content, err
}

// completion turns the answer to a lease into the request that completes its jobs. It looks for members by their names, which is
// right for the data of these jobs and costs little beside what is measured.
func completion(b, leased []byte) ([]byte, error) {
	b = append(b, `{"jobs":[`...)
	jobs := 0
	for ; ; jobs++ {
		id, rest, ok := member(leased, `{"id":"`)
		if !ok {
			break
		}
		token, rest, ok := member(rest, `"lease_token":"`)
		if !ok {
			return nil, fmt.Errorf("a leased job without a token: %.1000s", leased)
		}
		if jobs > 0 {
			b = append(b, ',')
		}
		b = append(append(append(append(append(b, `{"id":"`...), id...), `","lease_token":"`...), token...), `","result":{"ok":true}}`...)
		leased = rest
	}
	if jobs != leaseBatch {
		return nil, fmt.Errorf("%d jobs were leased, want %d", jobs, leaseBatch)
	}
	return append(b, "]}"...), nil
}

// member returns the string that follows the first opening, and what comes behind it.
func member(content []byte, opening string) (value, rest []byte, ok bool) {
	at := bytes.Index(content, []byte(opening))
	if at < 0 {
		return nil, nil, false
	}
	value, rest, ok = bytes.Cut(content[at+len(opening):], []byte(`"`))
	return value, rest, ok
}
