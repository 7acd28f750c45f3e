package shardstest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Op is a kind of file operation.
type Op int

// The operations that SQLite makes. Its shared memory is not among them: it is the
// WAL's index, which no power cut survives.
const (
	OpOpen Op = iota
	OpRead
	OpWrite
	OpSync
	OpTruncate
	OpDelete
)

// Outcome is what an injected fault does.
type Outcome int

// Outcomes of a Fault.
const (
	passed     Outcome = iota
	IOError            // EIO: nothing was done
	NoSpace            // ENOSPC; for a Write
	ShortWrite         // half is written, then EIO; for a Write
)

// Fault makes operations fail.
type Fault struct {
	Op      Op
	Suffix  string  // of the path: "0000.db-wal"; empty: every file
	Skip    int     // so many matching operations pass first
	Times   int     // then so many fail; 0: all
	Outcome Outcome // default IOError

	// Do, if set, runs in the operation instead of making it fail: to wait, to note, to
	// inject something else. It must not use the Disk's methods nor SQLite.
	Do func()

	seen, fired int
}

// Disk controls what happens below SQLite in one folder.
type Disk struct {
	dir string

	mu       sync.Mutex
	faults   []*Fault
	fired    int
	capacity int64            // bytes that the folder may hold; 0: no limit
	sizes    map[string]int64 // with capacity

	// With Record: what a power cut would leave.
	files map[string]*modelFile
	lying bool
	ops   int
	cutAt int
	cut   func(Image)
}

// modelFile is a file as a disk with a volatile cache holds it.
type modelFile struct {
	durable []byte
	exists  bool // its name is durable
	pending []change
}

// change is a write since the last sync, or a truncation (data is nil).
type change struct {
	off  int64
	data []byte
}

// NewDisk takes control of a folder until the test ends. It must be called before the
// Set is opened.
func NewDisk(t testing.TB, dir string) *Disk {
	t.Helper()
	registerShim()
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &Disk{dir: dir}
	shim.mu.Lock()
	shim.disks = append(shim.disks, d)
	shim.mu.Unlock()
	t.Cleanup(func() {
		shim.mu.Lock()
		defer shim.mu.Unlock()
		shim.disks = slices.DeleteFunc(shim.disks, func(e *Disk) bool { return e == d })
	})
	return d
}

// Fail adds a fault.
func (d *Disk) Fail(f Fault) {
	if f.Outcome == passed {
		f.Outcome = IOError
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, &f)
}

// Heal removes all faults and the limit of space.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = nil
	d.capacity = 0
}

// Fired is how often a fault took effect since the beginning: a test that injects
// faults asserts that they came.
func (d *Disk) Fired() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fired
}

// Limit leaves room for so many bytes more than the files hold now.
func (d *Disk) Limit(t testing.TB, room int64) {
	t.Helper()
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	var total int64
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && !strings.HasSuffix(e.Name(), "-shm") {
			sizes[filepath.Join(d.dir, e.Name())] = fi.Size()
			total += fi.Size()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sizes = sizes
	d.capacity = total + room
}

// before decides about an operation.
func (d *Disk) before(op Op, path string, off int64, n int32) Outcome {
	d.mu.Lock()
	for _, f := range d.faults {
		if f.Op != op || !strings.HasSuffix(path, f.Suffix) {
			continue
		}
		f.seen++
		if f.seen <= f.Skip || (f.Times > 0 && f.fired >= f.Times) {
			continue
		}
		f.fired++
		d.fired++
		if f.Do != nil {
			d.mu.Unlock()
			f.Do()
			return passed
		}
		d.mu.Unlock()
		return f.Outcome
	}
	defer d.mu.Unlock()
	if op == OpWrite && d.capacity > 0 {
		var total int64
		for p, size := range d.sizes {
			switch {
			case p == path:
			case strings.HasSuffix(p, ".db"), strings.HasSuffix(p, "-wal"):
				total += size
			default: // written past SQLite
				if fi, err := os.Stat(p); err == nil {
					total += fi.Size()
				}
			}
		}
		size := max(d.sizes[path], off+int64(n))
		if size > d.sizes[path] && total+size > d.capacity {
			d.fired++
			return NoSpace
		}
		d.sizes[path] = size
	}
	return passed
}

// Record starts the model of what is durable: everything that is in the folder now.
func (d *Disk) Record(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = map[string]*modelFile{}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "-shm") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d.dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		d.files[filepath.Join(d.dir, e.Name())] = &modelFile{durable: b, exists: true}
	}
}

