package upstream

import (
	"errors"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	idLengthMax   = 255
	textLengthMax = 300 // of a processor's code or message, in bytes
	// stateLengthMax is more than twice the longest state there is.
	stateLengthMax = 60
)

// wireObject is the union of what the processor answers with. Members that are not named here are ignored;
// those that are must have the right type, exactly once.
type wireObject struct {
	Object   string            `json:"object"`
	ID       string            `json:"id"`
	Status   string            `json:"status"`
	Amount   int64             `json:"amount"`
	Currency string            `json:"currency"`
	Created  int64             `json:"created"`
	Metadata map[string]string `json:"metadata"`

	Captured       *bool  `json:"captured"`
	Paid           *bool  `json:"paid"`
	AmountReceived *int64 `json:"amount_received"`

	// Why it failed: a charge, a refund, an intent's latest confirmation.
	FailureCode      text       `json:"failure_code"`
	FailureMessage   text       `json:"failure_message"`
	FailureReason    text       `json:"failure_reason"`
	LastPaymentError *wireError `json:"last_payment_error"`

	Charge        reference `json:"charge"`
	PaymentIntent reference `json:"payment_intent"`
	LatestCharge  reference `json:"latest_charge"`

	Data    *[]wireObject `json:"data"`
	HasMore *bool         `json:"has_more"`

	Error *wireError `json:"error"`
}

type wireError struct {
	Type          text      `json:"type"`
	Code          text      `json:"code"`
	DeclineCode   text      `json:"decline_code"`
	Message       text      `json:"message"`
	Param         text      `json:"param"`
	Charge        reference `json:"charge"`
	PaymentIntent reference `json:"payment_intent"`
}

// text is shown to people and stored; it comes from a stranger.
type text string

func (t text) clean() string { return clean(string(t), textLengthMax) }

// clean cuts s and replaces what would break a log line or a terminal.
func clean(s string, lengthMax int) string {
	if len(s) > lengthMax {
		s = s[:lengthMax]
	}
	s = strings.ToValidUTF8(s, "")
	return strings.Map(func(r rune) rune {
		switch {
		case r < 0x20, r >= 0x7f && r < 0xa0,
			r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
			return ' '
		}
		return r
	}, s)
}

// reference names an object: by its id, or by the object itself where the processor expanded it.
type reference struct {
	ID     string `json:"id"`
	Status string `json:"status"` // "" if only the id was given
}

// UnmarshalJSONFrom takes a string, null, or an object with an id.
func (r *reference) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	*r = reference{}
	switch d.PeekKind() {
	case 'n':
		return d.SkipValue()
	case '"':
		return json.UnmarshalDecode(d, &r.ID)
	default:
		type plain reference // without this method
		return json.UnmarshalDecode(d, (*plain)(r))
	}
}

// id returns the reference if it is one that could stand in a path.
func (r reference) id() string {
	if !validID(r.ID) {
		return ""
	}
	return r.ID
}

// state returns the object's state behind a phrase; "" if it is not known.
func (r reference) state(phrase string) string {
	if r.Status == "" {
		return ""
	}
	return phrase + clean(r.Status, stateLengthMax)
}

var (
	errEncoded   = errors.New("compressed though nobody asked for it")
	errNotObject = errors.New("not a JSON object")
)

// decode reads one JSON object, strictly: valid UTF-8, no member twice, nothing behind it, not compressed.
func decode(header http.Header, body []byte) (w wireObject, err error) {
	if e := header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return w, errEncoded
	}
	if jsontext.Value(body).Kind() != '{' {
		return w, errNotObject
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return wireObject{}, err
	}
	return w, nil
}

// object returns the object if it could be one of that kind; else what is wrong with it. A plain processor may leave
// the member `object` out; one that names another kind is wrong.
func (w wireObject) object(kind string) (o Object, problem string) {
	switch o, problem = w.entry(kind); {
	case problem != "":
		return Object{}, problem
	case w.Amount == 0:
		return Object{}, "amount is missing or not positive"
	case w.Currency == "":
		return Object{}, "currency is missing or malformed"
	case w.Status == "":
		return Object{}, "status is missing or malformed"
	}
	return o, ""
}

// entry returns the object as a list shows it. A list proves which ids and metadata there are; others use the account too, so that an
// entry may have no state, or no amount, as no object of ours has.
func (w wireObject) entry(kind string) (o Object, problem string) {
	switch {
	case w.Object != "" && w.Object != kind:
		return o, "kind is another"
	case !validID(w.ID):
		return o, "id is missing or malformed"
	case w.Amount < 0:
		return o, "amount is missing or not positive"
	case w.Currency != "" && !validCurrency(w.Currency):
		return o, "currency is missing or malformed"
	case clean(w.Status, stateLengthMax) != w.Status:
		return o, "status is missing or malformed"
	}
	return Object{
		Kind: kind, ID: w.ID, Status: w.Status, Amount: w.Amount, Currency: strings.ToLower(w.Currency),
		Created: w.Created, Metadata: w.Metadata, Charge: firstOf(w.Charge.id(), w.LatestCharge.id()), PaymentIntent: w.PaymentIntent.id(),
	}, ""
}

// failure is what the object itself says of why it failed.
func (w wireObject) failure() Failure {
	if w.LastPaymentError != nil {
		return w.LastPaymentError.failure()
	}
	return Failure{Code: firstOf(w.FailureCode.clean(), w.FailureReason.clean()), Message: w.FailureMessage.clean()}
}

// partial reports a success that contradicts itself: authorised only, unpaid, or received in part.
func (w wireObject) partial() bool {
	return w.Captured != nil && !*w.Captured || w.Paid != nil && !*w.Paid ||
		w.AmountReceived != nil && *w.AmountReceived != w.Amount
}

func (e wireError) failure() Failure {
	return Failure{
		Type: e.Type.clean(), Code: e.Code.clean(), DeclineCode: e.DeclineCode.clean(), Message: e.Message.clean(),
		Param: e.Param.clean(), ObjectID: firstOf(e.PaymentIntent.id(), e.Charge.id()),
	}
}

// validID reports whether id could be the processor's: it will stand in paths and log lines.
func validID(id string) bool {
	if id == "" || len(id) > idLengthMax {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

func validCurrency(s string) bool {
	if len(s) != 3 {
		return false
	}
	for _, c := range []byte(strings.ToLower(s)) {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}
