package ledger

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"tenderbox/jobs"
	"tenderbox/shards"
	"tenderbox/tenants"
)

// push is the delivery of a job that was enqueued at second n.
func push(job string, n int, user, message string) Push {
	return Push{JobID: job, EnqueuedAt: time.Unix(int64(n), 0), UserID: user, Message: message}
}

func (b *testBox) deliver(p Push) NotificationID {
	b.t.Helper()
	return must(b.Deliver(b.t.Context(), testTenant, p))(b.t)
}

func (b *testBox) inbox(f InboxFilter) Inbox {
	b.t.Helper()
	return must(b.Inbox(b.t.Context(), testTenant, f))(b.t)
}

// An app's notification is a durable request, its job has its id, and the job brings it into the inbox once.
func TestNotificationIsRequestedDeliveredAndRead(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	u := b.user(ana())
	asked, replayed, err := b.Notify(t.Context(), testTenant, "k", NewNotification{string(u.ID), "Your order is ready"})
	if err != nil || replayed || asked.DeliveredAt != nil || asked.ReadAt != nil {
		t.Fatalf("%+v, %v, %v", asked, replayed, err)
	}
	b.relayed()
	j := must(b.jobs.Get(string(testTenant), NotificationsQueue, string(asked.ID)))(t)
	var data map[string]string
	if err := json.Unmarshal(j.Data, &data); err != nil || j.Name != "push-notification" || len(data) != 3 || data["user_id"] != string(u.ID) ||
		data["message"] != "Your order is ready" || data["timestamp"] != asked.Timestamp.Format(time.RFC3339Nano) {
		t.Fatalf("job %s: %s (%v)", j.Name, j.Data, err)
	}
	if in := b.inbox(InboxFilter{UserID: string(u.ID)}); len(in.Data) != 0 {
		t.Fatalf("delivered without its job: %+v", in)
	}
	for range 2 { // the job runs at least once
		if id := b.deliver(Push{j.ID, j.CreatedAt, string(u.ID), data["message"], asked.Timestamp}); id != asked.ID {
			t.Errorf("delivered as %s", id)
		}
	}
	in := b.inbox(InboxFilter{UserID: string(u.ID)})
	if len(in.Data) != 1 || in.Unread != 1 || in.Data[0].ID != asked.ID || in.Data[0].DeliveredAt == nil || !in.Data[0].Timestamp.Equal(asked.Timestamp) {
		t.Fatalf("%+v", in)
	}
	first := must(b.ReadNotification(t.Context(), testTenant, string(asked.ID)))(t)
	b = b.reopen(nil)
	again := must(b.ReadNotification(t.Context(), testTenant, string(asked.ID)))(t)
	if first.ReadAt == nil || !again.ReadAt.Equal(*first.ReadAt) {
		t.Errorf("read twice: %v, %v", first.ReadAt, again.ReadAt)
	}
	if in := b.inbox(InboxFilter{UserID: string(u.ID)}); in.Unread != 0 || in.Data[0].ReadAt == nil {
		t.Errorf("after reading: %+v", in)
	}
	// The key's answer is the notification as it now is, and serves nothing else.
	now, replayed, err := b.Notify(t.Context(), testTenant, "k", NewNotification{string(u.ID), "Your order is ready"})
	if err != nil || !replayed || now.ID != asked.ID || now.ReadAt == nil {
		t.Errorf("replay: %+v, %v, %v", now, replayed, err)
	}
	if _, _, err := b.Notify(t.Context(), testTenant, "k", NewNotification{string(u.ID), "another"}); code(err) != "idempotency_mismatch" {
		t.Errorf("another message under the key: %v", err)
	}
	if _, _, err := b.CreateUser(t.Context(), testTenant, "k", ana()); code(err) != "idempotency_mismatch" {
		t.Errorf("a user under the key: %v", err)
	}
	for typ, n := range map[EventType]int{NotificationRequested: 1, NotificationCreated: 1, NotificationRead: 1} {
		rows := b.rows(typ)
		if len(rows) != n || !strings.Contains(string(rows[0].Data), `"message":"Your order is ready"`) || rows[0].Slot != shards.SlotOf(string(testTenant), string(u.ID)) {
			t.Errorf("%s: %+v", typ, rows)
		}
	}
	b.sound()
}

