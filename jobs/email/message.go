package email

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"

	gomail "github.com/wneessen/go-mail"

	"tenderbox/jobs"
)

// message is one mail to one recipient, ready to be handed over.
type message struct {
	to     string // for RCPT TO
	id     string // Message-ID without its angle brackets
	file   string // what it is called when kept as a file
	raw    []byte // as it goes over the wire, but for SMTP's dots
	secret string // its parts as people read them: never to be seen in an error
}

// identify makes the Message-ID of the nth mail of a job, always the same. The job's data belongs to it, because an id may be used
// again for another mail once its job is gone.
func (m *Mailer) identify(j *jobs.Job, n int) string {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(j.Tenant), []byte(j.Queue), []byte(j.ID), j.Data, binary.BigEndian.AppendUint64(nil, uint64(n))} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	name := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:20])
	return strings.ToLower(name) + m.from.Address[strings.LastIndexByte(m.from.Address, '@'):]
}

// compose makes the nth mail of a job. Errors are for good, because the same data gives the same error; all but errSlow.
func (m *Mailer) compose(j *jobs.Job, n int, mail *Mail) (*message, error) {
	to, err := parseAddress(mail.To)
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	values, err := mail.values()
	if err != nil {
		return nil, err
	}
	c, err := m.templates.render(j.Tenant, mail.Template, values)
	if err != nil {
		return nil, err
	}
	if mail.Subject != "" {
		c.subject = mail.Subject
	}
	if err := checkSubject(c.subject); err != nil {
		return nil, err
	}
	id := m.identify(j, n)
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent(), gomail.WithBoundary("tenderbox-"+id[:32]))
	msg.FromMailAddress(m.from)
	msg.ToMailAddress(to)
	msg.Subject(plainSubject(c.subject))
	msg.SetMessageIDWithValue(id)
	msg.SetDateWithValue(m.now())                        // when it leaves: a date days ago, or one of a clock that was not set yet, looks like spam
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no holiday notes in return
	msg.SetBodyString(gomail.TypeTextPlain, c.text)
	if c.html != "" {
		msg.AddAlternativeString(gomail.TypeTextHTML, c.html)
	}
	var raw bytes.Buffer
	if _, err := msg.WriteTo(&raw); err != nil {
		return nil, fmt.Errorf("composing: %w", err)
	}
	return &message{
		to: to.Address, id: id, raw: raw.Bytes(), secret: c.text + "\n" + c.html,
		file: j.CreatedAt.UTC().Format("20060102T150405Z") + "-" + id[:32] + ".eml",
	}, nil
}

// plainSubject keeps a subject that looks like an encoded word (RFC 2047) from being decoded into something else: the space of no width makes
// that it is encoded itself.
func plainSubject(s string) string { return strings.ReplaceAll(s, "=?", "=\u200b?") }
