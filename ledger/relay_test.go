package ledger

import (
	"testing"
	"time"

	"tenderbox/jobs"
)

// Payments that nobody can send gather longer before they become jobs: not when the line is up, nor when there is other work among them.
func TestStrandedPaymentsGatherLonger(t *testing.T) {
	var also []jobs.NewJob
	b := openBox(t, t.TempDir(), testOptions{idle: true, derive: func(*Event) []jobs.NewJob { return also }}) // the test relays
	b.probing()
	mail := jobs.NewJob{Queue: EmailQueue, Tenant: string(testTenant), Name: sendEmail, Data: []byte(`{}`)}
	own := jobs.NewJob{Queue: ProcessingQueue, Name: "process-data", Data: []byte(`{}`)}
	for _, c := range []struct {
		name string
		cut  bool
		also []jobs.NewJob
		want time.Duration
	}{
		{"line down", true, nil, strandedGather},
		{"line down, with work of the box's own", true, []jobs.NewJob{own}, strandedGather},
		{"line down, with a mail", true, []jobs.NewJob{mail}, relayGather},
		{"line up", false, nil, relayGather},
	} {
		b.cut(c.cut)
		also = c.also
		p := b.pay(c.name, validPayment())
		slot, _ := p.ID.slot()
		took, err := b.relayOnce(t.Context(), b.partOf(slot), false)
		if err != nil || took.rows == 0 {
			t.Fatalf("%s: %+v, %v", c.name, took, err)
		}
		if got := b.gatherFor(took); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if j := must(b.jobs.Get(string(testTenant), PaymentsQueue, string(p.ID)))(t); j.State != jobs.Waiting {
			t.Errorf("%s: %s", c.name, j.State)
		}
	}
	if got := b.gatherFor(relayedBatch{}); got != relayGather {
		t.Errorf("after a batch of nothing: %s", got)
	}
}
