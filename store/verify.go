package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// bbolt trusts its pages: a flipped bit can make it fault, recurse without end (which no recover can catch) or panic in
// a goroutine of its own. So every file is read and verified here before bbolt sees it. The format, in
// the machine's byte order, is bbolt's internal/common: meta.go, page.go, bucket.go.
const (
	pageMagic   = 0xED0CDAED
	pageVersion = 2

	pageHeader   = 16 // id u64, flags u16, count u16, overflow u32
	metaBytes    = 64 // magic, version, page size, flags u32; root, sequence, freelist, high water, txid, checksum u64
	elementBytes = 16 // branch: pos, key size u32, child u64. leaf: flags, pos, key size, value size u32
	bucketHeader = 16 // root, sequence u64; root 0: a page follows inline

	flagBranch, flagLeaf, flagMeta, flagFreelist = 0x01, 0x02, 0x04, 0x10
	leafIsBucket                                 = 0x01

	noFreelist   = ^uint64(0)
	depthMax     = 64      // of branch pages and nested buckets; a sound tree of a terabyte has ten
	pageSizeMin  = 1 << 10 // what bbolt itself looks for
	pageSizeMax  = 1 << 24
	countIsFirst = 0xFFFF // a freelist of more entries keeps its count in the first of them

	walkersMax = 8  // goroutines that verify a file: beyond it the disk is the limit
	shareMin   = 16 // pages that are worth a goroutine
)

var le = binary.NativeEndian

type meta struct {
	pageSize                        int64
	root, freelist, highWater, txid uint64
}

// verifyFile verifies the structure of a file that nobody writes to. Errors are *CorruptError or the disk's.
func verifyFile(f *os.File, path string, lg *slog.Logger) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	m, damaged, err := readMetas(f)
	if pages := uint64(info.Size() / max(m.pageSize, 1)); err == nil && m.highWater > pages {
		err = fmt.Errorf("cut short: %d pages of %d", pages, m.highWater)
	}
	if err == nil {
		err = verify(f, m, false, min(runtime.GOMAXPROCS(0), walkersMax))
	}
	if err != nil {
		return &CorruptError{path, err}
	}
	if damaged != nil {
		lg.Warn("store: one of the file's two headers is not valid; the last commit may be missing (usual after a power cut)",
			slog.String("file", path), slog.Any("err", damaged))
	}
	return nil
}

// readMetas returns the header in force, as bbolt chooses it: the valid one of the higher transaction. damaged says what is
// wrong with the other one.
func readMetas(r io.ReaderAt) (m meta, damaged, err error) {
	first, err0 := readMeta(r, 0)
	if err0 == nil {
		second, err1 := readMeta(r, first.pageSize)
		if err1 == nil && second.pageSize != first.pageSize {
			err1 = errors.New("headers disagree about the page size")
			return m, nil, err1
		}
		if err1 == nil && second.txid > first.txid {
			return second, nil, nil
		}
		return first, err1, nil
	}
	for size := int64(pageSizeMin); size <= pageSizeMax; size *= 2 {
		if second, err := readMeta(r, size); err == nil && second.pageSize == size {
			return second, err0, nil
		}
	}
	return m, nil, fmt.Errorf("no valid header: %w", err0)
}

func readMeta(r io.ReaderAt, at int64) (m meta, err error) {
	var buf [pageHeader + metaBytes]byte
	if _, err := r.ReadAt(buf[:], at); err != nil {
		return m, fmt.Errorf("header at %d: %w", at, err)
	}
	b := buf[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaBytes-8])
	m = meta{
		pageSize: int64(le.Uint32(b[8:])), root: le.Uint64(b[16:]),
		freelist: le.Uint64(b[32:]), highWater: le.Uint64(b[40:]), txid: le.Uint64(b[48:]),
	}
	switch {
	case le.Uint32(b) != pageMagic:
		return m, fmt.Errorf("header at %d: not a bbolt file", at)
	case le.Uint32(b[4:]) != pageVersion:
		return m, fmt.Errorf("header at %d: format %d", at, le.Uint32(b[4:]))
	case le.Uint64(b[56:]) != sum.Sum64():
		return m, fmt.Errorf("header at %d: wrong checksum", at)
	case m.pageSize < pageSizeMin || m.pageSize > pageSizeMax || m.pageSize&(m.pageSize-1) != 0:
		return m, fmt.Errorf("header at %d: page size %d", at, m.pageSize)
	}
	return m, nil
}

// verifier is what is known of one snapshot of a file. Walkers share it.
type verifier struct {
	r    io.ReaderAt
	m    meta
	used []uint64 // a bit a page; atomic

	others errgroup.Group // walkers beside the first one
	failed atomic.Bool    // somebody found something: the others need not go on
}

// walker goes through a part of the trees, on one goroutine.
type walker struct {
	*verifier
	spare [][]byte // pages that were read and are not looked at any more
}

