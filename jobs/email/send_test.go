package email

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"tenderbox/jobs"
)

// wished names the wish that a handler returned, as the engine would read it. jobs keeps its types to itself.
func wished(err error) string {
	switch kind := fmt.Sprintf("%T", err); {
	case err == nil:
		return "nil"
	case strings.HasSuffix(kind, ".doneError"):
		return "done"
	case strings.HasSuffix(kind, ".cancelError"):
		return "cancel"
	case strings.HasSuffix(kind, ".snoozeError"):
		return "snooze"
	default:
		return "retry"
	}
}

func job(tenant, id, name string, data any) *jobs.Job {
	b, ok := data.(string)
	if !ok {
		raw, err := json.Marshal(data)
		if err != nil {
			panic(err)
		}
		b = string(raw)
	}
	return &jobs.Job{
		NewJob:       jobs.NewJob{Queue: Queue, Tenant: tenant, ID: id, Name: name, Data: []byte(b), Attempts: 3},
		AttemptsMade: 1, CreatedAt: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC),
	}
}

func welcome(to string) map[string]any {
	return map[string]any{"to": to, "template": "welcome", "data": map[string]any{"name": "Ada"}}
}

func answer(code int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 0, 0}, Message: text}
}

// TestAnswers: what the server says at each stage, and what the handler wishes.
func TestAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		office  func(o *office)
		want    string
		says    string // in the error or, for a snooze, in the status
		outage  bool
		arrived int
	}{
		"taken":        {func(o *office) {}, "done", "", false, 1},
		"refused dial": {func(o *office) { o.down = errRefused }, "snooze", "connecting: dial tcp: connection refused", true, 0},
		"MAIL 550":     {func(o *office) { o.onMail = func(string) error { return answer(550, "not you") } }, "cancel", "MAIL: 550: 5.0.0 not you", false, 0},
		"MAIL 530":     {func(o *office) { o.onMail = func(string) error { return answer(530, "log in") } }, "snooze", "MAIL: 530", true, 0},
		"MAIL 421":     {func(o *office) { o.onMail = func(string) error { return answer(421, "closing") } }, "snooze", "MAIL: 421", true, 0},
		"RCPT 421":     {func(o *office) { o.onRcpt = func(string) error { return answer(421, "too many for him") } }, "snooze", "RCPT: 421: 4.0.0 too many for him", false, 0},
		"DATA 421":     {func(o *office) { o.onData = func(delivery) error { return answer(421, "closing") } }, "snooze", "the answer to the mail: 421", false, 0},
		"RCPT 550":     {func(o *office) { o.onRcpt = func(string) error { return answer(550, "no such user") } }, "cancel", "RCPT: 550: 5.0.0 no such user", false, 0},
		"RCPT 450":     {func(o *office) { o.onRcpt = func(string) error { return answer(450, "greylisted") } }, "retry", "RCPT: 450: 4.0.0 greylisted", false, 0},
		"DATA 554":     {func(o *office) { o.onData = func(delivery) error { return answer(554, "spam") } }, "cancel", "the answer to the mail: 554: 5.0.0 spam", false, 0},
		"DATA 452":     {func(o *office) { o.onData = func(delivery) error { return answer(452, "disk full") } }, "retry", "the answer to the mail: 452: 4.0.0 disk full", false, 0},
		"no answer":    {func(o *office) { o.hangUp = func(delivery) bool { return true } }, "retry", "whether the server took it is unknown", false, 1},
		"body repeated": {func(o *office) {
			o.onData = func(d delivery) error { return answer(554, "I do not like: Your account is ready.") }
		}, "cancel", "(the answer repeats the mail)", false, 0},
		"controls": {func(o *office) { o.onRcpt = func(string) error { return answer(550, "bell \a, escape \x1b[31m") } }, "cancel", "bell ?, escape ?[31m", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := openOffice(t, func(o *office, _ *smtp.Server) { tc.office(o) })
			m := mailer(t, o, Options{})
			err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com")))
			if got := wished(err); got != tc.want {
				t.Fatalf("wish: %s (%v), want %s", got, err, tc.want)
			}
			said := err.Error()
			s := m.Status()
			if s.DownSince.IsZero() == tc.outage {
				t.Errorf("status: %+v, want an outage: %v", s, tc.outage)
			}
			if tc.want == "snooze" {
				said = s.LastError
			}
			if m.Ready("shop") == tc.outage {
				t.Errorf("ready: %v, want it unless the server cannot be used", !tc.outage)
			}
			if !strings.Contains(said, tc.says) {
				t.Errorf("it says %q, want %q in it", said, tc.says)
			}
			if got := len(o.deliveries()); got != tc.arrived {
				t.Errorf("%d mails arrived, want %d", got, tc.arrived)
			}
		})
	}
}

