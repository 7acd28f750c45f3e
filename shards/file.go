package shards

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

const (
	// applicationID marks a SQLite file as one of ours ("TBox"), for file(1) too.
	applicationID = 0x54426f78
	// fileFormat is the layout of this package's own tables, kept in user_version.
	fileFormat = 1
	// pageSize is SQLite's default, which every file of ours is made with.
	pageSize = 4096
	// checkInlineMax: files up to this size are checked for structural damage before the
	// box serves (some 50 ms); larger ones in the background, so that a start stays quick.
	checkInlineMax = 16 << 20
)

// Tables of this package in each file. The identity says which box and place the
// file belongs to, so that swapped files are found.
const ownTables = `
CREATE TABLE IF NOT EXISTS _shard (
	one   INTEGER PRIMARY KEY CHECK (one = 1),
	box   TEXT NOT NULL,
	shard INTEGER NOT NULL,
	slots INTEGER NOT NULL,
	hash  TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS _migrations (
	version    INTEGER PRIMARY KEY,
	name       TEXT NOT NULL,
	sha256     TEXT NOT NULL,
	applied_at TEXT NOT NULL
) STRICT;`

// createFile makes an empty shard file, or completes one that an interrupted first
// start left behind. Side files inherit the mode.
func createFile(ctx context.Context, path string, m Manifest, id int) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	c, err := openConn(ctx, path, forWriting)
	if err != nil {
		return err
	}
	err = c.transaction(func() error {
		pragmas := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d;", applicationID, fileFormat)
		if err := c.script(pragmas + ownTables); err != nil {
			return err
		}
		return c.change("INSERT OR IGNORE INTO _shard (one, box, shard, slots, hash) VALUES (1, ?, ?, ?, ?)",
			m.BoxID, id, m.Slots, m.Hash)
	})
	return errors.Join(err, c.Close())
}

// inspect reads from a file whether it is the one that belongs there and whether this
// program can work with it: CorruptError isolates it, MismatchError refuses the folder.
func inspect(c *conn, path string, m Manifest, id int, migrations []Migration) error {
	corrupt := func(format string, args ...any) error {
		return &CorruptError{Path: path, Cause: fmt.Errorf(format, args...)}
	}
	var app, format, page int64
	if err := c.value(&app, "PRAGMA application_id"); err != nil {
		return err
	}
	if app != applicationID {
		return corrupt("not a shard file (application id %#x)", app)
	}
	if err := c.value(&format, "PRAGMA user_version"); err != nil {
		return err
	}
	if format > fileFormat {
		return &MismatchError{Path: path, What: "file format", Want: fmt.Sprint(fileFormat), Have: fmt.Sprint(format)}
	}
	if err := c.value(&page, "PRAGMA page_size"); err != nil {
		return err
	}
	if page != pageSize {
		return corrupt("its pages have %d bytes", page)
	}
	var (
		box, hash string
		shard     int
		slots     int
	)
	err := c.values([]any{&box, &shard, &slots, &hash}, "SELECT box, shard, slots, hash FROM _shard")
	switch {
	case err != nil && classOf(err) == classCaller:
		return corrupt("its identity is unreadable: %w", err)
	case err != nil:
		return err
	case box != m.BoxID:
		return corrupt("it belongs to another box (%s)", box)
	case shard != id:
		return corrupt("it is shard %d, in the place of shard %d", shard, id)
	case slots != m.Slots || hash != m.Hash:
		return corrupt("it was filled by %s over %d slots", hash, slots)
	}
	return checkMigrations(c, path, migrations)
}

// statFile makes a missing or empty file damage before SQLite is asked.
func statFile(path string) (size int64, err error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, &CorruptError{Path: path, Cause: errors.New("the file is missing")}
	case err != nil:
		return 0, err
	case !fi.Mode().IsRegular():
		return 0, &CorruptError{Path: path, Cause: errors.New("not a regular file")}
	case fi.Size() == 0:
		return 0, &CorruptError{Path: path, Cause: errors.New("the file is empty")}
	}
	if rest := fi.Size() % pageSize; rest != 0 {
		// A power cut may leave a part of a page while the WAL still holds the whole one.
		// SQLite would fill up the rest with zeros in silence.
		if wal, err := os.Stat(path + "-wal"); err != nil || wal.Size() == 0 {
			return 0, &CorruptError{Path: path, Cause: fmt.Errorf("its last page has only %d bytes", rest)}
		}
	}
	return fi.Size(), nil
}

// rewriteWAL writes the WAL's bytes over themselves and syncs them. After a failed
// fsync the kernel serves pages that may never have reached the disk; a checkpoint
// built on them could leave a file that is neither old nor new after a power cut. It
// must run before SQLite has the file open: closing our descriptor would drop its locks.
func rewriteWAL(path string) error {
	f, err := os.OpenFile(path+"-wal", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for off := int64(0); ; {
		n, err := f.ReadAt(buf, off)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return errors.Join(err, f.Close())
			}
			off += int64(n)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// transaction runs fn in one transaction on a connection of this package's own.
func (c *conn) transaction(fn func() error) error {
	if err := c.run("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := fn()
	if err == nil {
		err = c.run("COMMIT")
	}
	if err != nil {
		return errors.Join(err, c.rollback())
	}
	return nil
}

// rollback undoes a transaction that may have ended by itself, as SQLite's do on a
// full disk or an I/O error.
func (c *conn) rollback() error {
	err := c.run("ROLLBACK")
	if err != nil && classOf(err) == classCaller {
		return nil // no transaction is active
	}
	return err
}

// change executes one statement with arguments, not kept prepared.
func (c *conn) change(query string, args ...any) error {
	nv, err := c.bind(args)
	if err != nil {
		return err
	}
	_, err = c.dc.(driver.ExecerContext).ExecContext(context.Background(), query, nv)
	return c.note(err)
}

// check looks for damage: quick is the structure of each B-tree; full also compares
// every index with its table.
func (c *conn) check(ctx context.Context, path, pragma string) error {
	tx := &Tx{c: c, ctx: ctx, readOnly: true}
	defer tx.end()
	rows, err := tx.pragma(pragma)
	if err != nil {
		return err
	}
	var found []error
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			found = append(found, errors.New(line))
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(found) > 0 {
		return &CorruptError{Path: path, Cause: errors.Join(found...)}
	}
	return nil
}
