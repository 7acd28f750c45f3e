package webhook

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Endpoint is what a delivery needs to know of an endpoint.
type Endpoint struct {
	URL      string
	Secrets  []Secret // in force; each signs, the first one first
	Disabled bool
}

// Endpoints keeps the tenants' endpoints.
type Endpoints interface {
	// Endpoint returns an endpoint as it is now; ok is false if the tenant has none of that id (any more). It is asked for every attempt.
	Endpoint(tenant, id string) (e Endpoint, ok bool)
	// Disable stops deliveries to an endpoint, durably, until its tenant enables it again. Done twice is fine.
	Disable(ctx context.Context, tenant, id, reason string) error
}

const (
	secretLead = "whsec_"
	// keyBytesMin is the least that the specification allows.
	keyBytesMin = 24
)

// Secret is a signing secret as Standard Webhooks writes it: "whsec_" and base64. It shows itself to nobody; convert it to string
// to use it.
type Secret string

const redacted = "[redacted]"

// Format covers every verb of fmt.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) } // fmt has no way to hear of it

// MarshalText covers encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue is for slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// sign returns the webhook-signature: one "v1,…" for each secret, separated by spaces.
func sign(secrets []Secret, id string, at time.Time, body []byte) (string, error) {
	if len(secrets) == 0 {
		return "", errors.New("the endpoint has no secret to sign with")
	}
	all := make([]string, 0, len(secrets))
	for _, s := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(s), secretLead))
		if err != nil || len(key) < keyBytesMin {
			return "", fmt.Errorf("a secret of the endpoint is not %s and base64 of at least %d bytes", secretLead, keyBytesMin)
		}
		signer, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			return "", err
		}
		signature, err := signer.Sign(id, at, body)
		if err != nil {
			return "", err
		}
		all = append(all, signature)
	}
	return strings.Join(all, " "), nil
}