// verify walks all pages that m reaches, with up to so many goroutines. strict also wants every other page to be on the list of free ones.
func verify(r io.ReaderAt, m meta, strict bool, walkers int) error {
	if m.highWater < 4 || m.root >= m.highWater {
		return fmt.Errorf("header: root %d, high water %d", m.root, m.highWater)
	}
	v := &verifier{r: r, m: m, used: make([]uint64, m.highWater/64+1)}
	v.others.SetLimit(walkers - 1)
	if err := errors.Join(v.mark(0), v.mark(1)); err != nil {
		return err
	}
	w := &walker{verifier: v}
	err := w.found(w.tree(m.root, nil, nil, 0))
	if others := v.others.Wait(); err == nil {
		err = others
	}
	if err != nil || m.freelist == noFreelist {
		return err
	}
	return w.freelist(strict)
}

// found tells the other walkers of an error.
func (v *verifier) found(err error) error {
	if err != nil {
		v.failed.Store(true)
	}
	return err
}

func (v *verifier) isUsed(id uint64) bool {
	return atomic.LoadUint64(&v.used[id/64])&(1<<(id%64)) != 0
}

// mark notes that a page is used. A page that is reached twice is found by whoever comes second, so nobody walks in circles.
func (v *verifier) mark(id uint64) error {
	if id >= v.m.highWater {
		return fmt.Errorf("page %d: beyond the last one", id)
	}
	if bit := uint64(1) << (id % 64); atomic.OrUint64(&v.used[id/64], bit)&bit != 0 {
		return fmt.Errorf("page %d: used twice", id)
	}
	return nil
}

