package email

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"net/url"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

const (
	// sessionMailsMax mails go over one connection; many servers end it after a hundred.
	sessionMailsMax = 50

	quitTimeout = 2 * time.Second // for the answer to QUIT, which nobody needs

	answerTextMax = 200 // bytes of what the server said that an error repeats
	overlapMin    = 16  // as many bytes of the mail's own text in an answer, and the answer is not repeated
)

// stage says how far a mail got, for people.
type stage string

const (
	stageConnect  stage = "connecting"
	stageTLS      stage = "TLS"
	stageGreeting stage = "greeting"
	stageHello    stage = "EHLO"
	stageAuth     stage = "AUTH"
	stageMail     stage = "MAIL"
	stageRcpt     stage = "RCPT"
	stageData     stage = "DATA"
	stageAnswer   stage = "the answer to the mail"
	stageFile     stage = "keeping the mail as a file"
)

// fate is what an error means for the mail.
type fate int

const (
	unusable    fate = iota // nothing was handed over, and it has nothing to do with the mail: the server cannot be used now
	lost                    // nothing was handed over: the connection died on the way, or the server has no time for this mail
	temporary               // refused for now
	permanent               // refused for good
	unknown                 // sent, and no answer came
	interrupted             // nothing was handed over: the job's time, or the box's, is over
)

// sendError is a mail that was not acknowledged. Its text holds neither password nor content.
type sendError struct {
	fate  fate
	stage stage
	code  int // the server's answer; 0: there was none
	text  string
	err   error // ctx's, when interrupted
}

func (e *sendError) Error() string {
	var b strings.Builder
	switch e.fate {
	case unknown:
		b.WriteString("the mail was sent, and whether the server took it is unknown: ")
	case permanent, temporary:
		b.WriteString("the mail server refused: ")
	case interrupted:
		b.WriteString("interrupted: ")
	case unusable, lost:
		if e.stage != stageFile {
			b.WriteString("the mail server cannot be used: ")
		}
	}
	b.WriteString(string(e.stage))
	if e.code != 0 {
		fmt.Fprintf(&b, ": %d", e.code)
	}
	if e.text != "" {
		fmt.Fprintf(&b, ": %s", e.text)
	}
	return b.String()
}

func (e *sendError) Unwrap() error { return e.err }

// unavailable are answers that are not about the mail: the server is about to leave (421), or wants a login, or a better one (RFC 4954).
var unavailable = map[int]bool{421: true, 530: true, 534: true, 535: true, 538: true}

// fateOf tells what an error of a carrier means.
func fateOf(err error) fate {
	var e *sendError
	if errors.As(err, &e) {
		return e.fate
	}
	return temporary // a fault of ours: it costs an attempt and ends
}

// failed judges an error at a stage. secret is the text of the mail, if the server has seen it.
func (s *server) failed(ctx context.Context, at stage, err error, secret string) *sendError {
	e := &sendError{fate: unusable, stage: at}
	var answer *textproto.Error
	switch beforeMail := at != stageMail && at != stageRcpt && at != stageData && at != stageAnswer; {
	case errors.As(err, &answer):
		e.code = answer.Code
		if at != stageAuth { // what was said about a password may repeat it in any form
			e.text = s.repeat(answer.Msg, secret)
		}
		switch {
		case beforeMail:
		case unavailable[answer.Code] && at == stageMail:
		case unavailable[answer.Code]: // perhaps because of the recipient, whom a tenant chose: others' mail must not wait for it
			e.fate = lost
		case answer.Code >= 500 && answer.Code <= 599:
			e.fate = permanent
		case answer.Code >= 400 && answer.Code <= 499:
			e.fate = temporary
		case at == stageAnswer:
			e.fate = unknown
		default: // a digit that the protocol does not have here
			e.fate = temporary
		}
		return e
	case at == stageAnswer:
		e.fate = unknown
	case ctx.Err() != nil:
		e.fate, e.err, e.text = interrupted, context.Cause(ctx), ctx.Err().Error()
		return e
	case !beforeMail:
		e.fate = lost
	}
	e.text = s.repeat(err.Error(), secret)
	return e
}

// repeat makes foreign text fit for errors and logs: one line, short, and without what must not be seen.
func (s *server) repeat(text, secret string) string {
	text = strings.ToValidUTF8(strings.Map(printable, strings.ReplaceAll(text, "\n", " ")), "?")
	if s.password != "" {
		b64 := base64.StdEncoding.EncodeToString
		for _, form := range []string{
			b64([]byte("\x00" + s.user + "\x00" + s.password)), b64([]byte(s.password)), s.password,
			url.QueryEscape(s.password), url.PathEscape(s.password), hex.EncodeToString([]byte(s.password)),
		} {
			text = strings.ReplaceAll(text, form, "…")
		}
	}
	if len(text) > answerTextMax {
		text = strings.ToValidUTF8(text[:answerTextMax], "") + "…"
	}
	for i := 0; i+overlapMin <= len(text); i++ {
		if strings.Contains(secret, text[i:i+overlapMin]) {
			return "(the answer repeats the mail)"
		}
	}
	return text
}

// session is a connection over which mail can be handed over. One goroutine has it.
type session struct {
	s       *server
	conn    net.Conn
	c       *smtp.Client
	unwatch func() bool
	mails   int
}

// within bounds what is said until the next call.
func (x *session) within(d time.Duration) error { return x.conn.SetDeadline(time.Now().Add(d)) }

// deliver hands one mail over. nil: the server said that it has it. After an error the session may be unusable: usable tells.
func (x *session) deliver(ctx context.Context, m *message, from string) error {
	x.mails++
	at, err := x.transact(m, from)
	if err == nil {
		return nil
	}
	secret := ""
	if at == stageData || at == stageAnswer {
		secret = m.secret
	}
	failed := x.s.failed(ctx, at, err, secret)
	refused := failed.code >= 400 && (failed.fate == permanent || failed.fate == temporary)
	if !refused || x.within(x.s.commandTimeout) != nil || x.c.Reset() != nil {
		x.drop()
	}
	return failed
}

// transact is one mail transaction. The terminating dot goes out by Close alone, so an error before it means that the
// server has no mail; that is why a broken session is dropped and not ended politely, which would send a dot as well.
func (x *session) transact(m *message, from string) (stage, error) {
	s := x.s
	if err := x.within(s.commandTimeout); err != nil {
		return stageMail, err
	}
	if err := x.c.Mail("<" + from + ">"); err != nil {
		return stageMail, err
	}
	if err := x.within(s.commandTimeout); err != nil {
		return stageRcpt, err
	}
	if err := x.c.Rcpt("<" + m.to + ">"); err != nil {
		return stageRcpt, err
	}
	if err := x.within(s.commandTimeout); err != nil {
		return stageData, err
	}
	w, err := x.c.Data()
	if err != nil {
		return stageData, err
	}
	if err := x.within(s.answerTimeout); err != nil {
		return stageData, err
	}
	if _, err := w.Write(m.raw); err != nil {
		return stageData, err
	}
	return stageAnswer, w.Close()
}

// usable says whether another mail can go over this session.
func (x *session) usable() bool { return x.conn != nil && x.mails < sessionMailsMax }

// drop cuts the connection.
func (x *session) drop() {
	if x.conn == nil {
		return
	}
	x.unwatch()
	x.conn.Close()
	x.conn = nil
}

// close says goodbye, if there still is somebody.
func (x *session) close() {
	if x.conn == nil {
		return
	}
	if x.within(quitTimeout) == nil {
		_ = x.c.Quit() // all mails are acknowledged already; what it answers changes nothing
	}
	x.drop()
}
