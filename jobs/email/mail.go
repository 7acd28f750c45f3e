package email

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/idna"
)

const (
	// recipientsMax mails go into one bulk job: its result has to tell about each of them in one MiB, and its data has a limit of one MiB anyway.
	recipientsMax = 1000

	// dataBytesMax is what one mail's template gets. An order of a few hundred items fits.
	dataBytesMax = 64 << 10

	// subjectBytesMax: nobody's list of mails shows more, and RFC 5322 ends a line at 998 bytes.
	subjectBytesMax = 255

	localBytesMax, addressBytesMax = 64, 254 // RFC 5321 4.5.3.1
	nameBytesMax                   = 128     // of a person in front of an address

	clipMax = 64 // bytes of a client's own words that an error repeats
)

// Mail is the data of a job `send-email`.
type Mail struct {
	To       string         `json:"to"`                // one address, with or without a name
	Subject  string         `json:"subject,omitempty"` // "": the template's
	Template string         `json:"template"`          // welcome, account-verified, receipt, or one of the tenant's own
	Data     jsontext.Value `json:"data,omitempty"`    // an object: what the template shows
}

// Bulk is the data of a job `bulk-email`.
type Bulk struct {
	Emails []Mail `json:"emails"`
}

// Sent is the result of a job `send-email`.
type Sent struct {
	To        string `json:"to"`
	MessageID string `json:"message_id"`
	File      string `json:"file,omitempty"` // its name in the tenant's folder, when there is no mail server
}

// errNoTemplate: neither a built-in template nor one of the tenant's.
var errNoTemplate = errors.New("no such template")

// decode reads a job's data strictly. Errors name the member, never its value.
func decode(data []byte, v any) error {
	err := json.Unmarshal(data, v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	var syntax *jsontext.SyntacticError
	var meaning *json.SemanticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return fmt.Errorf("data%s: this member stands there twice", member(syntax.JSONPointer))
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &meaning):
		return fmt.Errorf("data%s: there is no such member", member(meaning.JSONPointer))
	case errors.As(err, &meaning):
		return fmt.Errorf("data%s: the value is of the wrong type", member(meaning.JSONPointer))
	}
	return errors.New("data: not one JSON object in UTF-8")
}

// member writes a JSON pointer as .a.b, clipped: the names may be whatever a client made up.
func member(at jsontext.Pointer) string {
	var b strings.Builder
	for token := range at.Tokens() {
		b.WriteByte('.')
		b.WriteString(token)
	}
	return clip(b.String())
}

// clip makes what a client made up fit for an error.
func clip(s string) string {
	s = strings.Map(printable, s)
	if len(s) > clipMax {
		s = strings.ToValidUTF8(s[:clipMax], "") + "…"
	}
	return s
}

// values are a mail's data as templates see them. Numbers keep their digits: an amount is no float.
func (m *Mail) values() (map[string]any, error) {
	v := map[string]any{}
	if len(m.Data) == 0 || m.Data.Kind() == 'n' {
		return v, nil
	}
	if len(m.Data) > dataBytesMax {
		return nil, fmt.Errorf("data: %d bytes, a template takes up to %d", len(m.Data), dataBytesMax)
	}
	if m.Data.Kind() != '{' {
		return nil, errors.New("data: must be an object")
	}
	d := stdjson.NewDecoder(bytes.NewReader(m.Data)) // its syntax was checked strictly with the rest
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("data: not a JSON object")
	}
	return v, nil
}

// parseAddress takes one address, `a@b.example` or `Name <a@b.example>`, and nothing that means something else to somebody: no
// groups, comments' tricks, quoted or non-ASCII local parts, address literals, control characters.
func parseAddress(s string) (*mail.Address, error) {
	if len(s) > addressBytesMax+nameBytesMax+len(` "" <>`)+nameBytesMax { // a name's quotes may be escaped
		return nil, errors.New("too long for an address")
	}
	if !utf8.ValidString(s) || hasControl(s) {
		return nil, errors.New("an address has no control characters")
	}
	a, err := mail.ParseAddress(s)
	if err != nil {
		return nil, errors.New("not an address like a@b.example or Name <a@b.example>")
	}
	if len(a.Name) > nameBytesMax || hasControl(a.Name) { // it was decoded: encoded words can hide line breaks
		return nil, fmt.Errorf("the name in front of the address: use up to %d bytes, no control characters", nameBytesMax)
	}
	at := strings.LastIndexByte(a.Address, '@')
	local, domain := a.Address[:at], a.Address[at+1:]
	if !isDotAtom(local) || len(local) > localBytesMax {
		return nil, fmt.Errorf("in front of the @ up to %d letters, digits and signs of ASCII are taken", localBytesMax)
	}
	domain, err = idna.Lookup.ToASCII(domain)
	if err != nil || !isHostName(domain) {
		return nil, errors.New("what follows the @ is no domain")
	}
	a.Address = local + "@" + domain
	if len(a.Address) > addressBytesMax {
		return nil, fmt.Errorf("longer than %d bytes", addressBytesMax)
	}
	return a, nil
}

// checkSubject refuses what cannot stand in one header line.
func checkSubject(s string) error {
	switch {
	case strings.TrimSpace(s) == "":
		return errors.New("subject: is empty")
	case len(s) > subjectBytesMax:
		return fmt.Errorf("subject: %d bytes, up to %d are taken", len(s), subjectBytesMax)
	case !utf8.ValidString(s), hasControl(s):
		return errors.New("subject: line breaks and other control characters are refused")
	}
	return nil
}

// hasControl finds control characters, and the two separators of Unicode that end a line as well.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' })
}

// isDotAtom knows RFC 5321's Dot-string.
func isDotAtom(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" {
			return false
		}
		for i := range len(part) {
			c := part[i]
			if !isAlnum(c) && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) < 0 {
				return false
			}
		}
	}
	return true
}

// isHostName knows names of hosts: DNS labels, in ASCII.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !isAlnum(c) && c != '-' {
				return false
			}
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// printable is for strings.Map: what a log line should not hold becomes a question mark.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return '?'
	}
	return r
}
