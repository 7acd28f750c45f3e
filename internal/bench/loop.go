package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"tenderbox/internal/blackbox"
)

// loopPart is the argument with which the program plays the bare loop: URL, number of posts, concurrency, and the body of a post,
// with samplePayment where its payment's id stands.
const loopPart = "loop"

// samplePayment is as long as a payment's id.
const samplePayment = "pay_00000000000000000000000000"

// runLoop sends charges as a box does, without keeping anything, and prints how many nanoseconds it took.
func runLoop(ctx context.Context, args []string, w io.Writer) error {
	if len(args) != 4 || !strings.Contains(args[3], samplePayment) {
		return errors.New("the bare loop wants a URL, a number of posts, a concurrency, and a body with " + samplePayment + " in it")
	}
	n, nerr := strconv.ParseInt(args[1], 10, 64)
	concurrency, cerr := strconv.Atoi(args[2])
	if err := errors.Join(nerr, cerr); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}, Timeout: graceMax}
	run := ulid.Make().String()[:loopIDBytes] // the processor has seen other loops' keys
	var next atomic.Int64
	began := time.Now()
	all, ctx := errgroup.WithContext(ctx)
	for range concurrency {
		all.Go(func() error {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				if err := postCharge(ctx, client, args[0]+"/charges", args[3], fmt.Sprintf("pay_%s%016d", run, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, time.Since(began).Nanoseconds())
	return err
}

// loopIDBytes of a ULID are its time.
const loopIDBytes = 10

// postCharge sends what a box sent, for another payment.
func postCharge(ctx context.Context, client *http.Client, to, body, id string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(strings.ReplaceAll(body, samplePayment, id)))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+blackbox.ProcessorKey)
	request.Header.Set("Stripe-Version", "2022-11-15")
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Idempotency-Key", id)
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("the processor answered %d: %s", answer.StatusCode, content)
	}
	return err
}
