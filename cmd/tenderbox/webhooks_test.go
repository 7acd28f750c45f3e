package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

const webhooksPath = "/api/v1/webhooks"

// addHook adds an endpoint that must be taken, and returns its secret.
func addHook(t *testing.T, b *box, url string) string {
	t.Helper()
	var made struct {
		Secret string `json:"secret"`
	}
	if err := b.do(t.Context(), http.MethodPost, webhooksPath, map[string]any{"url": url}, &made); err != nil {
		t.Fatal(err)
	}
	return made.Secret
}

// RELIABILITY.md, "Hostile input": webhook URL.
func TestHostileWebhookURLs(t *testing.T) {
	refused := []string{"", "shop.example", "//shop.example/x", "file:///etc/passwd", "ftp://shop.example/", "gopher://shop.example/", "javascript:alert(1)", "https:shop.example",
		"https://user@shop.example/", "https://user:pw@shop.example/", "https://shop.example@127.0.0.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/",
		"https://[::ffff:127.0.0.1]/", "https://[::ffff:8.8.8.8]/", "https://169.254.169.254/latest/meta-data/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/", "https://0.0.0.0/",
		"https://224.0.0.1/", "https://255.255.255.255/", "https://shop.example:22/", "https://shop.example:25/", "https://shop.example:6667/", "https://shop.example:0/", "https://shop.example:99999/",
		"https://shop.example/#x", "https://shop.example/a b", "https://shop.example/\r\nX: y", "https://shop.exämple/", "https://shop.example/\\..", "https://" + strings.Repeat("a", 3000) + ".example/"}
	lan := []string{"https://127.0.0.1/", "https://localhost/", "https://localhost.:8443/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://100.64.0.1/", "https://[::1]/",
		"https://[fd00::1]/", "https://printer/", "https://till.local/", "https://metadata.google.internal/", "http://shop.example/", "http://127.0.0.1:8080/"}
	public := []string{"https://shop.example/hooks?token=x", "https://shop.example:8443/", "https://8.8.8.8/", "https://xn--shp-hna.example/"}
	for _, allow := range []bool{false, true} {
		t.Run(fmt.Sprintf("LAN allowed: %v", allow), func(t *testing.T) {
			b := startApp(t, Config{WebhookAllowLAN: allow}).client()
			save := func(url string, want bool) {
				t.Helper()
				var made struct {
					ID string `json:"id"`
				}
				err := b.do(t.Context(), http.MethodPost, webhooksPath, map[string]any{"url": url}, &made)
				if want && err != nil || !want && (err == nil || !strings.Contains(err.Error(), "[url_invalid]")) {
					t.Errorf("%.80q: %v", url, err)
				}
				if err == nil { // there is room for sixteen
					err = b.do(t.Context(), http.MethodDelete, webhooksPath+"/"+made.ID, nil, nil)
				} else if strings.Contains(url, "pw") && strings.Contains(err.Error(), "pw") {
					t.Errorf("the refusal repeats %s: %v", url, err)
				}
				if want && err != nil {
					t.Error(err)
				}
			}
			for _, url := range refused {
				save(url, false)
			}
			for _, url := range lan {
				save(url, allow)
			}
			for _, url := range public {
				save(url, true)
			}
			// Nor by the back door.
			addHook(t, b, public[0])
			var list struct {
				Data []struct {
					ID string `json:"id"`
				} `json:"data"`
			}
			if err := b.do(t.Context(), http.MethodGet, webhooksPath, nil, &list); err != nil || len(list.Data) != 1 {
				t.Fatal(list, err)
			}
			err := b.do(t.Context(), http.MethodPatch, webhooksPath+"/"+list.Data[0].ID, map[string]any{"url": "https://169.254.169.254/"}, nil)
			if err == nil || !strings.Contains(err.Error(), "[url_invalid]") {
				t.Errorf("changed to a forbidden address: %v", err)
			}
		})
	}
}

// Endpoints that never answer take their own tenant's share of the workers, and no more: others' events pass. And a stop leaves no
// connection behind.
func TestHangingEndpointHoldsUpNobodyElse(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r := startApp(t, Config{WebhookAllowLAN: true})
	b := r.client()
	held := make(chan struct{}, 2*webhookWorkers)
	ctx, release := context.WithCancel(context.Background())
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case held <- struct{}{}:
		default: // more than this are no better
		}
		<-ctx.Done()
	}))
	defer hanging.Close()
	defer release()
	addHook(t, b, hanging.URL)
	emit := func(b *box, header http.Header, n int) {
		t.Helper()
		for range n {
			if err := b.send(t.Context(), http.MethodPost, "/api/v1/events", header, map[string]any{"type": "till.opened"}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	emit(b, http.Header{}, webhookWorkers+1)
	for range webhookTenantMax {
		<-held
	}

	operator := &stage{data: r.config.Data}
	o, err := operator.as(operatorTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	o.client.Transport = b.client.Transport
	if err := o.do(t.Context(), http.MethodPost, tenantsPath, map[string]any{"id": "other"}, nil); err != nil {
		t.Fatal(err)
	}
	rc := newReceiver()
	defer rc.server.Close()
	asOther := func() http.Header { return http.Header{"X-Tenant-Id": {"other"}} }
	var made struct {
		Secret string `json:"secret"`
	}
	if err := o.send(t.Context(), http.MethodPost, webhooksPath, asOther(), map[string]any{"url": rc.server.URL}, &made); err != nil {
		t.Fatal(err)
	}
	rc.trusts(made.Secret)
	emit(o, asOther(), 10)
	err = rc.wait("ten events of the other tenant", func(context.Context) error { return nil }, func() bool { return len(rc.seen) == 10 })
	if err != nil {
		t.Error(err)
	}
	// Without a share all workers would hang by now: the ten would have had to wait until attempts are given up.
	if n := webhookTenantMax + len(held); n >= webhookWorkers {
		t.Errorf("%d of %d workers hang with one tenant", n, webhookWorkers)
	}
	release()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	hanging.Close()
	rc.server.Close()
	nothingRuns(t, before)
}
