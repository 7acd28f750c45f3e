package ledger

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

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
	record      recordID
}

// lookup is what a request knows of its key when nothing is stored under it.
type lookup struct {
	fingerprint []byte
	unread      []int // shards whose keys were not known: nothing under the key may be stored in them
}

// keys holds a tenant's idempotency keys unique over all shards. The key's row
// stands in the shard of the record that it made, in one transaction with it.
// This process owns every file, so an in-process claim on (tenant, key) plus an
// index of the keys that exist makes the whole linearizable. The index follows
// the commits and is filled at start from the files; until a file is indexed, a
// request whose key could stand there waits.
type keys struct {
	set         *shards.Set
	fingerprint sync.Pool // of *printer
	upstream    []byte    // keys upstreamHash
	owner       []byte    // keys ownerMark
	seed        maphash.Seed

	claims claims
	filled []atomic.Bool // by shard: its keys are in the index
	stuck  []atomic.Bool // by shard: they could not be read when that was tried last
	whole  atomic.Bool   // all of them

	indexMu  sync.RWMutex // guards what follows
	index    map[uint64]locator
	progress chan struct{} // closed, and made anew, when a shard was filled, or could not be
}

// locator is the first half of a record's ULID: time, slot and six random bits.
// It says in which file, and there in which few rows, a key stands. A whole id
// would double what the index takes of the memory.
type locator uint64

func (at locator) slot() shards.Slot { return slotOf(at.bound(0)) }

// within is the range of the record ids with prefix that begin like this.
func (at locator) within(prefix string) (from, to string) {
	return prefix + at.bound(0).String(), prefix + at.bound(0xff).String() + "~" // behind a user's id
}

// bound is the lowest (fill 0) or highest (0xff) ULID that begins like this.
func (at locator) bound(fill byte) (u ulid.ULID) {
	binary.BigEndian.PutUint64(u[:8], uint64(at))
	for i := 8; i < len(u); i++ {
		u[i] = fill
	}
	return u
}

func newKeys(set *shards.Set, kr *tenants.Keyring) *keys {
	secret := kr.Subkey("request fingerprint")
	return &keys{
		set:         set,
		fingerprint: sync.Pool{New: func() any { return &printer{mac: hmac.New(sha256.New, secret)} }},
		upstream:    kr.Subkey("upstream metadata"),
		owner:       kr.Subkey("upstream owner"),
		seed:        maphash.MakeSeed(),
		filled:      make([]atomic.Bool, len(set.All())),
		stuck:       make([]atomic.Bool, len(set.All())),
		claims:      claims{held: map[claim]struct{}{}},
		index:       map[uint64]locator{},
		progress:    make(chan struct{}),
	}
}

func (k *keys) hash(t tenants.ID, key IdempotencyKey) uint64 {
	return maphash.Comparable(k.seed, claim{t, key})
}

// slot is where a record goes that belongs to no user: with its key.
func (k *keys) slot(t tenants.ID, key IdempotencyKey) shards.Slot {
	return shards.SlotOf(string(t), "key\x00"+string(key))
}

// add tells the index which record a key made.
func (k *keys) add(t tenants.ID, key IdempotencyKey, record recordID) {
	at, ok := record.locator()
	if !ok {
		return // no id of ours: an audit's finding, not a key
	}
	h := k.hash(t, key)
	k.indexMu.Lock()
	k.index[h] = at
	k.indexMu.Unlock()
}

// remove forgets that the key made the record; another record that it made since stays known.
func (k *keys) remove(t tenants.ID, key IdempotencyKey, record recordID) {
	h := k.hash(t, key)
	at, ok := record.locator()
	k.indexMu.Lock()
	defer k.indexMu.Unlock()
	if ok && k.index[h] == at {
		delete(k.index, h)
	}
}

// size is the number of keys in the index.
func (k *keys) size() int {
	k.indexMu.RLock()
	defer k.indexMu.RUnlock()
	return len(k.index)
}

// find returns what is stored under the key. To know that there is nothing, the
// caller holds the claim. unread are the shards that were passed over.
func (k *keys) find(ctx context.Context, t tenants.ID, key IdempotencyKey) (rec keyRecord, found bool, unread []int, err error) {
	if !k.whole.Load() {
		if unread, err = k.await(ctx, k.set.Shard(k.slot(t, key))); err != nil {
			return keyRecord{}, false, nil, err
		}
	}
	h := k.hash(t, key)
	k.indexMu.RLock()
	at, hit := k.index[h]
	k.indexMu.RUnlock()
	if !hit {
		return keyRecord{}, false, unread, nil
	}
	rec, found, err = k.read(ctx, t, key, at)
	return rec, found, unread, err
}

