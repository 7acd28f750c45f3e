package ledger

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tenderbox/shards"
)

// What a table that is made anew must keep: its rows, its indexes, and what it refuses.
func TestPaymentsAreMadeAnew(t *testing.T) {
	dir := t.TempDir()
	states := []string{"queued", "sending", "in_doubt", "review", "settled", "lost"}
	statuses := []string{"requires_confirmation", "pending", "succeeded", "failed", "canceled", "lost"}
	add := func(tx *shards.Tx, status, sync, upstream string) error {
		_, err := tx.Exec(`INSERT INTO payments (tenant, id, amount, currency, status, sync, attempts, series, first_sent_at, resolve_first, account, last_error,
			upstream_id, failure_code, failure_decline, failure_message, amount_refunded, order_id, user_id, source, source_kind, has_extras, taken_offline, created_at, settled_at)
			VALUES ('shop', ?, 7, 'usd', ?, ?, 1, 2, 3, 1, 'a', 'e', nullif(?, ''), 'c', 'd', 'm', 4, 'o', 'u', x'00', 'source', 1, 1, 5, 6)`,
			status+"/"+sync+"/"+upstream, status, sync, upstream)
		return err
	}
	// taken returns what the table takes, row by row.
	taken := func(set *shards.Set, keep bool) (all []string) {
		for _, status := range statuses {
			for _, sync := range states {
				for _, upstream := range []string{"", "ch_1"} {
					err := set.All()[0].Update(t.Context(), func(tx *shards.Tx) error {
						if err := add(tx, status, sync, upstream); err != nil || keep {
							return err
						}
						_, err := tx.Exec(`DELETE FROM payments WHERE id = ?`, status+"/"+sync+"/"+upstream)
						return err
					})
					if err == nil {
						all = append(all, fmt.Sprint(status, sync, upstream))
					} else if !strings.Contains(err.Error(), "CHECK") {
						t.Fatal(err)
					}
				}
			}
		}
		return all
	}
	held := func(set *shards.Set) (all []string) {
		err := set.All()[0].View(t.Context(), func(tx *shards.Tx) error {
			for _, query := range []string{
				`SELECT concat_ws('|', tenant, id, amount, currency, status, sync, attempts, series, first_sent_at, resolve_first, account, last_error, upstream_id, failure_code,
					failure_decline, failure_message, amount_refunded, order_id, user_id, hex(source), source_kind, has_extras, taken_offline, created_at, settled_at) FROM payments`,
				`SELECT name || sql FROM sqlite_schema WHERE tbl_name = 'payments' AND type = 'index' AND sql IS NOT NULL`,
			} {
				rows, err := tx.Query(query)
				if err != nil {
					return err
				}
				for rows.Next() {
					var s string
					if err := rows.Scan(&s); err != nil {
						return err
					}
					all = append(all, s)
				}
				if err := rows.Err(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(all)
		return all
	}

	before := must(shards.Open(t.Context(), dir, shards.Options{Files: 1, Migrations: migrations[:5]}))(t)
	took := taken(before, true)
	rows := held(before)
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	if len(took) < 10 || len(took) == len(states)*len(statuses)*2 {
		t.Fatalf("the former table took %d rows", len(took))
	}

	after := must(shards.Open(t.Context(), dir, shards.Options{Migrations: migrations}))(t)
	defer after.Close()
	if got := held(after); !slices.Equal(got, rows) {
		t.Errorf("holds\n%s\nbefore it was\n%s", strings.Join(got, "\n"), strings.Join(rows, "\n"))
	}
	err := after.All()[0].Update(t.Context(), func(tx *shards.Tx) error { _, err := tx.Exec(`DELETE FROM payments`); return err })
	if err != nil {
		t.Fatal(err)
	}
	if got := taken(after, false); !slices.Equal(got, took) {
		t.Errorf("takes %v, took %v", got, took)
	}
}

// The attempts' table was made anew as well: it holds what it held, and takes what it took.
func TestAttemptsAreMadeAnew(t *testing.T) {
	dir := t.TempDir()
	add := func(set *shards.Set, n int, outcome any) error {
		return set.All()[0].Update(t.Context(), func(tx *shards.Tx) error {
			_, err := tx.Exec(`INSERT INTO attempts (tenant, record, n, upstream_key, account, epoch, started_at, ended_at, outcome, maybe_sent, http_status, request_id, reason,
				evidence, step, credential, their_time) VALUES ('shop', 'pay_1', ?, 'k', 'a', 2, 3, 4, ?, 5, 6, 'r', 'y', '{}', 'charge', 'c', 7)`, n, outcome)
			return err
		})
	}
	held := func(set *shards.Set) (all string) {
		err := set.All()[0].View(t.Context(), func(tx *shards.Tx) error {
			return tx.QueryRow(`SELECT group_concat(concat_ws('|', tenant, record, n, upstream_key, account, epoch, started_at, ended_at, coalesce(outcome, '-'), maybe_sent, http_status,
				request_id, reason, evidence, step, credential, their_time), char(10)) FROM attempts WHERE tenant = 'shop'`).Scan(&all)
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	outcomes := []any{nil, "succeeded", "declined", "retryable", "unknown"}
	before := must(shards.Open(t.Context(), dir, shards.Options{Files: 1, Migrations: migrations[:6]}))(t)
	for n, outcome := range outcomes {
		if err := add(before, n, outcome); err != nil {
			t.Fatal(err)
		}
	}
	rows := held(before)
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	after := must(shards.Open(t.Context(), dir, shards.Options{Migrations: migrations}))(t)
	defer after.Close()
	if got := held(after); got != rows {
		t.Errorf("holds\n%s\nbefore it was\n%s", got, rows)
	}
	for n, outcome := range outcomes {
		if err := add(after, 10+n, outcome); err != nil {
			t.Errorf("%v: %v", outcome, err)
		}
	}
	for _, refused := range []any{"lost", ""} {
		if err := add(after, 20, refused); err == nil || !strings.Contains(err.Error(), "CHECK") {
			t.Errorf("an outcome %q: %v", refused, err)
		}
	}
	if err := add(after, 1, "unknown"); err == nil {
		t.Error("an attempt is there twice")
	}
}

// A migration that has run somewhere is never changed, not in a comment either: a file that was made by another text is refused.
func TestMigrationsAreWhatTheyWere(t *testing.T) {
	for what, c := range map[string]struct {
		of   []shards.Migration
		were []string
	}{
		"shards":    {migrations, []string{"5445ec1fc16e2afe", "cf85a090629654a8", "cdeea197a74742cd", "90ef4254d9752a49", "48c07389f88297c1", "f979fcb9284b9b99", "8076126797bb32a7"}},
		"analytics": {analyticsMigrations, []string{"86a80240753d820a"}},
	} {
		for i, m := range c.of {
			sum := fmt.Sprintf("%x", sha256.Sum256([]byte(m.SQL)))[:16]
			if i >= len(c.were) || sum != c.were[i] {
				t.Errorf("%s: migration %d, %s, is %q", what, m.Version, m.Name, sum)
			}
		}
	}
}
