package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/julienschmidt/httprouter"
)

// noopPart is the argument with which the program plays the no-op server.
const noopPart = "noop"

// bodyMax is the box's own limit of a body.
const bodyMax = 64 << 10

// asked is what the no-op server decodes, as the box does.
type asked struct {
	Amount      int64             `json:"amount"`
	Currency    string            `json:"currency"`
	Source      string            `json:"source"`
	UserID      string            `json:"user_id"`
	Description string            `json:"description"`
	Metadata    map[string]string `json:"metadata"`
}

// answered is what it encodes: INTERFACE.md's payment, with nothing behind it.
type answered struct {
	ID       string `json:"id"`
	Object   string `json:"object"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Status   string `json:"status"`
	Sync     struct {
		State         string     `json:"state"`
		Attempts      int        `json:"attempts"`
		FirstSentAt   *time.Time `json:"first_sent_at"`
		NextAttemptAt *time.Time `json:"next_attempt_at"`
		LastError     *string    `json:"last_error"`
	} `json:"sync"`
	UpstreamID     *string           `json:"upstream_id"`
	Failure        *struct{}         `json:"failure"`
	AmountRefunded int64             `json:"amount_refunded"`
	OrderID        *string           `json:"order_id"`
	UserID         *string           `json:"user_id"`
	Description    *string           `json:"description"`
	Metadata       map[string]string `json:"metadata"`
	TakenOffline   bool              `json:"taken_offline"`
	CreatedAt      time.Time         `json:"created_at"`
	SettledAt      *time.Time        `json:"settled_at"`
}

// serveNoop answers payments and jobs without taking them, says where on w, and ends with ctx.
func serveNoop(ctx context.Context, w io.Writer) error {
	bound, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: noop(), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if _, err := fmt.Fprintln(w, bound.Addr()); err != nil {
		return err
	}
	if err := server.Serve(bound); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func noop() http.Handler {
	router := httprouter.New()
	routeNoopJobs(router)
	router.POST(paymentPath, func(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
		content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		var in asked
		if err := json.Unmarshal(content, &in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out := answered{
			ID: "pay_01J00000000000000000000000", Object: "payment", Amount: in.Amount, Currency: in.Currency, Status: "pending",
			UserID: &in.UserID, Description: &in.Description, Metadata: in.Metadata, TakenOffline: true, CreatedAt: time.Now().UTC(),
		}
		out.Sync.State = "queued"
		answer, err := json.Marshal(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(answer) // an error means that the client has gone
	})
	return router
}
