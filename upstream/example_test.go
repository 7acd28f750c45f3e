package upstream_test

import (
	"context"
	"fmt"

	"tenderbox/upstream"
	"tenderbox/upstream/simulator"
)

// A payment is encoded once, sealed, and sent with one key until the answer is final.
func ExampleAccount_Post() {
	processor := simulator.New(simulator.Options{Key: "sk_test"})
	url, err := processor.Start("127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer processor.Close()

	accounts := upstream.NewAccounts(upstream.Config{URL: url, Key: "sk_test"})
	defer accounts.CloseIdleConnections()
	account, err := accounts.Get("", "", "")
	if err != nil {
		panic(err)
	}
	path, body := upstream.ChargeRequest{Amount: 1999, Currency: "usd", Source: "tok_visa",
		Metadata: map[string]string{"tenderbox_payment": "pay_1"}}.Encode()

	processor.Cut(true)
	answer := account.Post(context.Background(), path, body, "pay_1")
	fmt.Println(answer.Outcome, "sent:", answer.MaybeSent, "link:", account.Link().State)

	processor.Cut(false)
	processor.SetFaults(simulator.Faults{Garbage: 1})
	answer = account.Post(context.Background(), path, body, "pay_1")
	fmt.Println(answer.Outcome, "sent:", answer.MaybeSent)

	processor.SetFaults(simulator.Faults{})
	answer = account.Post(context.Background(), path, body, "pay_1")
	fmt.Println(answer.Outcome, answer.Object.Amount, answer.Object.Currency)
	fmt.Println("effects:", len(processor.Ledger().Charges))
	// Output:
	// retryable sent: false link: offline
	// unknown sent: true
	// succeeded 1999 usd
	// effects: 1
}
