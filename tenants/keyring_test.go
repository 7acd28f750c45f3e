package tenants

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newTestKeyring(t *testing.T) (*Keyring, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "box.key")
	k, err := CreateKeyring(path)
	check(t, err)
	return k, path
}

func TestSealIsBoundToItsRecord(t *testing.T) {
	k, _ := newTestKeyring(t)
	other, _ := newTestKeyring(t)
	plain := []byte("tok_visa")
	sealed := k.Seal("payments/shop/pay_1/source", plain)
	if bytes.Contains(sealed, plain) {
		t.Error("the source stands in it in clear")
	}
	if got, err := k.Open("payments/shop/pay_1/source", sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%q %v", got, err)
	}
	if again := k.Seal("payments/shop/pay_1/source", plain); bytes.Equal(again, sealed) {
		t.Error("equal sources are seen to be equal")
	}
	for _, record := range []string{"", "payments/shop/pay_2/source", "payments/bar/pay_1/source", "payments/shop/pay_1/body"} {
		if _, err := k.Open(record, sealed); !errors.Is(err, ErrSealed) {
			t.Errorf("opens as %q: %v", record, err)
		}
	}
	if _, err := other.Open("payments/shop/pay_1/source", sealed); !errors.Is(err, ErrSealed) {
		t.Error("another key opens it: ", err)
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := k.Open("payments/shop/pay_1/source", changed); !errors.Is(err, ErrSealed) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := k.Open("payments/shop/pay_1/source", sealed[:i]); !errors.Is(err, ErrSealed) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	if empty, err := k.Open("r", k.Seal("r", nil)); err != nil || len(empty) != 0 {
		t.Errorf("%q %v", empty, err)
	}
}

func TestSubkeys(t *testing.T) {
	k, path := newTestKeyring(t)
	if bytes.Equal(k.Subkey("a"), k.Subkey("b")) || len(k.Subkey("a")) != 32 {
		t.Error("subkeys are not one for each purpose")
	}
	again, err := LoadKeyring(path)
	check(t, err)
	if !bytes.Equal(k.Subkey("a"), again.Subkey("a")) {
		t.Error("another key after loading")
	}
	one, two := k.MAC("a")(), again.MAC("a")()
	one.Write([]byte("x"))
	two.Write([]byte("x"))
	if !bytes.Equal(one.Sum(nil), two.Sum(nil)) {
		t.Error("another MAC after loading")
	}
}

func TestKeyFiles(t *testing.T) {
	k, path := newTestKeyring(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if _, err := CreateKeyring(path); !errors.Is(err, fs.ErrExist) {
		t.Error("a key was replaced: ", err)
	}
	if same, err := LoadOrCreateKeyring(path); err != nil || !bytes.Equal(same.Subkey("a"), k.Subkey("a")) {
		t.Error(err)
	}
	if _, err := LoadKeyring(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	good, err := os.ReadFile(path)
	check(t, err)
	for i := range good { // any one bit, any cut
		changed := bytes.Clone(good)
		changed[i] ^= 1
		for _, content := range [][]byte{changed, good[:i]} {
			check(t, os.WriteFile(path, content, 0o600))
			if k2, err := LoadKeyring(path); !errors.Is(err, ErrKeyFile) && (err != nil || !bytes.Equal(k2.Subkey("a"), k.Subkey("a"))) {
				t.Errorf("%q became a key: %v", content, err)
			}
		}
	}
	for _, content := range []string{"", "secret", strings.Repeat("x", 5000)} {
		check(t, os.WriteFile(path, []byte(content), 0o600))
		if _, err := LoadKeyring(path); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), path) {
			t.Errorf("%.20q: %v", content, err)
		}
	}
	check(t, os.WriteFile(path, good, 0o600))
	check(t, os.Chmod(path, 0o644))
	if _, err := LoadKeyring(path); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), "chmod 600") {
		t.Error("readable by everybody: ", err)
	}
}

func TestSecretIsNotShown(t *testing.T) {
	s := Secret("sk_live_canary")
	u := Upstream{Key: s}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "key", s, "upstream", u)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "key", s, "upstream", u, "pointer", &u)
	inJSON, err := json.Marshal(map[string]any{"key": s, "upstream": u})
	check(t, err)
	shown := log.String() + string(inJSON) + fmt.Sprint(s, u, &u) + fmt.Errorf("%w %v", os.ErrExist, s).Error()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, u)
	}
	if strings.Contains(shown, "canary") || strings.Contains(strings.ToLower(shown), "63616e617279") { // in hex
		t.Error(shown)
	}
	if !strings.Contains(shown, "[redacted]") || Secret("").String() != "" || string(s) != "sk_live_canary" {
		t.Error(shown)
	}
}
