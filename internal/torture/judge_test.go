package torture

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

// sound is the evidence of a small round in which everything went well: payments over two tenants that share
// their keys, one of them declined, one unknown to its client, one stuck, one refused.
func sound() Evidence {
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	e := Evidence{Collected: true, Lives: []Life{{at(1).Add(time.Second / 2), at(100)}}, Kept: map[string][]Payment{}, Reports: map[string][]ReportRow{}, Journal: map[string][]Event{}}
	make := func(tenant, key, id, token string, amount int64, currency, status string) (Ask, Payment) {
		a := Ask{Tenant: tenant, Key: key, Amount: amount, Currency: currency, Token: token, User: "user-1", Declined: status == "failed"}
		p := Payment{ID: id, Amount: amount, Currency: currency, Status: status, UserID: &a.User, Metadata: map[string]string{metadataKey: key}}
		p.Sync.State, p.Sync.Attempts = "settled", 1
		if status == "pending" {
			p.Sync.State = "in_doubt"
		}
		e.Asks, e.Kept[tenant] = append(e.Asks, a), append(e.Kept[tenant], p)
		return a, p
	}
	pay := func(a Ask, n, status int, replayed bool, p *Payment) {
		e.Exchanges = append(e.Exchanges, Exchange{Act: Pay, Tenant: a.Tenant, Key: a.Key, Sent: at(n), Answered: at(n).Add(time.Millisecond), Status: status, Replayed: replayed, Payment: p})
	}
	post := func(p Payment, n, status int) {
		e.Posts = append(e.Posts, blackbox.Post{At: at(n), Path: "/v1/charges", Key: p.ID, Payment: p.ID, Body: sha256.Sum256([]byte(p.ID)), Status: status})
	}
	effect := func(p *Payment, n int) {
		id := fmt.Sprintf("ch_%d", n)
		e.Effects = append(e.Effects, simulator.Effect{ID: id, Amount: p.Amount, Currency: p.Currency, IdempotencyKey: p.ID, Metadata: map[string]string{"tenderbox_payment": p.ID}})
		for i := range e.Kept {
			for k := range e.Kept[i] {
				if e.Kept[i][k].ID == p.ID && p.Status == "succeeded" {
					e.Kept[i][k].UpstreamID = &id
				}
			}
		}
	}
	pending := func(p Payment) *Payment {
		p.Status, p.Sync.State, p.Sync.Attempts, p.UpstreamID = "pending", "queued", 0, nil
		return &p
	}

	// Paid after a lost answer, read again when settled.
	a, p := make("default", "k1", "pay_1", "tok_visa", 1000, "usd", "succeeded")
	pay(a, 1, 0, false, nil)
	pay(a, 2, http.StatusCreated, true, pending(p))
	post(p, 3, 0)
	post(p, 4, http.StatusOK)
	effect(&p, 1)
	e.Exchanges = append(e.Exchanges, Exchange{Act: Read, Tenant: a.Tenant, Key: a.Key, Sent: at(6), Answered: at(6), Status: 200, Payment: &e.Kept["default"][0]})
	e.Exchanges = append(e.Exchanges, Exchange{Act: Contradict, Tenant: a.Tenant, Key: a.Key, Sent: at(7), Answered: at(7), Status: 422})
	pay(a, 8, http.StatusCreated, true, &e.Kept["default"][0])

	// The other tenant's, under the same key.
	a, p = make("second", "k1", "pay_2", "tok_visa", 2000, "usd", "succeeded")
	pay(a, 1, http.StatusServiceUnavailable, false, nil)
	pay(a, 2, http.StatusCreated, false, pending(p))
	post(p, 3, http.StatusOK)
	effect(&p, 2)

	a, p = make("second", "k2", "pay_3", "tok_chargeDeclined", 300, "eur", "failed")
	pay(a, 3, http.StatusCreated, false, pending(p))
	post(p, 4, http.StatusPaymentRequired)

	// Its client never got an answer, and gave up.
	a, p = make("default", "k3", "pay_4", "tok_visa", 77, "jpy", "succeeded")
	pay(a, 4, 0, false, nil)
	e.Exchanges[len(e.Exchanges)-1].HungUp = true
	post(p, 5, http.StatusOK)
	effect(&p, 3)

	// Took effect behind a 500 that the processor will repeat for ever.
	a, p = make("default", "k4", "pay_5", "tok_visa", 5000, "usd", "pending")
	pay(a, 5, http.StatusCreated, false, pending(p))
	post(p, 6, http.StatusInternalServerError)
	effect(&p, 4)

	e.Asks = append(e.Asks, Ask{Tenant: "default", Key: "k5", Amount: -4, Currency: "usd", Token: "tok_visa", Refused: true})
	pay(e.Asks[len(e.Asks)-1], 6, http.StatusUnprocessableEntity, false, nil)

	event := func(tenant, kind, subject string, journal, n int) {
		e.Journal[tenant] = append(e.Journal[tenant], Event{ID: fmt.Sprintf("evt_%d_%d", journal, n), Tenant: tenant, Type: kind, Subject: subject, Sequence: fmt.Sprintf("00000001-%04d-%016d", journal, n)})
	}
	event("default", "payment.created", "pay_1", 0, 1)
	event("default", "payment.succeeded", "pay_1", 0, 2)
	event("second", "payment.created", "pay_2", 1, 1)
	event("second", "payment.succeeded", "pay_2", 1, 2)
	for _, told := range append(append(slices.Clone(e.Journal["default"]), e.Journal["second"]...), e.Journal["default"]...) { // some of it twice
		told.On = "evt." + told.Tenant + "." + told.Type
		e.Stream = append(e.Stream, told)
	}
	late := Event{ID: "evt_late", Tenant: "second", Type: "connectivity.changed", Sequence: "00000001-0001-0000000000000003", On: "evt.second.connectivity.changed"}
	e.Stream, e.Announced = append(e.Stream, late), true // arose after the journals were read

	e.Inspected = true
	e.Hired = []Hire{{"shop-0", "key", http.StatusOK}}
	e.Newcomers = []Newcomer{{"default", "customer-1@example.org", true, true}, {"second", "customer-2@example.org", true, true}}

	e.Reports["default"] = []ReportRow{{"usd", "succeeded", 1, 1000, 0}, {"jpy", "succeeded", 1, 77, 0}, {"usd", "pending", 1, 5000, 0}}
	e.Reports["second"] = []ReportRow{{"usd", "succeeded", 1, 2000, 0}, {"eur", "failed", 1, 300, 0}}
	return e
}

