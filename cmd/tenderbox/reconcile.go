package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"tenderbox/ledger"
)

const reconciliationsPath = "/api/v1/reconciliations"

// reconcilePatience is longer than a comparison may take: a hundred thousand objects are read a hundred at a time.
const reconcilePatience = 7 * time.Minute

// reconcileCommand compares the ledger of a running box with the processor's lists.
type reconcileCommand struct {
	boxFlags
	Tenant string `placeholder:"NAME" help:"Only this tenant's; default: each in turn."`
	From   string `placeholder:"T" help:"First instant or date; default: yesterday, where the box is."`
	To     string `placeholder:"T" help:"The instant after the last, or a date, which is included; default: the end of --from's day."`
	TZ     string `name:"tz" placeholder:"ZONE" help:"Time zone of dates, such as Europe/Berlin; default: the box's own."`
	JSON   bool   `name:"json" help:"Prints the API's answers as they are, one for each tenant."`
}

func (reconcileCommand) Help() string {
	return `Reads the processor's charges, payment intents and refunds, and tells where they differ from what the box has settled. Nothing is
changed. The box does this by itself for each day; see the alarm reconciliation_difference.

The exit status is 0 if everything was read and is equal; 1 if there are differences, or not everything could be read.

Example:

    tenderbox reconcile
    tenderbox reconcile --tenant shop --from 2026-11-01 --to 2026-11-07
    tenderbox reconcile --tenant shop --json | jq '.differences[]'
`
}

func (c *reconcileCommand) Run(t *terminal) error {
	b, err := c.open()
	if err != nil {
		return err
	}
	b.client.Timeout = reconcilePatience
	if c.Tenant != "" {
		equal, err := c.compare(t, b, c.Tenant)
		return c.verdict(equal, err)
	}
	var names []string
	err = pages(tenantsPath, func(path string, out any) error { return b.do(t.ctx, http.MethodGet, path, nil, out) }, func(v *tenantView) {
		names = append(names, v.ID)
	})
	if err != nil {
		return err
	}
	all := true
	for _, name := range names {
		equal, err := c.compare(t, b, name)
		if err != nil {
			if len(names) == 1 || t.ctx.Err() != nil {
				return err
			}
			fmt.Fprintf(t.stderr, "%s: %s\n", name, oneLine(err.Error()))
		}
		all = all && equal && err == nil
	}
	return c.verdict(all, nil)
}

// verdict is the exit status of what was printed.
func (c *reconcileCommand) verdict(equal bool, err error) error {
	if err == nil && !equal {
		return &exitError{exitFailed}
	}
	return err
}

// compare has one tenant's ledger compared, and prints what came of it.
func (c *reconcileCommand) compare(t *terminal, b *box, tenant string) (equal bool, err error) {
	in := map[string]string{}
	for name, value := range map[string]string{"from": c.From, "to": c.To, "tz": c.TZ} {
		if value != "" {
			in[name] = value
		}
	}
	var answer json.RawMessage
	if err := b.send(t.ctx, http.MethodPost, reconciliationsPath, http.Header{"X-Tenant-Id": {tenant}}, in, &answer); err != nil {
		return false, err
	}
	var r ledger.Reconciliation
	if err := json.Unmarshal(answer, &r); err != nil {
		return false, hint(fmt.Errorf("%s did not answer as a box does: %w", b.url, err), "is it a Tenderbox of this version?")
	}
	if c.JSON {
		return r.Status == ledger.Equal, printJSON(t, answer)
	}
	return r.Status == ledger.Equal, printReconciliation(t.stdout, tenant, &r)
}

func printReconciliation(out io.Writer, tenant string, r *ledger.Reconciliation) error {
	fmt.Fprintf(out, "%s: %s, %s to %s: %d payments and %d refunds here, %d objects there", tenant, r.Status,
		r.From.Local().Format(time.DateTime), r.To.Local().Format(time.DateTime), r.Payments, r.Refunds, r.Objects)
	for _, more := range []struct {
		n    int64
		what string
	}{{r.Foreign, "of other apps"}, {r.Open, "not settled here yet"}, {r.Another, "settled at another account"}} {
		if more.n > 0 {
			fmt.Fprintf(out, ", %d %s", more.n, more.what)
		}
	}
	fmt.Fprintln(out)
	if r.Reason != nil {
		fmt.Fprintf(out, "%s: %s\n", tenant, oneLine(*r.Reason))
	}
	if r.Total == 0 {
		return nil
	}
	fmt.Fprintf(out, "%s: %d differences (%s)\n", tenant, r.Total, r.ID)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tPAYMENT\tREFUND\tUPSTREAM\tHERE\tTHERE")
	for i := range r.Differences {
		d := &r.Differences[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Kind, orDash((*string)(d.PaymentID)), orDash((*string)(d.RefundID)), orDash(d.UpstreamID), side(d.Ours), side(d.Theirs))
	}
	if left := r.Total - int64(len(r.Differences)); left > 0 {
		fmt.Fprintf(w, "and %d more: ask for a shorter time\n", left)
	}
	return w.Flush()
}

func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return oneLine(*s)
}

// side shows how a record stands on one side.
func side(s *ledger.Side) string {
	if s == nil {
		return "-"
	}
	return oneLine(ledger.Money{Amount: s.Amount, Currency: s.Currency}.String() + " " + s.Status)
}
