package email

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"

	"tenderbox/jobs"
)

// resultOf runs a handler that completes its job, and returns the result that it gave. jobs keeps it to itself, so an engine is asked.
func resultOf(t testing.TB, m *Mailer, name string, j *jobs.Job) []byte {
	t.Helper()
	done := engineDo(t, m, jobs.NewJob{Queue: Queue, Tenant: j.Tenant, ID: j.ID, Name: name, Data: j.Data})
	if done.State != jobs.Completed {
		t.Fatalf("%s: %s", done.State, done.LastError)
	}
	return done.Result
}

func bulk(to ...string) map[string]any {
	all := make([]any, len(to))
	for i, a := range to {
		all[i] = welcome(a)
	}
	return map[string]any{"emails": all}
}

func address(n int) string { return fmt.Sprintf("r%d@example.com", n) }

func addresses(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = address(i)
	}
	return all
}

// TestBulk: each recipient has a result of its own, and a later attempt tries only those who have none.
func TestBulk(t *testing.T) {
	var greylist, gone atomic.Bool // the office asks while the test changes its mind
	o := openOffice(t, func(o *office, _ *smtp.Server) {
		o.onRcpt = func(to string) error {
			switch {
			case to == "full@example.com":
				return answer(550, "mailbox full")
			case to == "grey@example.com" && greylist.Load():
				return answer(450, "later")
			}
			return nil
		}
		o.hangUp = func(d delivery) bool { return d.to == "cut@example.com" && gone.Load() }
	})
	m := mailer(t, o, Options{})
	j := job("shop", "b1", BulkJob, bulk("ada@example.com", "full@example.com", "not an address", "grey@example.com", "cut@example.com", "bob@example.com"))

	greylist.Store(true)
	gone.Store(true)
	err := m.sendBulk(t.Context(), j)
	if wished(err) != "retry" || !strings.HasPrefix(err.Error(), "2 of 6 recipients are left, the first because of: the mail server refused: RCPT: 450") {
		t.Fatalf("first attempt: %v", err)
	}
	if err := m.sendBulk(t.Context(), j); wished(err) != "retry" { // the same attempt again, as after a snooze
		t.Fatal(err)
	}
	want := map[string]int{"ada@example.com": 1, "bob@example.com": 1, "cut@example.com": 1}
	if diff := cmp.Diff(want, o.tally()); diff != "" {
		t.Fatalf("after the first attempt: %s", diff)
	}

	m = mailer(t, o, Options{Folder: filepath.Dir(m.journals.folder)}) // the process ended in between
	j.AttemptsMade = 2
	greylist.Store(false)
	if err := m.sendBulk(t.Context(), j); wished(err) != "retry" || !strings.HasPrefix(err.Error(), "1 of 6") {
		t.Fatalf("second attempt: %v", err)
	}
	j.AttemptsMade = 3 // the last
	if err := m.sendBulk(t.Context(), j); wished(err) != "done" {
		t.Fatalf("last attempt: %v", err)
	}
	want = map[string]int{"ada@example.com": 1, "bob@example.com": 1, "grey@example.com": 1, "cut@example.com": 3}
	if diff := cmp.Diff(want, o.tally()); diff != "" {
		t.Fatalf("in the end: %s", diff)
	}
	got := readResult(t, m, j)
	id := func(n int) string { return m.identify(j, n) }
	if diff := cmp.Diff(BulkResult{Sent: 3, Failed: 2, Unknown: 1, Recipients: []Recipient{
		{To: "ada@example.com", State: RecipientSent, MessageID: id(0)},
		{To: "full@example.com", State: RecipientFailed, MessageID: id(1), Error: "the mail server refused: RCPT: 550: 5.0.0 mailbox full"},
		{To: "not an address", State: RecipientFailed, MessageID: id(2), Error: "to: not an address like a@b.example or Name <a@b.example>"},
		{To: "grey@example.com", State: RecipientSent, MessageID: id(3)},
		{To: "cut@example.com", State: RecipientUnknown, MessageID: id(4), Error: "the mail was sent, and whether the server took it is unknown: the answer to the mail: EOF"},
		{To: "bob@example.com", State: RecipientSent, MessageID: id(5)},
	}}, got); diff != "" {
		t.Error(diff)
	}

	// Somebody retries the whole: who was sent to stays so, the others are tried once more.
	gone.Store(false)
	j.AttemptsMade = 1
	if err := m.sendBulk(t.Context(), j); wished(err) != "done" {
		t.Fatal(err)
	}
	want["cut@example.com"]++
	if diff := cmp.Diff(want, o.tally()); diff != "" {
		t.Fatalf("after the retry by hand: %s", diff)
	}

	// Another job that has the same id is another bulk.
	j.CreatedAt = j.CreatedAt.Add(time.Hour)
	if err := m.sendBulk(t.Context(), j); wished(err) != "done" {
		t.Fatal(err)
	}
	if n := o.tally()["ada@example.com"]; n != 2 {
		t.Errorf("the new bulk sent %d", n)
	}
	seen := map[string]string{} // doubled mails have one Message-ID, and no two recipients share one
	for _, d := range o.deliveries() {
		if to, ok := seen[d.id(t)]; ok && to != d.to {
			t.Errorf("%s and %s have the same Message-ID", to, d.to)
		}
		seen[d.id(t)] = d.to
	}
	if len(seen) != 4 {
		t.Errorf("%d Message-IDs for 4 recipients", len(seen))
	}
}

