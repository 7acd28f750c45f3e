package web

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	json "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tenderbox/tenants"
)

const tenantsPath = "/api/v1/tenants"

// tenantView is a tenant as the operator sees it. Secrets are not shown, only whether they are set.
type tenantView struct {
	ID        tenants.ID              `json:"id"`
	Object    string                  `json:"object" enum:"tenant"`
	Domains   []string                `json:"domains"`
	Disabled  bool                    `json:"disabled"`
	Offline   *map[string]offlineView `json:"offline" doc:"By currency; a currency not named is refused offline. null: no limit at all."`
	Upstream  *upstreamView           `json:"upstream" doc:"null: the box's own account."`
	RateLimit *rateView               `json:"rate_limit" doc:"null: none of its own."`
	KeyPrefix string                  `json:"key_prefix" doc:"The first characters of the API key."`
	CreatedAt time.Time               `json:"created_at"`
}

// tenantWithKey is a tenant whose key was just made.
type tenantWithKey struct {
	tenantView
	APIKey string `json:"api_key" doc:"Shown now and never again."`
}

type offlineView struct {
	MaxAmount int64 `json:"max_amount,omitzero" doc:"Minor units of one payment; 0: no limit."`
	MaxTotal  int64 `json:"max_total,omitzero" doc:"Minor units of all that are unsettled; 0: no limit."`
	MaxCount  int64 `json:"max_count,omitzero" doc:"Unsettled payments; 0: no limit."`
	MaxAgeH   int   `json:"max_age_h,omitzero" doc:"Hours: no new offline payment while the oldest unsettled is older; 0: no limit."`
}

type upstreamView struct {
	Account string `json:"account"`
	URL     string `json:"url"`
	Rate    int    `json:"rate,omitzero" doc:"Payments a second that it is sent at most; 0: what it allows is learned."`
}

type rateView struct {
	PerSecond int `json:"per_second" doc:"Requests a second, sustained."`
	Burst     int `json:"burst,omitzero" doc:"Requests at once; 0: as many as per_second."`
}

// newUpstream is an account as it comes in.
type newUpstream struct {
	Account string `json:"account" doc:"A name for the account, unique with its url."`
	URL     string `json:"url" doc:"Base URL of the processor."`
	Key     string `json:"key,omitempty" doc:"Secret key. May be left out to keep the one of the same account."`
	Rate    int    `json:"rate,omitempty" doc:"Payments a second that it is sent at most; 0: what it allows is learned."`
}

// newTenant is the body of POST /tenants.
type newTenant struct {
	ID        string                 `json:"id" doc:"A DNS label; it is the name and never changes." example:"shop"`
	Domains   []string               `json:"domains,omitempty" doc:"Host names by which its clients call."`
	Offline   map[string]offlineView `json:"offline,omitempty"`
	Upstream  *newUpstream           `json:"upstream,omitempty"`
	RateLimit *rateView              `json:"rate_limit,omitempty"`
}

// tenantChange is the body of PATCH /tenants/{id}. What is left out stays; null takes a setting away.
type tenantChange struct {
	Domains   given[[]string]               `json:"domains"`
	Disabled  given[bool]                   `json:"disabled"`
	Offline   given[map[string]offlineView] `json:"offline"`
	Upstream  given[*newUpstream]           `json:"upstream"`
	RateLimit given[*rateView]              `json:"rate_limit"`
}

// tenantChangeForm documents tenantChange.
type tenantChangeForm struct {
	Domains   []string               `json:"domains,omitempty"`
	Disabled  bool                   `json:"disabled,omitempty" doc:"A disabled tenant is refused; what it has taken is still settled."`
	Offline   map[string]offlineView `json:"offline,omitempty" doc:"Replaces all limits; null: no limit at all."`
	Upstream  *newUpstream           `json:"upstream,omitempty" doc:"null: the box's own account. Another account: 409 while payments may be with the present one."`
	RateLimit *rateView              `json:"rate_limit,omitempty"`
}

// given is a member that knows whether it was there.
type given[T any] struct {
	set   bool
	value T
}

