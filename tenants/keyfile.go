package tenants

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A key file is text. One key, as a box begins with, is a header and base64 of the key and its check bytes:
//
//	tenderbox key 1
//	BASE64
//
// Several stand one a line, oldest first, each behind what it is for:
//
//	tenderbox key 2
//	derives,opens BASE64
//	opens BASE64
//	seals BASE64
//
// The first one derives, for ever: a journal's chain and the fingerprints of requests cannot change their key. The last one seals;
// it opens too. "resealing" beside "seals" says that values under older keys may be left.
const (
	keyBytes      = 32 // 256 bits, the strength of every key derived from it
	keyCheckBytes = 4  // of SHA-256 behind the key, so that a damaged file is told from a foreign one

	keyFileHeader  = "tenderbox key 1"
	keyFileHeader2 = "tenderbox key 2"
	keyFileMax     = 2048 // bytes; a key takes at most 70, whatever is longer than keysMax of them is something else

	// keysMax keys stand in a file: more are years of rotations whose old copies nobody can still want.
	keysMax = 16

	roleDerives, roleOpens, roleSeals, roleResealing = "derives", "opens", "seals", "resealing"
)

var (
	// ErrKeyFile says that a key file cannot be used.
	ErrKeyFile = errors.New("key file unusable")
	// ErrKeysMax says that a key file holds as many keys as it may.
	ErrKeysMax = fmt.Errorf("a key file holds at most %d keys: forget the older ones first", keysMax)
)

// LoadKeyring reads a key file. One that anybody but its owner can read is refused. Errors to branch on: fs.ErrNotExist, ErrKeyFile.
func LoadKeyring(path string) (*Keyring, error) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: others than its owner can read %s; run: chmod 600 %[2]s", ErrKeyFile, path)
	}
	return LoadCredential(path)
}

// LoadCredential is [LoadKeyring] for a file that the service manager provides: it has seen to who can read it, by the folder and by
// access lists that show as a group's permissions.
func LoadCredential(path string) (*Keyring, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > keyFileMax {
		return nil, fmt.Errorf("%w: %s is no key file", ErrKeyFile, path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	k, ok := parseKeyFile(content)
	if !ok {
		return nil, fmt.Errorf("%w: %s is no key file, is damaged, or was written by a newer version; put a copy of the right one there", ErrKeyFile, path)
	}
	k.path = path
	return k, nil
}

// CreateKeyring writes a new random key file with mode 0600, durable before it is used. It refuses to replace one: fs.ErrExist.
func CreateKeyring(path string) (*Keyring, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		return nil, err
	}
	k := &Keyring{path: path}
	k.first = newMasterKey(newRoot(), sealFirst)
	k.open = []*masterKey{k.first}
	return k, k.save()
}

// LoadOrCreateKeyring is [LoadKeyring], and [CreateKeyring] where there is no file.
func LoadOrCreateKeyring(path string) (*Keyring, error) {
	k, err := LoadKeyring(path)
	if errors.Is(err, fs.ErrNotExist) {
		return CreateKeyring(path)
	}
	return k, err
}

// AddKey returns a keyring with a new key, which seals from now on; all others go on opening. The file has it, durably, before it is
// used. What is sealed already stays as it is: see [Keyring.Reseal]. Error to branch on: ErrKeysMax.
func (k *Keyring) AddKey() (*Keyring, error) {
	if len(k.open) >= keysMax-1 { // and one that derives alone
		return nil, ErrKeysMax
	}
	next := *k
	fresh := newMasterKey(newRoot(), sealNamed)
	for k.holds(fresh.id) {
		fresh = newMasterKey(newRoot(), sealNamed)
	}
	next.open, next.resealing = append(slices.Clone(k.open), fresh), true
	return &next, next.save()
}

// Resealing reports whether values under older keys may be left: a key was added, and nobody has called [Keyring.Resealed] since.
func (k *Keyring) Resealing() bool { return k.resealing }

// Resealed notes in the file that the newest key has sealed everything.
func (k *Keyring) Resealed() (*Keyring, error) {
	next := *k
	next.resealing = false
	return &next, next.save()
}

// ForgetOld drops from the file every key that neither seals nor derives. What they sealed cannot be opened any more.
func (k *Keyring) ForgetOld() (*Keyring, error) {
	next := k.WithoutOld()
	return next, next.save()
}

// WithoutOld is the keyring that [Keyring.ForgetOld] would leave, while the file stays as it is.
func (k *Keyring) WithoutOld() *Keyring {
	next := *k
	next.open, next.resealing = k.open[len(k.open)-1:], false
	return &next
}

// OldKeys is the number of keys that open and do not seal.
func (k *Keyring) OldKeys() int { return len(k.open) - 1 }

func newRoot() []byte {
	root := make([]byte, keyBytes)
	_, _ = rand.Read(root) // never fails: it ends the program instead
	return root
}

// save writes the file whole or not at all: after a power cut half a key would keep a box from starting.
func (k *Keyring) save() error {
	path := k.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a link stays one
	}
	return replaceFile(path, func(f *os.File) error { _, err := f.WriteString(k.text()); return err })
}

