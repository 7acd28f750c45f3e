package model

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/ledger"
	"tenderbox/shards"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
	"tenderbox/upstream/upstreamtest"
)

// shops share the box and its account; their keys are the same words.
var shops = []tenants.ID{"anna", "bert"}

// World is one seed: a box, its clients, the line, the processor and the clocks.
type World struct {
	t      testing.TB
	random *rand.Rand
	from   *template
	clocks *clocks
	sim    *simulator.Simulator
	limits map[tenants.ID]map[string]tenants.OfflineLimit
	log    *Log
	tally  Tally

	box  *box
	mode upstreamtest.Mode
	keys map[tenants.ID]int // how many each shop has used
}

// NewWorld makes the world of a seed, in a bubble. It ends with the test.
func NewWorld(t testing.TB, from *template, seed uint64) *World {
	w := &World{t: t, random: rand.New(rand.NewPCG(seed, 0x7e4d)), from: from, clocks: newClocks(), tally: Tally{}, log: &Log{began: time.Now()},
		limits: map[tenants.ID]map[string]tenants.OfflineLimit{}, keys: map[tenants.ID]int{}}
	w.sim = simulator.New(simulator.Options{Key: "sk_test", Seed: int64(seed), ForgetKeys: forgetAfter})
	t.Cleanup(func() { _ = w.sim.Close() })
	return w
}

// Live tells the story of the seed: a while of everything at once, then quiet. It returns what there is to judge.
func (w *World) Live(ctx context.Context) (Evidence, error) {
	if err := w.begin(ctx); err != nil {
		return Evidence{}, err
	}
	defer func() {
		if w.box != nil {
			_ = w.box.close()
			_ = os.RemoveAll(w.box.dir)
		}
	}()
	for range 30 + w.random.IntN(50) {
		if err := w.step(); err != nil {
			return Evidence{}, err
		}
	}
	if err := w.quiet(); err != nil {
		return Evidence{}, err
	}
	return w.collect(ctx)
}

func (w *World) folder(life int) string {
	return filepath.Join(w.from.dir, fmt.Sprintf("%016x-%d", w.random.Uint64(), life))
}

// begin opens the box for the first time.
func (w *World) begin(ctx context.Context) error {
	dir := w.folder(0)
	if err := w.from.copyTo(dir); err != nil {
		return err
	}
	b, err := open(w.t, dir, 0, w.clocks, w.newLine(), 0)
	if err != nil {
		return err
	}
	w.box = b
	for _, shop := range shops {
		if w.random.IntN(3) == 0 {
			continue // it trusts its customers
		}
		limits := map[string]tenants.OfflineLimit{
			"usd": {MaxAmount: 3000 + w.random.Int64N(2000), MaxTotal: 5000 + w.random.Int64N(10000)},
			"eur": {MaxCount: 1 + w.random.Int64N(6)},
		} // and none in yen
		_, err := b.registry.Update(ctx, shop, func(t *tenants.Tenant) error { t.Offline = limits; return nil })
		if err != nil {
			return err
		}
		w.limits[shop] = limits
	}
	w.control(`{"latency_ms":%d}`, 1+w.random.IntN(300))
	return nil
}

// newLine is a life's line, in the state that the weather has now.
func (w *World) newLine() *upstreamtest.Line {
	line := upstreamtest.NewLine(w.t, w.sim)
	line.Set(w.mode)
	return line
}

// reopen begins the next life, on what the last one left. cutAt, if positive, takes the power away again while it opens.
func (w *World) reopen(cutAt int) error {
	old, dir := w.box, w.folder(w.box.life+1)
	w.box = nil
	if err := old.close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	var err error
	if old.dead.Load() {
		if err = old.restore(dir, w.random.Uint64()); err == nil {
			err = os.RemoveAll(old.dir)
		}
	} else { // a new name, because a folder is watched by the name
		err = os.Rename(old.dir, dir)
	}
	if err == nil {
		err = w.seat(filepath.Join(dir, shardsDir))
	}
	if err != nil {
		return err
	}
	b, err := open(w.t, dir, old.life+1, w.clocks, w.newLine(), cutAt)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	w.box = b
	w.log.tracef("life %d begins", b.life)
	return nil
}

