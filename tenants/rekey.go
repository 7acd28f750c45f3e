package tenants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"go.etcd.io/bbolt"
)

// resealMax records are re-sealed in one transaction: it bounds the memory, and each is written whole or not at all.
const resealMax = 256

// compactBytes is how much of the file a compaction copies in one transaction: it bounds the memory.
const compactBytes = 1 << 20

// KeepKeys writes down which keys the box is sealed with, so that another key file, or an older copy of it, is refused from now on by
// name. Open does it when the key file has proved to be the box's; for a file of an older version that holds nothing sealed, whoever
// has verified a journal with the keyring does.
func (r *Registry) KeepKeys(ctx context.Context) error {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	return r.keepKeys(ctx, r.kr.record())
}

// KeysKept reports whether that was done, so that the keyring is known to be the box's.
func (r *Registry) KeysKept() bool {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	return r.keys != nil
}

func (r *Registry) keepKeys(ctx context.Context, rec keysRecord) error {
	if r.keys != nil && r.keys.Derives == rec.Derives && slices.Equal(r.keys.Opens, rec.Opens) {
		return nil
	}
	if err := r.put(ctx, bucketBox, keyKeys, rec); err != nil {
		return err
	}
	r.keys = &rec
	return nil
}

// Reseal seals with the newest key what stands in the file under older ones, and returns how many values it has sealed anew. progress
// is told after each transaction; what was done until an interruption stays done, and running it again does the rest. A value that does
// not open is an error, once the others are done. It is for a stopped box; see [Registry.Compact].
func (r *Registry) Reseal(ctx context.Context, progress func(sealed int)) (int, error) {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	total := 0
	var bad []error
	for _, t := range []struct {
		bucket []byte
		reseal func(k, v []byte) (value []byte, changed bool, err error)
	}{{bucketTenants, r.resealTenant}, {bucketWebhooks, r.resealHook}} {
		var from []byte
		for done := false; !done; {
			var sealed int
			var failed []error
			next := from
			err := r.apply(ctx, func(tx *bbolt.Tx) (err error) {
				sealed, failed, done = 0, nil, true // a transaction's function may run twice
				next, done, err = resealSome(tx.Bucket(t.bucket), from, t.reseal, func() { sealed++ }, func(err error) { failed = append(failed, err) })
				return err
			})
			if err != nil {
				return total, err
			}
			from = next
			total += sealed
			bad = append(bad, failed...)
			if sealed > 0 && progress != nil {
				progress(sealed)
			}
			if err := ctx.Err(); err != nil {
				return total, err
			}
		}
	}
	r.copy()
	return total, errors.Join(bad...)
}

// resealSome looks at records behind from until so many were changed, and says where it stopped and whether that was the end.
func resealSome(b *bbolt.Bucket, from []byte, reseal func(k, v []byte) ([]byte, bool, error), sealed func(), failed func(error)) (_ []byte, end bool, err error) {
	if b == nil {
		return from, true, nil
	}
	type pair struct{ k, v []byte }
	var changes []pair
	last := from
	c := b.Cursor()
	k, v := c.Seek(from)
	if bytes.Equal(k, from) && from != nil {
		k, v = c.Next()
	}
	for ; k != nil && len(changes) < resealMax; k, v = c.Next() {
		last = bytes.Clone(k)
		value, changed, err := reseal(k, v)
		if err != nil {
			failed(err)
		} else if changed {
			changes = append(changes, pair{last, value})
		}
	}
	end = k == nil
	for _, p := range changes { // not while the cursor walks
		if err := b.Put(p.k, p.v); err != nil {
			return from, false, err
		}
		sealed()
	}
	return last, end, nil
}

func (r *Registry) resealTenant(k, v []byte) ([]byte, bool, error) {
	var rec record
	if err := decodeRecord(k, v, &rec); err != nil || rec.Upstream == nil {
		return nil, false, err
	}
	sealed, changed, err := r.kr.Reseal(upstreamKeyRecord(rec.ID), rec.Upstream.SealedKey)
	if err != nil {
		return nil, false, fmt.Errorf("upstream key of tenant %s: %w", rec.ID, err)
	}
	rec.Upstream.SealedKey = sealed
	value, err := encodeRecord(k, rec)
	return value, changed, err
}

func (r *Registry) resealHook(k, v []byte) ([]byte, bool, error) {
	var rec hookRecord
	if err := decodeRecord(k, v, &rec); err != nil {
		return nil, false, err
	}
	sealed, changed, err := r.kr.Reseal(secretsRecord(rec.Tenant, rec.ID), rec.SealedSecrets)
	if err != nil {
		return nil, false, fmt.Errorf("secrets of webhook %s of tenant %s: %w", rec.ID, rec.Tenant, err)
	}
	rec.SealedSecrets = sealed
	value, err := encodeRecord(k, rec)
	return value, changed, err
}

// Forget notes that the box needs none of the keys which [Keyring.ForgetOld] drops. It comes before that: cut between the two, the
// file holds more than the box asks for.
func (r *Registry) Forget(ctx context.Context) error {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	return r.keepKeys(ctx, r.kr.WithoutOld().record())
}

// Compact writes the file and its copy anew, without the free pages in which values under older keys may still stand. Close the store
// right after it: what it holds open is then no longer the file of that name.
func (r *Registry) Compact() error {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	path := r.st.Path()
	tmp := path + copySuffix + ".compact"
	if err := os.RemoveAll(tmp); err != nil { // an interrupted one's
		return err
	}
	dst, err := bbolt.Open(tmp, 0o600, nil)
	if err != nil {
		return err
	}
	err = r.st.View(func(tx *bbolt.Tx) error { return bbolt.Compact(dst, tx.DB(), compactBytes) })
	err = errors.Join(err, dst.Close())
	for _, to := range []string{path + copySuffix, path} {
		if err == nil {
			err = copyOver(tmp, to)
		}
	}
	return errors.Join(err, os.Remove(tmp))
}
