package email

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
)

const (
	// dropFilesMax .eml files of a tenant are kept; beyond it the oldest go. Nobody may ever look at them, and a full disk takes no payments.
	dropFilesMax = 1000

	// dropFilesLess are removed at once, so that the folder is not listed for each mail.
	dropFilesLess = 100
)

// drop keeps mail as .eml files in a folder for each tenant.
type drop struct {
	*folders
	log *slog.Logger

	mu    sync.Mutex     // guards what follows, and that one at a time clears up
	files map[string]int // of each folder, as far as it was counted
}

func newDrop(folder string, log *slog.Logger) *drop {
	return &drop{folders: newFolders(folder, "out"), log: log, files: map[string]int{}}
}

// put keeps a mail, durably. The same mail again takes the place of its first copy. It returns the file's name, without the folder:
// a tenant sees it in the job's result, and where the box keeps its data is not the tenant's.
func (d *drop) put(tenant string, m *message) (string, error) {
	dir, err := d.of(tenant)
	if err != nil {
		return "", err
	}
	if err := renameio.WriteFile(filepath.Join(dir, m.file), m.raw, 0o600, renameio.WithTempDir(dir), renameio.WithPermissions(0o600)); err != nil {
		return "", err
	}
	if err := syncFolder(dir); err != nil {
		return "", err
	}
	d.clear(dir)
	return m.file, nil
}

// clear removes the oldest files of a folder that has too many. What it cannot do it does at another time.
func (d *drop) clear(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, ok := d.files[dir]; ok && n < dropFilesMax {
		d.files[dir]++
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	names := slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !strings.HasSuffix(e.Name(), ".eml") })
	if len(names) > dropFilesMax {
		less := len(names) - dropFilesMax + dropFilesLess
		for _, e := range names[:less] { // sorted by name, which begins with the time
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
		d.log.Warn("e-mail: the oldest mails that were kept as files are removed", slog.String("folder", dir), slog.Int("removed", less))
		names = names[less:]
	}
	d.files[dir] = len(names)
}
