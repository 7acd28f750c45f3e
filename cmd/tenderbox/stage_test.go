package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"tenderbox/internal/blackbox"
	"tenderbox/ledger"
	"tenderbox/upstream/simulator"
)

// stage is what a script acts on: a data folder, the box that may run on it, a processor behind a line
// that can be cut, and what the clients were told.
type stage struct {
	data     string
	log      string           // the box's log, over all its lives
	taken    []ledger.Payment // payments of pay, by number; each was answered
	answered []ledger.Payment // answered payments of pay-and-term
	answer   any              // the last answer to ask
	heard    []heardEvent     // of the event stream, over all its connections
	position string           // behind the last of them

	processor *simulator.Simulator
	upstream  string // its URL
	mail      *mailServer
	receivers map[string]*receiver // of webhooks

	box    *exec.Cmd
	ended  chan error
	notify *net.UnixConn // where the box's readiness notification arrives
	socket string
}

func newStage(work string) (*stage, error) {
	s := &stage{data: filepath.Join(work, "data"), log: filepath.Join(work, "box.log")}
	s.mail = &mailServer{address: "127.0.0.1:0", news: make(chan struct{}, 1)}
	s.receivers = map[string]*receiver{}
	var err error
	s.processor = simulator.New(simulator.Options{Key: simulatedKey})
	if s.upstream, err = s.processor.Start("127.0.0.1:0"); err != nil {
		return nil, err
	}
	// The path of a socket must be short; a script's own folder may not be.
	folder, err := os.MkdirTemp("", "tbx")
	if err != nil {
		return nil, err
	}
	s.socket = filepath.Join(folder, "notify")
	s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	return s, err
}

func (s *stage) clear() {
	if s.box != nil {
		_ = s.kill()
	}
	_ = s.processor.Close()
	if s.mail.server != nil {
		_ = s.mail.down()
	}
	for _, r := range s.receivers {
		r.server.CloseClientConnections()
		r.server.Close()
	}
	_ = s.notify.Close()
	_ = os.RemoveAll(filepath.Dir(s.socket))
}

func (s *stage) start(ts *testscript.TestScript, flags []string) error {
	return s.startWith(ts, flags, nil)
}

// startOnTerminal starts the box with standard output on a pseudo-terminal. What the box prints there it
// prints before it is ready.
func (s *stage) startOnTerminal(ts *testscript.TestScript, file string, flags []string) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer slave.Close()
	if err := s.startWith(ts, flags, slave); err != nil {
		return err
	}
	shown := make([]byte, 4096) // what a terminal keeps for its reader at most
	length, err := unix.Poll([]unix.PollFd{{Fd: int32(master.Fd()), Events: unix.POLLIN}}, 0)
	if err != nil || length == 0 {
		return errors.Join(err, os.WriteFile(file, nil, 0o600))
	}
	length, err = master.Read(shown)
	if err != nil {
		return err
	}
	return os.WriteFile(file, shown[:length], 0o600)
}

func (s *stage) startWith(ts *testscript.TestScript, flags []string, stdout *os.File) error {
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	program, err := exec.LookPath("tenderbox")
	if err != nil {
		return err
	}
	args := append([]string{"serve", "--data", s.data, "--listen", "127.0.0.1:0",
		"--upstream-url", s.upstream, "--upstream-key", simulatedKey,
		"--probe-interval", "200ms", "--breaker-open", "300ms"}, flags...)
	s.box = exec.Command(program, args...)
	s.box.Dir = ts.Getenv("WORK")
	s.box.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.socket, credentialsVariable+"="+ts.Getenv(credentialsVariable))
	s.box.Stdout, s.box.Stderr = log, log
	if stdout != nil {
		s.box.Stdout = stdout
	}
	if err := s.box.Start(); err != nil {
		return err
	}
	s.ended = make(chan error, 1)
	go func(box *exec.Cmd, ended chan<- error) {
		err := box.Wait()
		_ = s.notify.SetReadDeadline(time.Now()) // a box that left will not say READY
		ended <- err                             // last: who receives it may start the next box
	}(s.box, s.ended)
	if err := s.notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	message := make([]byte, 1024)
	for {
		n, err := s.notify.Read(message)
		if err != nil {
			said, _ := os.ReadFile(s.log)
			return fmt.Errorf("the box did not become ready: %w\n%s", err, said)
		}
		if strings.Contains(string(message[:n]), "READY=1") {
			return nil
		}
	}
}

// term asks the box to stop, and fails unless it leaves in time, with status 0.
func (s *stage) term() error {
	if err := s.box.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-s.ended:
		s.box = nil
		if err != nil {
			return fmt.Errorf("after SIGTERM: %w", err)
		}
		return nil
	case <-time.After(stopMax + patience):
		return errors.New("the box does not stop")
	}
}

func (s *stage) kill() error {
	err := s.box.Process.Kill()
	<-s.ended
	s.box = nil
	return err
}

