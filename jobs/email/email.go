// Package email carries out the jobs of the queue `email`: `send-email` and `bulk-email`.
//
// The promise: a mail that the box took is handed over to the mail server, however long the line is down. A server that cannot be
// reached, or cannot be used (its certificate, its password), costs a job nothing: it waits and tries again after 1 to 10 minutes,
// for days if need be. What the server answers for good (5xx) fails at once, what it answers for now (4xx) is tried again after
// the job's backoff: a queue whose mails meet greylisting wants more than three attempts, or a longer delay. Without a server
// mail is kept as .eml files, and [Mailer.Status] says so.
//
// [New] makes a [Mailer] from [Options]; [Mailer.Handlers] are what a runner calls by the job's name, [Mailer.Ready] keeps it from
// leasing mail while the server is known to be down. [Mail] and [Bulk] are the jobs' data, [Sent] and [BulkResult] their results.
//
// # Handed over, refused, unknown
//
//	connect, TLS, greeting, EHLO, AUTH    any failure: the server cannot be used. Snooze, nobody tries for a while
//	MAIL, RCPT, DATA                      5xx: cancel · 4xx: retry
//	                                      421, 530, 534, 535, 538: at MAIL the server cannot be used, as above; later as the next
//	                                      connection lost: Snooze, others go on; retry once the job is five days old
//	content sent, no answer               unknown: retry, with the same Message-ID
//	250                                   handed over; nothing that happens later sends it again
//
// # After a crash
//
// Between the server's 250 and the disk's knowledge of it lies a moment (for a single mail the commit of the job's outcome, for a recipient
// of a bulk one fsync of its journal) in which a crash makes the mail go out a second time. So it is when the connection dies while
// the answer is on its way. A mail lost is worse than a mail doubled; and a mail's Message-ID follows from its
// tenant, job, data and place, so that receivers who look at it show one copy.
//
// A bulk keeps a journal of its own below [Options].Folder, a line for each recipient's outcome, synced before the next is tried.
// A retry, a crash or a retry by hand goes on with those who were not acknowledged. DESIGN.md says more.
//
// # Templates
//
// They are Go's, [html/template] and [text/template], and get the mail's data as it is; numbers keep their digits. A name that the data
// does not have fails the mail, rather than to leave a hole in it: what may be missing is read by {{index . "name"}}. Besides Go's functions there is
// {{money .amount .currency}}, which writes minor units as people do. What a template may use up is bounded (limits.go). Built in are:
//
//	welcome           name, url (both may be missing)
//	account-verified  name (may be missing)
//	receipt           order_id, amount, currency; name, items [{name, quantity, unit_amount}] (may be missing): the event order.completed
//
// # Caveats
//
//   - Addresses are ASCII before the @ (no SMTPUTF8), and are no quoted strings; names of domains may be of any script.
//   - Templates are read by [New] only.
//   - The password never leaves unencrypted, except to this machine itself.
package email

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"os"
	"time"

	"tenderbox/jobs"
)

const (
	// Queue is the queue whose jobs this package does.
	Queue = "email"
	// SendJob and BulkJob are the names of its jobs.
	SendJob = "send-email"
	BulkJob = "bulk-email"
)

const (
	folderDefault = "tenderbox-data/mail"

	// connectTimeoutDefault is for dial, TLS, greeting, EHLO and AUTH together: a satellite answers within a second or two, and
	// a worker should not stand long before a black hole.
	connectTimeoutDefault = 20 * time.Second
	// commandTimeoutDefault is for each of MAIL, RCPT and DATA. RFC 5321 (4.5.3.2) wants five minutes of servers' clients; ours come back.
	commandTimeoutDefault = time.Minute
	// answerTimeoutDefault is for the content and the answer to it. Giving up here makes a doubled mail likely, so it
	// is long (RFC 5321 4.5.3.2.6: ten minutes), but shorter than a job's default timeout.
	answerTimeoutDefault = 8 * time.Minute
)

