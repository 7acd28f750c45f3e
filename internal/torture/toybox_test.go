package torture

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A toybox is the least program that a round takes for a box: payments in an append-only file, settled by a few
// workers. It is right about money unless it is told to have a bug; what the judge finds then was left behind by a
// program, under kills and faults, and not written by hand.
type toybox struct {
	bug      string
	upstream string
	key      string
	queue    *toyqueue

	mu       sync.Mutex // guards what follows
	file     *os.File
	payments map[string]*toyPayment // by id
	index    map[string]string      // tenant/idempotency key → id
	order    []string
}

type toyPayment struct {
	Payment
	Tenant string
	Key    string
	Amount int64
	Token  string
	Method bool
}

// The toybox's bugs. Its binary's name, after toyPrefix, chooses one.
const (
	toyPrefix = "toybox-"

	bugNone     = "sound"
	bugLate     = "late"     // answers before it writes
	bugFreshKey = "freshkey" // a new upstream key for each attempt
	bugAmnesia  = "amnesia"  // forgets idempotency keys in a crash
	bugLenient  = "lenient"  // takes every 200 for a success
	bugForgets  = "forgets"  // does not go on with what was unsettled when it was killed
)

// TestMain lets the test's own binary play the toybox.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve":
			serveToybox(os.Args[2:])
		case "tenant":
			fmt.Println("key-of-" + os.Args[3])
			os.Exit(0)
		case "check":
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func serveToybox(args []string) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	data := flags.String("data", "", "")
	listen := flags.String("listen", "", "")
	b := &toybox{bug: strings.TrimPrefix(filepath.Base(os.Args[0]), toyPrefix), payments: map[string]*toyPayment{}, index: map[string]string{}}
	flags.StringVar(&b.upstream, "upstream-url", "", "")
	flags.StringVar(&b.key, "upstream-key", "", "")
	for _, name := range []string{"upstream-timeout", "probe-interval", "breaker-failures", "breaker-window", "breaker-open", "shards"} {
		flags.String(name, "", "")
	}
	_ = flags.Parse(args)
	must(b.open(filepath.Join(*data, "payments.jsonl")))
	b.queue = openToyqueue(filepath.Join(*data, "jobs.jsonl"), b.bug)
	bound, err := net.Listen("tcp", *listen)
	must(err)
	must(os.WriteFile(filepath.Join(*data, "default.key"), []byte("key-of-default"), 0o600))
	must(os.WriteFile(filepath.Join(*data, "operator.token"), []byte("key-of-operator"), 0o600))
	must(os.WriteFile(filepath.Join(*data, "address"), []byte("http://"+bound.Addr().String()+"\n"), 0o600))
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	go func() { <-terminated; os.Exit(0) }()
	for i := range 4 {
		go b.settle(i)
	}
	must(http.Serve(bound, b))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "toybox:", err)
		os.Exit(1)
	}
}

// open reads the file, of which the last line may be half, and goes on writing behind the last whole one.
func (b *toybox) open(name string) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	b.file = file
	in, whole := bufio.NewReader(file), int64(0)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		var p toyPayment
		if err := json.Unmarshal(line, &p); err != nil {
			return err
		}
		whole += int64(len(line))
		if b.payments[p.ID] == nil {
			b.order = append(b.order, p.ID)
			if b.bug != bugAmnesia {
				b.index[p.Tenant+"/"+p.Key] = p.ID
			}
		}
		if b.bug == bugForgets && !p.final() {
			p.Sync.State = "lost"
		}
		b.payments[p.ID] = &p
	}
	if err := file.Truncate(whole); err != nil {
		return err
	}
	_, err = file.Seek(whole, io.SeekStart)
	return err
}

// write appends a payment as it is now. The caller holds mu.
func (b *toybox) write(p *toyPayment) {
	line, err := json.Marshal(p)
	must(err)
	_, err = b.file.Write(append(line, '\n'))
	must(err)
}

