// Package dist holds what turns a binary into an installed service: the systemd unit, the install
// script and the script that packs a release. It has no Go code besides this test of the installer.
package dist

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// install runs install.sh into image as a packager would, with a file in place of the binary.
func install(t *testing.T, image, binary string, env ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tenderbox")
	if err := os.WriteFile(file, []byte(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "install.sh", file)
	cmd.Env = append(append(os.Environ(), "DESTDIR="+image), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("install.sh: %v\n%s", err, out)
	}
	return string(out)
}

// want checks a file's content and mode.
func want(t *testing.T, file, content string, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != content {
		t.Errorf("%s holds %q, want %q", file, got, content)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != mode {
		t.Errorf("%s has mode %v, want %v", file, info.Mode().Perm(), mode)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestInstallThenUpgradeKeepsSettingsAndData(t *testing.T) {
	image := t.TempDir()
	binary := filepath.Join(image, "usr/local/bin/tenderbox")
	unit := filepath.Join(image, "etc/systemd/system/tenderbox.service")
	settings := filepath.Join(image, "etc/tenderbox/tenderbox.toml")

	install(t, image, "first")
	want(t, binary, "first", 0o755)
	want(t, unit, read(t, "tenderbox.service"), 0o644)
	want(t, settings, read(t, "tenderbox.toml"), 0o640)

	const mine = "listen = \"0.0.0.0:80\"\n"
	if err := os.WriteFile(settings, []byte(mine), 0o640); err != nil {
		t.Fatal(err)
	}
	payment := filepath.Join(image, "var/lib/tenderbox/shards/0000.db")
	if err := os.MkdirAll(filepath.Dir(payment), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(payment, []byte("money"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A running box holds its old file open; an upgrade must not write into it.
	running, err := os.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { running.Close() })

	out := install(t, image, "second")
	want(t, binary, "second", 0o755)
	want(t, settings, mine, 0o640)
	want(t, payment, "money", 0o600)
	old := make([]byte, len("second"))
	if n, _ := running.Read(old); string(old[:n]) != "first" {
		t.Errorf("the upgrade wrote into the running binary: it now reads %q", old[:n])
	}
	if !strings.Contains(out, "kept") {
		t.Errorf("an upgrade says what it kept; got:\n%s", out)
	}
	for _, folder := range []string{"usr/local/bin", "etc/systemd/system", "etc/tenderbox"} {
		left, err := filepath.Glob(filepath.Join(image, folder, "*.new"))
		if err != nil || len(left) != 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
}

func TestInstallUnderAnotherPrefix(t *testing.T) {
	image := t.TempDir()
	install(t, image, "binary", "PREFIX=/usr")
	want(t, filepath.Join(image, "usr/bin/tenderbox"), "binary", 0o755)
	unit := read(t, filepath.Join(image, "etc/systemd/system/tenderbox.service"))
	if !strings.Contains(unit, "ExecStart=/usr/bin/tenderbox serve ") {
		t.Errorf("the unit does not start the installed binary:\n%s", unit)
	}
}

func TestInstallWithoutBinarySaysWhatToDo(t *testing.T) {
	image := t.TempDir()
	cmd := exec.Command("sh", "install.sh", filepath.Join(image, "absent"))
	cmd.Env = append(os.Environ(), "DESTDIR="+image)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("installed a binary that is not there:\n%s", out)
	}
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); len(lines) != 1 || !strings.Contains(lines[0], "unpack a release") {
		t.Errorf("want one line with a way out, got:\n%s", out)
	}
	if left, _ := os.ReadDir(image); len(left) != 0 {
		t.Errorf("a refused install wrote %v", left)
	}
}
