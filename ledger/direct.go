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
	// directGather is how much longer journal rows gather while payments are on their way: most of them are settled then, and make no job.
	directGather = 80 * time.Millisecond
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
	relayed bool
	over    bool
	settled *Payment      // by its attempt; nil: it is not, or not yet
	news    chan struct{} // closed when it is settled or over
	told    bool          // it is closed
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
	d.by[string(id)] = &passage{tenant: t, news: make(chan struct{})}
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
	if p := d.by[string(payment.ID)]; p != nil && !p.over {
		p.settled = payment
		p.tell()
	}
}

func (d *direct) end(id PaymentID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.running.Done()
	p := d.by[string(id)]
	p.tell()
	if p.over = true; p.relayed {
		delete(d.by, string(id))
	}
}

// tell wakes who waits. direct.mu is held.
func (p *passage) tell() {
	if !p.told {
		p.told = true
		close(p.news)
	}
}

// holds reports whether the record is on its way at this moment.
func (d *direct) holds(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.by[id]
	return p != nil && !p.over
}

// busy reports whether any payment is.
func (d *direct) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.by {
		if !p.over {
			return true
		}
	}
	return false
}

// await waits, at most for wait, until a payment that is on this way is settled, which known says, or must be waited for as any other.
func (d *direct) await(ctx context.Context, t tenants.ID, id PaymentID, wait time.Duration) (settled Payment, known bool) {
	d.mu.Lock()
	p := d.by[string(id)]
	past := p == nil || p.tenant != t || p.told // what has ended may have changed since
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
			j.Delay = j.Backoff.Delay // as after a first attempt
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
}

// directly prepares p to be sent by who takes it, under the client's key; nil: the queue sends it. Exactly one of started and dropped follows.
func (l *Ledger) directly(tenant *tenants.Tenant, key IdempotencyKey, p *Payment, token string) *directSend {
	if p.TakenOffline || !l.jobs.Clear(string(tenant.ID), PaymentsQueue) {
		return nil
	}
	mu := l.accountMu(tenant.ID)
	if !mu.TryRLock() { // as for every seal, but a payment is taken whoever changes the account, for however long
		return nil
	}
	d := &directSend{l: l, acc: l.accountOf(tenant.ID), kept: mu.RUnlock}
	if d.acc == nil || !d.acc.Ready() || !d.enter(tenant.ID, p.ID) {
		d.kept()
		return nil
	}
	s := &send{tenant: tenant.ID, table: paymentTable, id: string(p.ID), payment: *p, state: Queued, createdAt: p.CreatedAt, series: 1, n: 1,
		keyHash: string(key), token: token}
	s.chooseStep()
	l.address(s)
	s.encodeNow()
	d.send, d.seal = s, l.sealing(d.acc, s)
	return d
}

func (d *directSend) enter(t tenants.ID, id PaymentID) (ok bool) {
	if d.leave, ok = d.acc.TryEnter(); !ok {
		return false
	}
	if !d.l.direct.begin(t, id) {
		d.leave()
		return false
	}
	return true
}

// dropped leaves the payment to the queue, or to nobody if it was not taken.
func (d *directSend) dropped() {
	d.leave()
	d.kept()
	d.l.direct.drop(d.send.payment.ID)
}

// started sends what is sealed, and returns at once.
func (d *directSend) started() {
	d.kept()
	go func() {
		defer d.leave()
		l, s := d.l, d.send
		err := guard(func() error {
			_, err := l.sendSealed(l.direct.ctx, d.acc, s, d.leave)
			return err
		})
		var wish *later
		if err != nil && !errors.As(err, &wish) && !errors.Is(err, errMoved) {
			_ = l.settleLater(err) // its job knows when
		}
		l.direct.end(s.payment.ID)
	}()
}