func TestJudgeFindsNothingInSoundEvidence(t *testing.T) {
	for _, f := range Judge(sound()) {
		t.Error(f)
	}
}

// A planted defect is what a broken box would leave behind, and the rule that must catch it.
type planted struct {
	name  string
	plant func(*Evidence)
	rule  Rule
}

var defects = []planted{
	{"payment lost", func(e *Evidence) { e.Kept["second"] = drop(e.Kept["second"], "pay_2") }, Lost},
	{"payment moved to another tenant", func(e *Evidence) {
		e.Kept["second"] = drop(e.Kept["second"], "pay_2")
		p := find(*e, "default", "pay_1")
		p.ID = "pay_2"
		e.Kept["default"] = append(e.Kept["default"], p)
	}, Lost},
	{"payment replaced by one with another id", func(e *Evidence) {
		p := find(*e, "second", "pay_3")
		p.ID = "pay_9"
		e.Kept["second"] = append(drop(e.Kept["second"], "pay_3"), p)
	}, Lost},
	{"amount changed after acknowledgement", func(e *Evidence) { change(e, "default", "pay_1", func(p *Payment) { p.Amount-- }) }, Changed},
	{"amount changed in the acknowledgement", func(e *Evidence) { e.Exchanges[1].Payment.Amount++ }, Changed},
	{"currency changed", func(e *Evidence) { change(e, "second", "pay_3", func(p *Payment) { p.Currency = "usd" }) }, Changed},
	{"user changed", func(e *Evidence) {
		other := "user-2"
		change(e, "second", "pay_2", func(p *Payment) { p.UserID = &other })
	}, Changed},
	{"refused request kept", func(e *Evidence) {
		e.Kept["default"] = append(e.Kept["default"], Payment{ID: "pay_9", Amount: -4, Currency: "usd", Metadata: map[string]string{metadataKey: "k5"}})
	}, Kept},
	{"invalid request accepted", func(e *Evidence) {
		x := &e.Exchanges[len(e.Exchanges)-1]
		x.Status, x.Payment = 201, &Payment{ID: "pay_9", Amount: -4, Currency: "usd", Metadata: map[string]string{metadataKey: "k5"}}
	}, Kept},
	{"two payments for one key", func(e *Evidence) {
		p := find(*e, "default", "pay_1")
		p.ID = "pay_9"
		e.Kept["default"] = append(e.Kept["default"], p)
	}, Twice},
	{"repetition answered with another payment", func(e *Evidence) {
		p := *e.Exchanges[4].Payment
		p.ID = "pay_2"
		e.Exchanges[4].Payment = &p
	}, Twice},
	{"repetition answered as if it were the first", func(e *Evidence) { e.Exchanges[4].Replayed = false }, Replay},
	{"contradiction accepted", func(e *Evidence) { e.Exchanges[3].Status, e.Exchanges[3].Payment = 201, e.Exchanges[4].Payment }, Overruled},
	{"charged twice under two keys", func(e *Evidence) {
		again := e.Effects[0]
		again.ID, again.IdempotencyKey = "ch_9", "pay_1:2"
		e.Effects = append(e.Effects, again)
	}, Doubled},
	{"charged twice under one key", func(e *Evidence) { e.Effects = append(e.Effects, e.Effects[1]) }, Doubled},
	{"stuck payment charged twice", func(e *Evidence) { e.Effects = append(e.Effects, e.Effects[3]) }, Doubled},
	{"orphan effect", func(e *Evidence) {
		e.Effects = append(e.Effects, simulator.Effect{ID: "ch_9", Amount: 5, Currency: "usd", Metadata: map[string]string{"tenderbox_payment": "pay_9"}})
	}, Orphan},
	{"effect that names no payment", func(e *Evidence) { e.Effects[2].Metadata = nil }, Orphan},
	{"unsettled payment", func(e *Evidence) {
		change(e, "default", "pay_4", func(p *Payment) { p.Status, p.Sync.State = "pending", "queued" })
	}, Unsettled},
	{"charged another amount", func(e *Evidence) { e.Effects[1].Amount += 100 }, Mismatched},
	{"charged in another currency", func(e *Evidence) { e.Effects[1].Currency = "jpy" }, Mismatched},
	{"charged under a key of its own", func(e *Evidence) { e.Effects[1].IdempotencyKey = "other" }, Mismatched},
	{"wrong id upstream", func(e *Evidence) {
		other := "ch_9"
		change(e, "second", "pay_2", func(p *Payment) { p.UpstreamID = &other })
	}, Mismatched},
	{"succeeded without a charge", func(e *Evidence) { e.Effects = slices.Delete(e.Effects, 2, 3) }, Unpaid},
	{"charge called failed", func(e *Evidence) { change(e, "default", "pay_4", func(p *Payment) { p.Status = "failed" }) }, Misjudged},
	{"decline called success", func(e *Evidence) { change(e, "second", "pay_3", func(p *Payment) { p.Status = "succeeded" }) }, Unpaid},
	{"good card called declined", func(e *Evidence) {
		e.Effects = slices.Delete(e.Effects, 2, 3)
		change(e, "default", "pay_4", func(p *Payment) { p.Status = "failed" })
	}, Misjudged},
	{"unknown outcome called final", func(e *Evidence) {
		change(e, "default", "pay_5", func(p *Payment) { p.Status, p.Sync.State = "failed", "settled" })
	}, Misjudged},
	{"final payment changed", func(e *Evidence) {
		was := *e.Exchanges[2].Payment
		was.Status = "failed"
		e.Exchanges[2].Payment = &was
	}, Revised},
	{"final payment sent again", func(e *Evidence) {
		was := *e.Exchanges[2].Payment
		e.Exchanges[2].Payment = &was
		change(e, "default", "pay_1", func(p *Payment) { p.Sync.Attempts++ })
	}, SentAgain},
	{"report off by one payment", func(e *Evidence) { e.Reports["second"][0].Count++ }, Unbalanced},
	{"report off by one cent", func(e *Evidence) { e.Reports["default"][1].Amount-- }, Unbalanced},
	{"report leaves a line out", func(e *Evidence) { e.Reports["default"] = e.Reports["default"][:2] }, Unbalanced},
	{"sums differ upstream", func(e *Evidence) { e.Effects[0].Amount-- }, Unbalanced},
	{"sent before it was kept", func(e *Evidence) {
		e.Posts = append(e.Posts, blackbox.Post{Path: "/v1/charges", Key: "pay_9", Payment: "pay_9"})
	}, Unannounced},
	{"sent without a recorded attempt", func(e *Evidence) { change(e, "default", "pay_4", func(p *Payment) { p.Sync.Attempts = 0 }) }, Unannounced},
	{"sent without a key", func(e *Evidence) { e.Posts[0].Key = "" }, Unannounced},
	{"sent other bytes under the same key", func(e *Evidence) { e.Posts[1].Body[0]++ }, Resealed},
	{"event lost", func(e *Evidence) {
		e.Stream = slices.DeleteFunc(e.Stream, func(v Event) bool { return v.ID == "evt_1_2" })
	}, Untold},
	{"event stream lost", func(e *Evidence) { e.Stream = nil }, Untold},
	{"event told before the one before it", func(e *Evidence) { e.Stream[0], e.Stream[1] = e.Stream[1], e.Stream[0] }, Disordered},
	{"event out of nowhere", func(e *Evidence) {
		e.Stream[0].ID = "evt_9"
	}, Invented},
	{"event under another tenant's name", func(e *Evidence) { e.Stream[2].On = "evt.default.payment.created" }, Invented},
	{"event changed", func(e *Evidence) { e.Stream[2].Subject = "pay_3" }, Invented},
	{"tenant lost", func(e *Evidence) { e.Hired[0].Opens = http.StatusUnauthorized }, TenantLost},
	{"user lost", func(e *Evidence) { e.Newcomers[0].Found = false }, UserLost},
	{"mail lost", func(e *Evidence) { e.Newcomers[1].Welcomed = false }, MailLost},
	{"payment out of nowhere", func(e *Evidence) { e.Kept["second"] = append(e.Kept["second"], Payment{ID: "pay_9"}) }, Unasked},
	{"valid request refused", func(e *Evidence) { e.Exchanges[0].Status = 400 }, Unfit},
	{"acknowledged payment not found", func(e *Evidence) { e.Exchanges[2].Status, e.Exchanges[2].Payment = 404, nil }, Unfit},
	{"internal error", func(e *Evidence) { e.Exchanges[0].Status = 500 }, Internal},
	{"request dropped", func(e *Evidence) {
		e.Exchanges[3].Status, e.Exchanges[3].Error = 0, "EOF"
	}, Speechless},
	{"acknowledgement without a payment", func(e *Evidence) { e.Exchanges[1].Payment = nil }, Internal},
	{"box ended by itself", func(e *Evidence) { e.Problems = []Problem{{"the box ended by itself", "exit status 2"}} }, Failed},
	{"check not clean", func(e *Evidence) { e.Problems = []Problem{{"check", "exit status 1"}} }, Failed},
}

