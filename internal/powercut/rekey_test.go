package powercut

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

const (
	// rekeys is how many boxes are sealed anew, each under rekeyCuts cuts of rekeyChangesMax changes at most, and rekeySealed payments in it.
	rekeys, rekeyCuts, rekeyChangesMax, rekeySealed = 4, 6, 250, 40
)

// TestPowerInRekey takes the power away while a stopped box is sealed under a new key and old ones are forgotten. Begun again the command ends, and
// the box has its payments and takes more: every one of them can be sent, whatever key it was sealed under.
func TestPowerInRekey(t *testing.T) {
	needsBox(t)
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1_000_000) + 1
	}
	short := 0
	for seed := first; seed < first+rekeys; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { short += rekey(t, seed) })
	}
	if short == 0 {
		t.Error("no cut came before the command had ended")
	}
	t.Logf("%d of %d cuts came before the command had ended", short, rekeys*rekeyCuts)
}

// rekey returns how many runs of the command were cut short.
func rekey(t *testing.T, seed uint64) (short int) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*birthMax)
	defer cancel()
	top := t.TempDir()
	dir := filepath.Join(top, "data")
	d, err := Mount(dir, Options{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	processor, err := blackbox.StartProcessor(simulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer processor.Close()
	processor.Cut() // what is taken stays sealed, until all is over
	var log bytes.Buffer
	serve := func() (*blackbox.Process, string) {
		p, err := blackbox.Serve(blackbox.ServeOptions{Binary: *boxFlag, Data: dir, Log: &log, Args: []string{"--shards", "2",
			"--upstream-url", processor.URL(), "--upstream-key", blackbox.ProcessorKey, "--probe-interval", "100ms", "--breaker-open", "200ms"}})
		if err != nil {
			t.Fatal(err)
		}
		url, err := p.Ready(ctx)
		if err != nil {
			t.Fatalf("%v\n%s", err, &log)
		}
		return p, url
	}
	box, url := serve()
	defer func() { box.Kill() }()
	key, err := box.Secret("default.key")
	if err != nil {
		t.Fatal(err)
	}
	for n := range rekeySealed {
		if status, answer := ask(ctx, t, key, http.MethodPost, url+"/api/v1/payments", fmt.Sprintf(`{"amount":%d,"currency":"usd","source":"tok_visa"}`, n+1)); status != http.StatusCreated {
			t.Fatalf("a payment was answered %d %s", status, answer)
		}
	}
	if err := box.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range rekeyCuts {
		args := []string{"rekey", "--data", dir}
		if random.IntN(2) == 0 {
			args = append(args, "--forget-old")
		}
		if i == 0 || random.IntN(3) == 0 {
			args = append(args, "--new")
		}
		var out bytes.Buffer
		command := exec.CommandContext(ctx, *boxFlag, args...)
		command.Stdout, command.Stderr = &out, &out
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- command.Wait() }()
		cut, done := context.WithTimeout(ctx, time.Second/2)
		var early error
		d.Cut(cut, 1+random.IntN(rekeyChangesMax), func() {
			select {
			case early = <-ended:
				ended <- nil
			default:
				short++
				_ = command.Process.Kill()
			}
		})
		done()
		<-ended
		if early != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), early, &out)
		}
		if err := d.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"rekey", "--data", dir, "--forget-old"}, {"check", "--data", dir}} {
		if _, err := blackbox.Run(ctx, *boxFlag, args...); err != nil {
			t.Error(err)
		}
	}
	if err := processor.Restore(ctx); err != nil {
		t.Fatal(err)
	}
	box, url = serve()
	err = blackbox.Poll(ctx, 50*time.Millisecond, func() (bool, error) { return len(processor.Ledger().Charges) == rekeySealed, nil })
	if err != nil {
		_, answer := ask(ctx, t, key, http.MethodGet, url+"/api/v1/status", "")
		t.Errorf("%d of %d payments were sent: %v\n%s\n%s", len(processor.Ledger().Charges), rekeySealed, err, answer, &log)
	}
	if err := box.Stop(ctx); err != nil {
		t.Error(err)
	}
	return short
}

// ask sends a request and returns the answer.
func ask(ctx context.Context, t *testing.T, key, method, url, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(content)
}
