package main

import (
	"bufio"
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
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
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
	s.box.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.socket)
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

func (s *stage) pay(count, clients string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	c, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	first := len(s.taken)
	s.taken = append(s.taken, make([]ledger.Payment, n)...)
	numbers := make(chan int)
	g, ctx := errgroup.WithContext(context.Background())
	var once sync.Once
	for range c {
		g.Go(func() error {
			for i := range numbers {
				p, err := b.pay(ctx, requestOf(i), keyOf(i), "")
				if err != nil {
					once.Do(func() {
						for range numbers { // let the one who hands out numbers end
						}
					})
					return fmt.Errorf("payment %d: %w", i, err)
				}
				s.taken[i] = p
			}
			return nil
		})
	}
	for i := first; i < first+n; i++ {
		numbers <- i
	}
	close(numbers)
	return g.Wait()
}

// payAndTerm pays with clients that never pause, and stops the box in the midst of it. Payments that got no
// answer may have happened or not; those that got one are remembered.
func (s *stage) payAndTerm(answers string) error {
	n, err := strconv.Atoi(answers)
	if err != nil {
		return err
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	const clients = 8
	told := make(chan ledger.Payment)
	var g errgroup.Group
	for c := range clients {
		g.Go(func() error {
			for i := 0; ; i++ {
				p, err := b.pay(context.Background(), requestOf(i), fmt.Sprintf("busy-%d-%d", c, i), "")
				if err != nil {
					return nil // the box has left
				}
				told <- p
			}
		})
	}
	go func() { _ = g.Wait(); close(told) }()
	var stopped chan error
	answered := 0
	for p := range told {
		s.answered = append(s.answered, p)
		if answered++; answered == n {
			stopped = make(chan error, 1)
			go func() { stopped <- s.term() }()
		}
	}
	if stopped == nil {
		return fmt.Errorf("only %d payments were answered", answered)
	}
	return <-stopped
}

func requestOf(i int) payRequest {
	return payRequest{Amount: 100 + int64(i)*7, Currency: "eur", Source: "tok_visa"}
}

func keyOf(i int) string { return fmt.Sprintf("script-%d", i) }

func (s *stage) kept() error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	for _, told := range s.answered {
		var now ledger.Payment
		if err := b.do(context.Background(), http.MethodGet, paymentsPath+"/"+string(told.ID), nil, &now); err != nil {
			return fmt.Errorf("payment %s: %w", told.ID, err)
		}
		if now.Amount != told.Amount || now.Currency != told.Currency {
			return fmt.Errorf("payment %s: told %+v, now %+v", told.ID, told, now)
		}
	}
	for i, told := range s.taken {
		var now ledger.Payment
		if err := b.do(context.Background(), http.MethodGet, paymentsPath+"/"+string(told.ID), nil, &now); err != nil {
			return fmt.Errorf("payment %d: %w", i, err)
		}
		again, err := b.pay(context.Background(), requestOf(i), keyOf(i), "")
		if err != nil {
			return fmt.Errorf("payment %d, repeated: %w", i, err)
		}
		if now.Amount != told.Amount || now.Currency != told.Currency || again.ID != told.ID {
			return fmt.Errorf("payment %d: told %+v, now %+v, its key means %s", i, told, now, again.ID)
		}
	}
	return nil
}

func (s *stage) settled(count string) error {
	if err := s.poll("the backlog to be settled", func(v *ledger.Overview) bool { return v.Backlog.Count == 0 }); err != nil {
		return err
	}
	if strconv.Itoa(len(s.taken)) != count {
		return fmt.Errorf("%d payments were taken, not %s", len(s.taken), count)
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	d := &demo{out: &strings.Builder{}, box: b, processor: s.processor, paid: s.taken}
	return d.count(context.Background())
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

// heardEvent is an event as it came.
type heardEvent struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Tenant string `json:"tenant"`
}

// hear reads so many events of the first tenant: those that are there by the list, the rest by the stream, from behind the last
// that was heard.
func (s *stage) hear(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.position == "" {
		page, err := s.events(ctx, b, "")
		if err != nil {
			return err
		}
		s.heard, s.position = page.Data, page.NextCursor
		if n -= len(page.Data); n < 0 {
			return fmt.Errorf("%d events more than expected", -n)
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/api/v1/events/stream", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+b.token)
	r.Header.Set("Last-Event-ID", s.position)
	a, err := (&http.Client{}).Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return fmt.Errorf("the event stream: %s", a.Status)
	}
	var e heardEvent
	lines := bufio.NewScanner(a.Body)
	for n > 0 && lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			s.position = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return err
			}
		case "":
			if e.ID != "" {
				s.heard = append(s.heard, e)
				n--
			}
			e = heardEvent{}
		}
	}
	if n > 0 {
		return fmt.Errorf("the stream ended %d events early: %w", n, lines.Err())
	}
	return nil
}

// eventPage is a page of the first tenant's events.
type eventPage struct {
	Data       []heardEvent `json:"data"`
	HasMore    bool         `json:"has_more"`
	NextCursor string       `json:"next_cursor"`
}

func (s *stage) events(ctx context.Context, b *box, after string) (page eventPage, err error) {
	return page, b.do(ctx, http.MethodGet, "/api/v1/events?limit=100&after="+after, nil, &page)
}

// heardAll compares what the stream told with the log: each event once, none missing.
func (s *stage) heardAll() error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	missing := map[string]string{}
	for after := ""; ; {
		page, err := s.events(context.Background(), b, after)
		if err != nil {
			return err
		}
		for _, e := range page.Data {
			missing[e.ID] = e.Type
		}
		if after = page.NextCursor; !page.HasMore {
			break
		}
	}
	logged := len(missing)
	for _, e := range s.heard {
		if missing[e.ID] != e.Type || e.Tenant != "default" {
			return fmt.Errorf("heard %s %s of %s, which the log does not have, or twice", e.Type, e.ID, e.Tenant)
		}
		delete(missing, e.ID)
	}
	if len(missing) > 0 || logged == 0 {
		return fmt.Errorf("%d of %d events were not heard", len(missing), logged)
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