func TestJudgeCatchesPlantedDefects(t *testing.T) {
	for _, d := range defects {
		t.Run(d.name, func(t *testing.T) {
			e := sound()
			d.plant(&e)
			findings := Judge(e)
			if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Rule == d.rule }) {
				t.Errorf("not caught as %q; findings: %v", d.rule, findings)
			}
		})
	}
}

func TestEveryRuleHasAPlantedDefect(t *testing.T) {
	for _, rule := range []Rule{
		Lost, Changed, Kept, Twice, Replay, Overruled, Doubled, Orphan, Unsettled, Mismatched, Unpaid, Misjudged,
		Revised, SentAgain, Unbalanced, Unannounced, Resealed, Untold, Disordered, Invented, TenantLost, UserLost, MailLost, Unasked, Unfit, Internal, Speechless, Failed,
	} {
		if !slices.ContainsFunc(defects, func(d planted) bool { return d.rule == rule }) {
			t.Errorf("no planted defect shows that %q catches anything", rule)
		}
	}
}

// A box that broke off leaves no last word: nothing may be called lost that nobody looked for.
func TestJudgeOfABrokenRoundLooksAtAnswersOnly(t *testing.T) {
	e := sound()
	e.Collected, e.Kept, e.Reports = false, nil, nil
	for _, f := range Judge(e) {
		t.Error(f)
	}
	e.Exchanges[0].Status = 500
	if findings := Judge(e); len(findings) != 1 || findings[0].Rule != Internal {
		t.Errorf("findings %v, want the one internal error", findings)
	}
}

