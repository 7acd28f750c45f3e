package upstream_test

import (
	"bufio"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"tenderbox/upstream"
)

// stripeMock runs the processor's own judge of requests: stripe-mock, pinned in tools/go.mod to the release that holds the
// specification of the Stripe-Version that we send, and started so that it refuses any other. It returns its base URL. The
// program ends with the test.
func stripeMock(t *testing.T) (base string) {
	t.Helper()
	listening := regexp.MustCompile(`^Listening for HTTP at address: (127\.0\.0\.1:\d+)$`)
	mock := exec.Command(buildStripeMock(t), "-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0", "-strict-version-check")
	mock.Stderr = t.Output()
	out, err := mock.StdoutPipe()
	if err == nil {
		err = mock.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	t.Cleanup(func() {
		mock.Process.Kill()
		<-drained
		mock.Wait() // says that it was killed
	})
	lines := bufio.NewScanner(out)
	for base == "" && lines.Scan() { // the test's own deadline ends a wait in vain
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			base = "http://" + m[1] + "/v1"
		}
	}
	go func() {
		defer close(drained)
		io.Copy(io.Discard, out)
	}()
	if base == "" {
		t.Fatal("stripe-mock ended without listening")
	}
	return base
}

// buildStripeMock returns the path of the program, built into Go's cache: some ten seconds the first time. On a machine that
// cannot download its modules the test is skipped, but never where changes are judged (CI=true).
func buildStripeMock(t *testing.T) string {
	t.Helper()
	build := exec.Command("go", "tool", "-modfile=../tools/go.mod", "-n", "stripe-mock")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	path, err := build.Output()
	if err == nil {
		return strings.TrimSpace(string(path))
	}
	said := err.Error()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		said = string(exit.Stderr)
	}
	if os.Getenv("CI") != "true" && offline(said) {
		t.Skipf("stripe-mock cannot be downloaded, so no independent judge looks at our requests here:\n%s", said)
	}
	t.Fatalf("stripe-mock cannot be built: %v\n%s", err, said)
	return ""
}

// offline reports whether what the go command said is about the network.
func offline(said string) bool {
	for _, sign := range []string{"dial tcp", "no such host", "connection refused", "i/o timeout", "TLS handshake timeout",
		"network is unreachable", "proxyconnect", "GOPROXY=off"} {
		if strings.Contains(said, sign) {
			return true
		}
	}
	return false
}

// judged is an account at stripe-mock. What it answers is made up, so nothing may be made of it but its status and its form.
func judged(t *testing.T) *upstream.Account {
	t.Helper()
	_, a := account(t, upstream.Config{URL: stripeMock(t), Key: "sk_test_123", BreakerFailures: 1000, Timeout: 30 * time.Second})
	return a
}

// odd are metadata with everything in them that a form, a header or a parser may stumble over.
var odd = map[string]string{
	"tenderbox_payment":     "pay_01JABCDEFGHJKMNPQRSTVWXYZ0",
	"tenderbox_key":         strings.Repeat("0f", 32),
	"table 7":               "a=b&c=d;e",
	"ключ.å/é":              "½ € 漢字 👍🏽",
	"%5B%5D+":               "100 % \"+\" 'x' \\ / ? # \t",
	"empty":                 "",
	strings.Repeat("k", 40): strings.Repeat("v", 500),
}

