package ledger

import (
	"context"
	"errors"
	"sync"
	"time"

	"tenderbox/jobs"
	"tenderbox/tenants"
	"tenderbox/upstream"
)

const (
	// directMax payments are known as sent past the queue. Each is forgotten when its journal row has become its job, or none: while the queue's
	// file takes nothing, no more than so many go this way.
	directMax = 4096
	// directGather is how long a payment on its way may hold up its journal row, and those behind it: most are settled then, and make no job.
	directGather = 80 * time.Millisecond
	// directTimeMax from its seal on may a send and what follows take, as the queue grants a handler: sentMargin counts on it.
	directTimeMax = 10 * time.Minute
	// directGrace is what those in hand get to be recorded, once the time for a stop is over and their sends were cut short.
	directGrace = 2 * time.Second
)

// direct are the payments whose clients wait for the outcome and that are sent by whoever takes them, past the queue. Each is sealed in the
// transaction that takes it, so that between the client and the answer there are two waits for the disk instead of five. It is the queue's
// work all the same: only a payment goes this way that the queue would have leased at once ([jobs.Engine.Clear]), for which the account has a
// place, and of which nothing needs to be looked up. What is not settled by its one attempt is settled by its job, as if the process had
// ended there.
//
// The relay derives the job from the journal as ever. Of a payment that is settled by then there is nothing left to do; of one on its way
// the job comes later, so that it does not find it in other hands.
type direct struct {
	ctx  context.Context // of the sends; ended when a stop has waited long enough
	stop context.CancelFunc

	running sync.WaitGroup

	mu     sync.Mutex // guards the rest; a leaf
	closed bool       // no more begin
	by     map[string]*passage
}

// passage is one payment on this way. It is forgotten when its attempt is over and its journal row was relayed.
type passage struct {
	tenant  tenants.ID
	began   time.Time
	relayed bool
	over    bool
	after   time.Duration // its job had better come so late
	settled *Payment      // by its attempt; nil: it is not, or not yet
	news    chan struct{} // closed when it is settled, or else over
}

func newDirect() *direct {
	d := &direct{by: map[string]*passage{}}
	d.ctx, d.stop = context.WithCancel(context.Background())
	return d
}

// begin takes up a payment before it is in the shard, hence before the relay can meet it.
func (d *direct) begin(t tenants.ID, id PaymentID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.by) >= directMax {
		return false
	}
	d.by[string(id)] = &passage{tenant: t, began: time.Now(), news: make(chan struct{})}
	d.running.Add(1)
	return true
}

// drop ends it without an attempt: the payment was not taken, or not sealed.
func (d *direct) drop(id PaymentID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.by, string(id))
	d.running.Done()
}

// settle says what the attempt's answer has made of the payment, once that is on the disk.
func (d *direct) settle(payment *Payment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.by[string(payment.ID)]; p != nil && !p.over && p.settled == nil {
		p.settled = payment
		close(p.news)
	}
}

func (d *direct) end(id PaymentID, after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.running.Done()
	p := d.by[string(id)]
	if p.settled == nil {
		close(p.news)
	}
	p.after = after
	if p.over = true; p.relayed {
		delete(d.by, string(id))
	}
}

// holds reports whether the record is on its way at this moment.
func (d *direct) holds(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.by[id]
	return p != nil && !p.over
}

// holdsUp reports whether e, and with it what stands behind it in its journal, had better be relayed a little later.
func (d *direct) holdsUp(e *Event) bool {
	if e.Type != PaymentCreated {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.by[e.Subject]
	return p != nil && !p.over && p.settled == nil && time.Since(p.began) < directGather
}

// unrelayed reports whether any payment is on its way whose journal row still gathers.
func (d *direct) unrelayed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.by {
		if !p.over && !p.relayed {
			return true
		}
	}
	return false
}

