package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

// TestUnit holds the systemd unit to the program: it must start it as it wants to be started, wait for its
// readiness, and give it the time that a stop may take.
func TestUnit(t *testing.T) {
	f, err := os.Open(filepath.Join("..", "..", "dist", "tenderbox.service"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	if err != nil {
		t.Fatal(err)
	}
	service := map[string]string{}
	for _, o := range options {
		if o.Section == "Service" {
			service[o.Name] += o.Value
		}
	}

	for name, value := range map[string]string{
		"Type": "notify", "User": "tenderbox", "StateDirectory": "tenderbox", "Restart": "always", "ProtectSystem": "strict",
		"NoNewPrivileges": "yes", "ProtectHome": "yes", "PrivateTmp": "yes", "CapabilityBoundingSet": "", "UMask": "0077",
	} {
		if got, ok := service[name]; !ok || got != value {
			t.Errorf("%s=%s, want %s", name, got, value)
		}
	}
	if wait, err := time.ParseDuration(service["TimeoutStopSec"] + "s"); err != nil || wait <= stopMax {
		t.Errorf("TimeoutStopSec=%s must be above the box's own limit, %v", service["TimeoutStopSec"], stopMax)
	}
	if requestsDrainMax+requestsAbortMax+sendsDrainMax >= stopMax {
		t.Errorf("requests (%v + %v) and sends (%v) leave no time to close files within %v", requestsDrainMax, requestsAbortMax, sendsDrainMax, stopMax)
	}

	words := strings.Fields(service["ExecStart"])
	if len(words) == 0 || filepath.Base(words[0]) != "tenderbox" {
		t.Fatalf("ExecStart=%s does not start the program", service["ExecStart"])
	}
	got := parse(t, append(words[1:], "--config="+emptySettings(t))...)
	if got.Data != "/var/lib/tenderbox" {
		t.Errorf("the unit's data folder is %s, not its StateDirectory", got.Data)
	}
}

// emptySettings is a settings file that sets nothing.
func emptySettings(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tenderbox.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// parse gives the Config that a command line comes to.
func parse(t *testing.T, args ...string) Config {
	t.Helper()
	var c commands
	parser, err := newParser(&c, io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatalf("tenderbox %s: %v", strings.Join(args, " "), err)
	}
	return c.Serve.Config
}
