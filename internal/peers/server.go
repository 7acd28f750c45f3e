package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	// readyMax and stopMax bound a server's start and its end.
	readyMax, stopMax = 30 * time.Second, 30 * time.Second
	readyPoll         = 20 * time.Millisecond
)

// server is a process that a peer needs.
type server struct {
	command *exec.Cmd
	said    *bytes.Buffer // read after exited is closed
	exited  chan struct{}
	err     error // of its end; read after exited is closed
	stopped sync.Once
}

// startServer starts a command and waits until ready says yes.
func startServer(ctx context.Context, command *exec.Cmd, ready func(context.Context) error) (*server, error) {
	s := &server{command: command, said: &bytes.Buffer{}, exited: make(chan struct{})}
	command.Stdout, command.Stderr = s.said, s.said
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid = true // an interrupt at the terminal is ours to pass on
	if err := command.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.exited)
		s.err = command.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return s, nil
		}
		select {
		case <-s.exited:
			return nil, fmt.Errorf("%s ended: %w\n%s", command.Path, s.err, s.said)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s does not become ready: %w", command.Path, err), s.stop(syscall.SIGTERM))
		case <-tick.C:
		}
	}
}

// stop ends the process by a signal, and by SIGKILL if that takes too long. Twice is fine.
func (s *server) stop(with syscall.Signal) error {
	var err error
	s.stopped.Do(func() {
		err = s.command.Process.Signal(with)
		select {
		case <-s.exited:
		case <-time.After(stopMax):
			err = errors.Join(fmt.Errorf("%s had to be killed", s.command.Path), s.command.Process.Kill())
			<-s.exited
		}
	})
	return err
}
