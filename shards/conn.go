package shards

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"sync"

	"modernc.org/sqlite"
)

// versionMin is the first SQLite without the bug by which a WAL that starts over
// while another connection checkpoints can lose a commit.
const versionMin = 3_051_003

// statementsMax bounds the prepared statements a connection keeps; a program has
// perhaps a hundred texts, so only generated ones ever meet it.
const statementsMax = 512

// access says what a connection may do.
type access int

const (
	forWriting    access = iota // the writer's one connection
	forDerived                  // the writer's, of a file that can be computed anew
	forErasing                  // the writer's, which leaves nothing of what it replaces
	forCheckpoint               // the background checkpoint's: writes nothing by itself
	forReading                  // the pool's
	forAudit                    // a stopped box, its WAL included
	forAuditClean               // a stopped box that left no WAL: touches no side files
)

// setting is a PRAGMA that is given with the connection string, so that no
// connection exists without it, and read back after opening.
type setting struct{ name, value, readback string }

// settings of a connection. Every one of them was paid for by somebody.
func (a access) settings() []setting {
	all := []setting{
		// Waiting for a lock happens only while another connection opens or checkpoints.
		{"busy_timeout", "2000", "2000"},
		// Views and triggers of a tampered schema must not reach functions with effects.
		{"trusted_schema", "0", "0"},
		// Sorting and savepoints stay in memory: no temporary files beside the box.
		{"temp_store", "2", "2"},
		// A truncated file under mmap is a SIGBUS, which ends the process; read() is an error.
		{"mmap_size", "0", "0"},
	}
	switch a {
	case forWriting, forDerived, forErasing, forCheckpoint:
		// One fsync of the WAL a commit. NORMAL would lose acknowledged payments.
		synchronous := "2"
		if a == forDerived {
			// NORMAL: a power cut takes the last commits, whole and from the end, and what
			// is derived goes on from the cursor that stands among them. Derived stores
			// must not spend fsyncs that payments wait for.
			synchronous = "1"
		}
		all = append(all,
			setting{"journal_mode", "wal", "wal"},
			setting{"synchronous", synchronous, synchronous},
			// macOS: fsync alone does not reach the platter. No effect elsewhere.
			setting{"fullfsync", "1", "1"},
			setting{"checkpoint_fullfsync", "1", "1"},
			// Checkpoints run in the background, never inside a commit.
			setting{"wal_autocheckpoint", "0", "0"},
			setting{"foreign_keys", "1", "1"},
			setting{"cell_size_check", "1", "1"},
		)
		if a == forErasing {
			// Zeroes instead of the former bytes in the unused parts of pages.
			all = append(all, setting{"secure_delete", "1", "1"})
		}
		if a != forCheckpoint {
			// Holds the dirty pages of a full group; less makes it spill them twice.
			all = append(all, setting{"cache_size", "-16384", "-16384"})
		} else {
			all = append(all, setting{"cache_size", "-256", "-256"})
		}
	default:
		all = append(all,
			setting{"query_only", "1", "1"},
			setting{"cache_size", "-2048", "-2048"},
		)
	}
	return all
}