// A job's id may be used again when its job is gone: it is another message then. The same job, however often and by
// however many at once, is one message, also if that had to make room meanwhile.
func TestDeliveryIsOncePerJob(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	u := string(b.user(ana()).ID)
	var wg sync.WaitGroup
	one := b.deliver(push("daily", 1, u, "one"))
	for range 20 {
		wg.Go(func() {
			if id := b.deliver(push("daily", 1, u, "one")); id != one {
				t.Errorf("%s is now %s", one, id)
			}
		})
	}
	wg.Wait()
	b.deliver(push("daily", 2, u, "two"))
	foreign := b.ids.notification(time.Unix(1, 0), shards.SlotOf(string(testTenant), u)+1)
	if id := b.deliver(push(string(foreign), 1, u, "three")); id == foreign {
		t.Error("a notification has the id of another slot")
	}
	in := b.inbox(InboxFilter{UserID: u})
	if in.Unread != 3 || len(in.Data) != 3 {
		t.Fatalf("%+v", in)
	}
	for i := range inboxMax {
		b.deliver(push("fill", i, u, "more"))
	}
	b = b.reopen(nil)
	if id := b.deliver(push("daily", 1, u, "one")); id != one {
		t.Errorf("%s is now %s", one, id)
	}
	if in = b.inbox(InboxFilter{UserID: u}); in.Unread != inboxMax || in.Data[0].Message != "more" {
		t.Errorf("%d unread, the newest is %q", in.Unread, in.Data[0].Message)
	}
	if n := len(b.rows(NotificationCreated)); n != inboxMax+3 {
		t.Errorf("%d rows", n)
	}
	b.sound()
}

// What had to make room: the oldest read first, then the oldest. The counts are exact against a model all the way.
func TestInboxIsBoundedAndCounted(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	u := string(b.user(ana()).ID)
	type entry struct {
		id   NotificationID
		read bool
	}
	var model []entry // oldest first, as ids sort: a millisecond holds many
	for i := range inboxMax + 300 {
		id := b.deliver(push("j", i, u, fmt.Sprint(i)))
		at := 0
		for at < len(model) && model[at].id < id {
			at++
		}
		model = append(model[:at], append([]entry{{id, false}}, model[at:]...)...)
		if len(model) > inboxMax {
			out := 0
			for k, e := range model {
				if e.read {
					out = k
					break
				}
			}
			if !model[out].read && model[out].id == id {
				out++ // what came just now is not what goes
			}
			model = append(model[:out], model[out+1:]...)
		}
		if r.IntN(10) == 0 {
			k := r.IntN(len(model))
			must(b.ReadNotification(t.Context(), testTenant, string(model[k].id)))(t)
			model[k].read = true
		}
	}
	unread := 0
	for _, e := range model {
		if !e.read {
			unread++
		}
	}
	at, f := len(model), InboxFilter{UserID: u, Limit: pageMax}
	for {
		in := b.inbox(f)
		if in.Unread != unread {
			t.Fatalf("%d unread, want %d", in.Unread, unread)
		}
		for _, n := range in.Data {
			if at--; at < 0 || n.ID != model[at].id || (n.ReadAt != nil) != model[at].read {
				t.Fatalf("entry %d is %+v", at, n)
			}
		}
		if f.Cursor = in.NextCursor; !in.HasMore {
			break
		}
	}
	if at != 0 {
		t.Errorf("%d entries were not listed", at)
	}
	b.sound()
}

