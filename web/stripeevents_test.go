package web

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestStripeEvents(t *testing.T) {
	x := newTill(t)
	charge := x.form("POST /v1/charges", goodCharge+"&metadata[till]=3").ok()["id"].(string)
	intent := x.form("POST /v1/payment_intents", "amount=5&currency=usd").ok()["id"].(string)
	x.form("POST /v1/payment_intents/"+intent+"/confirm", "payment_method=pm_card_visa").ok()
	x.form("POST /v1/charges", "amount=500&currency=usd&source=tok_chargeDeclined").refuses(402, "card_error", "card_declined", "")
	gone := x.form("POST /v1/payment_intents", "amount=5&currency=usd").ok()["id"].(string)
	x.form("POST /v1/payment_intents/"+gone+"/cancel", "").ok()
	refund := x.form("POST /v1/refunds", "charge="+charge+"&amount=9").ok()["id"].(string)

	list := func(query string) (all []map[string]any, more bool) {
		t.Helper()
		l := x.form("GET /v1/events?"+query, "").ok()
		if l["object"] != "list" || l["url"] != "/v1/events" {
			t.Errorf("%v", l)
		}
		return objects(l["data"]), l["has_more"].(bool)
	}
	types := func(events []map[string]any) (types []string) {
		for _, e := range events {
			types = append(types, e["type"].(string))
		}
		return types
	}
	all, more := list("limit=100")
	oldestFirst := types(all)
	slices.Reverse(oldestFirst)
	want := []string{"charge.pending", "charge.succeeded", "payment_intent.created", "payment_intent.processing", "payment_intent.succeeded",
		"charge.pending", "charge.failed", "payment_intent.created", "payment_intent.canceled", "refund.created", "refund.updated"}
	// Two changes of one millisecond may stand in any order.
	if slices.Sort(oldestFirst); more || !slices.Equal(oldestFirst, slices.Sorted(slices.Values(want))) {
		t.Errorf("got %v, want %v", types(all), want)
	}
	states := map[string]string{}
	for _, e := range all {
		object := e["data"].(map[string]any)["object"].(map[string]any)
		if e["object"] != "event" || e["livemode"] != true || e["created"].(float64) <= 0 || object["id"] == nil {
			t.Errorf("%v", e)
		}
		if one := x.form("GET /v1/events/"+e["id"].(string), "").ok(); fmt.Sprint(one) != fmt.Sprint(e) {
			t.Errorf("read alone: %v, in the list %v", one, e)
		}
		states[fmt.Sprint(e["type"], " ", object["id"])] = object["status"].(string)
		if object["id"] == charge && (object["amount_refunded"] != 0.0 || object["metadata"].(map[string]any)["till"] != "3") {
			t.Errorf("not as it was: %v", object)
		}
	}
	// The object is as it was behind the change, not as it is now.
	for event, state := range map[string]string{
		"charge.pending " + charge: "pending", "charge.succeeded " + charge: "succeeded",
		"payment_intent.created " + intent: "requires_confirmation", "payment_intent.processing " + intent: "processing",
		"payment_intent.succeeded " + intent: "succeeded", "payment_intent.canceled " + gone: "canceled",
		"refund.created " + refund: "pending", "refund.updated " + refund: "succeeded",
	} {
		if states[event] != state {
			t.Errorf("%s: %q, want %q", event, states[event], state)
		}
	}

	for query, want := range map[string][]map[string]any{
		"limit=4&starting_after=" + all[3]["id"].(string):                      all[4:8],
		"limit=4&ending_before=" + all[6]["id"].(string):                       all[2:6],
		"limit=100&types[]=charge.*&types[]=refund.*&types[]=payment_intent.*": all,
		"created[lt]=1000":      nil,
		"type=customer.created": nil,
	} {
		if got, _ := list(query); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", query, types(got), types(want))
		}
	}
	for query, n := range map[string]int{"type=charge.failed": 1, "types[]=charge.succeeded&types[]=payment_intent.succeeded": 2, "type=refund.*": 2, "type=payment_intent.created": 2} {
		if got, _ := list(query); len(got) != n {
			t.Errorf("%s: %v, want %d", query, types(got), n)
		}
	}
	for query, c := range map[string][2]string{
		"type=charge.failed&types[]=refund.*":    {"parameters_exclusive", "types"},
		"type=":                                  {"parameter_invalid", "type"},
		"types=charge.failed":                    {"parameter_invalid", "types"},
		"delivery_success=true":                  {"parameter_unsupported", "delivery_success"},
		"starting_after=" + charge:               {"resource_missing", "starting_after"},
		"types[0]=a" + many("&types[9%d]=a", 20): {"parameter_invalid", "types"},
	} {
		x.form("GET /v1/events?"+query, "").refuses(400, "invalid_request_error", c[0], c[1])
	}

	// INV-20, INV-22: nothing of another tenant's; and of what Stripe has no name for, nothing.
	if a := x.ask("GET /v1/events", "", "key", x.bar).ok(); len(objects(a["data"])) != 0 {
		t.Errorf("bar reads %v", a)
	}
	id := all[0]["id"].(string)
	x.ask("GET /v1/events/"+id, "", "key", x.bar).refuses(404, "invalid_request_error", "resource_missing", "id")
	own := x.ask("POST /api/v1/events", `{"type":"till.opened"}`, "key", x.shop).is(201, "").json["id"].(string)
	for _, id := range []string{own, "evt_1", charge, strings.ToLower(id)} {
		x.form("GET /v1/events/"+id, "").refuses(404, "invalid_request_error", "resource_missing", "id")
	}
}