// readResult makes a bulk's result from its journal.
func readResult(t testing.TB, m *Mailer, j *jobs.Job) BulkResult {
	t.Helper()
	var b Bulk
	if err := decode(j.Data, &b); err != nil {
		t.Fatal(err)
	}
	jn := &journal{outcomes: map[int]outcome{}}
	if err := jn.read(filepath.Join(m.journals.folder, j.Tenant, journalName(j)), len(b.Emails)); err != nil || !jn.ended {
		t.Fatalf("the journal did not end: %v", err)
	}
	return m.result(j, &b, jn)
}

// TestBulkCut: wherever the journal is cut, as by a crash, nobody whose line is whole gets the mail again, and everybody gets it.
func TestBulkCut(t *testing.T) {
	const recipients = 2
	o := openOffice(t, nil)
	dir := t.TempDir()
	m := mailer(t, o, Options{Folder: dir})
	j := job("shop", "b1", BulkJob, bulk(addresses(recipients)...))
	if err := m.sendBulk(t.Context(), j); wished(err) != "done" {
		t.Fatal(err)
	}
	file := filepath.Join(m.journals.folder, "shop", journalName(j))
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cuts := []string{}
	for n := range len(whole) + 1 {
		cuts = append(cuts, string(whole[:n]))
		if n > 0 {
			cuts = append(cuts, string(whole[:n-1])+"\x00\x00\x00", string(whole[:n-1])+"!"+string(whole[n:])) // zeroes instead of the end; a byte flipped
		}
	}
	for _, cut := range cuts {
		if err := os.WriteFile(file, []byte(cut), 0o600); err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for line := range strings.Lines(cut) {
			e, ok := parseLine([]byte(line))
			if !ok {
				break
			}
			if e.State == stateSent {
				known[address(e.N)] = true
			}
		}
		before := o.tally()
		j.AttemptsMade = 2
		if err := m.sendBulk(t.Context(), j); wished(err) != "done" {
			t.Fatal(err)
		}
		after := o.tally()
		for _, to := range addresses(recipients) {
			if more, want := after[to]-before[to], map[bool]int{true: 0, false: 1}[known[to]]; more != want {
				t.Fatalf("with the journal %q: %s got %d mails, want %d", cut, to, more, want)
			}
		}
		if r := readResult(t, m, j); r.Sent != recipients {
			t.Fatalf("with the journal %q: %+v", cut, r)
		}
	}
}

