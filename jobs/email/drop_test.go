package email

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDrop: without a server a mail is a file of its tenant, readable by nobody else, and the same job makes the same file.
func TestDrop(t *testing.T) {
	dir := t.TempDir()
	m := mailer(t, nil, Options{Folder: dir})
	var result Sent
	for range 2 {
		err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("Ada <ada@example.com>")))
		if wished(err) != "done" {
			t.Fatal(err)
		}
	}
	if err := m.send(t.Context(), job("", "j1", SendJob, welcome("ada@example.com"))); wished(err) != "done" {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "out", "*", "*"))
	if err != nil || len(files) != 2 || filepath.Base(filepath.Dir(files[0])) != "_box" || filepath.Base(filepath.Dir(files[1])) != "shop" {
		t.Fatalf("files %q, %v; want one of the box and one of the shop", files, err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	raw, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	got := delivery{raw: raw}.message(t)
	if to := got.Header.Get("To"); to != `"Ada" <ada@example.com>` {
		t.Errorf("To: %s", to)
	}
	if parts := partsOf(t, got); !strings.Contains(parts[0], "Hello Ada") || !strings.Contains(parts[1], "<p>Hello Ada") {
		t.Errorf("parts: %q", parts)
	}
	if err := json.Unmarshal(resultOf(t, m, SendJob, job("shop", "j1", SendJob, welcome("ada@example.com"))), &result); err != nil {
		t.Fatal(err)
	}
	if result.To != "ada@example.com" || "<"+result.MessageID+">" == "" || filepath.Base(result.File) != result.File {
		t.Errorf("result %+v; the box's folders are not the tenant's business", result)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(files[1]), result.File)); err != nil {
		t.Errorf("the result names a file that is not there: %v", err)
	}
}

// TestDropIsBounded: the oldest mails go when there are too many, nothing else does.
func TestDropIsBounded(t *testing.T) {
	m := mailer(t, nil, Options{})
	dir := filepath.Join(m.drop.folder, "shop")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := func(n int) string { return filepath.Join(dir, fmt.Sprintf("20260101T%06dZ-x.eml", n)) }
	for n := range dropFilesMax {
		if err := os.WriteFile(name(n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keep := filepath.Join(dir, "notes")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if err := m.send(t.Context(), job("shop", fmt.Sprint("j", n), SendJob, welcome("ada@example.com"))); wished(err) != "done" {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.eml"))
	if err != nil || len(left) != dropFilesMax-dropFilesLess+1 {
		t.Errorf("%d mails are left, %v", len(left), err)
	}
	if _, err := os.Stat(name(dropFilesLess)); !os.IsNotExist(err) {
		t.Errorf("an old one is there: %v", err)
	}
	for _, file := range []string{keep, name(dropFilesLess + 1), name(dropFilesMax - 1)} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
}

// TestDropRefused: a folder that cannot be written makes mail wait; it is not a failure of the mail.
func TestDropRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "out"), nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	m := mailer(t, nil, Options{Folder: dir})
	j := job("shop", "j1", SendJob, welcome("ada@example.com"))
	if err := m.send(t.Context(), j); wished(err) != "snooze" {
		t.Errorf("%v, want a snooze", err)
	}
	if s := m.Status(); s.DownSince.IsZero() || !strings.Contains(s.LastError, "keeping the mail as a file") {
		t.Errorf("%+v", s)
	}
	if err := m.send(t.Context(), job("../shop", "j1", SendJob, welcome("ada@example.com"))); wished(err) != "snooze" {
		t.Errorf("a tenant that is none: %v", err)
	}
}
