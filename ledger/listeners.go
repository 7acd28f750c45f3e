package ledger

import (
	"time"

	"tenderbox/jobs"
)

// PaymentsQueue is the queue that schedules settling.
const PaymentsQueue = "payments"

// listeners is the table of what happens when: an event, and the jobs that
// follow from it. A listener is a pure function; the jobs do the work and are
// retried.
var listeners = map[EventType][]func(*Event) jobs.NewJob{
	PaymentCreated:   {settleJob, analyticsJob},
	PaymentSucceeded: {analyticsJob},
	PaymentFailed:    {analyticsJob},
	PaymentCanceled:  {analyticsJob},
	RefundCreated:    {analyticsJob},
	RefundSucceeded:  {analyticsJob},
	RefundFailed:     {analyticsJob},
	OrderCreated:     {analyticsJob},
	OrderPaid:        {analyticsJob},
	OrderCompleted:   {analyticsJob},
	OrderCanceled:    {analyticsJob},
	UserCreated:      {analyticsJob},
	UserVerified:     {analyticsJob},
}

// settleJob schedules the settling of a payment. Its id is the payment's, so
// that however often it is derived there is one. It has no attempt limit: the
// queue schedules, the ledger decides when a payment is done with.
func settleJob(e *Event) jobs.NewJob {
	return jobs.NewJob{
		Queue: PaymentsQueue, Tenant: string(e.Tenant), ID: e.Subject, Name: "settle",
		Attempts: -1,
		Backoff:  jobs.Backoff{Type: jobs.Exponential, Delay: time.Second, Jitter: 0.2, Max: 10 * time.Minute},

		RemoveOnComplete: jobs.Retention{Remove: true},
	}
}

// jobsFor derives the jobs of one event.
func jobsFor(e *Event) (js []jobs.NewJob) {
	for _, listen := range listeners[e.Type] {
		js = append(js, listen(e))
	}
	return js
}
