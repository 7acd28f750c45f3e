// Package bus is the box's event bus: an embedded NATS server with one JetStream
// stream, EVENTS, on the subjects "evt.<tenant>.<type>".
//
// The promise: when [Bus.Publish] returns nil, its messages survive a power cut, in
// the order given. The bus is derived: the journals are the truth. So
// nothing here may stop a payment, and whatever is wrong with the stream is mended by
// moving it aside and filling a new one.
//
// [Bus] is the server and its stream, [Message] an event with the place that it has in
// its journal, [Event] its CloudEvents form. [Bus.Publish] writes an atomic batch,
// [Bus.Tail] says how far each journal got, [Bus.Subscribe] follows the live events,
// [Bus.Reset] mends.
//
// After a crash the stream holds whole batches: every acknowledged one, and perhaps one
// more that was under way. The caller reads the tail and goes on from there. A folder
// that is damaged, has holes, ends before Options.FirstSeq, or at which the process
// died while opening it several times in a row is moved aside (Dir.broken-<time>, the newest is
// kept) and made anew; [Bus.Recreated] says so. A disk that fills up is noticed before
// the reserve is gone: Publish answers [ErrFull] and works again when there is room.
//
// Caveats. The server has no recover: a panic in one of its goroutines ends the
// process; what can be contained is the loop that follows (the counter above). A
// batch of two or more costs about 2 ms of CPU and 6 fsyncs however small it is, and
// 12 µs a message: gather before publishing (DESIGN.md has the figures). Subscribers see an event when it is published,
// a moment before it is durable here, and again when a batch is repeated. The password
// of a client over TCP travels in clear.
//
// Lock order: Bus.publishing or Bus.subscribing before Bus.mu; nothing is called with
// Bus.mu held.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"
)

const (
	// DefaultMaxBytes bounds the stream: some 1.5 million events, the weeks that a hub
	// may be away, at a size that a small card still has to spare.
	DefaultMaxBytes = 1 << 30

	// DefaultMinFree is the disk space that the bus leaves to others: enough for the
	// shards to settle what was accepted while the operator makes room.
	DefaultMinFree = 64 << 20
)

var (
	// ErrClosed: the bus was closed.
	ErrClosed = errors.New("bus: closed")
	// ErrDown: the stream is out of order and nothing was stored; Reset mends it.
	ErrDown = errors.New("bus: out of order")
	// ErrFull: too little disk space is left and nothing was stored. It passes by
	// itself, or by Reset when Err says it.
	ErrFull = errors.New("bus: disk full")
	// ErrDuplicate: the batch holds an id that the stream has; nothing was stored.
	ErrDuplicate = errors.New("bus: duplicate event in batch")
	// ErrUnknown: the messages may or may not have been stored; Tail knows.
	ErrUnknown = errors.New("bus: outcome unknown")
	// ErrInvalid: a message that no stream would take; see MessageError.
	ErrInvalid = errors.New("bus: invalid message")
	// ErrListen: the TCP address cannot be listened on.
	ErrListen = errors.New("bus: cannot listen")
)

// Options configure a Bus. Dir is needed, everything else may be left out.
type Options struct {
	Dir    string // JetStream's folder; created when missing
	Source string // CloudEvents source of events that name none, "/tenderbox/<box id>"
	Name   string // of the server towards its clients; default "tenderbox"

	Listen string // TCP address for tenants' clients; "" = no TCP, port 0 = any
	// Authenticate says which tenant a client's user and password stand for; needed with
	// Listen. It is called from many goroutines; the user is usually the tenant's name.
	Authenticate func(user, password string) (tenant string, ok bool)

	FirstSeq uint64        // a new stream starts here, and one that ends before is made anew; 0 = 1
	MaxBytes int64         // of the stream, then the oldest go; default DefaultMaxBytes, negative = no limit
	MaxAge   time.Duration // of an event in the stream; 0 = no limit
	MinFree  int64         // bytes of disk left to others; default DefaultMinFree, negative = none

	Logger *slog.Logger     // nil: silent
	Now    func() time.Time // names what is moved aside; nil: time.Now
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "tenderbox"
	}
	switch {
	case o.MaxBytes == 0:
		o.MaxBytes = DefaultMaxBytes
	case o.MaxBytes < 0:
		o.MaxBytes = -1
	}
	switch {
	case o.MinFree == 0:
		o.MinFree = DefaultMinFree
	case o.MinFree < 0:
		o.MinFree = 0
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("bus: no folder given"))
	}
	if o.Listen != "" && o.Authenticate == nil {
		errs = append(errs, errors.New("bus: listening needs a way to authenticate"))
	}
	if o.MaxAge < 0 {
		errs = append(errs, errors.New("bus: negative age limit"))
	}
	return errors.Join(errs...)
}