// page reads page id with its overflow and marks it used.
func (w *walker) page(id uint64) ([]byte, error) {
	if err := w.mark(id); err != nil {
		return nil, err
	}
	var buf []byte
	if last := len(w.spare) - 1; last >= 0 {
		buf, w.spare = w.spare[last], w.spare[:last]
	} else {
		buf = make([]byte, w.m.pageSize)
	}
	if _, err := w.r.ReadAt(buf, int64(id)*w.m.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if got := le.Uint64(buf); got != id {
		return nil, fmt.Errorf("page %d: calls itself %d", id, got)
	}
	overflow := uint64(le.Uint32(buf[12:]))
	if overflow == 0 {
		return buf, nil
	}
	if overflow >= w.m.highWater-id {
		return nil, fmt.Errorf("page %d: reaches beyond the last one", id)
	}
	for i := range overflow {
		if err := w.mark(id + 1 + i); err != nil {
			return nil, err
		}
	}
	w.done(buf)
	buf = make([]byte, int64(overflow+1)*w.m.pageSize)
	if _, err := w.r.ReadAt(buf, int64(id)*w.m.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return buf, nil
}

// done gives a page's memory back.
func (w *walker) done(buf []byte) {
	if int64(len(buf)) == w.m.pageSize {
		w.spare = append(w.spare, buf)
	}
}

// tree verifies the subtree of page id, whose keys lie in [low, high); nil: no bound.
func (w *walker) tree(id uint64, low, high []byte, depth int) error {
	if depth > depthMax {
		return fmt.Errorf("page %d: nested too deeply", id)
	}
	if w.failed.Load() {
		return nil
	}
	buf, err := w.page(id)
	if err != nil {
		return err
	}
	switch flags := le.Uint16(buf[8:]); flags {
	case flagLeaf:
		err := w.leaf(id, buf, low, high, depth)
		w.done(buf)
		return err
	case flagBranch:
		return w.branch(id, buf, low, high, depth) // other walkers may look at its keys still
	default:
		return fmt.Errorf("page %d: type %#x where a tree should go on", id, flags)
	}
}

func (w *walker) branch(id uint64, buf, low, high []byte, depth int) error {
	count := int(le.Uint16(buf[10:]))
	if count == 0 || pageHeader+count*elementBytes > len(buf) {
		return fmt.Errorf("page %d: %d children", id, count)
	}
	children := make([]child, count)
	for i := range children {
		at := pageHeader + i*elementBytes
		key, err := slice(buf, at, le.Uint32(buf[at:]), le.Uint32(buf[at+4:]))
		if err != nil {
			return fmt.Errorf("page %d, child %d: %w", id, i, err)
		}
		children[i] = child{le.Uint64(buf[at+8:]), key}
		if err := inOrder(key, low, high, i > 0); err != nil {
			return fmt.Errorf("page %d, child %d: %w", id, i, err)
		}
		low = key
	}
	return w.children(children, high, depth+1)
}

// child is a page below a branch page, and the first key that may be in it.
type child struct {
	id  uint64
	key []byte
}

// children verifies subtrees that follow each other, the last one's keys below high. While there are many it hands half of them to whoever has
// nothing to do.
func (w *walker) children(cs []child, high []byte, depth int) error {
	for i := 0; i < len(cs); i++ {
		if left := len(cs) - i; left >= shareMin {
			half := cs[i+left/2:]
			if w.others.TryGo(w.help(half, high, depth)) {
				cs, high = cs[:i+left/2], half[0].key
			}
		}
		end := high
		if i+1 < len(cs) {
			end = cs[i+1].key
		}
		if err := w.tree(cs[i].id, cs[i].key, end, depth); err != nil {
			return err
		}
	}
	return nil
}

// help is children on another walker's goroutine.
func (v *verifier) help(cs []child, high []byte, depth int) func() error {
	return func() error {
		w := &walker{verifier: v}
		return v.found(guard("", func() error { return w.children(cs, high, depth) }))
	}
}

func (w *walker) leaf(id uint64, buf, low, high []byte, depth int) error {
	count := int(le.Uint16(buf[10:]))
	if pageHeader+count*elementBytes > len(buf) {
		return fmt.Errorf("page %d: %d entries", id, count)
	}
	for i := range count {
		at := pageHeader + i*elementBytes
		flags, pos, keyLen, valueLen := le.Uint32(buf[at:]), le.Uint32(buf[at+4:]), le.Uint32(buf[at+8:]), le.Uint32(buf[at+12:])
		key, err := slice(buf, at, pos, keyLen)
		if err == nil {
			err = inOrder(key, low, high, i > 0)
		}
		var value []byte
		if err == nil {
			value, err = slice(buf, at+int(keyLen), pos, valueLen)
		}
		if err == nil && flags == leafIsBucket {
			err = w.bucket(value, depth+1)
		} else if err == nil && flags != 0 {
			err = fmt.Errorf("flags %#x", flags)
		}
		if err != nil {
			return fmt.Errorf("page %d, entry %d: %w", id, i, err)
		}
		low = key
	}
	return nil
}

// bucket verifies a bucket's tree from the value that stands for it in its parent.
func (w *walker) bucket(value []byte, depth int) error {
	if len(value) < bucketHeader || depth > depthMax {
		return fmt.Errorf("bucket header of %d bytes at depth %d", len(value), depth)
	}
	if root := le.Uint64(value); root != 0 {
		return w.tree(root, nil, nil, depth)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || le.Uint16(inline[8:]) != flagLeaf || le.Uint32(inline[12:]) != 0 {
		return errors.New("inline bucket without a leaf page")
	}
	return w.leaf(0, inline, nil, nil, depth)
}

// slice cuts n bytes at base+pos out of buf.
func slice(buf []byte, base int, pos, n uint32) ([]byte, error) {
	from := uint64(base) + uint64(pos)
	if to := from + uint64(n); to <= uint64(len(buf)) {
		return buf[from:to:to], nil
	}
	return nil, errors.New("reaches beyond its page")
}

// inOrder says whether key lies in [low, high), or above low if strict.
func inOrder(key, low, high []byte, strict bool) error {
	if len(key) == 0 {
		return errors.New("empty key")
	}
	if c := bytes.Compare(key, low); c < 0 || c == 0 && strict {
		return errors.New("keys out of order")
	}
	if high != nil && bytes.Compare(key, high) >= 0 {
		return errors.New("key belongs to a neighbour")
	}
	return nil
}

func (w *walker) freelist(strict bool) error {
	buf, err := w.page(w.m.freelist)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	if flags := le.Uint16(buf[8:]); flags != flagFreelist {
		return fmt.Errorf("list of free pages: type %#x", flags)
	}
	count, ids := uint64(le.Uint16(buf[10:])), buf[pageHeader:]
	if count == countIsFirst {
		if len(ids) < 8 {
			return errors.New("list of free pages: no count")
		}
		count, ids = le.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("list of free pages: %d entries", count)
	}
	for i := range count {
		if err := w.mark(le.Uint64(ids[8*i:])); err != nil {
			return fmt.Errorf("list of free pages: %w", err)
		}
	}
	if !strict {
		return nil
	}
	for id := range w.m.highWater {
		if !w.isUsed(id) {
			return fmt.Errorf("page %d: neither used nor free", id)
		}
	}
	return nil
}

// errHeader ends the copy that checkTx starts for the sake of its first page.
var errHeader = errors.New("header read")

// headerWriter keeps the first page of a copy, which is the header of the transaction's snapshot.
type headerWriter struct{ page []byte }

func (w *headerWriter) Write(p []byte) (int, error) {
	w.page = bytes.Clone(p)
	return 0, errHeader
}

// checkTx verifies the snapshot of a read transaction. Not by bbolt's own check: that runs in a goroutine
// which a fault would end together with the process.
func (f *file) checkTx(tx *bbolt.Tx) error {
	var w headerWriter
	if _, err := tx.WriteTo(&w); len(w.page) < pageHeader+metaBytes {
		return fmt.Errorf("read the header: %w", err)
	}
	m, err := readMeta(bytes.NewReader(w.page), 0)
	if err == nil {
		err = verify(f.os, m, true, 1) // whoever uses the store goes first
	}
	if err != nil {
		return &CorruptError{f.path, err}
	}
	return nil
}