func TestProfileIsMadeOnce(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{})
	u := string(b.user(ana()).ID)
	b.relayed()
	made := must(b.jobs.List(string(testTenant), NotificationsQueue, jobs.Waiting, jobs.ListOptions{}))(t)
	if len(made.Jobs) != 1 || made.Jobs[0].Name != "create-profile" || string(made.Jobs[0].Data) != fmt.Sprintf(`{"user_id":%q}`, u) {
		t.Fatalf("jobs of a new user: %+v", made.Jobs)
	}
	if p := must(b.Profile(t.Context(), testTenant, u))(t); p.CreatedAt != nil || p.Locale != "en" || !p.Notifications {
		t.Errorf("before its job: %+v", p)
	}
	for range 3 {
		if err := b.CreateProfile(t.Context(), testTenant, u); err != nil {
			t.Fatal(err)
		}
	}
	if in := b.inbox(InboxFilter{UserID: u}); in.Unread != 1 || len(in.Data) != 1 || in.Data[0].Message != welcomeMessage {
		t.Errorf("the first entry: %+v", in)
	}
	locale, off := "DE-ch", false
	p := must(b.ChangeProfile(t.Context(), testTenant, u, ProfileChange{&locale, &off}))(t)
	if p.Locale != "de-CH" || p.Notifications {
		t.Errorf("changed: %+v", p)
	}
	if id := b.deliver(push("j", 1, u, "unwanted")); id != "" {
		t.Errorf("delivered %s to who wants none", id)
	}
	on := true
	must(b.ChangeProfile(t.Context(), testTenant, u, ProfileChange{Notifications: &on}))(t)
	b = b.reopen(nil)
	if p := must(b.Profile(t.Context(), testTenant, u))(t); p.Locale != "de-CH" || !p.Notifications || p.CreatedAt == nil {
		t.Errorf("after a restart: %+v", p)
	}
	b.deliver(push("j", 2, u, "wanted"))
	if in := b.inbox(InboxFilter{UserID: u}); in.Unread != 2 {
		t.Errorf("%+v", in)
	}
	if _, err := b.Profile(t.Context(), testTenant, "nobody"); code(err) != "not_found" {
		t.Errorf("nobody's profile: %v", err)
	}
	if _, err := b.ChangeProfile(t.Context(), testTenant, "nobody", ProfileChange{}); code(err) != "not_found" {
		t.Errorf("nobody's profile changed: %v", err)
	}
	for _, bad := range []string{"", "x", "und", "en\n", "no such language", strings.Repeat("a", 4000)} {
		if _, err := b.ChangeProfile(t.Context(), testTenant, u, ProfileChange{Locale: &bad}); code(err) != "locale_invalid" {
			t.Errorf("locale %.20q: %v", bad, err)
		}
	}
	b.sound()
}

func TestNotificationRefusals(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	u := string(b.user(ana()).ID)
	for _, c := range []struct{ user, message, code string }{
		{"", "m", "user_missing"},
		{"nobody", "m", "user_unknown"},
		{"a\nb", "m", "text_invalid"},
		{strings.Repeat("u", 5000), "m", "text_too_long"},
		{u, "", "message_missing"},
		{u, strings.Repeat("m", messageMax+1), "text_too_long"},
		{u, "\x1b[31m", "text_invalid"},
		{u, "a\x00b", "text_invalid"},
		{u, "\xff", "text_invalid"},
		{u, "card 4242 4242 4242 4242", "card_data_not_allowed"},
	} {
		if _, _, err := b.Notify(t.Context(), testTenant, "", NewNotification{c.user, c.message}); code(err) != c.code {
			t.Errorf("asked %.20q %.20q: %v, want %s", c.user, c.message, err, c.code)
		}
		if _, err := b.Deliver(t.Context(), testTenant, push("j", 1, c.user, c.message)); code(err) != c.code {
			t.Errorf("delivered %.20q %.20q: %v, want %s", c.user, c.message, err, c.code)
		}
	}
	if err := b.CreateProfile(t.Context(), testTenant, "nobody"); code(err) != "user_unknown" {
		t.Errorf("a profile of nobody: %v", err)
	}
	b.deliver(push("j", 1, u, "\u202etwo lines,\nand \U0001f600 "+strings.Repeat("é", 500)))
	for f, want := range map[InboxFilter]string{
		{}:                              "user_missing",
		{UserID: u, Limit: 101}:         "limit_invalid",
		{UserID: u, Limit: -1}:          "limit_invalid",
		{UserID: u, Cursor: "x"}:        "cursor_invalid",
		{UserID: u, Cursor: "bnRmXzAx"}: "cursor_invalid",
	} {
		if _, err := b.Inbox(t.Context(), testTenant, f); code(err) != want {
			t.Errorf("%+v: %v, want %s", f, err, want)
		}
	}
	if n := len(b.rows(NotificationRequested)) + len(b.rows(NotificationCreated)); n != 1 {
		t.Errorf("%d rows: what was refused left something", n)
	}
	b.sound()
}

