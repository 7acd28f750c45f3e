package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
)

const (
	queuePath = "/api/v1/queues/" + queueName
	// leaseBatch jobs are leased by a worker at once, and completed at once.
	leaseBatch = 100
	// leaseMS and waitMS are what a worker asks for: long leases, and to be told at once when there is work.
	leaseMS, waitMS = 60_000, 1000
)

// box is Tenderbox as its users run it, spoken to over HTTP.
type box struct {
	server *server
	client *http.Client
	url    string
	key    string
}

// openBox runs a binary.
func openBox(binary string) func(context.Context, folders) (peer, error) {
	return func(ctx context.Context, f folders) (peer, error) {
		if binary == "" {
			return nil, fmt.Errorf("%w: -box names no binary", errMissing)
		}
		data := filepath.Join(f.data, "box")
		if err := os.Mkdir(data, 0o700); err != nil {
			return nil, err
		}
		b := &box{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: max(producers, workers)}}}
		command := exec.Command(binary, "serve", "--data", data, "--listen", "127.0.0.1:0", "--log-level", "error")
		var err error
		b.server, err = startServer(ctx, command, func(ctx context.Context) error {
			address, err := os.ReadFile(filepath.Join(data, "address"))
			if err != nil {
				return err
			}
			b.url, _, _ = strings.Cut(string(address), "\n")
			return b.do(ctx, http.MethodGet, "/readyz", nil, nil)
		})
		if err != nil {
			return nil, err
		}
		key, err := os.ReadFile(filepath.Join(data, "default.key"))
		b.key = strings.TrimSpace(string(key))
		if err == nil {
			err = b.do(ctx, http.MethodPut, queuePath, []byte("{}"), nil)
		}
		if err != nil {
			return nil, errors.Join(err, b.close())
		}
		return b, nil
	}
}

// do exchanges a request for an answer of 2xx, which is read into into.
func (b *box) do(ctx context.Context, method, path string, body []byte, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, b.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+b.key)
	request.Header.Set("Content-Type", "application/json")
	answer, err := b.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode/100 != 2:
		return fmt.Errorf("%s %s: %d %s", method, path, answer.StatusCode, content)
	case into == nil:
		return nil
	}
	return json.Unmarshal(content, into)
}

// job is a job as the API takes it.
var job = []byte(`{"name":"job","data":` + string(payload) + `}`)

func (b *box) enqueue(ctx context.Context) error {
	return b.do(ctx, http.MethodPost, queuePath+"/jobs", job, nil)
}

func (b *box) bulk(ctx context.Context, n int) error {
	body := append(append([]byte(`{"jobs":[`), bytes.Join(slicesOf(job, n), []byte(","))...), "]}"...)
	return b.do(ctx, http.MethodPost, queuePath+"/jobs", body, nil)
}

func slicesOf(b []byte, n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = b
	}
	return all
}

func (b *box) drain(ctx context.Context, done func()) error {
	lease := fmt.Appendf(nil, `{"max":%d,"lease_ms":%d,"wait_ms":%d}`, leaseBatch, leaseMS, waitMS)
	var all errgroup.Group
	for range workers {
		all.Go(func() error {
			for {
				err := b.work(ctx, lease, done)
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
			}
		})
	}
	return all.Wait()
}

// work leases a batch, handles it and completes it. What was handled is completed even if it was the last.
func (b *box) work(ctx context.Context, lease []byte, done func()) error {
	var leased struct {
		Jobs []struct {
			ID         string `json:"id"`
			LeaseToken string `json:"lease_token"`
		} `json:"jobs"`
	}
	if err := b.do(ctx, http.MethodPost, queuePath+"/lease", lease, &leased); err != nil {
		return err
	}
	if len(leased.Jobs) == 0 {
		return nil
	}
	for range leased.Jobs {
		done()
	}
	body, err := json.Marshal(leased)
	if err != nil {
		return err
	}
	var completed struct {
		Jobs []struct {
			State string `json:"state"`
		} `json:"jobs"`
	}
	if err := b.do(context.WithoutCancel(ctx), http.MethodPost, queuePath+"/complete", body, &completed); err != nil {
		return err
	}
	for _, j := range completed.Jobs {
		if j.State != "completed" {
			return errors.New("a job was not completed")
		}
	}
	return nil
}

func (b *box) close() error {
	b.client.CloseIdleConnections()
	return b.server.stop(syscall.SIGTERM)
}
