package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tenderbox/tenants"
)

// Config is everything that `tenderbox serve` can be told. Its fields are flags, TENDERBOX_… variables
// and keys of tenderbox.toml at once; the tags below are the only place where names and defaults of the
// command line stand. A zero duration or number lets the package concerned choose its default, so that
// a Config written by hand (the demo, a test) names only what it cares about.
type Config struct {
	Data       string `type:"path" default:"./tenderbox-data" help:"Folder that holds everything the box keeps."`
	ConfigFile string `name:"config" type:"path" placeholder:"FILE" help:"Settings file (default DATA/tenderbox.toml, if it exists)."`
	KeyFile    string `type:"path" placeholder:"FILE" help:"Keys that seal card tokens and upstream keys at rest (default: the service manager's credential tenderbox.key, else DATA/box.key, made at first start)."`
	Shards     int    `placeholder:"4" help:"Number of SQLite files; chosen at first start, kept from then on."`

	Listen      string   `default:"127.0.0.1:8080" help:"Address of the HTTP API."`
	TLSCert     string   `name:"tls-cert" type:"path" placeholder:"FILE" help:"Certificate chain (PEM); with --tls-key the box speaks HTTPS."`
	TLSKey      string   `name:"tls-key" type:"path" placeholder:"FILE" help:"Private key (PEM) of --tls-cert."`
	AllowHost   []string `placeholder:"NAME" help:"Host names by which clients may call the box, besides loopback and IP addresses."`
	AllowOrigin []string `placeholder:"ORIGIN" help:"Browser origins that may call the API, such as https://till.example."`
	BaseDomain  string   `placeholder:"box.example" help:"Each tenant answers at NAME.box.example too."`
	NATSListen  string   `name:"nats-listen" placeholder:"ADDR" help:"Serves the event stream to NATS clients on this address (off unless set)."`

	EventsMaxAge   time.Duration `name:"events-max-age" placeholder:"720h" help:"How long the event stream keeps an event for NATS clients and a hub; no limit unless set. The journals, which the API reads, keep all."`
	EventsMaxBytes int64         `name:"events-max-bytes" placeholder:"1073741824" help:"Size of the event stream at which its oldest events go (default 1 GiB)."`

	UpstreamURL         string         `env:"TENDERBOX_UPSTREAM_URL,PAYMENT_API_BASE_URL" placeholder:"URL" help:"Payment processor; its /charges is what is called. Without it payments are kept and queued."`
	UpstreamKey         tenants.Secret `env:"TENDERBOX_UPSTREAM_KEY,PAYMENT_API_KEY" placeholder:"KEY" help:"Processor's secret key; @FILE reads it from a file."`
	UpstreamVersion     string         `default:"2022-11-15" help:"Stripe-Version that is sent."`
	UpstreamTimeout     time.Duration  `default:"5s" help:"Time limit of one call to the processor."`
	UpstreamKeyMemory   time.Duration  `default:"20h" help:"How long the processor is trusted to remember an idempotency key."`
	UpstreamRate        int            `placeholder:"N" help:"Payments a second that the processor is sent at most (default: what it allows is learned from its refusals)."`
	UpstreamConcurrency int            `placeholder:"N" help:"Payments on their way to an account at a time, at most (default: 32 to 64, the more the longer its answers take)."`
	BreakerFailures     int            `default:"5" help:"Failures within the window that open the breaker."`
	BreakerWindow       time.Duration  `default:"60s" help:"Window in which failures are counted."`
	BreakerOpen         time.Duration  `default:"10s" help:"How long an open breaker waits before it tries again."`
	ProbeInterval       time.Duration  `default:"2s" help:"Asks the processor for a sign of life when no answer came for this long."`
	ProbePath           string         `default:"/charges?limit=1" help:"What the probe asks for."`

	SMTPURL  tenants.Secret `name:"smtp-url" placeholder:"URL" help:"Mail server: smtp:// (encrypts if it can), smtp+starttls:// (always), smtps://; USER:PASSWORD@HOST. Without it mail is kept as files in DATA/mail. @FILE reads it from a file."`
	SMTPFrom string         `name:"smtp-from" placeholder:"ADDR" help:"Sender of e-mail, such as 'Shop <shop@example.com>'."`

	WebhookAllowLAN bool `name:"webhook-allow-lan" help:"Lets webhooks go to loopback and private addresses, and over plain http. Whoever holds a tenant's key can then make the box send requests into its LAN."`

	LogFormat string `enum:"text,json" default:"text" help:"Form of the log on standard error: text or json."`
	LogLevel  string `enum:"debug,info,warn,error" default:"info" help:"Least level that is logged: debug, info, warn or error."`
}

