module tenderbox/internal/sdk

go 1.26.0

replace tenderbox => ../..

require (
	github.com/stripe/stripe-go/v85 v85.0.0
	tenderbox v0.0.0
)

require (
	github.com/sourcegraph/conc v0.3.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)
