package tenants

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	json "github.com/go-json-experiment/json"
	"github.com/oklog/ulid/v2"
	"go.etcd.io/bbolt"
)

const (
	// endpointsMax is how many endpoints a tenant may have: each costs a job for every event that it wants.
	endpointsMax = 16
	// typesMax patterns are more than there are types of events in the box.
	typesMax = 64
	typeMax  = 128 // bytes of a pattern
	// reasonMax bounds why an endpoint is disabled: one line for a person.
	reasonMax = 200

	endpointLead = "we_"
	// secretLead is what Standard Webhooks 1.0 puts before a symmetric secret, so that every library knows it.
	secretLead = "whsec_"
	// signingBytes is what HMAC-SHA256 makes use of; the specification asks for 24 to 64.
	signingBytes = 32
	// signingsMax secrets are in force at a time: each costs a signature in every request. Of more, the oldest stop.
	signingsMax = 4
	// secretOverlap is how long a rotated secret still signs: a day to deploy the new one.
	secretOverlap    = 24 * time.Hour
	secretOverlapMax = 30 * 24 * time.Hour
)

// Endpoint is where a tenant wants to be told of events (Standard Webhooks 1.0). Values from [Webhooks] are shared: read only.
type Endpoint struct {
	ID             string // "we_" and a ULID
	Tenant         ID
	URL            string
	Types          []string // of events: "user.created", "user.*" for all below it, "*" for all
	Secrets        []Secret // that sign at present, newest first; each "whsec_" and base64
	Disabled       bool     // nothing is sent
	DisabledReason string   // for a person; "" if its owner did it without a word
	CreatedAt      time.Time
}

// Matches reports whether the endpoint wants events of a type. A disabled one wants none.
func (e *Endpoint) Matches(eventType string) bool {
	return !e.Disabled && slices.ContainsFunc(e.Types, func(pattern string) bool { return MatchType(pattern, eventType) })
}

// MatchType reports whether a pattern names an event's type: "*" is every type, "user.*" every one that begins with "user.", all else itself.
func MatchType(pattern, eventType string) bool {
	below, wild := strings.CutSuffix(pattern, "*")
	return pattern == eventType || wild && len(eventType) > len(below) && strings.HasPrefix(eventType, below)
}

// validType accepts tokens of lower-case letters, digits, dashes and underscores, as all types are made of, separated by dots; the last may be "*".
func validType(pattern string) bool {
	if len(pattern) > typeMax {
		return false
	}
	tokens := strings.Split(pattern, ".")
	for i, token := range tokens {
		wild := token == "*" && i == len(tokens)-1
		if token == "" || !wild && strings.ContainsFunc(token, notInType) {
			return false
		}
	}
	return true
}

func notInType(r rune) bool { return notInAccount(r) || r == '.' || unicode.IsUpper(r) }

// normalise checks an endpoint's settings and brings them into their one spelling. It reports all problems.
func (e *Endpoint) normalise(checkURL func(string) error) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &InvalidError{field, fmt.Sprintf(format, args...)})
	}
	if e.URL == "" || len(e.URL) > urlMax || !printable(e.URL) {
		bad("url", "must be an address of up to %d printable ASCII characters", urlMax)
	} else if checkURL != nil {
		errs = append(errs, checkURL(e.URL))
	}
	if e.Types == nil {
		e.Types = []string{"*"}
	}
	if len(e.Types) == 0 || len(e.Types) > typesMax {
		bad("types", "name 1 to %d types of events, or leave them out for all", typesMax)
	}
	if slices.ContainsFunc(e.Types, func(s string) bool { return !validType(s) }) {
		bad("types", "must be like user.created, user.* or *")
	}
	e.Types = slices.Compact(slices.Sorted(slices.Values(e.Types)))
	if !e.Disabled {
		e.DisabledReason = ""
	}
	reason := []rune(strings.Join(strings.Fields(strings.ToValidUTF8(e.DisabledReason, "\uFFFD")), " ")) // one line
	e.DisabledReason = string(reason[:min(len(reason), reasonMax)])
	return errors.Join(errs...)
}

// signing is a secret with the end of its time.
type signing struct {
	secret Secret
	until  time.Time // zero: it is the current one
}

func newSigning() signing {
	var chance [signingBytes]byte
	_, _ = rand.Read(chance[:]) // never fails: it ends the program instead
	return signing{secret: Secret(secretLead + base64.StdEncoding.EncodeToString(chance[:]))}
}

// hook is an endpoint in memory. Endpoint.Secrets is empty there: which are in force depends on the time.
type hook struct {
	Endpoint
	signings []signing // newest first
}

func newHook(tenant ID, now time.Time) *hook {
	return &hook{Endpoint: Endpoint{ID: endpointLead + ulid.Make().String(), Tenant: tenant, CreatedAt: now}, signings: []signing{newSigning()}}
}

