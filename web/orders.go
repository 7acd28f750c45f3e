package web

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tenderbox/ledger"
	"tenderbox/tenants"
)

const ordersPath = "/api/v1/orders"

// Orders is what tenants do with their users' orders.
type Orders interface {
	CreateOrder(context.Context, tenants.ID, ledger.IdempotencyKey, ledger.NewOrder) (o ledger.Order, replayed bool, err error)
	Order(ctx context.Context, t tenants.ID, id string) (ledger.Order, error)
	Orders(context.Context, tenants.ID, ledger.OrderFilter) (ledger.OrderPage, error)
	CompleteOrder(ctx context.Context, t tenants.ID, id string) (ledger.Order, error)
	CancelOrder(ctx context.Context, t tenants.ID, id string) (ledger.Order, error)
}

// newItem is a line of newOrder.
type newItem struct {
	SKU        string `json:"sku" example:"coffee-250"`
	Name       string `json:"name,omitempty" example:"Coffee, 250 g"`
	Quantity   int64  `json:"quantity" minimum:"1" example:"2"`
	UnitAmount int64  `json:"unit_amount" doc:"Minor units." minimum:"0" example:"350"`
}

// newOrder is the body of POST /orders. The box adds up the total.
type newOrder struct {
	UserID   string    `json:"user_id" doc:"A user of the tenant's."`
	Items    []newItem `json:"items" doc:"1 to 500 lines."`
	Currency string    `json:"currency" doc:"ISO 4217." example:"eur"`
}

type ordersInput struct {
	request
	PageQuery
	UserID string `query:"user_id"`
	Status string `query:"status" doc:"open, paid, completed or canceled."`
}

type orderInput struct {
	request
	ID string `path:"id"`
}

type (
	orderOutput  struct{ Body ledger.Order }
	ordersOutput struct{ Body page[ledger.Order] }
)

func (s *Server) registerOrders() {
	op := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"orders"}}
	}
	one := ordersPath + "/{id}"
	create := op("create-order", http.MethodPost, ordersPath, "Make an order")
	create.DefaultStatus = http.StatusCreated
	create.Description = "Pay it by a payment with its order_id and its whole amount."
	register(s, create, forTenant, s.createOrder)
	documentBody[newOrder](s.api, http.MethodPost, ordersPath)
	register(s, op("list-orders", http.MethodGet, ordersPath, "List orders, newest first"), forTenant, s.orders)
	for _, r := range []struct {
		huma.Operation
		do func(ctx context.Context, t tenants.ID, id string) (ledger.Order, error)
	}{
		{op("get-order", http.MethodGet, one, "Read an order"), s.ledger.Order},
		{op("complete-order", http.MethodPost, one+"/complete", "Note that a paid order was handed over"), s.ledger.CompleteOrder},
		{op("cancel-order", http.MethodPost, one+"/cancel", "Give up an order that is not paid"), s.ledger.CancelOrder},
	} {
		register(s, r.Operation, forTenant, func(ctx context.Context, in *orderInput) (*orderOutput, error) {
			o, err := r.do(ctx, in.x.caller.Tenant, in.ID)
			return &orderOutput{o}, err
		})
	}
}

func (s *Server) createOrder(ctx context.Context, in *keyInput) (*createdOutput[ledger.Order], error) {
	key, err := idempotencyKey(in.x.r.Header)
	if err != nil {
		return nil, err
	}
	var body newOrder
	if err := in.x.decode(&body); err != nil {
		return nil, err
	}
	n := ledger.NewOrder{UserID: body.UserID, Currency: body.Currency}
	for _, it := range body.Items {
		n.Items = append(n.Items, ledger.Item(it))
	}
	o, replayed, err := s.ledger.CreateOrder(ctx, in.x.caller.Tenant, key, n)
	if err != nil {
		return nil, err
	}
	return &createdOutput[ledger.Order]{Location: ordersPath + "/" + string(o.ID), Replayed: replayedHeader(replayed), Body: o}, nil
}

func (s *Server) orders(ctx context.Context, in *ordersInput) (*ordersOutput, error) {
	t := in.x.caller.Tenant
	limit, err := in.limit()
	if err != nil {
		return nil, err
	}
	cursor, err := s.openCursor("orders", t, in.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Orders(ctx, t, ledger.OrderFilter{UserID: in.UserID, Status: ledger.OrderStatus(in.Status), Limit: limit, Cursor: cursor})
	if err != nil {
		return nil, err
	}
	out := &ordersOutput{page[ledger.Order]{found.Data, found.HasMore, s.sealCursor("orders", t, found.NextCursor)}}
	if out.Body.Data == nil {
		out.Body.Data = []ledger.Order{}
	}
	return out, nil
}