// Options configure a Mailer. The zero value keeps mail as files below the default folder.
type Options struct {
	// SMTPURL is the mail server, SCHEME://USER:PASSWORD@HOST:PORT, user and password percent-encoded and optional. "": mail is kept as files.
	//
	//	smtp://           encrypts if the server offers it; port 587. Its certificate is checked if there is a password
	//	smtp+starttls://  encrypts by STARTTLS, or does not send; port 587
	//	smtps://          encrypts from the first byte on; port 465
	SMTPURL string

	// From is the sender, `shop@example.com` or `Shop <shop@example.com>`. "": the URL's user, if it is an address; without a server
	// tenderbox@localhost.
	From string

	// Templates is a folder with TENANT/NAME.html, .txt and .subject, each of which takes the place of the built-in one for
	// that tenant or stands beside them. "": none. New reads and checks all of them.
	Templates string

	// Folder is where .eml files (below out/) and the journals of bulks (below bulk/) are kept. "": tenderbox-data/mail.
	Folder string

	// RootCAs are trusted for the server's certificate. nil: the system's.
	RootCAs *x509.CertPool

	ConnectTimeout time.Duration // to be connected and logged in; 0: 20 s
	CommandTimeout time.Duration // for the answer to each command of a mail; 0: 1 min
	AnswerTimeout  time.Duration // to send a mail's content and hear the answer; 0: 8 min

	Logger *slog.Logger // nil: silent. It gets ids, hosts and errors; no content, no password
}

func (o Options) withDefaults() Options {
	o.Folder = cmp.Or(o.Folder, folderDefault)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, connectTimeoutDefault)
	o.CommandTimeout = cmp.Or(o.CommandTimeout, commandTimeoutDefault)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, answerTimeoutDefault)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Mailer does the jobs of the queue `email`. Its methods may be called from any number of goroutines.
type Mailer struct {
	log       *slog.Logger
	from      *mail.Address
	templates *templates
	server    *server // nil: mail is kept as files
	drop      *drop
	journals  *journals
	outage    outage
	now       func() time.Time
}

// New makes a Mailer. It reads the templates and speaks to no server. Its error joins all that is wrong with the options.
func New(o Options) (*Mailer, error) {
	o = o.withDefaults()
	m := &Mailer{log: o.Logger, now: time.Now, drop: newDrop(o.Folder, o.Logger), journals: newJournals(o.Folder, time.Now)}
	var errs []error
	note := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	notNegative := func(name string, d time.Duration) {
		if d < 0 {
			note(name, fmt.Errorf("%v is below zero", d))
		}
	}
	notNegative("connect timeout", o.ConnectTimeout)
	notNegative("command timeout", o.CommandTimeout)
	notNegative("answer timeout", o.AnswerTimeout)
	var err error
	if o.SMTPURL != "" {
		m.server, err = newServer(o)
		note("smtp url", err)
	}
	m.from, err = sender(o, m.server)
	note("from", err)
	m.templates, err = loadTemplates(o.Templates)
	note("templates", err)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("e-mail: %w", err)
	}
	return m, nil
}

// sender finds the address that mail comes from.
func sender(o Options, s *server) (*mail.Address, error) {
	switch {
	case o.From != "":
		return parseAddress(o.From)
	case o.SMTPURL == "":
		return &mail.Address{Name: "Tenderbox", Address: "tenderbox@localhost"}, nil
	case s != nil:
		if a, err := parseAddress(s.user); err == nil {
			return a, nil
		}
	}
	return nil, errors.New("an address is needed to send mail from")
}

// Handlers are the handlers of the queue `email` by the name of the job.
func (m *Mailer) Handlers() map[string]jobs.Handler {
	return map[string]jobs.Handler{SendJob: m.send, BulkJob: m.sendBulk}
}

// Ready says whether a mail would be tried now; it does not while the server was found down a moment ago. It is what a
// runner's Ready wants: mail held back by it stays waiting and costs the disk nothing.
func (m *Mailer) Ready(string) bool { return m.outage.left(m.now()) <= 0 }

// Status tells where mail goes, and whether it gets there.
type Status struct {
	Mode   string // "smtp" or "files"
	Server string // host:port; "" in mode "files"
	Folder string // where the .eml files are; "" in mode "smtp"

	DownSince time.Time // since when the server could not be used (or the folder not be written); zero: nothing is known against it
	NextTry   time.Time // nobody tries before
	LastError string    // why; without DownSince what a single mail met since the last one that got through
}

// Modes of Status.
const (
	ModeSMTP  = "smtp"
	ModeFiles = "files"
)

// Status tells where mail goes at present.
func (m *Mailer) Status() Status {
	s := Status{Mode: ModeFiles, Folder: m.drop.folder}
	if m.server != nil {
		s = Status{Mode: ModeSMTP, Server: m.server.address}
	}
	s.DownSince, s.NextTry, s.LastError = m.outage.told()
	return s
}

// helloName is how the box introduces itself: its host name, if that can be one on the network.
func helloName() string {
	name, err := os.Hostname()
	if err != nil || !isHostName(name) || net.ParseIP(name) != nil {
		return "localhost"
	}
	return name
}
