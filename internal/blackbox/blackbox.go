// Package blackbox runs the real program from outside, for harnesses that must not know its insides.
//
// # Promise
//
// What is measured or tortured is the file that a user would install: Build compiles cmd/tenderbox as `make
// build` does, Start runs it as a process of its own, and everything else goes through its command
// line, its HTTP API and its signals. Nothing of ours besides the simulated processor is imported.
//
// # Main types
//
// Process is one running box. Processor is the simulated payment processor behind a line that can be cut; it lives in
// the harness's own process, so that it survives every kill of the box, and it notes each request that
// reaches it.
//
// # After a crash
//
// A harness that dies takes its boxes with it where the system offers that (Linux).
//
// # Caveats
//
// Every wait is a poll of outside state with a deadline of the caller's context; none depends on the machine's speed.
package blackbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// program is the import path of what is built.
const program = "tenderbox/cmd/tenderbox"

// pollInterval is how often outside state is asked while waiting: fine enough to time a start of 50 ms.
const pollInterval = 2 * time.Millisecond

// Build compiles the program into dir as `make build` does (static, stripped) and returns the binary's path. The
// working directory must be inside the module. More flags of `go build` may follow.
func Build(ctx context.Context, dir string, flags ...string) (string, error) {
	binary := filepath.Join(dir, "tenderbox")
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", binary}, flags...)
	build := exec.CommandContext(ctx, "go", append(args, program)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", program, err, out)
	}
	return binary, nil
}

// Run executes a subcommand to its end and returns its standard output. A failure's error holds both outputs.
func Run(ctx context.Context, binary string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, binary, args...)
	command.Env = environment()
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("tenderbox %s: %w\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// environment is ours without what would set flags of the box behind the harness's back.
func environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "TENDERBOX_") && !strings.HasPrefix(variable, "PAYMENT_API_") && !strings.HasPrefix(variable, "NOTIFY_SOCKET=") {
			env = append(env, variable)
		}
	}
	return env
}

// Poll calls ready every interval until it says true, fails, or ctx ends; then it returns nil, ready's error, or the
// context's cause.
func Poll(ctx context.Context, every time.Duration, ready func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
