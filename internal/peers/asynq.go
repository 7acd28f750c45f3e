package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/hibiken/asynq"
)

// redis is asynq on a Redis of its own.
type redis struct {
	server *server
	at     asynq.RedisClientOpt
	client *asynq.Client
	task   *asynq.Task
}

// openAsynq starts a Redis that appends each command to a file and syncs it as told.
func openAsynq(fsync string) func(context.Context, folders) (peer, error) {
	return func(ctx context.Context, f folders) (peer, error) {
		binary, err := exec.LookPath("redis-server")
		if err != nil {
			return nil, fmt.Errorf("%w: redis-server (Debian: redis-server)", errMissing)
		}
		dir := filepath.Join(f.data, "redis-"+fsync)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		socket := filepath.Join(f.sockets, "redis-"+fsync)
		r := &redis{
			at:   asynq.RedisClientOpt{Network: "unix", Addr: socket, PoolSize: producers},
			task: asynq.NewTask("job", payload),
		}
		command := exec.Command(binary, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", fsync)
		r.server, err = startServer(ctx, command, func(ctx context.Context) error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if err == nil {
				err = conn.Close()
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		r.client = asynq.NewClient(r.at)
		return r, nil
	}
}

func (r *redis) enqueue(ctx context.Context) error {
	_, err := r.client.EnqueueContext(ctx, r.task)
	return err
}

func (r *redis) bulk(context.Context, int) error { return errNoBulk }

func (r *redis) drain(ctx context.Context, done func()) error {
	s := asynq.NewServer(r.at, asynq.Config{Concurrency: workers, LogLevel: asynq.FatalLevel})
	if err := s.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { done(); return nil })); err != nil {
		return err
	}
	<-ctx.Done()
	s.Shutdown()
	return nil
}

func (r *redis) close() error {
	return errors.Join(r.client.Close(), r.server.stop(syscall.SIGTERM))
}
