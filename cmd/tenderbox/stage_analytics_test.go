package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"tenderbox/ledger"
)

// sumsOfPayments is an answer of /api/v1/analytics/payments.
type sumsOfPayments struct {
	Data []struct {
		Currency  string
		Created   ledger.Tally
		Succeeded ledger.Tally
		Failed    ledger.Tally
		Canceled  ledger.Tally
		Refunded  ledger.Tally
	}
	Lag ledger.Lag
}

// analytics waits until the sums are complete, compares them with what the clients were told, and keeps them.
func (s *stage) analytics(file string) error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("waited in vain for every event to be counted"))
	defer cancel()
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	day := func(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.DateOnly) }
	// The days around: the script may run over midnight.
	path := "/api/v1/analytics/payments?bucket=hour&from=" + day(-2) + "&to=" + day(2)
	var all json.RawMessage
	var sums sumsOfPayments
	for {
		if err := b.do(ctx, http.MethodGet, path, nil, &all); err != nil {
			return err
		}
		if err := json.Unmarshal(all, &sums); err != nil {
			return err
		}
		if sums.Lag.AsOf != nil && sums.Lag.EventsBehind == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), all)
		}
	}
	var told, created, succeeded, other ledger.Tally
	add := func(to *ledger.Tally, t ledger.Tally) { to.Count, to.Amount = to.Count+t.Count, to.Amount+t.Amount }
	for _, p := range s.taken {
		add(&told, ledger.Tally{Count: 1, Amount: p.Amount})
	}
	for _, d := range sums.Data {
		add(&created, d.Created)
		add(&succeeded, d.Succeeded)
		for _, t := range []ledger.Tally{d.Failed, d.Canceled, d.Refunded} {
			add(&other, t)
		}
	}
	if created != told || succeeded != told || other != (ledger.Tally{}) {
		return fmt.Errorf("%+v was taken and settled; counted are %+v created, %+v succeeded, %+v of others", told, created, succeeded, other)
	}
	kept, err := json.MarshalIndent(sums.Data, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(kept, '\n'), 0o600)
}
