// Package sdk holds the Stripe-compatible surface against Stripe's own SDKs: `make sdk`.
//
// # Promise
//
// A program that speaks to Stripe through stripe-go or Node's stripe speaks to a box when its base URL and its key are changed, and
// nothing else. The SDKs here are the official ones, pinned, and configured with those two and nothing else; the box is the binary
// that a user would install, before a simulated processor. What differs from Stripe is asserted too, and told in docs/STRIPE.md.
//
// # Main types
//
// shop is a box of one test's own with its processor; node holds the scenarios for Node, which TestNode runs against a shop each.
//
// # Caveats
//
// This is a module of its own, so that no SDK enters the product's. It has no code besides its tests.
package sdk