// await waits, at most for wait, until a payment that is on this way is settled, which known says, or must be waited for as any other.
func (d *direct) await(ctx context.Context, t tenants.ID, id PaymentID, wait time.Duration) (settled Payment, known bool) {
	d.mu.Lock()
	p := d.by[string(id)]
	past := p == nil || p.tenant != t || p.over || p.settled != nil // what has ended may have changed since
	d.mu.Unlock()
	if past {
		return Payment{}, false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.news:
	case <-timer.C:
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.settled == nil {
		return Payment{}, false
	}
	return *p.settled, true
}

// relayed says which of the jobs that follow from e are to be enqueued, and when.
func (d *direct) relayed(e *Event, derived []jobs.NewJob) []jobs.NewJob {
	if e.Type != PaymentCreated {
		return derived
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.by[e.Subject]
	if p == nil {
		return derived
	}
	if p.relayed = true; p.over {
		delete(d.by, e.Subject)
	}
	kept := derived[:0]
	for _, j := range derived {
		if j.Queue == PaymentsQueue {
			if p.settled != nil {
				continue
			}
			j.Delay = max(j.Backoff.Delay, p.after) // as after a first attempt
		}
		kept = append(kept, j)
	}
	return kept
}

// run ends this way when ctx does; then it waits for those in hand, at most for drain.
func (d *direct) run(ctx context.Context, drain time.Duration) error {
	<-ctx.Done()
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	done := make(chan struct{})
	go func() { d.running.Wait(); close(done) }()
	for _, grace := range []time.Duration{drain, directGrace} {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-done:
			return nil
		case <-timer.C:
			d.stop()
		}
	}
	return errors.New("ledger: payments whose clients wait: sends did not end")
}

// directSend is a payment that goes this way, sealed and not yet taken.
type directSend struct {
	l     *Ledger
	acc   *upstream.Account
	send  *send
	seal  *seal
	leave func() // the account's place
	kept  func() // lets the tenant's account change again
	until time.Time
	began bool
}

// directly prepares p to be sent by who takes it, under the client's key; nil: the queue sends it. ended follows, whatever comes
// between, and before it start if p was taken with its seal.
func (l *Ledger) directly(tenant *tenants.Tenant, key IdempotencyKey, p *Payment, token string) (d *directSend) {
	if p.TakenOffline || !l.jobs.Clear(string(tenant.ID), PaymentsQueue) {
		return nil
	}
	mu := l.accountMu(tenant.ID)
	if !mu.TryRLock() { // as for every seal, but a payment is taken whoever changes the account, for however long
		return nil
	}
	defer func() {
		if d == nil {
			mu.RUnlock()
		}
	}()
	acc := l.accountOf(tenant.ID)
	if acc == nil || !acc.Ready() {
		return nil
	}
	s := &send{tenant: tenant.ID, table: paymentTable, id: string(p.ID), payment: *p, state: Queued, createdAt: p.CreatedAt, series: 1, n: 1,
		keyHash: string(key), token: token}
	s.chooseStep()
	l.address(s)
	s.encodeNow()
	until, sealed := time.Now().Add(directTimeMax), l.sealing(acc, s)
	leave, ok := acc.TryEnter()
	if !ok {
		return nil
	}
	if !l.direct.begin(tenant.ID, p.ID) {
		leave()
		return nil
	}
	return &directSend{l: l, acc: acc, send: s, seal: sealed, leave: leave, kept: mu.RUnlock, until: until}
}

// ended leaves a payment that was not sent to the queue, or to nobody if it was not taken.
func (d *directSend) ended() {
	d.kept()
	if !d.began {
		d.leave()
		d.l.direct.drop(d.send.payment.ID)
	}
}

// start sends what is sealed, and returns at once.
func (d *directSend) start() {
	d.began = true
	go func() {
		defer d.leave()
		l, s := d.l, d.send
		err := guard(func() error {
			ctx, cancel := context.WithDeadline(l.direct.ctx, d.until)
			defer cancel()
			_, err := l.sendSealed(ctx, d.acc, s, d.leave)
			return err
		})
		var wish *later
		var after time.Duration
		switch {
		case errors.As(err, &wish):
			after = wish.after
		case err != nil && !errors.Is(err, errMoved):
			_ = l.settleLater(err) // its job knows when
		}
		l.direct.end(s.payment.ID, after)
	}()
}
