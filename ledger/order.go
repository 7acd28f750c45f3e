package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	json "github.com/go-json-experiment/json"

	"tenderbox/shards"
	"tenderbox/tenants"
)

// OrderStatus is what an order is to the business.
//
//	open → paid → completed
//	open → canceled
type OrderStatus string

const (
	// StatusOpen: made, not paid. Its payment may be on its way.
	StatusOpen OrderStatus = "open"
	// StatusPaid: its payment succeeded. Set in the transaction that settles the payment.
	StatusPaid OrderStatus = "paid"
	// StatusCompleted: handed over. Set by [Ledger.CompleteOrder]. Final.
	StatusCompleted OrderStatus = "completed"
	// StatusCanceled: given up before it was paid. Set by [Ledger.CancelOrder]. Final.
	StatusCanceled OrderStatus = "canceled"
)

// Item is one line of an order.
type Item struct {
	SKU        string `json:"sku"`
	Name       string `json:"name"`
	Quantity   int64  `json:"quantity"`
	UnitAmount int64  `json:"unit_amount"` // minor units
}

// Order is what a user buys.
type Order struct {
	ID          OrderID     `json:"id"`
	Object      string      `json:"object"` // "order"
	UserID      UserID      `json:"user_id"`
	Status      OrderStatus `json:"status"`
	Amount      int64       `json:"amount"` // minor units, computed by the box
	Currency    string      `json:"currency"`
	Items       []Item      `json:"items"`
	PaymentID   *PaymentID  `json:"payment_id"` // the one that is not failed or canceled
	CreatedAt   time.Time   `json:"created_at"`
	PaidAt      *time.Time  `json:"paid_at"`
	CompletedAt *time.Time  `json:"completed_at"`
	CanceledAt  *time.Time  `json:"canceled_at"`
}

// NewOrder is a request for an order.
type NewOrder struct {
	UserID   string
	Items    []Item
	Currency string
}

const (
	itemsMax    = 500       // lines; one row holds them all
	quantityMax = 1_000_000 // of one line: beyond it a typing error is likelier
)

const (
	OrderCreated   EventType = "order.created"
	OrderPaid      EventType = "order.paid"
	OrderCompleted EventType = "order.completed"
	OrderCanceled  EventType = "order.canceled"
)

// orderEventData is what events tell of an order.
type orderEventData struct {
	OrderID  OrderID     `json:"order_id"`
	UserID   UserID      `json:"user_id"`
	Status   OrderStatus `json:"status"`
	Amount   int64       `json:"amount"`
	Currency string      `json:"currency"`
	Items    []Item      `json:"items"`
}

func (l *Ledger) orderEvent(t tenants.ID, typ EventType, o *Order, at time.Time) *Event {
	slot, _ := o.ID.slot()
	return l.event(t, typ, string(o.ID), slot, at, orderEventData{o.ID, o.UserID, o.Status, o.Amount, o.Currency, o.Items})
}

// validate checks and normalises n, and adds up its total.
func (n *NewOrder) validate() (total int64, err error) {
	if n.UserID == "" {
		return 0, invalid("user_missing", "user_id", "an order is a user's")
	}
	if err := checkText("user_id", n.UserID, appIDMax, true); err != nil {
		return 0, err
	}
	c, ok := parseCurrency(n.Currency)
	if !ok {
		return 0, invalid("currency_invalid", "currency", "must be an ISO 4217 code of a currency in use")
	}
	n.Currency = c
	if len(n.Items) == 0 || len(n.Items) > itemsMax {
		return 0, invalid("items_invalid", "items", fmt.Sprintf("an order has 1 to %d items", itemsMax))
	}
	for i, it := range n.Items {
		at := func(member string) string { return "items[" + strconv.Itoa(i) + "]." + member }
		if it.SKU == "" {
			return 0, invalid("items_invalid", at("sku"), "must be given")
		}
		if err := checkText(at("sku"), it.SKU, appIDMax, true); err != nil {
			return 0, err
		}
		if err := checkText(at("name"), it.Name, nameMax, true); err != nil {
			return 0, err
		}
		if holdsCardNumber(it.Name) {
			return 0, cardData(at("name"))
		}
		if it.Quantity < 1 || it.Quantity > quantityMax {
			return 0, invalid("quantity_invalid", at("quantity"), fmt.Sprintf("must be a whole number from 1 to %d", quantityMax))
		}
		if it.UnitAmount < 0 || it.UnitAmount > amountMax {
			return 0, invalid("amount_invalid", at("unit_amount"), fmt.Sprintf("must be a whole number of minor units from 0 to %d", int64(amountMax)))
		}
		// Neither product (10^6 · 10^12) nor sum can leave 64 bits, for the sum stops at amountMax.
		if total += it.Quantity * it.UnitAmount; total > amountMax {
			return 0, invalid("amount_invalid", at("unit_amount"), fmt.Sprintf("the order's total exceeds %d minor units", int64(amountMax)))
		}
	}
	if total == 0 {
		return 0, invalid("amount_invalid", "items", "the order's total is 0")
	}
	return total, nil
}

