package tenants

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

func addKey(t *testing.T, k *Keyring) *Keyring {
	t.Helper()
	next, err := k.AddKey()
	check(t, err)
	return next
}

// The newest key seals, all open, and what is derived never changes; over every reading of the file.
func TestAddedKeys(t *testing.T) {
	k, path := newTestKeyring(t)
	chain := k.Subkey("journal chain")
	sealed := [][]byte{k.Seal("r", []byte("secret"))}
	for range 3 {
		next := addKey(t, k)
		read, err := LoadKeyring(path)
		check(t, err)
		if read.Newest() != next.Newest() || !read.Resealing() || read.OldKeys() != next.OldKeys() {
			t.Errorf("read %s, %v, %d", read.Newest(), read.Resealing(), read.OldKeys())
		}
		if k.Newest() == next.Newest() {
			t.Error("the new key has the old one's name")
		}
		if _, err := k.Open("r", next.Seal("r", nil)); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), next.Newest()) {
			t.Errorf("opened without the key: %v", err)
		}
		k = read
		sealed = append(sealed, k.Seal("r", []byte("secret")))
		for i, s := range sealed {
			if got, err := k.Open("r", s); err != nil || string(got) != "secret" {
				t.Errorf("value of key %d: %q %v", i, got, err)
			}
			if _, err := k.Open("other", s); !errors.Is(err, ErrSealed) {
				t.Errorf("value of key %d opens elsewhere: %v", i, err)
			}
			again, changed, err := k.Reseal("r", s)
			if err != nil || changed != (i < len(sealed)-1) || !k.current(again) {
				t.Errorf("value of key %d: changed %v, %v", i, changed, err)
			}
		}
		if !bytes.Equal(k.Subkey("journal chain"), chain) {
			t.Error("a derived key has changed")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	k, err := k.Resealed()
	check(t, err)
	k, err = k.ForgetOld()
	check(t, err)
	read, err := LoadKeyring(path)
	check(t, err)
	for _, k := range []*Keyring{k, read} {
		for i, s := range sealed {
			if _, err := k.Open("r", s); (err == nil) != (i == len(sealed)-1) {
				t.Errorf("value of key %d after the older ones were forgotten: %v", i, err)
			}
		}
		if !bytes.Equal(k.Subkey("journal chain"), chain) || k.OldKeys() != 0 || k.Resealing() {
			t.Error("something else was forgotten too")
		}
	}
	if next := addKey(t, read); next.OldKeys() != 1 || !bytes.Equal(next.Subkey("journal chain"), chain) {
		t.Errorf("%d old keys", next.OldKeys())
	}
}

