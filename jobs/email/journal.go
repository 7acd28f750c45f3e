package email

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/google/renameio/v2"

	"tenderbox/jobs"
)

// DESIGN.md explains journals: what a line means, and what holds after a crash at each point.

const (
	// A journal that ended is kept for some days, in case the outcome of its job was not written. One that did not end belongs to a
	// job that waits, and each of its runs writes it anew; after a quarter of a year without, the job was removed.
	endedKeep, openKeep = 7 * 24 * time.Hour, 90 * 24 * time.Hour

	// sweepAfter the start nothing is removed: a job that the last end of the process interrupted must run first.
	sweepAfter = time.Hour

	// journalBytesMax is read of a file: a thousand recipients have a thousand lines after it was written anew, and some more until then.
	journalBytesMax = 16 << 20
)

// outcomeState is what a line says about a recipient.
type outcomeState string

const (
	stateSent    outcomeState = "sent"    // acknowledged; nothing changes that any more
	stateRefused outcomeState = "refused" // for good
	stateLater   outcomeState = "later"   // for now
	stateUnknown outcomeState = "unknown" // sent, no answer
	stateEnd     outcomeState = "end"     // not about a recipient: the bulk is through
)

// outcome is a line of a journal: what became of recipient N at an attempt.
type outcome struct {
	N       int          `json:"n"`
	State   outcomeState `json:"s"`
	Attempt int          `json:"a,omitzero"`
	Error   string       `json:"e,omitzero"`
}

// final says whether a recipient is not tried again.
func (o outcome) final() bool { return o.State == stateSent || o.State == stateRefused }

// journals are the journals of all bulks, a file for each below the tenant's folder.
type journals struct {
	*folders
	now   func() time.Time
	begun time.Time
}

func newJournals(folder string, now func() time.Time) *journals {
	return &journals{folders: newFolders(folder, "bulk"), now: now, begun: now()}
}

// journal is what is known of one bulk's recipients. One goroutine has it: a job has one lease.
type journal struct {
	f        *os.File
	outcomes map[int]outcome
	ended    bool
}

// open reads a bulk's journal, writes it anew without what is out of date, and waits until the disk has it. A bulk that was through and
// runs again, because somebody wants it or because its outcome was not written, tries anew those who were not sent to.
func (js *journals) open(j *jobs.Job, recipients int) (*journal, error) {
	dir, err := js.of(j.Tenant)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, journalName(j))
	jn := &journal{outcomes: map[int]outcome{}}
	if err := jn.read(file, recipients); err != nil {
		return nil, err
	}
	if jn.ended {
		maps.DeleteFunc(jn.outcomes, func(_ int, o outcome) bool { return o.State != stateSent })
		jn.ended = false
	}
	var b bytes.Buffer
	for _, n := range slices.Sorted(maps.Keys(jn.outcomes)) {
		b.Write(jn.outcomes[n].line())
	}
	if err := renameio.WriteFile(file, b.Bytes(), 0o600, renameio.WithTempDir(dir), renameio.WithPermissions(0o600)); err != nil {
		return nil, err
	}
	if err := syncFolder(dir); err != nil {
		return nil, err
	}
	jn.f, err = os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	return jn, err
}

// journalName is a bulk's own: an id may be used again once its job is gone, so the time of its making belongs to it.
func journalName(j *jobs.Job) string {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(j.CreatedAt.UnixNano())))
	h.Write([]byte(j.Queue + "\x00" + j.ID))
	return hex.EncodeToString(h.Sum(nil)[:16]) + ".journal"
}

// read takes lines until one is not whole: what follows was never acknowledged to anybody.
func (jn *journal) read(file string, recipients int) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, journalBytesMax))
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		o, ok := parseLine(line)
		if !ok {
			break
		}
		switch {
		case o.State == stateEnd:
			jn.ended = true
		case o.N >= 0 && o.N < recipients:
			jn.outcomes[o.N] = o
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// line is a checksum of eight digits, a space, JSON, and the end of the line.
func (o outcome) line() []byte {
	b, _ := json.Marshal(o, json.Deterministic(true)) // numbers and text
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(b, castagnoli), b)
}

func parseLine(line []byte) (o outcome, ok bool) {
	sum, b, ok := bytes.Cut(line, []byte(" "))
	if !ok || !bytes.HasSuffix(b, []byte("\n")) {
		return o, false
	}
	b = b[:len(b)-1]
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil || uint32(want) != crc32.Checksum(b, castagnoli) {
		return o, false
	}
	return o, json.Unmarshal(b, &o) == nil
}

// note writes an outcome and waits until the disk has it.
func (jn *journal) note(o outcome) error {
	if _, err := jn.f.Write(o.line()); err != nil {
		return err
	}
	if err := jn.f.Sync(); err != nil {
		return err
	}
	jn.outcomes[o.N] = o
	return nil
}

// end notes that the bulk is through.
func (jn *journal) end() error {
	if _, err := jn.f.Write(outcome{State: stateEnd}.line()); err != nil {
		return err
	}
	return jn.f.Sync()
}

// final is how many recipients are not tried again.
func (jn *journal) final() (n int) {
	for _, o := range jn.outcomes {
		if o.final() {
			n++
		}
	}
	return n
}

func (jn *journal) close() { jn.f.Close() }

// sweep removes journals of a tenant that nobody needs any more. What it cannot do it does at another time.
func (js *journals) sweep(tenant string) {
	now := js.now()
	if now.Sub(js.begun) < sweepAfter {
		return
	}
	dir, err := js.of(tenant)
	if err != nil {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), ".journal") {
			continue
		}
		file := filepath.Join(dir, e.Name())
		age := now.Sub(info.ModTime())
		if age > openKeep || age > endedKeep && hasEnded(file) {
			_ = os.Remove(file)
		}
	}
}

// hasEnded says whether a journal's bulk is through.
func hasEnded(file string) bool {
	jn := &journal{outcomes: map[int]outcome{}}
	return jn.read(file, 0) == nil && jn.ended
}

// toLine makes text fit for one line.
func toLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