func (b *toybox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tenant := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer key-of-")
	if tenant == "operator" {
		tenant = r.Header.Get("X-Tenant-ID")
	}
	if strings.HasPrefix(r.URL.Path, "/api/v1/queues/") {
		b.queue.serve(w, r, tenant)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id, one := strings.CutPrefix(r.URL.Path, "/api/v1/payments/")
	switch {
	case r.URL.Path == "/readyz":
	case r.URL.Path == "/api/v1/status":
		open := 0
		for _, p := range b.payments {
			if !p.final() {
				open++
			}
		}
		say(w, 200, map[string]any{"backlog": map[string]int{"count": open}})
	case r.URL.Path == "/api/v1/reports/payments":
		say(w, 200, map[string]any{"rows": b.report(tenant)})
	case one && b.payments[id] != nil && b.payments[id].Tenant == tenant:
		say(w, 200, b.payments[id].Payment)
	case one:
		say(w, 404, nil)
	case r.Method == http.MethodGet:
		b.list(w, r, tenant)
	default:
		b.take(w, r, tenant)
	}
}

func say(w http.ResponseWriter, status int, v any) {
	content, err := json.Marshal(v)
	must(err)
	w.WriteHeader(status)
	_, _ = w.Write(content)
}

func (b *toybox) report(tenant string) []ReportRow {
	rows := map[[2]string]ReportRow{}
	for _, p := range b.payments {
		if p.Tenant == tenant {
			at := [2]string{p.Currency, p.Status}
			rows[at] = ReportRow{p.Currency, p.Status, rows[at].Count + 1, rows[at].Amount + p.Payment.Amount, 0}
		}
	}
	var all []ReportRow
	for _, row := range rows {
		all = append(all, row)
	}
	return all
}

func (b *toybox) list(w http.ResponseWriter, r *http.Request, tenant string) {
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	to := min(from+100, len(b.order))
	page := []Payment{}
	for _, id := range b.order[from:to] {
		if b.payments[id].Tenant == tenant {
			page = append(page, b.payments[id].Payment)
		}
	}
	say(w, 200, map[string]any{"data": page, "has_more": to < len(b.order), "next_cursor": strconv.Itoa(to)})
}

func (b *toybox) take(w http.ResponseWriter, r *http.Request, tenant string) {
	var in struct {
		Amount        int64
		Currency      string
		Source        string
		PaymentMethod string  `json:"payment_method"`
		UserID        *string `json:"user_id"`
		Metadata      map[string]string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Amount < 1 {
		say(w, 422, nil)
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if p := b.payments[b.index[tenant+"/"+key]]; p != nil {
		if p.Amount != in.Amount {
			say(w, 422, nil)
			return
		}
		w.Header().Set("Idempotent-Replayed", "true")
		say(w, 201, p.Payment)
		return
	}
	p := &toyPayment{Tenant: tenant, Key: key, Amount: in.Amount, Token: in.Source + in.PaymentMethod, Method: in.PaymentMethod != ""}
	p.Payment = Payment{ID: fmt.Sprintf("pay_%d_%s", time.Now().UnixNano(), tenant), Amount: in.Amount, Currency: in.Currency, Status: "pending", UserID: in.UserID, Metadata: in.Metadata}
	p.Sync.State = "queued"
	b.payments[p.ID], b.index[tenant+"/"+key], b.order = p, p.ID, append(b.order, p.ID)
	if b.bug == bugLate {
		time.AfterFunc(100*time.Millisecond, func() { b.mu.Lock(); defer b.mu.Unlock(); b.write(p) })
	} else {
		b.write(p)
	}
	say(w, 201, p.Payment)
}

// settle is one of a few workers; each looks at its share of the payments.
func (b *toybox) settle(worker int) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{}}
	for range time.Tick(20 * time.Millisecond) {
		b.mu.Lock()
		var due []*toyPayment
		for i, id := range b.order {
			if p := b.payments[id]; i%4 == worker && !p.final() && p.Sync.State != "lost" {
				due = append(due, p)
			}
		}
		b.mu.Unlock()
		for _, p := range due {
			b.send(client, p)
		}
	}
}

func (b *toybox) send(client *http.Client, p *toyPayment) {
	b.mu.Lock()
	p.Sync.State = "sending"
	p.Sync.Attempts++
	b.write(p)
	key, path, form := p.ID, "/charges", url.Values{"amount": {fmt.Sprint(p.Amount)}, "currency": {p.Currency}, "metadata[tenderbox_payment]": {p.ID}}
	if p.Method {
		path = "/payment_intents"
		form.Set("payment_method", p.Token)
		form.Set("confirm", "true")
	} else {
		form.Set("source", p.Token)
	}
	if b.bug == bugFreshKey {
		key = fmt.Sprintf("%s:%d", p.ID, p.Sync.Attempts)
	}
	b.mu.Unlock()
	request, err := http.NewRequest(http.MethodPost, b.upstream+path, strings.NewReader(form.Encode()))
	must(err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", "Bearer "+b.key)
	request.Header.Set("Idempotency-Key", key)
	answer, err := client.Do(request)
	if err != nil {
		return
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	var object struct {
		ID, Currency, Status string
		Amount               int64
	}
	sound := err == nil && json.Unmarshal(content, &object) == nil && object.ID != "" && object.Amount == p.Amount && object.Currency == p.Currency
	var status string
	switch {
	case answer.StatusCode == 200 && (sound || b.bug == bugLenient):
		status = "succeeded"
	case answer.StatusCode == 402 && bytes.Contains(content, []byte("card_error")):
		// The answer to a request before may have been lost, and its key forgotten; net/http's client too repeats what has a key.
		status = "failed"
		id, known := b.find(client, path, p.ID)
		if !known {
			return
		}
		if id != "" {
			status, object.ID = "succeeded", id
		}
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p.Status, p.Sync.State = status, "settled"
	if status == "succeeded" {
		p.UpstreamID = &object.ID
	}
	b.write(p)
}

// find looks for what has succeeded for a payment in the processor's list; known is false if that could not be read whole.
func (b *toybox) find(client *http.Client, path, payment string) (id string, known bool) {
	for after := ""; ; {
		request, err := http.NewRequest(http.MethodGet, b.upstream+path+"?limit=100"+after, nil)
		must(err)
		request.Header.Set("Authorization", "Bearer "+b.key)
		answer, err := client.Do(request)
		if err != nil {
			return "", false
		}
		var list struct {
			Object  string
			HasMore bool `json:"has_more"`
			Data    []struct {
				ID, Status string
				Metadata   map[string]string
			}
		}
		err = json.NewDecoder(answer.Body).Decode(&list)
		if answer.Body.Close(); err != nil || answer.StatusCode != http.StatusOK || list.Object != "list" {
			return "", false
		}
		for _, o := range list.Data {
			if after = "&starting_after=" + o.ID; o.Status == "succeeded" && o.Metadata["tenderbox_payment"] == payment {
				return o.ID, true
			}
		}
		if !list.HasMore || len(list.Data) == 0 {
			return "", true
		}
	}
}

const (
	toyChaos = 2 * time.Second
	// toyPatience is how long the drain of a box that will never drain is waited for.
	toyPatience = 3 * time.Second
)

// TestTortureCatchesABrokenBox plays short rounds with the toybox: without a bug nothing is found, with each of
// its bugs the round says so by name.
func TestTortureCatchesABrokenBox(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for bug, rule := range map[string]Rule{
		bugNone:     "", // nothing is to be found
		bugLate:     Lost,
		bugFreshKey: Doubled,
		bugAmnesia:  Twice,
		bugLenient:  Unpaid,
		bugForgets:  Unsettled,
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			binary := filepath.Join(t.TempDir(), toyPrefix+bug)
			if err := os.Symlink(self, binary); err != nil {
				t.Fatal(err)
			}
			o := Options{Binary: binary, Dir: t.TempDir(), Seed: 7, Chaos: toyChaos}
			if bug == bugForgets {
				o.Patience = toyPatience
			}
			result, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if rule != "" {
				if !slices.ContainsFunc(result.Findings, func(f Finding) bool { return f.Rule == rule }) {
					t.Errorf("not caught as %q; findings: %v\n%s", rule, result.Findings, result.Tally)
				}
				return
			}
			for _, f := range result.Findings {
				t.Error(f)
			}
			for _, what := range result.Tally.Idle() {
				t.Errorf("no %s in the whole round:\n%s", what, result.Tally)
			}
			awake(t, result.Evidence)
		})
	}
}
