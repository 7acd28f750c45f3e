package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tenderbox/tenants"
)

// Each setting is taken from the first of command line, environment, file and default that has it.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tenderbox.toml")
	const content = `
upstream-timeout = "3s"
breaker-failures = 7
allow-host       = ["till.example", "bar.example"]
probe-path       = "/from-file"
base-domain      = "box.example"
upstream-url     = "https://file.example"
`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TENDERBOX_CONFIG", file)
	t.Setenv("TENDERBOX_PROBE_PATH", "/from-environment")
	t.Setenv("TENDERBOX_BREAKER_FAILURES", "8")
	t.Setenv("PAYMENT_API_BASE_URL", "https://alias.example")
	t.Setenv("PAYMENT_API_KEY", "sk_alias")

	c := parse(t, "serve", "--data", "/srv/box", "--breaker-failures", "9")
	want := Config{
		Data: "/srv/box", ConfigFile: file, Listen: "127.0.0.1:8080",
		AllowHost: []string{"till.example", "bar.example"}, BaseDomain: "box.example",
		UpstreamURL: "https://alias.example", UpstreamKey: "sk_alias", UpstreamVersion: "2022-11-15",
		UpstreamTimeout: 3 * time.Second, UpstreamKeyMemory: 20 * time.Hour,
		BreakerFailures: 9, BreakerWindow: time.Minute, BreakerOpen: 10 * time.Second,
		ProbeInterval: 2 * time.Second, ProbePath: "/from-environment",
		LogFormat: "text", LogLevel: "info",
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// The example that is installed must be readable by the program, also with every line of it in use.
func TestExampleSettings(t *testing.T) {
	example, err := os.ReadFile(filepath.Join("..", "..", "dist", "tenderbox.toml"))
	if err != nil {
		t.Fatal(err)
	}
	var used []string
	for _, line := range strings.Split(string(example), "\n") {
		if setting, ok := strings.CutPrefix(line, "# "); ok && strings.Contains(setting, " = ") {
			used = append(used, setting)
		}
	}
	if len(used) < 3 {
		t.Fatalf("found only %q in the example", used)
	}
	for _, content := range []string{string(example), strings.Join(used, "\n")} {
		file := filepath.Join(t.TempDir(), "tenderbox.toml")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		parse(t, "serve", "--config", file)
	}
}

func TestSecretFromFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		return "@" + file
	}
	for name, test := range map[string]struct{ value, want, fault string }{
		"plain":          {"sk_1", "sk_1", ""},
		"empty":          {"", "", ""},
		"file":           {write("a", "sk_2\n", 0o600), "sk_2", ""},
		"windows line":   {write("b", "sk_3\r\n", 0o640), "sk_3", ""},
		"two lines":      {write("c", "sk\nother\n", 0o600), "", "does not hold one secret"},
		"nothing":        {write("d", "\n", 0o600), "", "does not hold one secret"},
		"open to all":    {write("e", "sk", 0o644), "", "open to every user"},
		"absent":         {"@" + filepath.Join(dir, "absent"), "", "no such file"},
		"a folder":       {"@" + dir, "", "is not a file"},
		"too much of it": {write("f", strings.Repeat("k", secretBytesMax+1), 0o600), "", "does not hold one secret"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readSecret("upstream-key", test.value)
			if test.fault == "" && err != nil || got != test.want {
				t.Fatalf("got %q, %v; want %q", got, err, test.want)
			}
			if test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault)) {
				t.Fatalf("got %v, want an error with %q", err, test.fault)
			}
		})
	}
}

// However a Config gets into a log, the processor's key stays out of it.
func TestConfigKeepsItsSecret(t *testing.T) {
	c := Config{Data: "/srv/box", UpstreamKey: "sk_live_secret"}
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("config", "config", c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("config", "config", c)
	fmt.Fprintf(&out, "%v %+v %#v %s", c, c, c, tenants.Secret("sk_live_secret"))
	if strings.Contains(out.String(), "sk_live") {
		t.Errorf("the key got out: %s", out.String())
	}
}

// All problems are told at once, in one line.
func TestEveryProblemInOneLine(t *testing.T) {
	var out strings.Builder
	c := Config{Data: "/srv/box", Listen: "nowhere", UpstreamURL: "ftp://x", ProbePath: "charges", TLSKey: "k", AllowOrigin: []string{"till"}}
	report(&out, c.prepare(), exitFailed)
	line, rest, _ := strings.Cut(out.String(), "\n")
	if rest != "" {
		t.Errorf("more than a line: %q", out.String())
	}
	for _, setting := range []string{"listen", "upstream-url", "probe-path", "tls-cert", "allow-origin"} {
		if !strings.Contains(line, setting+": ") {
			t.Errorf("%s is not among the problems: %s", setting, line)
		}
	}
}

func TestReportIsOneSafeLine(t *testing.T) {
	var out strings.Builder
	report(&out, fmt.Errorf("first\nsecond\x1b[2J\tthird"), exitFailed)
	if got, want := out.String(), "tenderbox: first; second; [2J; third\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A switch is taken from file, environment and command line alike, and can be turned off again where it was turned on.
func TestSwitch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tenderbox.toml")
	for _, c := range []struct {
		content, environment string
		flags                []string
		want                 bool
	}{
		{"", "", nil, false},
		{"", "", []string{"--webhook-allow-lan"}, true},
		{"webhook-allow-lan = true", "", nil, true},
		{"webhook-allow-lan = false", "", nil, false},
		{"", "true", nil, true},
		{"webhook-allow-lan = true", "false", nil, false},
		{"webhook-allow-lan = true", "", []string{"--webhook-allow-lan=false"}, false},
	} {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			if c.environment != "" {
				t.Setenv("TENDERBOX_WEBHOOK_ALLOW_LAN", c.environment)
			}
			if got := parse(t, append([]string{"serve", "--config", file}, c.flags...)...).WebhookAllowLAN; got != c.want {
				t.Errorf("allowed: %v", got)
			}
		})
	}
}
