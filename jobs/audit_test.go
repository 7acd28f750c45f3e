package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"tenderbox/jobs"
	"tenderbox/store"
	"tenderbox/store/storetest"
)

// TestAuditFindsWhatIsPlanted beside the jobs.
func TestAuditFindsWhatIsPlanted(t *testing.T) {
	e, s := open(t, oneQueue())
	enqueue(t, e, jobs.NewJob{Queue: "q", Tenant: "t", ID: "a"}, jobs.NewJob{Queue: "q", Tenant: "t", ID: "d", Delay: time.Hour})
	put(t, e, jobs.Schedule{ID: "s", Cron: "@daily"})
	js, err := e.Lease(t.Context(), jobs.LeaseRequest{Queue: "q", Tenant: "t", For: time.Minute})
	fatalIf(t, err)
	fatalIf(t, e.Log(t.Context(), jobs.LeaseRef{Tenant: "t", Queue: "q", ID: "a", Token: js[0].LeaseToken}, "line"))
	var whole bytes.Buffer
	fatalIf(t, e.Close())
	_, err = s.Backup(&whole)
	fatalIf(t, err)

	flip := func(b *bbolt.Bucket) error {
		k, v := b.Cursor().First()
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1
		return b.Put(k, v)
	}
	drop := func(b *bbolt.Bucket) error { k, _ := b.Cursor().First(); return b.Delete(k) }
	move := func(b *bbolt.Bucket) error { // to another job's place
		k, v := b.Cursor().First()
		to, v := bytes.Clone(k), bytes.Clone(v)
		to[len(to)-9] ^= 8
		return errors.Join(b.Delete(k), b.Put(to, v))
	}
	stray := func(b *bbolt.Bucket) error { return b.Put([]byte("stray"), []byte("x")) }
	for name, tc := range map[string]struct {
		bucket string
		plant  func(b *bbolt.Bucket) error
		want   string
	}{
		"nothing":                {"later", func(*bbolt.Bucket) error { return nil }, ""},
		"index of another place": {"later", flip, "does not know"},
		"no index":               {"later", drop, "does not know"},
		"index of nothing":       {"delayed", drop, "lead nowhere"},
		"damaged line":           {"logs", flip, "log line: damaged"},
		"moved line":             {"logs", move, "log line: damaged"},
		"line of nobody":         {"ids", drop, "log without its job"},
		"damaged schedule":       {"schedules", flip, `schedule "s": damaged`},
		"moved schedule": {"schedules", func(b *bbolt.Bucket) error {
			_, v := b.Cursor().First()
			return b.Put([]byte("u\x00q\x00s"), bytes.Clone(v))
		}, `tenant "u", schedule "s": damaged`},
		"renamed schedule": {"schedules", func(b *bbolt.Bucket) error {
			_, v := b.Cursor().First()
			return b.Put([]byte("t\x00q\x00other"), bytes.Clone(v))
		}, `schedule "other": damaged`},
		"stray index":    {"later", stray, "lead nowhere"},
		"stray entry":    {"finished_ids", stray, "lead nowhere"},
		"stray line":     {"logs", stray, "does not belong there"},
		"stray schedule": {"schedules", stray, "does not belong there"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "jobs.db")
			fatalIf(t, os.WriteFile(path, whole.Bytes(), 0o600))
			s := storetest.Reopen(t, path, store.Options{})
			fatalIf(t, s.Update(context.Background(), func(tx *bbolt.Tx) error { return tc.plant(tx.Bucket([]byte(tc.bucket))) }))
			fatalIf(t, s.Close())
			findings, err := jobs.Audit(path)
			fatalIf(t, err)
			if got := strings.Join(findings, "\n"); !strings.Contains(got, tc.want) || (got == "") != (tc.want == "") {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}