func (n *NewOrder) meaning() []string {
	m := []string{"order", n.UserID, n.Currency}
	for _, it := range n.Items {
		m = append(m, it.SKU, it.Name, strconv.FormatInt(it.Quantity, 10), strconv.FormatInt(it.UnitAmount, 10))
	}
	return m
}

// CreateOrder makes an order of an existing user.
func (l *Ledger) CreateOrder(ctx context.Context, t tenants.ID, key IdempotencyKey, n NewOrder) (Order, bool, error) {
	total, err := n.validate()
	if err != nil {
		return Order{}, false, err
	}
	return once(ctx, l, t, request[Order]{key: key, meaning: n.meaning(),
		read: func(ctx context.Context, id string) (Order, error) { return l.Order(ctx, t, id) },
		make: func(ctx context.Context, seen lookup) (Order, error) {
			return l.createOrder(ctx, t, key, seen, &n, total)
		}})
}

func (l *Ledger) createOrder(ctx context.Context, t tenants.ID, key IdempotencyKey, seen lookup, n *NewOrder, total int64) (Order, error) {
	now := l.clock.now()
	slot := shards.SlotOf(string(t), n.UserID)
	o := Order{ID: l.ids.order(now, slot), Object: "order", UserID: UserID(n.UserID), Status: StatusOpen, Amount: total,
		Currency: n.Currency, Items: n.Items, CreatedAt: now}
	items, err := json.Marshal(o.Items)
	if err != nil {
		return Order{}, err
	}
	row := newKeyRow(t, key, recordID(o.ID), seen)
	event := l.orderEvent(t, OrderCreated, &o, now)
	err = l.set.Shard(slot).Update(ctx, func(tx *shards.Tx) error {
		if err := userThere(tx, t, n.UserID); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO orders (tenant, id, user_id, amount, currency, created_at) VALUES (?,?,?,?,?,?)`,
			string(t), string(o.ID), n.UserID, o.Amount, o.Currency, now.UnixMilli()); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO order_items (tenant, order_id, items) VALUES (?,?,?)`, string(t), string(o.ID), string(items)); err != nil {
			return err
		}
		tx.Attach(event)
		return row.attach(tx)
	})
	l.keys.settled(row, err)
	return o, err
}

const orderColumns = `o.id, o.user_id, o.status, o.amount, o.currency, o.payment_id, o.created_at, o.paid_at, o.completed_at, o.canceled_at, i.items
	FROM orders o JOIN order_items i ON i.tenant = o.tenant AND i.order_id = o.id`

func scanOrder(row scanner) (o Order, err error) {
	var payment sql.NullString
	var created int64
	var paid, completed, canceled sql.NullInt64
	var items string
	if err := row.Scan(&o.ID, &o.UserID, &o.Status, &o.Amount, &o.Currency, &payment, &created, &paid, &completed, &canceled, &items); err != nil {
		return Order{}, err
	}
	if payment.Valid {
		id := PaymentID(payment.String)
		o.PaymentID = &id
	}
	o.Object, o.CreatedAt, o.PaidAt, o.CompletedAt, o.CanceledAt = "order", instant(created), optionalTime(paid), optionalTime(completed), optionalTime(canceled)
	if err := json.Unmarshal([]byte(items), &o.Items); err != nil {
		return Order{}, fmt.Errorf("order %s: items: %w", o.ID, err)
	}
	return o, nil
}

