package shards

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

func (m Migration) sum() string {
	sum := sha256.Sum256([]byte(m.SQL))
	return hex.EncodeToString(sum[:])
}

// appliedMigrations reads what ran on a file.
func appliedMigrations(c *conn) (map[int]string, error) {
	tx := &Tx{c: c, ctx: background, readOnly: true}
	defer tx.end()
	rows, err := tx.Query("SELECT version, sha256 FROM _migrations")
	if err != nil {
		return nil, err
	}
	applied := map[int]string{}
	for rows.Next() {
		var version int
		var sum string
		if err := rows.Scan(&version, &sum); err != nil {
			return nil, err
		}
		applied[version] = sum
	}
	return applied, rows.Err()
}

// checkMigrations refuses a file that a newer program migrated, and one whose
// history is not this program's.
func checkMigrations(c *conn, path string, migrations []Migration) error {
	applied, err := appliedMigrations(c)
	if err != nil {
		if classOf(err) == classCaller {
			err = &CorruptError{Path: path, Cause: fmt.Errorf("its record of migrations is unreadable: %w", err)}
		}
		return err
	}
	for version, sum := range applied {
		if version < 1 {
			return &CorruptError{Path: path, Cause: fmt.Errorf("it records a migration %d", version)}
		}
		if version > len(migrations) {
			return &MismatchError{Path: path, What: "schema version",
				Want: fmt.Sprint("at most ", len(migrations)), Have: fmt.Sprint(version)}
		}
		if want := migrations[version-1].sum(); sum != want {
			return &MismatchError{Path: path, What: fmt.Sprint("migration ", version), Want: want[:12], Have: sum[:min(12, len(sum))]}
		}
	}
	return nil
}

// migrate runs what is missing, each step in one transaction with its record: after
// a crash a step either ran or did not.
func migrate(c *conn, path string, migrations []Migration) error {
	applied, err := appliedMigrations(c)
	if err != nil {
		return err
	}
	for _, m := range migrations {
		if _, done := applied[m.Version]; done {
			continue
		}
		err := c.transaction(func() error {
			if err := c.script(m.SQL); err != nil {
				return err
			}
			return c.change("INSERT INTO _migrations (version, name, sha256, applied_at) VALUES (?, ?, ?, ?)",
				m.Version, m.Name, m.sum(), time.Now().UTC().Format(time.RFC3339))
		})
		if err != nil {
			return fmt.Errorf("shards: migration %d (%s) of %s: %w", m.Version, m.Name, path, err)
		}
	}
	return nil
}
