package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"tenderbox/ledger"
	"tenderbox/upstream/simulator"
)

// runningApp is a box in this process, on a temporary folder.
type runningApp struct {
	*App
	done <-chan struct{} // closed when Run has returned
	stop func() error    // ends Run and gives its error; once
}

// startApp runs a box with a simulated processor. The test ends it, or the cleanup does.
func startApp(t *testing.T, config Config) *runningApp {
	t.Helper()
	return startLoggedApp(t, config, slog.DiscardHandler)
}

// startLoggedApp is startApp with a log.
func startLoggedApp(t *testing.T, config Config, log slog.Handler) *runningApp {
	t.Helper()
	processor := simulator.New(simulator.Options{Key: simulatedKey})
	url, err := processor.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config.Data, config.Listen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0"
	config.UpstreamURL, config.UpstreamKey, config.ProbeInterval = url, simulatedKey, 100*time.Millisecond
	app, err := OpenApp(t.Context(), config, slog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = app.Run(ctx)
	}()
	stopped := false
	r := &runningApp{App: app, done: done, stop: func() error {
		stopped = true
		cancel()
		<-done
		return errors.Join(err, processor.Close())
	}}
	t.Cleanup(func() {
		if !stopped {
			if err := r.stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// client speaks to the box as the tenant of its first key.
func (r *runningApp) client() *box {
	return &box{url: r.URL(), token: r.FirstKey, client: &http.Client{Timeout: boxTimeout, Transport: &http.Transport{DisableKeepAlives: true}}}
}

func TestStopLeavesNothingRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r := startApp(t, Config{})
	if _, err := r.client().pay(t.Context(), payRequest{Amount: 100, Currency: "eur", Source: "tok_visa"}, "k", ""); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("the second close: %v", err)
	}
	nothingRuns(t, before)
	if _, err := os.Stat(filepath.Join(r.config.Data, addressFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a stopped box still gives its address: %v", err)
	}
}

// leakLooks at about half a second each: the event log's server ends some of its goroutines in its own time, and a loaded machine takes its own.
const leakLooks = 60

// nothingRuns fails unless all goroutines end that before does not ignore.
func nothingRuns(t *testing.T, before goleak.Option) {
	t.Helper()
	var err error
	for range leakLooks {
		if err = goleak.Find(before); err == nil {
			return
		}
	}
	t.Error(err)
}

// A part that fails stops the box, and the reason is what Run returns.
func TestFailedPartStopsTheBox(t *testing.T) {
	r := startApp(t, Config{})
	if err := r.listener.net.Close(); err != nil { // as the kernel may do to it
		t.Fatal(err)
	}
	<-r.done
	err := r.stop()
	if err == nil || !strings.HasPrefix(err.Error(), "http: ") {
		t.Errorf("got %v, want the failure of http", err)
	}
}

// What is opened before something fails is closed again, and the folder can be opened anew.
func TestFailedOpenReleasesTheFolder(t *testing.T) {
	config := Config{Data: filepath.Join(t.TempDir(), "data"), Listen: "203.0.113.1:1"} // documentation's address: never ours
	before := goleak.IgnoreCurrent()
	if _, err := OpenApp(t.Context(), config, slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("listens on an address that is not this machine's")
	}
	nothingRuns(t, before)
	config.Listen = "127.0.0.1:0"
	app, err := OpenApp(t.Context(), config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Close(); err != nil {
		t.Fatal(err)
	}
}

// A tenant follows its events over NATS with its own key, and nobody else does.
func TestEventsReachTheirTenant(t *testing.T) {
	r := startApp(t, Config{NATSListen: "127.0.0.1:0"})
	<-r.events.tried
	b, _, _ := r.events.current()
	if b == nil {
		t.Fatal("the event stream did not open")
	}
	address := "nats://" + b.Addr()
	for user, password := range map[string]string{"default": "tbk_wrong", "other": r.FirstKey, "": r.FirstKey} {
		if c, err := nats.Connect(address, nats.UserInfo(user, password)); err == nil {
			c.Close()
			t.Errorf("user %q was let in", user)
		}
	}
	c, err := nats.Connect(address, nats.UserInfo("default", r.FirstKey))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	events, err := c.SubscribeSync("evt.default.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	p, err := r.client().pay(t.Context(), payRequest{Amount: 100, Currency: "eur", Source: "tok_visa"}, "k", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []ledger.EventType{ledger.PaymentCreated, ledger.PaymentSucceeded} {
		m, err := events.NextMsg(patience)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		for _, part := range []string{`"type":"` + string(want) + `"`, `"subject":"` + string(p.ID) + `"`, `"source":"/tenderbox/` + r.ledger.BoxID() + `"`} {
			if !strings.Contains(string(m.Data), part) {
				t.Errorf("the event lacks %s: %s", part, m.Data)
			}
		}
	}
}

// A job that fails for good is told to its tenant as an event, and the telling is not told.
func TestFailedJobBecomesAnEvent(t *testing.T) {
	r := startApp(t, Config{NATSListen: "127.0.0.1:0"})
	<-r.events.tried
	b, _, _ := r.events.current()
	if b == nil {
		t.Fatal("the event stream did not open")
	}
	c, err := nats.Connect("nats://"+b.Addr(), nats.UserInfo("default", r.FirstKey))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	events, err := c.SubscribeSync("evt.default.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	var added struct {
		ID string `json:"id"`
	}
	var leased struct {
		Jobs []struct {
			LeaseToken string `json:"lease_token"`
		} `json:"jobs"`
	}
	ask := func(path string, in, out any) {
		t.Helper()
		if err := r.client().do(t.Context(), http.MethodPost, queuesPath+"/email/"+path, in, out); err != nil {
			t.Fatal(err)
		}
	}
	ask("jobs", map[string]any{"name": "print-label", "opts": map[string]any{"attempts": 1}}, &added)
	ask("lease", map[string]any{}, &leased)
	ask("jobs/"+added.ID+"/fail", map[string]any{"lease_token": leased.Jobs[0].LeaseToken, "error": "no paper"}, nil)
	m, err := events.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"type":"job.failed"`, `"subject":"` + added.ID + `"`,
		`"data":{"queue":"email","job_id":"` + added.ID + `","name":"print-label","attempts":1,"error":"no paper"}`} {
		if !strings.Contains(string(m.Data), part) {
			t.Errorf("the event lacks %s: %s", part, m.Data)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}
