package shards

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// Tx is what a closure works with. It ends with its closure, and is not safe for
// concurrent use.
type Tx struct {
	sh  *Shard
	c   *conn
	ctx context.Context // ends a View that takes too long; Background in an Update

	readOnly bool
	ended    bool

	// needsSavepoint: the closure shares its transaction, so its first change
	// must be preceded by a savepoint. Closures that change nothing, such as a
	// repeated request, never pay for one.
	needsSavepoint bool
	hasSavepoint   bool
	changed        bool

	attached *[]any // nil: attaching is of no use here
	open     []*Rows
}

// Shard is the shard that the transaction belongs to.
func (tx *Tx) Shard() *Shard { return tx.sh }

// Context ends when a View must: its caller went, it took too long, or it holds up the
// WAL. Queries notice by themselves; a closure that does other lengthy things should look.
// In an Update it never ends.
func (tx *Tx) Context() context.Context { return tx.ctx }

// Attach hands a value to the group's BeforeCommit and AfterCommit. If the closure
// fails, what it attached is dropped.
func (tx *Tx) Attach(v any) {
	if tx.attached != nil && !tx.ended {
		*tx.attached = append(*tx.attached, v)
	}
}

// Exec runs a statement and returns how many rows it changed. It is prepared once
// a connection and kept by its text: put values into arguments, not into the text.
func (tx *Tx) Exec(query string, args ...any) (int64, error) {
	s, cached, err := tx.statement(query)
	if err != nil {
		return 0, err
	}
	if !cached {
		defer s.close()
	}
	nv, err := tx.c.bind(args)
	if err != nil {
		return 0, err
	}
	res, err := s.exec.ExecContext(tx.ctx, nv)
	if err != nil {
		return 0, tx.c.note(err)
	}
	return res.RowsAffected()
}

// Query runs a statement that answers rows.
func (tx *Tx) Query(query string, args ...any) (*Rows, error) {
	s, cached, err := tx.statement(query)
	if err != nil {
		return nil, err
	}
	return tx.iterate(s, cached, args)
}

func (tx *Tx) iterate(s *stmt, cached bool, args []any) (*Rows, error) {
	nv, err := tx.c.bind(args)
	if err == nil {
		var rows driver.Rows
		if rows, err = s.query.QueryContext(tx.ctx, nv); err == nil {
			s.busy = true
			r := &Rows{c: tx.c, ctx: tx.ctx, stmt: s, cached: cached, rows: rows}
			tx.remember(r)
			return r, nil
		}
	}
	if !cached {
		s.close()
	}
	return nil, tx.c.note(err)
}

// pragma is Query for this package's own use, which closures are refused.
func (tx *Tx) pragma(query string) (*Rows, error) {
	s, cached, err := tx.c.statement(query)
	if err != nil {
		return nil, err
	}
	return tx.iterate(s, cached, nil)
}

// QueryRow runs a statement that answers at most one row, to be read by Scan.
func (tx *Tx) QueryRow(query string, args ...any) Row {
	rows, err := tx.Query(query, args...)
	return Row{rows, err}
}

// remember keeps track of rows that the closure may forget to close: a statement
// that is still stepping would keep its snapshot, and the WAL with it.
func (tx *Tx) remember(r *Rows) {
	for i, old := range tx.open {
		if old.closed {
			tx.open[i] = r
			return
		}
	}
	tx.open = append(tx.open, r)
}

var errEnded = errors.New("shards: transaction used after its closure ended")

func (tx *Tx) statement(query string) (*stmt, bool, error) {
	if tx.ended {
		return nil, false, errEnded
	}
	if err := tx.c.broken; err != nil {
		return nil, false, fmt.Errorf("shards: connection failed before: %w", err)
	}
	s, cached, err := tx.c.statement(query)
	if err != nil {
		return nil, false, err
	}
	if s.reads {
		return s, cached, nil
	}
	if err := tx.beforeChange(query); err != nil {
		if !cached {
			s.close()
		}
		return nil, false, err
	}
	return s, cached, nil
}

// beforeChange refuses what would break the group, and sets the savepoint.
func (tx *Tx) beforeChange(query string) error {
	switch w := firstWord(query); w {
	case "BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH", "VACUUM", "PRAGMA":
		return fmt.Errorf("shards: %s is not for closures", w)
	case "WITH":
	default:
		if tx.readOnly {
			return ErrReadOnly
		}
	}
	if tx.needsSavepoint && !tx.hasSavepoint {
		if err := tx.c.run("SAVEPOINT closure"); err != nil {
			return err
		}
		tx.hasSavepoint = true
	}
	tx.changed = true
	return nil
}

// end closes what the closure left open and makes the Tx unusable.
func (tx *Tx) end() {
	for _, r := range tx.open {
		r.Close()
	}
	tx.open = nil
	tx.ended = true
}
