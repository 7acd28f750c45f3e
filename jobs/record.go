package jobs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// A record is a job as bytes: version, checksum, then the name (first, so that a lease by name can pass by what it does not
// want), numbers as varints, strings, and the history. The checksum (CRC-32C) also covers queue and tenant, which only the key
// holds: a record under another tenant's key does not match. The state follows from the bucket.
const (
	recordVersion = 2
	recordHeader  = 1 + 4
	recordInts    = 20 // between the name and the id
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(queue, tenant string, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(linePrefix(queue, tenant), castagnoli), castagnoli, payload)
}

// putChecksum is the checksum over a record's payload, put into its header. It needs room for the line behind the record, or else memory.
func putChecksum(queue, tenant string, b []byte) {
	line := append(append(append(append(b, queue...), 0), tenant...), 0)[len(b):]
	be.PutUint32(b[1:], crc32.Update(crc32.Checksum(line, castagnoli), castagnoli, b[recordHeader:]))
}

// seal frames a payload as records are framed: version, checksum over line and payload, payload.
func seal(version byte, queue, tenant string, payload []byte) []byte {
	b := append(make([]byte, recordHeader, recordHeader+len(payload)), payload...)
	b[0] = version
	be.PutUint32(b[1:], checksum(queue, tenant, payload))
	return b
}

// unseal returns the payload of what seal framed; it shares b's memory. ErrDamaged.
func unseal(version byte, queue, tenant string, b []byte) ([]byte, error) {
	if len(b) < recordHeader {
		return nil, fmt.Errorf("%w: %d bytes", ErrDamaged, len(b))
	}
	if be.Uint32(b[1:]) != checksum(queue, tenant, b[recordHeader:]) {
		return nil, fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	if b[0] != version {
		return nil, fmt.Errorf("%w: format %d is not known to this version", ErrDamaged, b[0])
	}
	return b[recordHeader:], nil
}

func (j *Job) encode() []byte {
	size := 128 + len(j.Queue) + len(j.Tenant) + len(j.ID) + len(j.Name) + len(j.LastError) + len(j.Data) + len(j.Result) + len(j.Progress)
	for i := range j.History {
		size += 32 + len(j.History[i].Worker) + len(j.History[i].Error)
	}
	b := make([]byte, recordHeader, recordHeader+size)
	b[0] = recordVersion
	b = appendText(b, j.Name)
	ints := [recordInts]int64{
		int64(j.Priority), int64(j.seq), int64(j.AttemptsMade), unixNano(j.startedAt), int64(j.interruptions), int64(j.Attempts),
		unixNano(j.CreatedAt), unixNano(j.RunAt), unixNano(j.FinishedAt), int64(j.Timeout),
		flag(j.Backoff.Type == Fixed), int64(j.Backoff.Delay), int64(j.Backoff.Max), int64(math.Round(j.Backoff.Jitter * jitterUnit)),
		flag(j.RemoveOnComplete.Remove), int64(j.RemoveOnComplete.Count), int64(j.RemoveOnComplete.Age),
		flag(j.RemoveOnFail.Remove), int64(j.RemoveOnFail.Count), int64(j.RemoveOnFail.Age),
	}
	for _, n := range ints {
		b = binary.AppendVarint(b, n)
	}
	b = appendText(appendText(b, j.ID), j.LastError)
	b = appendText(appendText(appendText(b, j.Data), j.Result), j.Progress)
	b = binary.AppendUvarint(b, uint64(len(j.History)))
	for i := range j.History {
		b = j.History[i].append(b)
	}
	putChecksum(j.Queue, j.Tenant, b)
	return b
}

func (a *Attempt) append(b []byte) []byte {
	for _, n := range [...]int64{int64(a.N), unixNano(a.StartedAt), unixNano(a.EndedAt)} {
		b = binary.AppendVarint(b, n)
	}
	return appendText(appendText(b, a.Worker), a.Error)
}

func appendText[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// jitterUnit is the resolution in which a jitter share is stored.
const jitterUnit = 1e6

// decodeJob reads a record. The job shares no memory with b.
func decodeJob(queue, tenant string, state State, b []byte) (Job, error) {
	payload, err := unseal(recordVersion, queue, tenant, b)
	if err != nil {
		return Job{}, err
	}
	r := reader{b: payload}
	j := Job{State: state}
	j.Queue, j.Tenant = queue, tenant
	j.Name = string(r.bytes())
	j.Priority, j.seq, j.AttemptsMade = int(r.int()), uint64(r.int()), int(r.int())
	j.startedAt, j.interruptions, j.Attempts = r.time(), int(r.int()), int(r.int())
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
	j.ID, j.LastError = string(r.bytes()), string(r.bytes())
	j.Data, j.Result, j.Progress = r.copy(), r.copy(), r.copy()
	for n := r.count(); n > 0; n-- {
		j.History = append(j.History, Attempt{N: int(r.int()), StartedAt: r.time(), EndedAt: r.time(), Worker: string(r.bytes()), Error: string(r.bytes())})
	}
	if r.bad || len(r.b) != 0 {
		return Job{}, fmt.Errorf("%w: fields do not fit", ErrDamaged)
	}
	return j, nil
}

// nameOf reads the name of a record whose checksum was not looked at.
func nameOf(b []byte) []byte {
	r := reader{b: b[min(recordHeader, len(b)):]}
	return r.bytes()
}

// idOf reads the id of a record; it shares b's memory. ErrDamaged.
func idOf(queue, tenant string, b []byte) ([]byte, error) {
	payload, err := unseal(recordVersion, queue, tenant, b)
	if err != nil {
		return nil, err
	}
	r := reader{b: payload}
	r.bytes()
	for range recordInts {
		r.int()
	}
	id := r.bytes()
	if r.bad {
		return nil, fmt.Errorf("%w: fields do not fit", ErrDamaged)
	}
	return id, nil
}

// runAtOf reads when a sound record's job was due.
func runAtOf(b []byte) time.Time {
	r := reader{b: b[recordHeader:]}
	r.bytes()
	for range 7 { // the numbers before it
		r.int()
	}
	return r.time()
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

// copy takes a string off that does not share the record's memory; nil if it is empty.
func (r *reader) copy() []byte { return append([]byte(nil), r.bytes()...) }

// count takes off the length of a list. It is never more than there are bytes.
func (r *reader) count() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > uint64(len(r.b)-size) {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
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
