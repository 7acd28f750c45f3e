package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/mail"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/jobs"
	"tenderbox/tenants"
)

// The queues that listeners put jobs into, and the jobs that they make; who does
// them is named beside each.
const (
	// PaymentsQueue schedules settling, which the ledger does.
	PaymentsQueue = "payments"
	// EmailQueue: jobs/email sends, [Ledger.SendReceipt] looks up to whom.
	EmailQueue = "email"
	// NotificationsQueue: jobs/notify delivers.
	NotificationsQueue = "notifications"

	sendEmail      = "send-email"
	tellUser       = "tell-user"
	ReceiptJob     = "order-receipt"
	settlePayments = "settle"
)

// listener is a line of the table below: on events of a type, so many jobs. Its
// function is pure: the same event makes the same jobs, under the same ids, so that
// deriving them twice is deriving them once. The jobs do the work and are retried.
type listener struct {
	on   string // a type, or a family: payment.*, *
	does string
	jobs func(*Event) []jobs.NewJob
}

// listeners is the table of what happens when. Webhooks hear of events too, by
// [Options.Derive], for it knows the tenants' endpoints.
var listeners = []listener{
	{"payment.created", "is settled when the line allows, unless it waits to be confirmed", settleTaken},
	{"payment.confirmed", "is settled when the line allows", settleJob},
	{"refund.created", "is settled when the line allows", settleJob},
	{"payment.succeeded", "the user is told", tellOfPayment("went through")},
	{"payment.failed", "the user is told", tellOfPayment("was declined")},
	{"refund.succeeded", "the user is told", tellOfRefund},
	{"user.created", "gets a welcome e-mail", mailUser("welcome")},
	{"user.created", "gets a profile and a first notification", one(createProfile)},
	{"notification.requested", "comes into the user's inbox", one(pushRequested)},
	{"user.verified", "gets an e-mail that says so", mailUser("account-verified")},
	{"order.completed", "the user gets a receipt by e-mail", receiptJob},
	{"order.completed", "the user is told", tellOfOrder},
}

// sharers are the rest of it: listeners one of whose jobs does for many events of a journal.
var sharers = []listener{
	{"payment.*", "is counted", countJob},
	{"refund.*", "is counted", countJob},
	{"order.*", "is counted", countJob},
	{"user.*", "is counted", countJob},
}

// settleTaken is settleJob, except for an intent that is not confirmed. The data is the
// ledger's own JSON, whose texts cannot hold a bare quote: it need not be decoded for this.
func settleTaken(e *Event) []jobs.NewJob {
	if bytes.Contains(e.Data, []byte(`"status":"`+string(RequiresConfirmation)+`"`)) {
		return nil
	}
	return settleJob(e)
}

// settleJob schedules the settling of a payment or a refund. Its id is the record's, so
// that however often it is derived there is one. It has no attempt limit: the
// queue schedules, the ledger decides when a payment is done with.
func settleJob(e *Event) []jobs.NewJob {
	return []jobs.NewJob{{
		Queue: PaymentsQueue, Tenant: string(e.Tenant), ID: e.Subject, Name: settlePayments,
		Attempts: -1,
		Backoff:  jobs.Backoff{Type: jobs.Exponential, Delay: time.Second, Jitter: 0.2, Max: 10 * time.Minute},

		RemoveOnComplete: jobs.Retention{Remove: true},
	}}
}

// derived is a job of an event: its id follows from what it is and from the event.
func derived(e *Event, queue, name, what string, data any) []jobs.NewJob {
	b, err := json.Marshal(data, json.Deterministic(true))
	if err != nil { // texts and numbers always encode
		panic(err)
	}
	return []jobs.NewJob{{Queue: queue, Tenant: string(e.Tenant), ID: what + ":" + string(e.ID), Name: name, Data: b}}
}

// emailData is what jobs/email takes.
type emailData struct {
	To       string         `json:"to"`
	Template string         `json:"template"`
	Data     map[string]any `json:"data"`
}

// mailUser sends the user that the event is about a mail of the template.
func mailUser(template string) func(*Event) []jobs.NewJob {
	return func(e *Event) []jobs.NewJob {
		var u User
		if json.Unmarshal(e.Data, &u) != nil || u.Email == "" { // erased: there is nobody to write to
			return nil
		}
		to := mail.Address{Name: u.Name, Address: u.Email}
		return derived(e, EmailQueue, sendEmail, template, emailData{to.String(), template, map[string]any{"name": u.Name}})
	}
}

