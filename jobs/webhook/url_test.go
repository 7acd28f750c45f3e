package webhook

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// The hostile list of RELIABILITY.md: what may be saved, without the LAN and with it.
func TestValidateURL(t *testing.T) {
	const no, lan, yes = "", "lan", "yes" // never; if the operator allows the LAN; always
	for raw, want := range map[string]string{
		"https://shop.example/hooks":              yes,
		"https://SHOP.Example./hooks?token=a%20b": yes,
		"https://shop.example:443":                yes,
		"https://shop.example:80/":                yes, // odd, but the web's
		"https://shop.example:8443/x":             yes,
		"https://xn--mnchen-3ya.example/":         yes,
		"https://my_host.example/":                yes,
		"https://93.184.216.34/":                  yes,
		"https://[2606:2800:220:1::1]/":           yes,
		"https://[64:ff9b::5db8:d822]/":           yes, // 93.184.216.34 as an IPv6-only line reaches it

		"http://shop.example/":       lan,
		"http://127.0.0.1:8080/":     lan,
		"https://127.0.0.1/":         lan,
		"https://127.255.255.254/":   lan,
		"https://10.0.0.1/":          lan,
		"https://172.16.0.1/":        lan,
		"https://192.168.1.10:3000/": lan,
		"https://100.64.0.1/":        lan,
		"https://[::1]/":             lan,
		"https://[fd00::1]/":         lan,
		"https://localhost/":         lan,
		"https://LOCALHOST:8080/":    lan,
		"https://a.localhost./":      lan,
		"https://printer/":           lan,
		"https://till.local/":        lan,
		"https://metadata.internal/": lan,
		"https://nas.home.arpa/":     lan,

		"":                                                       no,
		"shop.example":                                           no,
		"//shop.example/":                                        no,
		"/hooks":                                                 no,
		"file:///etc/passwd":                                     no,
		"file://shop.example/etc/passwd":                         no,
		"ftp://shop.example/":                                    no,
		"gopher://shop.example:6379/_x":                          no,
		"javascript:alert(1)":                                    no,
		"https:shop.example":                                     no,
		"https:///hooks":                                         no,
		"https://":                                               no,
		"https://user@shop.example/":                             no,
		"https://user:pw@shop.example/":                          no,
		"https://@shop.example/":                                 no,
		"https://shop.example@10.0.0.1/":                         no,
		"https://shop.example/#x":                                no,
		"https://shop.example/#":                                 no,
		"https://shop.example:/":                                 no,
		"https://shop.example:0/":                                no,
		"https://shop.example:22/":                               no,
		"https://shop.example:25/":                               no,
		"https://shop.example:53/":                               no,
		"https://shop.example:0443/":                             no,
		"https://shop.example:6000/":                             no,
		"https://shop.example:6667/":                             no,
		"https://shop.example:65536/":                            no,
		"https://shop.example:99999999999/":                      no,
		"https://shop.example:http/":                             no,
		"https://shop.example:-1/":                               no,
		"https://2130706433/":                                    no, // 127.0.0.1 in decimal
		"https://0x7f000001/":                                    no,
		"https://0x7f.0.0.1/":                                    no,
		"https://0177.0.0.1/":                                    no,
		"https://127.1/":                                         no,
		"https://127.0.0.1./":                                    no,
		"https://127.0.0.01/":                                    no,
		"https://256.256.256.256/":                               no,
		"https://1.2.3.4.5/":                                     no,
		"https://a.0x1/":                                         no,
		"https://[::ffff:127.0.0.1]/":                            no, // mapped
		"https://[::ffff:7f00:1]/":                               no,
		"https://[::ffff:93.184.216.34]/":                        no,
		"https://[::127.0.0.1]/":                                 no, // compatible, deprecated
		"https://[64:ff9b::7f00:1]/":                             no, // NAT64 of 127.0.0.1
		"https://[64:ff9b::a00:1]/":                              no,
		"https://[64:ff9b:1::1]/":                                no,
		"https://[2002:7f00:1::]/":                               no, // 6to4
		"https://[2001::1]/":                                     no, // Teredo
		"https://[fe80::1]/":                                     no,
		"https://[fe80::1%25eth0]/":                              no,
		"https://[ff02::1]/":                                     no,
		"https://[::]/":                                          no,
		"https://[::1/":                                          no,
		"https://::1/":                                           no,
		"https://[shop.example]/":                                no,
		"https://[127.0.0.1]/":                                   no,
		"https://0.0.0.0/":                                       no,
		"https://169.254.169.254/latest":                         no,
		"https://224.0.0.1/":                                     no,
		"https://255.255.255.255/":                               no,
		"https://192.0.2.1/":                                     no,
		"https://198.18.0.1/":                                    no,
		"https://127.0.0.1\\@shop.example/":                      no,
		"https://shop.example\\.evil/":                           no,
		"https://shop.example/a b":                               no,
		"https://shop.example/\r\nX: y":                          no,
		"https://shop.example/\x00":                              no,
		"https://münchen.example/":                               no,
		"https://１２７.0.0.1/":                                     no,
		"https://127。0。0。1/":                                     no,
		"https://%31%32%37.0.0.1/":                               no,
		"https://shop.example%00/":                               no,
		"https://ex%E2%84%A1mple.com/":                           no,
		"https://-a.example/":                                    no,
		"https://a..example/":                                    no,
		"https://*.example/":                                     no,
		"https://shop.example/%zz":                               no,
		"https://" + strings.Repeat("a", 64) + ".example/":       no,
		"https://" + strings.Repeat("a.", 130) + "example/":      no,
		"https://shop.example/" + strings.Repeat("a", urlMax-20): no,
	} {
		for _, allowLAN := range []bool{false, true} {
			err := ValidateURL(raw, allowLAN)
			if ok := want == yes || want == lan && allowLAN; ok != (err == nil) {
				t.Errorf("%.80q, LAN %v: %v", raw, allowLAN, err)
			}
			var u *URLError
			if err != nil && (!errors.As(err, &u) || !strings.HasPrefix(err.Error(), "url: ")) {
				t.Errorf("%.80q: %v does not name url", raw, err)
			}
		}
	}
}

// Whatever is taken can be requested, goes to the host that was judged, and leads to no address that is refused.
func FuzzValidateURL(f *testing.F) {
	for _, s := range []string{"https://shop.example/", "http://127.0.0.1:80", "https://[::1]:443/?a=b", "https://a@b/", "https://0x7f.1", "https://[::ffff:1.2.3.4]/", "https://a%2eb/", "HTTPS://A.b:1024"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		public, lan := ValidateURL(raw, false) == nil, ValidateURL(raw, true) == nil
		if public && !lan {
			t.Errorf("%q: what is taken without the LAN is refused with it", raw)
		}
		if !lan {
			return
		}
		req, err := http.NewRequest(http.MethodPost, raw, nil)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		if req.URL.User != nil || req.URL.Scheme != "https" && (public || req.URL.Scheme != "http") || strings.ContainsAny(req.URL.Host, "\r\n @/\\%") {
			t.Errorf("%q became %+v", raw, req.URL)
		}
		if a, err := netip.ParseAddr(req.URL.Hostname()); err == nil && guardFor(!public).check(a) != nil {
			t.Errorf("%q leads to %v", raw, a)
		}
		if again, err := url.Parse(req.URL.String()); err != nil || again.Host != req.URL.Host {
			t.Errorf("%q reads differently the second time", raw)
		}
	})
}
