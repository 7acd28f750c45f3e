package ledger

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// IdempotencyKey is a client's name for one request; "" means that it gave none.
type IdempotencyKey string

const idempotencyKeyMax = 255 // bytes, as INTERFACE and Stripe have it

// ParseIdempotencyKey accepts 1 to 255 printable ASCII characters.
func ParseIdempotencyKey(s string) (IdempotencyKey, error) {
	bad := s == "" || len(s) > idempotencyKeyMax
	for i := 0; i < len(s) && !bad; i++ {
		bad = s[i] < 0x20 || s[i] > 0x7e
	}
	if bad {
		return "", invalid("idempotency_key_invalid", "Idempotency-Key", "1 to 255 printable ASCII characters")
	}
	return IdempotencyKey(s), nil
}

var errKeyInProgress = &Error{Kind: Conflict, Code: "idempotency_key_in_use", RetryAfter: retryAfterDefault,
	Message: "a request with this Idempotency-Key is being stored at this moment"}

var errKeyMismatch = &Error{Kind: Mismatch, Code: "idempotency_mismatch", Field: "Idempotency-Key",
	Message: "this Idempotency-Key was used for a different request"}

// keyRetention is how long a key is kept at least; one whose payment is not
// settled is kept until it is.
const keyRetention = 7 * 24 * time.Hour

// keyRecord is what is stored under a key.
type keyRecord struct {
	fingerprint []byte
	record      string
}

// keys holds a tenant's idempotency keys unique over all shards. The key's row
// stands in the shard of the record that it made, in one transaction with it.
// This process owns every file, so an in-process claim on (tenant, key) plus an
// index of the keys that exist makes the whole linearizable: the index says
// which slot to ask; a file that the index does not cover yet is asked each time.
type keys struct {
	set         *shards.Set
	fingerprint func() hash.Hash
	upstream    []byte // keys upstreamHash
	seed        maphash.Seed

	claims sync.Map      // claim → struct{}: requests between receipt and commit
	filled []atomic.Bool // by shard: its keys are in the index

	indexMu sync.RWMutex // guards index
	index   map[uint64]shards.Slot
}

type claim struct {
	tenant tenants.ID
	key    IdempotencyKey
}

func newKeys(set *shards.Set, kr *tenants.Keyring) *keys {
	secret := kr.Subkey("request fingerprint")
	return &keys{
		set:         set,
		fingerprint: func() hash.Hash { return hmac.New(sha256.New, secret) },
		upstream:    kr.Subkey("upstream metadata"),
		seed:        maphash.MakeSeed(),
		filled:      make([]atomic.Bool, len(set.All())),
		index:       map[uint64]shards.Slot{},
	}
}

// begin claims the key for one request. The claim lasts until end is called.
func (k *keys) begin(t tenants.ID, key IdempotencyKey) (end func(), err error) {
	c := claim{t, key}
	if _, taken := k.claims.LoadOrStore(c, struct{}{}); taken {
		return nil, errKeyInProgress
	}
	return func() { k.claims.Delete(c) }, nil
}

func (k *keys) hash(t tenants.ID, key IdempotencyKey) uint64 {
	return maphash.Comparable(k.seed, claim{t, key})
}

// slot is where a record goes that belongs to no user: with its key.
func (k *keys) slot(t tenants.ID, key IdempotencyKey) shards.Slot {
	return shards.SlotOf(string(t), "key\x00"+string(key))
}

// add tells the index that key's row stands in slot.
func (k *keys) add(t tenants.ID, key IdempotencyKey, slot shards.Slot) {
	h := k.hash(t, key)
	k.indexMu.Lock()
	k.index[h] = slot
	k.indexMu.Unlock()
}

func (k *keys) remove(t tenants.ID, key IdempotencyKey) {
	h := k.hash(t, key)
	k.indexMu.Lock()
	delete(k.index, h)
	k.indexMu.Unlock()
}

// size is the number of keys in the index.
func (k *keys) size() int {
	k.indexMu.RLock()
	defer k.indexMu.RUnlock()
	return len(k.index)
}

// find returns what is stored under the key. The caller holds the claim.
func (k *keys) find(ctx context.Context, t tenants.ID, key IdempotencyKey) (rec keyRecord, found bool, err error) {
	// Which files must be asked is settled before the index is read: one that is
	// indexed between the two would be missed by both.
	var ask []*shards.Shard
	home := k.set.Shard(k.slot(t, key))
	for i, sh := range k.set.All() {
		// A file out of service whose keys are unknown is passed over. What a client
		// repeats goes to the same slot, hence to the same file, and is refused
		// there; only another request under a used key could slip through.
		if !k.filled[i].Load() && (sh.Err() == nil || sh == home) {
			ask = append(ask, sh)
		}
	}
	h := k.hash(t, key)
	k.indexMu.RLock()
	slot, hit := k.index[h]
	k.indexMu.RUnlock()
	if hit {
		ask = append(ask, k.set.Shard(slot))
	}
	for _, sh := range ask {
		if rec, found, err = readKey(ctx, sh, t, key); err != nil || found {
			return rec, found, err
		}
	}
	return keyRecord{}, false, nil
}