// at is the endpoint as it is at a time.
func (h *hook) at(now time.Time) Endpoint {
	e := h.Endpoint
	e.Secrets = make([]Secret, 0, len(h.signings))
	for _, s := range h.signings {
		if s.until.IsZero() || now.Before(s.until) {
			e.Secrets = append(e.Secrets, s.secret)
		}
	}
	return e
}

// rotate puts a new secret before the others. The current one goes on for a while; those whose time is over go.
func (h *hook) rotate(now time.Time, overlap time.Duration) Secret {
	fresh := newSigning()
	next := []signing{fresh}
	for _, s := range h.signings {
		if end := now.Add(overlap); s.until.IsZero() || s.until.After(end) {
			s.until = end
		}
		if now.Before(s.until) && len(next) < signingsMax {
			next = append(next, s)
		}
	}
	h.signings = next
	return fresh.secret
}

// clone copies what h shares.
func (h *hook) clone() *hook {
	c := *h
	c.Types, c.signings = slices.Clone(h.Types), slices.Clone(h.signings)
	return &c
}

var bucketWebhooks = []byte("webhooks") // tenant 0 id → record

func (h *hook) key() []byte { return append(hooksOf(h.Tenant), h.ID...) }

// hooksOf begins the keys of a tenant's endpoints. A name holds no zero byte, so one ends it.
func hooksOf(tenant ID) []byte { return append([]byte(tenant), 0) }

// hookRecord is an endpoint as it stands in box.db.
type hookRecord struct {
	ID             string    `json:"id"`
	Tenant         ID        `json:"tenant"`
	URL            string    `json:"url"`
	Types          []string  `json:"types"`
	SealedSecrets  []byte    `json:"sealed_secrets"` // []secretRecord
	Disabled       bool      `json:"disabled,omitzero"`
	DisabledReason string    `json:"disabled_reason,omitzero"`
	CreatedAt      time.Time `json:"created_at"`
}

type secretRecord struct {
	Secret string    `json:"secret"`
	Until  time.Time `json:"until,omitzero"`
}

// secretsRecord binds an endpoint's sealed secrets to it.
func secretsRecord(tenant ID, id string) string {
	return "box/webhooks/" + string(tenant) + "/" + id + "/secrets"
}

func (h *hook) record(kr *Keyring) (hookRecord, error) {
	secrets := make([]secretRecord, 0, len(h.signings))
	for _, s := range h.signings {
		secrets = append(secrets, secretRecord{string(s.secret), s.until})
	}
	clear, err := json.Marshal(secrets)
	return hookRecord{ID: h.ID, Tenant: h.Tenant, URL: h.URL, Types: h.Types, SealedSecrets: kr.Seal(secretsRecord(h.Tenant, h.ID), clear),
		Disabled: h.Disabled, DisabledReason: h.DisabledReason, CreatedAt: h.CreatedAt}, err
}

func (rec *hookRecord) hook(kr *Keyring) (*hook, error) {
	clear, err := kr.Open(secretsRecord(rec.Tenant, rec.ID), rec.SealedSecrets)
	if err != nil {
		return nil, fmt.Errorf("secrets of webhook %s of tenant %s: %w", rec.ID, rec.Tenant, err)
	}
	var secrets []secretRecord
	if err := json.Unmarshal(clear, &secrets); err != nil || len(secrets) == 0 {
		return nil, fmt.Errorf("%w: secrets of webhook %s of tenant %s", errRecord, rec.ID, rec.Tenant)
	}
	h := &hook{Endpoint: Endpoint{ID: rec.ID, Tenant: rec.Tenant, URL: rec.URL, Types: rec.Types,
		Disabled: rec.Disabled, DisabledReason: rec.DisabledReason, CreatedAt: rec.CreatedAt}}
	for _, s := range secrets {
		h.signings = append(h.signings, signing{Secret(s.Secret), s.Until})
	}
	return h, nil
}

// readHooks reads and verifies every endpoint's record.
func readHooks(tx *bbolt.Tx) (all []hookRecord, err error) {
	b := tx.Bucket(bucketWebhooks)
	if b == nil { // written by a version before there were any
		return nil, nil
	}
	err = b.ForEach(func(k, v []byte) error {
		var rec hookRecord
		if err := decodeRecord(k, v, &rec); err != nil {
			return err
		}
		if want := (&hook{Endpoint: Endpoint{ID: rec.ID, Tenant: rec.Tenant}}).key(); string(want) != string(k) {
			return fmt.Errorf("%w: webhook %q stands under the key of %q", errRecord, rec.ID, k)
		}
		all = append(all, rec)
		return nil
	})
	return all, err
}
