package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// rawAnswers writes bytes to the box's port, as they are, and returns the statuses of all answers until the box hangs up; none if it does so
// without a word. Some is read while more is written: a client that does neither would wait for itself.
func rawAnswers(t *testing.T, r *runningApp, raw string) (statuses []int, all string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(c, raw) // the box may hang up in the middle of it
	}()
	got, err := io.ReadAll(c)
	_ = c.Close()
	<-written
	if n, ok := err.(net.Error); ok && n.Timeout() {
		t.Errorf("the box keeps the connection open after %.300q", got)
	}
	for answers := bufio.NewReader(bytes.NewReader(got)); ; {
		a, err := http.ReadResponse(answers, nil)
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, a.Body)
		statuses = append(statuses, a.StatusCode)
	}
	return statuses, string(got)
}

// What no client of good faith sends is answered once or not at all, the connection is closed, nothing is stored and nothing logged
// (RELIABILITY: hostile input). It is the box's own listener with its own limits.
func TestHostileWire(t *testing.T) {
	log := &lockedBuffer{}
	r := startLoggedApp(t, Config{}, slog.NewTextHandler(log, nil))
	const goodPayment = `{"amount":1999,"currency":"usd","source":"tok_visa"}`
	auth := "Host: 127.0.0.1\r\nAuthorization: Bearer " + r.FirstKey + "\r\n"
	open := "POST /api/v1/payments HTTP/1.1\r\n" + auth + "Content-Type: application/json\r\n"
	head := open + "Connection: close\r\n"
	payment := head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(goodPayment), goodPayment)
	get := func(target string) string {
		return "GET " + target + " HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n"
	}
	seed := [32]byte{1}
	random := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8(seed).Read(random)
	refused := []int{400}

	for name, c := range map[string]struct {
		raw    string
		status []int // one of them, and once; 0: closed without an answer
	}{
		// The second request is what one reader takes for the first one's body, and another for a request.
		"length and chunks":            {open + "Content-Length: " + fmt.Sprint(5+len(payment)) + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + payment, refused},
		"chunks and length":            {open + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + payment, refused},
		"length and chunks of a GET":   {"GET /healthz HTTP/1.1\r\n" + auth + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + payment, []int{200}},
		"two codings":                  {open + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + payment, []int{400, 501}},
		"two codings in one":           {open + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + payment, []int{400, 501}},
		"a coding behind a tab":        {open + "Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + payment, refused},
		"a coding with a letter more":  {open + "Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + payment, []int{400, 501}},
		"a coding before its colon":    {open + "Transfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + payment, refused},
		"a coding of HTTP/1.0":         {strings.Replace(open, "HTTP/1.1", "HTTP/1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + payment, refused},
		"two lengths":                  {open + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + payment, refused},
		"a length with a sign":         {open + "Content-Length: +0\r\n\r\n" + payment, refused},
		"bad chunks":                   {open + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + goodPayment + "\r\n0\r\n\r\n" + payment, refused},
		"a chunk of a negative size":   {open + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + goodPayment + "\r\n0\r\n\r\n" + payment, refused},
		"a chunk longer than it says":  {open + "Transfer-Encoding: chunked\r\n\r\n5\r\n" + goodPayment + "\r\n0\r\n\r\n" + payment, refused},
		"a chunk larger than a number": {open + "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\n" + goodPayment + "\r\n0\r\n\r\n" + payment, refused},
		"one-byte chunks without end":  {open + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\n \r\n", 400<<10), []int{413, 0}},
		"chunk extensions without end": {open + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\n \r\n", 1<<10), refused},
		"trailers without end":         {open + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X-A: b\r\n", 70<<10), refused},
		// What is folded belongs to the header before it (RFC 9112, 5.2): it is none of its own.
		"a folded length":                {head + "X-A: b\r\n Content-Length: 52\r\n\r\n" + goodPayment, refused},
		"a folded coding":                {head + "X-A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n34\r\n" + goodPayment + "\r\n0\r\n\r\n", refused},
		"a folded first header":          {strings.Replace(payment, "Host:", " Host:", 1), refused},
		"header without colon":           {head + "Nonsense\r\n\r\n", refused},
		"200 headers":                    {head + strings.Repeat("X-A: b\r\n", 200) + "\r\n", []int{431}},
		"header of 17 KiB":               {head + "X-Long: " + strings.Repeat("x", 17<<10) + "\r\n\r\n", []int{431}},
		"header of 1 MiB":                {head + "X-Long: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", []int{431, 0}},
		"headers without end":            {head + strings.Repeat("X-A: b\r\n", 1<<17), []int{431, 0}},
		"target of 1 MiB":                {get("/" + strings.Repeat("x", 1<<20)), []int{431, 0}},
		"TLS hello":                      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + string(random[:512]) + "\r\n\r\n", []int{400, 0}},
		"HTTP/2 preface":                 {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(random[:128]), refused},
		"HTTP/0.9":                       {"GET /healthz\r\n\r\n", refused},
		"HTTP/3.0":                       {"GET /healthz HTTP/3.0\r\nHost: 127.0.0.1\r\n\r\n", []int{400, 505}},
		"random bytes":                   {string(random), []int{400, 431, 0}},
		"upgrade":                        {"GET /healthz HTTP/1.1\r\n" + auth + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", refused},
		"TRACE":                          {"TRACE /api/v1/payments HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", []int{405}},
		"CONNECT":                        {"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1:443\r\nConnection: close\r\n\r\n", []int{404}},
		"CONNECT elsewhere":              {"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\nConnection: close\r\n\r\n", []int{421}},
		"unknown method":                 {"PROPFIND /api/v1/payments HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", []int{405}},
		"method in lower case":           {"post /api/v1/payments HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", []int{405}},
		"method that is none":            {"P(ST /api/v1/payments HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", refused},
		"OPTIONS *":                      {"OPTIONS * HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", []int{404}},
		"OPTIONS * of another host":      {"OPTIONS * HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", []int{421}},
		"two slashes":                    {get("//"), []int{404}},
		"two slashes before a path":      {get("//api/v1/payments"), []int{404}},
		"two slashes within a path":      {get("/api//v1/payments"), []int{404}},
		"a dot":                          {get("/api/./v1/payments"), []int{404}},
		"two dots":                       {get("/api/v1/x/../payments"), []int{404}},
		"escaped dots":                   {get("/api/v1/x/%2e%2e/payments"), []int{404}},
		"an escaped slash":               {get("/api%2fv1/payments"), []int{404}},
		"an escaped slash in an id":      {get("/api/v1/payments/a%2Fb"), []int{404}},
		"a slash at the end":             {get("/api/v1/payments/"), []int{404}},
		"a backslash":                    {get("/api\\v1/payments"), []int{404}},
		"an escape that is none":         {get("/api/v1/payments/%zz"), refused},
		"NUL":                            {get("/api/v1/payments/%00"), []int{404}},
		"a target without a slash":       {get("api/v1/payments"), refused},
		"whole target":                   {get("http://127.0.0.1/api/v1/payments"), []int{200}},
		"whole target of another host":   {get("http://evil.example/api/v1/payments"), []int{421}},
		"whole target of another scheme": {get("ftp://evil.example/api/v1/payments"), []int{421}},
		"another host":                   {"GET /api/v1/payments HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", []int{421}},
	} {
		t.Run(name, func(t *testing.T) {
			statuses, all := rawAnswers(t, r, c.raw)
			if len(statuses) == 0 {
				statuses = []int{0}
			}
			if len(statuses) != 1 || !slices.Contains(c.status, statuses[0]) {
				t.Errorf("got %v, want one of %v, once: %.600s", statuses, c.status, all)
			}
		})
	}

	var stored struct{ Data []struct{ ID string } }
	if err := r.client().do(t.Context(), http.MethodGet, "/api/v1/payments", nil, &stored); err != nil {
		t.Fatal(err)
	}
	if len(stored.Data) > 0 {
		t.Errorf("stored: %v", stored.Data)
	}
	if n := bytes.Count(log.bytes(), []byte("\n")); n > logLinesMax {
		t.Errorf("%d lines are logged: %.3000s", n, log.bytes())
	}
}

// logLinesMax is more than a start logs, and less than a tenth of what hostile input there is.
const logLinesMax = 6