// as opens the box as one of its clients: with the key in a file of its folder.
func (s *stage) as(secretFile string) (*box, error) {
	b, err := (&boxFlags{Data: s.data}).open()
	if err != nil {
		return nil, err
	}
	secret, err := os.ReadFile(filepath.Join(s.data, secretFile))
	b.token = strings.TrimSpace(string(secret))
	if b.client.Transport == nil {
		b.client.Transport = &http.Transport{MaxIdleConnsPerHost: 64} // more than any script has clients
	}
	return b, err
}

// ask makes one request and shows what was answered.
// request makes a request, and returns its status and answer on one line.
func (s *stage) request(args []string) (string, error) {
	secret := defaultKeyFile
	header := http.Header{}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-operator":
			secret = operatorTokenFile
		case "-as":
			header.Set("X-Tenant-ID", args[1])
			args = args[1:]
		}
		args = args[1:]
	}
	b, err := s.as(secret)
	if err != nil {
		return "", err
	}
	var body io.Reader
	if len(args) > 2 {
		body = strings.NewReader(args[2])
		header.Set("Content-Type", "application/json")
	}
	r, err := http.NewRequest(args[0], b.url+args[1], body)
	if err != nil {
		return "", err
	}
	r.Header = header
	r.Header.Set("Authorization", "Bearer "+b.token)
	a, err := b.client.Do(r)
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	content, err := io.ReadAll(a.Body)
	if err != nil {
		return "", err
	}
	s.answer = nil
	_ = json.Unmarshal(content, &s.answer) // an answer without a body has no members to take
	return fmt.Sprintf("%d %s\n", a.StatusCode, content), nil
}

func (s *stage) ask(ts *testscript.TestScript, args []string) error {
	answer, err := s.request(args)
	if err == nil {
		_, err = io.WriteString(ts.Stdout(), answer)
	}
	return err
}

func (s *stage) await(ts *testscript.TestScript, pattern string, args []string) error {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	tick, overdue := time.NewTicker(demoPoll), time.NewTimer(patience)
	defer tick.Stop()
	defer overdue.Stop()
	for {
		answer, err := s.request(args)
		if err != nil {
			return err
		}
		if wanted.MatchString(answer) {
			_, err = io.WriteString(ts.Stdout(), answer)
			return err
		}
		select {
		case <-tick.C:
		case <-overdue.C:
			return fmt.Errorf("waited in vain for %s; the last answer was %s", pattern, answer)
		}
	}
}

// memberOf finds a member such as jobs.0.id.
func memberOf(answer any, path string) (string, error) {
	for name := range strings.SplitSeq(path, ".") {
		switch v := answer.(type) {
		case map[string]any:
			answer = v[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(v) {
				return "", fmt.Errorf("no %s in the answer", path)
			}
			answer = v[i]
		}
	}
	if answer == nil {
		return "", fmt.Errorf("no %s in the answer", path)
	}
	return fmt.Sprint(answer), nil
}

func (s *stage) leaseAndTerm(queue string) error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	var got struct {
		Jobs []json.RawMessage `json:"jobs"`
	}
	ended := make(chan error, 1)
	go func() {
		ended <- b.do(context.Background(), http.MethodPost, queuesPath+"/"+queue+"/lease", map[string]any{"wait_ms": 60_000}, &got)
	}()
	operator, err := s.as(operatorTokenFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for waits := false; !waits; {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, operator.url+"/metrics", nil)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+operator.token)
		a, err := operator.client.Do(r)
		if err != nil {
			return err
		}
		content, err := io.ReadAll(a.Body)
		if err := errors.Join(err, a.Body.Close()); err != nil {
			return err
		}
		waits = strings.Contains(string(content), "\ntenderbox_http_waiting 1\n")
	}
	// A request that is cut at the end of the drain is answered otherwise, or not at all.
	if err := errors.Join(s.term(), <-ended); err != nil {
		return err
	}
	if len(got.Jobs) != 0 || got.Jobs == nil {
		return fmt.Errorf("answered %s", got.Jobs)
	}
	return nil
}

func (s *stage) until(state string) error {
	return s.poll("connectivity "+state, func(v *ledger.Overview) bool { return v.Connectivity.State == state })
}

func (s *stage) poll(what string, seen func(*ledger.Overview) bool) error {
	b, err := s.as(operatorTokenFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("waited in vain for %s", what))
	defer cancel()
	return (&demo{box: b}).until(ctx, what, seen)
}

func (s *stage) alarm(code string) error {
	var raised []string
	err := s.poll("alarm "+code, func(v *ledger.Overview) bool {
		for _, a := range v.Alarms {
			raised = append(raised, a.Code)
			if a.Code == code {
				return true
			}
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("%w; raised were %v", err, raised)
	}
	return nil
}

// promote waits until a job of the first tenant's queue is put off, and makes it due.
func (s *stage) promote(queue string) error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	jobsOf := queuesPath + "/" + queue + "/jobs"
	return blackbox.Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		var page struct {
			Data []struct {
				ID string `json:"id"`
			} `json:"data"`
		}
		if err := b.do(ctx, http.MethodGet, jobsOf+"?state=delayed", nil, &page); err != nil || len(page.Data) == 0 {
			return false, err
		}
		for _, j := range page.Data {
			if err := b.do(ctx, http.MethodPost, jobsOf+"/"+url.PathEscape(j.ID)+"/promote", nil, nil); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
