package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"tenderbox/ledger"
)

type statusCommand struct {
	boxFlags
	JSON bool `name:"json" help:"Prints the API's answer as it is."`
}

func (statusCommand) Help() string {
	return "Example:\n\n    tenderbox status\n    tenderbox status --json | jq .backlog\n"
}

func (c *statusCommand) Run(t *terminal) error {
	b, err := c.open()
	if err != nil {
		return err
	}
	var all json.RawMessage
	if err := b.do(t.ctx, http.MethodGet, statusPath, nil, &all); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(t, all)
	}
	var o ledger.Overview
	if err := json.Unmarshal(all, &o); err != nil {
		return hint(fmt.Errorf("%s did not answer as a box does: %w", b.url, err), "is it a Tenderbox of this version?")
	}
	return printOverview(t.stdout, &o)
}

func printOverview(out io.Writer, o *ledger.Overview) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

	state := o.Connectivity.State
	if o.Connectivity.Cause != "" {
		state += " (" + strings.ReplaceAll(o.Connectivity.Cause, "_", " ") + ")"
	}
	line("line\t%s%s\t%s", state, since(o.Connectivity.Since), oneLine(o.Connectivity.Evidence))
	line("breaker\t%s%s\t%d failures in the window", o.Breaker.State, since(o.Breaker.Since), o.Breaker.Failures)
	if o.Backlog.Count == 0 {
		line("backlog\tnothing waits to be settled\t")
	} else {
		line("backlog\t%d payments%s\t%s", o.Backlog.Count, since(o.Backlog.OldestAt), amounts(o.Backlog.Amounts))
	}
	line("drain\t%s\t%s", o.Drain.State, pace(&o.Drain))
	for _, e := range o.Exposure {
		what := "exposure"
		if e.Tenant != "" {
			what += " of " + string(e.Tenant)
		}
		line("%s\t%s in %d payments%s\t%s", what, ledger.Money{Amount: e.Amount, Currency: e.Currency}.String(), e.Count, since(e.OldestAt), allowed(&e))
	}
	for _, q := range o.Queues {
		line("queue %s\t%d waiting, %d delayed, %d active\t%d completed, %d failed", q.Name, q.Waiting, q.Delayed, q.Active, q.Completed, q.Failed)
	}
	if m := o.Mail; m != nil {
		where := "sent by " + m.Server
		if m.Folder != "" {
			where = "kept as files in " + m.Folder + " (no smtp-url is set)"
		}
		if m.DownSince != nil {
			where += ", waits" + since(m.DownSince)
		}
		line("e-mail\t%s\t%s", where, oneLine(m.LastError))
	}
	for _, a := range o.Alarms {
		line("ALARM\t%s%s\t%s", a.Code, since(&a.Since), oneLine(a.Detail))
	}
	return w.Flush()
}

func since(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return " since " + t.Local().Format(time.DateTime)
}

// pace tells how fast the backlog becomes smaller.
func pace(d *ledger.Drain) string {
	parts := []string{fmt.Sprintf("%g settled a second, up to %d at a time", d.PerS, d.Concurrency)}
	if d.Rate != nil {
		parts = append(parts, fmt.Sprintf("%g a second allowed", *d.Rate))
	}
	if d.EtaS != nil {
		parts = append(parts, (time.Duration(*d.EtaS)*time.Second).String()+" left")
	}
	return strings.Join(parts, ", ")
}

// allowed tells what the offline policy permits beside what is outstanding.
func allowed(e *ledger.Exposure) string {
	var limits []string
	if e.MaxTotal != nil {
		limits = append(limits, "at most "+ledger.Money{Amount: *e.MaxTotal, Currency: e.Currency}.String())
	}
	if e.MaxCount != nil {
		limits = append(limits, fmt.Sprintf("at most %d payments", *e.MaxCount))
	}
	if limits == nil {
		return "no limit"
	}
	return strings.Join(limits, ", ")
}

func amounts(all []ledger.MoneyTotal) string {
	parts := make([]string, len(all))
	for i, m := range all {
		parts[i] = ledger.Money{Amount: m.Amount, Currency: m.Currency}.String()
	}
	return strings.Join(parts, " + ")
}

// printJSON writes an answer indented, for eyes and for jq alike.
func printJSON(t *terminal, answer json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, answer, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := t.stdout.Write(b.Bytes())
	return err
}