func (a access) dsn(path string) string {
	q := url.Values{}
	switch a {
	case forWriting, forDerived, forErasing, forCheckpoint:
		q.Set("mode", "rw") // never create: a file that vanished is damage, not a fresh start
	case forReading, forAudit:
		q.Set("mode", "ro")
	case forAuditClean:
		q.Set("mode", "ro")
		q.Set("immutable", "1")
	}
	q.Set("_dqs", "0")
	q.Set("_defensive", "1")
	q.Set("_error_rc", "1")
	for _, s := range a.settings() {
		q.Add("_pragma", s.name+"("+s.value+")")
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

// conn is one connection to a shard's file, used by one goroutine at a time. It
// speaks to the driver without database/sql in between: the writer's statements
// cost 4 µs a payment less, and a pool that could hand out a second write
// connection is what this package must not have.
type conn struct {
	dc       driver.Conn
	readOnly bool
	stmts    map[string]*stmt
	args     []driver.NamedValue

	// broken is the first error after which the connection must be discarded.
	broken error
}

// stmt is a prepared statement. One that is iterated over cannot be run a second
// time at once; such a second use gets a statement of its own.
type stmt struct {
	exec  driver.StmtExecContext
	query driver.StmtQueryContext
	close func() error
	reads bool // certainly changes nothing
	busy  bool
}

// SQLite's usual builds wait for fdatasync, this one for fsync unless it is told: that has the file system's journal write the time of the
// change too, half of what a commit may wait for. Where there is no fdatasync the error says so, and nothing changes.
func init() { _, _ = sqlite.Fdatasync(true) }

func openConn(ctx context.Context, path string, a access) (*conn, error) {
	connector, err := sqlite.NewConnector(a.dsn(path))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	dc, err := connector.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	c := &conn{dc: dc, readOnly: a >= forReading, stmts: map[string]*stmt{}}
	if err := c.assert(a); err != nil {
		c.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return c, nil
}

// assert reads every setting back: a PRAGMA that SQLite does not accept is
// otherwise passed over in silence.
func (c *conn) assert(a access) error {
	if err := assertVersion(c); err != nil {
		return err
	}
	for _, s := range a.settings() {
		var have string
		if err := c.value(&have, "PRAGMA "+s.name); err != nil {
			return fmt.Errorf("reading back %s: %w", s.name, err)
		}
		if have != s.readback {
			return fmt.Errorf("setting %s is %q, must be %q", s.name, have, s.readback)
		}
	}
	return nil
}

var (
	versionOnce sync.Once
	versionErr  error
)

func assertVersion(c *conn) error {
	versionOnce.Do(func() {
		var text string
		if versionErr = c.value(&text, "SELECT sqlite_version()"); versionErr != nil {
			return
		}
		var major, minor, patch int
		if _, versionErr = fmt.Sscanf(text, "%d.%d.%d", &major, &minor, &patch); versionErr != nil {
			return
		}
		if major*1_000_000+minor*1000+patch < versionMin {
			versionErr = fmt.Errorf("SQLite %s is older than 3.51.3", text)
		}
	})
	return versionErr
}

func (c *conn) Close() error {
	for _, s := range c.stmts {
		s.close()
	}
	c.stmts = nil
	return c.dc.Close()
}

// statement returns the prepared statement for a text, from the cache if it is
// not in use.
func (c *conn) statement(query string) (s *stmt, cached bool, err error) {
	if s := c.stmts[query]; s != nil && !s.busy {
		return s, true, nil
	}
	ds, err := c.dc.Prepare(query)
	if err != nil {
		return nil, false, c.note(err)
	}
	s = &stmt{
		exec:  ds.(driver.StmtExecContext),
		query: ds.(driver.StmtQueryContext),
		close: ds.Close,
		reads: readsOnly(query),
	}
	if c.stmts[query] != nil {
		return s, false, nil // the cached one is being iterated over
	}
	if len(c.stmts) >= statementsMax {
		for text, old := range c.stmts { // any one: texts that matter come back at once
			if !old.busy {
				old.close()
				delete(c.stmts, text)
				break
			}
		}
	}
	c.stmts[query] = s
	return s, true, nil
}

// run executes a statement of this package itself.
func (c *conn) run(query string) error {
	s, cached, err := c.statement(query)
	if err != nil {
		return err
	}
	if !cached {
		defer s.close()
	}
	_, err = s.exec.ExecContext(context.Background(), nil)
	return c.note(err)
}

// script executes several statements once.
func (c *conn) script(text string) error {
	_, err := c.dc.(driver.ExecerContext).ExecContext(context.Background(), text, nil)
	return c.note(err)
}

// values reads one row's columns; one query, not kept prepared.
func (c *conn) values(dest []any, query string, args ...any) error {
	nv, err := c.bind(args)
	if err != nil {
		return err
	}
	rows, err := c.dc.(driver.QueryerContext).QueryContext(context.Background(), query, nv)
	if err != nil {
		return c.note(err)
	}
	r := &Rows{c: c, ctx: context.Background(), rows: rows}
	defer r.Close()
	if !r.Next() {
		if r.err != nil {
			return r.err
		}
		return sql.ErrNoRows
	}
	if err := r.Scan(dest...); err != nil {
		return err
	}
	return r.Close()
}

func (c *conn) value(dest any, query string, args ...any) error {
	return c.values([]any{dest}, query, args...)
}

// bind turns arguments into what the driver takes. The slice is reused: it is
// valid until the next call.
func (c *conn) bind(args []any) ([]driver.NamedValue, error) {
	nv := c.args[:0]
	for i, a := range args {
		v, err := toValue(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		nv = append(nv, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	c.args = nv
	return nv, nil
}

// toValue accepts what SQLite's STRICT tables can hold. Times are refused: the
// caller decides on their unit.
func toValue(a any) (driver.Value, error) {
	switch v := a.(type) {
	case nil, int64, string, []byte, bool, float64:
		return v, nil
	case int:
		return int64(v), nil
	}
	v, err := driver.DefaultParameterConverter.ConvertValue(a)
	if err != nil {
		return nil, err
	}
	switch v.(type) {
	case nil, int64, string, []byte, bool, float64:
		return v, nil
	}
	return nil, fmt.Errorf("shards: cannot bind %s", reflect.TypeOf(a))
}

// readsOnly tells from its first word whether a statement certainly changes
// nothing. WITH may introduce a change, so it does not count.
func readsOnly(query string) bool {
	w := firstWord(query)
	return w == "SELECT" || w == "VALUES" || w == "EXPLAIN"
}

// firstWord skips space and comments.
func firstWord(query string) string {
	q := strings.TrimLeft(query, " \t\r\n\f;")
	for {
		switch {
		case strings.HasPrefix(q, "--"):
			_, q, _ = strings.Cut(q, "\n")
		case strings.HasPrefix(q, "/*"):
			_, q, _ = strings.Cut(q, "*/")
		default:
			end := strings.IndexFunc(q, func(r rune) bool { return r < 'A' || r > 'z' || (r > 'Z' && r < 'a') })
			if end < 0 {
				end = len(q)
			}
			return strings.ToUpper(q[:end])
		}
		q = strings.TrimLeft(q, " \t\r\n\f;")
	}
}

// SQLite's primary result codes, as this package sorts them.
const (
	codeNoMem      = 7
	codeReadOnly   = 8
	codeIOErr      = 10
	codeCorrupt    = 11
	codeFull       = 13
	codeCantOpen   = 14
	codeProtocol   = 15
	codeConstraint = 19
	codeMisuse     = 21
	codeNotADB     = 26
)

// class sorts an error by what must be done about it.
type class int

const (
	classCaller  class = iota // the statement's own fault: constraint, syntax, busy
	classFull                 // no space: roll back, try again later
	classIO                   // the disk or the system failed: reopen
	classCorrupt              // the file is damaged: isolate
)

func classOf(err error) class {
	var (
		e       *sqlite.Error
		corrupt *CorruptError
		sysErr  *ioError
	)
	switch {
	case errors.As(err, &corrupt):
		return classCorrupt
	case errors.As(err, &sysErr):
		return classIO
	case !errors.As(err, &e):
		return classCaller
	}
	switch e.Code() & 0xff {
	case codeFull:
		return classFull
	case codeIOErr, codeCantOpen, codeProtocol, codeNoMem, codeReadOnly, codeMisuse:
		return classIO
	case codeCorrupt, codeNotADB:
		return classCorrupt
	}
	return classCaller
}

// ioError marks an error of a file operation of this package itself.
type ioError struct{ error }

func (e *ioError) Unwrap() error { return e.error }

// note remembers an error after which the connection is not to be used again.
func (c *conn) note(err error) error {
	if err == nil {
		return nil
	}
	if c.readOnly && isCode(err, codeReadOnly) {
		return ErrReadOnly // a change hidden behind WITH, stopped by query_only
	}
	if c.broken == nil && classOf(err) != classCaller {
		c.broken = err
	}
	return err
}

func isConstraint(err error) bool { return isCode(err, codeConstraint) }

func isCode(err error, code int) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == code
}
