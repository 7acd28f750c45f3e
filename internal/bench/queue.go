package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"tenderbox/jobs"
	"tenderbox/store"
)

const (
	// queuePart is the argument with which the program plays a queue in a process of its own, so that its CPU time and memory
	// are nobody else's: a kind and a folder follow. It does one task a line and answers each with one.
	queuePart = "queue"
	// benchQueue is the queue's name. No box has a worker for it.
	benchQueue = "bench"
	// bulkSize is how many jobs a bulk holds; 0 in a task: no bulk.
	bulkSize = 1000
)

// The kinds of a queue: the engine of package jobs, and the least that a durable queue has to do, which is to put each
// job's bytes into a bbolt file with group commit and to delete them when it is done.
const (
	engineKind = "engine"
	bareKind   = "bare"
)

// payload is a job's data: 200 bytes of JSON.
var payload = []byte(`{"to":"guest@example.com","subject":"Your receipt","text":"` + strings.Repeat("Thank you. ", 12) + `","n":12}`)

// task is what a queue is told to do.
type task struct {
	Do      string        `json:"do"` // enqueue or run
	Jobs    int           `json:"jobs"`
	At      int           `json:"at"`      // goroutines that enqueue, or jobs that run at once
	Bulk    int           `json:"bulk"`    // jobs in a call; 0: one
	Tenants int           `json:"tenants"` // that the jobs belong to by turns; 0: one
	Delay   time.Duration `json:"delay"`
}

const (
	enqueueTask = "enqueue"
	runTask     = "run"
)

// done is what became of it.
type done struct {
	Jobs    int           `json:"jobs"` // a run may end a few more than it was told
	Took    time.Duration `json:"took"`
	CPU     time.Duration `json:"cpu"`
	Commits uint64        `json:"commits"`
	Error   string        `json:"error,omitempty"`
}

func (d done) rate() float64    { return float64(d.Jobs) / d.Took.Seconds() }
func (d done) cpu() float64     { return float64(d.CPU) / float64(time.Microsecond) / float64(d.Jobs) }
func (d done) commits() float64 { return float64(d.Commits) / float64(d.Jobs) }

// playQueue is the part: it opens the queue, says so, and works off tasks until there are no more.
func playQueue(ctx context.Context, args []string, in io.Reader, out io.Writer) (err error) {
	if len(args) != 2 {
		return errors.New("the queue wants a kind and a folder")
	}
	s, err := store.Open(filepath.Join(args[1], "jobs.db"), store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var q interface {
		do(ctx context.Context, t task) (int, error)
		close() error
	}
	switch args[0] {
	case engineKind:
		q, err = openEngine(s)
	case bareKind:
		q, err = openBare(s)
	default:
		err = fmt.Errorf("no queue of kind %q", args[0])
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.close()) }()
	answers := json.NewEncoder(out)
	if err := answers.Encode(done{}); err != nil {
		return err
	}
	for tasks := json.NewDecoder(in); ; {
		var t task
		if err := tasks.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		commits, cpu, began := s.Stats().Commits, clientCPU(), time.Now()
		n, err := q.do(ctx, t)
		d := done{Jobs: n, Took: time.Since(began), CPU: clientCPU() - cpu, Commits: s.Stats().Commits - commits}
		if err != nil {
			d.Error = err.Error()
		}
		if err := answers.Encode(d); err != nil {
			return err
		}
	}
}

// engine is the queue that the box has.
type engine struct{ *jobs.Engine }

func openEngine(s *store.Store) (*engine, error) {
	e, err := jobs.Open(s, jobs.Options{Queues: []jobs.QueueConfig{{Name: benchQueue}}})
	return &engine{e}, err
}

func (e *engine) close() error { return e.Close() }

func (e *engine) do(ctx context.Context, t task) (int, error) {
	switch t.Do {
	case enqueueTask:
		return t.Jobs, produce(t, func(from, n int) error {
			batch := make([]jobs.NewJob, n)
			for i := range batch {
				batch[i] = jobs.NewJob{Queue: benchQueue, Tenant: tenantName(from+i, t.Tenants), Data: payload, Delay: t.Delay}
			}
			_, err := e.Enqueue(ctx, batch...)
			return err
		})
	case runTask:
		return e.run(ctx, t)
	default:
		return 0, fmt.Errorf("an engine cannot %q", t.Do)
	}
}

