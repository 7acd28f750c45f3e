package shards

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"modernc.org/sqlite"
)

// Rule 1: the settings on which durability rests hold on every connection.
func TestSettingsOfEveryConnection(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a folder with %20, ? and # in its name")
	s, err := Open(context.Background(), dir, Options{Files: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	path := s.shards[0].path
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		access access
		want   map[string]string
	}{
		"writing":    {forWriting, map[string]string{"journal_mode": "wal", "synchronous": "2", "wal_autocheckpoint": "0", "foreign_keys": "1", "query_only": "0"}},
		"derived":    {forDerived, map[string]string{"journal_mode": "wal", "synchronous": "1", "wal_autocheckpoint": "0", "foreign_keys": "1", "query_only": "0"}},
		"erasing":    {forErasing, map[string]string{"journal_mode": "wal", "synchronous": "2", "wal_autocheckpoint": "0", "foreign_keys": "1", "query_only": "0", "secure_delete": "1"}},
		"checkpoint": {forCheckpoint, map[string]string{"journal_mode": "wal", "synchronous": "2", "wal_autocheckpoint": "0"}},
		"reading":    {forReading, map[string]string{"journal_mode": "wal", "query_only": "1"}},
	} {
		conn, err := openConn(context.Background(), path, c.access)
		if err != nil {
			t.Fatal(err)
		}
		c.want["mmap_size"] = "0"
		c.want["trusted_schema"] = "0"
		c.want["temp_store"] = "2"
		for pragma, want := range c.want {
			var have string
			if err := conn.value(&have, "PRAGMA "+pragma); err != nil || have != want {
				t.Errorf("%s: %s is %q (%v), want %q", name, pragma, have, err, want)
			}
		}
		conn.Close()
	}
	// The writer and the pool of a running shard went through the same door.
	var have string
	if err := s.shards[0].anchor.value(&have, "PRAGMA query_only"); err != nil || have != "1" {
		t.Errorf("anchor: query_only is %q, %v", have, err)
	}
}

// The assertion must fail when a setting is not in force: here one that SQLite ignores.
func TestAssertNoticesAMissingSetting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	connector, err := sqlite.NewConnector("file:" + path + "?mode=rw&_pragma=synchronous(1)")
	if err != nil {
		t.Fatal(err)
	}
	dc, err := connector.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{dc: dc, stmts: map[string]*stmt{}}
	defer c.Close()
	if err := c.assert(forWriting); err == nil || !strings.Contains(err.Error(), "must be") {
		t.Errorf("got %v", err)
	}
}

func TestMissingFileIsNeverCreated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	for _, a := range []access{forWriting, forDerived, forErasing, forCheckpoint, forReading, forAudit, forAuditClean} {
		if c, err := openConn(context.Background(), path, a); err == nil {
			c.Close()
			t.Errorf("access %d opened a file that is not there", a)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was created: %v", err)
	}
}

// What a commit waits for is fdatasync, where there is one.
func TestCommitsSyncTheirDataOnly(t *testing.T) {
	if runtime.GOOS == "linux" && !sqlite.FdatasyncEnabled() {
		t.Error("SQLite calls fsync")
	}
}

// The statement cache stays bounded, and does not close what is in use.
func TestStatementCacheIsBounded(t *testing.T) {
	s, err := Open(context.Background(), filepath.Join(t.TempDir(), "s"), Options{Files: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.shards[0].View(context.Background(), func(tx *Tx) error {
		rows, err := tx.Query("SELECT 1 UNION SELECT 2")
		if err != nil {
			return err
		}
		rows.Next()
		for i := range 2 * statementsMax {
			var n int
			if err := tx.QueryRow("SELECT " + strings.Repeat("1+", i%1000) + "1 AS n" + strings.Repeat("x", i/1000)).Scan(&n); err != nil {
				return err
			}
		}
		if !rows.Next() {
			t.Error("an open statement was closed")
		}
		if n := len(tx.c.stmts); n > statementsMax {
			t.Errorf("%d statements kept", n)
		}
		return rows.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}