// TestInterrupted: when the box stops, a mail that was not handed over gives its attempt back: the error is the context's.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cut := make(chan struct{})
	o := openOffice(t, func(o *office, _ *smtp.Server) {
		o.onRcpt = func(string) error { cancel(); <-cut; return nil }
	})
	m := mailer(t, o, Options{})
	m.server.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := o.dial(ctx, network, address)
		return &tellClose{Conn: c, closed: cut}, err
	}
	err := m.send(ctx, job("shop", "j1", SendJob, welcome("ada@example.com")))
	if !errors.Is(err, context.Canceled) || wished(err) != "retry" {
		t.Errorf("%v, want the context's error", err)
	}
	if !m.Status().DownSince.IsZero() {
		t.Error("our own end counts as an outage")
	}
}

// tellClose tells when it is closed.
type tellClose struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *tellClose) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestLost: a connection that dies on the way costs nothing while the job is young, and says nothing about other mail.
func TestLost(t *testing.T) {
	o := openOffice(t, nil)
	o.onRcpt = func(string) error { panic("the server dies") } // go-smtp answers 421 and hangs up
	m := mailer(t, o, Options{})
	j := job("shop", "j1", SendJob, welcome("ada@example.com"))
	if err := m.send(t.Context(), j); wished(err) != "snooze" || !m.Ready("shop") {
		t.Errorf("421: %v, want a snooze, and others to go on", err)
	}
	o.onRcpt = nil
	if err := m.send(t.Context(), job("shop", "j2", SendJob, welcome("ada@example.com"))); wished(err) != "done" || m.Status().LastError != "" {
		t.Errorf("the next mail: %v, status %+v", err, m.Status())
	}
	for age, want := range map[time.Duration]string{time.Hour: "snooze", lostPatience + time.Hour: "retry"} {
		m.now = func() time.Time { return j.CreatedAt.Add(age) }
		if err := m.wish(j, &sendError{fate: lost, stage: stageRcpt}); wished(err) != want {
			t.Errorf("after %v: %v, want %s", age, err, want)
		}
	}
	j.CreatedAt = time.Unix(0, 0)
	m.now = time.Now
	if err := m.wish(j, &sendError{fate: lost, stage: stageRcpt}); wished(err) != "snooze" {
		t.Errorf("a job from 1970: %v, want a snooze", err)
	}
}

// TestStableID: the same job makes the same Message-ID each time; anything that makes it another mail makes another.
func TestStableID(t *testing.T) {
	o := openOffice(t, nil)
	o.hangUp = func(delivery) bool { return true }
	m := mailer(t, o, Options{})
	for range 2 {
		if err := m.send(t.Context(), job("shop", "j1", SendJob, welcome("ada@example.com"))); wished(err) != "retry" {
			t.Fatalf("%v, want a retry", err)
		}
	}
	got := o.deliveries()
	if len(got) != 2 || got[0].id(t) != got[1].id(t) {
		t.Fatalf("a repeated mail has another Message-ID: %d mails", len(got))
	}
	if want := "<" + m.identify(job("shop", "j1", SendJob, welcome("ada@example.com")), 0) + ">"; got[0].id(t) != want {
		t.Errorf("Message-ID %s, want %s", got[0].id(t), want)
	}
	seen := map[string]string{}
	for name, id := range map[string]string{
		"it":      m.identify(job("shop", "j1", SendJob, welcome("ada@example.com")), 0),
		"place":   m.identify(job("shop", "j1", SendJob, welcome("ada@example.com")), 1),
		"tenant":  m.identify(job("shop2", "j1", SendJob, welcome("ada@example.com")), 0),
		"job":     m.identify(job("shop", "j2", SendJob, welcome("ada@example.com")), 0),
		"data":    m.identify(job("shop", "j1", SendJob, welcome("bob@example.com")), 0),
		"borders": m.identify(job("sho", "pj1", SendJob, welcome("ada@example.com")), 0),
	} {
		if seen[id] != "" {
			t.Errorf("%s and %s have the same Message-ID", name, seen[id])
		}
		seen[id] = name
		if !strings.HasSuffix(id, "@corner.example") {
			t.Errorf("%s: not of the sender's domain", id)
		}
	}
}