func (k *Keyring) text() string {
	if len(k.open) == 1 && k.open[0] == k.first && !k.resealing {
		return keyFileHeader + "\n" + k.first.text() + "\n" // older versions read it too
	}
	var b strings.Builder
	b.WriteString(keyFileHeader2 + "\n")
	if !slices.Contains(k.open, k.first) {
		fmt.Fprintf(&b, "%s %s\n", roleDerives, k.first.text())
	}
	for i, key := range k.open {
		var roles []string
		if key == k.first {
			roles = append(roles, roleDerives)
		}
		switch {
		case i < len(k.open)-1:
			roles = append(roles, roleOpens)
		case k.resealing:
			roles = append(roles, roleSeals, roleResealing)
		default:
			roles = append(roles, roleSeals)
		}
		fmt.Fprintf(&b, "%s %s\n", strings.Join(roles, ","), key.text())
	}
	return b.String()
}

func (m *masterKey) text() string {
	return base64.StdEncoding.EncodeToString(append(slices.Clip(slices.Clone(m.root)), keyCheck(m.root)...))
}

func keyCheck(root []byte) []byte {
	sum := sha256.Sum256(root)
	return sum[:keyCheckBytes]
}

// parseKeyFile reads both forms.
func parseKeyFile(content []byte) (*Keyring, bool) {
	header, rest, _ := bytes.Cut(content, []byte("\n"))
	switch string(bytes.TrimSpace(header)) {
	case keyFileHeader:
		root, ok := parseKey(string(bytes.TrimSpace(rest)))
		if !ok {
			return nil, false
		}
		k := &Keyring{first: newMasterKey(root, sealFirst)}
		k.open = []*masterKey{k.first}
		return k, true
	case keyFileHeader2:
		return parseKeyFile2(strings.TrimSpace(string(rest)))
	}
	return nil, false
}

func parseKeyFile2(text string) (*Keyring, bool) {
	k, seals := &Keyring{}, false
	for line := range strings.Lines(text) {
		words, encoded, _ := strings.Cut(strings.TrimSpace(line), " ")
		roles := strings.Split(words, ",")
		has := func(role string) bool { return slices.Contains(roles, role) }
		if slices.ContainsFunc(roles, func(r string) bool {
			return r != roleDerives && r != roleOpens && r != roleSeals && r != roleResealing
		}) {
			return nil, false
		}
		root, ok := parseKey(encoded)
		if !ok || seals || has(roleDerives) != (k.first == nil) || has(roleResealing) && !has(roleSeals) {
			return nil, false // the first derives and no other; nothing follows what seals
		}
		form := sealNamed
		if k.first == nil {
			form = sealFirst
		}
		key := newMasterKey(root, form)
		if k.holds(key.id) {
			return nil, false
		}
		if has(roleDerives) {
			k.first = key
		}
		if has(roleOpens) || has(roleSeals) {
			k.open = append(k.open, key)
		}
		seals, k.resealing = has(roleSeals), has(roleResealing)
	}
	return k, seals && len(k.open) < keysMax
}

func parseKey(encoded string) (root []byte, ok bool) {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) != keyBytes+keyCheckBytes || !bytes.Equal(raw[keyBytes:], keyCheck(raw[:keyBytes])) {
		return nil, false
	}
	return raw[:keyBytes:keyBytes], true
}