// TestBulkDisk: where nothing can be noted, nothing is sent.
func TestBulkDisk(t *testing.T) {
	o := openOffice(t, nil)
	m := mailer(t, o, Options{})
	if err := os.WriteFile(m.journals.folder, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	if err := m.sendBulk(t.Context(), job("shop", "b1", BulkJob, bulk("ada@example.com"))); wished(err) != "snooze" {
		t.Errorf("%v, want a snooze", err)
	}
	if o.dials != 0 {
		t.Error("the server was called")
	}
	if !m.Status().DownSince.IsZero() {
		t.Error("a disk of ours counts against the server")
	}
}

// TestBulkOldConnection: a server that ends connections after a few mails is dialed again, and nothing is lost or doubled.
func TestBulkOldConnection(t *testing.T) {
	o := openOffice(t, nil)
	served := 0
	o.onMail = func(string) error {
		if served++; served%4 == 0 {
			return answer(421, "enough")
		}
		return nil
	}
	m := mailer(t, o, Options{})
	if err := m.sendBulk(t.Context(), job("shop", "b1", BulkJob, bulk(addresses(10)...))); wished(err) != "done" {
		t.Fatalf("%v, status %+v", err, m.Status())
	}
	for to, n := range o.tally() {
		if n != 1 {
			t.Errorf("%s got %d mails", to, n)
		}
	}
	if len(o.tally()) != 10 || o.dials != 4 {
		t.Errorf("%d recipients over %d connections", len(o.tally()), o.dials)
	}
}

// TestBulkData: a bulk that is none fails at once.
func TestBulkData(t *testing.T) {
	m := mailer(t, nil, Options{})
	for name, tc := range map[string]struct {
		data any
		says string
	}{
		"none":     {`{"emails":[]}`, "data.emails: 0 mails, use 1 to 1000"},
		"too many": {bulk(addresses(recipientsMax + 1)...), "data.emails: 1001 mails"},
		"member":   {`{"emails":[{"to":"a@b.example","bcc":"x"}]}`, "data.emails.0.bcc: there is no such member"},
		"not json": {`{"emails":`, "data: not one JSON object"},
	} {
		if err := m.sendBulk(t.Context(), job("shop", "b1", BulkJob, tc.data)); wished(err) != "cancel" || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}

// TestSweep: journals go when nobody can need them, and not before.
func TestSweep(t *testing.T) {
	js := newJournals(t.TempDir(), time.Now)
	dir := filepath.Join(js.folder, "shop")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	end, open := string(outcome{State: stateEnd}.line()), string(outcome{State: stateSent}.line())
	put := func(name, content string, age time.Duration) {
		file := filepath.Join(dir, name)
		then := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(file, []byte(content), 0o600), os.Chtimes(file, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	put("ended-new.journal", open+end, endedKeep-time.Hour)
	put("ended-old.journal", open+end, endedKeep+time.Hour)
	put("open-old.journal", open, endedKeep+time.Hour)
	put("open-forgotten.journal", open, openKeep+time.Hour)
	put("notes", end, 2*openKeep)
	names := func() (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	js.sweep("shop")
	if n := len(names()); n != 5 {
		t.Errorf("%d are left right after the start", n)
	}
	js.begun = js.begun.Add(-sweepAfter)
	js.sweep("shop")
	if diff := cmp.Diff([]string{"ended-new.journal", "notes", "open-old.journal"}, names()); diff != "" {
		t.Error(diff)
	}
}

// TestResultFits: a thousand of the worst results are less than a job can keep.
func TestResultFits(t *testing.T) {
	m := mailer(t, nil, Options{From: "a@" + strings.Repeat("b.", 122) + "example"})
	b := Bulk{Emails: make([]Mail, recipientsMax)}
	jn := &journal{outcomes: map[int]outcome{}}
	for n := range b.Emails {
		b.Emails[n].To = strings.Repeat("a", localBytesMax) + "@" + strings.Repeat("b.", 90) + "example"
		if n%2 == 0 {
			b.Emails[n].To = strings.Repeat("\"", addressBytesMax)
		}
		jn.outcomes[n] = outcome{N: n, State: stateRefused, Error: brief(errors.New(strings.Repeat("\"", 1000)))}
	}
	out, err := marshal(m.result(job("shop", "b", BulkJob, "{}"), &b, jn))
	if err != nil || len(out) > 1<<20 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

// TestStaggered: single jobs instead of a bulk, one after the other.
func TestStaggered(t *testing.T) {
	var b Bulk
	raw, err := json.Marshal(bulk("a@example.com", "b@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(raw, &b); err != nil {
		t.Fatal(err)
	}
	all, err := b.Staggered("shop", "spring", StaggerDefault)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d jobs, %v", len(all), err)
	}
	if diff := cmp.Diff(jobs.NewJob{
		Queue: "email", Tenant: "shop", ID: "spring:1", Name: "send-email", Priority: 5, Delay: time.Second,
		Data: []byte(`{"to":"b@example.com","template":"welcome","data":{"name":"Ada"}}`),
	}, all[1]); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []struct {
		b     Bulk
		every time.Duration
	}{{Bulk{}, 0}, {b, -1}, {b, 2 * time.Hour}} {
		if _, err := bad.b.Staggered("shop", "x", bad.every); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
