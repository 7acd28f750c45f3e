package jobs

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// Cursor is how far a source's log has been turned into jobs.
type Cursor struct {
	Offset uint64 // the last entry that was dealt with; 0: none
	Anchor []byte // what the source wants to find again, opaque here; up to anchorBytesMax
}

const (
	cursorVersion  = 1
	anchorBytesMax = 4096
	sourceBytesMax = 255
)

// EnqueueFrom stores jobs derived from a source's entries after from up to to.Offset, and the cursor, in one transaction. If the stored
// cursor is at to.Offset or beyond, the batch is known and nothing is done; if it is neither there nor at
// from, ErrCursor. So a source that repeats itself after a crash enqueues nothing twice.
func (e *Engine) EnqueueFrom(ctx context.Context, source string, from uint64, to Cursor, js []NewJob) error {
	batch, err := e.prepare(js)
	if err == nil {
		err = to.validate(source)
	}
	if err != nil {
		return fmt.Errorf("enqueue from %q: %w", source, err)
	}
	var w writes
	err = e.st.UpdateThen(ctx, func(tx *bbolt.Tx) error {
		w.reset()
		w.placed = slices.Grow(w.placed, len(batch))
		stored, found, err := readCursor(tx, source)
		switch {
		case err != nil:
			return store.Untouched(err)
		case found && stored.Offset >= to.Offset:
			return store.Untouched(nil)
		case stored.Offset != from: // zero if there is none
			return store.Untouched(fmt.Errorf("%w: it is at %d, not at %d", ErrCursor, stored.Offset, from))
		}
		for i := range batch {
			if _, err := w.add(tx, &batch[i], js[i].ID != ""); err != nil {
				return err
			}
		}
		return writeCursor(tx, source, to)
	}, e.applied(func() { e.follow(&w) }))
	if err != nil {
		return fmt.Errorf("enqueue from %q: %w", source, err)
	}
	return nil
}

// Cursor returns a source's stored cursor; false: there is none. Errors to branch on: ErrDamaged, and the store's.
func (e *Engine) Cursor(source string) (c Cursor, found bool, err error) {
	err = e.st.View(func(tx *bbolt.Tx) (err error) {
		c, found, err = readCursor(tx, source)
		return err
	})
	if err != nil {
		return Cursor{}, false, fmt.Errorf("cursor of %q: %w", source, err)
	}
	return c, found, nil
}

// MoveCursor moves a source's cursor forward without waiting; backward it does nothing. done, if not nil, is called once
// with the outcome, on the store's goroutine: it must be quick and must not wait for the engine.
func (e *Engine) MoveCursor(source string, to Cursor, done func(error)) {
	if err := to.validate(source); err != nil {
		if done != nil {
			done(err)
		}
		return
	}
	to.Anchor = bytes.Clone(to.Anchor)
	e.st.Submit(func(tx *bbolt.Tx) error {
		stored, found, err := readCursor(tx, source)
		if err != nil {
			return store.Untouched(err)
		}
		if found && stored.Offset >= to.Offset {
			return store.Untouched(nil)
		}
		return writeCursor(tx, source, to)
	}, done)
}

// TakeCursor gives a source the cursor of another that it follows, whose own ends with that, in one transaction. It does nothing if
// there is none to take, or if the source has one.
func (e *Engine) TakeCursor(ctx context.Context, from, source string) error {
	if err := (Cursor{}).validate(source); err != nil {
		return err
	}
	err := e.st.Update(ctx, func(tx *bbolt.Tx) error {
		c, found, err := readCursor(tx, from)
		if err != nil || !found || tx.Bucket(bCursors).Get([]byte(source)) != nil {
			return store.Untouched(err)
		}
		if err := writeCursor(tx, source, c); err != nil {
			return err
		}
		return tx.Bucket(bCursors).Delete([]byte(from))
	})
	if err != nil {
		return fmt.Errorf("cursor of %q for %q: %w", from, source, err)
	}
	return nil
}

func (c Cursor) validate(source string) error {
	if len(source) == 0 || len(source) > sourceBytesMax {
		return invalid("source", "use 1 to %d bytes", sourceBytesMax)
	}
	if len(c.Anchor) > anchorBytesMax {
		return invalid("anchor", "%d bytes, up to %d are taken", len(c.Anchor), anchorBytesMax)
	}
	return nil
}

// A stored cursor is version, checksum (over the source, too), offset, anchor.

func writeCursor(tx *bbolt.Tx, source string, c Cursor) error {
	b := make([]byte, recordHeader, recordHeader+8+len(c.Anchor))
	b[0] = cursorVersion
	b = append(be.AppendUint64(b, c.Offset), c.Anchor...)
	be.PutUint32(b[1:], checksum(source, "", b[recordHeader:]))
	return tx.Bucket(bCursors).Put([]byte(source), b)
}

func readCursor(tx *bbolt.Tx, source string) (c Cursor, found bool, err error) {
	b := tx.Bucket(bCursors).Get([]byte(source))
	if b == nil {
		return c, false, nil
	}
	if len(b) < recordHeader+8 || b[0] != cursorVersion || be.Uint32(b[1:]) != checksum(source, "", b[recordHeader:]) {
		return c, true, fmt.Errorf("cursor: %w", ErrDamaged)
	}
	return Cursor{be.Uint64(b[recordHeader:]), bytes.Clone(b[recordHeader+8:])}, true, nil
}

// DropCursor forgets a source's cursor, also a damaged one: the source then begins anew.
func (e *Engine) DropCursor(ctx context.Context, source string) error {
	err := e.st.Update(ctx, func(tx *bbolt.Tx) error { return tx.Bucket(bCursors).Delete([]byte(source)) })
	if err != nil {
		return fmt.Errorf("drop cursor of %q: %w", source, err)
	}
	return nil
}
