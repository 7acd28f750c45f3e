package jobs

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	"github.com/oklog/ulid/v2"
	"go.etcd.io/bbolt"
)

// A generated id says where its job waits, so that a waiting job needs no entry in the index: sequence(6), priority(4) and chance(6)
// in the text form of a ULID. Sequence first, so that ids grow and the index of those that moved on grows at its edge. The chance keeps ids apart from those
// of a file that was lost and made anew, and from what an app can know beforehand.
const (
	idPrefix      = "job_"
	idChanceBytes = 6
)

// generateID returns the id of a new job.
func generateID(priority int32, seq uint64) string {
	var u ulid.ULID
	be.PutUint64(u[8:], rand.Uint64())
	be.PutUint64(u[:8], seq<<16)
	be.PutUint32(u[len(u)-idChanceBytes-4:], uint32(priority)^1<<31)
	var text [len(idPrefix) + ulid.EncodedSize]byte
	copy(text[:], idPrefix)
	_ = u.MarshalTextTo(text[len(idPrefix):]) // fails only if there is no room
	return string(text[:])
}

// toldBy returns the waiting place that an id of the generated form tells. Whether such a job is there is another question: apps name
// jobs as they like.
func toldBy(id string) (p place, ok bool) {
	if len(id) != len(idPrefix)+ulid.EncodedSize || id[:len(idPrefix)] != idPrefix {
		return place{}, false
	}
	u, err := ulid.ParseStrict(id[len(idPrefix):])
	if err != nil {
		return place{}, false
	}
	var text [ulid.EncodedSize]byte
	if err := u.MarshalTextTo(text[:]); err != nil || string(text[:]) != id[len(idPrefix):] {
		return place{}, false // lower case means the same number, but it is another id
	}
	return place{
		in: placeWaiting, priority: int32(be.Uint32(u[len(u)-idChanceBytes-4:]) ^ 1<<31), seq: be.Uint64(u[:8]) >> 16,
	}, true
}

// tells says whether a job at p is found by its id alone. Then it has no entry in the index; otherwise it has one.
func tells(id string, p place) bool {
	if p.in != placeWaiting {
		return false
	}
	told, ok := toldBy(id)
	return ok && told == p
}

// indexOf is the bucket with the index entry of a job at p. Finished jobs have one of their own: they come and go with every job that runs,
// in each tenant's range, and beside a million entries of delayed jobs each of those ranges would be a page of its own to write.
func indexOf(p place) []byte {
	if p.in == placeCompleted || p.in == placeFailed {
		return bFinishedIDs
	}
	return bIDs
}

// index notes that a job is at p. was: the place it leaves; none for a job that was nowhere.
func index(tx *bbolt.Tx, j *Job, p, was place) error {
	key, noted := idKey(j.Queue, j.Tenant, j.ID), !tells(j.ID, p)
	if was != (place{}) && !tells(j.ID, was) && (!noted || !bytes.Equal(indexOf(was), indexOf(p))) {
		if err := tx.Bucket(indexOf(was)).Delete(key); err != nil {
			return err
		}
	}
	if !noted {
		return nil
	}
	ids := tx.Bucket(indexOf(p))
	ids.FillPercent = pageFill
	return ids.Put(key, p.encode())
}

// locate says where the job of that id is, or was until its record was found damaged. Errors: ErrNotFound; ErrDamaged if its entry cannot be read.
func locate(tx *bbolt.Tx, queue, tenant, id string) (place, error) {
	told, ok := toldBy(id)
	var there []byte
	if ok {
		_, key := told.key(queue, tenant)
		there = tx.Bucket(bWaiting).Get(key)
		if is, err := idOf(queue, tenant, there); err == nil && string(is) == id {
			return told, nil
		} else if err == nil {
			ok = false // another job's place
		}
	}
	key := idKey(queue, tenant, id)
	for _, name := range indexes {
		if v := tx.Bucket(name).Get(key); v != nil {
			return decodePlace(v)
		}
	}
	if ok && (there != nil || tx.Bucket(bParked).Get(parkedKey(queue, tenant, told)) != nil) {
		return told, nil // nobody can tell any more whose it was, and an id that is doubted must not be denied
	}
	return place{}, ErrNotFound
}

// find reads the job of that id: ErrNotFound or ErrDamaged. Beside ErrDamaged, the place is that of the damaged record, or none
// if the index leads to no record of this job.
func find(tx *bbolt.Tx, queue, tenant, id string) (Job, place, error) {
	p, err := locate(tx, queue, tenant, id)
	if err != nil {
		return Job{}, p, err
	}
	j, err := read(tx, queue, tenant, p)
	if err == nil && j.ID != id {
		return Job{}, place{}, fmt.Errorf("%w: the index points at another job", ErrDamaged)
	}
	return j, p, err
}

// forget removes what is kept beside the record of a job that is gone, and was at p: every way out ends here. No place: nobody knows where it was.
func forget(tx *bbolt.Tx, queue, tenant, id string, p place) error {
	for _, name := range indexes {
		if p != (place{}) && (tells(id, p) || !bytes.Equal(name, indexOf(p))) {
			continue
		}
		if err := tx.Bucket(name).Delete(idKey(queue, tenant, id)); err != nil {
			return err
		}
	}
	return dropLogs(tx, queue, tenant, p.seq)
}