func readOrder(tx *shards.Tx, t tenants.ID, id OrderID) (Order, error) {
	return scanOrder(tx.QueryRow(`SELECT `+orderColumns+` WHERE o.tenant = ? AND o.id = ?`, string(t), string(id)))
}

// orderShard returns the file of an order's id, or ErrNoRows of what is no order's id.
func (l *Ledger) orderShard(id string) (*shards.Shard, OrderID, error) {
	slot, ok := OrderID(id).slot()
	if !ok {
		return nil, "", sql.ErrNoRows
	}
	return l.set.Shard(slot), OrderID(id), nil
}

// Order returns one of the tenant's orders.
func (l *Ledger) Order(ctx context.Context, t tenants.ID, id string) (o Order, err error) {
	sh, oid, err := l.orderShard(id)
	if err == nil {
		err = sh.View(ctx, func(tx *shards.Tx) error {
			o, err = readOrder(tx, t, oid)
			return err
		})
	}
	return o, found("order", err)
}

// OrderFilter selects orders; its zero value selects all of the tenant's.
type OrderFilter struct {
	UserID string
	Status OrderStatus
	Limit  int    // 1 to 100; 0 means 20
	Cursor string // NextCursor of the page before
}

// OrderPage is part of a list, newest first.
type OrderPage struct {
	Data       []Order
	HasMore    bool
	NextCursor string // "" when there is no more
}

// Orders lists the tenant's orders, newest first.
func (l *Ledger) Orders(ctx context.Context, t tenants.ID, f OrderFilter) (OrderPage, error) {
	switch f.Status {
	case "", StatusOpen, StatusPaid, StatusCompleted, StatusCanceled:
	default:
		return OrderPage{}, invalid("status_invalid", "status", "must be open, paid, completed or canceled")
	}
	var err error
	if f.Limit, err = pageLimit(f.Limit); err != nil {
		return OrderPage{}, err
	}
	if err := checkText("user_id", f.UserID, appIDMax, true); err != nil {
		return OrderPage{}, err
	}
	before, err := pageCursor(f.Cursor, func(id string) bool { _, ok := OrderID(id).slot(); return ok })
	if err != nil {
		return OrderPage{}, err
	}
	where, args := "", []any{string(t)}
	if before != "" {
		where, args = where+" AND o.id < ?", append(args, before)
	}
	files := l.set.All()
	if f.UserID != "" {
		where, args = where+" AND o.user_id = ?", append(args, f.UserID)
		files = []*shards.Shard{l.userShard(t, f.UserID)}
	}
	if f.Status != "" {
		where, args = where+" AND o.status = ?", append(args, string(f.Status))
	}
	query := `SELECT ` + orderColumns + ` WHERE o.tenant = ?` + where + ` ORDER BY o.id DESC LIMIT ?`
	args = append(args, f.Limit+1)
	id := func(o Order) string { return string(o.ID) }
	all, err := gather(ctx, files, scanOrder, id, query, args...)
	if err != nil {
		return OrderPage{}, err
	}
	var page OrderPage
	page.Data, page.NextCursor = cutPage(all, f.Limit, id)
	page.HasMore = page.NextCursor != ""
	return page, nil
}

// CompleteOrder notes that a paid order was handed over. Twice is fine.
func (l *Ledger) CompleteOrder(ctx context.Context, t tenants.ID, id string) (Order, error) {
	return l.changeOrder(ctx, t, id, func(tx *shards.Tx, o *Order, now time.Time) error {
		switch o.Status {
		case StatusCompleted:
			return nil
		case StatusPaid:
		default:
			return orderState(o, "only a paid order can be completed")
		}
		o.Status, o.CompletedAt = StatusCompleted, &now
		_, err := tx.Exec(`UPDATE orders SET status = 'completed', completed_at = ? WHERE tenant = ? AND id = ?`, now.UnixMilli(), string(t), id)
		tx.Attach(l.orderEvent(t, OrderCompleted, o, now))
		return err
	})
}

