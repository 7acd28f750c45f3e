package ledger

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Status is what a payment is to the business. DESIGN.md beside this file
// draws who moves it.
type Status string

const (
	// Pending: accepted and kept, not yet settled. Set by [Ledger.Pay] or [Ledger.Confirm];
	// left by the settling transaction, or while provably unsent by [Ledger.Cancel] and a
	// full refund.
	Pending Status = "pending"
	// Succeeded: the processor holds exactly one charge for it. Final.
	Succeeded Status = "succeeded"
	// Failed: the processor gave a final no. Final.
	Failed Status = "failed"
	// Canceled: given up while provably unsent, by [Ledger.Cancel] or a full refund. Final.
	Canceled Status = "canceled"
	// RequiresConfirmation: an intent that its client has not confirmed; nothing is
	// sent for it. Left by [Ledger.Confirm] or [Ledger.Cancel].
	RequiresConfirmation Status = "requires_confirmation"
)

// Final reports whether the status never changes again.
func (s Status) Final() bool { return s == Succeeded || s == Failed || s == Canceled }

// SyncState says where a payment is on its way upstream.
type SyncState string

const (
	// Queued: nothing that could have an effect has left the box. Set at
	// acceptance, and again when a send is known not to have been processed.
	Queued SyncState = "queued"
	// Sending: an attempt is sealed on disk and may be on the wire. Set by the
	// settler before the first byte leaves; after a crash it means "in doubt".
	Sending SyncState = "sending"
	// InDoubt: an attempt ended without a clear answer, or the processor's object has no
	// end yet. Retried with the same upstream key while the processor remembers it, then
	// looked up; asked for by its id once that is known.
	InDoubt SyncState = "in_doubt"
	// Settled: the status is final.
	Settled SyncState = "settled"
	// Review: the box could neither find out nor exclude that it took effect; a person
	// decides, by [Ledger.Resolve]. Nothing is sent any more.
	Review SyncState = "review"
)

// Payment is a payment as its tenant sees it; its JSON is the outward form.
type Payment struct {
	ID             PaymentID         `json:"id"`
	Object         string            `json:"object"` // "payment"
	Amount         int64             `json:"amount"` // minor units
	Currency       string            `json:"currency"`
	Status         Status            `json:"status"`
	Sync           Sync              `json:"sync"`
	UpstreamID     *string           `json:"upstream_id"`
	Failure        *Failure          `json:"failure"`
	AmountRefunded int64             `json:"amount_refunded"`
	OrderID        *string           `json:"order_id"`
	UserID         *string           `json:"user_id"`
	Description    *string           `json:"description"`
	Metadata       map[string]string `json:"metadata"`
	TakenOffline   bool              `json:"taken_offline"`
	CreatedAt      time.Time         `json:"created_at"`
	SettledAt      *time.Time        `json:"settled_at"`

	Means         Means `json:"-"` // how it is paid
	MethodMissing bool  `json:"-"` // an unconfirmed intent that names no payment method yet
}

// Means says how a payment is paid, and so which of the processor's objects it becomes.
type Means string

const (
	BySource Means = "source"         // a token: a charge
	ByMethod Means = "payment_method" // a payment method: a payment intent, made first and confirmed then
)

// Sync is a payment's way upstream.
type Sync struct {
	State         SyncState  `json:"state"`
	Attempts      int        `json:"attempts"`        // sends that were sealed
	FirstSentAt   *time.Time `json:"first_sent_at"`   // the first attempt that may have left
	NextAttemptAt *time.Time `json:"next_attempt_at"` // nil: as soon as the line allows
	LastError     *string    `json:"last_error"`
}

// Failure is the processor's final no.
type Failure struct {
	Code        string `json:"code"`
	DeclineCode string `json:"decline_code"`
	Message     string `json:"message"`
}

// NewPayment is a request to take a payment.
type NewPayment struct {
	Amount        int64
	Currency      string
	Source        string // a processor's token; exactly one of Source and PaymentMethod
	PaymentMethod string
	OrderID       string
	UserID        string // an app's own id; it routes the payment to a slot
	Description   string
	Metadata      map[string]string

	// Surface names the interface that the request came by, "" for the native one: a key
	// spans interfaces, and one that was used on another was used for another request.
	Surface string
	// Unconfirmed makes an intent that waits for [Ledger.Confirm]; PaymentMethod may then
	// be empty, Source must be.
	Unconfirmed bool
	// Awaited: its client waits for the outcome ([Ledger.Await]), so that it is sent at once if the queue is clear. It does not make the request another.
	Awaited bool
}

