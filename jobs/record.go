package jobs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// A record is a job as bytes: version, checksum, then the fields of recordFields in order, numbers as varints. The
// checksum (CRC-32C) also covers queue and tenant, which only the key holds: a record under another
// tenant's key does not match. The state follows from the bucket.
const (
	recordVersion = 1
	recordHeader  = 1 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(queue, tenant string, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(linePrefix(queue, tenant), castagnoli), castagnoli, payload)
}

func (j *Job) encode() []byte {
	b := make([]byte, recordHeader, recordHeader+96+len(j.ID)+len(j.Name)+len(j.LastError)+len(j.Data)+len(j.Result))
	b[0] = recordVersion
	ints := [...]int64{
		int64(j.Priority), int64(j.seq), int64(j.AttemptsMade), flag(j.started), int64(j.interruptions), int64(j.Attempts),
		unixNano(j.CreatedAt), unixNano(j.RunAt), unixNano(j.FinishedAt), int64(j.Timeout),
		flag(j.Backoff.Type == Fixed), int64(j.Backoff.Delay), int64(j.Backoff.Max), int64(math.Round(j.Backoff.Jitter * jitterUnit)),
		flag(j.RemoveOnComplete.Remove), int64(j.RemoveOnComplete.Count), int64(j.RemoveOnComplete.Age),
		flag(j.RemoveOnFail.Remove), int64(j.RemoveOnFail.Count), int64(j.RemoveOnFail.Age),
	}
	for _, n := range ints {
		b = binary.AppendVarint(b, n)
	}
	for _, s := range [...]string{j.ID, j.Name, j.LastError} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	for _, s := range [...][]byte{j.Data, j.Result} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	be.PutUint32(b[1:], checksum(j.Queue, j.Tenant, b[recordHeader:]))
	return b
}

// jitterUnit is the resolution in which a jitter share is stored.
const jitterUnit = 1e6

// decodeJob reads a record. The job shares no memory with b.
func decodeJob(queue, tenant string, state State, b []byte) (Job, error) {
	if len(b) < recordHeader {
		return Job{}, fmt.Errorf("%w: %d bytes", ErrDamaged, len(b))
	}
	if be.Uint32(b[1:]) != checksum(queue, tenant, b[recordHeader:]) {
		return Job{}, fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	if b[0] != recordVersion {
		return Job{}, fmt.Errorf("%w: format %d is not known to this version", ErrDamaged, b[0])
	}
	r := reader{b: b[recordHeader:]}
	j := Job{State: state}
	j.Queue, j.Tenant = queue, tenant
	j.Priority, j.seq, j.AttemptsMade = int(r.int()), uint64(r.int()), int(r.int())
	j.started, j.interruptions, j.Attempts = r.int() != 0, int(r.int()), int(r.int())
	j.CreatedAt, j.RunAt, j.FinishedAt = r.time(), r.time(), r.time()
	j.Timeout = time.Duration(r.int())
	j.Backoff.Type = Exponential
	if r.int() != 0 {
		j.Backoff.Type = Fixed
	}
	j.Backoff.Delay, j.Backoff.Max = time.Duration(r.int()), time.Duration(r.int())
	j.Backoff.Jitter = float64(r.int()) / jitterUnit
	for _, keep := range []*Retention{&j.RemoveOnComplete, &j.RemoveOnFail} {
		keep.Remove, keep.Count, keep.Age = r.int() != 0, int(r.int()), time.Duration(r.int())
	}
	j.ID, j.Name, j.LastError = string(r.bytes()), string(r.bytes()), string(r.bytes())
	j.Data, j.Result = append([]byte(nil), r.bytes()...), append([]byte(nil), r.bytes()...)
	if r.bad || len(r.b) != 0 {
		return Job{}, fmt.Errorf("%w: fields do not fit", ErrDamaged)
	}
	return j, nil
}

// reader takes fields off a record; bad tells in the end whether they were all there.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) int() int64 {
	n, size := binary.Varint(r.b)
	if size <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) time() time.Time {
	if ns := r.int(); ns != 0 {
		return time.Unix(0, ns).UTC()
	}
	return time.Time{}
}

func (r *reader) bytes() []byte {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > uint64(len(r.b)-size) {
		r.bad, r.b = true, nil
		return nil
	}
	s := r.b[size : size+int(n)]
	r.b = r.b[size+int(n):]
	return s
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