// TestRefusedData: bad data fails at once, with the member's name and without its value, also while the server is down.
func TestRefusedData(t *testing.T) {
	o := openOffice(t, nil)
	o.cut(errRefused)
	m := mailer(t, o, Options{})
	long := strings.Repeat("x", 300)
	for name, tc := range map[string]struct{ data, says string }{
		"nothing":       {``, "data: not one JSON object"},
		"array":         {`[]`, "data: the value is of the wrong type"},
		"trailing":      {`{"to":"a@b.example","template":"welcome"} {}`, "data: not one JSON object"},
		"twice":         {`{"to":"a@b.example","to":"c@d.example"}`, "data.to: this member stands there twice"},
		"case":          {`{"TO":"a@b.example"}`, "data.TO: there is no such member"},
		"unknown":       {`{"to":"a@b.example","cc":"secret"}`, "data.cc: there is no such member"},
		"wrong type":    {`{"to":["a@b.example"]}`, "data.to: the value is of the wrong type"},
		"no address":    {`{"template":"welcome"}`, "to: not an address"},
		"two":           {`{"to":"a@b.example, c@d.example","template":"welcome"}`, "to: not an address"},
		"line break":    {`{"to":"a@b.example\r\nBcc: c@d.example","template":"welcome"}`, "to: an address has no control characters"},
		"no template":   {`{"to":"a@b.example"}`, `template "": no such template; there are account-verified, receipt, welcome`},
		"path":          {`{"to":"a@b.example","template":"../secret"}`, "no such template"},
		"data is list":  {`{"to":"a@b.example","template":"welcome","data":["secret"]}`, "data: must be an object"},
		"data missing":  {`{"to":"a@b.example","template":"receipt","data":{"order_id":"secret"}}`, `no entry for key "amount"`},
		"big data":      {`{"to":"a@b.example","template":"welcome","data":{"a":"` + strings.Repeat("x", dataBytesMax) + `"}}`, "a template takes up to 65536"},
		"subject":       {`{"to":"a@b.example","template":"welcome","subject":"secret\r\nBcc: a@b.example"}`, "subject: line breaks"},
		"subject nul":   {`{"to":"a@b.example","template":"welcome","subject":"a\u0000secret"}`, "subject: line breaks"},
		"subject u2028": {`{"to":"a@b.example","template":"welcome","subject":"a\u2028secret"}`, "subject: line breaks"},
		"long subject":  {`{"to":"a@b.example","template":"welcome","subject":"` + long + `"}`, "subject: 300 bytes"},
		"by data":       {`{"to":"a@b.example","template":"receipt","data":{"order_id":"1\r\nBcc: secret@b.example","amount":1,"currency":"usd"}}`, "subject: line breaks"},
		"no money":      {`{"to":"a@b.example","template":"receipt","data":{"order_id":"1","amount":1.5,"currency":"usd"}}`, "no whole number of minor units"},
		"no currency":   {`{"to":"a@b.example","template":"receipt","data":{"order_id":"1","amount":1,"currency":"secret"}}`, "no code of ISO 4217"},
	} {
		t.Run(name, func(t *testing.T) {
			err := m.send(t.Context(), job("shop", "j1", SendJob, tc.data))
			if wished(err) != "cancel" || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v, want it cancelled with %q", wished(err), err, tc.says)
			}
			if strings.Contains(err.Error(), "secret") && name != "path" {
				t.Errorf("the error repeats a value: %v", err)
			}
		})
	}
	if len(o.deliveries()) != 0 || o.dials != 0 {
		t.Error("the server was called")
	}
}
