package upstream

import (
	"net/url"
	"sort"
	"strconv"
	"strings"
)

// ChargeRequest is a payment as the processor is asked for it.
type ChargeRequest struct {
	Amount        int64  // minor units
	Currency      string // ISO 4217, any case; sent in lower case
	Source        string // a token: asks for a charge
	PaymentMethod string // a payment method: asks for a payment intent, which is confirmed by a request of its own
	Description   string
	Metadata      map[string]string
}

// Encode returns the path and the form-encoded body. Equal requests give equal bytes, whatever the
// order of the map, so that a sealed body can be compared and sent again under the same key.
func (r ChargeRequest) Encode() (path string, body []byte) {
	var f form
	f.add("amount", strconv.FormatInt(r.Amount, 10))
	if r.PaymentMethod != "" {
		path = PathIntents
	} else {
		path = PathCharges
	}
	f.add("currency", strings.ToLower(r.Currency))
	f.addSet("description", r.Description)
	f.addMetadata(r.Metadata)
	f.addSet("payment_method", r.PaymentMethod)
	f.addSet("source", r.Source)
	return path, f
}

// ConfirmRequest confirms a payment intent: the step that moves the money.
type ConfirmRequest struct {
	Intent        string // pi_…
	PaymentMethod string
}

// Encode returns the path and the form-encoded body, as ChargeRequest.Encode does. It asks for
// error_on_requires_action: nobody is there who could act.
func (r ConfirmRequest) Encode() (path string, body []byte) {
	var f form
	f.add("error_on_requires_action", "true")
	f.addSet("payment_method", r.PaymentMethod)
	return PathIntents + "/" + url.PathEscape(r.Intent) + "/confirm", f
}

// RefundRequest gives back all or part of a charge or a payment intent.
type RefundRequest struct {
	Amount        int64 // minor units; zero: all that is left. Name it, so that the answer can be compared.
	Charge        string
	PaymentIntent string
	Reason        string // duplicate, fraudulent, requested_by_customer; "" for none
	Metadata      map[string]string
}

// Encode returns the path and the form-encoded body, as ChargeRequest.Encode does.
func (r RefundRequest) Encode() (path string, body []byte) {
	var f form
	if r.Amount != 0 {
		f.add("amount", strconv.FormatInt(r.Amount, 10))
	}
	f.addSet("charge", r.Charge)
	f.addMetadata(r.Metadata)
	f.addSet("payment_intent", r.PaymentIntent)
	f.addSet("reason", r.Reason)
	return PathRefunds, f
}

// The processor's collections. A path below the base URL is one of these, or one of these, a slash and an id.
const (
	PathCharges = "/charges"
	PathIntents = "/payment_intents"
	PathRefunds = "/refunds"
)

// form is a form-encoded body in the order in which fields were added.
type form []byte

func (f *form) add(name, value string) {
	if len(*f) > 0 {
		*f = append(*f, '&')
	}
	*f = append(*f, url.QueryEscape(name)...)
	*f = append(*f, '=')
	*f = append(*f, url.QueryEscape(value)...)
}

func (f *form) addSet(name, value string) {
	if value != "" {
		f.add(name, value)
	}
}

func (f *form) addMetadata(m map[string]string) {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		f.add("metadata["+k+"]", m[k])
	}
}
