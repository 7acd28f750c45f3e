package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

const (
	// fetchCooldown is the shortest that River takes: by default it spares the database and waits 100 ms.
	fetchCooldown = time.Millisecond
	fetchPoll     = 50 * time.Millisecond
	// poolMax is a connection for each producer or worker, and some for River itself, below PostgreSQL's default of 100.
	poolMax = 80
	// riverStopMax bounds the end of a drain: River writes what was completed.
	riverStopMax = 30 * time.Second
	// postgresUser owns the server if we are root, as whom PostgreSQL does not run. Debian's package makes it.
	postgresUser = "postgres"
)

// riverArgs are a job of the payload's bytes.
type riverArgs struct {
	To      string `json:"to"`
	Subject string `json:"subject"`
	Text    string `json:"text"`
	N       int    `json:"n"`
}

// Kind names the job for River.
func (riverArgs) Kind() string { return "job" }

// riverPeer is River on a PostgreSQL of its own.
type riverPeer struct {
	server *server
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx] // that only inserts
	args   riverArgs
}

func openRiver(ctx context.Context, f folders) (_ peer, err error) {
	bin, err := postgresFolder()
	if err != nil {
		return nil, err
	}
	owner, err := postgresOwner()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(f.data, "postgres")
	sockets := filepath.Join(f.sockets, "postgres")
	for _, dir := range []string{data, sockets} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		if owner != nil {
			if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
				return nil, err
			}
		}
	}
	as := func(command *exec.Cmd) *exec.Cmd {
		command.Dir = data
		command.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
		return command
	}
	initdb := as(exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", postgresUser, "-A", "trust", "-E", "UTF8", "--no-locale"))
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	p := &riverPeer{}
	config, err := pgxpool.ParseConfig(fmt.Sprintf("host=%s user=%s dbname=postgres pool_max_conns=%d", sockets, postgresUser, poolMax))
	if err != nil {
		return nil, err
	}
	if p.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	command := as(exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", sockets, "-c", "listen_addresses="))
	if p.server, err = startServer(ctx, command, p.pool.Ping); err != nil {
		p.pool.Close()
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	driver := riverpgxv5.New(p.pool)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, err
	}
	if p.client, err = river.NewClient(driver, &river.Config{Logger: quiet()}); err != nil {
		return nil, err
	}
	p.args = riverArgs{To: "guest@example.com", Subject: "Your receipt", N: 12}
	p.args.Text = string(payload[len(`{"to":"guest@example.com","subject":"Your receipt","text":"`) : len(payload)-len(`","n":12}`)])
	return p, nil
}

// postgresFolder finds the newest server that is installed.
func postgresFolder() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) // what is no number is older than any
		return n
	}
	if len(found) == 0 {
		if path, err := exec.LookPath("postgres"); err == nil {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("%w: postgres (Debian: postgresql)", errMissing)
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}

// postgresOwner is as whom the server runs; nil: as we do.
func postgresOwner() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(postgresUser)
	if err != nil {
		return nil, fmt.Errorf("%w: user %s, as whom PostgreSQL runs if we are root", errMissing, postgresUser)
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(uerr, gerr)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (p *riverPeer) enqueue(ctx context.Context) error {
	_, err := p.client.Insert(ctx, p.args, nil)
	return err
}

func (p *riverPeer) bulk(ctx context.Context, n int) error {
	batch := make([]river.InsertManyParams, n)
	for i := range batch {
		batch[i].Args = p.args
	}
	_, err := p.client.InsertManyFast(ctx, batch)
	return err
}

func (p *riverPeer) drain(ctx context.Context, done func()) error {
	all := river.NewWorkers()
	river.AddWorker(all, river.WorkFunc(func(context.Context, *river.Job[riverArgs]) error { done(); return nil }))
	client, err := river.NewClient(riverpgxv5.New(p.pool), &river.Config{
		Logger: quiet(), Workers: all, FetchCooldown: fetchCooldown, FetchPollInterval: fetchPoll,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), riverStopMax)
	defer cancel()
	return client.Stop(stop)
}

func (p *riverPeer) close() error {
	p.pool.Close()
	return p.server.stop(syscall.SIGINT) // "fast": it does not wait for clients
}
