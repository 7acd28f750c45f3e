package shards_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tenderbox/shards"
)

// epochOf opens the folder, as a start does, and closes it.
func epochOf(t *testing.T, dir string) uint64 {
	t.Helper()
	s, err := shards.Open(ctx, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return s.Manifest().Epoch
}

func TestCopyBeginsAnotherEpoch(t *testing.T) {
	dir := tempDir(t)
	if got := epochOf(t, dir); got != 1 {
		t.Fatalf("a new folder's epoch is %d", got)
	}
	copied := filepath.Join(t.TempDir(), "copied")
	copyFolder(t, dir, copied)
	first := epochOf(t, copied)
	if first <= 1 {
		t.Errorf("the copy's epoch is %d", first)
	}
	for range 3 {
		if got := epochOf(t, copied); got != first {
			t.Errorf("a restart of the copy made epoch %d of %d", got, first)
		}
	}
	if got := epochOf(t, dir); got != 1 {
		t.Errorf("the original's epoch became %d", got)
	}
	moved := filepath.Join(filepath.Dir(copied), "moved")
	if err := os.Rename(copied, moved); err != nil {
		t.Fatal(err)
	}
	if got := epochOf(t, moved); got != first {
		t.Errorf("renaming made epoch %d of %d", got, first)
	}
	a, err := shards.Audit(ctx, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAuditOfCopyBeginsNoEpoch(t *testing.T) {
	dir := tempDir(t)
	epochOf(t, dir)
	copied := filepath.Join(t.TempDir(), "copied")
	copyFolder(t, dir, copied)
	a, err := shards.Audit(ctx, copied, options())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got := a.Manifest().Epoch; got != 1 {
		t.Errorf("epoch %d", got)
	}
}

// A folder of an older program has no seat and is no copy; a seat that is damaged might be anyone's.
func TestSeatThatSaysNothing(t *testing.T) {
	dir := tempDir(t)
	epochOf(t, dir)
	file := filepath.Join(dir, "seat")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := epochOf(t, dir); got != 1 {
		t.Errorf("without a seat the epoch became %d", got)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the seat was not written down: %v", err)
	}
	if err := os.WriteFile(file, []byte("\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := epochOf(t, dir); got <= 1 {
		t.Errorf("with a damaged seat the epoch stayed %d", got)
	}
}

func TestNewEpoch(t *testing.T) {
	dir := tempDir(t)
	if _, err := shards.NewEpoch(dir); err == nil {
		t.Error("a folder that is not there has a new epoch")
	}
	s, err := shards.Open(ctx, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shards.NewEpoch(dir); !errors.Is(err, shards.ErrLocked) {
		t.Errorf("while a box runs: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	epoch, err := shards.NewEpoch(dir)
	if err != nil || epoch <= 1 {
		t.Fatalf("epoch %d: %v", epoch, err)
	}
	if got := epochOf(t, dir); got != epoch {
		t.Errorf("the folder opens in epoch %d, want %d", got, epoch)
	}
}

func TestSeats(t *testing.T) {
	home := shards.Seat{Machine: "m", Hardware: "h", Born: 5, Inode: 7}
	for name, c := range map[string]struct {
		seat shards.Seat
		same bool
	}{
		"equal":                              {home, true},
		"another system":                     {shards.Seat{Machine: "x", Hardware: "h", Born: 5, Inode: 7}, false},
		"another machine":                    {shards.Seat{Machine: "m", Hardware: "x", Born: 5, Inode: 7}, false},
		"made at another time":               {shards.Seat{Machine: "m", Hardware: "h", Born: 6, Inode: 7}, false},
		"another number, made then":          {shards.Seat{Machine: "m", Hardware: "h", Born: 5, Inode: 8}, true},
		"another number, time unknown":       {shards.Seat{Machine: "m", Hardware: "h", Inode: 8}, false},
		"same number, time unknown":          {shards.Seat{Machine: "m", Hardware: "h", Inode: 7}, true},
		"run by a user that sees less":       {shards.Seat{Machine: "m", Born: 5, Inode: 7}, true},
		"nothing known":                      {shards.Seat{}, true},
		"only the number is known and it is": {shards.Seat{Inode: 7}, true},
	} {
		if c.seat.Is(home) != c.same || home.Is(c.seat) != c.same {
			t.Errorf("%s: want %v", name, c.same)
		}
	}
}

// A seat that cannot be read keeps no box from starting.
func TestSeatThatIsAFolder(t *testing.T) {
	dir := tempDir(t)
	epochOf(t, dir)
	file := filepath.Join(dir, "seat")
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
		t.Fatal(err)
	}
	if got := epochOf(t, dir); got <= 1 {
		t.Errorf("the epoch stayed %d", got)
	}
}
