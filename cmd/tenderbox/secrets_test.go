package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/nats-io/nats.go"

	"tenderbox/internal/blackbox"
)

// natsPoll is how often the event stream is tried until it is open.
const natsPoll = 20 * time.Millisecond

// INV-23, end to end: a box is given secrets that can be recognised, meets a processor and a mail server that say everything back, is
// killed, runs again and is rekeyed. None of the secrets stands anywhere where it is not meant to be: in the folder's files, the
// log, the metrics, events, answers, the command line's output, in whatever spelling. What is no secret is found in each place.
func TestNoSecretLeaks(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*patience, errors.New("it takes too long"))
	defer cancel()
	binary, err := exec.LookPath("tenderbox")
	if err != nil {
		t.Fatal(err)
	}
	b := &canaryBox{t: t, ctx: ctx}
	processor := newEchoing()
	defer processor.Close()

	secrets := canaries{"upstream key": "sk_live_" + rand.Text(), "SMTP password": "pw/+" + rand.Text() + "?ü" + rand.Text()}
	mail := smtp.NewServer(echoingMail{secrets["SMTP password"]})
	mail.AllowInsecureAuth = true
	mailLine, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go mail.Serve(mailLine) // ends with Close
	defer mail.Close()

	// Secrets come from files, so that they stand in no command line.
	work := t.TempDir()
	data, vault := filepath.Join(work, "data"), filepath.Join(work, "vault")
	if err := os.Mkdir(vault, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{
		"upstream": secrets["upstream key"],
		"smtp":     "smtp://" + url.UserPassword("shop", secrets["SMTP password"]).String() + "@" + mailLine.Addr().String(),
	} {
		if err := os.WriteFile(filepath.Join(vault, name), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	options := blackbox.ServeOptions{Binary: binary, Data: data, Log: &b.log, Args: []string{
		"--upstream-url", processor.URL, "--upstream-key", "@" + filepath.Join(vault, "upstream"), "--upstream-timeout", "500ms",
		"--breaker-failures", "1000", "--probe-interval", "100ms", "--smtp-url", "@" + filepath.Join(vault, "smtp"), "--smtp-from", "shop@example.org",
		"--webhook-allow-lan", "--nats-listen", "127.0.0.1:0", "--key-file", filepath.Join(vault, "box.key"), "--log-level", "debug",
	}}
	natsAddress := freeAddress(t)
	options.Args[slices.Index(options.Args, "--nats-listen")+1] = natsAddress
	start := func() *blackbox.Process {
		p, err := blackbox.Serve(options)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		if b.url, err = p.Ready(ctx); err != nil {
			t.Fatalf("%v\n%s", err, b.log.bytes())
		}
		return p
	}
	p := start()

	// The two files with secrets in clear are noted and deleted, as the guide says.
	key, operator := b.takeSecret(data, defaultKeyFile), b.takeSecret(data, operatorTokenFile)
	keyFile, err := os.ReadFile(filepath.Join(vault, boxKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	secrets["API key"], secrets["operator's token"], secrets["box's key"] = key, operator, strings.Fields(string(keyFile))[3]

	// Controls: what is no secret, one for each place.
	controls := canaries{"description": "desc" + rand.Text(), "event": "event" + rand.Text(), "job": "job" + rand.Text(), "tenant": "t" + strings.ToLower(rand.Text())}

	// Streams that hear everything.
	sse := b.listen(key)
	var events *nats.Conn // the event stream opens beside the rest
	err = blackbox.Poll(ctx, natsPoll, func() (bool, error) {
		events, err = nats.Connect("nats://"+natsAddress, nats.UserInfo("default", key))
		return err == nil, nil
	})
	if err == nil {
		_, err = events.Subscribe("evt.default.>", func(m *nats.Msg) { fmt.Fprintf(&b.heard, "%s %v %s\n", m.Subject, m.Header, m.Data) })
		err = errors.Join(err, events.Flush())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	if wrong, err := nats.Connect("nats://"+natsAddress, nats.UserInfo("default", key+"x")); err == nil {
		wrong.Close()
		t.Error("NATS lets a wrong key in")
	}

	// Tenants with accounts of their own; a webhook; keys replaced.
	tenantKeys := map[string]string{"": key}
	for _, name := range []string{"refused", "limited", controls["tenant"]} {
		made := b.made(true, operator, "", http.MethodPost, "/api/v1/tenants", fmt.Sprintf(`{"id":%q}`, name))
		tenantKeys[name] = fmt.Sprint(made["api_key"])
		secrets["API key of "+name], secrets["upstream key of "+name] = tenantKeys[name], "rk_live_"+rand.Text()
		b.made(false, operator, "", http.MethodPatch, "/api/v1/tenants/"+name, fmt.Sprintf(`{"upstream":{"account":%q,"url":%q,"key":%q}}`, name, processor.URL, secrets["upstream key of "+name]))
	}
	receiver := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(&b.heard, "webhook %v ", r.Header)
		_, _ = io.Copy(&b.heard, r.Body)
		http.Error(w, fmt.Sprint("echo ", r.Header), http.StatusInternalServerError)
	})}
	receiverLine, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go receiver.Serve(receiverLine) // ends with Close
	defer receiver.Close()
	hook := b.made(true, key, "", http.MethodPost, "/api/v1/webhooks", fmt.Sprintf(`{"url":"http://%s/hook"}`, receiverLine.Addr()))
	secrets["webhook secret"] = strings.TrimPrefix(fmt.Sprint(hook["secret"]), "whsec_")
	rotated := b.made(true, key, "", http.MethodPost, fmt.Sprintf("/api/v1/webhooks/%v/rotate-secret", hook["id"]), "")
	secrets["webhook's second secret"] = strings.TrimPrefix(fmt.Sprint(rotated["secret"]), "whsec_")
	for name, secret := range secrets {
		if len(secret) < 20 {
			t.Fatalf("%s is %q", name, secret)
		}
	}

	// Payments, one a way, by charge and by intent; each source is a secret.
	type paid struct{ tenant, id, way string }
	var payments []paid
	for _, way := range ways {
		tenant := ""
		if way == "refused" || way == "limited" {
			tenant = way
		}
		for _, means := range []string{"source", "payment_method"} {
			token := "tok_live_" + rand.Text() + "_" + way
			secrets["token "+means+" "+way] = token
			made := b.made(false, tenantKeys[tenant], "", http.MethodPost, "/api/v1/payments",
				fmt.Sprintf(`{"amount":100,"currency":"eur",%q:%q,"description":%q}`, means, token, controls["description"]))
			payments = append(payments, paid{tenant, fmt.Sprint(made["id"]), way})
		}
	}
	secrets["token on the other surface"] = "tok_live_" + rand.Text() + "_declined"
	b.ask(false, key, "", http.MethodPost, "/v1/charges", "amount=100&currency=eur&source="+secrets["token on the other surface"])

	// Secrets and cards where they do not belong: refused, and not kept.
	b.misplaced(secrets, key)

	b.made(false, key, "", http.MethodPost, "/api/v1/events", fmt.Sprintf(`{"type":"till.opened","data":%q}`, controls["event"]))
	b.made(false, key, "", http.MethodPost, "/api/v1/queues/data-processing/jobs", fmt.Sprintf(`{"name":"mine","data":%q,"opts":{"delay_ms":3600000}}`, controls["job"]))
	b.made(false, key, "", http.MethodPost, "/api/v1/users", `{"id":"ana","email":"ana@example.org","name":"Ana"}`)

	for _, p := range payments {
		b.until("an attempt of "+p.way, tenantKeys[p.tenant], "", "/api/v1/payments/"+p.id+"/attempts", func(a map[string]any) bool {
			all, _ := a["data"].([]any)
			return len(all) > 0 && all[0].(map[string]any)["ended_at"] != nil
		})
		b.ask(false, tenantKeys[p.tenant], "", http.MethodGet, "/api/v1/payments/"+p.id, "")
	}
	b.until("the mail's refusal", key, "", "/api/v1/queues/email/jobs?state=failed", func(a map[string]any) bool {
		all, _ := a["data"].([]any)
		return len(all) > 0 && strings.Contains(fmt.Sprint(all), "550")
	})
	b.until("the webhook's failure", key, "", fmt.Sprintf("/api/v1/webhooks/%v/deliveries", hook["id"]), func(a map[string]any) bool {
		return strings.Contains(fmt.Sprint(a), "500")
	})
	b.until("the news of failed jobs", key, "", "/api/v1/events?types=job.failed", func(a map[string]any) bool {
		all, _ := a["data"].([]any)
		return len(all) > 0
	})
	for _, way := range ways {
		if processor.count(way) == 0 {
			t.Errorf("the processor was never asked to answer %q", way)
		}
	}

	// Everything that the box shows.
	for _, path := range []string{"/metrics", "/api/v1/status", "/api/v1/tenants", "/api/v1/shards", "/readyz", "/openapi.json"} {
		b.ask(false, operator, "", http.MethodGet, path, "")
	}
	for _, path := range []string{"/api/v1/status", "/api/v1/payments?limit=100", "/api/v1/events?limit=100", "/api/v1/webhooks", "/api/v1/queues", "/api/v1/reports/payments",
		"/v1/charges?limit=100", "/v1/events", "/api/v1/analytics/payments?bucket=day", "/api/v1/queues/payments/jobs?state=delayed", "/api/v1/queues/webhooks/jobs?state=delayed"} {
		b.ask(false, key, "", http.MethodGet, path, "")
		b.ask(false, operator, controls["tenant"], http.MethodGet, path, "")
	}
	token := filepath.Join(vault, "operator")
	if err := os.WriteFile(token, []byte(operator), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"tenant", "list"}, {"tenant", "show", controls["tenant"]}, {"queue", "list"}} {
		out, err := blackbox.Run(ctx, binary, append(args, "--server", b.url, "--token", "@"+token)...)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintln(&b.heard, out)
	}

	// Killed, what stands in the files then; run again with the secrets sealed, stopped in order; rekeyed.
	all := sinks{}
	p.Kill()
	all.addFolder(t, "killed", data)
	p = start()
	b.until("the box after its restart", key, "", "/api/v1/payments/"+payments[0].id, func(a map[string]any) bool { return a["id"] == payments[0].id })
	if err := p.Stop(ctx); err != nil {
		t.Errorf("%v\n%s", err, b.log.bytes())
	}
	all.addFolder(t, "stopped", data)
	out, err := blackbox.Run(ctx, binary, "rekey", "--data", data, "--key-file", filepath.Join(vault, "box.key"), "--forget-old", "--new")
	fmt.Fprintln(&b.heard, out, err)
	if err != nil {
		t.Error(err)
	}
	out, err = blackbox.Run(ctx, binary, "check", "--data", data, "--key-file", filepath.Join(vault, "box.key"))
	fmt.Fprintln(&b.heard, out, err)
	if err != nil {
		t.Error(err)
	}
	all.addFolder(t, "rekeyed", data)
	<-sse
	all["log"], all["answers and events"] = b.log.bytes(), b.heard.bytes()

	for name, content := range all {
		for _, hit := range secrets.found(content) {
			t.Errorf("%s holds the %s", name, hit)
		}
	}
	for place, control := range map[string]string{
		"killed/shards": "description", "stopped/shards": "description", "rekeyed/shards": "description", "stopped/jobs.db": "job", "killed/jobs.db": "job",
		"stopped/bus": "event", "killed/bus": "event", "stopped/box.db": "tenant", "rekeyed/box.db": "tenant", "log": "tenant", "answers and events": "description",
	} {
		seen := false
		for name, content := range all {
			seen = seen || strings.HasPrefix(name, place) && len(canaries{control: controls[control]}.found(content)) > 0
		}
		if !seen {
			t.Errorf("the %s is not found in %s: a secret would not be either", control, place)
		}
	}
}

func (e *echoing) count(way string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen[way]
}

// takeSecret reads a file of the first start and deletes it.
func (b *canaryBox) takeSecret(data, name string) string {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(data, name))
	if err := errors.Join(err, os.Remove(filepath.Join(data, name))); err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

// listen hears the event stream until the box goes.
func (b *canaryBox) listen(key string) (done <-chan struct{}) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.url+"/api/v1/events/stream", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	a, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer a.Body.Close()
		_, _ = io.Copy(&b.heard, a.Body) // until the box is killed
	}()
	return ended
}

