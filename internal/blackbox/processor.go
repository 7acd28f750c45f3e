package blackbox

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sourcegraph/conc/panics"

	"tenderbox/upstream/simulator"
)

const (
	// ProcessorKey is the API key that the simulated processor wants.
	ProcessorKey = "sk_test_harness_not_a_secret"
	// sentBytesMax bounds what is read of a request; what the box sends is below 8 KiB.
	sentBytesMax = 64 << 10
	// listenInterval is how often a restored line tries to get its port back from a dial that happened to take it.
	listenInterval = 20 * time.Millisecond
)

// Processor is the simulated processor behind a line that can be cut. All methods may be called from any goroutine.
type Processor struct {
	*simulator.Simulator
	address string

	lineMu sync.Mutex // guards what follows; not held together with noteMu
	server *http.Server
	done   chan struct{} // closed when server has left
	cuts   int

	noteMu sync.Mutex // guards what follows
	posts  []Post
	sample []byte // the first post's body
	open   int
	peak   int
}

// Post is one POST that reached the processor, as the wire showed it.
type Post struct {
	At       time.Time
	Took     time.Duration
	Path     string
	Key      string // Idempotency-Key
	Payment  string // metadata[tenderbox_payment]; of a confirmation, which has none, what its key begins with
	Body     [sha256.Size]byte
	Status   int // of the answer; 0: the connection was dropped without one
	Replayed bool
}

// StartProcessor serves a simulated processor on a free port of loopback.
func StartProcessor(o simulator.Options) (*Processor, error) {
	o.Key = ProcessorKey
	p := &Processor{Simulator: simulator.New(o), address: "127.0.0.1:0"}
	return p, p.restore()
}

// URL is what --upstream-url takes.
func (p *Processor) URL() string { return "http://" + p.address + "/v1" }

// Cut closes the listener and tears every connection: a dial is then refused by the system. What was being
// worked on takes effect nevertheless.
func (p *Processor) Cut() {
	p.lineMu.Lock()
	defer p.lineMu.Unlock()
	if p.server == nil {
		return
	}
	_ = p.server.Close()
	<-p.done
	p.server = nil
	p.cuts++
}

// Cuts counts the times that the line was cut.
func (p *Processor) Cuts() int {
	p.lineMu.Lock()
	defer p.lineMu.Unlock()
	return p.cuts
}

// Restore listens again at the same address.
func (p *Processor) Restore(ctx context.Context) error {
	var last error
	err := Poll(ctx, listenInterval, func() (bool, error) {
		last = p.restore()
		return last == nil, nil
	})
	return errors.Join(err, last)
}

func (p *Processor) restore() error {
	p.lineMu.Lock()
	defer p.lineMu.Unlock()
	if p.server != nil {
		return nil
	}
	bound, err := net.Listen("tcp", p.address)
	if err != nil {
		return err
	}
	p.address = bound.Addr().String()
	server, done := &http.Server{Handler: p}, make(chan struct{})
	p.server, p.done = server, done
	go func() {
		defer close(done)
		panics.Try(func() { _ = server.Serve(bound) }) // whatever ends it, the box sees a line that is cut
	}()
	return nil
}

// Close ends the processor and every request in it.
func (p *Processor) Close() {
	_ = p.Simulator.Close()
	p.Cut()
}

// ServeHTTP passes a request to the simulator and notes it if it may move money.
func (p *Processor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || strings.HasSuffix(r.URL.Path, "/_control") {
		p.Simulator.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, sentBytesMax))
	if err != nil {
		panic(http.ErrAbortHandler) // half a request: nothing reached the processor
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, _ := url.ParseQuery(string(body)) // what is no form has no payment in it
	post := Post{At: time.Now(), Path: r.URL.Path, Key: r.Header.Get("Idempotency-Key"), Payment: form.Get("metadata[tenderbox_payment]"), Body: sha256.Sum256(body)}
	if post.Payment == "" {
		post.Payment, _, _ = strings.Cut(post.Key, ":")
	}
	p.noteMu.Lock()
	if p.sample == nil {
		p.sample = body
	}
	p.open++
	p.peak = max(p.peak, p.open)
	p.noteMu.Unlock()
	seen := &witness{ResponseWriter: w}
	defer func() {
		post.Took, post.Status = time.Since(post.At), seen.status
		post.Replayed = seen.status != 0 && w.Header().Get("Idempotent-Replayed") == "true"
		p.noteMu.Lock()
		defer p.noteMu.Unlock()
		p.open--
		p.posts = append(p.posts, post)
	}()
	p.Simulator.ServeHTTP(seen, r)
}

// Posts returns what has reached the processor so far and was dealt with, in the order of its end.
func (p *Processor) Posts() []Post {
	p.noteMu.Lock()
	defer p.noteMu.Unlock()
	return append([]Post(nil), p.posts...)
}

// Posted is the number of Posts.
func (p *Processor) Posted() int {
	p.noteMu.Lock()
	defer p.noteMu.Unlock()
	return len(p.posts)
}

// Sample is the body of the first POST; nil before it.
func (p *Processor) Sample() []byte {
	p.noteMu.Lock()
	defer p.noteMu.Unlock()
	return bytes.Clone(p.sample)
}

// Peak is the greatest number of POSTs that were open at once.
func (p *Processor) Peak() int {
	p.noteMu.Lock()
	defer p.noteMu.Unlock()
	return p.peak
}

// witness sees how a request was answered.
type witness struct {
	http.ResponseWriter
	status int
}

func (w *witness) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *witness) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Hijack is how the simulator tears a connection.
func (w *witness) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Unwrap lets http.ResponseController reach the rest.
func (w *witness) Unwrap() http.ResponseWriter { return w.ResponseWriter }
