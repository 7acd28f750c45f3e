package blackbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrExited says that a box ended although nobody told it to.
var ErrExited = errors.New("the box ended by itself")

// readyTimeout bounds one question whether the box is ready.
const readyTimeout = 2 * time.Second

// ServeOptions say how to run a box.
type ServeOptions struct {
	Binary string
	Data   string
	Args   []string  // of `serve`, beside --data and --listen
	Env    []string  // beside our own environment
	Log    io.Writer // gets standard error and output; nil: nobody
}

// Process is one run of `tenderbox serve`.
type Process struct {
	options ServeOptions
	command *exec.Cmd
	exited  chan struct{}
	err     error // of the process's end; read after exited is closed
}

// Serve starts a box on a free port of loopback. The address file of an earlier run is removed first, so that it
// cannot be taken for this one's.
func Serve(o ServeOptions) (*Process, error) {
	if err := os.Remove(filepath.Join(o.Data, "address")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	p := &Process{options: o, exited: make(chan struct{})}
	p.command = exec.Command(o.Binary, append([]string{"serve", "--data", o.Data, "--listen", "127.0.0.1:0"}, o.Args...)...)
	p.command.Env = append(environment(), o.Env...)
	p.command.Stdout, p.command.Stderr = o.Log, o.Log
	p.command.SysProcAttr = leash()
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.exited)
		p.err = p.command.Wait()
	}()
	return p, nil
}

// PID is the process's number, by which /proc knows it.
func (p *Process) PID() int { return p.command.Process.Pid }

// Exited is closed when the process is gone.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Err is how the process ended; nil before that and after a clean exit.
func (p *Process) Err() error {
	select {
	case <-p.exited:
		return p.err
	default:
		return nil
	}
}

// Ready waits until the box has written its address and says that payments can be taken, and returns its URL.
func (p *Process) Ready(ctx context.Context) (string, error) {
	client := &http.Client{Timeout: readyTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	url := ""
	err := Poll(ctx, pollInterval, func() (bool, error) {
		select {
		case <-p.exited:
			return false, fmt.Errorf("%w before it was ready: %v", ErrExited, p.err)
		default:
		}
		if url == "" {
			url = p.address()
		}
		if url == "" {
			return false, nil
		}
		answer, err := client.Get(url + "/readyz")
		if err != nil {
			return false, nil
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		return "", fmt.Errorf("waiting for the box to be ready: %w", err)
	}
	return url, nil
}

func (p *Process) address() string {
	content, err := os.ReadFile(filepath.Join(p.options.Data, "address"))
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(content), "\n")
	return strings.TrimSpace(first)
}

// Secret reads a file of the data folder that holds one secret, such as default.key or operator.token.
func (p *Process) Secret(name string) (string, error) {
	content, err := os.ReadFile(filepath.Join(p.options.Data, name))
	return strings.TrimSpace(string(content)), err
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.command.Process.Signal(s) }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.command.Process.Kill() // gone already is as good
	<-p.exited
}

// Terminate asks for an orderly stop and does not wait.
func (p *Process) Terminate() { _ = p.command.Process.Signal(syscall.SIGTERM) }

// Stop asks for an orderly stop and waits for it. It is an error if the box does not exit with 0, or not before ctx
// ends (it is then killed).
func (p *Process) Stop(ctx context.Context) error {
	p.Terminate()
	select {
	case <-p.exited:
		if p.err != nil {
			return fmt.Errorf("SIGTERM: %w", p.err)
		}
		return nil
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("the box did not stop after SIGTERM: %w", context.Cause(ctx))
	}
}
