package email

import (
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// A mail that was kept is found after a power cut only if the names of its folder, and of those above, were synced. `make torture-power` found that they were not:
// the first mails of a box were lost with the folder that they were in.
func TestFoldersAreDurable(t *testing.T) {
	data := t.TempDir()
	for _, life := range []string{"first", "second"} { // which cannot know what the one before came to
		f := newFolders(filepath.Join(data, "mail"), "out")
		var synced []string
		f.sync = func(dir string) error {
			rel, err := filepath.Rel(data, dir)
			synced = append(synced, rel)
			return err
		}
		for range 2 { // once is enough
			for _, tenant := range []string{"shop", "", "shop"} {
				if _, err := f.of(tenant); err != nil {
					t.Fatal(err)
				}
			}
		}
		each := []string{"mail/out", "mail", "."}
		if want := append(slices.Clone(each), each...); !slices.Equal(synced, want) {
			t.Errorf("%s life: synced %q, want %q", life, synced, want)
		}
	}
}

func TestFolderIsNotGivenOutBeforeItIsDurable(t *testing.T) {
	f := newFolders(filepath.Join(t.TempDir(), "mail"), "out")
	broken := error(syscall.EIO)
	f.sync = func(string) error { return broken }
	if _, err := f.of("shop"); err == nil {
		t.Error("a folder whose name could not be synced was given out")
	}
	broken = nil
	if _, err := f.of("shop"); err != nil {
		t.Error(err)
	}
	broken = syscall.EIO
	if _, err := f.of("shop"); err != nil {
		t.Errorf("synced again: %v", err)
	}
}