// upstreamNumberMax payments a second, or at a time, are more than a box of this kind can seal and record.
const upstreamNumberMax = 1024

// eventsMaxBytesMin holds some dozens of the largest events.
const eventsMaxBytesMin = 64 << 20

// The files of a data folder, by the names that DESIGN.md gives them.
func (c *Config) path(name string) string { return filepath.Join(c.Data, name) }

// prepare reads what @FILE secrets point to and then judges the settings, all problems in one error.
func (c *Config) prepare() error {
	for setting, secret := range map[string]*tenants.Secret{"upstream-key": &c.UpstreamKey, "smtp-url": &c.SMTPURL} {
		value, err := readSecret(setting, string(*secret))
		if err != nil {
			return err
		}
		*secret = tenants.Secret(value)
	}
	return c.validate()
}

func (c *Config) validate() error {
	var problems []error
	problem := func(setting, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", setting, fmt.Sprintf(format, args...)))
	}
	if c.Data == "" {
		problem("data", "names no folder")
	}
	if c.Shards < 0 {
		problem("shards", "%d is below zero", c.Shards)
	}
	for _, address := range []struct {
		setting, value string
		needed         bool
	}{{"listen", c.Listen, true}, {"nats-listen", c.NATSListen, false}} {
		if address.value == "" && !address.needed {
			continue
		}
		if _, _, err := net.SplitHostPort(address.value); err != nil {
			problem(address.setting, "%q is no address; write host:port, such as 127.0.0.1:8080", address.value)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		problem("tls-cert", "goes together with tls-key: give both or none")
	}
	if c.UpstreamURL != "" {
		if u, err := url.Parse(c.UpstreamURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			problem("upstream-url", "%q is no address of a processor; write https://host/path", c.UpstreamURL)
		} else if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			problem("upstream-url", "takes no user, query or fragment; the key goes into upstream-key")
		}
	}
	for _, origin := range c.AllowOrigin {
		if u, err := url.Parse(origin); err != nil || u.Host == "" || u.Path != "" || u.RawQuery != "" {
			problem("allow-origin", "%q is no origin; write scheme://host, such as https://till.example", origin)
		}
	}
	if !strings.HasPrefix(c.ProbePath, "/") && c.ProbePath != "" {
		problem("probe-path", "%q does not begin with /", c.ProbePath)
	}
	if c.EventsMaxBytes < 0 || c.EventsMaxBytes > 0 && c.EventsMaxBytes < eventsMaxBytesMin {
		problem("events-max-bytes", "%d is less than %d, in which the largest events have no room", c.EventsMaxBytes, eventsMaxBytesMin)
	}
	for _, number := range []struct {
		setting string
		value   int
	}{{"upstream-rate", c.UpstreamRate}, {"upstream-concurrency", c.UpstreamConcurrency}} {
		if number.value < 0 || number.value > upstreamNumberMax {
			problem(number.setting, "%d: use 0 (the default) to %d", number.value, upstreamNumberMax)
		}
	}
	if c.BreakerFailures < 0 {
		problem("breaker-failures", "%d is below zero", c.BreakerFailures)
	}
	for _, duration := range []struct {
		setting string
		value   time.Duration
	}{
		{"upstream-timeout", c.UpstreamTimeout}, {"upstream-key-memory", c.UpstreamKeyMemory},
		{"events-max-age", c.EventsMaxAge}, {"breaker-window", c.BreakerWindow}, {"breaker-open", c.BreakerOpen}, {"probe-interval", c.ProbeInterval},
	} {
		if duration.value < 0 {
			problem(duration.setting, "%v is below zero", duration.value)
		}
	}
	return errors.Join(problems...)
}

// logger builds the program's log. It goes to standard error: standard output is for answers.
func (c *Config) logger() *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // a Config written by hand may leave it empty
	}
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
