package bus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sourcegraph/conc/panics"
)

const (
	// dialTimeout bounds the greeting between two goroutines of one process.
	dialTimeout = 5 * time.Second

	// controlLineMax is the longest protocol line that is understood; INFO is the longest, with 600 bytes.
	controlLineMax = 16 << 10

	// headerStart opens every header block.
	headerStart = "NATS/1.0"

	// noResponders is the status of a request that nobody listens to: JetStream is off.
	noResponders = 503
)

var (
	errNoResponders = errors.New("nobody answers")
	errMending      = fmt.Errorf("%w: it is being mended", ErrDown)
)

// wire is an in-process connection to the server that speaks its client protocol
// (https://docs.nats.io/reference/reference-protocols/nats-protocol) directly: a batch
// becomes one buffer and one write, which saves a quarter of the CPU that a published
// message costs through nats.go. It knows requests and their answers, and no more;
// subscriptions are left to nats.go.
type wire struct {
	conn  net.Conn
	r     *bufio.Reader
	inbox string // answers come to inbox + "." + number
	dead  *onceErr
	pings chan struct{}
	done  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	next    uint64
	waiting map[uint64]chan<- frame
}

// frame is an answer: its status (0 for none), headers and payload.
type frame struct {
	status int
	header []byte
	data   []byte
}

// dial connects to the server and returns when both sides have understood each other.
func dial(srv *server.Server, secret string, log *slog.Logger) (*wire, error) {
	conn, err := srv.InProcessConn()
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, r: bufio.NewReaderSize(conn, controlLineMax), inbox: "_INBOX." + rand.Text(),
		dead: newOnceErr(), pings: make(chan struct{}, 1), waiting: map[uint64]chan<- frame{}}
	if err := w.greet(secret); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to the embedded server: %w", err), conn.Close())
	}
	for _, loop := range []func(){w.read, w.pong} {
		w.done.Go(func() {
			if err := panics.Try(loop).AsError(); err != nil {
				log.Error("panic in the event bus's connection", "err", err)
				w.fail(fmt.Errorf("%w: %w", ErrDown, err))
			}
		})
	}
	return w, nil
}

func (w *wire) greet(secret string) error {
	if err := w.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	if line, err := w.line(); err != nil {
		return err
	} else if !bytes.HasPrefix(line, []byte("INFO ")) {
		return fmt.Errorf("unexpected greeting %q", line)
	}
	hello, err := json.Marshal(map[string]any{"user": boxUser, "pass": secret, "name": "publisher", "lang": "go",
		"verbose": false, "pedantic": false, "echo": false, "headers": true, "no_responders": true, "protocol": 1})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w.conn, "CONNECT %s\r\nSUB %s.* 1\r\nPING\r\n", hello, w.inbox); err != nil {
		return err
	}
	for {
		line, err := w.line()
		switch {
		case err != nil:
			return err
		case bytes.HasPrefix(line, []byte("-ERR")):
			return fmt.Errorf("refused: %s", line[len("-ERR"):])
		case bytes.Equal(line, []byte("PONG")):
			return w.conn.SetDeadline(time.Time{})
		}
	}
}

// expect reserves an answer subject; room is how many answers may come to it before
// they are read, more are dropped. The caller ends it with forget.
func (w *wire) expect(room int) (id uint64, reply string, answers <-chan frame) {
	ch := make(chan frame, room)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	w.waiting[w.next] = ch
	return w.next, w.inbox + "." + strconv.FormatUint(w.next, 10), ch
}

func (w *wire) forget(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, id)
}

// write sends protocol text, whole or not at all: a pipe keeps writes apart.
func (w *wire) write(p []byte) error {
	if _, err := w.conn.Write(p); err != nil {
		w.fail(fmt.Errorf("%w: writing to the embedded server: %w", ErrDown, err))
		return w.dead.err
	}
	return nil
}

