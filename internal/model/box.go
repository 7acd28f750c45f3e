package model

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/ledger"
	"tenderbox/shards/shardstest"
	"tenderbox/store"
	"tenderbox/tenants"
	"tenderbox/upstream"
	"tenderbox/upstream/upstreamtest"
)

const (
	// keyMemory is the box's, a fortieth of the default: an hour of the model is as good as two days, and costs a fortieth of the probes.
	keyMemory = 30 * time.Minute
	// forgetAfter is the processor's, as much longer as Stripe's 24 h are than the box's 20.
	forgetAfter = 36 * time.Minute
	// probeInterval is slower than the box's default for the same reason.
	probeInterval = 15 * time.Second
	// files are two, so that keys, exposure and events meet over more than one shard.
	files = 2

	jobsFile    = "jobs.db"
	boxFile     = "box.db"
	keyFile     = "box.key"
	shardsDir   = "shards"
	reserveFile = "reserve"
	seatFile    = "seat"
)

// queues are those that the ledger's listeners use; nobody works on those that are not about money.
var queues = []jobs.QueueConfig{{Name: ledger.PaymentsQueue}, {Name: ledger.EmailQueue}, {Name: ledger.NotificationsQueue},
	{Name: ledger.ProcessingQueue}, {Name: ledger.EventsQueue}}

// A box is one life of the program on a folder: everything real from the ledger down, and a line of its own to the processor, which ends with
// it as a process's connections do.
type box struct {
	*ledger.Ledger
	life int
	dir  string
	disk *shardstest.Disk
	line *upstreamtest.Line

	registry *tenants.Registry
	engine   *jobs.Engine
	queue    *store.Store
	settings *store.Store

	ctx    context.Context // ends with this life
	cancel context.CancelFunc
	loops  sync.WaitGroup // the box's own
	calls  sync.WaitGroup // requests of clients

	dead   atomic.Bool // the power has gone: what it still answers, nobody hears
	remain remains     // written once, before dead is set
}

// remains are what a power cut leaves: of the shards what was synced and, as a draw decides, some of what was not; of the queue its last commit.
type remains struct {
	shards shardstest.Image
	queue  []byte
	err    error
}

// open starts a box on dir. The folder's shards are watched from the first write on; cutAt, if positive, is for box.cutAt.
func open(t testing.TB, dir string, life int, c *clocks, line *upstreamtest.Line, cutAt int) (_ *box, err error) {
	b := &box{life: life, dir: dir, line: line}
	b.disk = shardstest.NewDisk(t, filepath.Join(dir, shardsDir))
	// The reserve of disk space is not watched, and it is a link, because the space that it takes up is the same for all.
	reserve := filepath.Join(dir, shardsDir, reserveFile)
	if err := os.Remove(reserve); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b.disk.Record(t)
	if err := os.Link(filepath.Join(dir, reserveFile), reserve); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	kr, err := tenants.LoadKeyring(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	if b.settings, err = store.Open(filepath.Join(dir, boxFile), store.Options{}); err != nil {
		return nil, err
	}
	if b.queue, err = store.Open(filepath.Join(dir, jobsFile), store.Options{}); err != nil {
		return nil, err
	}
	if b.registry, err = tenants.Open(b.settings, kr, tenants.Options{}); err != nil {
		return nil, err
	}
	if cutAt > 0 {
		b.cutAt(cutAt)
	}
	if b.engine, err = jobs.Open(b.queue, jobs.Options{Queues: queues, Now: c.schedule}); err != nil {
		return nil, err
	}
	accounts := upstream.NewAccounts(upstream.Config{URL: upstreamtest.URL, Key: "sk_test", Dial: line.Dial, ProbeInterval: probeInterval})
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.Ledger, err = ledger.Open(b.ctx, ledger.Options{Dir: filepath.Join(dir, shardsDir), Files: files, Keyring: kr, Tenants: b.registry, Jobs: b.engine,
		Accounts: accounts, KeyMemory: keyMemory, Now: c.wall})
	if err != nil {
		return nil, err
	}
	b.loops.Go(func() { _ = accounts.Run(b.ctx) })
	b.loops.Go(func() {
		if err := b.Run(b.ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the box's loops ended: %v", err)
		}
	})
	return b, nil
}

// cut takes the power away at this moment.
func (b *box) cut() { b.disk.Cut(b.die) }

// cutAt takes the power away in the n-th change of the disk from now on.
func (b *box) cutAt(n int) { b.disk.CutAt(n, b.die) }

// die runs within the disk: nothing is written to the shards meanwhile, so that the queue can hold no job of a change that is lost, and no
// client hears of one. What the box has sent is on its way; nothing more leaves.
func (b *box) die(left shardstest.Image) {
	if b.dead.Load() {
		return
	}
	var queue bytes.Buffer
	_, err := b.queue.Backup(&queue)
	b.remain = remains{left, queue.Bytes(), err}
	b.dead.Store(true)
	b.line.Set(upstreamtest.Refused)
}

// close ends the process, after a power cut too: its goroutines are real, and what they still write is in a folder that nobody reads.
func (b *box) close() error {
	b.cancel()
	b.calls.Wait()
	b.loops.Wait()
	err := errors.Join(b.Ledger.Close(), b.engine.Close(), b.queue.Close(), b.settings.Close())
	if b.dead.Load() {
		return nil
	}
	return err
}

// restore makes the folder that the power cut left.
func (b *box) restore(dir string, draw uint64) error {
	if b.remain.err != nil {
		return b.remain.err
	}
	if err := b.remain.shards.Restore(filepath.Join(dir, shardsDir), draw); err != nil {
		return err
	}
	for _, name := range []string{boxFile, keyFile, reserveFile} { // none of them changes while the model runs
		if err := os.Link(filepath.Join(b.dir, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, jobsFile), b.remain.queue, 0o600)
}

// audit is `tenderbox check` of the folder of a box that was closed.
func (b *box) audit(ctx context.Context) (findings []ledger.Finding, err error) {
	kr, err := tenants.LoadKeyring(filepath.Join(b.dir, keyFile))
	if err != nil {
		return nil, err
	}
	queue, err := store.Open(filepath.Join(b.dir, jobsFile), store.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, queue.Close()) }()
	engine, err := jobs.Open(queue, jobs.Options{Queues: queues})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	return ledger.Check(ctx, ledger.CheckOptions{Dir: filepath.Join(b.dir, shardsDir), Keyring: kr, Tenants: b.registry.List(), Jobs: engine})
}
