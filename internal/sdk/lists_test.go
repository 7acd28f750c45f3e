package sdk

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

// same compares lists of ids.
func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// More than a page's maximum, read by the SDK's own iterator.
func TestPaging(t *testing.T) {
	s := openShop(t)
	c := s.client()
	s.link("offline") // nothing waits for an outcome
	const all = 130
	var ids []string
	for i := range all {
		p := sale(int64(100+i), "tok_visa")
		p.SetIdempotencyKey(fmt.Sprint("receipt-", i))
		ids = append(ids, must(c.V1Charges.Create(t.Context(), p))(t).ID)
	}
	slices.Sort(ids)
	slices.Reverse(ids) // newest first
	read := func(p *stripe.ChargeListParams) (got []string) {
		t.Helper()
		for charge, err := range c.V1Charges.List(t.Context(), p).All(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, charge.ID)
		}
		return got
	}
	page := func(set func(*stripe.ChargeListParams)) *stripe.ChargeListParams {
		p := &stripe.ChargeListParams{}
		set(p)
		return p
	}
	same(t, read(page(func(p *stripe.ChargeListParams) {})), ids...)
	same(t, read(page(func(p *stripe.ChargeListParams) { p.Limit = stripe.Int64(100) })), ids...)
	same(t, read(page(func(p *stripe.ChargeListParams) { p.Limit, p.StartingAfter = stripe.Int64(7), &ids[49] })), ids[50:]...)
	same(t, read(page(func(p *stripe.ChargeListParams) { p.Limit, p.Single = stripe.Int64(25), true })), ids[:25]...)
	before := slices.Clone(ids[:120])
	slices.Reverse(before) // backwards: from the place named to the newest
	same(t, read(page(func(p *stripe.ChargeListParams) { p.Limit, p.EndingBefore = stripe.Int64(50), &ids[120] })), before...)
	same(t, read(page(func(p *stripe.ChargeListParams) { p.EndingBefore = &ids[0] })))
	same(t, read(page(func(p *stripe.ChargeListParams) { p.CreatedRange = &stripe.RangeQueryParams{GreaterThan: 1} })), ids...)
	same(t, read(page(func(p *stripe.ChargeListParams) { p.CreatedRange = &stripe.RangeQueryParams{LesserThan: 1000} })))
	s.effects(0)
}
