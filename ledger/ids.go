package ledger

import (
	"crypto/rand"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"tenderbox/shards"
)

// PaymentID names a payment: "pay_" and a ULID whose first ten random bits are
// the slot that the payment lives in, so that the id alone finds the record.
type PaymentID string

// EventID names a journal row: "evt_" and a ULID, with the slot of its subject.
type EventID string

const (
	paymentPrefix = "pay_"
	eventPrefix   = "evt_"
)

// ids makes identifiers. The random bytes are read from the system in blocks:
// one system call serves some fifty identifiers.
type ids struct {
	mu  sync.Mutex // guards the rest
	buf [512]byte
	pos int
}

func newIDs() *ids { return &ids{pos: 512} }

func (g *ids) entropy() (e [10]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pos+len(e) > len(g.buf) {
		// crypto/rand never returns an error: it ends the program instead.
		_, _ = io.ReadFull(rand.Reader, g.buf[:])
		g.pos = 0
	}
	copy(e[:], g.buf[g.pos:])
	g.pos += len(e)
	return e
}

// ulid returns a new ULID of the given time that carries slot.
func (g *ids) ulid(at time.Time, slot shards.Slot) ulid.ULID {
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(at)) // fails only after the year 10889
	e := g.entropy()
	copy(id[6:], e[:])
	carry(&id, slot)
	return id
}

// carry puts the slot into the first ten random bits.
func carry(id *ulid.ULID, slot shards.Slot) {
	id[6] = byte(slot >> 2)
	id[7] = byte(slot<<6) | id[7]&0x3f
}

func (g *ids) payment(at time.Time, slot shards.Slot) PaymentID {
	return PaymentID(paymentPrefix + g.ulid(at, slot).String())
}

func (g *ids) event(at time.Time, slot shards.Slot) EventID {
	return EventID(eventPrefix + g.ulid(at, slot).String())
}

// randomSlot is the slot of a record that belongs to nobody in particular.
func (g *ids) randomSlot() shards.Slot {
	e := g.entropy()
	return shards.Slot(uint16(e[0])<<8|uint16(e[1])) % shards.SlotCount
}

// ParsePaymentID accepts exactly the form in which ids are handed out.
func ParsePaymentID(s string) (PaymentID, bool) {
	_, ok := parseID(paymentPrefix, s)
	return PaymentID(s), ok
}

// slot returns the slot that the id carries.
func (id PaymentID) slot() (shards.Slot, bool) {
	u, ok := parseID(paymentPrefix, string(id))
	if !ok {
		return 0, false
	}
	return slotOf(u), true
}

func slotOf(u ulid.ULID) shards.Slot {
	return shards.Slot(uint16(u[6])<<2 | uint16(u[7])>>6)
}

func parseID(prefix, s string) (ulid.ULID, bool) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return ulid.ULID{}, false
	}
	u, err := ulid.ParseStrict(rest)
	// The library also reads lower case; an id has one spelling only.
	return u, err == nil && u.String() == rest
}

// idAt returns the smallest payment id of the given millisecond: ids sort by
// time, so a range of ids is a range of time.
func idAt(at time.Time) PaymentID {
	var id ulid.ULID
	if at.UnixMilli() > 0 {
		_ = id.SetTime(ulid.Timestamp(at)) // years that a caller may name are bounded by the web layer
	}
	return PaymentID(paymentPrefix + id.String())
}