// seat lets the box believe that its folder is where it was, mostly: each life's has another name, and after a power cut it is made anew.
// Otherwise the folder is a copy.
func (w *World) seat(dir string) error {
	err := os.Remove(filepath.Join(dir, seatFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil || w.random.IntN(6) > 0 {
		return err
	}
	w.log.tracef("the folder is a copy")
	w.tally.add("another epoch")
	_, err = shards.NewEpoch(dir)
	return err
}

// step lets one thing happen, and some time pass.
func (w *World) step() error {
	w.happen()
	w.pass()
	for w.box.dead.Load() {
		w.log.tracef("the power is back")
		w.tally.add("power cut")
		cutAt := 0
		if w.random.IntN(4) == 0 {
			cutAt = 1 + w.random.IntN(60)
			w.tally.add("power cut while opening, armed")
		}
		if err := w.reopen(cutAt); err != nil {
			return err
		}
	}
	return nil
}

// pass lets time pass, mostly little.
func (w *World) pass() {
	var d time.Duration
	switch n := w.random.IntN(100); {
	case n < 40:
	case n < 70:
		d = w.below(100 * time.Millisecond)
	case n < 90:
		d = w.below(5 * time.Second)
	case n < 98:
		d = w.below(2 * time.Minute)
	default:
		d = w.below(2 * keyMemory)
		w.tally.add("long wait")
	}
	if d > time.Second {
		w.log.tracef("%v pass", d.Round(time.Millisecond))
	}
	time.Sleep(d)
}

func (w *World) below(d time.Duration) time.Duration { return time.Duration(w.random.Int64N(int64(d))) }

// happen draws what happens next.
func (w *World) happen() {
	total := 0
	for _, h := range happenings {
		total += h.weight
	}
	n := w.random.IntN(total)
	for _, h := range happenings {
		if n -= h.weight; n < 0 {
			h.do(w)
			return
		}
	}
}

// control gives the processor an order by its control endpoint.
func (w *World) control(format string, args ...any) {
	r := httptest.NewRequest("POST", "/_control", strings.NewReader(fmt.Sprintf(format, args...)))
	answer := httptest.NewRecorder()
	w.sim.ServeHTTP(answer, r)
	if answer.Code != 200 {
		w.t.Errorf("the processor's control: %d %s", answer.Code, answer.Body)
	}
}

const (
	// quietMax is how long the box may take once nothing is in its way: the slowest proof of absence waits for the key memory and the resolver's
	// margins, each at most once, and the queue's backoff of ten minutes between.
	quietMax = 3 * time.Hour
	// quietLook is how often it is looked at meanwhile.
	quietLook = 5 * time.Minute
)

// quiet heals everything but the wall clock, and waits until the box has nothing left to do, or for too long.
func (w *World) quiet() error {
	w.log.tracef("quiet")
	w.set(upstreamtest.Up)
	if err := w.sim.SetFaults(simulator.Faults{}); err != nil {
		return err
	}
	w.control(`{"retry_after":"","settle_polls":0,"settle_ms":0}`)
	w.box.calls.Wait()
	w.box.disk.CutAt(0, nil)
	if w.box.dead.Load() {
		if err := w.reopen(0); err != nil {
			return err
		}
	}
	began := time.Now()
	for time.Since(began) < quietMax {
		time.Sleep(min(quietLook, 10*time.Second+time.Since(began)))
		if err := w.decides(); err != nil {
			return err
		}
		if busy, err := w.busy(); err != nil || !busy {
			w.log.tracef("nothing left to do after %v, %v", time.Since(began), err)
			return err
		}
	}
	return nil
}

// busy reports whether a payment or refund is still on its way.
func (w *World) busy() (bool, error) {
	if len(w.box.Exposed("")) > 0 {
		return true, nil
	}
	for _, shop := range shops {
		books, err := w.box.books(w.box.ctx, shop)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(books.Refunds, func(r ledger.Refund) bool { return !r.Status.Final() }) {
			return true, nil
		}
	}
	return false, nil
}

// collect reads what the box and the processor hold, stops the box and audits it.
func (w *World) collect(ctx context.Context) (Evidence, error) {
	e := Evidence{Limits: w.limits, Shops: map[tenants.ID]Books{}, Exposed: w.box.Exposed("")}
	for _, shop := range shops {
		books, err := w.box.books(ctx, shop)
		if err != nil {
			return e, err
		}
		e.Shops[shop] = books
		if err := w.tally.books(ctx, w.box.Ledger, shop, books); err != nil {
			return e, err
		}
		w.tells(ctx, shop, books)
	}
	var err error
	if e.Compared, err = w.reconcile(ctx); err != nil {
		return e, err
	}
	if err := w.box.close(); err != nil {
		return e, fmt.Errorf("close: %w", err)
	}
	if e.Findings, err = w.box.audit(ctx); err != nil {
		return e, fmt.Errorf("audit: %w", err)
	}
	made := w.sim.Ledger()
	e.Charges, e.Refunds = made.Charges, made.Refunds
	for fault, n := range w.sim.Fired() {
		w.tally[fault] += int(n)
	}
	e.Asks, e.Exchanges, e.Sights, e.Outages, e.Cases = w.log.asks, w.log.exchanges, w.log.sights, w.log.outages, w.log.cases
	e.Garbled = w.tally["garbage"] > 0
	w.tally.exchanges(e)
	return e, nil
}

// tells traces what was done for each payment that is not settled, for whoever reads why.
func (w *World) tells(ctx context.Context, shop tenants.ID, books Books) {
	for _, p := range books.Payments {
		if p.Status != ledger.Pending {
			continue
		}
		job, err := w.box.engine.Get(string(shop), ledger.PaymentsQueue, string(p.ID))
		w.log.tracef("%s is %s; its job: %+v, %v", p.ID, p.Sync.State, job, err)
		steps, err := w.box.Attempts(ctx, shop, string(p.ID))
		for _, s := range steps {
			w.log.tracef("  %d. %s at %v: %s %s", s.N, s.Step, s.At, text(s.Verdict), text(s.Reason))
		}
		if err != nil {
			w.log.tracef("  %v", err)
		}
	}
}

// books reads all that the box holds of a shop's.
func (b *box) books(ctx context.Context, shop tenants.ID) (books Books, err error) {
	for cursor, more := "", true; more; {
		page, err := b.Payments(ctx, shop, ledger.Filter{Limit: 100, Cursor: cursor})
		if err != nil {
			return books, err
		}
		books.Payments = append(books.Payments, page.Data...)
		cursor, more = page.NextCursor, page.HasMore
	}
	for cursor, more := "", true; more; {
		page, err := b.Refunds(ctx, shop, ledger.RefundFilter{Limit: 100, Cursor: cursor})
		if err != nil {
			return books, err
		}
		books.Refunds = append(books.Refunds, page.Data...)
		cursor, more = page.NextCursor, page.HasMore
	}
	for after, more := (ledger.Position{}), true; more; {
		page, err := b.Events(ctx, shop, ledger.EventFilter{After: after, Limit: 100})
		if err != nil {
			return books, err
		}
		books.Events = append(books.Events, page.Events...)
		after, more = page.Next, page.More
	}
	return books, nil
}