// CancelOrder gives an unpaid order up. Twice is fine.
func (l *Ledger) CancelOrder(ctx context.Context, t tenants.ID, id string) (Order, error) {
	return l.changeOrder(ctx, t, id, func(tx *shards.Tx, o *Order, now time.Time) error {
		switch {
		case o.Status == StatusCanceled:
			return nil
		case o.Status != StatusOpen:
			return orderState(o, "only an open order can be canceled")
		case o.PaymentID != nil:
			return errOrderPending
		}
		o.Status, o.CanceledAt = StatusCanceled, &now
		_, err := tx.Exec(`UPDATE orders SET status = 'canceled', canceled_at = ? WHERE tenant = ? AND id = ?`, now.UnixMilli(), string(t), id)
		tx.Attach(l.orderEvent(t, OrderCanceled, o, now))
		return err
	})
}

func orderState(o *Order, message string) error {
	return &Error{Kind: Conflict, Code: "order_state", Message: "the order is " + string(o.Status) + "; " + message}
}

func (l *Ledger) changeOrder(ctx context.Context, t tenants.ID, id string, change func(tx *shards.Tx, o *Order, now time.Time) error) (o Order, err error) {
	sh, oid, err := l.orderShard(id)
	if err == nil {
		now := l.clock.now()
		err = sh.Update(ctx, func(tx *shards.Tx) (err error) {
			if o, err = readOrder(tx, t, oid); err != nil {
				return err
			}
			return change(tx, &o, now)
		})
	}
	return o, found("order", err)
}

var errOrderPending = &Error{Kind: Conflict, Code: "order_payment_pending", Field: "order_id",
	Message: "the order has a payment that is neither failed nor canceled"}

// orderUnknown tells a payment of an order that is not there.
func orderUnknown(err error) error {
	var refusal *Error
	if errors.Is(err, sql.ErrNoRows) || errors.As(err, &refusal) && refusal.Kind == NotFound {
		return invalid("order_unknown", "order_id", "no such order")
	}
	return err
}

// takeOrder makes p the order's one payment, in the transaction that stores p.
// Partial and over-payment are refused.
func takeOrder(tx *shards.Tx, t tenants.ID, p *Payment) error {
	o, err := readOrder(tx, t, OrderID(*p.OrderID))
	switch {
	case err != nil:
		return orderUnknown(err)
	case o.PaymentID != nil:
		return errOrderPending
	case o.Status != StatusOpen:
		return orderState(&o, "it takes no payment")
	case p.UserID == nil || UserID(*p.UserID) != o.UserID:
		return invalid("order_user_mismatch", "user_id", "the order is another user's")
	case o.Amount != p.Amount || o.Currency != p.Currency:
		return invalid("order_amount_mismatch", "amount", fmt.Sprintf("the order's total is %d %s, and is paid at once", o.Amount, o.Currency))
	}
	_, err = tx.Exec(`UPDATE orders SET payment_id = ? WHERE tenant = ? AND id = ?`, string(p.ID), string(t), string(o.ID))
	return err
}

// settleOrder brings the order of a payment that became final to where that puts
// it, in the same transaction.
func (l *Ledger) settleOrder(tx *shards.Tx, t tenants.ID, p *Payment, now time.Time) error {
	if p.OrderID == nil {
		return nil
	}
	if p.Status != Succeeded {
		_, err := tx.Exec(`UPDATE orders SET payment_id = NULL WHERE tenant = ? AND id = ? AND payment_id = ?`, string(t), *p.OrderID, string(p.ID))
		return err
	}
	n, err := tx.Exec(`UPDATE orders SET status = 'paid', paid_at = ? WHERE tenant = ? AND id = ? AND payment_id = ? AND status = 'open'`,
		now.UnixMilli(), string(t), *p.OrderID, string(p.ID))
	if err != nil || n == 0 {
		return err
	}
	o, err := readOrder(tx, t, OrderID(*p.OrderID))
	if err == nil {
		tx.Attach(l.orderEvent(t, OrderPaid, &o, now))
	}
	return err
}
