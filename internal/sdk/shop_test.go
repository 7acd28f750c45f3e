package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

var binary = flag.String("box", "", "the tenderbox to test; `make sdk` builds and names it")

const (
	// patience bounds every wait for the box: far beyond what the slowest machine needs, so that it ends only what hangs.
	patience = 60 * time.Second

	// asking is how often a test looks whether something has come about.
	asking = 5 * time.Millisecond

	// answerMax bytes of an answer a test reads: the largest, a page of 100 charges, is a tenth of it.
	answerMax = 4 << 20
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *binary == "" {
		fmt.Fprintln(os.Stderr, "which box? `make sdk` builds one and passes it as -box")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// shop is a box with its simulated processor, and what a program that uses it was given: a URL and a key.
type shop struct {
	t         *testing.T
	processor *blackbox.Processor
	url       string
	key       string
	operator  string
}

// openShop starts a box with a processor, which end with the test.
func openShop(t *testing.T) *shop {
	t.Helper()
	processor, err := blackbox.StartProcessor(simulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(processor.Close)
	var log bytes.Buffer
	box, err := blackbox.Serve(blackbox.ServeOptions{Binary: *binary, Data: filepath.Join(t.TempDir(), "data"), Log: &log,
		Args: []string{"--upstream-url", processor.URL(), "--upstream-key", blackbox.ProcessorKey, "--probe-interval", "100ms", "--breaker-open", "200ms"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := box.Stop(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the box's log:\n%s", &log) // the process is gone: nobody writes any more
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := &shop{t: t, processor: processor}
	if s.url, err = box.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if s.key, err = box.Secret("default.key"); err != nil {
		t.Fatal(err)
	}
	if s.operator, err = box.Secret("operator.token"); err != nil {
		t.Fatal(err)
	}
	s.until("online")
	return s
}

// client is stripe-go as a user of Stripe has it, but for the address and the key (and that it does not log what is refused on purpose).
func (s *shop) client() *stripe.Client { return s.clientOf(s.key) }

// clientOf is one with another key.
func (s *shop) clientOf(key string) *stripe.Client {
	return stripe.NewClient(key, stripe.WithBackends(stripe.NewBackendsWithConfig(
		&stripe.BackendConfig{URL: stripe.String(s.url), LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull}})))
}

// ask sends a request of no SDK, and returns the status, the header and the decoded answer.
func (s *shop) ask(method, path, body string, headers ...string) (int, http.Header, map[string]any) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, answerMax))
	var v map[string]any
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		s.t.Fatalf("%s %s: %d %s: %v", method, path, a.StatusCode, b, err)
	}
	return a.StatusCode, a.Header, v
}

// link takes the line away by the operator's word (offline), or gives it back (auto).
func (s *shop) link(word string) {
	s.t.Helper()
	status, _, answer := s.ask(http.MethodPost, "/api/v1/link/"+word, "", "Authorization", "Bearer "+s.operator)
	if status != http.StatusOK {
		s.t.Fatalf("link %s: %d %v", word, status, answer)
	}
	s.until(map[string]string{"offline": "offline", "auto": "online"}[word])
}

// until waits for the link to stand so.
func (s *shop) until(state string) {
	s.t.Helper()
	s.wait(func() bool {
		status, _, answer := s.ask(http.MethodGet, "/api/v1/status", "", "Authorization", "Bearer "+s.operator)
		if status != http.StatusOK {
			s.t.Fatalf("status: %d %v", status, answer)
		}
		connectivity, _ := answer["connectivity"].(map[string]any)
		return connectivity["state"] == state
	})
}

// wait waits until ready says so.
func (s *shop) wait(ready func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if err := blackbox.Poll(ctx, asking, func() (bool, error) { return ready(), nil }); err != nil {
		s.t.Fatal(err)
	}
}

// effects checks how many charges took effect at the processor: each one once.
func (s *shop) effects(want int) {
	s.t.Helper()
	if paid := len(s.processor.Ledger().Charges); paid != want {
		s.t.Errorf("%d charges took effect, want %d", paid, want)
	}
}

// must is the answer of a call that has to succeed.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// refusal is the error as the SDK tells it, checked: its status, type, code and parameter.
func refusal(t *testing.T, err error, status int, typ stripe.ErrorType, code stripe.ErrorCode, param string) *stripe.Error {
	t.Helper()
	var e *stripe.Error
	if !errors.As(err, &e) {
		t.Fatalf("no error of the SDK: %v", err)
	}
	if e.HTTPStatusCode != status || e.Type != typ || e.Code != code || e.Param != param || e.Msg == "" || !strings.HasPrefix(e.RequestID, "req_") {
		t.Errorf("got %v\nwant %d %s %s %s", e, status, typ, code, param)
	}
	return e
}

func replayed(r *stripe.APIResponse) bool { return r.Header.Get("Idempotent-Replayed") == "true" }
