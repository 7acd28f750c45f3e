package main

import (
	"bufio"
	"bytes"
	"cmp"

	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// paymentPath is what both servers answer.
	paymentPath = "/api/v1/payments"
	// answerMax bounds one answer; a payment has some 600 bytes, a bulk of 1000 jobs 800 times as many.
	answerMax = 4 << 20
	// graceMax bounds each wait for something that must happen.
	graceMax = 60 * time.Second
	// usersMax spreads payments over that many users, and by them over the shards.
	usersMax = 1000
)

// load is what is asked of a server, by how many connections at once.
type load struct {
	address     string // host:port
	key         string // API key
	run         string // makes idempotency keys unique
	connections int
	want        wanted        // what is asked for; zero: the plain payment
	duration    time.Duration // 0: until count
	count       int           // requests in all; 0: until duration
	every       time.Duration // between the requests of a connection, which take their time from when they are due; 0: each follows an answer
	standard    bool          // asked by net/http's client; else by one that costs as little as it can
}

// wanted is a request that is to be answered 201, or 200 where that is what is said.
type wanted struct {
	path   string
	body   string
	sign   string // what the answer has in it
	keyed  bool   // each request has an Idempotency-Key of its own
	waits  bool   // the answer is to tell the outcome
	status int    // 0: 201
	every  bool   // each answer has the sign, not only a connection's first
}

// payment is one of payments.
func payment(kind string) wanted {
	return wanted{path: paymentPath, body: payments[kind], sign: `"pending"`, keyed: true}
}

// result is what a load met.
type result struct {
	took      time.Duration
	done      int             // answered 201
	latencies []time.Duration // of those, sorted
	refused   map[int]int     // other answers by status
	asked     int             // bytes of one body
	answered  int             // bytes of one answer's body
	clientCPU time.Duration
}

func (r *result) rate() float64 { return float64(r.done) / r.took.Seconds() }

func (r *result) quantile(q float64) time.Duration {
	if len(r.latencies) == 0 {
		return 0
	}
	return r.latencies[min(int(q*float64(len(r.latencies))), len(r.latencies)-1)]
}

// drive opens the connections, lets all send at once, and returns what came of it. Only a broken connection or an
// answer that is no payment is an error: a refusal is counted.
func drive(ctx context.Context, l load) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, l.duration+graceMax)
	defer cancel()
	lines := make([]*line, l.connections)
	standard := newStandardClient(l.connections)
	defer standard.CloseIdleConnections()
	for i := range lines {
		if l.standard {
			lines[i] = newLine(nil, l, i)
			lines[i].carryBy(ctx, standard, l)
			continue
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.address)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			if err := conn.SetDeadline(deadline); err != nil {
				return nil, err
			}
		}
		lines[i] = newLine(conn, l, i)
	}
	// An early end of ctx cuts the connections.
	unhook := context.AfterFunc(ctx, func() {
		for _, line := range lines {
			if line.conn != nil {
				_ = line.conn.Close()
			}
		}
	})
	defer unhook()

	var quota *tickets
	if l.count > 0 {
		quota = &tickets{left: l.count}
	}
	cpu, began := clientCPU(), time.Now()
	var all errgroup.Group
	for _, line := range lines {
		all.Go(func() error { return line.ask(began, l.duration, quota) })
	}
	if err := all.Wait(); err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	r := &result{took: time.Since(began), refused: map[int]int{}, clientCPU: clientCPU() - cpu}
	for _, line := range lines {
		r.done += len(line.latencies)
		r.latencies = append(r.latencies, line.latencies...)
		r.asked, r.answered = len(line.body), max(r.answered, line.answered)
		for status, n := range line.refused {
			r.refused[status] += n
		}
	}
	slices.Sort(r.latencies)
	if r.done == 0 {
		return nil, fmt.Errorf("%s took nothing; its answers by status: %v", l.address, r.refused)
	}
	return r, nil
}

// tickets share a number of requests among connections.
type tickets struct {
	mu   sync.Mutex // guards left
	left int
}

func (t *tickets) take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left == 0 {
		return false
	}
	t.left--
	return true
}

// line asks one thing after the other, on a connection of its own: prepared bytes out, as little as possible parsed of what comes in; or by another client.
type line struct {
	carry     func(n int, look bool) (status int, content []byte, err error) // the nth request, and its answer's body if that is to be looked at
	conn      net.Conn                                                       // nil: carried otherwise
	in        *bufio.Reader
	path      string
	head      []byte // of a request's header, up to what is not the same each time
	tail      []byte // of its header, after the idempotency key
	body      []byte
	userAt    int    // where the digits of the user stand in body
	prefix    string // of idempotency keys; "": none are sent
	sign      []byte
	signed    bool          // every answer
	wanted    int           // status
	due       time.Duration // of the first request, where they are spaced
	every     time.Duration
	buffer    []byte
	latencies []time.Duration
	refused   map[int]int
	answered  int
}

const userDigits = 6

// payments are what can be asked for: the one that a first client sends, and one with all that the box keeps beside it, which
// costs it a further row and a further index.
var payments = map[string]string{
	"plain": `{"amount":1999,"currency":"usd","source":"tok_visa"}`,
	"rich":  `{"amount":1999,"currency":"usd","source":"tok_visa","user_id":"user-000000","description":"Table 7, two coffees","metadata":{"till":"3","receipt":"2030-01-02/1234"}}`,
}

