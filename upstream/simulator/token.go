package simulator

import "strings"

// fate is what becomes of a charge.
type fate int

const (
	pays        fate = iota
	refused          // by the bank
	processes        // and nobody knows yet
	wantsAction      // of the person who pays
)

// declines maps the end of a test token (tok_… or pm_card_…) to what the bank says. The names are Stripe's.
var declines = map[string]failure{
	"chargeDeclined":                  {Code: "card_declined", DeclineCode: "generic_decline", Message: "Your card was declined."},
	"chargeDeclinedInsufficientFunds": {Code: "card_declined", DeclineCode: "insufficient_funds", Message: "Your card has insufficient funds."},
	"chargeDeclinedLostCard":          {Code: "card_declined", DeclineCode: "lost_card", Message: "Your card was declined."},
	"chargeDeclinedStolenCard":        {Code: "card_declined", DeclineCode: "stolen_card", Message: "Your card was declined."},
	"chargeDeclinedFraudulent":        {Code: "card_declined", DeclineCode: "fraudulent", Message: "Your card was declined."},
	"chargeDeclinedExpiredCard":       {Code: "expired_card", Message: "Your card has expired."},
	"chargeDeclinedIncorrectCvc":      {Code: "incorrect_cvc", Message: "Your card's security code is incorrect."},
	"chargeDeclinedProcessingError":   {Code: "processing_error", Message: "An error occurred while processing your card."},
}

// Other ends of test tokens. The first three are Stripe's too; of the others, those that say how a delay ends are ours.
const (
	tokenAction         = "authenticationRequired" // somebody must act: refused where nobody can
	tokenPendingRefund  = "pendingRefund"          // refunds of it are pending and then succeed
	tokenRefundFail     = "refundFail"             // refunds of it succeed, and fail later
	tokenProcessing     = "processing"             // pending, then succeeds
	tokenProcessingFail = "processingFail"         // pending, then the bank declines
	tokenPendingFail    = "pendingRefundFail"      // refunds of it are pending and then fail
)

func nameOf(token string) string { return token[strings.LastIndexByte(token, '_')+1:] }

// fate says what becomes of a charge on a token, and the bank's words if it is refused or wants action.
func (st *state) fate(token string) (fate, failure) {
	name := nameOf(token)
	if f, ok := declines[name]; ok {
		f.Type = "card_error"
		return refused, f
	}
	switch name {
	case tokenAction:
		return wantsAction, failure{Type: "card_error", Code: "card_declined", DeclineCode: "authentication_required",
			Message: "Your card was declined. This transaction requires authentication."}
	case tokenProcessing, tokenProcessingFail:
		return processes, failure{}
	}
	if st.drawn(st.settling.Pending) {
		return processes, failure{}
	}
	return pays, failure{}
}