func TestKeyFilesOfSeveralKeys(t *testing.T) {
	k, path := newTestKeyring(t)
	whole := addKey(t, addKey(t, k))
	good, err := os.ReadFile(path)
	check(t, err)
	lines := strings.SplitAfter(string(good), "\n")
	same := func(k *Keyring) bool {
		return k.text() == whole.text() && bytes.Equal(k.Subkey("a"), whole.Subkey("a"))
	}
	for i := range good { // any one bit, any cut
		changed := bytes.Clone(good)
		changed[i] ^= 1
		for _, content := range [][]byte{changed, good[:i]} {
			check(t, os.WriteFile(path, content, 0o600))
			if k, err := LoadKeyring(path); !errors.Is(err, ErrKeyFile) && (err != nil || !same(k)) {
				t.Errorf("%q became a key file: %v", content, err)
			}
		}
	}
	for name, content := range map[string]string{
		"no first":      lines[0] + lines[2] + lines[3],
		"nothing seals": lines[0] + lines[1] + lines[2],
		"two first":     lines[0] + lines[1] + lines[1] + lines[3],
		"two seal":      lines[0] + lines[1] + lines[3] + lines[3],
		"other order":   lines[0] + lines[3] + lines[1] + lines[2],
		"header alone":  lines[0],
		"no roles":      lines[0] + " " + strings.TrimPrefix(lines[1], "derives,opens "),
		"too many":      lines[0] + lines[1] + strings.Repeat(lines[2], 30) + lines[3],
	} {
		check(t, os.WriteFile(path, []byte(content), 0o600))
		if _, err := LoadKeyring(path); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysMax(t *testing.T) {
	k, path := newTestKeyring(t)
	err := error(nil)
	for next := k; err == nil; next, err = k.AddKey() {
		k = next
	}
	read, lerr := LoadKeyring(path)
	if !errors.Is(err, ErrKeysMax) || lerr != nil || read.OldKeys() != keysMax-2 {
		t.Fatal(err, lerr)
	}
	if k, err = read.ForgetOld(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.AddKey(); err != nil {
		t.Error(err)
	}
}

// A credential's permissions are the service manager's business; any other file's are its owner's alone.
func TestKeyFilePermissions(t *testing.T) {
	_, path := newTestKeyring(t)
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false, 0o660: false, 0o644: false} {
		check(t, os.Chmod(path, mode))
		if _, err := LoadKeyring(path); (err == nil) != fine || err != nil && !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("%v: %v", mode, err)
		}
		if _, err := LoadCredential(path); err != nil {
			t.Errorf("%v, as a credential: %v", mode, err)
		}
	}
}

func TestRekeyKeepsALink(t *testing.T) {
	_, real := newTestKeyring(t)
	link := filepath.Join(t.TempDir(), "box.key")
	check(t, os.Symlink(real, link))
	k, err := LoadKeyring(link)
	check(t, err)
	next := addKey(t, k)
	if read, err := LoadKeyring(real); err != nil || read.Newest() != next.Newest() {
		t.Error(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced: ", err)
	}
}

// sealedValues are all that box.db and its copy hold in sealed form.
func (b *testBox) sealedValues() (all [][]byte) {
	b.t.Helper()
	err := b.st.View(func(tx *bbolt.Tx) error {
		c, err := readContents(tx)
		for _, t := range c.tenants {
			if t.Upstream != nil {
				all = append(all, t.Upstream.SealedKey)
			}
		}
		for _, h := range c.hooks {
			all = append(all, h.SealedSecrets)
		}
		return err
	})
	check(b.t, err)
	return all
}

func TestRegistryReseal(t *testing.T) {
	b := newTestBox(t, "")
	const many = resealMax + resealMax/2
	for i := range many {
		id := ID(fmt.Sprintf("t%03d", i))
		b.add(New{ID: id, Upstream: &Upstream{"https://x.example", string(id), Secret("sk_" + id), 0}})
	}
	_, secret, err := b.Webhooks().Add(t.Context(), "t000", NewEndpoint{URL: "https://x.example/hook"})
	check(t, err)
	b.add(New{ID: "bare"})
	_, err = b.Update(t.Context(), "t001", func(t *Tenant) error { t.Disabled = true; return nil })
	check(t, err)
	old := b.sealedValues()

	b.kr = addKey(t, b.kr)
	b.Registry, err = Open(b.st, b.kr, Options{})
	check(t, err)
	// Interrupted after the first transaction, the next run does the rest.
	ctx, cancel := context.WithCancel(t.Context())
	first, err := b.Reseal(ctx, func(int) { cancel() })
	if !errors.Is(err, context.Canceled) || first != resealMax {
		t.Fatalf("%d values, %v", first, err)
	}
	rest, err := b.Reseal(t.Context(), nil)
	if err != nil || first+rest != many+1 {
		t.Errorf("%d and %d values, %v", first, rest, err)
	}
	if again, err := b.Reseal(t.Context(), nil); again != 0 || err != nil {
		t.Errorf("the third time: %d values, %v", again, err)
	}
	for _, v := range b.sealedValues() {
		if !b.kr.current(v) {
			t.Fatal("a value is left under the old key")
		}
	}

	check(t, b.Forget(t.Context()))
	left := func(file string) (n int) {
		content, err := os.ReadFile(file)
		check(t, err)
		for _, v := range old {
			if bytes.Contains(content, []byte(base64.StdEncoding.EncodeToString(v))) {
				n++
			}
		}
		return n
	}
	if left(b.file()) == 0 {
		t.Error("no value under the old key is left in a free page: this test sees nothing")
	}
	check(t, b.Compact())
	b.kr, err = b.kr.ForgetOld()
	check(t, err)
	for _, file := range []string{b.file(), b.file() + copySuffix} {
		if n := left(file); n > 0 {
			t.Errorf("%s still holds %d values under the old key in its free pages", file, n)
		}
	}
	if alarm, err := b.reopen(); alarm != "" || err != nil {
		t.Fatal(alarm, err)
	}
	for i := range many {
		id := ID(fmt.Sprintf("t%03d", i))
		got, err := b.Get(id)
		if err != nil || string(got.Upstream.Key) != "sk_"+string(id) || got.Disabled != (i == 1) {
			t.Fatal(id, err)
		}
	}
	if hooks := b.Webhooks().List("t000"); len(hooks) != 1 || !slices.Equal(hooks[0].Secrets, []Secret{Secret(secret)}) {
		t.Errorf("%d webhooks", len(hooks))
	}
}

// What does not open is told, and keeps nothing else from being sealed anew.
func TestRegistryResealReportsDamage(t *testing.T) {
	b := newTestBox(t, "")
	for _, id := range []ID{"bar", "shop"} {
		b.add(New{ID: id, Upstream: &Upstream{"https://x.example", string(id), "sk", 0}})
	}
	b.kr = addKey(t, b.kr)
	var err error
	b.Registry, err = Open(b.st, b.kr, Options{})
	check(t, err)
	check(t, b.st.Update(t.Context(), func(tx *bbolt.Tx) error {
		all := tx.Bucket(bucketTenants)
		var rec record
		if err := decodeRecord([]byte("bar"), all.Get([]byte("bar")), &rec); err != nil {
			return err
		}
		rec.Upstream.SealedKey[30] ^= 1
		value, err := encodeRecord([]byte("bar"), rec)
		return errors.Join(err, all.Put([]byte("bar"), value))
	}))
	n, err := b.Reseal(t.Context(), nil)
	if n != 1 || !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "bar") {
		t.Errorf("%d values, %v", n, err)
	}
}

// A key file from before a rekey, or one that forgot too much, is refused by name, with nothing changed.
func TestOlderKeyFileIsRefused(t *testing.T) {
	b := newTestBox(t, "")
	b.add(New{ID: "shop"})
	before := b.kr
	b.kr = addKey(t, b.kr)
	var err error
	b.Registry, err = Open(b.st, b.kr, Options{})
	check(t, err)
	old, forgotten := before, b.kr.WithoutOld()
	for name, k := range map[string]*Keyring{"from before": old, "that forgot": forgotten} {
		if _, err := Open(b.st, k, Options{}); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), k.Path()) {
			t.Errorf("a file %s: %v", name, err)
		}
	}
	if alarm, err := b.reopen(); alarm != "" || err != nil {
		t.Errorf("with the right one: %q %v", alarm, err)
	}
}
