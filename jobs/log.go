package jobs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"

	"go.etcd.io/bbolt"

	"tenderbox/store"
)

const (
	logLinesMax = 100     // of a job, the newest: enough to see what its last attempts did
	logTextMax  = 2 << 10 // bytes of a line; more is data, and has its place in the result
	logVersion  = 1
)

// LogLine is one line that a worker logged for a job.
type LogLine struct {
	At   time.Time
	Text string
}

// Log appends a line to the log of a job that the caller has leased; the job keeps the newest logLinesMax, over all its attempts, as long as it is kept
// itself. Errors to branch on: ErrStaleLease, ErrNotFound, ErrInvalid, and the store's.
func (e *Engine) Log(ctx context.Context, r LeaseRef, text string) error {
	if err := e.appendLog(ctx, r, text); err != nil {
		return fmt.Errorf("log of job %q: %w", r.ID, err)
	}
	return nil
}

func (e *Engine) appendLog(ctx context.Context, r LeaseRef, text string) error {
	if len(text) > logTextMax || !utf8.ValidString(text) {
		return invalid("text", "use up to %d bytes of UTF-8", logTextMax)
	}
	le, err := e.holder(r)
	if err != nil {
		return err
	}
	line := append(binary.AppendVarint(nil, unixNano(e.clock.wall())), text...)
	return e.st.Update(ctx, func(tx *bbolt.Tx) error {
		e.mu.Lock()
		seq, held := le.job.seq, e.holds(le) && !le.settled // a job that ended before may be gone by now
		e.mu.Unlock()
		if !held {
			return store.Untouched(ErrStaleLease)
		}
		return appendLog(tx, r.Queue, r.Tenant, seq, line)
	})
}

// Logs returns a job's log lines, oldest first. Errors to branch on: ErrNotFound, ErrDamaged, and the store's.
func (e *Engine) Logs(tenant, queue, id string) (lines []LogLine, err error) {
	err = e.st.View(func(tx *bbolt.Tx) error {
		lines = nil
		p, err := locate(tx, queue, tenant, id)
		if err != nil {
			return err
		}
		prefix := logPrefix(queue, tenant, p.seq)
		c := tx.Bucket(bLogs).Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			line, err := decodeLog(queue, tenant, k, v)
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("log of job %q: %w", id, err)
	}
	return lines, nil
}

// logPrefix begins the keys of a job's lines. They go on with a number that grows from line to line.
func logPrefix(queue, tenant string, seq uint64) []byte {
	return be.AppendUint64(linePrefix(queue, tenant), seq)
}

const logKeyBytes = 8 + 8 // the end of a key: the job's sequence and the line's number

// appendLog stores a line and drops the one that is too many. A line is bound to its place by the key in its checksum.
func appendLog(tx *bbolt.Tx, queue, tenant string, seq uint64, line []byte) error {
	b := tx.Bucket(bLogs)
	prefix := logPrefix(queue, tenant, seq)
	number := uint64(1)
	if last := lastIn(b.Cursor(), prefix); len(last) == len(prefix)+8 {
		number = be.Uint64(last[len(prefix):]) + 1
	}
	key := be.AppendUint64(prefix, number)
	if number > logLinesMax {
		if err := b.Delete(be.AppendUint64(bytes.Clone(prefix), number-logLinesMax)); err != nil {
			return err
		}
	}
	return b.Put(key, seal(logVersion, queue, tenant, append(bytes.Clone(key[len(key)-logKeyBytes:]), line...)))
}

func decodeLog(queue, tenant string, k, v []byte) (LogLine, error) {
	payload, err := unseal(logVersion, queue, tenant, v)
	if err != nil {
		return LogLine{}, err
	}
	place, ok := bytes.CutPrefix(payload, k[max(len(k)-logKeyBytes, 0):])
	r := reader{b: place}
	at := r.time()
	if !ok || r.bad {
		return LogLine{}, fmt.Errorf("%w: it is another line's", ErrDamaged)
	}
	return LogLine{at, string(r.b)}, nil
}

// dropLogs removes a job's lines. A job that has none pays for one look.
func dropLogs(tx *bbolt.Tx, queue, tenant string, seq uint64) error {
	b := tx.Bucket(bLogs)
	prefix := logPrefix(queue, tenant, seq)
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Seek(prefix) {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
