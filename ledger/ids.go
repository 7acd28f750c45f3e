package ledger

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// PaymentID names a payment: "pay_" and a ULID whose first ten random bits are
// the slot that the payment lives in, so that the id alone finds the record.
type PaymentID string

// EventID names a journal row: "evt_" and a ULID, with the slot of its subject.
type EventID string

// OrderID names an order: "ord_" and a ULID with the slot of the order's user.
type OrderID string

// NotificationID names a notification: "ntf_" and a ULID with the slot of its user.
type NotificationID string

// recordID names what a request made, as its idempotency key's row does: with a
// ULID that carries the slot in which both stand. A user's id is the app's and
// carries none, so it follows behind one: "usr_" ULID ":" id. A request that changes a
// payment makes none, and one payment may be changed by several: "req_" ULID ":" id.
type recordID string

const (
	paymentPrefix      = "pay_"
	orderPrefix        = "ord_"
	userPrefix         = "usr_"
	eventPrefix        = "evt_"
	notificationPrefix = "ntf_"
	refundPrefix       = "re_"
	requestPrefix      = "req_"
)

// recordPrefixes begin the ids of the records that requests with a key make.
var recordPrefixes = [...]string{paymentPrefix, orderPrefix, userPrefix, eventPrefix, refundPrefix, requestPrefix}

// ulid is the part of the id that carries time and slot.
func (r recordID) ulid() (ulid.ULID, bool) {
	prefixed, _, _ := strings.Cut(string(r), ":")
	for _, prefix := range recordPrefixes {
		if u, ok := parseID(prefix, prefixed); ok {
			return u, true
		}
	}
	return ulid.ULID{}, false
}

// id is the record's own id.
func (r recordID) id() string {
	if _, id, ok := strings.Cut(string(r), ":"); ok {
		return id
	}
	return string(r)
}

func (r recordID) locator() (locator, bool) {
	u, ok := r.ulid()
	return locator(binary.BigEndian.Uint64(u[:8])), ok
}

// madeBefore reports whether the id was given before t.
func (r recordID) madeBefore(t time.Time) bool {
	u, ok := r.ulid()
	return ok && u.Timestamp().Before(t)
}

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

// namedULID makes a ULID of what names a record within its tenant.
func namedULID(t tenants.ID, name string, at time.Time, slot shards.Slot) (id ulid.ULID) {
	sum := sha256.Sum256([]byte(string(t) + "\x00" + name))
	_ = id.SetTime(ulid.Timestamp(at)) // fails only after the year 10889
	copy(id[6:], sum[:])
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

func (g *ids) order(at time.Time, slot shards.Slot) OrderID {
	return OrderID(orderPrefix + g.ulid(at, slot).String())
}

func (g *ids) notification(at time.Time, slot shards.Slot) NotificationID {
	return NotificationID(notificationPrefix + g.ulid(at, slot).String())
}

func (g *ids) refund(at time.Time, slot shards.Slot) RefundID {
	return RefundID(refundPrefix + g.ulid(at, slot).String())
}

// change names a request that changes a payment for its key's row.
func (g *ids) change(at time.Time, slot shards.Slot, id PaymentID) recordID {
	return recordID(requestPrefix + g.ulid(at, slot).String() + ":" + string(id))
}

// user is the id of a user whose app gave none.
func (g *ids) user(at time.Time) UserID {
	return UserID(userPrefix + g.ulid(at, g.randomSlot()).String())
}

// userRecord names a user that was made in slot for its key's row.
func (g *ids) userRecord(at time.Time, slot shards.Slot, id UserID) recordID {
	return recordID(userPrefix + g.ulid(at, slot).String() + ":" + string(id))
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

// ParseRefundID accepts exactly the form in which ids are handed out.
func ParseRefundID(s string) (RefundID, bool) {
	_, ok := parseID(refundPrefix, s)
	return RefundID(s), ok
}

// slot returns the slot that the id carries.
func (id RefundID) slot() (shards.Slot, bool) {
	u, ok := parseID(refundPrefix, string(id))
	if !ok {
		return 0, false
	}
	return slotOf(u), true
}

// slot returns the slot that the id carries.
func (id OrderID) slot() (shards.Slot, bool) {
	u, ok := parseID(orderPrefix, string(id))
	if !ok {
		return 0, false
	}
	return slotOf(u), true
}

// slot returns the slot that the id carries.
func (id NotificationID) slot() (shards.Slot, bool) {
	u, ok := parseID(notificationPrefix, string(id))
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

// idAt returns the smallest id of the given millisecond: ids sort by
// time, so a range of ids is a range of time.
func idAt(prefix string, at time.Time) string {
	var id ulid.ULID
	if at.UnixMilli() > 0 {
		_ = id.SetTime(ulid.Timestamp(at)) // years that a caller may name are bounded by the web layer
	}
	return prefix + id.String()
}