// One tenant neither finds nor touches what is another's, though the user's id, and so perhaps the file, is the same.
func TestInboxesOfTenantsAreApart(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	other := tenants.ID("other")
	if _, _, err := b.tenants.Add(t.Context(), tenants.New{ID: other}); err != nil {
		t.Fatal(err)
	}
	id := b.deliver(push("j", 1, string(b.user(NewUser{ID: "ana", Email: "a@example.org"}).ID), "canary"))
	if _, err := b.ReadNotification(t.Context(), other, string(id)); code(err) != "not_found" {
		t.Errorf("read by another tenant: %v", err)
	}
	if _, err := b.Deliver(t.Context(), other, push("j", 1, "ana", "m")); code(err) != "user_unknown" {
		t.Errorf("another tenant's delivery: %v", err)
	}
	if _, _, err := b.CreateUser(t.Context(), other, "", NewUser{ID: "ana", Email: "a@example.org"}); err != nil {
		t.Fatal(err)
	}
	if in := must(b.Inbox(t.Context(), other, InboxFilter{UserID: "ana"}))(t); len(in.Data) != 0 || in.Unread != 0 {
		t.Errorf("another tenant's inbox: %+v", in)
	}
	if _, err := b.Deliver(t.Context(), other, push("j", 1, "ana", "own")); err != nil {
		t.Errorf("the same job id of another tenant: %v", err)
	}
	if in := b.inbox(InboxFilter{UserID: "ana"}); in.Unread != 1 || in.Data[0].Message != "canary" {
		t.Errorf("%+v", in)
	}
	for _, id := range []string{"", "ntf_", "pay_01ARZ3NDEKTSV4RRFFQ69G5FAV", "ntf_01ARZ3NDEKTSV4RRFFQ69G5FAV", "../x"} {
		if _, err := b.ReadNotification(t.Context(), testTenant, id); code(err) != "not_found" {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// Each of the audit's rules on inboxes catches what is planted for it.
func TestPlantedInboxFaultsAreFound(t *testing.T) {
	for want, statement := range map[string]string{
		"counts differ":               `UPDATE profiles SET unread = unread - 1`,
		"counts differ from":          `UPDATE profiles SET entries = entries + 1`,
		"inbox's counts":              `DELETE FROM profiles`,
		"without its user":            `UPDATE notifications SET user_id = 'eve'`,
		"profile or inbox":            `UPDATE profiles SET user_id = 'eve'`,
		"not its user's":              `UPDATE notifications SET user_id = 'eve'`,
		"is no id of a notification":  `UPDATE notifications SET id = 'x'`,
		"event is not in the journal": `UPDATE notifications SET read_at = delivered_at`,
	} {
		t.Run(want, func(t *testing.T) {
			b := openBox(t, t.TempDir(), testOptions{idle: true})
			u := b.user(ana())
			b.deliver(push("j", 1, string(u.ID), "m"))
			b.tamper(b.userShard(testTenant, string(u.ID)).ID(), statement)
			var lines []string
			for _, f := range b.audit() {
				lines = append(lines, f.String())
			}
			if !strings.Contains(strings.Join(lines, "\n"), want) {
				t.Errorf("found %q", lines)
			}
		})
	}
}
