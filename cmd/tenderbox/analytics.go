package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"tenderbox/store"
)

// analyticsCommand looks after analytics.db.
type analyticsCommand struct {
	Rebuild analyticsRebuild `cmd:"" help:"Counts everything anew from the journals, of a running or a stopped box."`
}

const analyticsRebuildPath = "/api/v1/analytics/rebuild"

type analyticsRebuild struct {
	boxFlags
}

func (analyticsRebuild) Help() string {
	return `A running box counts in the background; the answers of /api/v1/analytics say how far it is. Of a stopped box the file is
removed, and the next start fills a new one.

Example:

    tenderbox analytics rebuild
    tenderbox analytics rebuild --data /var/lib/tenderbox
`
}

func (c *analyticsRebuild) Run(t *terminal) error {
	stopped, err := c.stopped()
	if err != nil {
		return err
	}
	if stopped {
		if err := removeAnalytics(c.Data); err != nil {
			return err
		}
		_, err := fmt.Fprintln(t.stdout, "The box is not running. Its next start counts everything anew.")
		return err
	}
	b, err := c.open()
	if err != nil {
		return err
	}
	if err := b.do(t.ctx, http.MethodPost, analyticsRebuildPath, nil, nil); err != nil {
		return err
	}
	_, err = fmt.Fprintln(t.stdout, "Everything is counted anew, in the background.")
	return err
}

// stopped reports whether --data is a box that is not running. A box that was killed has left its address
// behind: its lock tells.
func (c *analyticsRebuild) stopped() (bool, error) {
	if c.Server != "" {
		return false, nil
	}
	found, err := exists(filepath.Join(c.Data, boxFile))
	if err != nil {
		return false, hint(err, "run this as the box's user, or give --server and --token")
	}
	if !found {
		return false, hint(fmt.Errorf("%s holds no box", c.Data), "name the box's folder with --data, or a running one with --server")
	}
	err = store.CheckFile(filepath.Join(c.Data, boxFile))
	return !errors.Is(err, store.ErrLocked), nil // a damaged file is not this command's affair
}

// removeAnalytics removes the sums of a stopped box, and keeps one from starting meanwhile.
func removeAnalytics(data string) (err error) {
	box, err := store.Open(filepath.Join(data, boxFile), store.Options{})
	if err != nil {
		return hint(err, "`tenderbox check` says more")
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(data, analyticsFile+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncFolder(data)
}
