package model

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"tenderbox/ledger"
	"tenderbox/tenants"
	"tenderbox/upstream/simulator"
)

// Kind is what a client asks for.
type Kind string

// What clients ask for.
const (
	Pay     Kind = "pay"
	Intend  Kind = "intend" // an intent that is confirmed later
	Confirm Kind = "confirm"
	Cancel  Kind = "cancel"
	Refund  Kind = "refund"
)

// An Ask is one thing that a client wants, however often it sends the request.
type Ask struct {
	N      int
	Shop   tenants.ID
	Key    ledger.IdempotencyKey // "": none; then it is sent once
	Kind   Kind
	Amount int64
	Money  string // currency
	Token  string // of Pay: the source or, as it begins with pm_, the payment method; of Intend and Confirm what it is confirmed with
	Of     string // of the others: the payment
}

// asker is the name under which a payment or refund tells whose ask it is.
const asker = "ask"

func (a Ask) String() string {
	s := fmt.Sprintf("#%d %s: %s", a.N, a.Shop, a.Kind)
	if a.Of != "" {
		s += " " + a.Of
	}
	if a.Amount != 0 {
		s += fmt.Sprintf(" %d %s", a.Amount, a.Money)
	}
	return s + fmt.Sprintf(" %s key %q", a.Token, a.Key)
}

// Said is how a request ended for its client.
type Said string

// The ends of a request. Of one that nobody answered, or that was answered with "not now", the client knows nothing (RELIABILITY, rule 4).
const (
	Accepted Said = "accepted"
	Refused  Said = "refused"
	Unknown  Said = "unknown"
)

// An Exchange is a request and its answer. Times are places in the log: between two of them lies one thing that happened.
type Exchange struct {
	Ask            int
	Life           int
	Sent, Answered int
	Said           Said
	Code           string // of a refusal
	Replayed       bool
	Payment        *ledger.Payment // of an answer
	Refund         *ledger.Refund
}

// A Sight is a payment as a client read it, or as an answer showed it.
type Sight struct {
	At      int
	Shop    tenants.ID
	Payment ledger.Payment
}

// An Outage is a stretch of the log in which nothing could come from the processor.
type Outage struct{ From, To int }

// Log is what the clients and the weather know, kept outside of the box: with what the processor says and what the box holds in the end it is all
// that the judge goes by.
type Log struct {
	mu        sync.Mutex // guards the rest
	began     time.Time
	at        int
	asks      []Ask
	exchanges []Exchange
	sights    []Sight
	outages   []Outage
	cases     []Case
	down      bool
	trace     []string
}

// place returns the next place in the log. The caller holds mu.
func (l *Log) place() int {
	l.at++
	return l.at
}

// tracef notes what happened, for whoever reads why a seed failed.
func (l *Log) tracef(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trace = append(l.trace, fmt.Sprintf("%14s  ", time.Since(l.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// ask enters a new wish, and numbers it.
func (l *Log) ask(a Ask) Ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.N = len(l.asks)
	l.asks = append(l.asks, a)
	return a
}

func (l *Log) sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.place()
}

// answered enters a request's end, and what it showed.
func (l *Log) answered(a Ask, x Exchange) {
	l.mu.Lock()
	x.Answered = l.place()
	l.exchanges = append(l.exchanges, x)
	if x.Payment != nil {
		l.sights = append(l.sights, Sight{x.Answered, a.Shop, *x.Payment})
	}
	l.mu.Unlock()
	what := string(x.Said)
	switch {
	case x.Payment != nil:
		what += fmt.Sprintf(" %s %s, %s", x.Payment.ID, x.Payment.Status, x.Payment.Sync.State)
	case x.Refund != nil:
		what += fmt.Sprintf(" %s %s, %s", x.Refund.ID, x.Refund.Status, x.Refund.Sync.State)
	case x.Code != "":
		what += " " + x.Code
	}
	if x.Replayed {
		what += ", replayed"
	}
	l.tracef("%v → %s", a, what)
}

func (l *Log) saw(shop tenants.ID, p ledger.Payment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sights = append(l.sights, Sight{l.place(), shop, p})
}

// line notes that the line went down, or is up.
func (l *Log) line(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch at := l.place(); {
	case down && !l.down:
		l.outages = append(l.outages, Outage{From: at})
	case !down && l.down:
		l.outages[len(l.outages)-1].To = at
	}
	l.down = down
}

// review notes what a person was given.
func (l *Log) review(c Case) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cases = append(l.cases, c)
}

// Story is the trace of a seed as text.
func (l *Log) Story() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.trace, "\n")
}

// Evidence is all that the judge knows.
type Evidence struct {
	Asks      []Ask
	Exchanges []Exchange
	Sights    []Sight
	Outages   []Outage
	Cases     []Case
	Garbled   bool // the processor has answered garbage, which may have shown another amount
	Limits    map[tenants.ID]map[string]tenants.OfflineLimit

	// What the box holds in the end, and says of itself.
	Shops    map[tenants.ID]Books
	Exposed  map[string]ledger.Sum
	Findings []ledger.Finding
	Compared map[tenants.ID]ledger.Reconciliation

	// What took effect at the processor, and what of its refunds has failed since.
	Charges []simulator.Effect
	Refunds []simulator.Effect
}

// Books are what the box holds of one shop's.
type Books struct {
	Payments []ledger.Payment
	Refunds  []ledger.Refund
	Events   []ledger.Event // in order
}

// amend changes an ask that was not sent yet.
func (l *Log) amend(a Ask, change func(*Ask)) Ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.asks[a.N])
	return l.asks[a.N]
}

// intents are the sights of payments that were made to be confirmed later.
func (l *Log) intents() (seen []Sight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.exchanges {
		if l.asks[x.Ask].Kind == Intend && x.Payment != nil {
			seen = append(seen, Sight{x.Answered, l.asks[x.Ask].Shop, *x.Payment})
		}
	}
	return seen
}

// askOf returns the ask that a payment was made for.
func (l *Log) askOf(p ledger.Payment) Ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, _ := askIn(p.Metadata)
	return l.asks[n]
}