// one is a listener that makes one job.
func one(f func(*Event) jobs.NewJob) func(*Event) []jobs.NewJob {
	return func(e *Event) []jobs.NewJob { return []jobs.NewJob{f(e)} }
}

// tellData is what jobs/notify takes.
type tellData struct {
	UserID    string    `json:"user_id"`
	Message   string    `json:"message"`
	Timestamp time.Time `json:"timestamp"`
}

// tellOfPayment tells the user who paid, if the payment names one: which may be an
// app's own, that the box does not know.
func tellOfPayment(how string) func(*Event) []jobs.NewJob {
	return func(e *Event) []jobs.NewJob {
		var p eventData
		if json.Unmarshal(e.Data, &p) != nil || p.UserID == nil {
			return nil
		}
		message := fmt.Sprintf("Your payment of %s %s.", Money{p.Amount, p.Currency}, how)
		return derived(e, NotificationsQueue, tellUser, "told", tellData{*p.UserID, message, e.OccurredAt})
	}
}

// tellOfRefund tells the user who had paid.
func tellOfRefund(e *Event) []jobs.NewJob {
	var r refundEventData
	if json.Unmarshal(e.Data, &r) != nil || r.UserID == nil {
		return nil
	}
	message := fmt.Sprintf("Your refund of %s went through.", Money{r.Amount, r.Currency})
	return derived(e, NotificationsQueue, tellUser, "told", tellData{*r.UserID, message, e.OccurredAt})
}

func tellOfOrder(e *Event) []jobs.NewJob {
	var o orderEventData
	if json.Unmarshal(e.Data, &o) != nil {
		return nil
	}
	message := fmt.Sprintf("Your order of %s is complete.", Money{o.Amount, o.Currency})
	return derived(e, NotificationsQueue, tellUser, "told", tellData{string(o.UserID), message, e.OccurredAt})
}

// receiptJob looks up the address when it runs: the event does not hold it.
func receiptJob(e *Event) []jobs.NewJob {
	return derived(e, EmailQueue, ReceiptJob, "receipt", map[string]string{"order_id": e.Subject})
}

// SendReceipt is the handler of [ReceiptJob]: it makes the mail's own job, once.
func (l *Ledger) SendReceipt(ctx context.Context, j *jobs.Job) error {
	var in struct {
		OrderID string `json:"order_id"`
	}
	if err := json.Unmarshal(j.Data, &in); err != nil {
		return jobs.Cancel(fmt.Errorf("not a receipt: %w", err))
	}
	t := tenants.ID(j.Tenant)
	o, err := l.Order(ctx, t, in.OrderID)
	var u User
	if err == nil {
		u, err = l.User(ctx, t, string(o.UserID))
	}
	var refusal *Error
	switch {
	case errors.As(err, &refusal) && refusal.Kind == NotFound:
		return jobs.Cancel(err)
	case errors.As(err, &refusal) && refusal.Kind == Unavailable:
		return jobs.Snooze(unsentPause)
	case err != nil:
		return err
	}
	to := mail.Address{Name: u.Name, Address: u.Email}
	data, err := json.Marshal(emailData{to.String(), "receipt", map[string]any{
		"name": u.Name, "order_id": o.ID, "items": o.Items, "amount": o.Amount, "currency": o.Currency}}, json.Deterministic(true))
	if err != nil {
		return jobs.Cancel(err)
	}
	_, err = l.jobs.Enqueue(ctx, jobs.NewJob{Queue: EmailQueue, Tenant: j.Tenant, ID: "receipt-mail:" + in.OrderID, Name: sendEmail, Data: data})
	return err
}

// jobsFor appends the jobs of one event to js. shared: those of the sharers are among them; it is answered as it is then.
func (l *Ledger) jobsFor(js []jobs.NewJob, e *Event, shared bool) ([]jobs.NewJob, bool) {
	js = heard(js, listeners, e)
	if !shared {
		had := len(js)
		js = heard(js, sharers, e)
		shared = len(js) > had
	}
	if l.o.Derive != nil {
		js = append(js, l.o.Derive(e)...)
	}
	return js, shared
}

// heard appends what the listeners make of the event.
func heard(js []jobs.NewJob, by []listener, e *Event) []jobs.NewJob {
	for i := range by {
		if tenants.MatchType(by[i].on, string(e.Type)) {
			js = append(js, by[i].jobs(e)...)
		}
	}
	return js
}
