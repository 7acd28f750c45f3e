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

	"go.etcd.io/bbolt"
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
		err = verify(f, m, false)
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

// verifier walks one snapshot of a file.
type verifier struct {
	r    io.ReaderAt
	m    meta
	used []uint64 // a bit a page
}

// verify walks all pages that m reaches. strict also wants every other page to be on the list of free ones.
func verify(r io.ReaderAt, m meta, strict bool) error {
	if m.highWater < 4 || m.root >= m.highWater {
		return fmt.Errorf("header: root %d, high water %d", m.root, m.highWater)
	}
	v := &verifier{r: r, m: m, used: make([]uint64, m.highWater/64+1)}
	if err := errors.Join(v.mark(0), v.mark(1)); err != nil {
		return err
	}
	if err := v.tree(m.root, nil, nil, 0); err != nil {
		return err
	}
	if m.freelist == noFreelist {
		return nil
	}
	return v.freelist(strict)
}

func (v *verifier) isUsed(id uint64) bool { return v.used[id/64]&(1<<(id%64)) != 0 }

func (v *verifier) mark(id uint64) error {
	if id >= v.m.highWater {
		return fmt.Errorf("page %d: beyond the last one", id)
	}
	if v.isUsed(id) {
		return fmt.Errorf("page %d: used twice", id)
	}
	v.used[id/64] |= 1 << (id % 64)
	return nil
}

// page reads page id with its overflow and marks it used.
func (v *verifier) page(id uint64) ([]byte, error) {
	if err := v.mark(id); err != nil {
		return nil, err
	}
	buf := make([]byte, v.m.pageSize)
	if _, err := v.r.ReadAt(buf, int64(id)*v.m.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if got := le.Uint64(buf); got != id {
		return nil, fmt.Errorf("page %d: calls itself %d", id, got)
	}
	overflow := uint64(le.Uint32(buf[12:]))
	if overflow == 0 {
		return buf, nil
	}
	if overflow >= v.m.highWater-id {
		return nil, fmt.Errorf("page %d: reaches beyond the last one", id)
	}
	for i := range overflow {
		if err := v.mark(id + 1 + i); err != nil {
			return nil, err
		}
	}
	buf = append(buf, make([]byte, int64(overflow)*v.m.pageSize)...)
	if _, err := v.r.ReadAt(buf, int64(id)*v.m.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return buf, nil
}

// tree verifies the subtree of page id, whose keys lie in [low, high); nil: no bound.
func (v *verifier) tree(id uint64, low, high []byte, depth int) error {
	if depth > depthMax {
		return fmt.Errorf("page %d: nested too deeply", id)
	}
	buf, err := v.page(id)
	if err != nil {
		return err
	}
	switch flags := le.Uint16(buf[8:]); flags {
	case flagLeaf:
		return v.leaf(id, buf, low, high, depth)
	case flagBranch:
		return v.branch(id, buf, low, high, depth)
	default:
		return fmt.Errorf("page %d: type %#x where a tree should go on", id, flags)
	}
}

func (v *verifier) branch(id uint64, buf, low, high []byte, depth int) error {
	count := int(le.Uint16(buf[10:]))
	if count == 0 || pageHeader+count*elementBytes > len(buf) {
		return fmt.Errorf("page %d: %d children", id, count)
	}
	type child struct {
		id  uint64
		key []byte
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
	for i, c := range children {
		end := high
		if i+1 < count {
			end = children[i+1].key
		}
		if err := v.tree(c.id, c.key, end, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) leaf(id uint64, buf, low, high []byte, depth int) error {
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
			err = v.bucket(value, depth+1)
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
func (v *verifier) bucket(value []byte, depth int) error {
	if len(value) < bucketHeader || depth > depthMax {
		return fmt.Errorf("bucket header of %d bytes at depth %d", len(value), depth)
	}
	if root := le.Uint64(value); root != 0 {
		return v.tree(root, nil, nil, depth)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || le.Uint16(inline[8:]) != flagLeaf || le.Uint32(inline[12:]) != 0 {
		return errors.New("inline bucket without a leaf page")
	}
	return v.leaf(0, inline, nil, nil, depth)
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

func (v *verifier) freelist(strict bool) error {
	buf, err := v.page(v.m.freelist)
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
		if err := v.mark(le.Uint64(ids[8*i:])); err != nil {
			return fmt.Errorf("list of free pages: %w", err)
		}
	}
	if !strict {
		return nil
	}
	for id := range v.m.highWater {
		if !v.isUsed(id) {
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
		err = verify(f.os, m, true)
	}
	if err != nil {
		return &CorruptError{f.path, err}
	}
	return nil
}
