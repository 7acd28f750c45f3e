package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	// startsFile counts the starts that were followed neither by a publish nor by a stop.
	startsFile = "starts"

	// startsMax: a folder at which the process died this often in a row is given up. Once
	// is any kill -9; the server has no recover, so a panic in its recovery comes back at
	// every start and would keep the whole box from selling.
	startsMax = 3

	// brokenMark stands between a moved folder's name and its time.
	brokenMark = ".broken-"
)

// countStart makes the folder and notes one more start there. It answers true when too
// many before it ended in nothing. Losing the count in a power cut does no harm: it is not synced.
func countStart(dir string) (crashed bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	name := filepath.Join(dir, startsFile)
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text))) // an unreadable count is none
	if n >= startsMax {
		return true, nil
	}
	return false, os.WriteFile(name, strconv.AppendInt(nil, int64(n+1), 10), 0o600)
}

// clearStarts forgets the starts counted: this one came to something.
func clearStarts(dir string) { _ = os.Remove(filepath.Join(dir, startsFile)) }

// moveAside renames the folder, so that a person can look at it, and removes what was
// moved aside before: evidence of one fault is worth its disk space, of ten it is not.
func (b *Bus) moveAside() error {
	to := b.o.Dir + brokenMark + b.o.Now().UTC().Format("20060102T150405.000000000Z")
	err := os.Rename(b.o.Dir, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("moving the broken event stream aside: %w", err)
	}
	b.o.Logger.Warn("event stream moved aside", "to", to)
	old, err := filepath.Glob(globEscape(b.o.Dir+brokenMark) + "*")
	if err != nil {
		return err
	}
	for _, dir := range slices.DeleteFunc(old, func(dir string) bool { return dir == to }) {
		if err := os.RemoveAll(dir); err != nil {
			b.o.Logger.Warn("an older broken event stream cannot be removed", "err", err)
		}
	}
	return nil
}

// globEscape makes a path match only itself.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
