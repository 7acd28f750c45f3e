package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tenderbox/internal/blackbox"
)

// keeper keeps one box and starts it again each time that it was ended.
type keeper struct {
	options blackbox.ServeOptions
	disk    Disk // under the data folder; nil: the machine's, whose power stays
	history *history
	tally   *tallies
	token   string // the operator's
	client  *http.Client
	address atomic.Pointer[string]

	processMu sync.Mutex // guards what follows
	process   *blackbox.Process
	serving   time.Time // since when process has been ready; zero: it is not, or was told to end
}

func newKeeper(o blackbox.ServeOptions, disk Disk, h *history, t *tallies) *keeper {
	k := &keeper{options: o, disk: disk, history: h, tally: t, client: &http.Client{Timeout: 15 * time.Second}}
	nowhere := "http://127.0.0.1:1"
	k.address.Store(&nowhere)
	return k
}

// url is where the box was last seen; clients find out by themselves whether it is there.
func (k *keeper) url() string { return *k.address.Load() }

// launch starts the box and does not wait.
func (k *keeper) launch() (*blackbox.Process, error) {
	p, err := blackbox.Serve(k.options)
	if err != nil {
		return nil, err
	}
	k.processMu.Lock()
	defer k.processMu.Unlock()
	k.process = p
	return p, nil
}

// start starts the box and waits until it is ready.
func (k *keeper) start(ctx context.Context) error {
	began := time.Now()
	p, err := k.launch()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, graceMax, errors.New("it does not become ready"))
	defer cancel()
	url, err := p.Ready(ctx)
	if err != nil {
		return err
	}
	k.tally.started(time.Since(began))
	k.address.Store(&url)
	k.processMu.Lock()
	defer k.processMu.Unlock()
	k.serving = time.Now()
	return nil
}

// told notes that the box is about to be told to end: from now on it owes nobody an answer.
func (k *keeper) told() {
	k.processMu.Lock()
	defer k.processMu.Unlock()
	if !k.serving.IsZero() {
		k.history.life(Life{k.serving, time.Now()})
	}
	k.serving = time.Time{}
}

func (k *keeper) current() *blackbox.Process {
	k.processMu.Lock()
	defer k.processMu.Unlock()
	return k.process
}

func (k *keeper) kill() {
	k.told()
	if p := k.current(); p != nil {
		p.Kill()
	}
}

func (k *keeper) terminate() {
	k.told()
	k.current().Terminate()
}

func (k *keeper) stop(ctx context.Context) error {
	k.told()
	return k.current().Stop(ctx)
}

// open starts the box for the first time, registers the second tenant and returns the tenants' API keys.
func (k *keeper) open(ctx context.Context, random *rand.Rand) (keys map[string]string, err error) {
	if err := os.MkdirAll(k.options.Data, 0o700); err != nil {
		return nil, err
	}
	if err := k.bear(ctx, random); err != nil {
		return nil, err
	}
	if err := k.start(ctx); err != nil {
		return nil, err
	}
	if k.token, err = k.current().Secret("operator.token"); err != nil {
		return nil, err
	}
	first, err := k.current().Secret("default.key")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	out, err := blackbox.Run(ctx, k.options.Binary, "tenant", "add", secondTenant, "--data", k.options.Data)
	return map[string]string{"default": first, secondTenant: lastLine(out)}, err
}

// audit stops the box in good order, runs `tenderbox check`, and looks for secrets and bad signs in the box's log.
func (k *keeper) audit(ctx context.Context, logFile string, secrets ...string) error {
	ctx, cancel := context.WithTimeout(ctx, graceMax)
	defer cancel()
	if err := k.stop(ctx); err != nil {
		k.history.problem("stop", err.Error())
	}
	if err := k.unplug(); err != nil {
		return err
	}
	if _, err := blackbox.Run(ctx, k.options.Binary, "check", "--data", k.options.Data); err != nil {
		k.history.problem("check", err.Error())
	}
	log, err := os.ReadFile(logFile)
	if err != nil {
		return err
	}
	for _, secret := range append(secrets, k.token) {
		if bytes.Contains(log, []byte(secret)) {
			k.history.problem("INV-23 secret in the log", secret)
		}
	}
	for what, sign := range signs {
		if at := sign.FindIndex(log); at != nil {
			line := log[bytes.LastIndexByte(log[:at[0]], '\n')+1:]
			k.history.problem(what, string(line[:min(len(line), logLineMax)]))
		}
	}
	return nil
}

// get asks the box as its operator, for a tenant or for none.
func (k *keeper) get(ctx context.Context, tenant, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url()+path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+k.token)
	if tenant != "" {
		request.Header.Set("X-Tenant-ID", tenant)
	}
	answer, err := k.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %d %s", path, answer.StatusCode, content)
	}
	return json.Unmarshal(content, into)
}

// backlog is the number of payments that the box knows to be unsettled.
func (k *keeper) backlog(ctx context.Context) (int, error) {
	select {
	case <-k.current().Exited():
		return 0, fmt.Errorf("%w: %v", blackbox.ErrExited, k.current().Err())
	default:
	}
	var status struct{ Backlog struct{ Count int } }
	err := k.get(ctx, "", "/api/v1/status", &status)
	return status.Backlog.Count, err
}

// payments lists all of a tenant's payments, or those of a status.
func (k *keeper) payments(ctx context.Context, tenant, status string) ([]Payment, error) {
	var all []Payment
	for cursor := ""; ; {
		var page struct {
			Data       []Payment `json:"data"`
			HasMore    bool      `json:"has_more"`
			NextCursor *string   `json:"next_cursor"`
		}
		query := url.Values{"limit": {"100"}}
		if status != "" {
			query.Set("status", status)
		}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		if err := k.get(ctx, tenant, "/api/v1/payments?"+query.Encode(), &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if !page.HasMore {
			return all, nil
		}
		if cursor = text(page.NextCursor); cursor == "" {
			return nil, errors.New("the list of payments has more, but no cursor")
		}
	}
}

// report reads a tenant's end-of-day report over a time that holds the whole round.
func (k *keeper) report(ctx context.Context, tenant string) ([]ReportRow, error) {
	day := url.Values{"from": {time.Now().Add(-24 * time.Hour).UTC().Format(time.RFC3339)}, "to": {time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)}}
	var report struct {
		Rows []ReportRow `json:"rows"`
	}
	err := k.get(ctx, tenant, "/api/v1/reports/payments?"+day.Encode(), &report)
	return report.Rows, err
}