// misplaced puts a card's number, each time another, and the API key where neither belongs.
func (b *canaryBox) misplaced(secrets canaries, key string) {
	b.t.Helper()
	user := b.made(false, key, "", http.MethodPost, "/api/v1/users", `{"email":"bob@example.org"}`)
	order := fmt.Sprintf(`{"user_id":"%v","currency":"eur","items":[{"sku":"1","quantity":1,"unit_amount":100,"name":"CARD"}]}`, user["id"])
	n := 0
	card := func() string {
		n++
		number := fmt.Sprintf("4929%05d%06d", 10407+n*7919%89000, 271828+n)
		number += string(rune('0' + checkDigit(number)))
		secrets[fmt.Sprint("card ", n)] = number
		return number
	}
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":"CARD"}`},
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","payment_method":"CARD"}`},
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":"tok_visa","description":"paid by CARD"}`},
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":"tok_visa","metadata":{"a":"CARD"}}`},
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":"tok_visa","metadata":{"CARD":"a"}}`},
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":"tok_visa","number":"CARD"}`},
		{"POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":"tok_visa","cvc":"CARD"}`},
		{"POST", "/api/v1/users", `{"email":"eve@example.org","name":"CARD"}`},
		{"POST", "/api/v1/users", `{"email":"CARD@example.org"}`},
		{"PATCH", fmt.Sprintf("/api/v1/users/%v", user["id"]), `{"name":"CARD"}`},
		{"PATCH", fmt.Sprintf("/api/v1/users/%v", user["id"]), `{"email":"CARD@example.org"}`},
		{"POST", "/api/v1/orders", order},
		{"POST", "/api/v1/notifications", fmt.Sprintf(`{"user_id":"%v","message":"pay with CARD"}`, user["id"])},
		{"POST", "/api/v1/events", `{"type":"till.opened","data":{"a":["CARD"]}}`},
		{"POST", "/api/v1/events", `{"type":"till.opened","data":{"cvc":"CARD"}}`},
		{"POST", "/v1/charges", "amount=100&currency=eur&source=CARD"},
		{"POST", "/v1/charges", "amount=100&currency=eur&source[number]=CARD"},
		{"POST", "/v1/charges", "amount=100&currency=eur&source=tok_visa&description=CARD"},
		{"POST", "/v1/charges", "amount=100&currency=eur&source=tok_visa&metadata[a]=CARD"},
		{"POST", "/v1/charges", "amount=100&currency=eur&card[number]=CARD"},
		{"POST", "/v1/payment_intents", "amount=100&currency=eur&payment_method=CARD"},
		{"POST", "/v1/payment_intents", "amount=100&currency=eur&payment_method_data[card][number]=CARD"},
	} {
		body := strings.ReplaceAll(c.body, "CARD", card())
		status, answer := b.ask(false, key, "", c.method, c.path, body)
		if want := map[bool]int{true: 400, false: 422}[strings.HasPrefix(c.path, "/v1/")]; status != want || !strings.Contains(fmt.Sprint(answer), "card_data_not_allowed") {
			b.t.Errorf("%s %s %s: %d %v", c.method, c.path, body, status, answer)
		}
	}
	if status, answer := b.ask(false, key, "", "POST", "/api/v1/payments", `{"amount":1,"currency":"eur","source":{"number":"`+card()+`"}}`); status != 422 {
		b.t.Errorf("a card in the place of a token: %d %v", status, answer)
	}
	// The client is told what it has asked for; the log is not.
	for _, path := range []string{"/api/v1/payments?api_key=" + key, "/api/v1/payments/" + key, "/api/v1/payments/" + card(), "/nowhere/" + key} {
		if status, _ := b.ask(true, "", "", http.MethodGet, path, ""); status/100 != 4 {
			b.t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := b.ask(false, key[:len(key)-1]+"A", "", http.MethodGet, "/api/v1/payments", ""); status != http.StatusUnauthorized {
		b.t.Errorf("a wrong key: %d", status)
	}
}

// checkDigit is the last digit of a card's number (ISO/IEC 7812-1).
func checkDigit(number string) int {
	sum := 0
	for i := range len(number) {
		d := int(number[len(number)-1-i] - '0')
		if i%2 == 0 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return (10 - sum%10) % 10
}

// freeAddress is one that nobody listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