// UnmarshalJSONFrom is for the decoder.
func (g *given[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	g.set = true
	return json.UnmarshalDecode(dec, &g.value)
}

type tenantInput struct {
	request
	ID string `path:"id"`
}

type tenantsInput struct {
	request
	PageQuery
}

type (
	tenantOutput    struct{ Body tenantView }
	tenantsOutput   struct{ Body page[tenantView] }
	tenantKeyOutput struct {
		Location string `header:"Location"`
		Body     tenantWithKey
	}
)

func (s *Server) registerTenants() {
	op := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"operator"}}
	}
	one := tenantsPath + "/{id}"
	create := op("create-tenant", http.MethodPost, tenantsPath, "Add a tenant")
	create.DefaultStatus = http.StatusCreated
	register(s, create, operatorOnly, s.createTenant)
	documentBody[newTenant](s.api, http.MethodPost, tenantsPath)
	register(s, op("list-tenants", http.MethodGet, tenantsPath, "List tenants, newest first"), operatorOnly, s.listTenants)
	register(s, op("get-tenant", http.MethodGet, one, "Read a tenant"), operatorOnly, s.readTenant)
	register(s, op("change-tenant", http.MethodPatch, one, "Change, disable or enable a tenant"), operatorOnly, s.changeTenant)
	documentBody[tenantChangeForm](s.api, http.MethodPatch, one)
	remove := op("remove-tenant", http.MethodDelete, one, "Remove a disabled tenant")
	remove.Description = "Only when all that it took is settled. Its books stay, and its id is never given again."
	remove.DefaultStatus = http.StatusNoContent
	register(s, remove, operatorOnly, s.removeTenant)
	register(s, op("rotate-key", http.MethodPost, one+"/rotate-key", "Replace a tenant's API key; the old one stops at once"), operatorOnly, s.rotateKey)
}

func (s *Server) createTenant(ctx context.Context, in *bareInput) (*tenantKeyOutput, error) {
	var body newTenant
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	n := tenants.New{ID: tenants.ID(body.ID), Domains: body.Domains, Offline: limitsOf(body.Offline), RateLimit: rateOf(body.RateLimit)}
	if u := body.Upstream; u != nil {
		n.Upstream = &tenants.Upstream{URL: u.URL, Account: u.Account, Key: tenants.Secret(u.Key), Rate: u.Rate}
	}
	t, key, err := s.tenants.Add(ctx, n)
	if err != nil {
		return nil, err
	}
	return &tenantKeyOutput{tenantsPath + "/" + string(t.ID), tenantWithKey{viewOf(&t), key}}, nil
}

// named reads the id in the path. One that can be no tenant's is one that does not exist.
func (in *tenantInput) named() (tenants.ID, error) {
	id, err := tenants.ParseID(in.ID)
	if err != nil {
		return "", tenants.ErrNotFound
	}
	return id, nil
}

func (s *Server) readTenant(_ context.Context, in *tenantInput) (*tenantOutput, error) {
	id, err := in.named()
	if err != nil {
		return nil, err
	}
	t, err := s.tenants.Get(id)
	if err != nil {
		return nil, err
	}
	return &tenantOutput{viewOf(&t)}, nil
}

func (s *Server) listTenants(_ context.Context, in *tenantsInput) (*tenantsOutput, error) {
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	position, err := s.openCursor("tenants", "", in.Cursor)
	if err != nil {
		return nil, err
	}
	all := s.tenants.List() // newest first
	if position != "" {
		from := slices.IndexFunc(all, func(t tenants.Tenant) bool { return tenantPosition(&t).after(position) })
		if from < 0 {
			from = len(all)
		}
		all = all[from:]
	}
	out := &tenantsOutput{page[tenantView]{Data: []tenantView{}}}
	for i := range all[:min(limit, len(all))] {
		out.Body.Data = append(out.Body.Data, viewOf(&all[i]))
	}
	if out.Body.HasMore = len(all) > limit; out.Body.HasMore {
		out.Body.NextCursor = s.sealCursor("tenants", "", tenantPosition(&all[limit-1]).String())
	}
	return out, nil
}

// listPosition is a tenant's place in the list, whether or not it is still there.
type listPosition struct {
	ms int64
	id tenants.ID
}

func tenantPosition(t *tenants.Tenant) listPosition {
	return listPosition{t.CreatedAt.UnixMilli(), t.ID}
}

func (p listPosition) String() string { return strconv.FormatInt(p.ms, 10) + "." + string(p.id) }

// after reports whether p comes behind the position in a cursor, newest first.
func (p listPosition) after(cursor string) bool {
	text, id, _ := strings.Cut(cursor, ".")
	ms, _ := strconv.ParseInt(text, 10, 64) // sealed by us
	return cmp.Or(cmp.Compare(ms, p.ms), strings.Compare(id, string(p.id))) > 0
}

