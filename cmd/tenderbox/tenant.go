package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
)

// tenantCommand manages the tenants of a running box over its HTTP API.
type tenantCommand struct {
	Add       tenantAdd     `cmd:"" help:"Adds a tenant and prints its API key once."`
	List      tenantList    `cmd:"" help:"Lists the tenants."`
	Show      tenantShow    `cmd:"" help:"Shows one tenant's settings."`
	Disable   tenantDisable `cmd:"" help:"Refuses a tenant's requests; what it has taken is still settled."`
	Enable    tenantEnable  `cmd:"" help:"Serves a disabled tenant again."`
	RotateKey tenantRotate  `cmd:"" name:"rotate-key" help:"Replaces a tenant's API key and prints the new one once."`
}

const tenantsPath = "/api/v1/tenants"

func tenantPath(name string) string { return tenantsPath + "/" + url.PathEscape(name) }

// tenantView is a tenant as the API tells it, as far as the terminal shows it.
type tenantView struct {
	ID        string    `json:"id"`
	Domains   []string  `json:"domains"`
	Disabled  bool      `json:"disabled"`
	KeyPrefix string    `json:"key_prefix"`
	CreatedAt time.Time `json:"created_at"`
	APIKey    string    `json:"api_key"` // only in answers to add and rotate-key
}

type tenantAdd struct {
	boxFlags
	Name   string   `arg:"" help:"The tenant's name and id: a DNS label such as shop or pier-7."`
	Domain []string `placeholder:"D" help:"A domain by which this tenant's clients call the box; may be repeated."`
}

func (tenantAdd) Help() string {
	return "The key is printed once, alone on the last line; the box keeps only its hash.\n\nExample:\n\n    tenderbox tenant add shop --domain pay.shop.example\n    KEY=$(tenderbox tenant add shop | tail -n 1)\n"
}

// Run prints what was made, then the key alone on the last line, so that a script can take it by tail.
func (c *tenantAdd) Run(t *terminal) error {
	b, err := c.open()
	if err != nil {
		return err
	}
	in := map[string]any{"id": c.Name}
	if len(c.Domain) > 0 {
		in["domains"] = c.Domain
	}
	var made tenantView
	if err := b.do(t.ctx, http.MethodPost, tenantsPath, in, &made); err != nil {
		return err
	}
	return printKey(t, fmt.Sprintf("Tenant %s is ready. Its API key, shown only now:", made.ID), made.APIKey)
}

func printKey(t *terminal, says, key string) error {
	if key == "" {
		return hint(fmt.Errorf("the box answered without a key"), "is it a Tenderbox of this version?")
	}
	_, err := fmt.Fprintf(t.stdout, "%s\n%s\n", says, key)
	return err
}

type tenantList struct {
	boxFlags
}

func (tenantList) Help() string { return "Example:\n\n    tenderbox tenant list\n" }

func (c *tenantList) Run(t *terminal) error {
	b, err := c.open()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tSTATE\tKEY\tSINCE\tDOMAINS")
	err = pages(tenantsPath, func(path string, out any) error { return b.do(t.ctx, http.MethodGet, path, nil, out) }, func(v *tenantView) {
		state := "enabled"
		if v.Disabled {
			state = "disabled"
		}
		fmt.Fprintf(w, "%s\t%s\t%s…\t%s\t%s\n", v.ID, state, v.KeyPrefix, v.CreatedAt.Local().Format(time.DateOnly), strings.Join(v.Domains, " "))
	})
	if err != nil {
		return err
	}
	return w.Flush()
}

type tenantShow struct {
	boxFlags
	Name string `arg:"" help:"The tenant's name."`
}

func (tenantShow) Help() string { return "Example:\n\n    tenderbox tenant show shop\n" }

func (c *tenantShow) Run(t *terminal) error {
	b, err := c.open()
	if err != nil {
		return err
	}
	var all json.RawMessage
	if err := b.do(t.ctx, http.MethodGet, tenantPath(c.Name), nil, &all); err != nil {
		return err
	}
	return printJSON(t, all)
}

type tenantDisable struct {
	boxFlags
	Name string `arg:"" help:"The tenant's name."`
}

func (tenantDisable) Help() string { return "Example:\n\n    tenderbox tenant disable shop\n" }

func (c *tenantDisable) Run(t *terminal) error { return switchTenant(t, &c.boxFlags, c.Name, true) }

type tenantEnable struct {
	boxFlags
	Name string `arg:"" help:"The tenant's name."`
}

func (tenantEnable) Help() string { return "Example:\n\n    tenderbox tenant enable shop\n" }

func (c *tenantEnable) Run(t *terminal) error { return switchTenant(t, &c.boxFlags, c.Name, false) }

func switchTenant(t *terminal, f *boxFlags, name string, disabled bool) error {
	b, err := f.open()
	if err != nil {
		return err
	}
	if err := b.do(t.ctx, http.MethodPatch, tenantPath(name), map[string]any{"disabled": disabled}, nil); err != nil {
		return err
	}
	state := "enabled"
	if disabled {
		state = "disabled"
	}
	_, err = fmt.Fprintf(t.stdout, "Tenant %s is %s.\n", name, state)
	return err
}

type tenantRotate struct {
	boxFlags
	Name string `arg:"" help:"The tenant's name."`
}

func (tenantRotate) Help() string {
	return "The old key stops at once. The new one is printed alone on the last line.\n\nExample:\n\n    tenderbox tenant rotate-key shop\n"
}

func (c *tenantRotate) Run(t *terminal) error {
	b, err := c.open()
	if err != nil {
		return err
	}
	var rotated tenantView
	if err := b.do(t.ctx, http.MethodPost, tenantPath(c.Name)+"/rotate-key", nil, &rotated); err != nil {
		return err
	}
	return printKey(t, fmt.Sprintf("Tenant %s has a new API key, shown only now; the old one no longer works:", c.Name), rotated.APIKey)
}
