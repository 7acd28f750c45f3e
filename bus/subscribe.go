package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sourcegraph/conc/panics"
)

const (
	// A subscriber that falls this far behind loses events: they are in the journal.
	behindMsgsMax  = 4096
	behindBytesMax = 4 << 20

	// reconnectWait is how soon the live connection looks for the server after a Reset.
	reconnectWait = 50 * time.Millisecond
)

// Subscribe calls fn for every event published on the subject ("evt.<tenant>.>") from
// now on, one after the other, until stop is called or ctx ends. It is live only: who
// is too slow, and whoever listens while the bus is mended, misses events, which the
// journals have; a batch that is repeated arrives twice. Subscribe works, without
// events, while the bus is out of order. After stop returns, fn is called no more
// except for a call already under way. Data belongs to fn.
func (b *Bus) Subscribe(ctx context.Context, subject string, fn func(subject string, data []byte)) (stop func(), err error) {
	defer func() {
		if err != nil && errors.Is(b.Err(), ErrClosed) {
			err = ErrClosed // it ended meanwhile, whatever the connection says of that
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	nc, err := b.liveConn()
	if err != nil {
		return nil, err
	}
	sub, err := nc.Subscribe(subject, func(m *nats.Msg) {
		if err := panics.Try(func() { fn(m.Subject, m.Data) }).AsError(); err != nil {
			b.o.Logger.Error("panic in a subscriber", "err", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("subscribing to %q: %w", subject, err)
	}
	if err := sub.SetPendingLimits(behindMsgsMax, behindBytesMax); err != nil {
		return nil, errors.Join(err, sub.Unsubscribe())
	}
	// Wait until the server knows of it: what is published after this returns arrives.
	if nc.IsConnected() {
		flushCtx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		if err := nc.FlushWithContext(flushCtx); err != nil && nc.IsConnected() {
			return nil, errors.Join(fmt.Errorf("subscribing to %q: %w", subject, err), sub.Unsubscribe())
		}
	}
	unsubscribe := func() { _ = sub.Unsubscribe() } // closed already: as wished
	detach := context.AfterFunc(ctx, unsubscribe)
	return func() {
		detach()
		unsubscribe()
	}, nil
}

// liveConn answers the connection that the subscriptions share. It finds the next
// server by itself, so they outlive a Reset.
func (b *Bus) liveConn() (*nats.Conn, error) {
	b.subscribing.Lock()
	defer b.subscribing.Unlock()
	if errors.Is(b.Err(), ErrClosed) {
		return nil, ErrClosed
	}
	if b.live != nil {
		return b.live, nil
	}
	nc, err := nats.Connect("", nats.InProcessServer(inProcess{b}), nats.Name("live"),
		nats.UserInfo(boxUser, b.guard.secret),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1), // nothing is published here
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if sub != nil {
				b.o.Logger.Warn("live events", "subject", sub.Subject, "err", err)
			}
		}))
	if err != nil {
		return nil, fmt.Errorf("connecting to the embedded server: %w", err)
	}
	b.live = nc
	return nc, nil
}

// inProcess hands out connections to whichever server runs now.
type inProcess struct{ b *Bus }

// InProcessConn implements nats.InProcessConnProvider.
func (p inProcess) InProcessConn() (net.Conn, error) {
	p.b.mu.Lock()
	in := p.b.in
	p.b.mu.Unlock()
	if in == nil {
		return nil, ErrDown
	}
	return in.srv.InProcessConn()
}
