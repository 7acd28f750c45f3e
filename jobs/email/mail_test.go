package email

import (
	"encoding/json"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"ada@example.com":                      "<ada@example.com>",
		" ada@example.com ":                    "<ada@example.com>",
		"Ada Lovelace <ada@example.com>":       `"Ada Lovelace" <ada@example.com>`,
		`"Lovelace, Ada" <ada@example.com>`:    `"Lovelace, Ada" <ada@example.com>`,
		"=?utf-8?q?Ad=C3=A0?= <a@example.com>": "=?utf-8?q?Ad=C3=A0?= <a@example.com>",
		"Adà <a+b.c@example.com>":              "=?utf-8?q?Ad=C3=A0?= <a+b.c@example.com>",
		"a@Bücher.example":                     "<a@xn--bcher-kva.example>",
		"root@localhost":                       "<root@localhost>",
		strings.Repeat("a", 64) + "@b.example": "<" + strings.Repeat("a", 64) + "@b.example>",

		"": "", "ada": "", "@example.com": "", "ada@": "", "a@b@c.example": "",
		"ada@example.com, bob@example.com":               "",
		"friends: ada@example.com, bob@example.com;":     "",
		"ada@example.com>":                               "",
		"<ada@example.com> SIZE=1":                       "",
		`"a> NOTIFY=NEVER <b"@example.com`:               "",
		`"ada"@example.com`:                              "<ada@example.com>", // the quotes mean nothing
		`"a b"@example.com`:                              "",
		`"a\"b"@example.com`:                             "",
		"a..b@example.com":                               "",
		".a@example.com":                                 "",
		"añ@example.com":                                 "",
		"ada@exa mple.com":                               "",
		"ada@example.com\r\nBcc: bob@example.com":        "",
		"ada@example.com\n":                              "",
		"Ada\r\nBcc: bob@example.com <ada@example.com>":  "",
		"=?utf-8?q?A=0D=0ABcc:_b?= <ada@example.com>":    "",
		"=?utf-8?b?QQ0KQmNjOiBi?= <ada@example.com>":     "",
		"ada\x00@example.com":                            "",
		"ada\u2028@example.com":                          "",
		"ada@[127.0.0.1]":                                "",
		"ada@-example.com":                               "",
		"ada@example..com":                               "",
		"ada@exa_mple.com":                               "",
		"\xff@example.com":                               "",
		strings.Repeat("a", 65) + "@b.example":           "",
		"a@" + strings.Repeat("b.", 130) + "example":     "",
		strings.Repeat("n", 129) + " <a@b.example>":      "",
		strings.Repeat("(comment)", 100) + "a@b.example": "",
	} {
		a, err := parseAddress(in)
		got := ""
		if err == nil {
			got = a.String()
		}
		if got != want {
			t.Errorf("%q: %q (%v), want %q", in, got, err, want)
		}
	}
}

// the headers that a mail has, and no others.
var headers = []string{"Auto-Submitted", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "Subject", "To"}

// TestNoInjection throws text at every place that data can reach, and reads the mail as a receiver would: it has the headers that every mail has,
// once each, and what was thrown stands where it belongs or nowhere.
func TestNoInjection(t *testing.T) {
	m := mailer(t, nil, Options{})
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{"\r\n", "\n", "\r", "\r\n\r\n", "Bcc: x@evil.example", ": ", "=?utf-8?q?=0D=0ABcc:_x?=", "=?", "?=",
			"<", ">", "\"", "\\", ",", ";", "@", "\x00", "\u2028", "\u0085", "\t", " ", ".", "\r\n.\r\n", "--", "é", "日本語", "{{.x}}", "<script>"}),
		rapid.StringN(0, 20, 60),
	)
	text := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces"), "") })
	made := 0
	rapid.Check(t, func(rt *rapid.T) {
		in := Mail{Template: "receipt"}
		in.To = rapid.OneOf(
			rapid.Just("ada@example.com"), text,
			rapid.Map(text, func(s string) string { return s + " <ada@example.com>" }),
			rapid.Map(text, func(s string) string { return (&mail.Address{Name: s, Address: "ada@example.com"}).String() }),
		).Draw(rt, "to")
		in.Subject = rapid.OneOf(rapid.Just(""), rapid.Just("Hello"), text).Draw(rt, "subject")
		data := map[string]any{"amount": 1999, "currency": "usd", "name": text.Draw(rt, "name"), "order_id": rapid.OneOf(rapid.Just("1"), text).Draw(rt, "order")}
		in.Data, _ = json.Marshal(data)
		msg, err := m.compose(job("shop", text.Draw(rt, "job"), SendJob, "{}"), 0, &in)
		if err != nil {
			return
		}
		made++
		d := delivery{raw: msg.raw}
		got := d.message(t)
		if diff := cmp.Diff(headers, slices.Sorted(maps.Keys(got.Header))); diff != "" {
			rt.Fatalf("headers: %s\n%s", diff, msg.raw)
		}
		for name, values := range got.Header {
			if len(values) != 1 {
				rt.Fatalf("%s stands there %d times", name, len(values))
			}
		}
		to, err := got.Header.AddressList("To")
		if err != nil || len(to) != 1 || to[0].Address != msg.to {
			rt.Fatalf("To: %v, %v", to, err)
		}
		wanted := in.Subject
		if wanted == "" {
			wanted = "Your receipt for order " + data["order_id"].(string)
		}
		subject, err := new(mime.WordDecoder).DecodeHeader(got.Header.Get("Subject"))
		if err != nil || squeeze(subject) != squeeze(wanted) {
			rt.Fatalf("subject %q, %v, want %q", subject, err, wanted)
		}
		parts := partsOf(t, got)
		if len(parts) != 2 || strings.Contains(strings.ToLower(parts[1]), "<script>") {
			rt.Fatalf("%d parts\n%s", len(parts), parts[1])
		}
		for line := range strings.SplitSeq(string(msg.raw), "\r\n") {
			if len(line) > 998 || strings.ContainsAny(line, "\r\n\x00") {
				rt.Fatalf("a line that SMTP does not have: %q", line)
			}
		}
	})
	if made == 0 {
		t.Error("no mail was made at all")
	}
}

// TestSubjectIsLiteral: what looks like an encoded word is shown as it stands there, and is not decoded into something else.
func TestSubjectIsLiteral(t *testing.T) {
	m := mailer(t, nil, Options{})
	const literal = "=?utf-8?q?=0D=0ABcc:_x@evil.example?="
	msg, err := m.compose(job("shop", "j", SendJob, "{}"), 0, &Mail{To: "ada@example.com", Template: "welcome", Subject: literal})
	if err != nil {
		t.Fatal(err)
	}
	got, err := new(mime.WordDecoder).DecodeHeader(delivery{raw: msg.raw}.message(t).Header.Get("Subject"))
	if err != nil || strings.ReplaceAll(got, "\u200b", "") != literal {
		t.Errorf("%q, %v, want %q", got, err, literal)
	}
}

// squeeze ignores how blanks were folded, and U+200B.
func squeeze(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "\u200b", "")), " ")
}

// partsOf decodes the parts of a mail.
func partsOf(t testing.TB, m *mail.Message) []string {
	t.Helper()
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/alternative" {
		t.Fatalf("%s: %v", kind, err)
	}
	var all []string
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"text/plain; charset=UTF-8", "text/html; charset=UTF-8"}[len(all)]
		if got := p.Header.Get("Content-Type"); got != want {
			t.Errorf("part of type %q, want %q", got, want)
		}
		b, err := io.ReadAll(quotedprintable.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
}
