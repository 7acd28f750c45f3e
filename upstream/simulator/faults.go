package simulator

import (
	"errors"
	"fmt"
	"math"
)

// Faults are probabilities from 0 to 1, drawn for each request in the order in which they stand here; the first that
// hits is what happens.
type Faults struct {
	// Refuse closes the connection without reading the request's body. No effect. (Cut on a started simulator
	// goes further: the dial is refused.)
	Refuse float64 `json:"refuse"`
	// CaptivePortal answers 200 with an HTML page that wants a click. No effect.
	CaptivePortal float64 `json:"captive_portal"`
	// Hang never answers. No effect.
	Hang float64 `json:"hang"`
	// Error429 answers 429 with Control.RetryAfter. No effect, nothing stored.
	Error429 float64 `json:"error429"`
	// Error503 answers 503 before any work. No effect, nothing stored: the next try may do.
	Error503 float64 `json:"error503"`
	// Error500 fails while working. No effect, but the 500 is stored under the key and replayed as long as the key is
	// remembered, as Stripe does.
	Error500 float64 `json:"error500"`
	// Error500AfterEffect takes effect, then answers 500; stored and replayed likewise.
	Error500AfterEffect float64 `json:"error500_after_effect"`
	// DropAfterEffect takes effect, then closes the connection without an answer.
	DropAfterEffect float64 `json:"drop_after_effect"`
	// HangAfterEffect takes effect, then never answers.
	HangAfterEffect float64 `json:"hang_after_effect"`
	// SlowBody takes effect, then sends the answer's body one byte a second.
	SlowBody float64 `json:"slow_body"`
	// Garbage takes effect, then answers 200 with something else: HTML, half of the JSON, another
	// amount, another currency, another id, noise; in turn.
	Garbage float64 `json:"garbage"`
	// DeclineRepeat forgets the answer that is kept under the key of a repeat whose first request took effect, and declines the repeat,
	// as a processor does that knows keys for less long than it promised. No second effect; the decline is kept and replayed from then on.
	DeclineRepeat float64 `json:"decline_repeat"`
}

// fault names one of Faults, as in /_control.
type fault string

const (
	noFault             fault = ""
	refuse              fault = "refuse"
	captivePortal       fault = "captive_portal"
	hang                fault = "hang"
	error429            fault = "error429"
	error503            fault = "error503"
	error500            fault = "error500"
	error500AfterEffect fault = "error500_after_effect"
	dropAfterEffect     fault = "drop_after_effect"
	hangAfterEffect     fault = "hang_after_effect"
	slowBody            fault = "slow_body"
	garbage             fault = "garbage"
	declineRepeat       fault = "decline_repeat"
)

type chance struct {
	fault       fault
	probability float64
}

func (f Faults) list() []chance {
	return []chance{
		{refuse, f.Refuse}, {captivePortal, f.CaptivePortal}, {hang, f.Hang}, {error429, f.Error429},
		{error503, f.Error503}, {error500, f.Error500}, {error500AfterEffect, f.Error500AfterEffect},
		{dropAfterEffect, f.DropAfterEffect}, {hangAfterEffect, f.HangAfterEffect}, {slowBody, f.SlowBody},
		{garbage, f.Garbage}, {declineRepeat, f.DeclineRepeat},
	}
}

// Control is what POST /_control sets and GET /_control shows. A member that a request leaves out stays as it is.
type Control struct {
	Faults
	Settling
	// RetryAfter is the header of error429, as it is sent. Empty: none.
	RetryAfter string `json:"retry_after"`
	// LatencyMS is how long each request is worked on.
	LatencyMS int64 `json:"latency_ms"`
	// Rate is the limit of requests a second; 0: none.
	Rate int `json:"rate"`
	// Cut closes every connection at once, but for /_control and /_ledger.
	Cut bool `json:"cut"`
}

func (c Control) validate() error {
	var problems []error
	for _, f := range c.list() {
		if !probability(f.probability) {
			problems = append(problems, fmt.Errorf("%s: want a probability from 0 to 1", f.fault))
		}
	}
	if c.LatencyMS < 0 || c.LatencyMS > 600_000 {
		problems = append(problems, errors.New("latency_ms: want 0 to 600000"))
	}
	if c.Rate < 0 {
		problems = append(problems, errors.New("rate: must not be negative"))
	}
	for _, r := range c.RetryAfter {
		if r < 0x20 || r > 0x7e {
			problems = append(problems, errors.New("retry_after: printable ASCII only"))
			break
		}
	}
	problems = append(problems, c.Settling.validate())
	return errors.Join(problems...)
}

func probability(p float64) bool { return !math.IsNaN(p) && p >= 0 && p <= 1 }

// SetFaults replaces all probabilities; the zero value heals the processor.
func (s *Simulator) SetFaults(f Faults) error {
	if err := (Control{Faults: f}).validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.control.Faults = f
	return nil
}

// Fired returns how often each fault happened, "cut" and "rate" among them.
func (s *Simulator) Fired() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]int64, len(s.fired))
	for k, v := range s.fired {
		m[k] = v
	}
	return m
}

// draw decides what happens to a request and returns the settings of the moment.
func (s *Simulator) draw() (fault, Control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hit := noFault
	for _, c := range s.control.list() {
		// All are drawn, so that one fault's fate does not hang on the others' settings.
		if s.random.Float64() < c.probability && hit == noFault {
			hit = c.fault
		}
	}
	return hit, s.control
}

func (s *Simulator) fire(f string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fired[f]++
}