// Bus is the embedded server with its stream. Its methods may be called from any goroutine.
type Bus struct {
	o     Options
	guard *guard
	free  func(dir string) (int64, error) // disk space left; tests replace it

	publishing sync.Mutex // one batch, or one Reset, at a time
	enc        encoder

	mu        sync.Mutex // guards what follows
	in        *instance  // nil while down
	fault     error      // why nothing can be published until Reset; nil when all is well
	full      bool       // the last Publish was refused because of the reserve; nothing is wrong otherwise
	last      uint64     // highest stream sequence known
	recreated bool
	closed    bool

	subscribing sync.Mutex // guards what follows
	live        *nats.Conn // follows the server across Reset; made by the first Subscribe
}

// Open starts the server and makes the stream ready. It fails for wrong options, an
// address that is taken (ErrListen) and an ended ctx. A stream that cannot be opened
// even after its folder was moved aside (disk full or read-only) is no reason to fail:
// the Bus is there, Err says why it does nothing, and Reset tries again.
func Open(ctx context.Context, o Options) (*Bus, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	b := &Bus{o: o, guard: newGuard(o.Authenticate, o.Logger), free: diskFree}
	b.publishing.Lock()
	defer b.publishing.Unlock()
	err := b.start(ctx, false)
	if ctx.Err() != nil || errors.Is(err, ErrListen) {
		return nil, errors.Join(err, b.stop())
	}
	if err != nil {
		o.Logger.Error("event stream is out of order", "err", err)
	}
	return b, nil
}

// Err says why nothing can be published, nil when all is well: ErrFull, ErrDown or ErrClosed.
func (b *Bus) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return ErrClosed
	case b.fault == nil && b.full:
		return b.checkFree()
	}
	return b.fault
}

// Recreated says whether the stream in use was made by this Bus, at Open or by the last
// Reset: whatever earlier streams held is to be published again.
func (b *Bus) Recreated() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.recreated
}

// Addr answers the TCP address listened on, "" for none.
func (b *Bus) Addr() string {
	in, err := b.up()
	if err != nil || b.o.Listen == "" {
		return ""
	}
	return in.srv.Addr().String()
}

// Reset mends the bus. After a full disk the stream is kept, and Reset answers ErrFull
// while there is too little room. Otherwise, also when nothing was wrong, the folder is
// moved aside and a new stream starts above every sequence known of the old one; it is
// empty and the caller fills it (Recreated says which it was). Subscriptions live on,
// tenants' clients have to reconnect.
func (b *Bus) Reset(ctx context.Context) error {
	b.publishing.Lock()
	defer b.publishing.Unlock()
	b.mu.Lock()
	closed, onlyFull := b.closed, b.fault == nil && b.full
	inPlace := errors.Is(b.fault, ErrFull) || errors.Is(b.fault, ErrListen) // nothing is wrong with the folder
	b.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.checkFree(); err != nil || onlyFull {
		return err
	}
	if err := b.stop(); err != nil {
		b.o.Logger.Warn("event bus did not stop cleanly", "err", err)
	}
	return b.start(ctx, !inPlace)
}