const (
	tokenMax         = 255  // bytes; processors' tokens are under 100
	appIDMax         = 255  // bytes of an id that an app made up
	descriptionMax   = 1000 // bytes; a receipt line, not a document
	metadataKeysMax  = 50   // Stripe's limits, so that what is taken offline can be sent later
	metadataKeyMax   = 40   // characters
	metadataValueMax = 500  // characters
)

// reservedMetadata is the box's own name space in the metadata it sends.
const reservedMetadata = "tenderbox_"

// validate checks and normalises p. The first problem is reported, with its member.
func (p *NewPayment) validate() error {
	if p.Amount < 1 || p.Amount > amountMax {
		return invalid("amount_invalid", "amount", fmt.Sprintf("must be a whole number of minor units from 1 to %d", int64(amountMax)))
	}
	c, ok := parseCurrency(p.Currency)
	if !ok {
		return invalid("currency_invalid", "currency", "must be an ISO 4217 code of a currency in use")
	}
	p.Currency = c
	switch {
	case p.Unconfirmed && p.Source != "":
		return invalid("source_unconfirmed", "source", "a source is charged at once; name a payment_method, or none yet")
	case p.Source == "" && p.PaymentMethod == "" && !p.Unconfirmed:
		return invalid("source_missing", "source", "one of source and payment_method is required")
	case p.Source != "" && p.PaymentMethod != "":
		return invalid("source_ambiguous", "payment_method", "give either source or payment_method, not both")
	}
	for _, m := range []struct {
		field, value string
		max          int
		token        bool
	}{
		{"source", p.Source, tokenMax, true},
		{"payment_method", p.PaymentMethod, tokenMax, true},
		{"order_id", p.OrderID, appIDMax, true},
		{"user_id", p.UserID, appIDMax, true},
		{"description", p.Description, descriptionMax, false},
	} {
		if err := checkText(m.field, m.value, m.max, m.token); err != nil {
			return err
		}
		if m.field != "order_id" && m.field != "user_id" && holdsCardNumber(m.value) {
			return cardData(m.field)
		}
	}
	return validateMetadata(p.Metadata)
}

// checkToken checks a processor's token that came without the rest of a payment.
func checkToken(field, token string) error {
	if err := checkText(field, token, tokenMax, true); err != nil {
		return err
	}
	if holdsCardNumber(token) {
		return cardData(field)
	}
	return nil
}

func validateMetadata(metadata map[string]string) error {
	if len(metadata) > metadataKeysMax {
		return invalid("metadata_limit", "metadata", fmt.Sprintf("at most %d keys", metadataKeysMax))
	}
	for k, v := range metadata {
		if k == "" || utf8.RuneCountInString(k) > metadataKeyMax || utf8.RuneCountInString(v) > metadataValueMax {
			return invalid("metadata_limit", "metadata", fmt.Sprintf("keys have 1 to %d characters, values at most %d", metadataKeyMax, metadataValueMax))
		}
		if strings.ContainsAny(k, "[]") || strings.HasPrefix(k, reservedMetadata) {
			return invalid("metadata_invalid", "metadata", "keys hold no square brackets and do not begin with "+reservedMetadata)
		}
		if err := checkText("metadata", k, len(k), true); err != nil {
			return err
		}
		if err := checkText("metadata", v, len(v), false); err != nil {
			return err
		}
		if isCheckValue(k) || holdsCardNumber(k) || holdsCardNumber(v) {
			return cardData("metadata")
		}
	}
	return nil
}

func cardData(field string) error {
	return invalid("card_data_not_allowed", field, "looks like card data; send a token of your processor, never a card number")
}

// checkText bounds a text and refuses what no text needs. A token becomes part
// of a request upstream, so it holds no control characters at all.
func checkText(field, s string, bytesMax int, token bool) error {
	if len(s) > bytesMax {
		return invalid("text_too_long", field, fmt.Sprintf("at most %d bytes", bytesMax))
	}
	if !utf8.ValidString(s) {
		return invalid("text_invalid", field, "must be valid UTF-8")
	}
	for _, r := range s {
		if r == 0 || (unicode.IsControl(r) && (token || (r != '\n' && r != '\r' && r != '\t'))) {
			return invalid("text_invalid", field, "must not hold control characters")
		}
	}
	return nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// instant is a time as the ledger stores it: milliseconds since 1970, UTC, the
// resolution of the ids.
func instant(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