func newLine(conn net.Conn, l load, i int) *line {
	want := l.want
	if want.path == "" {
		want = payment("plain")
	}
	c := &line{
		conn: conn, in: bufio.NewReaderSize(conn, readBuffer), head: head(l, want.path), body: []byte(want.body), sign: []byte(want.sign), refused: map[int]int{},
	}
	c.carry, c.path = c.carryRaw, want.path
	c.signed, c.wanted, c.every = want.every, cmp.Or(want.status, 201), l.every
	c.due = l.every * time.Duration(i) / time.Duration(max(l.connections, 1))
	if want.waits {
		c.head = append(c.head, "Prefer: wait=30\r\n"...)
	}
	c.tail = fmt.Appendf(nil, "Content-Length: %d\r\n\r\n", len(c.body))
	c.userAt = bytes.Index(c.body, []byte("000000"))
	if want.keyed {
		c.prefix = fmt.Sprintf("%s-%d-", l.run, i)
	}
	return c
}

// readBuffer is that of a connection.
const readBuffer = 16 << 10

// head is what requests to a path begin with.
func head(l load, path string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n", path, l.address, l.key)
}

// ask sends request after request until the time is over or no ticket is left.
func (c *line) ask(began time.Time, duration time.Duration, quota *tickets) error {
	for n := 0; ; n++ {
		sent := time.Now()
		if c.every > 0 {
			// What comes late because the answer before it did has waited all the same.
			sent = began.Add(c.due + time.Duration(n)*c.every)
			rest := time.NewTimer(time.Until(sent))
			<-rest.C
		}
		if quota == nil && sent.Sub(began) >= duration || quota != nil && !quota.take() {
			return nil
		}
		status, err := c.exchange(n)
		if err != nil {
			return err
		}
		if status != c.wanted {
			c.refused[status]++
			continue
		}
		c.latencies = append(c.latencies, time.Since(sent))
	}
}

// exchange sends the nth request and reads its answer.
func (c *line) exchange(n int) (status int, err error) {
	user := n % usersMax
	for i := userDigits - 1; i >= 0 && c.userAt >= 0; i-- {
		c.body[c.userAt+i] = byte('0' + user%10)
		user /= 10
	}
	look := n == 0 || c.signed
	status, content, err := c.carry(n, look)
	if err == nil && look && status == c.wanted && !bytes.Contains(content, c.sign) {
		err = fmt.Errorf("the answer has no %s in it: %.300s", c.sign, content)
	}
	return status, err
}

func (c *line) carryRaw(n int, look bool) (status int, content []byte, err error) {
	c.buffer = append(c.buffer[:0], c.head...)
	if c.prefix != "" {
		c.buffer = append(append(c.buffer, "Idempotency-Key: "...), c.prefix...)
		c.buffer = append(strconv.AppendInt(c.buffer, int64(n), 10), "\r\n"...)
	}
	c.buffer = append(append(c.buffer, c.tail...), c.body...)
	if _, err := c.conn.Write(c.buffer); err != nil {
		return 0, nil, err
	}
	return c.answer(look)
}

// answer reads one answer, and returns its body if that is to be looked at.
func (c *line) answer(look bool) (status int, content []byte, err error) {
	first, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(first) < 12 || !bytes.HasPrefix(first, []byte("HTTP/1.1 ")) {
		return 0, nil, fmt.Errorf("no HTTP answer: %q", first)
	}
	if status, err = strconv.Atoi(string(first[9:12])); err != nil {
		return 0, nil, err
	}
	length, chunked := 0, false
	for {
		header, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		if len(header) <= 2 {
			break
		}
		if value, ok := field(header, "Content-Length:"); ok {
			if length, err = strconv.Atoi(value); err != nil || length > answerMax {
				return 0, nil, fmt.Errorf("content length %q", value)
			}
		} else if value, ok := field(header, "Transfer-Encoding:"); ok {
			chunked = value == "chunked"
		}
	}
	switch {
	case chunked:
		if content, err = io.ReadAll(io.LimitReader(httputil.NewChunkedReader(c.in), answerMax)); err != nil {
			return 0, nil, err
		}
		length = len(content)
		if _, err = c.in.Discard(2); err != nil { // the empty trailer
			return 0, nil, err
		}
	case look:
		content = make([]byte, length)
		if _, err = io.ReadFull(c.in, content); err != nil {
			return 0, nil, err
		}
	default:
		if _, err = c.in.Discard(length); err != nil {
			return 0, nil, err
		}
	}
	if status == c.wanted {
		c.answered = length
	}
	return status, content, nil
}

// field returns a header line's value if it has that name, colon included.
func field(header []byte, name string) (string, bool) {
	if len(header) < len(name) || !bytes.EqualFold(header[:len(name)], []byte(name)) {
		return "", false
	}
	return string(bytes.TrimSpace(header[len(name):])), true
}

// clientCPU is what this process has used so far.
func clientCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0 // it has no other error than a wrong argument
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
