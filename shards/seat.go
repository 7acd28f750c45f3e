package shards

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

const (
	seatName     = "seat"
	seatBytesMax = 4096 // one is 250 bytes
	// epochStep bounds by how much an epoch is above the one before. The step is random, so that two copies of one folder
	// hardly ever count the same epoch. Event sequences have eight digits for it: room for 200,000 copies of copies.
	epochStep = 1000
)

// seat tells where a folder stands, as well as the system says. A member that is empty is not known. A folder that
// finds itself in another seat than the one written in it is a copy, or was restored: it begins a new epoch.
type seat struct {
	Machine  string `json:"machine,omitempty"`  // digest of the installed system's id
	Hardware string `json:"hardware,omitempty"` // digest of the machine's own id, that a cloned disk does not take along
	Born     int64  `json:"born,omitempty"`     // when the file system made the folder, in ns since 1970
	Inode    uint64 `json:"inode,omitempty"`    // of the folder
}

// Where Linux tells the ids.
const (
	machineFile  = "/etc/machine-id"
	hardwareFile = "/sys/class/dmi/id/product_uuid"              // for root only
	boardFile    = "/sys/firmware/devicetree/base/serial-number" // of small boards, which have no such id
)

// hereNow is the seat of a folder at present.
func hereNow(dir string) seat {
	born, inode := birth(dir)
	return seat{digestOf(machineFile), cmp.Or(digestOf(hardwareFile), digestOf(boardFile)), born, inode}
}

// digestOf keeps ids that systems want kept private out of the folder.
func digestOf(path string) string {
	b, err := os.ReadFile(path)
	id := strings.Trim(string(b), " \n\x00")
	if err != nil || id == "" || id == "uninitialized" {
		return ""
	}
	sum := sha256.Sum256([]byte(programName + "/seat/" + id))
	return hex.EncodeToString(sum[:8])
}

// is reports whether nothing says that the seats differ. A file system that knows when a folder was made need not keep its number,
// so that counts only where the time is unknown.
func (s seat) is(o seat) bool {
	differ := func(a, b string) bool { return a != "" && b != "" && a != b }
	if differ(s.Machine, o.Machine) || differ(s.Hardware, o.Hardware) {
		return false
	}
	if s.Born != 0 && o.Born != 0 {
		return s.Born == o.Born
	}
	return s.Inode == 0 || o.Inode == 0 || s.Inode == o.Inode
}

// with fills in what s does not know.
func (s seat) with(o seat) seat {
	if s.Machine == "" {
		s.Machine = o.Machine
	}
	if s.Hardware == "" {
		s.Hardware = o.Hardware
	}
	if s.Born == 0 {
		s.Born = o.Born
	}
	return s
}

// readSeat returns the seat that a folder has written down; false: none. One that cannot be read or understood is one that nobody has.
func readSeat(dir string) (s seat, found bool) {
	b, err := readUpTo(filepath.Join(dir, seatName), seatBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return seat{}, false
	}
	if err != nil || json.Unmarshal(b, &s) != nil {
		s = seat{Machine: "?", Hardware: "?", Born: -1, Inode: math.MaxUint64}
	}
	return s, true
}

func (s seat) write(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(dir, seatName), append(b, '\n'), 0o600, renameio.WithTempDir(dir)); err != nil {
		return fmt.Errorf("shards: writing the seat: %w", err)
	}
	return syncDir(dir)
}

// settle compares where the folder stands with where it says that it does, and begins another epoch if it was moved. The epoch is
// durable before the seat is: after a crash between the two, or if the disk has no room for the seat, the folder begins one more at the
// next start. One that says nothing was made by an older program, or its seat was taken out on purpose.
func (s *Set) settle() error {
	here := hereNow(s.dir)
	was, found := readSeat(s.dir)
	if found && !here.is(was) {
		m := s.manifest.nextEpoch()
		if err := m.write(s.dir); err != nil {
			return fmt.Errorf("this folder is a copy, and its new epoch could not be written down: %w", err)
		}
		s.manifest = m
	} else if found {
		here = here.with(was)
	}
	if !found || here != was {
		if err := here.write(s.dir); err != nil {
			s.o.Logger.Warn("where the folder stands is not written down", "err", err)
		}
	}
	return nil
}

func (m Manifest) nextEpoch() Manifest {
	m = m.clone()
	m.Epoch += 1 + rand.Uint64N(epochStep)
	return m
}

// NewEpoch begins another epoch in the folder of a stopped box: what a folder that is a copy does by itself, for one that cannot know.
// It returns the epoch. Errors as of [Open].
func NewEpoch(dir string) (epoch uint64, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return 0, err
	}
	lock, err := lockFolder(dir, false)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	m, err := readManifest(dir)
	if err != nil {
		return 0, err
	}
	m = m.nextEpoch()
	return m.Epoch, m.write(dir)
}
