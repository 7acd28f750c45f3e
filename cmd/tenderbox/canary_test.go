package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"tenderbox/internal/blackbox"
)

// canaries are secrets by a name for a person. Each is unlike anything that could stand anywhere by chance.
type canaries map[string]string

// spelt are the spellings in which a secret may be met: in clear, percent-encoded, in hex, in JSON's and Go's quotes, and in base64 at
// each of its three places in a group.
func spelt(secret string) []string {
	quoted, _ := json.Marshal(secret)
	all := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strings.Trim(string(quoted), `"`), strings.Trim(strconv.Quote(secret), `"`)}
	h := hex.EncodeToString([]byte(secret))
	all = append(all, h, strings.ToUpper(h))
	for _, lead := range []string{"", ":", "::"} {
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			whole := e.EncodeToString([]byte(lead + secret + "::"))
			all = append(all, whole[4:(len(lead)+len(secret))/3*4]) // whole groups that the secret alone fills
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// found tells which canaries stand in a text, and how they are spelt there.
func (c canaries) found(content []byte) (hits []string) {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		for _, s := range spelt(c[name]) {
			if at := bytes.Index(content, []byte(s)); at >= 0 {
				hits = append(hits, fmt.Sprintf("%s, as %q, in …%q", name, s, content[max(0, at-40):min(len(content), at+len(s)+40)]))
			}
		}
	}
	return hits
}

// sinks are the places where a secret must not be, by name.
type sinks map[string][]byte

// addFolder adds every file of a folder.
func (s sinks) addFolder(t *testing.T, label, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		s[label+"/"+rel] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// echoing is a processor that says everything back, in ways that a payment's token chooses: "tok_…_declined".
type echoing struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int // by way
}

func newEchoing() *echoing {
	e := &echoing{seen: map[string]int{}}
	e.Server = httptest.NewServer(e)
	return e
}

func (e *echoing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(body))
	token := form.Get("source") + form.Get("payment_method")
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	way := token[strings.LastIndexByte(token, '_')+1:]
	e.mu.Lock()
	e.seen[way]++
	e.mu.Unlock()

	var said []string
	for _, secret := range []string{key, token} {
		if secret != "" {
			said = append(said, secret, base64.StdEncoding.EncodeToString([]byte(secret+":")), hex.EncodeToString([]byte(secret)), url.QueryEscape(secret))
		}
	}
	all := "echo: " + strings.Join(said, " ") + " " + string(body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", "req_"+key+token)
	answer := func(status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	failure := func(kind string) map[string]any {
		return map[string]any{"error": map[string]any{"type": kind, "code": key, "decline_code": token, "message": all, "param": token, "charge": token}}
	}
	amount, _ := strconv.Atoi(form.Get("amount"))
	object := map[string]any{"id": "ch_" + rand.Text(), "object": "charge", "amount": amount, "currency": form.Get("currency"), "status": "succeeded",
		"description": all, "metadata": map[string]string{"tenderbox_payment": form.Get("metadata[tenderbox_payment]"), "echo": all}, "source": token}
	switch way {
	case "declined":
		answer(402, failure("card_error"))
	case "invalid":
		answer(400, failure("invalid_request_error"))
	case "kind":
		answer(402, failure(all))
	case "refused": // the key
		answer(401, failure("invalid_request_error"))
	case "limited":
		answer(429, failure("rate_limit_error"))
	case "cut":
		w.Header().Set("Content-Length", "100000")
		answer(402, failure("card_error"))
	case "hang":
		<-r.Context().Done()
	case "garbage":
		_, _ = io.WriteString(w, "<html>"+all)
	case "redirect":
		w.Header().Set("Location", "/"+url.PathEscape(all))
		answer(302, failure("card_error"))
	case "id": // a success whose object is named after the token
		object["id"] = token
		answer(200, object)
	case "keyid":
		object["id"] = key
		answer(200, object)
	case "state":
		object["status"] = token
		answer(200, object)
	case "long": // so that the texts are cut in the middle of the secrets
		e := failure("card_error")
		e["error"].(map[string]any)["message"] = strings.Repeat("x", 490) + token + key
		answer(402, e)
	case "card":
		answer(402, map[string]any{"error": map[string]any{"type": "card_error", "message": "card 4000 0025 0000 3155 was declined"}})
	case "fine":
		answer(200, object)
	case "500":
		answer(500, failure("api_error"))
	default: // probes and lists
		answer(200, map[string]any{"object": "list", "data": []any{}, "has_more": false, "echo": all})
	}
}

// ways are how the processor answers the payments of the test. The last two stop an account's sending, and are tenants' of their own.
var ways = []string{"declined", "invalid", "kind", "500", "cut", "hang", "garbage", "redirect", "id", "keyid", "state", "long", "card", "fine", "refused", "limited"}

// echoingMail is a mail server that lets everybody in, and then refuses the mail and says the password back.
type echoingMail struct{ password string }

type echoingSession struct {
	echoingMail
	smtp.Session
}

func (e echoingMail) NewSession(*smtp.Conn) (smtp.Session, error) {
	return &echoingSession{e, nil}, nil
}
func (s *echoingSession) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *echoingSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, _, _ string) error { return nil }), nil
}
func (s *echoingSession) Mail(string, *smtp.MailOptions) error {
	p := []byte(s.password)
	return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "you said " + s.password + " " + base64.StdEncoding.EncodeToString(p) + " " + hex.EncodeToString(p) + " " + url.QueryEscape(s.password)}
}
func (s *echoingSession) Reset()        {}
func (s *echoingSession) Logout() error { return nil }

// canaryBox is the real program with everything that it may leak, and what its clients have heard.
type canaryBox struct {
	t      *testing.T
	ctx    context.Context
	url    string
	log    lockedBuffer
	heard  lockedBuffer // answers and streams, but for those that are meant to show a secret
	client http.Client
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// ask makes a request and keeps what is answered, but for what is shown to its owner this once.
func (b *canaryBox) ask(shown bool, secret, tenant, method, path, body string) (status int, answer map[string]any) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.ctx, method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	if tenant != "" {
		r.Header.Set("X-Tenant-ID", tenant)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
		if strings.HasPrefix(path, "/v1/") {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	}
	a, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer a.Body.Close()
	content, err := io.ReadAll(a.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if !shown {
		fmt.Fprintf(&b.heard, "%s %s\n%v\n%s\n", method, path, a.Header, content)
	}
	_ = json.Unmarshal(content, &answer) // metrics are no JSON
	return a.StatusCode, answer
}

// made is ask for what must succeed.
func (b *canaryBox) made(shown bool, secret, tenant, method, path, body string) map[string]any {
	b.t.Helper()
	status, answer := b.ask(shown, secret, tenant, method, path, body)
	if status/100 != 2 {
		b.t.Fatalf("%s %s: %d %v", method, path, status, answer)
	}
	return answer
}

// until asks until the answer is as wanted.
func (b *canaryBox) until(what, secret, tenant, path string, seen func(map[string]any) bool) {
	b.t.Helper()
	var last map[string]any
	err := blackbox.Poll(b.ctx, 20*time.Millisecond, func() (bool, error) {
		_, last = b.ask(false, secret, tenant, http.MethodGet, path, "")
		return seen(last), nil
	})
	if err != nil {
		b.t.Fatalf("waited in vain for %s: %v; last: %v\n%s", what, err, last, b.log.bytes())
	}
}
