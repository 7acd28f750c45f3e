package shards

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
)

const (
	manifestName   = "manifest.json"
	manifestFormat = 1
	manifestMax    = 1 << 20 // bytes; 1024 single-slot ranges need 50 KiB
	programName    = "tenderbox"
)

// Manifest tells what a folder of shards is. It is written whole, by rename, and
// carries a checksum: a flipped digit would send users to a wrong file.
type Manifest struct {
	BoxID string   // random, made at the first start
	Epoch uint64   // 1 at first; a restored or cloned box gets another
	Hash  string   // SlotHash of the program that made the folder
	Slots int      // SlotCount of the program that made the folder
	Files []string // file names; the index is the shard's id

	// Assignment maps slots to shards: ranges without gaps, ascending.
	Assignment []SlotRange

	// created is false until every file exists. Before that nothing was ever
	// accepted, so missing files are made; after that a missing file is damage.
	created bool
}

// SlotRange gives the slots First to Last to one shard.
type SlotRange struct {
	First Slot `json:"first"`
	Last  Slot `json:"last"`
	Shard int  `json:"shard"`
}

// manifestFile is the manifest as it stands on disk.
type manifestFile struct {
	Program    string      `json:"program"`
	Format     int         `json:"format"`
	BoxID      string      `json:"box_id"`
	Epoch      uint64      `json:"epoch"`
	Hash       string      `json:"hash"`
	Slots      int         `json:"slots"`
	Files      []string    `json:"files"`
	Assignment []SlotRange `json:"assignment"`
	Created    bool        `json:"created"`
	Checksum   string      `json:"checksum"` // SHA-256 of this document with an empty checksum
}

// newManifest cuts the slots into equal ranges, one a file.
func newManifest(files int) Manifest {
	m := Manifest{
		BoxID: strings.ToLower(rand.Text()),
		Epoch: 1,
		Hash:  SlotHash,
		Slots: SlotCount,
	}
	for i := range files {
		m.Files = append(m.Files, fmt.Sprintf("%04d.db", i))
		m.Assignment = append(m.Assignment, SlotRange{
			First: Slot(i * SlotCount / files),
			Last:  Slot((i+1)*SlotCount/files - 1),
			Shard: i,
		})
	}
	return m
}

func (m Manifest) clone() Manifest {
	m.Files = slices.Clone(m.Files)
	m.Assignment = slices.Clone(m.Assignment)
	return m
}

// table lays the assignment out by slot.
func (m Manifest) table() ([SlotCount]int, error) {
	var t [SlotCount]int
	next := 0
	for _, r := range m.Assignment {
		if int(r.First) != next || r.Last < r.First || int(r.Last) >= SlotCount {
			return t, fmt.Errorf("slots %d to %d: not the continuation of slot %d", r.First, r.Last, next)
		}
		if r.Shard < 0 || r.Shard >= len(m.Files) {
			return t, fmt.Errorf("slots %d to %d are given to shard %d of %d", r.First, r.Last, r.Shard, len(m.Files))
		}
		for s := int(r.First); s <= int(r.Last); s++ {
			t[s] = r.Shard
		}
		next = int(r.Last) + 1
	}
	if next != SlotCount {
		return t, fmt.Errorf("slots from %d on are given to no shard", next)
	}
	return t, nil
}

func (f manifestFile) sum() string {
	f.Checksum = ""
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// write replaces the manifest durably: temporary file, fsync, rename, fsync of the folder.
func (m Manifest) write(dir string) error {
	f := manifestFile{
		Program: programName, Format: manifestFormat, BoxID: m.BoxID, Epoch: m.Epoch,
		Hash: m.Hash, Slots: m.Slots, Files: m.Files, Assignment: m.Assignment, Created: m.created,
	}
	f.Checksum = f.sum()
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, manifestName)
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600, renameio.WithTempDir(dir)); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = full(err)
		}
		return fmt.Errorf("shards: writing the manifest: %w", err)
	}
	return syncDir(dir)
}

// readManifest returns fs.ErrNotExist for a folder without one, MismatchError for
// one of another program, version or routing, CorruptError for a damaged one.
func readManifest(dir string) (Manifest, error) {
	path := filepath.Join(dir, manifestName)
	b, err := readUpTo(path, manifestMax+1)
	if err != nil {
		return Manifest{}, err
	}
	corrupt := func(format string, args ...any) (Manifest, error) {
		return Manifest{}, &CorruptError{Path: path, Cause: fmt.Errorf(format, args...)}
	}
	if len(b) > manifestMax {
		return corrupt("larger than %d bytes", manifestMax)
	}

	// Program and format first: a newer format may look different in all the rest.
	var head struct {
		Program string `json:"program"`
		Format  int    `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return corrupt("not a manifest: %w", err)
	}
	mismatch := func(what, want, have any) (Manifest, error) {
		return Manifest{}, &MismatchError{Path: path, What: fmt.Sprint(what), Want: fmt.Sprint(want), Have: fmt.Sprint(have)}
	}
	if head.Program != programName {
		return mismatch("program", programName, fmt.Sprintf("%q", head.Program))
	}
	if head.Format != manifestFormat {
		return mismatch("manifest format", manifestFormat, head.Format)
	}

	var f manifestFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return corrupt("not a manifest: %w", err)
	}
	if f.Checksum != f.sum() {
		return corrupt("checksum does not match: it was changed by hand or by the disk")
	}
	if f.Hash != SlotHash {
		return mismatch("slot hash", SlotHash, f.Hash)
	}
	if f.Slots != SlotCount {
		return mismatch("number of slots", SlotCount, f.Slots)
	}
	m := Manifest{
		BoxID: f.BoxID, Epoch: f.Epoch, Hash: f.Hash, Slots: f.Slots,
		Files: f.Files, Assignment: f.Assignment, created: f.Created,
	}
	if len(m.Files) == 0 || len(m.Files) > filesMax || m.BoxID == "" {
		return corrupt("no box id or no files")
	}
	for _, name := range m.Files {
		if name != filepath.Base(name) || !strings.HasSuffix(name, ".db") {
			return corrupt("file name %q", name)
		}
	}
	if _, err := m.table(); err != nil {
		return corrupt("%w", err)
	}
	return m, nil
}

// readUpTo reads a file's first most bytes.
func readUpTo(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, most))
}

// firstStart makes sure that a folder without manifest holds nothing but what a
// first start may have left, and writes the manifest of a box to be created.
func firstStart(dir string, files int) (Manifest, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Manifest{}, err
	}
	for _, e := range entries {
		if e.Name() == lockName || strings.HasPrefix(e.Name(), "."+manifestName) {
			continue // the lock, and a manifest that was never renamed
		}
		return Manifest{}, &MismatchError{
			Path: dir, What: "folder", Want: "a manifest, or nothing at all",
			Have: fmt.Sprintf("no manifest beside %s", e.Name()),
		}
	}
	m := newManifest(files)
	return m, m.write(dir)
}

// loadOrCreate reads the manifest, or begins a first start.
func loadOrCreate(dir string, files int) (Manifest, error) {
	m, err := readManifest(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return firstStart(dir, files)
	}
	return m, err
}

// syncDir makes names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
