package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"tenderbox/internal/blackbox"
)

const (
	// quietEvery is how often a server is asked whether it has come to rest, and quietTicks how much CPU time it may
	// have used since: timers go on in an idle box.
	quietEvery = 250 * time.Millisecond
	quietTicks = 2
	// quietMax bounds the wait for a server to come to rest after a load.
	quietMax = 3 * time.Minute
	// metricsMax bounds what is read of /metrics.
	metricsMax = 4 << 20
)

// server is a process that takes payments, or seems to.
type server struct {
	name    string
	address string // host:port
	key     string
	token   string // the operator's; "" of the no-op server
	pid     int
	stop    func()
	process *blackbox.Process // of a box
}

// startNoop runs this program again as the no-op server.
func startNoop(ctx context.Context) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	command := exec.CommandContext(ctx, self, noopPart)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s := &server{name: "no-op", key: "tbk_of_no_meaning_but_as_long_as_a_real_one_0123456789", pid: command.Process.Pid}
	s.stop = func() { cancel(); _ = command.Wait() } // it was killed: what else could it say
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("no-op server: %w", err)
	}
	s.address = strings.TrimSpace(line)
	return s, nil
}

// startBox runs the box on a folder.
func startBox(ctx context.Context, binary, data string, args ...string) (*server, error) {
	return startProcess(ctx, blackbox.ServeOptions{Binary: binary, Data: data, Args: args})
}

func startProcess(ctx context.Context, o blackbox.ServeOptions) (*server, error) {
	o.Args, o.Log = append(o.Args, "--log-level", "error"), os.Stderr
	process, err := blackbox.Serve(o)
	if err != nil {
		return nil, err
	}
	s := &server{name: "box", pid: process.PID(), stop: process.Kill, process: process}
	ctx, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	url, err := process.Ready(ctx)
	if err == nil {
		s.address = strings.TrimPrefix(url, "http://")
		s.key, err = process.Secret("default.key")
	}
	if err == nil {
		s.token, err = process.Secret("operator.token")
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// rest waits until the server uses next to no CPU time any more: what a payment causes after its answer is then done.
func (s *server) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quietMax, fmt.Errorf("the %s server does not come to rest", s.name))
	defer cancel()
	var last time.Duration
	looks := 0
	return blackbox.Poll(ctx, quietEvery, func() (bool, error) {
		now, err := processCPU(s.pid)
		if err != nil {
			return false, err
		}
		used := now.total() - last
		last = now.total()
		looks++
		return looks > 1 && used <= quietTicks*clockTick, nil
	})
}

// metrics reads the box's counters, summed over their labels.
func (s *server) metrics(ctx context.Context) (map[string]float64, error) {
	content, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(content)
}

// parseMetrics reads Prometheus' text format as far as counters need it.
func parseMetrics(content string) (map[string]float64, error) {
	sums := map[string]float64{}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, labelled := strings.Cut(line, "{")
		if labelled {
			_, rest, _ = strings.Cut(rest, "} ")
		} else {
			name, rest, _ = strings.Cut(line, " ")
		}
		value, _, _ := strings.Cut(rest, " ") // a time may follow
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("metrics: %q", line)
		}
		sums[name] += v
	}
	return sums, nil
}

// get asks the box as its operator.
func (s *server) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address+path, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, metricsMax))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %d %s", path, answer.StatusCode, content)
	}
	return string(content), err
}