// Close stops the server and waits for its goroutines. Closing twice is fine.
func (b *Bus) Close() error {
	b.mu.Lock()
	b.closed = true
	in := b.in
	b.mu.Unlock()
	if in != nil {
		in.wire.fail(ErrClosed) // a publish under way gives up
	}
	b.subscribing.Lock()
	if b.live != nil {
		b.live.Close()
		b.live = nil
	}
	b.subscribing.Unlock()
	b.publishing.Lock()
	defer b.publishing.Unlock()
	return b.stop()
}

// start brings up an instance on the folder, or on a new one when the folder is broken
// or aside says to begin anew. Needs b.publishing.
func (b *Bus) start(ctx context.Context, aside bool) error {
	in, recreated, err := b.startInstance(ctx, aside)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		if !errors.Is(err, ErrFull) && !errors.Is(err, ErrListen) {
			err = fmt.Errorf("%w: %w", ErrDown, err)
		}
		b.fault = err
		return err
	}
	b.in, b.fault, b.full, b.recreated, b.last = in, nil, false, recreated, in.lastSeq
	return nil
}

func (b *Bus) startInstance(ctx context.Context, aside bool) (in *instance, recreated bool, err error) {
	if err := b.checkFree(); err != nil {
		return nil, false, err
	}
	crashed, err := countStart(b.o.Dir)
	if err != nil {
		return nil, false, err
	}
	if crashed {
		b.o.Logger.Error("the process died several times while or right after opening the event stream")
		aside = true
	}
	b.mu.Lock()
	first := max(b.o.FirstSeq, b.last+1)
	b.mu.Unlock()

	for {
		if aside {
			if err := b.moveAside(); err != nil {
				return nil, false, err
			}
			if _, err := countStart(b.o.Dir); err != nil {
				return nil, false, err
			}
		}
		if in, recreated, err = b.launch(ctx, first); err != nil {
			clearStarts(b.o.Dir) // failed, but alive
		}
		if err == nil || aside || ctx.Err() != nil || errors.Is(err, ErrListen) || errors.Is(err, ErrFull) {
			return in, recreated, err
		}
		b.o.Logger.Error("event stream is broken, beginning a new one", "err", err)
		aside = true
	}
}

// stop ends the instance, if there is one. Needs b.publishing.
func (b *Bus) stop() error {
	b.mu.Lock()
	in := b.in
	b.in = nil
	b.mu.Unlock()
	if in == nil {
		return nil
	}
	err := in.stop()
	clearStarts(b.o.Dir)
	return err
}

// up answers the instance when it can be used.
func (b *Bus) up() (*instance, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, ErrClosed
	case b.fault != nil:
		return nil, b.fault
	case b.in == nil:
		return nil, errMending
	}
	return b.in, nil
}

// fail takes the bus out of use until Reset. The first reason stays.
func (b *Bus) fail(in *instance, reason error) {
	b.mu.Lock()
	first := b.in == in && b.fault == nil && !b.closed
	if first {
		b.fault = reason
	}
	b.mu.Unlock()
	if first {
		b.o.Logger.Error("event stream is out of order", "err", reason)
	}
}

// checkFree answers ErrFull when less than the reserve is left of the disk.
func (b *Bus) checkFree() error {
	if b.o.MinFree == 0 {
		return nil
	}
	free, err := b.free(b.o.Dir)
	if err != nil {
		return nil // nothing known against writing: the write will tell
	}
	if free < b.o.MinFree {
		return fmt.Errorf("%w: %d MiB left of a reserve of %d MiB", ErrFull, free>>20, b.o.MinFree>>20)
	}
	return nil
}

// inodesMin: with fewer than these left there is no room for the files of a batch.
const inodesMin = 64

// diskFree answers the bytes that an unprivileged process may still write.
func diskFree(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, os.ErrNotExist) {
		err = unix.Statfs(filepath.Dir(dir), &st)
	}
	if err != nil {
		return 0, err
	}
	if st.Files > 0 && st.Ffree < inodesMin {
		return 0, nil
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
