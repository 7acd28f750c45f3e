package blackbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tenderbox/upstream/simulator"
)

// TestMain lets the test's own binary play a box that does as little as Process needs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serveStub(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Println("stub", os.Getenv("TENDERBOX_LISTEN"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveStub(args []string) error {
	if slices.Contains(args, "--fall-over") {
		return errors.New("fell over")
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	bound, err := net.Listen("tcp", args[3]) // serve --data DIR --listen ADDR
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(bound, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
	if err := os.WriteFile(filepath.Join(args[1], "address"), []byte("http://"+bound.Addr().String()+"\n"), 0o600); err != nil {
		return err
	}
	<-terminated
	if slices.Contains(args, "--never-leave") {
		select {}
	}
	return nil
}

func stub(t *testing.T, args ...string) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Serve(ServeOptions{Binary: self, Data: t.TempDir(), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestProcessStartsAndStops(t *testing.T) {
	p := stub(t)
	url, err := p.Ready(t.Context())
	if err != nil || !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Fatalf("ready at %q, %v", url, err)
	}
	if err := p.Stop(t.Context()); err != nil || p.Err() != nil {
		t.Errorf("stop: %v, %v", err, p.Err())
	}
}

func TestProcessKilled(t *testing.T) {
	p := stub(t)
	if _, err := p.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	p.Kill() // twice is fine
	if p.Err() == nil {
		t.Error("a killed process has ended well")
	}
}

func TestReadyNoticesTheEnd(t *testing.T) {
	p := stub(t, "--fall-over")
	if _, err := p.Ready(t.Context()); !errors.Is(err, ErrExited) {
		t.Errorf("got %v, want %v", err, ErrExited)
	}
}

func TestStopKillsWhatDoesNotLeave(t *testing.T) {
	p := stub(t, "--never-leave")
	if _, err := p.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	<-p.Exited()
}

func TestRunHidesOurOwnSettings(t *testing.T) {
	t.Setenv("TENDERBOX_LISTEN", "0.0.0.0:1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Run(t.Context(), self, "version")
	if err != nil || strings.TrimSpace(out) != "stub" {
		t.Errorf("%q, %v; want the stub without the variable", out, err)
	}
}

func TestPollEndsWithItsContext(t *testing.T) {
	cause := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, cause)
	defer cancel()
	if err := Poll(ctx, time.Millisecond, func() (bool, error) { return false, nil }); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

func processor(t *testing.T) *Processor {
	t.Helper()
	p, err := StartProcessor(simulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// charge posts a payment of 100 usd and returns the answer's status, 0 if there was none.
func charge(t *testing.T, p *Processor, payment string) int {
	t.Helper()
	form := "amount=100&currency=usd&source=tok_visa&metadata[tenderbox_payment]=" + payment
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL()+"/charges", strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+ProcessorKey)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Idempotency-Key", payment)
	answer, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body) // its status is what counts
	return answer.StatusCode
}

func TestProcessorNotesWhatReachesIt(t *testing.T) {
	p := processor(t)
	charge(t, p, "pay_1")
	charge(t, p, "pay_1")
	if err := p.SetFaults(simulator.Faults{DropAfterEffect: 1}); err != nil {
		t.Fatal(err)
	}
	charge(t, p, "pay_2")
	if err := p.SetFaults(simulator.Faults{Error500: 1}); err != nil {
		t.Fatal(err)
	}
	charge(t, p, "pay_3")
	p.Close() // every note is then taken
	type note struct {
		payment  string
		status   int
		replayed bool
	}
	var got []note
	for _, post := range p.Posts() {
		got = append(got, note{post.Payment, post.Status, post.Replayed})
		if post.Key != post.Payment || post.Path != "/v1/charges" {
			t.Errorf("noted %+v", post)
		}
	}
	// A note is taken when its request has been dealt with, which for one that was cut is after its client knows.
	slices.SortStableFunc(got, func(a, b note) int { return strings.Compare(a.payment, b.payment) })
	if want := []note{{"pay_1", 200, false}, {"pay_1", 200, true}, {"pay_2", 0, false}, {"pay_3", 500, false}}; !slices.Equal(got, want) {
		t.Errorf("noted %v, want %v", got, want)
	}
	if effects := len(p.Ledger().Charges); effects != 2 {
		t.Errorf("%d effects, want 2", effects)
	}
}

func TestCutRefusesTheDial(t *testing.T) {
	p := processor(t)
	url := p.URL()
	p.Cut()
	p.Cut() // twice is once
	if _, err := net.DialTimeout("tcp", p.address, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want it refused", err)
	}
	if err := p.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.URL() != url || p.Cuts() != 1 {
		t.Errorf("back at %s after %d cuts; want %s after one", p.URL(), p.Cuts(), url)
	}
	if status := charge(t, p, "pay_1"); status != 200 {
		t.Errorf("charge after the return: %d", status)
	}
}