// Lie makes the recorded disk one that says it synced and did not: what a checker of
// durability must notice.
func (d *Disk) Lie() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lying = true
}

// CutAt calls f in the n-th changing operation from now on with what a power cut at
// this moment would leave. f must not use the Disk nor SQLite.
func (d *Disk) CutAt(n int, f func(Image)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops, d.cutAt, d.cut = 0, n, f
}

// Cut is CutAt for this moment: nothing is written while f runs.
func (d *Disk) Cut(f func(Image)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = nil
	f(d.image())
}

func (d *Disk) model(path string) *modelFile {
	f := d.files[path]
	if f == nil {
		f = &modelFile{}
		d.files[path] = f
	}
	return f
}

// did counts an operation that the model has taken in.
func (d *Disk) did() {
	d.ops++
	if d.cut != nil && d.ops == d.cutAt {
		d.cut(d.image())
		d.cut = nil
	}
}

func (d *Disk) wrote(path string, off int64, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files != nil {
		f := d.model(path)
		f.pending = append(f.pending, change{off, slices.Clone(data)})
		d.did()
	}
}

func (d *Disk) truncated(path string, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.capacity > 0 {
		d.sizes[path] = size
	}
	if d.files != nil {
		f := d.model(path)
		f.pending = append(f.pending, change{off: size})
		d.did()
	}
}

func (d *Disk) synced(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files != nil {
		f := d.model(path)
		if !d.lying {
			for _, c := range f.pending {
				f.durable = c.apply(f.durable)
			}
			f.pending = nil
			f.exists = true
		}
		d.did()
	}
}

func (d *Disk) deleted(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.capacity > 0 {
		delete(d.sizes, path)
	}
	if d.files != nil {
		delete(d.files, path)
		d.did()
	}
}

func (c change) apply(b []byte) []byte {
	if c.data == nil {
		if c.off < int64(len(b)) {
			return b[:c.off]
		}
		return append(b, make([]byte, c.off-int64(len(b)))...)
	}
	if end := c.off + int64(len(c.data)); end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[c.off:], c.data)
	return b
}

// Image is what a disk held at one moment: certain contents and writes that may or
// may not have reached it.
type Image struct{ files map[string]*modelFile }

func (d *Disk) image() Image {
	files := map[string]*modelFile{}
	for path, f := range d.files {
		files[filepath.Base(path)] = &modelFile{
			durable: slices.Clone(f.durable), exists: f.exists, pending: slices.Clone(f.pending),
		}
	}
	return Image{files}
}

// sector is the unit that a disk writes whole.
const sector = 512

// Restore writes one possible outcome of the power cut into a new folder: of the
// unsynced writes each sector was written or not, in any order, as the seed decides.
func (i Image) Restore(dir string, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names := make([]string, 0, len(i.files))
	for name := range i.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f := i.files[name]
		if !f.exists && rng.IntN(2) == 0 {
			continue
		}
		b := slices.Clone(f.durable)
		mode := rng.IntN(4) // all lost, all written, any sector, a prefix
		prefix := rng.IntN(len(f.pending) + 1)
		for n, c := range f.pending {
			switch {
			case mode == 0, mode == 3 && n >= prefix:
				continue
			case mode == 1, mode == 3, c.data == nil:
				b = c.apply(b)
			default:
				for at := 0; at < len(c.data); at += sector {
					if rng.IntN(2) == 0 {
						end := min(at+sector, len(c.data))
						b = change{c.off + int64(at), c.data[at:end]}.apply(b)
					}
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (o Op) String() string {
	return [...]string{"open", "read", "write", "sync", "truncate", "delete"}[o]
}

func (o Outcome) String() string {
	switch o {
	case IOError:
		return "EIO"
	case NoSpace:
		return "ENOSPC"
	case ShortWrite:
		return "short write"
	}
	return fmt.Sprintf("outcome %d", int(o))
}
