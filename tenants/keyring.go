package tenants

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// The first byte of what Seal returns says what follows; the rest is XChaCha20-Poly1305: 24 bytes of nonce and the ciphertext.
const (
	sealFirst byte = 1 // nothing: the file's first key sealed it, as in every box whose key was never changed
	sealNamed byte = 2 // the id of the key
)

// ErrSealed says that a sealed value does not open: another key sealed it, it was changed, or it was
// moved to another record.
var ErrSealed = errors.New("sealed value does not open: wrong key file, or the record was changed")

// keyID names a key and tells nothing about it. Few keys ever meet in a file: 32 bits keep them apart, and a new key that by chance
// has a name that is taken is thrown away.
type keyID [4]byte

func (id keyID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText and UnmarshalText write an id as hex.
func (id keyID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

func (id *keyID) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(id)) {
		return errors.New("not the id of a key")
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// masterKey is one key of a key file.
type masterKey struct {
	root  []byte
	id    keyID
	aead  cipher.AEAD
	begin []byte // what its sealed values begin with
}

func newMasterKey(root []byte, form byte) *masterKey {
	m := &masterKey{root: root}
	copy(m.id[:], m.subkey("key id"))
	aead, err := chacha20poly1305.NewX(m.subkey("seal"))
	if err != nil {
		panic(err) // only for keys of another size
	}
	m.aead, m.begin = aead, []byte{form}
	if form == sealNamed {
		m.begin = append(m.begin, m.id[:]...)
	}
	return m
}

func (m *masterKey) subkey(purpose string) []byte {
	key, err := hkdf.Expand(sha256.New, m.root, "tenderbox "+purpose, keyBytes)
	if err != nil {
		panic(err) // only for lengths beyond 255 hashes
	}
	return key
}

// Keyring derives the box's keys from its key file and seals what must not stand in clear on the disk. It is safe for
// concurrent use, and never changes: what changes the file returns another one.
type Keyring struct {
	path      string
	first     *masterKey   // derives
	open      []*masterKey // oldest first; the last seals
	resealing bool
}

// Path is the key file.
func (k *Keyring) Path() string { return k.path }

// Newest names the key that seals, for a person.
func (k *Keyring) Newest() string { return k.newest().id.String() }

func (k *Keyring) newest() *masterKey { return k.open[len(k.open)-1] }

// holds reports whether the keyring has a key of that name, whatever it is for.
func (k *Keyring) holds(id keyID) bool {
	return k.first != nil && k.first.id == id || slices.ContainsFunc(k.open, func(m *masterKey) bool { return m.id == id })
}

// Subkey derives a 256-bit key for one purpose (HKDF with SHA-256, RFC 5869). Keys of different purposes
// tell nothing about each other. It stays the same whatever keys are added to the file.
func (k *Keyring) Subkey(purpose string) []byte { return k.first.subkey(purpose) }

// MAC returns a maker of keyed hashes (HMAC with SHA-256) for one purpose.
func (k *Keyring) MAC(purpose string) func() hash.Hash {
	sub := k.Subkey(purpose)
	return func() hash.Hash { return hmac.New(sha256.New, sub) }
}

// Seal encrypts plaintext (XChaCha20-Poly1305, random nonce) with the newest key and adds 41 or 45 bytes. record names where the value
// stands (table/tenant/id/column); it is not stored, but moved elsewhere the value does not open.
func (k *Keyring) Seal(record string, plaintext []byte) []byte {
	m := k.newest()
	out := make([]byte, len(m.begin)+chacha20poly1305.NonceSizeX, len(m.begin)+chacha20poly1305.NonceSizeX+len(plaintext)+chacha20poly1305.Overhead)
	nonce := out[copy(out, m.begin):]
	_, _ = rand.Read(nonce)
	return m.aead.Seal(out, nonce, plaintext, []byte(record))
}

// Open decrypts what [Keyring.Seal] made for the same record, with whichever of the file's keys, or returns ErrSealed.
func (k *Keyring) Open(record string, sealed []byte) ([]byte, error) {
	i := slices.IndexFunc(k.open, func(m *masterKey) bool { return bytes.HasPrefix(sealed, m.begin) })
	if i < 0 {
		if len(sealed) > len(keyID{}) && sealed[0] == sealNamed {
			return nil, fmt.Errorf("%w (%s lacks key %x)", ErrSealed, k.path, sealed[1:1+len(keyID{})])
		}
		return nil, ErrSealed
	}
	m, rest := k.open[i], sealed[len(k.open[i].begin):]
	if len(rest) < chacha20poly1305.NonceSizeX {
		return nil, ErrSealed
	}
	nonce, ciphertext := rest[:chacha20poly1305.NonceSizeX], rest[chacha20poly1305.NonceSizeX:]
	plaintext, err := m.aead.Open(nil, nonce, ciphertext, []byte(record))
	if err != nil {
		return nil, ErrSealed
	}
	return plaintext, nil
}

// Reseal returns a sealed value as the newest key seals it: itself, once that is so. Either way it was opened, or the error is ErrSealed.
func (k *Keyring) Reseal(record string, sealed []byte) (_ []byte, changed bool, err error) {
	plaintext, err := k.Open(record, sealed)
	if err != nil || k.current(sealed) {
		return sealed, false, err
	}
	return k.Seal(record, plaintext), true, nil
}

// current reports whether the newest key sealed the value.
func (k *Keyring) current(sealed []byte) bool { return bytes.HasPrefix(sealed, k.newest().begin) }

// keysRecord is what box.db says about the keys of its box: their names, so that a wrong or an older key file is told at once.
type keysRecord struct {
	Derives keyID   `json:"derives"`
	Opens   []keyID `json:"opens"`
}

func (k *Keyring) record() keysRecord {
	rec := keysRecord{Derives: k.first.id}
	for _, m := range k.open {
		rec.Opens = append(rec.Opens, m.id)
	}
	return rec
}

// fits reports, as an ErrKeyFile, what the box needs and the file lacks.
func (k *Keyring) fits(rec *keysRecord) error {
	if k.first.id != rec.Derives {
		return fmt.Errorf("%w: %s is the key of another box (%s); this one began with key %s", ErrKeyFile, k.path, k.first.id, rec.Derives)
	}
	for _, id := range rec.Opens {
		if !slices.ContainsFunc(k.open, func(m *masterKey) bool { return m.id == id }) {
			return fmt.Errorf("%w: %s lacks key %s, with which this box was sealed; it is a copy from before the last rekey, or from after older keys were forgotten", ErrKeyFile, k.path, id)
		}
	}
	return nil
}
