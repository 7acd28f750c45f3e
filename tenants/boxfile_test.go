package tenants

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"tenderbox/store"
)

// A change is in the copy as soon as it is answered, and the copy is a whole file.
func TestCopyFollows(t *testing.T) {
	b := newTestBox(t, "")
	for i := range 5 {
		b.add(New{ID: ID(fmt.Sprintf("t%d", i))})
		if err := store.CheckFile(b.file() + ".copy"); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(b.file()+".copy", 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(func(tx *bbolt.Tx) error {
			c, err := readContents(tx)
			if len(c.tenants) != i+1 {
				t.Errorf("the copy has %d tenants, want %d", len(c.tenants), i+1)
			}
			return err
		})
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedFileIsReplacedByItsCopy(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"zeroed":    func(t *testing.T, path string) { overwrite(t, path, 0, 1<<20, 0) },
		"headers":   func(t *testing.T, path string) { overwrite(t, path, 0, 2*int64(os.Getpagesize()), 0xff) },
		"truncated": func(t *testing.T, path string) { check(t, os.Truncate(path, int64(os.Getpagesize()))) },
		"emptied":   func(t *testing.T, path string) { check(t, os.Truncate(path, 0)) },
		"missing":   func(t *testing.T, path string) { check(t, os.Remove(path)) },
		"one bit":   func(t *testing.T, path string) { flipValue(t, path) },
		"not a bbolt": func(t *testing.T, path string) {
			check(t, os.WriteFile(path, []byte(strings.Repeat("hello", 10_000)), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBox(t, "")
			key := b.add(New{ID: "shop"})
			before := b.List()
			check(t, b.st.Close())
			damage(t, b.file())
			alarm, err := b.reopen()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(alarm, b.file()) {
				t.Errorf("alarm: %q", alarm)
			}
			if diff := cmp.Diff(before, b.List()); diff != "" {
				t.Error(diff)
			}
			if got, err := b.Resolve(bearer(key)); got.Tenant != "shop" || err != nil {
				t.Error(got, err)
			}
			aside, _ := filepath.Glob(b.file() + ".broken-*")
			if (name == "missing") != (len(aside) == 0) {
				t.Errorf("moved aside: %v", aside)
			}
			if alarm, err := b.reopen(); alarm != "" || err != nil {
				t.Errorf("the next start: %q %v", alarm, err)
			}
			b.add(New{ID: "bar"})
		})
	}
}

func TestBothDamagedIsAnError(t *testing.T) {
	b := newTestBox(t, "")
	b.add(New{ID: "shop"})
	check(t, b.st.Close())
	flipValue(t, b.file())
	flipValue(t, b.file()+".copy")
	_, err := b.reopen()
	var corrupt *store.CorruptError
	if !errors.As(err, &corrupt) {
		t.Errorf("got %v", err)
	}
	if aside, _ := filepath.Glob(b.file() + ".broken-*"); len(aside) != 0 {
		t.Errorf("moved aside, and nothing put in its place: %v", aside)
	}
}

func TestNoCopyIsAnError(t *testing.T) {
	b := newTestBox(t, "")
	check(t, b.st.Close())
	check(t, os.Remove(b.file()+".copy"))
	flipValue(t, b.file())
	var corrupt *store.CorruptError
	if _, err := b.reopen(); !errors.As(err, &corrupt) {
		t.Errorf("got %v", err)
	}
}

func TestSecondBoxIsRefused(t *testing.T) {
	b := newTestBox(t, "")
	if _, _, err := OpenFile(b.file()); !errors.Is(err, store.ErrLocked) {
		t.Errorf("got %v", err)
	}
}

func TestOtherKeyAndNewerFormatAreRefused(t *testing.T) {
	b := newTestBox(t, "")
	b.add(New{ID: "shop", Upstream: &Upstream{"https://x.example", "a", "k", 0}})
	other, err := CreateKeyring(filepath.Join(b.dir, "other.key"))
	check(t, err)
	if _, err := Open(b.st, other, Options{}); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), other.Path()) {
		t.Errorf("another key: %v", err)
	}
	// Written by a version that knew no names of keys: what is sealed tells, and a box that holds nothing sealed is not claimed.
	nameless := func(tx *bbolt.Tx) error { return tx.Bucket(bucketBox).Delete(keyKeys) }
	check(t, b.st.Update(t.Context(), nameless))
	if _, err := Open(b.st, other, Options{}); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), other.Path()) {
		t.Errorf("another key, nameless: %v", err)
	}
	_, err = b.Update(t.Context(), "shop", func(t *Tenant) error { t.Upstream = nil; return nil })
	check(t, err)
	check(t, b.st.Update(t.Context(), nameless))
	if _, err := Open(b.st, other, Options{}); err != nil {
		t.Errorf("another key, nothing to tell it by: %v", err)
	}
	b.Registry, err = Open(b.st, b.kr, Options{})
	check(t, err)
	check(t, b.KeepKeys(t.Context()))
	if _, err := Open(b.st, other, Options{}); !errors.Is(err, ErrKeyFile) {
		t.Errorf("another key, once the right one was kept: %v", err)
	}
	newer, err := encodeRecord(keyFormat, formatNow+1)
	check(t, err)
	check(t, b.st.Update(t.Context(), func(tx *bbolt.Tx) error { return tx.Bucket(bucketBox).Put(keyFormat, newer) }))
	if _, err := b.reopen(); !errors.Is(err, ErrFormat) {
		t.Errorf("a newer format: %v", err)
	}
}

// A sealed key that was moved to another tenant does not open there.
func TestSwappedRecordsAreFound(t *testing.T) {
	b := newTestBox(t, "")
	b.add(New{ID: "shop", Upstream: &Upstream{"https://x.example", "a", "k1", 0}})
	b.add(New{ID: "bar", Upstream: &Upstream{"https://x.example", "b", "k2", 0}})
	err := b.st.Update(t.Context(), func(tx *bbolt.Tx) error {
		all := tx.Bucket(bucketTenants)
		one, two := bytes.Clone(all.Get([]byte("shop"))), bytes.Clone(all.Get([]byte("bar")))
		return errors.Join(all.Put([]byte("shop"), two), all.Put([]byte("bar"), one))
	})
	check(t, err)
	if _, err := Open(b.st, b.kr, Options{}); !errors.Is(err, errRecord) {
		t.Errorf("got %v", err)
	}
}

func overwrite(t *testing.T, path string, from, to int64, with byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	info, err := f.Stat()
	check(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{with}, int(min(to, info.Size())-from)), from)
	check(t, errors.Join(err, f.Close()))
}

// flipValue flips one bit in every stored tenant, which bbolt itself does not notice.
func flipValue(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	check(t, err)
	was := bytes.Clone(content)
	for at := 0; ; {
		i := bytes.Index(content[at:], []byte(`"key_prefix":"tbk_`))
		if i < 0 {
			break
		}
		at += i + len(`"key_prefix":"tbk_`)
		content[at] ^= 1
	}
	if bytes.Equal(was, content) { // no tenant yet: the format's record
		i := bytes.LastIndex(content, []byte("format"))
		content[i+len("format")] ^= 1
	}
	if bytes.Equal(was, content) {
		t.Fatal("the fault did not fire")
	}
	check(t, os.WriteFile(path, content, 0o600))
}
