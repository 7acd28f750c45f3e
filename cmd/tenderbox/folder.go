package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// What stands in a data folder, besides shards/ and bus/ whose insides belong to their packages.
const (
	shardsFolder      = "shards"
	busFolder         = "bus"
	mailFolder        = "mail"      // e-mail kept as files, and how far bulks have come
	templatesFolder   = "templates" // of e-mail, if the operator makes it: TENANT/NAME.html, .txt, .subject
	boxFile           = "box.db"
	jobsFile          = "jobs.db"
	analyticsFile     = "analytics.db"
	addressFile       = "address"
	defaultKeyFile    = "default.key"
	operatorTokenFile = "operator.token"
)

// unfinished is what the names of key file and box.db end in until they are whole. Whoever makes them again begins with what is left there.
const unfinished = ".new"

// prepareFolder makes the data folder, for this user alone. A folder that holds other things and nothing
// of ours is refused: a mistyped --data must not sprinkle files over somebody's home.
func prepareFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return hint(fmt.Errorf("data folder: %w", err), "name a folder that this user may write to with --data")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return hint(fmt.Errorf("data folder: %w", err), "name a folder that this user may read with --data")
	}
	foreign := ""
	for _, entry := range entries {
		switch name := entry.Name(); {
		case name == shardsFolder, name == boxFile, name == defaultKeyFile, name == operatorTokenFile,
			name == boxKeyFile, name == "tenderbox.toml":
			return nil
		case name == boxKeyFile+unfinished, name == boxFile+unfinished:
			// The very first start ended while it made its first file.
		case name == "lost+found", name == templatesFolder, strings.HasPrefix(name, "."):
			// The root of a mounted disk is an empty folder too, and templates may be put there before the first start.
		default:
			foreign = name
		}
	}
	if foreign != "" {
		return hint(fmt.Errorf("%s holds other things (%s) and no box", dir, foreign), "name an empty folder, or the one of your box, with --data")
	}
	return nil
}

// writePrivate replaces a file for this user alone: whole or not at all, and on the disk at return.
func writePrivate(file, content string) error {
	if err := renameio.WriteFile(file, []byte(content), 0o600, renameio.WithPermissions(0o600)); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(file))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// moveAside renames a file that cannot be used, so that nothing is deleted by itself.
func moveAside(file string, now time.Time) (string, error) {
	aside := file + ".broken-" + now.UTC().Format("20060102T150405Z")
	if err := os.Rename(file, aside); err != nil {
		return "", err
	}
	return aside, syncFolder(filepath.Dir(file))
}

func exists(file string) (bool, error) {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
