package bus

import (
	"crypto/rand"
	"strconv"
	"strings"
)

// Headers of a stored message. The names are short for a reason: the server searches
// the block some thirty times for each message.
const (
	headerID       = "Nats-Msg-Id"         // the event's id: the stream drops a second one
	headerBatch    = "Nats-Batch-Id"       // see https://github.com/nats-io/nats-architecture-and-design ADR-50
	headerBatchSeq = "Nats-Batch-Sequence" // 1, 2, …
	headerCommit   = "Nats-Batch-Commit"   // on the last
	headerOrigin   = "Tenderbox-Origin"    // "epoch/shard seq"
)

const (
	// idMax and typeMax keep the protocol line under the server's 4 KiB and a header block small.
	idMax   = 128
	typeMax = 255

	// keepMax is the largest buffer kept from one batch to the next.
	keepMax = 1 << 20
)

// encoder turns messages into protocol text, in buffers that it uses again.
type encoder struct {
	json   []byte // payloads, one behind the other
	ends   []int  // where each ends in json
	from   int    // how many of ends have been sent
	out    []byte
	header []byte

	prefix  string // makes batch ids differ from those of earlier lives, whose leftovers may be on disk
	batches uint64
}

// payloads checks the messages and lays out their JSON.
func (e *encoder) payloads(ms []Message, source string) error {
	if e.prefix == "" {
		e.prefix = rand.Text()[:8]
	}
	if cap(e.json) > keepMax {
		e.json = nil
	}
	if cap(e.out) > keepMax {
		e.out = nil
	}
	e.json, e.ends, e.from = e.json[:0], e.ends[:0], 0
	for i := range ms {
		m := &ms[i]
		if reason := invalid(m); reason != "" {
			return &MessageError{Index: i, ID: m.Event.ID, Reason: reason}
		}
		start := len(e.json)
		ev := m.Event
		if ev.Source == "" {
			ev.Source = source
		}
		e.json = ev.AppendJSON(e.json)
		if len(e.json)-start > payloadMax-headerMax {
			return &MessageError{Index: i, ID: m.Event.ID, Reason: "larger than " + strconv.Itoa(payloadMax) + " bytes"}
		}
		e.ends = append(e.ends, len(e.json))
	}
	return nil
}

// headerMax is more than the longest header block; the server counts it into the payload.
const headerMax = 1 << 10

// group says how many of the messages not yet sent go into one batch.
func (e *encoder) group(ms []Message) int {
	start := 0
	if e.from > 0 {
		start = e.ends[e.from-1]
	}
	n := 1
	for n < len(ms) && e.ends[e.from+n]-start <= batchBytesMax {
		n++
	}
	return n
}

// batch writes the next group as protocol text; its answer goes to reply. One message
// alone needs no batch, which would cost it five more fsyncs.
func (e *encoder) batch(ms []Message, reply string) []byte {
	out := e.out[:0]
	e.batches++
	batchID := e.prefix + strconv.FormatUint(e.batches, 36)
	for i := range ms {
		m := &ms[i]
		h := append(e.header[:0], headerStart+"\r\n"+headerID+": "...)
		h = append(h, m.Event.ID...)
		if len(ms) > 1 {
			h = append(append(h, "\r\n"+headerBatch+": "...), batchID...)
			h = strconv.AppendInt(append(h, "\r\n"+headerBatchSeq+": "...), int64(i+1), 10)
			if i == len(ms)-1 {
				h = append(h, "\r\n"+headerCommit+": 1"...)
			}
		}
		h = append(append(h, "\r\n"+headerOrigin+": "...), m.Origin...)
		h = strconv.AppendUint(append(h, ' '), m.Seq, 10)
		h = append(h, "\r\n\r\n"...)
		e.header = h

		start := 0
		if e.from > 0 {
			start = e.ends[e.from-1]
		}
		body := e.json[start:e.ends[e.from]]
		e.from++

		out = append(append(out, "HPUB "+subjectPrefix...), m.Event.Tenant...)
		out = append(append(append(out, '.'), m.Event.Type...), ' ')
		if i == len(ms)-1 {
			out = append(append(out, reply...), ' ')
		}
		out = strconv.AppendInt(out, int64(len(h)), 10)
		out = strconv.AppendInt(append(out, ' '), int64(len(h)+len(body)), 10)
		out = append(append(append(out, "\r\n"...), h...), body...)
		out = append(out, "\r\n"...)
	}
	e.out = out
	return out
}

// invalid says why a message can never be published, "" if it can. What becomes part
// of a line or a subject is checked byte by byte: a line break would be a command of its own.
func invalid(m *Message) string {
	switch e := &m.Event; {
	case !isLabel(e.Tenant):
		return "tenant is not a label"
	case !isType(e.Type):
		return "type is not a subject"
	case e.ID == "" || len(e.ID) > idMax || !isPlain(e.ID):
		return "id is empty, too long or not printable"
	case m.Origin == "" || len(m.Origin) > idMax || !isPlain(m.Origin):
		return "origin is empty, too long or not printable"
	}
	return ""
}

// isPlain says whether s is printable ASCII without spaces.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// isType says whether s can stand in a subject: plain tokens, none empty, no wildcards.
func isType(s string) bool {
	return s != "" && len(s) <= typeMax && isPlain(s) && !strings.ContainsAny(s, "*>") &&
		s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..")
}
