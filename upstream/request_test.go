package upstream

import (
	"fmt"
	"net/url"
	"testing"
)

func TestEncodeIsDeterministic(t *testing.T) {
	r := ChargeRequest{Amount: 1999, Currency: "USD", Source: "tok_visa", Description: "two & a half = ½",
		Metadata: map[string]string{"tenderbox_payment": "pay_1", "b": "2", "a": "1", "z z": "&="}}
	path, body := r.Encode()
	const want = "amount=1999&currency=usd&description=two+%26+a+half+%3D+%C2%BD&metadata%5Ba%5D=1&metadata%5Bb%5D=2&metadata%5Btenderbox_payment%5D=pay_1&metadata%5Bz+z%5D=%26%3D&source=tok_visa"
	if path != "/charges" || string(body) != want {
		t.Errorf("%s %s", path, body)
	}
	for range 50 {
		if _, again := r.Encode(); string(again) != string(body) {
			t.Fatalf("then %s", again)
		}
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("description") != r.Description || form.Get("metadata[z z]") != "&=" {
		t.Errorf("decoded %v, %v", form, err)
	}
}

func TestEncodeIntent(t *testing.T) {
	path, body := ChargeRequest{Amount: 5, Currency: "eur", PaymentMethod: "pm_1"}.Encode()
	if path != "/payment_intents" || string(body) != "amount=5&currency=eur&payment_method=pm_1" {
		t.Errorf("%s %s", path, body)
	}
}

func ExampleRefundRequest_Encode() {
	path, body := RefundRequest{Amount: 500, Charge: "ch_1"}.Encode()
	fmt.Println(path, string(body))
	// Output: /refunds amount=500&charge=ch_1
}