// read looks for the key's row where the index says that it is. Two keys with one hash cost a read, and decide nothing: the row itself is compared.
func (k *keys) read(ctx context.Context, t tenants.ID, key IdempotencyKey, at locator) (rec keyRecord, found bool, err error) {
	sh := k.set.Shard(at.slot())
	err = sh.View(ctx, func(tx *shards.Tx) error {
		for _, prefix := range recordPrefixes {
			from, to := at.within(prefix)
			err := tx.QueryRow(`SELECT fingerprint, record FROM idempotency_keys WHERE tenant = ? AND record BETWEEN ? AND ? AND key = ?`,
				string(t), from, to, string(key)).Scan(&rec.fingerprint, &rec.record)
			if found = err == nil; found || !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		return nil
	})
	if out := sh.Err(); err == nil && !found && out != nil {
		// The commit that may have stored the key failed, and its file was not written anew since: the row cannot be seen, and may come
		// back with the next start.
		err = fmt.Errorf("%w: %w", shards.ErrUnavailable, out)
	}
	return rec, found, err
}

var errKeysUnread = errors.New("its idempotency keys cannot be read")

// fillWaitMax is how long a request waits for the index: a box with millions of
// keys on a slow disk needs some seconds after its start.
const fillWaitMax = 5 * time.Second

// await returns when no file can hold keys that the index does not know. A file
// out of service, or that cannot be read, whose keys are unknown is passed over, unless it is the key's
// home: what a client repeats goes to the same slot, hence to the same file, and
// is refused there, also if the file comes back meanwhile; only another request under a used key could slip through.
func (k *keys) await(ctx context.Context, home *shards.Shard) (unread []int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, fillWaitMax, shards.ErrUnavailable)
	defer cancel()
	for {
		k.indexMu.RLock()
		progress := k.progress
		k.indexMu.RUnlock()
		unknown := false
		unread = unread[:0]
		for i, sh := range k.set.All() {
			switch out := sh.Err(); {
			case k.filled[i].Load():
			case out == nil && !k.stuck[i].Load():
				unknown = true
			case sh == home:
				return nil, fmt.Errorf("%w: %w", shards.ErrUnavailable, cmp.Or(out, errKeysUnread))
			default:
				unread = append(unread, i)
			}
		}
		if !unknown {
			return unread, nil
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

const (
	// fillBatch is how many rows one read transaction covers while the index is
	// filled or pruned: a long one would hold back the checkpoints.
	fillBatch = 2000
	// fillAtOpen is how many batches of a shard are read before it serves: some
	// 20 ms, after which most boxes know all their keys.
	fillAtOpen = 5
)

// fill reads every shard's keys into the index, also of those that come into
// service later, then returns.
func (k *keys) fill(ctx context.Context, log *slog.Logger) error {
	for !k.whole.Load() {
		// All at once: requests wait for it, so that it may have the cores.
		var filling errgroup.Group
		for _, sh := range k.set.All() {
			if sh.Err() != nil {
				continue
			}
			filling.Go(func() error {
				return guard(func() error {
					if err := k.fillShard(ctx, sh, math.MaxInt); err != nil && ctx.Err() == nil {
						log.Warn("idempotency keys not indexed yet", "shard", sh.ID(), "err", err)
					}
					return nil
				})
			})
		}
		if err := filling.Wait(); err != nil {
			return err
		}
		if k.whole.Load() {
			break
		}
		if pause(ctx, retryPause) != nil {
			return nil
		}
	}
	return nil
}

// fillShard reads one shard's keys, at most so many batches.
func (k *keys) fillShard(ctx context.Context, sh *shards.Shard, batches int) error {
	if k.filled[sh.ID()].Load() {
		return nil
	}
	var t, record, key string
	for range batches {
		n := 0
		err := sh.View(ctx, func(tx *shards.Tx) error {
			rows, err := tx.Query(`SELECT tenant, record, key FROM idempotency_keys
				WHERE (tenant, record) > (?, ?) ORDER BY tenant, record LIMIT ?`, t, record, fillBatch)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				if err := rows.Scan(&t, &record, &key); err != nil {
					return err
				}
				n++
				k.add(tenants.ID(t), IdempotencyKey(key), recordID(record))
			}
			return rows.Err()
		})
		if err != nil {
			if ctx.Err() == nil {
				k.passOver(sh)
			}
			return err
		}
		k.stuck[sh.ID()].Store(false)
		if n < fillBatch {
			k.filledShard(sh)
			return nil
		}
	}
	return nil
}

// passOver lets the other files' requests wait no longer for one whose keys cannot be read.
func (k *keys) passOver(sh *shards.Shard) {
	if !k.stuck[sh.ID()].Swap(true) {
		k.indexMu.Lock()
		defer k.indexMu.Unlock()
		k.wake()
	}
}

// wake tells who waits to look again. The caller holds indexMu.
func (k *keys) wake() {
	close(k.progress)
	k.progress = make(chan struct{})
}

// filledShard wakes who waits.
func (k *keys) filledShard(sh *shards.Shard) {
	k.indexMu.Lock()
	defer k.indexMu.Unlock()
	k.filled[sh.ID()].Store(true)
	whole := true
	for i := range k.filled {
		whole = whole && k.filled[i].Load()
	}
	k.whole.Store(whole)
	k.wake()
}

// oldKey is a key that may be forgotten.
type oldKey struct {
	claim
	record string
}

// prune forgets the keys of records that were made, and of payments and refunds that were
// settled too, before a time that a processor's clock agrees with. What the processor settled it has
// dated. What only the box's own clock dates, which may have been in 1970, is noted when it is first found past its time,
// and goes when that was before the time given.
func (k *keys) prune(ctx context.Context, sh *shards.Shard, before time.Time) error {
	var t, record, key string // how far the table has been read
	for {
		n := 0
		var old, past []oldKey
		err := sh.View(ctx, func(tx *shards.Tx) error {
			rows, err := tx.Query(`SELECT k.tenant, k.record, k.key, k.past_at, p.id IS NULL AND r.id IS NULL,
					coalesce(max(coalesce(p.created_at, r.created_at), coalesce(p.settled_at, r.settled_at)) < ?, 0),
					coalesce(p.status = 'canceled', r.voids, 1)
				FROM idempotency_keys k LEFT JOIN payments p ON p.tenant = k.tenant AND p.id = k.record
				LEFT JOIN refunds r ON r.tenant = k.tenant AND r.id = k.record
				WHERE (k.tenant, k.record) > (?, ?) ORDER BY k.tenant, k.record LIMIT ?`, before.UnixMilli(), t, record, fillBatch)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var pastAt sql.NullInt64
				var other, settled, ours bool
				if err := rows.Scan(&t, &record, &key, &pastAt, &other, &settled, &ours); err != nil {
					return err
				}
				n++
				if !settled && !(other && recordID(record).madeBefore(before)) {
					continue
				}
				row := oldKey{claim{tenants.ID(t), IdempotencyKey(key)}, record}
				switch {
				case !ours || pastAt.Valid && instant(pastAt.Int64).Before(before):
					old = append(old, row)
				case !pastAt.Valid:
					past = append(past, row)
				}
			}
			return rows.Err()
		})
		if err == nil && len(old) > 0 {
			err = k.forget(ctx, sh, old)
		}
		if err == nil && len(past) > 0 {
			err = sh.Update(ctx, func(tx *shards.Tx) error {
				for _, o := range past {
					if _, err := tx.Exec(`UPDATE idempotency_keys SET past_at = ? WHERE tenant = ? AND record = ? AND past_at IS NULL`,
						before.Add(keyRetention).UnixMilli(), string(o.tenant), o.record); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err != nil || n < fillBatch {
			return err
		}
	}
}

// forget deletes keys. One that a request holds at this moment waits for the next round.
func (k *keys) forget(ctx context.Context, sh *shards.Shard, old []oldKey) error {
	old = slices.DeleteFunc(old, func(o oldKey) bool { return !k.claims.take(o.claim) })
	err := sh.Update(ctx, func(tx *shards.Tx) error {
		for _, o := range old {
			if _, err := tx.Exec(`DELETE FROM idempotency_keys WHERE tenant = ? AND record = ?`, string(o.tenant), o.record); err != nil {
				return err
			}
		}
		return nil
	})
	for _, o := range old {
		if err == nil {
			k.remove(o.tenant, o.key, recordID(o.record))
		}
		k.claims.release(o.claim)
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

// ownerMark is what a send carries of its box and tenant: by it they tell their own at the processor from those of others on the account,
// and nobody else learns anything from it.
func (k *keys) ownerMark(t tenants.ID) string {
	m := hmac.New(sha256.New, k.owner)
	m.Write([]byte(t))
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// printer makes fingerprints, one at a time.
type printer struct {
	mac hash.Hash
	buf []byte
}

// add takes one more text, told apart from its neighbours by its length.
func (p *printer) add(s string) {
	p.buf = append(binary.BigEndian.AppendUint32(p.buf, uint32(len(s))), s...)
}

// fingerprintOf is a keyed hash over the meaning of a request: its kind and
// members in a fixed order, whatever the spelling of the body was.
func (k *keys) fingerprintOf(t tenants.ID, meaning ...string) []byte {
	p := k.fingerprint.Get().(*printer)
	defer k.fingerprint.Put(p)
	p.buf = p.buf[:0]
	for _, s := range meaning {
		p.add(s)
	}
	p.add(string(t))
	p.mac.Reset()
	p.mac.Write(p.buf)
	return p.mac.Sum(make([]byte, 0, sha256.Size))
}
