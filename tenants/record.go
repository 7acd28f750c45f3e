package tenants

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	json "github.com/go-json-experiment/json"
	"go.etcd.io/bbolt"
)

var (
	bucketTenants = []byte("tenants") // id → record
	bucketBox     = []byte("box")     // the keys below
	keyFormat     = []byte("format")  // → record of a number
	keyOperator   = []byte("operator")
	keyKeys       = []byte("keys") // → keysRecord
)

// formatNow is the version of what stands in box.db. A newer one is refused and not touched.
const formatNow = 1

// ErrFormat: box.db was written by a newer Tenderbox.
var ErrFormat = errors.New("the registry was written by a newer version: start that one")

// errRecord: a value is damaged. bbolt has no checksums of its own.
var errRecord = errors.New("damaged record")

// record is a tenant as it stands in box.db.
type record struct {
	ID        ID                      `json:"id"`
	Removed   bool                    `json:"removed,omitzero"` // the id stays taken: its books are still there
	Domains   []string                `json:"domains,omitzero"`
	Disabled  bool                    `json:"disabled,omitzero"`
	Offline   map[string]OfflineLimit `json:"offline,omitzero"` // null and {} differ
	Upstream  *upstreamRecord         `json:"upstream,omitzero"`
	RateLimit *RateLimit              `json:"rate_limit,omitzero"`
	KeyPrefix string                  `json:"key_prefix"`
	Key       digest                  `json:"key"`
	CreatedAt time.Time               `json:"created_at"`
}

type upstreamRecord struct {
	URL       string `json:"url"`
	Account   string `json:"account"`
	SealedKey []byte `json:"sealed_key"`
	Rate      int    `json:"rate,omitzero"`
}

// entry is a tenant in memory.
type entry struct {
	Tenant
	key     digest
	removed bool
}

func (e *entry) record(kr *Keyring) record {
	rec := record{ID: e.ID, Removed: e.removed, Domains: e.Domains, Disabled: e.Disabled, Offline: e.Offline, RateLimit: e.RateLimit,
		KeyPrefix: e.KeyPrefix, Key: e.key, CreatedAt: e.CreatedAt}
	if u := e.Upstream; u != nil {
		rec.Upstream = &upstreamRecord{u.URL, u.Account, kr.Seal(upstreamKeyRecord(e.ID), []byte(u.Key)), u.Rate}
	}
	return rec
}

func (rec *record) entry(kr *Keyring) (*entry, error) {
	e := &entry{key: rec.Key, removed: rec.Removed, Tenant: Tenant{ID: rec.ID, Domains: rec.Domains, Disabled: rec.Disabled,
		Offline: rec.Offline, RateLimit: rec.RateLimit, KeyPrefix: rec.KeyPrefix, CreatedAt: rec.CreatedAt}}
	if u := rec.Upstream; u != nil {
		key, err := kr.Open(upstreamKeyRecord(rec.ID), u.SealedKey)
		if err != nil {
			return nil, fmt.Errorf("upstream key of tenant %s: %w", rec.ID, err)
		}
		e.Upstream = &Upstream{u.URL, u.Account, Secret(key), u.Rate}
	}
	return e, nil
}

// upstreamKeyRecord binds a sealed upstream key to its tenant.
func upstreamKeyRecord(id ID) string { return "box/tenants/" + string(id) + "/upstream_key" }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeRecord puts a checksum over key and value before the value, so that a value under a wrong key is found too.
func encodeRecord(key []byte, v any) ([]byte, error) {
	body, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, checksum(key, body)), body...), nil
}

func decodeRecord(key, value []byte, v any) error {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != checksum(key, value[4:]) {
		return fmt.Errorf("%w: %q", errRecord, key)
	}
	if err := json.Unmarshal(value[4:], v); err != nil {
		return fmt.Errorf("%w: %q: %w", errRecord, key, err)
	}
	return nil
}

func checksum(key, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
}

// contents is all that box.db holds.
type contents struct {
	format   int // 0: new file
	tenants  []record
	hooks    []hookRecord
	operator *digest
	keys     *keysRecord // nil: written by a version that kept none
}

// readContents reads and verifies every record. Errors: ErrFormat, errRecord.
func readContents(tx *bbolt.Tx) (c contents, err error) {
	box, all := tx.Bucket(bucketBox), tx.Bucket(bucketTenants)
	if box == nil || all == nil {
		return c, nil
	}
	if v := box.Get(keyFormat); v != nil {
		if err := decodeRecord(keyFormat, v, &c.format); err != nil {
			return c, err
		}
	}
	if c.format > formatNow {
		return c, fmt.Errorf("%w (format %d, this one knows %d)", ErrFormat, c.format, formatNow)
	}
	if v := box.Get(keyOperator); v != nil {
		c.operator = new(digest)
		if err := decodeRecord(keyOperator, v, c.operator); err != nil {
			return c, err
		}
	}
	if v := box.Get(keyKeys); v != nil {
		c.keys = new(keysRecord)
		if err := decodeRecord(keyKeys, v, c.keys); err != nil {
			return c, err
		}
	}
	err = all.ForEach(func(k, v []byte) error {
		var rec record
		if err := decodeRecord(k, v, &rec); err != nil {
			return err
		}
		if !bytes.Equal(k, []byte(rec.ID)) {
			return fmt.Errorf("%w: %q stands under the key of %q", errRecord, rec.ID, k)
		}
		c.tenants = append(c.tenants, rec)
		return nil
	})
	if err == nil {
		c.hooks, err = readHooks(tx)
	}
	if err == nil && c.format == 0 && (c.operator != nil || len(c.tenants) > 0 || len(c.hooks) > 0 || c.keys != nil) {
		err = fmt.Errorf("%w: %q is missing", errRecord, keyFormat)
	}
	return c, err
}
