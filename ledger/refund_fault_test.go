package ledger

import (
	"fmt"
	"path/filepath"
	"testing"

	"tenderbox/shards/shardstest"
)

// INV-1, INV-4, INV-14: a commit that the disk did not confirm is repeated under its key and has happened once, whatever it was that
// changed the payment; and the exposure is what the books say.
func TestChangesOfUnknownCommit(t *testing.T) {
	for name, change := range map[string]func(b *testBox, id PaymentID) (any, error){
		"cancel": func(b *testBox, id PaymentID) (any, error) {
			p, _, err := b.Cancel(t.Context(), testTenant, "k", string(id))
			return p.Status, err
		},
		"confirm": func(b *testBox, id PaymentID) (any, error) {
			p, _, err := b.Confirm(t.Context(), testTenant, "k", string(id), "pm_card_visa")
			return p.Status, err
		},
		"refund": func(b *testBox, id PaymentID) (any, error) {
			r, _, err := b.CreateRefund(t.Context(), testTenant, "k", NewRefund{PaymentID: string(id), Amount: 1500})
			return r.Status, err
		},
		"void": func(b *testBox, id PaymentID) (any, error) {
			r, _, err := b.CreateRefund(t.Context(), testTenant, "k", NewRefund{PaymentID: string(id)})
			return r.Status, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := shardstest.NewDisk(t, filepath.Join(dir, "shards"))
			b := openBox(t, dir, testOptions{idle: true})
			n := validPayment()
			if name == "confirm" {
				n = unconfirmed("")
			}
			n.UserID = b.userIn(1)
			p := b.pay("pay", n)
			if name == "refund" {
				b.settleNow(p.ID)
			}
			for _, suffix := range []string{".db-wal", ".db"} {
				d.Fail(shardstest.Fault{Op: shardstest.OpSync, Suffix: "0001" + suffix})
			}
			if _, err := change(b, p.ID); code(err) != "outcome_unknown" || d.Fired() == 0 {
				t.Fatalf("with a disk that fails: %v", err)
			}
			b.back(d, 1)
			first, err := change(b, p.ID)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := change(b, p.ID); err != nil || again != first {
				t.Errorf("again: %v, %v, want %v", again, err, first)
			}
			got := must(b.Payment(t.Context(), testTenant, string(p.ID)))(t)
			want := map[string]string{"cancel": "canceled 0 map[]", "confirm": "pending 0 map[usd:{1 1999}]", "refund": "succeeded 1500 map[]", "void": "canceled 0 map[]"}[name]
			if now := fmt.Sprint(got.Status, " ", got.AmountRefunded, " ", b.Exposed(testTenant)); now != want {
				t.Errorf("%s, want %s", now, want)
			}
			if len(b.exposure.unproven) != 0 {
				t.Errorf("unproven: %v", b.exposure.unproven)
			}
			b = b.reopen(nil)
			if again, err := change(b, p.ID); err != nil || again != first {
				t.Errorf("after a restart: %v, %v, want %v", again, err, first)
			}
			if now := fmt.Sprint(got.Status, " ", got.AmountRefunded, " ", b.Exposed(testTenant)); now != want {
				t.Errorf("after a restart: %s, want %s", now, want)
			}
			if page := must(b.Refunds(t.Context(), testTenant, RefundFilter{}))(t); len(page.Data) > 1 {
				t.Errorf("%d refunds", len(page.Data))
			}
			b.sound()
		})
	}
}
