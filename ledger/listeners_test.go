package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
)

func jobsOf(t *testing.T, typ EventType, data any) (names []string, all []jobs.NewJob) {
	t.Helper()
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	e := &Event{ID: "evt_1", Tenant: testTenant, Type: typ, Subject: "subject", Shard: 3, OccurredAt: time.UnixMilli(0).UTC(), Data: b}
	l := &Ledger{}
	all, shared := l.jobsFor(nil, e, false)
	if again, _ := l.jobsFor(nil, e, false); len(again) != len(all) {
		t.Fatalf("%s makes %d jobs, then %d", typ, len(all), len(again))
	}
	own := slices.DeleteFunc(slices.Clone(all), isFeedJob)
	if rest, _ := l.jobsFor(nil, e, true); len(rest) != len(own) || shared != (len(own) < len(all)) {
		t.Errorf("%s makes %d jobs beside shared ones (%v) of %d", typ, len(rest), shared, len(all))
	}
	for _, j := range all {
		if isFeedJob(j) { // the box's own
			if j.Tenant != "" || j.ID != "analytics-3" || string(j.Data) != `{"kind":"analytics","journal":3}` {
				t.Errorf("%s: %+v", typ, j)
			}
		} else if j.ID == "" || j.Tenant != string(testTenant) {
			t.Errorf("%s: a job without id or of another tenant: %+v", typ, j)
		}
		names = append(names, j.Queue+"/"+j.Name)
	}
	return names, all
}

// isFeedJob tells the jobs of countJob from others.
func isFeedJob(j jobs.NewJob) bool { return j.Queue == ProcessingQueue }

func TestListeners(t *testing.T) {
	user := "ana"
	for typ, c := range map[EventType]struct {
		data any
		want []string
	}{
		PaymentCreated:   {eventData{ID: "pay_1"}, []string{"payments/settle", "data-processing/process-data"}},
		PaymentSucceeded: {eventData{ID: "pay_1", Amount: 700, Currency: "eur", UserID: &user}, []string{"notifications/tell-user", "data-processing/process-data"}},
		PaymentFailed:    {eventData{ID: "pay_1", Amount: 700, Currency: "eur"}, []string{"data-processing/process-data"}}, // nobody's
		PaymentInDoubt:   {eventData{ID: "pay_1", UserID: &user}, nil},
		PaymentConfirmed: {eventData{ID: "pay_1"}, []string{"payments/settle"}},
		PaymentCanceled:  {eventData{ID: "pay_1", UserID: &user}, []string{"data-processing/process-data"}}, // whoever did it knows
		RefundCreated:    {refundEventData{ID: "re_1", UserID: &user}, []string{"payments/settle", "data-processing/process-data"}},
		RefundSucceeded:  {refundEventData{ID: "re_1", Amount: 700, Currency: "eur", UserID: &user}, []string{"notifications/tell-user", "data-processing/process-data"}},
		RefundFailed:     {refundEventData{ID: "re_1", UserID: &user}, []string{"data-processing/process-data"}},
		UserCreated:      {User{ID: "ana", Email: "ana@example.org", Name: "Ana"}, []string{"email/send-email", "notifications/create-profile", "data-processing/process-data"}},
		UserVerified:     {User{ID: "ana", Email: "ana@example.org"}, []string{"email/send-email", "data-processing/process-data"}},
		OrderCompleted:   {orderEventData{OrderID: "ord_1", UserID: "ana", Amount: 700, Currency: "eur"}, []string{"email/order-receipt", "notifications/tell-user", "data-processing/process-data"}},
		OrderPaid:        {orderEventData{}, []string{"data-processing/process-data"}},
		"till.opened":    {nil, nil},
	} {
		if got, _ := jobsOf(t, typ, c.data); !slices.Equal(got, c.want) {
			t.Errorf("%s makes %v, want %v", typ, got, c.want)
		}
	}
	if got, _ := jobsOf(t, UserCreated, nil); !slices.Equal(got, []string{"notifications/create-profile", "data-processing/process-data"}) {
		t.Errorf("an erased user gets mail: %v", got)
	}
	_, js := jobsOf(t, UserCreated, User{ID: "ana", Email: "ana@example.org", Name: "Ana \"<eve@example.org>"})
	var mail emailData
	if err := json.Unmarshal(js[0].Data, &mail); err != nil || mail.To != `"Ana \"<eve@example.org>" <ana@example.org>` || mail.Template != "welcome" {
		t.Errorf("%+v, %v", mail, err)
	}
	_, js = jobsOf(t, PaymentSucceeded, eventData{Amount: 1999, Currency: "usd", UserID: &user})
	if !strings.Contains(string(js[0].Data), `"message":"Your payment of 19.99 USD went through."`) {
		t.Errorf("%s", js[0].Data)
	}
	_, js = jobsOf(t, RefundSucceeded, refundEventData{Amount: 1999, Currency: "usd", UserID: &user})
	if !strings.Contains(string(js[0].Data), `"message":"Your refund of 19.99 USD went through."`) {
		t.Errorf("%s", js[0].Data)
	}
	// An intent is settled from its confirmation on; texts that look like its status do not stop another payment.
	if got, _ := jobsOf(t, PaymentCreated, eventData{ID: "pay_1", Status: RequiresConfirmation}); !slices.Equal(got, []string{"data-processing/process-data"}) {
		t.Errorf("an intent that nobody confirmed makes %v", got)
	}
	text := `"status":"requires_confirmation"`
	if got, _ := jobsOf(t, PaymentCreated, eventData{ID: "pay_1", Status: Pending, UserID: &text}); !slices.Contains(got, "payments/settle") {
		t.Errorf("a payment of user %s makes %v", text, got)
	}
}

