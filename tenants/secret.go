package tenants

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is what a secret shows instead of itself.
const redacted = "[redacted]"

// Secret is a string that does not get into logs, errors or JSON by accident: however it is formatted or encoded it
// shows "[redacted]", or nothing if it is empty. Convert it to string to use it.
type Secret string

// String returns "[redacted]".
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString is for %#v.
func (s Secret) GoString() string { return `tenants.Secret("` + s.String() + `")` }

// Format covers every verb of fmt, %x and %q included.
func (s Secret) Format(f fmt.State, verb rune) {
	out := s.String()
	if verb == 'v' && f.Flag('#') {
		out = s.GoString()
	}
	_, _ = io.WriteString(f, out) // fmt has no way to hear of it
}

// MarshalText covers JSON, TOML and other encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON is for encoders that ask for it first.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// LogValue is for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
