package bus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sourcegraph/conc/panics"
)

const (
	// payloadMax bounds one event: the 1 MiB that an app's own event may have, in base64, with its envelope.
	payloadMax = 2 << 20

	// connsMax bounds the clients of the TCP port: a site has tens of devices, and an
	// idle connection costs some 40 KiB.
	connsMax = 256

	// subsMax bounds the subscriptions of one connection; the box's own carries one for each live stream.
	subsMax = 4096

	// pendingMax is what may wait for one slow client before it is cut off, and so
	// connsMax of them cannot take the memory of a small box.
	pendingMax = 4 << 20

	// writeDeadline cuts off a client that takes nothing any more.
	writeDeadline = 5 * time.Second

	// authSeconds is how long a new connection may take to say who it is.
	authSeconds = 2

	// ingestMsgsMax and ingestBytesMax bound what waits between connection and stream:
	// room for two of the largest batches.
	ingestMsgsMax  = 4096
	ingestBytesMax = 2*batchBytesMax + payloadMax

	// memoryStoreMax bounds JetStream's memory storage, which the box does not use.
	// It must be above zero, or the server takes three quarters of the machine for it.
	memoryStoreMax = 1 << 20

	// closedMax is how many closed clients the server remembers for its monitoring,
	// which is off; by default it is 10,000.
	closedMax = 8
)

// instance is one life of the server: from Open or Reset to the next Reset or Close.
type instance struct {
	srv     *server.Server
	log     *logger
	wire    *wire
	meta    string // the stream's description on disk: gone means that someone deleted the folder
	lastSeq uint64 // of the stream, when it was opened
	tries   int    // batches refused in a row; guarded by Bus.publishing
	proven  bool   // something was published; guarded by Bus.publishing
	settled *time.Timer
}

// settledAfter is how long the server must have run for its start to count as a good one.
const settledAfter = time.Minute

// launch starts a server on the folder and checks or makes the stream.
func (b *Bus) launch(ctx context.Context, first uint64) (in *instance, created bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	so, err := b.serverOptions()
	if err != nil {
		return nil, false, err
	}
	in = &instance{
		log:  newLogger(b.o.Logger),
		meta: filepath.Join(so.StoreDir, server.JetStreamStoreDir, "$G", "streams", streamName, server.JetStreamMetaFile),
	}
	_, statErr := os.Stat(filepath.Dir(in.meta))
	existed := !errors.Is(statErr, fs.ErrNotExist)

	failed := func(err error) (*instance, bool, error) {
		return nil, false, errors.Join(err, in.stop())
	}
	if in.srv, err = server.NewServer(so); err != nil {
		return nil, false, err
	}
	in.srv.SetLoggerV2(in.log, false, false, false)
	if err := panics.Try(in.srv.Start).AsError(); err != nil {
		return failed(err)
	}
	if msg := in.log.fatal(); strings.HasPrefix(msg, "Error listening") {
		return failed(fmt.Errorf("%w: %s", ErrListen, msg))
	} else if msg != "" {
		return failed(errors.New(msg))
	}
	if !in.srv.JetStreamEnabled() {
		return failed(errors.New("JetStream did not start"))
	}
	b.guard.watch(in.srv)
	if in.wire, err = dial(in.srv, b.guard.secret, b.o.Logger); err != nil {
		return failed(err)
	}
	if in.lastSeq, created, err = b.openStream(ctx, in.wire, existed, first); err != nil {
		return failed(err)
	}
	// A start that lasts is a good one even if nothing happens to be published.
	in.settled = time.AfterFunc(settledAfter, func() { clearStarts(b.o.Dir) })
	in.log.onFault(func(reason error) {
		b.fail(in, reason)
		in.wire.fail(reason)
	})
	return in, created, nil
}

// stop ends the server and waits for its goroutines.
func (in *instance) stop() error {
	if in.settled != nil {
		in.settled.Stop()
	}
	var wireErr error
	if in.wire != nil {
		wireErr = in.wire.close()
	}
	if in.srv == nil {
		return wireErr
	}
	return errors.Join(wireErr, panics.Try(func() {
		in.srv.Shutdown()
		in.srv.WaitForShutdown()
	}).AsError())
}

// gone says whether the stream's folder has been deleted under the server.
func (in *instance) gone() bool {
	_, err := os.Stat(in.meta)
	return errors.Is(err, fs.ErrNotExist)
}

func (b *Bus) serverOptions() (*server.Options, error) {
	maxStore := int64(math.MaxInt64)
	if b.o.MaxBytes > 0 {
		maxStore = b.o.MaxBytes + b.o.MaxBytes/8 + ingestBytesMax // reserved by the stream, and some slack
	}
	dir, err := filepath.Abs(b.o.Dir)
	if err != nil {
		return nil, err
	}
	so := &server.Options{
		ServerName: b.o.Name,
		DontListen: true,
		NoSigs:     true, // the program handles its signals itself
		NoLog:      true,

		JetStream:              true,
		DisableJetStreamBanner: true,
		StoreDir:               dir,
		SyncAlways:             true, // an answer means on disk, not in the page cache
		JetStreamMaxMemory:     memoryStoreMax,
		JetStreamMaxStore:      maxStore,
		StreamMaxBufferedMsgs:  ingestMsgsMax,
		StreamMaxBufferedSize:  ingestBytesMax,

		MaxPayload:       payloadMax,
		MaxConn:          connsMax,
		MaxSubs:          subsMax,
		MaxPending:       pendingMax,
		MaxClosedClients: closedMax,
		WriteDeadline:    writeDeadline,
		AuthTimeout:      authSeconds,
		// By default a slow reader makes whoever publishes to it wait: one tenant's
		// stalled client would hold up the events of all.
		NoFastProducerStall: true,

		CustomClientAuthentication: b.guard,
	}
	if b.o.Listen == "" {
		return so, nil
	}
	// The server would report a taken address by its Fatalf, like a broken folder; ask first.
	l, err := net.Listen("tcp", b.o.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrListen, err)
	}
	addr := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(b.o.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrListen, err)
	}
	so.DontListen, so.Host, so.Port = false, host, addr.Port
	if host == "" {
		so.Host = "::" // what net.Listen means by it
		if addr.IP.To4() != nil {
			so.Host = net.IPv4zero.String()
		}
	}
	return so, nil
}

// onceErr keeps the first error given to it and tells those who wait.
type onceErr struct {
	once sync.Once
	done chan struct{}
	err  error
}

func newOnceErr() *onceErr { return &onceErr{done: make(chan struct{})} }

func (o *onceErr) set(err error) {
	o.once.Do(func() {
		o.err = err
		close(o.done)
	})
}