// A job that the queue does not take keeps neither its neighbours nor the payments behind it.
func TestRefusedJobHoldsUpNothing(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{derive: func(e *Event) []jobs.NewJob {
		return []jobs.NewJob{{Queue: "nowhere", Tenant: string(e.Tenant)}, {Queue: EmailQueue, Tenant: string(e.Tenant), ID: "good:" + string(e.ID)},
			{Queue: EmailQueue, Tenant: string(e.Tenant), ID: "not printable \x00"}}
	}})
	for range 3 {
		if p := b.settled(b.pay("", validPayment()).ID); p.Status != Succeeded {
			t.Fatalf("%+v", p)
		}
	}
	codes := map[string]bool{}
	for _, a := range must(b.Status(t.Context(), testTenant))(t).Alarms {
		codes[a.Code] = true
	}
	if !codes["job_left_out"] {
		t.Errorf("alarms: %v", codes)
	}
	page := must(b.jobs.List(string(testTenant), EmailQueue, jobs.Waiting, jobs.ListOptions{Limit: 100}))(t)
	if len(page.Jobs) < 3 {
		t.Errorf("%d of the good jobs are there", len(page.Jobs))
	}
	b.sound()
}

func TestReceiptIsAddressedWhenItIsSent(t *testing.T) {
	b := openBox(t, t.TempDir(), testOptions{idle: true})
	o := b.order(twoCoffees(b.user(ana()).ID))
	j := &jobs.Job{}
	j.Tenant, j.Data = string(testTenant), []byte(`{"order_id":"`+string(o.ID)+`"}`)
	for range 2 {
		if err := b.SendReceipt(t.Context(), j); err != nil {
			t.Fatal(err)
		}
	}
	page := must(b.jobs.List(string(testTenant), EmailQueue, jobs.Waiting, jobs.ListOptions{Limit: 10}))(t)
	if len(page.Jobs) != 1 || !strings.Contains(string(page.Jobs[0].Data), `<Ana@Example.org>`) || !strings.Contains(string(page.Jobs[0].Data), `"amount":1120`) {
		t.Fatalf("%d mails: %+v", len(page.Jobs), page.Jobs)
	}
	j.Data = []byte(`{"order_id":"ord_unknown"}`)
	if err := b.SendReceipt(t.Context(), j); err == nil {
		t.Error("a receipt of no order is sent")
	}
}