func readKey(ctx context.Context, sh *shards.Shard, t tenants.ID, key IdempotencyKey) (rec keyRecord, found bool, err error) {
	err = sh.View(ctx, func(tx *shards.Tx) error {
		return tx.QueryRow(`SELECT fingerprint, record FROM idempotency_keys WHERE tenant = ? AND key = ?`,
			string(t), string(key)).Scan(&rec.fingerprint, &rec.record)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return keyRecord{}, false, nil
	}
	return rec, err == nil, err
}

// fillBatch is how many rows one read transaction covers while the index is
// filled or pruned: a long one would hold back the checkpoints.
const fillBatch = 2000

// fill reads every shard's keys into the index, then returns.
func (k *keys) fill(ctx context.Context, log *slog.Logger) error {
	for i, sh := range k.set.All() {
		var t, key, record string
		for {
			n := 0
			err := sh.View(ctx, func(tx *shards.Tx) error {
				rows, err := tx.Query(`SELECT tenant, key, record FROM idempotency_keys
					WHERE (tenant, key) > (?, ?) ORDER BY tenant, key LIMIT ?`, t, key, fillBatch)
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					if err := rows.Scan(&t, &key, &record); err != nil {
						return err
					}
					n++
					if slot, ok := PaymentID(record).slot(); ok {
						k.add(tenants.ID(t), IdempotencyKey(key), slot)
					}
				}
				return rows.Err()
			})
			if ctx.Err() != nil {
				return nil
			}
			if err != nil { // left unfilled: the file is asked each time
				log.Warn("idempotency keys not indexed", "shard", sh.ID(), "err", err)
				break
			}
			if n < fillBatch {
				k.filled[i].Store(true)
				break
			}
		}
	}
	return nil
}

// prune forgets the keys of payments that were made and settled before the time
// given.
func (k *keys) prune(ctx context.Context, sh *shards.Shard, before time.Time) error {
	var t, key string // how far the table has been read
	for {
		n := 0
		var old []claim
		err := sh.View(ctx, func(tx *shards.Tx) error {
			rows, err := tx.Query(`SELECT k.tenant, k.key, max(k.created_at, coalesce(p.settled_at, 0)) < ? AND coalesce(p.sync, 'settled') = 'settled'
				FROM idempotency_keys k LEFT JOIN payments p ON p.tenant = k.tenant AND p.id = k.record
				WHERE (k.tenant, k.key) > (?, ?) ORDER BY k.tenant, k.key LIMIT ?`, before.UnixMilli(), t, key, fillBatch)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var due bool
				if err := rows.Scan(&t, &key, &due); err != nil {
					return err
				}
				if n++; due {
					old = append(old, claim{tenants.ID(t), IdempotencyKey(key)})
				}
			}
			return rows.Err()
		})
		if err == nil && len(old) > 0 {
			err = k.forget(ctx, sh, old)
		}
		if err != nil || n < fillBatch {
			return err
		}
	}
}

// forget deletes keys. One that a request holds at this moment waits for the next round.
func (k *keys) forget(ctx context.Context, sh *shards.Shard, old []claim) error {
	old = slices.DeleteFunc(old, func(c claim) bool {
		_, taken := k.claims.LoadOrStore(c, struct{}{})
		return taken
	})
	err := sh.Update(ctx, func(tx *shards.Tx) error {
		for _, c := range old {
			if _, err := tx.Exec(`DELETE FROM idempotency_keys WHERE tenant = ? AND key = ?`, string(c.tenant), string(c.key)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, c := range old {
		if err == nil {
			k.remove(c.tenant, c.key)
		}
		k.claims.Delete(c)
	}
	return err
}

// upstreamHash is what a send carries of the client's key, so that after a
// restore a charge can be found by the request that made it.
func (k *keys) upstreamHash(t tenants.ID, key IdempotencyKey) string {
	m := hmac.New(sha256.New, k.upstream)
	m.Write([]byte(t))
	m.Write([]byte{0})
	m.Write([]byte(key))
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// fingerprintOf is a keyed hash over the meaning of a request: its kind and
// members in a fixed order, whatever the spelling of the body was.
func (k *keys) fingerprintOf(kind string, t tenants.ID, p *NewPayment) []byte {
	m := k.fingerprint()
	var n [8]byte
	text := func(ss ...string) {
		for _, s := range ss {
			binary.BigEndian.PutUint32(n[:4], uint32(len(s)))
			m.Write(n[:4])
			m.Write([]byte(s))
		}
	}
	binary.BigEndian.PutUint64(n[:], uint64(p.Amount))
	m.Write(n[:])
	text(kind, string(t), p.Currency, p.Source, p.PaymentMethod, p.OrderID, p.UserID, p.Description)
	names := make([]string, 0, len(p.Metadata))
	for name := range p.Metadata {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text(name, p.Metadata[name])
	}
	return m.Sum(nil)
}
