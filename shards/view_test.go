package shards_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tenderbox/shards"
)

func TestViewIsOneSnapshot(t *testing.T) {
	_, sh := open(t, options())
	mustPut(t, sh, 0, 3)
	n := func(tx *shards.Tx) (n int) {
		if err := tx.QueryRow("SELECT count(*) FROM things").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	err := sh.View(ctx, func(tx *shards.Tx) error {
		if got := n(tx); got != 3 {
			t.Errorf("%d rows, want 3", got)
		}
		mustPut(t, sh, 3, 5)
		if got := n(tx); got != 3 {
			t.Errorf("%d rows in the same View after a write, want 3", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := count(t, sh); got != 5 {
		t.Errorf("%d rows in a new View, want 5", got)
	}
}

func TestViewCannotWrite(t *testing.T) {
	_, sh := open(t, options())
	for _, q := range []string{
		"INSERT INTO things (id, n) VALUES ('a', 1)",
		"WITH v(i) AS (VALUES ('b')) INSERT INTO things (id, n) SELECT i, 1 FROM v",
		"DELETE FROM things",
		"CREATE TABLE other (x)",
	} {
		err := sh.View(ctx, func(tx *shards.Tx) error { _, err := tx.Exec(q); return err })
		if !errors.Is(err, shards.ErrReadOnly) {
			t.Errorf("%s: %v, want ErrReadOnly", q, err)
		}
	}
	if n := count(t, sh); n != 0 || sh.Err() != nil {
		t.Errorf("%d rows, shard: %v", n, sh.Err())
	}
}

type named string
type level int8

func TestScanAndBind(t *testing.T) {
	_, sh := open(t, options())
	err := sh.View(ctx, func(tx *shards.Tx) error {
		var (
			s    string
			ns   named
			b    []byte
			i    int
			i64  int64
			u8   uint8
			l    level
			f    float64
			ok   bool
			any1 any
			ps   *string
			pn   *named
			null sql.NullInt64
		)
		row := tx.QueryRow(`SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?`,
			"s", named("named"), []byte{1, 2}, 7, int64(1)<<60, uint8(200), level(-3), 1.5, true, nil, nil, named("p"), 9)
		if err := row.Scan(&s, &ns, &b, &i, &i64, &u8, &l, &f, &ok, &any1, &ps, &pn, &null); err != nil {
			return err
		}
		got := fmt.Sprint(s, ns, b, i, i64, u8, l, f, ok, any1, ps, *pn, null)
		if want := "snamed[1 2] 7 1152921504606846976 200 -3 1.5 true <nil> <nil>p{9 true}"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		for name, err := range map[string]error{
			"NULL into string":    tx.QueryRow("SELECT NULL").Scan(&s),
			"NULL into int":       tx.QueryRow("SELECT NULL").Scan(&i64),
			"text into int":       tx.QueryRow("SELECT 'x'").Scan(&i),
			"300 into uint8":      tx.QueryRow("SELECT 300").Scan(&u8),
			"-1 into uint8":       tx.QueryRow("SELECT -1").Scan(&u8),
			"200 into int8":       tx.QueryRow("SELECT 200").Scan(&l),
			"2 into bool":         tx.QueryRow("SELECT 2").Scan(&ok),
			"too few":             tx.QueryRow("SELECT 1, 2").Scan(&i),
			"not a pointer":       tx.QueryRow("SELECT 1").Scan(i),
			"a time as argument":  tx.QueryRow("SELECT ?", time.Now()).Scan(&s),
			"uint64 over 2^63":    tx.QueryRow("SELECT ?", uint64(1)<<63).Scan(&i64),
			"double-quoted text":  tx.QueryRow(`SELECT "nothing"`).Scan(&s),
			"missing argument":    tx.QueryRow("SELECT ?, ?", 1).Scan(&i, &i64),
			"no rows in the case": tx.QueryRow("SELECT 1 WHERE 0").Scan(&i),
		} {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		if err := tx.QueryRow("SELECT 1 WHERE 0").Scan(&i); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("got %v, want sql.ErrNoRows", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The same statement may be iterated over while it runs again, and rows left open are
// closed with the View.
func TestNestedAndForgottenRows(t *testing.T) {
	_, sh := open(t, options())
	mustPut(t, sh, 0, 5)
	const q = "SELECT n FROM things ORDER BY id"
	var leaked *shards.Rows
	err := sh.View(ctx, func(tx *shards.Tx) error {
		outer, err := tx.Query(q)
		if err != nil {
			return err
		}
		pairs := 0
		for outer.Next() {
			inner, err := tx.Query(q)
			if err != nil {
				return err
			}
			for inner.Next() {
				pairs++
			}
			if err := inner.Err(); err != nil {
				return err
			}
		}
		if pairs != 25 {
			t.Errorf("%d pairs, want 25", pairs)
		}
		leaked, err = tx.Query(q)
		leaked.Next()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if leaked.Next() {
		t.Error("rows outlived their View")
	}
	// A forgotten cursor would keep the next change of the schema or a checkpoint away.
	var tx2 *shards.Tx
	if err := sh.Update(ctx, func(tx *shards.Tx) error { tx2 = tx; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := tx2.Exec("DELETE FROM things"); err == nil {
		t.Error("a Tx was usable after its closure")
	}
}

const endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "

func TestViewEnds(t *testing.T) {
	o := options()
	o.ViewTimeout = 50 * time.Millisecond
	_, sh := open(t, o)
	var n int64
	// In one step of SQLite's, and over many.
	err := sh.View(ctx, func(tx *shards.Tx) error { return tx.QueryRow(endless + "SELECT count(*) FROM c").Scan(&n) })
	if !errors.Is(err, shards.ErrViewTooLong) {
		t.Errorf("one long step: %v, want ErrViewTooLong", err)
	}
	err = sh.View(ctx, func(tx *shards.Tx) error {
		rows, err := tx.Query(endless + "SELECT x FROM c")
		if err != nil {
			return err
		}
		for rows.Next() {
			n++
		}
		return rows.Err()
	})
	if !errors.Is(err, shards.ErrViewTooLong) {
		t.Errorf("many steps: %v, want ErrViewTooLong", err)
	}
	deadline, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	err = sh.View(deadline, func(tx *shards.Tx) error { return tx.QueryRow(endless + "SELECT count(*) FROM c").Scan(&n) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's deadline: %v", err)
	}
	if err := sh.View(ctx, func(tx *shards.Tx) error { panic("boom") }); err == nil {
		t.Error("a panic in a View was lost")
	}
	if n := count(t, sh); n != 0 || sh.Err() != nil {
		t.Errorf("afterwards: %d rows, shard: %v", n, sh.Err())
	}
}

func TestViewsWaitForAConnection(t *testing.T) {
	o := options()
	o.ReadConns = 1
	_, sh := open(t, o)
	err := sh.View(ctx, func(*shards.Tx) error {
		soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		if err := sh.View(soon, func(*shards.Tx) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want to wait until the deadline", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