func (s *Server) changeTenant(ctx context.Context, in *tenantInput) (*tenantOutput, error) {
	var body tenantChange
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	id, err := in.named()
	if err != nil {
		return nil, err
	}
	before, err := s.tenants.Get(id)
	if err != nil {
		return nil, err
	}
	var after tenants.Tenant
	change := func() (err error) {
		after, err = s.tenants.Update(ctx, id, body.apply)
		return err
	}
	if body.Upstream.set && !sameAccount(before.Upstream, body.Upstream.value) {
		err = s.ledger.ChangeAccount(ctx, id, change)
	} else {
		err = change()
	}
	if err != nil {
		return nil, err
	}
	return &tenantOutput{viewOf(&after)}, nil
}

// sameAccount reports whether a change leaves the account what it is, so that at most its key is another.
func sameAccount(before *tenants.Upstream, after *newUpstream) bool {
	if before == nil || after == nil {
		return before == nil && after == nil
	}
	return before.Account == after.Account && before.URL == strings.TrimRight(after.URL, "/")
}

// apply brings the change onto a tenant.
func (c *tenantChange) apply(t *tenants.Tenant) error {
	if c.Domains.set {
		t.Domains = c.Domains.value
	}
	if c.Disabled.set {
		t.Disabled = c.Disabled.value
	}
	if c.Offline.set {
		t.Offline = limitsOf(c.Offline.value)
	}
	if c.RateLimit.set {
		t.RateLimit = rateOf(c.RateLimit.value)
	}
	if !c.Upstream.set {
		return nil
	}
	u := c.Upstream.value
	if u == nil {
		t.Upstream = nil
		return nil
	}
	next := &tenants.Upstream{URL: u.URL, Account: u.Account, Key: tenants.Secret(u.Key), Rate: u.Rate}
	if u.Key == "" && sameAccount(t.Upstream, u) {
		next.Key = t.Upstream.Key
	}
	t.Upstream = next
	return nil
}

// removeTenant checks the books first: what is unsettled would have nobody to be settled for.
func (s *Server) removeTenant(ctx context.Context, in *tenantInput) (*struct{}, error) {
	id, err := in.named()
	if err != nil {
		return nil, err
	}
	t, err := s.tenants.Get(id)
	if err != nil {
		return nil, err
	}
	if !t.Disabled {
		return nil, tenants.ErrEnabled
	}
	for _, sum := range s.ledger.Exposed(id) {
		if sum.Count > 0 {
			return nil, problem(http.StatusConflict, "tenant_unsettled", "", "payments of this tenant are not settled yet")
		}
	}
	return nil, s.tenants.Remove(ctx, id)
}

func (s *Server) rotateKey(ctx context.Context, in *tenantInput) (*tenantKeyOutput, error) {
	id, err := in.named()
	if err != nil {
		return nil, err
	}
	key, err := s.tenants.RotateKey(ctx, id)
	if err != nil {
		return nil, err
	}
	t, err := s.tenants.Get(id)
	if err != nil {
		return nil, err
	}
	return &tenantKeyOutput{"", tenantWithKey{viewOf(&t), key}}, nil
}

func viewOf(t *tenants.Tenant) tenantView {
	v := tenantView{ID: t.ID, Object: "tenant", Domains: t.Domains, Disabled: t.Disabled, KeyPrefix: t.KeyPrefix, CreatedAt: t.CreatedAt}
	if v.Domains == nil {
		v.Domains = []string{}
	}
	if t.Offline != nil {
		limits := map[string]offlineView{}
		for currency, l := range t.Offline {
			limits[currency] = offlineView(l)
		}
		v.Offline = &limits
	}
	if u := t.Upstream; u != nil {
		v.Upstream = &upstreamView{u.Account, u.URL, u.Rate}
	}
	if l := t.RateLimit; l != nil {
		v.RateLimit = (*rateView)(l)
	}
	return v
}

func limitsOf(in map[string]offlineView) map[string]tenants.OfflineLimit {
	if in == nil {
		return nil
	}
	out := map[string]tenants.OfflineLimit{}
	for currency, l := range in {
		out[currency] = tenants.OfflineLimit(l)
	}
	return out
}

func rateOf(in *rateView) *tenants.RateLimit { return (*tenants.RateLimit)(in) }
