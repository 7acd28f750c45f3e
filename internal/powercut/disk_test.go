package powercut

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// seeds is how many cuts each canary sees: what chance may do, it has then done.
const seeds = 40

// cut mounts a disk for each seed, lets use use it, and takes the power away when it is done; then look sees what is left.
func cut(t *testing.T, lie func(string) bool, use func(t *testing.T, dir string), look func(t *testing.T, d *Disk, dir string)) {
	t.Helper()
	for seed := range uint64(seeds) {
		dir := filepath.Join(t.TempDir(), "disk")
		d, err := Mount(dir, Options{Seed: seed, Lie: lie})
		if err != nil {
			t.Fatal(err)
		}
		use(t, dir)
		now, cancel := context.WithCancel(t.Context())
		cancel()
		d.Cut(now, 1<<30, func() {})
		err = d.Restore()
		if err == nil {
			look(t, d, dir)
			err = d.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, file, content string, sync bool) {
	t.Helper()
	f, err := os.Create(file)
	if err == nil {
		_, err = f.WriteString(content)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func syncFolder(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// read returns a file's content, or "-" if there is none.
func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// seen counts what a canary met, and complains about what it never did.
type seen map[string]int

func (s seen) want(t *testing.T, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		if s[kind] == 0 {
			t.Errorf("never in %d cuts: %s; only %v", seeds, kind, s)
		}
		delete(s, kind)
	}
	for kind := range s {
		t.Errorf("it happened that %s", kind)
	}
}

// big is a content of several blocks, no two alike and none of zeros.
var big = func() string {
	var b bytes.Buffer
	for i := range 5 {
		b.Write(bytes.Repeat([]byte{byte('a' + i)}, 4096))
	}
	return b.String()
}()

func TestSyncedStaysAndUnsyncedIsLeftToChance(t *testing.T) {
	synced, unsynced := seen{}, seen{}
	cut(t, nil, func(t *testing.T, dir string) {
		write(t, filepath.Join(dir, "synced"), big, true)
		write(t, filepath.Join(dir, "unsynced"), big, false)
		syncFolder(t, dir)
	}, func(t *testing.T, _ *Disk, dir string) {
		for name, s := range map[string]seen{"synced": synced, "unsynced": unsynced} {
			switch content := read(t, filepath.Join(dir, name)); content {
			case big:
				s["whole"]++
			case "":
				s["empty"]++
			case "-":
				s["without its name"]++
			default:
				s["torn"]++
			}
		}
	})
	synced.want(t, "whole")
	unsynced.want(t, "whole", "empty", "torn")
}

func TestLiesAreLost(t *testing.T) {
	lied := seen{}
	cut(t, func(name string) bool { return name == "lied" }, func(t *testing.T, dir string) {
		write(t, filepath.Join(dir, "lied"), big, true)
		write(t, filepath.Join(dir, "kept"), big, true)
		syncFolder(t, dir)
	}, func(t *testing.T, _ *Disk, dir string) {
		if read(t, filepath.Join(dir, "kept")) != big {
			t.Error("what the disk did not lie about is lost")
		}
		lied[map[bool]string{true: "whole", false: "lost"}[read(t, filepath.Join(dir, "lied")) == big]]++
	})
	lied.want(t, "whole", "lost")
}

func TestNamesFollowTheDiscipline(t *testing.T) {
	s := map[Discipline]seen{Strict: {}, Journal: {}}
	var was Discipline
	cut(t, nil, func(t *testing.T, dir string) {
		write(t, filepath.Join(dir, "new"), "content", true) // but the folder is not synced
	}, func(t *testing.T, d *Disk, dir string) {
		was = Strict
		if d.Toll()[tollJournal] > 0 {
			was = Journal
		}
		s[was][map[string]string{"content": "kept", "-": "lost"}[read(t, filepath.Join(dir, "new"))]]++
	})
	s[Strict].want(t, "kept", "lost")
	s[Journal].want(t, "kept")
}

func TestReplacing(t *testing.T) {
	for _, sync := range []bool{true, false} {
		s := seen{}
		cut(t, nil, func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "file"), "old", true)
			syncFolder(t, dir)
			write(t, filepath.Join(dir, "file.new"), big, sync)
			if err := os.Rename(filepath.Join(dir, "file.new"), filepath.Join(dir, "file")); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, _ *Disk, dir string) {
			switch read(t, filepath.Join(dir, "file")) {
			case "old":
				s["old"]++
			case big:
				s["new"]++
			default:
				s["neither"]++
			}
		})
		if sync {
			s.want(t, "old", "new")
		} else {
			s.want(t, "old", "new", "neither") // a rename without a sync of what is renamed
		}
	}
}

func TestRemovedNamesMayComeBack(t *testing.T) {
	s := seen{}
	cut(t, nil, func(t *testing.T, dir string) {
		write(t, filepath.Join(dir, "file"), "content", true)
		syncFolder(t, dir)
		if err := os.Remove(filepath.Join(dir, "file")); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, _ *Disk, dir string) { s[read(t, filepath.Join(dir, "file"))]++ })
	s.want(t, "content", "-")
}

func TestWritesOfASyncingFileAreDurable(t *testing.T) {
	cut(t, nil, func(t *testing.T, dir string) {
		f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_CREATE|os.O_WRONLY|os.O_SYNC, 0o600)
		if err == nil {
			_, err = f.WriteString(big)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		syncFolder(t, dir)
	}, func(t *testing.T, _ *Disk, dir string) {
		if read(t, filepath.Join(dir, "file")) != big {
			t.Error("a write under O_SYNC is lost")
		}
	})
}

func TestInTheDarkNothingComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	d, err := Mount(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, 2)
	go func() {
		for range 2 {
			_, err := f.WriteString("x")
			answers <- err
		}
	}()
	// The second write is the change that does not happen; only once the dead have ended does it fail.
	d.Cut(t.Context(), 2, func() {
		if err := <-answers; err != nil {
			t.Errorf("the first write: %v", err)
		}
		select {
		case err := <-answers:
			t.Errorf("a write came back in the dark: %v", err)
		default:
		}
	})
	if err := <-answers; !errors.Is(err, unix.EIO) {
		t.Errorf("the second write: %v; want EIO", err)
	}
	_ = f.Close()
	if err := errors.Join(d.Restore(), d.Close()); err != nil {
		t.Error(err)
	}
}

func TestMappingsAndLocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	d, err := Mount(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "file")
	write(t, name, big, true)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(big), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if string(mapped) != big {
		t.Error("the mapping shows something else than the file")
	}
	if _, err := other.WriteAt([]byte("written"), 5000); err != nil || string(mapped[5000:5007]) != "written" {
		t.Errorf("the mapping does not show what was written: %v", err)
	}
	copy(mapped[9000:], "mapped")
	if err := unix.Msync(mapped, unix.MS_SYNC); err != nil {
		t.Error(err)
	}
	if got := read(t, name)[9000:9006]; got != "mapped" {
		t.Errorf("the file does not show what was written to the mapping: %q", got)
	}
	if err := unix.Munmap(mapped); err != nil {
		t.Error(err)
	}

	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second flock: %v", err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Error(err)
	}
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lock); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a second lock of a range: %v", err)
	}
	if err := errors.Join(f.Close(), other.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if got := read(t, name); len(got) != len(big) || got[9000:9006] != "mapped" {
		t.Error("Close leaves other files than programs saw")
	}
}
