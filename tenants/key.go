package tenants

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"strings"
)

// An API key is "tbk_" and 56 characters a-z, 2-7: 8 by which it is found and recognised, 48 that are its 240 secret bits.
// A hash of so much chance cannot be guessed from, so a fast one serves (SHA-256, no salt, no stretching).
const (
	keyLead      = "tbk_"
	keyLookup    = len(keyLead) + 8 // characters that may be shown: Tenant.KeyPrefix
	keyRandom    = 35               // bytes of chance; 56 characters
	keyLen       = len(keyLead) + 56
	operatorMin  = 32  // characters of an operator's token that a person may choose; the box makes 47
	credentialMx = 255 // characters; longer ones are not even hashed
)

// ErrOperatorToken: the token is too short to be safe, or cannot stand in a header.
var ErrOperatorToken = errors.New("the operator's token needs 32 to 255 printable ASCII characters without spaces, commas and colons, and does not begin with tbk_")

var keyAlphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// digest is the SHA-256 of a key or token, all that is kept of it.
type digest [sha256.Size]byte

// noDigest is compared with when no key is found, so that unknown and wrong take the same time.
var noDigest digest

func newKey() (key string, d digest) {
	var chance [keyRandom]byte
	_, _ = rand.Read(chance[:]) // never fails: crypto/rand ends the program instead
	key = keyLead + keyAlphabet.EncodeToString(chance[:])
	return key, digestOf(key)
}

func digestOf(secret string) digest { return sha256.Sum256([]byte(secret)) }

func (d *digest) equal(o *digest) bool { return subtle.ConstantTimeCompare(d[:], o[:]) == 1 }

// MarshalText and UnmarshalText write a digest as hex.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

func (d *digest) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(d)) {
		return errors.New("not a SHA-256 in hex")
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// operatorToken checks a token that is to become the operator's.
func operatorToken(s string) error {
	if len(s) < operatorMin || len(s) > credentialMx || strings.HasPrefix(s, keyLead) ||
		strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' || r == ':' }) {
		return ErrOperatorToken
	}
	return nil
}
