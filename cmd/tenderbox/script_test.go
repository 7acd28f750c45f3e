package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds each wait of a script. Nothing waits by the clock: it only ends what would never come.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tenderbox": main})
}

// TestScripts runs what operators are promised, one promise a file, against the real program. Besides
// testscript's own commands there are those of scriptCommands.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                scriptCommands,
		Setup: func(env *testscript.Env) error {
			st, err := newStage(env.WorkDir)
			if err != nil {
				return err
			}
			env.Defer(st.clear)
			env.Values[stageKey{}] = st
			env.Setenv("DATA", st.data)
			env.Setenv("UPSTREAM", st.upstream)
			return nil
		},
	})
}

// scriptCommands are the commands that a script has besides those of testscript.
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	// start [flags]: starts a box on $DATA with the stage's processor, and returns when it has told the
	// service manager that it is ready.
	"start": command(func(s *stage, ts *testscript.TestScript, args []string) error { return s.start(ts, args) }),
	// start-on-terminal FILE [flags]: the same with standard output on a terminal; FILE then gets what it showed.
	"start-on-terminal": command(func(s *stage, ts *testscript.TestScript, args []string) error {
		return s.startOnTerminal(ts, ts.MkAbs(args[0]), args[1:])
	}),
	// term: SIGTERM; the box must leave with status 0.
	"term": command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.term() }),
	// kill9: SIGKILL.
	"kill9": command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.kill() }),
	// cut, restore: the line between box and processor.
	"cut":     command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.processor.Cut(true) }),
	"restore": command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.processor.Cut(false) }),
	// control ORDER: what POST /_control of the processor takes.
	"control": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.control(args[0]) }),
	// until STATE: waits until the box says that connectivity is STATE.
	"until": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.until(args[0]) }),
	// pay N CLIENTS: so many payments by so many clients at once; each must be answered 201.
	"pay": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.pay(args[0], args[1]) }),
	// pay-and-term N: pays without pause, and sends SIGTERM when N were answered; the box must leave with status 0.
	"pay-and-term": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.payAndTerm(args[0]) }),
	// kept: each payment that was answered is there, with its amount, and each key still means its payment.
	"kept": command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.kept() }),
	// settled N: waits until nothing is left to settle; then every payment has succeeded, and the processor's
	// book has exactly one charge for each, N in all, with equal sums.
	"settled": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.settled(args[0]) }),
	// alarm CODE: the box's status holds that alarm.
	"alarm": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.alarm(args[0]) }),
	// analytics FILE: waits until every event is counted; then the sums are those of the payments of pay, all of which must be
	// settled. FILE gets them.
	"analytics": command(func(s *stage, ts *testscript.TestScript, args []string) error { return s.analytics(ts.MkAbs(args[0])) }),
	// ask [-operator] [-as TENANT] METHOD PATH [BODY]: a request as curl would make it; the status and the answer go to
	// standard output. Without -operator with the first tenant's key.
	"ask": command(func(s *stage, ts *testscript.TestScript, args []string) error { return s.ask(ts, args) }),
	// await PATTERN METHOD PATH: asks until the answer matches, as what follows by a job does after a moment.
	"await": command(func(s *stage, ts *testscript.TestScript, args []string) error { return s.await(ts, args[0], args[1:]) }),
	// take VAR MEMBER: sets VAR to a member of the last answer, such as jobs.0.id.
	"take": command(func(s *stage, ts *testscript.TestScript, args []string) error {
		value, err := memberOf(s.answer, args[1])
		ts.Setenv(args[0], value)
		return err
	}),
	// mail-up, mail-down: the mail server; $SMTP is its URL once it was up.
	"mail-up": command(func(s *stage, ts *testscript.TestScript, _ []string) error {
		err := s.mail.up()
		ts.Setenv("SMTP", "smtp://"+s.mail.address)
		return err
	}),
	"mail-down": command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.mail.down() }),
	// mail-arrived 'ADDRESS: SUBJECT'…: waits until these mails are there, each once, and no other.
	"mail-arrived": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.mail.arrived(args) }),
	// promote QUEUE: waits until jobs of the queue are put off, and makes them due.
	"promote": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.promote(args[0]) }),
	// receiver NAME: a receiver of webhooks; $NAME is its URL.
	"receiver": command(func(s *stage, ts *testscript.TestScript, args []string) error {
		s.receivers[args[0]] = newReceiver()
		ts.Setenv(args[0], s.receivers[args[0]].server.URL)
		return nil
	}),
	// trusts NAME SECRET: it takes what is signed with this secret.
	"trusts": command(func(s *stage, _ *testscript.TestScript, args []string) error {
		r, err := s.receiver(args[0])
		if err == nil {
			r.trusts(args[1])
		}
		return err
	}),
	// answers NAME ANSWER…: what it answers to the next requests: a status, cut (the connection) or hang (until the box is gone).
	"answers": command(func(s *stage, _ *testscript.TestScript, args []string) error {
		r, err := s.receiver(args[0])
		if err == nil {
			err = r.tell(args[1:])
		}
		return err
	}),
	// hanging NAME: waits until a request hangs.
	"hanging": command(func(s *stage, _ *testscript.TestScript, args []string) error {
		r, err := s.receiver(args[0])
		if err == nil {
			err = r.wait("hanging", func(context.Context) error { return nil }, func() bool { return r.held > 0 })
		}
		return err
	}),
	// attempts NAME 'TYPE SUBJECT' N: waits until the first tenant's event was tried N times, and makes each attempt due that
	// waits for its time.
	"attempts": command(func(s *stage, _ *testscript.TestScript, args []string) error {
		return s.attempts(args[0], args[1], args[2])
	}),
	// heard NAME 'TYPE SUBJECT'…: waits until it has taken these events, and holds that no others came.
	"heard": command(func(s *stage, _ *testscript.TestScript, args []string) error {
		r, err := s.receiver(args[0])
		if err == nil {
			err = r.heard(args[1:])
		}
		return err
	}),
	// hear N: reads N events of the stream, going on behind the last that was heard.
	"hear": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.hear(args[0]) }),
	// heard-all: what was heard is what the log has, each event once.
	"heard-all": command(func(s *stage, _ *testscript.TestScript, _ []string) error { return s.heardAll() }),
	// lease-and-term QUEUE: waits for a job of QUEUE, and sends SIGTERM meanwhile; the box must answer that there is none, and
	// leave with status 0.
	"lease-and-term": command(func(s *stage, _ *testscript.TestScript, args []string) error { return s.leaseAndTerm(args[0]) }),
	// flip FILE TEXT: changes one byte of each place where FILE holds TEXT, as a bad disk does.
	"flip": command(func(_ *stage, ts *testscript.TestScript, args []string) error {
		return flip(ts.MkAbs(args[0]), args[1])
	}),
	// certificate CERT KEY: writes a certificate for pay.shop.example and its key.
	"certificate": command(func(_ *stage, ts *testscript.TestScript, args []string) error {
		return certificate(ts.MkAbs(args[0]), ts.MkAbs(args[1]))
	}),
	// first-payment VAR: the id of the first payment that was taken.
	"first-payment": command(func(s *stage, ts *testscript.TestScript, args []string) error {
		ts.Setenv(args[0], string(s.taken[0].ID))
		return nil
	}),
}

type stageKey struct{}

func command(do func(*stage, *testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := do(ts.Value(stageKey{}).(*stage), ts, args)
		if (err != nil) != neg {
			ts.Fatalf("%v", err)
		}
	}
}

func flip(file, text string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	found := 0
	for from := 0; ; {
		i := strings.Index(string(content[from:]), text)
		if i < 0 {
			break
		}
		at := from + i + len(text)/2
		if _, err := f.WriteAt([]byte{content[at] ^ 1}, int64(at)); err != nil {
			return err
		}
		found++
		from += i + len(text)
	}
	if found == 0 {
		return fmt.Errorf("%s does not hold %q", file, text)
	}
	return f.Sync()
}

func certificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"pay.shop.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}