// TestRequestsKeepStripesContract holds every shape of request that the box sends against Stripe's own description of its API.
func TestRequestsKeepStripesContract(t *testing.T) {
	a := judged(t)
	n := 0
	post := func(name, path string, body []byte) upstream.Answer {
		t.Helper()
		n++
		answer := a.Post(t.Context(), path, body, odd["tenderbox_payment"]+":confirm:2")
		if answer.Status != 200 {
			t.Errorf("%s: POST %s %s\n%d %+v", name, path, body, answer.Status, answer.Failure)
		}
		return answer
	}
	get := func(path string) upstream.Answer {
		t.Helper()
		n++
		answer := a.Get(t.Context(), path)
		if answer.Status != 200 {
			t.Errorf("GET %s\n%d %+v", path, answer.Status, answer.Failure)
		}
		return answer
	}
	for name, r := range map[string]upstream.ChargeRequest{
		"charge":            {Amount: 1999, Currency: "USD", Source: "tok_visa"},
		"charge, all of it": {Amount: 1, Currency: "jpy", Source: "tok_visa", Description: odd["%5B%5D+"] + odd["ключ.å/é"], Metadata: odd},
		"intent":            {Amount: 1999, Currency: "eur", PaymentMethod: "pm_card_visa"},
		"intent, all of it": {Amount: 99_999_999, Currency: "eur", PaymentMethod: "pm_card_visa", Description: "two", Metadata: odd},
	} {
		path, body := r.Encode()
		answer := post(name, path, body)
		if r.PaymentMethod != "" && (!answer.Made() || answer.Object.Amount != r.Amount || answer.Object.Currency != r.Currency) {
			t.Errorf("%s: an intent that is made is not understood: %+v", name, answer)
		}
	}
	for name, r := range map[string]upstream.ConfirmRequest{
		"confirm":                             {Intent: "pi_123"},
		"confirm with another payment method": {Intent: "pi_123", PaymentMethod: "pm_card_visa"},
	} {
		path, body := r.Encode()
		if answer := post(name, path, body); answer.Object.ID != "pi_123" {
			t.Errorf("%s: %+v", name, answer)
		}
	}
	for name, r := range map[string]upstream.RefundRequest{
		"refund of a charge":         {Amount: 500, Charge: "ch_123", Metadata: odd},
		"refund of an intent":        {Amount: 500, PaymentIntent: "pi_123", Metadata: odd},
		"refund of all that is left": {Charge: "ch_123"},
		"refund of a duplicate":      {Amount: 1, Charge: "ch_123", Reason: "duplicate"},
		"refund of a fraud":          {Amount: 1, PaymentIntent: "pi_123", Reason: "fraudulent"},
		"refund on request":          {Amount: 1, PaymentIntent: "pi_123", Reason: "requested_by_customer"},
	} {
		path, body := r.Encode()
		if answer := post(name, path, body); r.Amount != 0 && (answer.Object.ID == "" || answer.Object.Amount != r.Amount) {
			t.Errorf("%s: %+v", name, answer)
		}
	}
	for _, collection := range []string{upstream.PathCharges, upstream.PathIntents, upstream.PathRefunds} {
		if answer := get(collection + "/xx_123"); answer.Object.ID != "xx_123" && collection != upstream.PathCharges { // its charge was not captured
			t.Errorf("%s: %+v", collection, answer)
		}
		if answer := get(collection + "?limit=1"); answer.Outcome != upstream.Succeeded { // a probe, too
			t.Errorf("%s: %+v", collection, answer)
		}
		get(collection + "?" + url.Values{"created[gte]": {"1700000000"}, "created[lte]": {"1800000000"}, "limit": {"100"}, "starting_after": {"xx_123"}}.Encode())
		filters := []url.Values{nil}
		if collection == upstream.PathRefunds {
			filters = []url.Values{nil, {"charge": {"ch_123"}}, {"payment_intent": {"pi_123"}}}
		}
		for _, filter := range filters {
			n++
			sweep, answer := a.Sweep(t.Context(), collection, filter, time.Unix(1_000_000_000, 0), func(upstream.Object) bool { return true })
			if !sweep.Complete || sweep.Objects == 0 {
				t.Errorf("%s %v: %+v, %+v", collection, filter, sweep, answer)
			}
		}
	}
	if want := 4 + 2 + 6 + 3*4 + 2; n != want {
		t.Errorf("%d requests were judged, want %d", n, want)
	}

	// That the judge judges: each of these is one mistake away from what was accepted.
	t.Run("canaries", func(t *testing.T) {
		for name, c := range map[string]struct{ path, body string }{
			"an unknown parameter":            {"/charges", "amount=1999&currency=usd&source=tok_visa&sauce=x"},
			"an amount in words":              {"/charges", "amount=much&currency=usd&source=tok_visa"},
			"an intent without a currency":    {"/payment_intents", "amount=1999&payment_method=pm_card_visa"},
			"types that are no list":          {"/payment_intents", "amount=1999&currency=usd&payment_method_types=card"},
			"a refund for no reason there is": {"/refunds", "amount=1&charge=ch_123&reason=whim"},
			"a confirmation with an amount":   {"/payment_intents/pi_123/confirm", "amount=1999"},
			"a confirmation, half meant":      {"/payment_intents/pi_123/confirm", "error_on_requires_action=perhaps"},
		} {
			if answer := a.Post(t.Context(), c.path, []byte(c.body), "canary"); answer.Status != 400 || answer.Failure.Type != "invalid_request_error" {
				t.Errorf("%s is accepted: %+v", name, answer)
			}
		}
		for _, path := range []string{"/charges?limit=few", "/charges?charge=ch_123", "/refunds?created[gte]=soon"} {
			if answer := a.Get(t.Context(), path); answer.Status != 400 {
				t.Errorf("%s is accepted: %+v", path, answer)
			}
		}
		if answer := a.Post(t.Context(), "/payment_intents/pi_123/approve", nil, "canary"); answer.Status != 404 {
			t.Errorf("an act that there is not: %+v", answer)
		}
		_, newer := account(t, upstream.Config{URL: a.URL(), Key: "sk_test_123", Version: "2023-08-16"})
		if answer := newer.Get(t.Context(), "/charges?limit=1"); answer.Status != 400 || !strings.Contains(answer.Failure.Message, "2022-11-15") {
			t.Errorf("another version's requests are judged: %+v", answer)
		}
		_, keyless := account(t, upstream.Config{URL: a.URL()})
		if answer := keyless.Get(t.Context(), "/charges?limit=1"); answer.Status != 401 {
			t.Errorf("without a key: %+v", answer)
		}
	})
}