// run completes jobs by a handler that does nothing.
func (e *engine) run(ctx context.Context, t task) (int, error) {
	enough, stop := context.WithCancel(ctx)
	defer stop()
	var ended atomic.Int64
	r, err := e.NewRunner(jobs.RunnerOptions{Queue: benchQueue, Concurrency: t.At, Handler: func(context.Context, *jobs.Job) error {
		if ended.Add(1) == int64(t.Jobs) {
			stop()
		}
		return nil
	}})
	if err != nil {
		return 0, err
	}
	err = r.Run(enough)
	return int(ended.Load()), err
}

// bare is the bare loop. Its keys grow as the engine's do.
type bare struct {
	*store.Store
	first, next uint64 // keys from first on and below next are stored
}

var bareBucket = []byte("bare")

func openBare(s *store.Store) (*bare, error) {
	return &bare{Store: s}, s.Update(context.Background(), func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bareBucket)
		return err
	})
}

func (b *bare) close() error { return nil }

func (b *bare) do(ctx context.Context, t task) (int, error) {
	each := func(at uint64, do func(bucket *bbolt.Bucket, key []byte) error) error {
		return produce(t, func(from, n int) error {
			return b.Update(ctx, func(tx *bbolt.Tx) error {
				bucket := tx.Bucket(bareBucket)
				for i := range n {
					if err := do(bucket, binary.BigEndian.AppendUint64(nil, at+uint64(from+i))); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	switch t.Do {
	case enqueueTask:
		at := b.next
		b.next += uint64(t.Jobs)
		return t.Jobs, each(at, func(bucket *bbolt.Bucket, key []byte) error { return bucket.Put(key, payload) })
	case runTask:
		at := b.first
		b.first += uint64(t.Jobs)
		return t.Jobs, each(at, func(bucket *bbolt.Bucket, key []byte) error { return bucket.Delete(key) })
	default:
		return 0, fmt.Errorf("a bare loop cannot %q", t.Do)
	}
}

// produce calls do from as many goroutines as the task says until all its jobs were asked for, in portions of its bulk.
func produce(t task, do func(from, n int) error) error {
	var next atomic.Int64
	var all errgroup.Group
	portion := max(t.Bulk, 1)
	for range max(t.At, 1) {
		all.Go(func() error {
			for {
				from := int(next.Add(int64(portion))) - portion
				if from >= t.Jobs {
					return nil
				}
				if err := do(from, min(portion, t.Jobs-from)); err != nil {
					return err
				}
			}
		})
	}
	return all.Wait()
}

func tenantName(i, tenants int) string { return "tenant-" + strconv.Itoa(i%max(tenants, 1)) }

// queue is a process that plays one.
type queue struct {
	kind    string
	started time.Duration // until it was ready
	command *exec.Cmd
	tasks   io.WriteCloser
	answers *json.Decoder
	stop    sync.Once
}

// startQueue runs this program again as a queue on a folder.
func startQueue(ctx context.Context, kind, dir string) (*queue, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	q := &queue{kind: kind, command: exec.CommandContext(ctx, self, queuePart, kind, dir)}
	q.command.Stderr = os.Stderr
	if q.tasks, err = q.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := q.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	q.answers = json.NewDecoder(bufio.NewReader(out))
	began := time.Now()
	if err := q.command.Start(); err != nil {
		return nil, err
	}
	var ready done
	if err := q.answers.Decode(&ready); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: it does not become ready: %w", kind, err), q.close())
	}
	q.started = time.Since(began)
	return q, nil
}

// do has a task done.
func (q *queue) do(t task) (done, error) {
	var d done
	err := json.NewEncoder(q.tasks).Encode(t)
	if err == nil {
		err = q.answers.Decode(&d)
	}
	if err == nil && d.Error != "" {
		err = errors.New(d.Error)
	}
	if err == nil && d.Jobs < t.Jobs {
		err = fmt.Errorf("%d of %d jobs", d.Jobs, t.Jobs)
	}
	if err != nil {
		return done{}, fmt.Errorf("%s, %s at %d: %w", q.kind, cmp.Or(t.Do, "?"), t.At, err)
	}
	return d, nil
}

// close ends the queue in good order. Twice is fine.
func (q *queue) close() error {
	var err error
	q.stop.Do(func() { err = errors.Join(q.tasks.Close(), q.command.Wait()) })
	return err
}

func (q *queue) pid() int { return q.command.Process.Pid }