// request asks and waits for one answer.
func (w *wire) request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	id, reply, answers := w.expect(1)
	defer w.forget(id)
	if err := w.write(appendPub(nil, subject, reply, data)); err != nil {
		return nil, err
	}
	select {
	case f := <-answers:
		if f.status == noResponders {
			return nil, errNoResponders
		}
		return f.data, nil
	case <-w.dead.done:
		return nil, w.dead.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func appendPub(dst []byte, subject, reply string, data []byte) []byte {
	dst = append(append(dst, "PUB "...), subject...)
	dst = append(append(dst, ' '), reply...)
	dst = strconv.AppendInt(append(dst, ' '), int64(len(data)), 10)
	dst = append(append(dst, "\r\n"...), data...)
	return append(dst, "\r\n"...)
}

// fail makes everyone who waits for an answer give up. The reason is or wraps ErrDown,
// ErrFull or ErrClosed; the first one stays.
func (w *wire) fail(err error) { w.dead.set(err) }

func (w *wire) close() error {
	w.fail(errMending)
	err := w.conn.Close()
	w.done.Wait()
	return err
}

// read takes what the server sends until the connection ends. It never waits for
// anyone: the server may be waiting for it.
func (w *wire) read() {
	for {
		line, err := w.line()
		if err == nil {
			err = w.take(line)
		}
		if err != nil {
			w.fail(fmt.Errorf("%w: reading from the embedded server: %w", ErrDown, err))
			return
		}
	}
}

func (w *wire) take(line []byte) error {
	op, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(op) {
	case "MSG":
		return w.message(bytes.Fields(rest), false)
	case "HMSG":
		return w.message(bytes.Fields(rest), true)
	case "PING":
		select {
		case w.pings <- struct{}{}:
		default: // one is due already
		}
	case "-ERR":
		return fmt.Errorf("refused: %s", rest)
	}
	return nil // INFO, PONG, +OK
}

// message reads "subject sid [reply] [header bytes] total bytes" and what follows it.
func (w *wire) message(args [][]byte, headers bool) error {
	sizes := 1
	if headers {
		sizes = 2
	}
	if n := len(args) - sizes; n != 2 && n != 3 {
		return fmt.Errorf("message line with %d words", len(args))
	}
	total, err := strconv.Atoi(string(args[len(args)-1]))
	if err != nil {
		return err
	}
	head := 0
	if headers {
		if head, err = strconv.Atoi(string(args[len(args)-2])); err != nil {
			return err
		}
	}
	if head < 0 || total < head || total > 2*payloadMax {
		return fmt.Errorf("message of %d bytes, %d of them header", total, head)
	}
	var id uint64
	if tail, ok := bytes.CutPrefix(args[0], []byte(w.inbox+".")); ok {
		id, _ = strconv.ParseUint(string(tail), 10, 64) // 0 is nobody's
	}
	body := make([]byte, total+len("\r\n"))
	if _, err := io.ReadFull(w.r, body); err != nil {
		return err
	}
	f := frame{header: body[:head], data: body[head:total]}
	if s, ok := bytes.CutPrefix(f.header, []byte(headerStart+" ")); ok && len(s) >= 3 {
		f.status, _ = strconv.Atoi(string(s[:3])) // no number is no status
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.waiting[id] <- f:
	default: // nobody waits any more
	}
	return nil
}

// pong answers the server's pings, from a goroutine of its own: a write may have to
// wait for a batch, and the reader must not.
func (w *wire) pong() {
	for {
		select {
		case <-w.pings:
			if w.write([]byte("PONG\r\n")) != nil {
				return
			}
		case <-w.dead.done:
			return
		}
	}
}

func (w *wire) line() ([]byte, error) {
	line, err := w.r.ReadSlice('\n')
	return bytes.TrimRight(line, "\r\n"), err
}

// headerValue finds a header in a block as the server sends it; "" when there is none.
func headerValue(header []byte, name string) string {
	for line := range bytes.SplitSeq(header, []byte("\r\n")) {
		if k, v, ok := bytes.Cut(line, []byte(":")); ok && string(k) == name {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}
