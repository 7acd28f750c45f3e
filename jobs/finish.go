package jobs

import (
	"bytes"

	"go.etcd.io/bbolt"
)

// trimMax finished jobs are removed at most when another one finishes, so that no outcome pays for a whole
// history. More than one is due only after a shorter retention was configured.
const trimMax = 100

// finish keeps a completed or failed job as its retention says, and removes older ones that it no longer covers. from is the state it leaves.
// passing: it need not be kept, because others that finish after it in this transaction push it out.
func finish(tx *bbolt.Tx, w *writes, j *Job, from State, passing bool) error {
	keep, in := j.RemoveOnComplete, byte(placeCompleted)
	if j.State == Failed {
		keep, in = j.RemoveOnFail, placeFailed
	}
	if keep.Remove || passing {
		w.finished = append(w.finished, finished{j, from, 0})
		return forget(tx, j.Queue, j.Tenant, j.ID, j.waitingPlace())
	}
	prefix := append(linePrefix(j.Queue, j.Tenant), in)
	c := tx.Bucket(bFinished).Cursor()
	ordinal := uint64(1)
	if last := lastIn(c, prefix); len(last) == len(prefix)+8 {
		ordinal = be.Uint64(last[len(prefix):]) + 1
	}
	p := place{in: in, at: ordinal}
	p.priority, p.seq = j.order()
	_, key := p.key(j.Queue, j.Tenant)
	if err := putAt(tx, j, p, key, j.leaves(from)); err != nil {
		return err
	}
	removed, err := trim(tx, j, prefix, ordinal, keep)
	w.finished = append(w.finished, finished{j, from, 1 - removed})
	return err
}

// trim removes the oldest finished jobs under prefix: those more than keep.Count ordinals back, and those
// that finished keep.Age or longer before j.
func trim(tx *bbolt.Tx, j *Job, prefix []byte, newest uint64, keep Retention) (removed int, err error) {
	b := tx.Bucket(bFinished)
	var old [][]byte
	c := b.Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+8 && len(old) < trimMax; k, v = c.Next() {
		ordinal := be.Uint64(k[len(prefix):])
		late := keep.Count > 0 && newest-ordinal >= uint64(keep.Count)
		if !late && keep.Age <= 0 || ordinal == newest {
			break
		}
		was, err := decodeJob(j.Queue, j.Tenant, j.State, v)
		if !late && err == nil && j.FinishedAt.Sub(was.FinishedAt) < keep.Age {
			break
		}
		old = append(old, bytes.Clone(k))
		if err != nil {
			continue // its id is lost with it
		}
		if err := forget(tx, j.Queue, j.Tenant, was.ID, place{in: prefix[len(prefix)-1], seq: was.seq}); err != nil {
			return 0, err
		}
	}
	for _, k := range old {
		if err := b.Delete(k); err != nil {
			return 0, err
		}
	}
	return len(old), nil
}
