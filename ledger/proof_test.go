package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/shards"
)

// The audit finds each fault that is planted into what proves how records were settled.
func TestPlantedFaultsOfProofsAreFound(t *testing.T) {
	const proof = `UPDATE findings SET evidence = json_set(evidence, `
	for name, c := range map[string]struct{ plant, want string }{
		"no fault":                      {``, ``},
		"amount of a finding":           {proof + `'$.amount', 5) WHERE tenant = ? AND result = 'found'`, "success has no proof"},
		"object of a finding":           {proof + `'$.id', 'ch_2') WHERE tenant = ? AND result = 'found'`, "success has no proof"},
		"state of a finding":            {proof + `'$.status', 'pending') WHERE tenant = ? AND result = 'found'`, "success has no proof"},
		"finding that says nothing":     {`UPDATE findings SET result = 'undecided' WHERE tenant = ? AND result = 'found'`, "success has no proof"},
		"refund's answer":               {`UPDATE attempts SET evidence = NULL WHERE tenant = ? AND step = 'refund'`, "success has no proof"},
		"refusal":                       {`UPDATE attempts SET outcome = 'unknown' WHERE tenant = ? AND outcome = 'declined'`, "failure that no answer"},
		"finding of nothing":            {`UPDATE findings SET record = 'pay_none' WHERE tenant = ? AND result = 'absent'`, "of a record that is not there"},
		"another key without its proof": {`DELETE FROM findings WHERE tenant = ? AND result = 'absent'`, "another upstream key is in use"},
		"refund's attempts":             {`UPDATE refunds SET attempts = attempts + 1 WHERE tenant = ?`, "number of attempts differs"},
		"bytes":                         {`DELETE FROM sends WHERE tenant = ? AND record LIKE 're_%'`, "without the sealed bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			b := openFronted(t, f)
			found := lostCharge(b, f)
			absent := b.pay("", validPayment())
			must(b.sealOnly(string(absent.ID)))(t)
			declined := validPayment()
			declined.Source = "tok_chargeDeclined"
			b.settleNow(b.pay("", declined).ID)
			b.pass(f, 25*time.Hour)
			b.settleNow(absent.ID)
			r := b.giveBack(b.settleNow(found), 500)
			if err := b.step(string(r)); err != nil {
				t.Fatal(err)
			}
			for _, sh := range b.healthy() {
				if c.plant == "" {
					break
				}
				if err := sh.Update(t.Context(), func(tx *shards.Tx) error { _, err := tx.Exec(c.plant, string(testTenant)); return err }); err != nil {
					t.Fatal(err)
				}
			}
			findings := b.audit()
			if c.plant == "" && len(findings) > 0 {
				t.Fatalf("found %v", findings)
			}
			if c.plant != "" && !slices.ContainsFunc(findings, func(f Finding) bool { return strings.Contains(f.What, c.want) }) {
				t.Errorf("found %v, want %q", findings, c.want)
			}
		})
	}
}
