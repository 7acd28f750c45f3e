package tenants

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// copySuffix names the copy that is made after each change.
const copySuffix = ".copy"

// OpenFile opens the registry's file. If it is damaged, or missing while its copy is there, the copy takes its place and
// alarm says what happened, for the operator; the damaged file stays beside it. Errors to branch on: store.ErrLocked,
// *store.CorruptError (the copy is damaged too, or there is none), ErrFormat.
func OpenFile(path string) (st *store.Store, alarm string, err error) {
	_, missing := os.Stat(path)
	_, noCopy := os.Stat(path + copySuffix)
	if errors.Is(missing, fs.ErrNotExist) && noCopy == nil {
		// Also what is left when the power goes between the two renames below.
		if err := placeCopy(path); err != nil {
			return nil, "", err
		}
		st, err := openVerified(path)
		return st, fmt.Sprintf("%s was missing; its copy took its place, so that the last change to tenants may be undone", path), err
	}
	st, err = openVerified(path)
	var corrupt *store.CorruptError
	if !errors.As(err, &corrupt) || noCopy != nil {
		return st, "", err
	}
	if cerr := verifyCopy(path + copySuffix); cerr != nil {
		return nil, "", errors.Join(err, cerr)
	}
	aside := path + ".broken-" + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); err != nil {
		return nil, "", err
	}
	if err := placeCopy(path); err != nil {
		return nil, "", err
	}
	st, err = openVerified(path)
	return st, fmt.Sprintf("%s was damaged (%v); its copy took its place, so that the last change to tenants may be undone; the damaged file is now %s",
		path, corrupt.Cause, aside), err
}

// openVerified opens the file and checks each record: the store knows its structure, not its values.
func openVerified(path string) (*store.Store, error) {
	st, err := store.Open(path, store.Options{})
	if err != nil {
		return nil, err
	}
	err = st.View(func(tx *bbolt.Tx) error { _, err := readContents(tx); return err })
	if errors.Is(err, errRecord) {
		err = &store.CorruptError{Path: path, Cause: err}
	}
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// verifyCopy checks a copy without making it anything else.
func verifyCopy(path string) error {
	if err := store.CheckFile(path); err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error { _, err := readContents(tx); return err })
	return errors.Join(err, db.Close())
}

// placeCopy puts a copy of the copy at path; the copy itself stays, should that one be damaged again.
func placeCopy(path string) error { return copyOver(path+copySuffix, path) }

// copyOver replaces a file by a copy of another one.
func copyOver(from, path string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	err = replaceFile(path, func(to *os.File) error { _, err := io.Copy(to, in); return err })
	return errors.Join(err, in.Close())
}

// writeCopy copies the open store to its copy file, whole or not at all.
func writeCopy(st *store.Store) error {
	path := st.Path() + copySuffix
	err := replaceFile(path, func(f *os.File) error { _, err := st.Backup(f); return err })
	if err != nil {
		return fmt.Errorf("copy to %s: %w", filepath.Base(path), err)
	}
	return nil
}

// replaceFile writes a file whole or not at all: beside it, synced, renamed over it, the folder synced.
func replaceFile(path string, write func(*os.File) error) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = f.Chmod(0o600) // a leftover may have been open to others
	if err == nil {
		err = write(f)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
