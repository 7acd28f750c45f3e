package tenants

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	keyBytes      = 32 // 256 bits, the strength of every key derived from it
	keyCheckBytes = 4  // of SHA-256 behind the key, so that a damaged file is told from a foreign one

	// keyFileHeader is the key file's first line. The second is base64 of the key and its check bytes.
	keyFileHeader = "tenderbox key 1"
	keyFileMax    = 1024 // bytes; a key file has 65, whatever is longer is something else

	sealVersion = 1 // first byte of what Seal returns: XChaCha20-Poly1305; 24 bytes of nonce follow
)

var (
	// ErrSealed says that a sealed value does not open: another key sealed it, it was changed, or it was
	// moved to another record.
	ErrSealed = errors.New("sealed value does not open: wrong key file, or the record was changed")
	// ErrKeyFile says that a key file cannot be used.
	ErrKeyFile = errors.New("key file unusable")
)

// Keyring derives the box's keys from its key file and seals what must not stand in clear on the disk. It is safe for
// concurrent use.
type Keyring struct {
	root []byte
	seal cipher.AEAD
}

func newKeyring(root []byte) *Keyring {
	k := &Keyring{root: root}
	seal, err := chacha20poly1305.NewX(k.Subkey("seal"))
	if err != nil {
		panic(err) // only for keys of another size
	}
	k.seal = seal
	return k
}

// LoadKeyring reads a key file. One that every user of the machine can read is refused. Errors to branch on: fs.ErrNotExist,
// ErrKeyFile.
func LoadKeyring(path string) (*Keyring, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%w: every user can read %s; run: chmod 600 %[2]s", ErrKeyFile, path)
	case !info.Mode().IsRegular() || info.Size() > keyFileMax:
		return nil, fmt.Errorf("%w: %s is no key file", ErrKeyFile, path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	header, rest, _ := bytes.Cut(content, []byte("\n"))
	raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(rest)))
	if string(bytes.TrimSpace(header)) != keyFileHeader || err != nil || len(raw) != keyBytes+keyCheckBytes ||
		!bytes.Equal(raw[keyBytes:], keyCheck(raw[:keyBytes])) {
		return nil, fmt.Errorf("%w: %s is no key file, or damaged; put a copy of the right one there", ErrKeyFile, path)
	}
	return newKeyring(raw[:keyBytes]), nil
}

func keyCheck(root []byte) []byte {
	sum := sha256.Sum256(root)
	return sum[:keyCheckBytes]
}

// CreateKeyring writes a new random key file with mode 0600, durable before it is used. It refuses to replace one: fs.ErrExist.
func CreateKeyring(path string) (*Keyring, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		return nil, err
	}
	root := make([]byte, keyBytes)
	_, _ = rand.Read(root) // never fails: it ends the program instead
	text := keyFileHeader + "\n" + base64.StdEncoding.EncodeToString(append(root[:keyBytes:keyBytes], keyCheck(root)...)) + "\n"
	// Whole under its name or not there at all: after a power cut half a key would keep a box from starting.
	if err := replaceFile(path, func(f *os.File) error { _, err := f.WriteString(text); return err }); err != nil {
		return nil, err
	}
	return newKeyring(root), nil
}

// LoadOrCreateKeyring is [LoadKeyring], and [CreateKeyring] where there is no file.
func LoadOrCreateKeyring(path string) (*Keyring, error) {
	k, err := LoadKeyring(path)
	if errors.Is(err, fs.ErrNotExist) {
		return CreateKeyring(path)
	}
	return k, err
}

// Subkey derives a 256-bit key for one purpose (HKDF with SHA-256, RFC 5869). Keys of different purposes
// tell nothing about each other.
func (k *Keyring) Subkey(purpose string) []byte {
	key, err := hkdf.Expand(sha256.New, k.root, "tenderbox "+purpose, keyBytes)
	if err != nil {
		panic(err) // only for lengths beyond 255 hashes
	}
	return key
}

// MAC returns a maker of keyed hashes (HMAC with SHA-256) for one purpose.
func (k *Keyring) MAC(purpose string) func() hash.Hash {
	sub := k.Subkey(purpose)
	return func() hash.Hash { return hmac.New(sha256.New, sub) }
}

// Seal encrypts plaintext (XChaCha20-Poly1305, random nonce) and adds 41 bytes. record names where the value
// stands (table/tenant/id/column); it is not stored, but moved elsewhere the value does not open.
func (k *Keyring) Seal(record string, plaintext []byte) []byte {
	out := make([]byte, 1+chacha20poly1305.NonceSizeX, 1+chacha20poly1305.NonceSizeX+len(plaintext)+chacha20poly1305.Overhead)
	out[0] = sealVersion
	_, _ = rand.Read(out[1:])
	return k.seal.Seal(out, out[1:], plaintext, []byte(record))
}

// Open decrypts what [Keyring.Seal] made for the same record, or returns ErrSealed.
func (k *Keyring) Open(record string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+chacha20poly1305.NonceSizeX || sealed[0] != sealVersion {
		return nil, ErrSealed
	}
	nonce, ciphertext := sealed[1:1+chacha20poly1305.NonceSizeX], sealed[1+chacha20poly1305.NonceSizeX:]
	plaintext, err := k.seal.Open(nil, nonce, ciphertext, []byte(record))
	if err != nil {
		return nil, ErrSealed
	}
	return plaintext, nil
}
