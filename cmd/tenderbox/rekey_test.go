package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"tenderbox/tenants"
)

// stoppedBox is the folder of a box that has taken payments without a line, and knows tenants with upstream keys and webhooks.
func stoppedBox(t *testing.T, payments int) Config {
	t.Helper()
	r := startApp(t, Config{})
	if err := r.client().do(t.Context(), http.MethodPost, "/api/v1/webhooks", map[string]any{"url": "https://hooks.example/"}, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		id := tenants.ID(fmt.Sprint("tenant-", i))
		if _, _, err := r.registry.Add(t.Context(), tenants.New{ID: id, Upstream: &tenants.Upstream{URL: "https://192.0.2.1", Account: string(id), Key: "sk_" + tenants.Secret(id)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.registry.Webhooks().Disable(t.Context(), defaultTenant, r.registry.Webhooks().List(defaultTenant)[0].ID, "for the test"); err != nil {
		t.Fatal(err)
	}
	if err := r.ledger.ForceLink(defaultTenant, "offline"); err != nil {
		t.Fatal(err)
	}
	for i := range payments {
		if _, err := r.client().pay(t.Context(), payRequest{Amount: 100, Currency: "eur", Source: "tok_visa"}, fmt.Sprint("k", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	return Config{Data: r.config.Data}
}

// copyBox copies a data folder as a killed process leaves it: the files as the kernel has them.
func copyBox(t *testing.T, from, to string) Config {
	t.Helper()
	err := os.CopyFS(to, os.DirFS(from))
	if err := errors.Join(err, os.Chmod(filepath.Join(to, boxKeyFile), 0o600)); err != nil {
		t.Fatal(err)
	}
	return Config{Data: to}
}

func soundBox(t *testing.T, c Config, when string) {
	t.Helper()
	findings, err := audit(t.Context(), &c)
	if err != nil {
		t.Errorf("%s: %v", when, err)
	}
	for _, f := range findings {
		t.Errorf("%s: %v", when, f)
	}
}

func keysOf(t *testing.T, c Config) *tenants.Keyring {
	t.Helper()
	k, err := tenants.LoadKeyring(c.path(boxKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Killed after any of its transactions, a rekey is finished by the next one, with the same key, and a box starts in between.
func TestRekeyKilledAnywhere(t *testing.T) {
	c := stoppedBox(t, 6)
	folder := t.TempDir()
	whole := copyBox(t, c.Data, filepath.Join(folder, "whole"))
	var killed []Config
	r := &rekey{config: &whole, batch: 1, out: io.Discard, progress: func(int) {
		killed = append(killed, copyBox(t, whole.Data, filepath.Join(folder, fmt.Sprint(len(killed)))))
	}}
	if findings, err := r.run(t.Context()); err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	if len(killed) < 6 {
		t.Fatalf("killed in %d places only", len(killed))
	}
	// The first step too: the file has the key, and nothing was done with it.
	begun := copyBox(t, c.Data, filepath.Join(folder, "begun"))
	if _, err := keysOf(t, begun).AddKey(); err != nil {
		t.Fatal(err)
	}
	for i, c := range append(killed, begun) {
		when := fmt.Sprintf("killed at %d", i)
		soundBox(t, c, when)
		before := keysOf(t, c)
		if !before.Resealing() || before.OldKeys() != 1 {
			t.Fatalf("%s: %d older keys", when, before.OldKeys())
		}
		app, err := OpenApp(t.Context(), withAddress(c), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := app.Close(); err != nil {
			t.Error(err)
		}
		for _, forget := range []bool{false, true} {
			var out strings.Builder
			if findings, err := (&rekey{config: &c, forgetOld: forget, out: &out}).run(t.Context()); err != nil || len(findings) > 0 {
				t.Fatal(findings, err)
			}
			after := keysOf(t, c)
			if after.Newest() != before.Newest() || after.Resealing() || (after.OldKeys() == 0) != forget {
				t.Errorf("%s: %d older keys, another newest: %v\n%s", when, after.OldKeys(), after.Newest() != before.Newest(), &out)
			}
			soundBox(t, c, when+", gone on with")
		}
	}
}

// The same, stopped by a signal; a second and third rekey each add a key, --new does so in the middle of one.
func TestRekeyAgain(t *testing.T) {
	c := stoppedBox(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := (&rekey{config: &c, batch: 1, out: io.Discard, progress: func(int) { cancel() }}).run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	soundBox(t, c, "stopped")
	for i, step := range []struct {
		add bool
		old int
	}{{true, 2}, {false, 3}, {false, 4}} {
		if findings, err := (&rekey{config: &c, add: step.add, out: io.Discard}).run(t.Context()); err != nil || len(findings) > 0 {
			t.Fatal(findings, err)
		}
		if k := keysOf(t, c); k.OldKeys() != step.old || k.Resealing() {
			t.Errorf("step %d: %d older keys", i, k.OldKeys())
		}
		soundBox(t, c, fmt.Sprint("step ", i))
	}
}

// A value that does not open keeps the older keys from being forgotten.
func TestRekeyOfADamagedValue(t *testing.T) {
	c := stoppedBox(t, 1)
	db, err := bbolt.Open(c.path(boxFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("tenants")).Put([]byte("tenant-1"), []byte("damaged"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.path(boxFile) + ".copy"); err != nil { // else it would take its place
		t.Fatal(err)
	}
	before := keysOf(t, c)
	_, err = (&rekey{config: &c, forgetOld: true, add: true, out: io.Discard}).run(t.Context())
	if err == nil || keysOf(t, c).Newest() != before.Newest() {
		t.Errorf("got %v", err)
	}
}

func TestRekeyOfAnothersFolder(t *testing.T) {
	dir := t.TempDir()
	if err := ownFolder(dir, os.Geteuid()); err != nil {
		t.Error(err)
	}
	if err := ownFolder(dir, os.Geteuid()+1); err == nil || !strings.Contains(err.Error(), "sudo -u ") {
		t.Errorf("got %v", err)
	}
}

// A folder of a version that named no keys in box.db opens, and names them from then on.
func TestOlderFolder(t *testing.T) {
	r := startApp(t, Config{})
	if _, err := r.client().pay(t.Context(), payRequest{Amount: 100, Currency: "eur", Source: "tok_visa"}, "k", ""); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	c := Config{Data: r.config.Data}
	db, err := bbolt.Open(c.path(boxFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("box")).Delete([]byte("keys")) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := (&rekey{config: &c, out: io.Discard}).run(t.Context()); err == nil || !strings.Contains(err.Error(), "start the box once") {
		t.Errorf("before it was ever started: %v", err)
	}
	// Another box's key proves nothing, and is not taken for this one's.
	right, err := os.ReadFile(c.path(boxKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.key")
	if _, err := tenants.CreateKeyring(other); err != nil {
		t.Fatal(err)
	}
	wrong := withAddress(c)
	wrong.KeyFile = other
	if app, err := OpenApp(t.Context(), wrong, slog.New(slog.DiscardHandler)); err == nil {
		if app.ledger.Intact() || app.registry.KeysKept() {
			t.Error("a wrong key became this box's")
		}
		if err := app.Close(); err != nil {
			t.Error(err)
		}
	}
	if now, err := os.ReadFile(c.path(boxKeyFile)); err != nil || string(now) != string(right) {
		t.Error("the key file was changed: ", err)
	}
	app, err := OpenApp(t.Context(), withAddress(c), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if !app.registry.KeysKept() {
		t.Error("the right key was not noted")
	}
	if err := app.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenApp(t.Context(), wrong, slog.New(slog.DiscardHandler)); !errors.Is(err, tenants.ErrKeyFile) || !strings.Contains(err.Error(), other) {
		t.Errorf("the wrong key once the right one was noted: %v", err)
	}
	if findings, err := (&rekey{config: &c, out: io.Discard}).run(t.Context()); err != nil || len(findings) > 0 {
		t.Error(findings, err)
	}
	soundBox(t, c, "after the rekey")
}

func withAddress(c Config) Config {
	c.Listen = "127.0.0.1:0"
	return c
}
