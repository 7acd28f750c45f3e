package torture

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"tenderbox/internal/blackbox"
	"tenderbox/upstream/simulator"
)

// metadataKey is the member of a payment's metadata that carries the client's idempotency key, so that the
// judge tells payments apart without asking the box's own index of keys.
const metadataKey = "torture_key"

// Ask is a payment that a client wants, under one idempotency key.
type Ask struct {
	Tenant   string
	Key      string
	Amount   int64
	Currency string
	Token    string // the source, or the payment method
	Method   bool   // Token is a payment method
	User     string // "": none
	Declined bool   // the processor will say no
	Refused  bool   // no valid request: the box must say no
}

func (a Ask) id() askID { return askID{a.Tenant, a.Key} }

// askID names an Ask: a key belongs to its tenant.
type askID struct{ Tenant, Key string }

func (id askID) String() string { return id.Tenant + "/" + id.Key }

// Act is what a client did in one exchange.
type Act string

const (
	// Pay sends the Ask; a repetition is the same act.
	Pay Act = "pay"
	// Contradict sends another amount under the same key.
	Contradict Act = "contradict"
	// Read asks for the payment by its id.
	Read Act = "read"
)

// Exchange is one request and its answer, as the client saw them.
type Exchange struct {
	Act      Act
	Tenant   string
	Key      string
	Sent     time.Time
	Answered time.Time
	Status   int // 0: no answer
	Replayed bool
	Code     string   // of a problem document
	Payment  *Payment // of a 2xx
	Error    string   // why there was no answer, or none that could be read
	HungUp   bool     // because the client did not wait any longer
}

func (x Exchange) id() askID { return askID{x.Tenant, x.Key} }

// Acknowledged tells whether the box took the payment, as far as this exchange shows.
func (x Exchange) Acknowledged() bool { return x.Status/100 == 2 && x.Payment != nil }

// Definite tells whether the answer excludes that this request made a payment: a 4xx, but for the 409 and the
// 429 that ask for a repetition.
func (x Exchange) Definite() bool {
	return x.Status/100 == 4 && x.Status != 409 && x.Status != 429
}

// Payment is the part of the box's payment that the judge looks at.
type Payment struct {
	ID       string `json:"id"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Status   string `json:"status"`
	Sync     struct {
		State     string  `json:"state"`
		Attempts  int     `json:"attempts"`
		LastError *string `json:"last_error"`
	} `json:"sync"`
	UpstreamID *string           `json:"upstream_id"`
	UserID     *string           `json:"user_id"`
	Metadata   map[string]string `json:"metadata"`
}

func (p Payment) final() bool { return p.Status == "succeeded" || p.Status == "failed" }

// ReportRow is a line of the end-of-day report.
type ReportRow struct {
	Currency       string `json:"currency"`
	Status         string `json:"status"`
	Count          int64  `json:"count"`
	Amount         int64  `json:"amount"`
	AmountRefunded int64  `json:"amount_refunded"`
}

// Problem is something that must not happen whatever was asked: a box that ends by itself, an unclean check.
type Problem struct{ What, Detail string }

// Life is a time in which the box served: from ready until it was told to end.
type Life struct{ From, To time.Time }

// Evidence is all that is known about a round, none of it from inside the box.
type Evidence struct {
	Asks      []Ask
	Exchanges []Exchange
	Lives     []Life
	Problems  []Problem

	// The processor's side.
	Posts   []blackbox.Post
	Effects []simulator.Effect

	// The box's last word by tenant, after a crash. Collected tells whether it was heard.
	Collected bool
	Kept      map[string][]Payment
	Reports   map[string][]ReportRow

	// What the clerk made, and whether a queue was lost, with the mails that were in it. Inspected tells whether it was asked for at the end.
	Inspected bool
	Hired     []Hire
	Newcomers []Newcomer
	QueueLost bool

	// The events: by tenant as the journals have them, and as the event stream has them. Announced tells whether it was read.
	Announced bool
	Journal   map[string][]Event
	Stream    []Event
}

// write puts the evidence into a file.
func (e Evidence) write(file string) error {
	return writeLines(file, func(line func(kind string, v any)) {
		lines(line, "problem", e.Problems)
		lines(line, "life", e.Lives)
		lines(line, "ask", e.Asks)
		lines(line, "exchange", e.Exchanges)
		lines(line, "post", e.Posts)
		lines(line, "effect", e.Effects)
		for tenant, payments := range e.Kept {
			lines(line, "kept by "+tenant, payments)
		}
		for tenant, rows := range e.Reports {
			line("report of "+tenant, rows)
		}
		lines(line, "hire", e.Hired)
		lines(line, "newcomer", e.Newcomers)
		for tenant, events := range e.Journal {
			lines(line, "journal of "+tenant, events)
		}
		lines(line, "stream", e.Stream)
	})
}

// writeLines makes a file of what tell hands to line: one JSON object a line, of one member named by its kind.
func writeLines(file string, tell func(line func(kind string, v any))) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	encode := json.NewEncoder(w)
	tell(func(kind string, v any) { err = errors.Join(err, encode.Encode(map[string]any{kind: v})) })
	return errors.Join(err, w.Flush(), f.Close())
}

// lines writes a line for each of many.
func lines[T any](line func(kind string, v any), kind string, all []T) {
	for _, v := range all {
		line(kind, v)
	}
}

// history collects what happens while it happens.
type history struct {
	mu sync.Mutex // guards what follows
	e  Evidence
}

func (h *history) ask(a Ask) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Asks = append(h.e.Asks, a)
}

func (h *history) exchange(x Exchange) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Exchanges = append(h.e.Exchanges, x)
}

func (h *history) life(l Life) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Lives = append(h.e.Lives, l)
}

func (h *history) problem(what, detail string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Problems = append(h.e.Problems, Problem{what, detail})
}

func (h *history) keep(kept map[string][]Payment, reports map[string][]ReportRow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Kept, h.e.Reports, h.e.Collected = kept, reports, true
}

// acknowledged returns what was asked and granted so far.
func (h *history) acknowledged() []Ask {
	h.mu.Lock()
	defer h.mu.Unlock()
	yes := map[askID]bool{}
	for _, x := range h.e.Exchanges {
		if x.Act == Pay && x.Acknowledged() {
			yes[x.id()] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(h.e.Asks), func(a Ask) bool { return !yes[a.id()] })
}

// evidence returns what was seen so far, with the processor's side as it is now.
func (h *history) evidence(p *blackbox.Processor) Evidence {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.e
	e.Posts, e.Effects = p.Posts(), p.Ledger().Charges
	return e
}

func (h *history) announce(journal map[string][]Event, stream []Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Announced, h.e.Journal, h.e.Stream = true, journal, stream
}

func (h *history) hire(who Hire) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Hired = append(h.e.Hired, who)
}

func (h *history) welcome(who Newcomer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Newcomers = append(h.e.Newcomers, who)
}

func (h *history) made() ([]Hire, []Newcomer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.e.Hired), slices.Clone(h.e.Newcomers)
}

func (h *history) inspected(hired []Hire, newcomers []Newcomer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.Inspected, h.e.Hired, h.e.Newcomers = true, hired, newcomers
}

// mailed notes who was found to have mail, and returns how many have none.
func (h *history) mailed(to map[[2]string]bool, queueLost bool) (without int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.e.QueueLost = queueLost
	for i, u := range h.e.Newcomers {
		h.e.Newcomers[i].Welcomed = to[[2]string{u.Tenant, u.Email}]
		if !h.e.Newcomers[i].Welcomed {
			without++
		}
	}
	return without
}
