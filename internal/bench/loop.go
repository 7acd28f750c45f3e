package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tenderbox/internal/blackbox"
)

// loopPart is the argument with which the program plays the bare loop: URL, number of posts, concurrency.
const loopPart = "loop"

// runLoop sends charges as a box does, without keeping anything, and prints how many nanoseconds it took.
func runLoop(ctx context.Context, args []string, w io.Writer) error {
	if len(args) != 3 {
		return errors.New("the bare loop wants a URL, a number of posts and a concurrency")
	}
	n, nerr := strconv.ParseInt(args[1], 10, 64)
	concurrency, cerr := strconv.Atoi(args[2])
	if err := errors.Join(nerr, cerr); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}, Timeout: graceMax}
	var next atomic.Int64
	began := time.Now()
	all, ctx := errgroup.WithContext(ctx)
	for range concurrency {
		all.Go(func() error {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				if err := postCharge(ctx, client, args[0]+"/charges", i); err != nil {
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

// postCharge sends what the box sends for the load's payment.
func postCharge(ctx context.Context, client *http.Client, to string, i int64) error {
	id := fmt.Sprintf("pay_%026d", i)
	form := url.Values{
		"amount": {"1999"}, "currency": {"usd"}, "source": {"tok_visa"}, "description": {"Table 7, two coffees"},
		"metadata[till]": {"3"}, "metadata[receipt]": {"2030-01-02/1234"}, "metadata[tenderbox_payment]": {id},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form.Encode()))
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
