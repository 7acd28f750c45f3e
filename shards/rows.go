package shards

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
)

// Rows iterates over a query's answer; it is used like sql.Rows. It is closed by
// its last Next, by Close, and at the end of its closure.
type Rows struct {
	c      *conn
	ctx    context.Context
	stmt   *stmt
	cached bool
	rows   driver.Rows
	dest   []driver.Value
	err    error
	closed bool
}

// Next prepares the next row for Scan. After false, Err tells whether it was the end.
func (r *Rows) Next() bool {
	if r.closed {
		return false
	}
	if err := r.ctx.Err(); err != nil {
		r.fail(context.Cause(r.ctx))
		return false
	}
	if r.dest == nil {
		r.dest = make([]driver.Value, len(r.rows.Columns()))
	}
	if err := r.rows.Next(r.dest); err != nil {
		if !errors.Is(err, io.EOF) {
			r.fail(r.c.note(err))
			return false
		}
		r.err = r.Close()
		return false
	}
	return true
}

func (r *Rows) fail(err error) {
	r.err = err
	r.Close()
}

// Scan copies the current row into pointers: to the integer, float, string, bool and
// []byte types, to types of those kinds, to any, to pointers (nil for NULL), or to a
// sql.Scanner. NULL into anything else is an error.
func (r *Rows) Scan(dest ...any) error {
	if r.closed {
		return errors.New("shards: Scan after the end of the rows")
	}
	if len(dest) != len(r.dest) {
		return fmt.Errorf("shards: Scan into %d values, the row has %d", len(dest), len(r.dest))
	}
	for i, d := range dest {
		if err := assign(d, r.dest[i]); err != nil {
			return fmt.Errorf("shards: column %q: %w", r.rows.Columns()[i], err)
		}
	}
	return nil
}

// Err is the error that ended the iteration, nil at the regular end.
func (r *Rows) Err() error { return r.err }

// Close ends the iteration early. Closing twice is fine.
func (r *Rows) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.c.note(r.rows.Close())
	if r.stmt != nil {
		r.stmt.busy = false
		if !r.cached {
			r.stmt.close()
		}
	}
	return err
}

// Row is the answer of QueryRow.
type Row struct {
	rows *Rows
	err  error
}

// Scan copies the first row as Rows.Scan does; without one it returns ErrNoRows.
func (r Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if r.rows.err != nil {
			return r.rows.err
		}
		return ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	return r.rows.Close()
}

var errNoRows = sql.ErrNoRows

// assign stores a value of the driver in what dest points to. []byte and string
// come freshly copied from the driver, so they are handed over as they are.
func assign(dest any, src driver.Value) error {
	switch d := dest.(type) {
	case *any:
		*d = src
		return nil
	case *string:
		switch v := src.(type) {
		case string:
			*d = v
			return nil
		case []byte:
			*d = string(v)
			return nil
		case int64, float64:
			*d = fmt.Sprint(v)
			return nil
		}
	case *[]byte:
		switch v := src.(type) {
		case nil:
			*d = nil
			return nil
		case []byte:
			*d = v
			return nil
		case string:
			*d = []byte(v)
			return nil
		}
	case *int64:
		if v, ok := src.(int64); ok {
			*d = v
			return nil
		}
	case *int:
		if v, ok := src.(int64); ok && int64(int(v)) == v {
			*d = int(v)
			return nil
		}
	case *bool:
		if v, ok := src.(int64); ok && (v == 0 || v == 1) {
			*d = v == 1
			return nil
		}
	case *float64:
		switch v := src.(type) {
		case float64:
			*d = v
			return nil
		case int64:
			*d = float64(v)
			return nil
		}
	case sql.Scanner:
		return d.Scan(src)
	default:
		return assignReflect(dest, src)
	}
	return mismatch(dest, src)
}

func assignReflect(dest any, src driver.Value) error {
	p := reflect.ValueOf(dest)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return fmt.Errorf("destination %T is not a pointer", dest)
	}
	v := p.Elem()
	switch v.Kind() {
	case reflect.Pointer:
		if src == nil {
			v.SetZero()
			return nil
		}
		n := reflect.New(v.Type().Elem())
		if err := assign(n.Interface(), src); err != nil {
			return err
		}
		v.Set(n)
		return nil
	case reflect.String:
		var s string
		if err := assign(&s, src); err != nil {
			return mismatch(dest, src)
		}
		v.SetString(s)
		return nil
	case reflect.Bool:
		var b bool
		if err := assign(&b, src); err != nil {
			return mismatch(dest, src)
		}
		v.SetBool(b)
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n, ok := src.(int64); ok && !v.OverflowInt(n) {
			v.SetInt(n)
			return nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n, ok := src.(int64); ok && n >= 0 && !v.OverflowUint(uint64(n)) {
			v.SetUint(uint64(n))
			return nil
		}
	case reflect.Float32, reflect.Float64:
		var f float64
		if err := assign(&f, src); err == nil && (v.Kind() == reflect.Float64 || math.Abs(f) <= math.MaxFloat32) {
			v.SetFloat(f)
			return nil
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			var b []byte
			if err := assign(&b, src); err != nil {
				return mismatch(dest, src)
			}
			v.SetBytes(b)
			return nil
		}
	}
	return mismatch(dest, src)
}

func mismatch(dest any, src driver.Value) error {
	if src == nil {
		return fmt.Errorf("NULL does not fit into %T", dest)
	}
	return fmt.Errorf("a %T does not fit into %T", src, dest)
}