func TestIdleRoundIsNamed(t *testing.T) {
	busy := Tally{Acknowledged: 1, NoAnswer: 1, Replays: 1, Contradicted: 1, Refused: 1, Killed: 1, Recovering: 1, Effects: 1, Stuck: 1, Fired: map[string]int64{"line cut": 1}}
	for _, k := range kinds {
		busy.Fired[k.name] = 1
	}
	if idle := busy.Idle(); len(idle) != 0 {
		t.Errorf("a busy round is called idle: %v", idle)
	}
	busy.Recovering, busy.Fired["garbage"] = 0, 0
	if idle := strings.Join(busy.Idle(), ", "); idle != "SIGKILL in recovery, fault garbage" {
		t.Errorf("idle is %q", idle)
	}
}

func drop(ps []Payment, id string) []Payment {
	return slices.DeleteFunc(ps, func(p Payment) bool { return p.ID == id })
}

func find(e Evidence, tenant, id string) Payment {
	i := slices.IndexFunc(e.Kept[tenant], func(p Payment) bool { return p.ID == id })
	return e.Kept[tenant][i]
}

func change(e *Evidence, tenant, id string, to func(*Payment)) {
	for i, p := range e.Kept[tenant] {
		if p.ID == id {
			to(&p)
			e.Kept[tenant][i] = p
		}
	}
}
