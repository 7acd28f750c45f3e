package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"tenderbox/ledger"
)

func (s *stage) pay(count, clients string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	c, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	first := len(s.taken)
	s.taken = append(s.taken, make([]ledger.Payment, n)...)
	numbers := make(chan int)
	g, ctx := errgroup.WithContext(context.Background())
	var once sync.Once
	for range c {
		g.Go(func() error {
			for i := range numbers {
				p, err := b.pay(ctx, requestOf(i), keyOf(i), "")
				if err != nil {
					once.Do(func() {
						for range numbers { // let the one who hands out numbers end
						}
					})
					return fmt.Errorf("payment %d: %w", i, err)
				}
				s.taken[i] = p
			}
			return nil
		})
	}
	for i := first; i < first+n; i++ {
		numbers <- i
	}
	close(numbers)
	return g.Wait()
}

// payAndTerm pays with clients that never pause, and stops the box in the midst of it. Payments that got no
// answer may have happened or not; those that got one are remembered.
func (s *stage) payAndTerm(answers string) error {
	n, err := strconv.Atoi(answers)
	if err != nil {
		return err
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	const clients = 8
	told := make(chan ledger.Payment)
	var g errgroup.Group
	for c := range clients {
		g.Go(func() error {
			for i := 0; ; i++ {
				p, err := b.pay(context.Background(), requestOf(i), fmt.Sprintf("busy-%d-%d", c, i), "")
				if err != nil {
					return nil // the box has left
				}
				told <- p
			}
		})
	}
	go func() { _ = g.Wait(); close(told) }()
	var stopped chan error
	answered := 0
	for p := range told {
		s.answered = append(s.answered, p)
		if answered++; answered == n {
			stopped = make(chan error, 1)
			go func() { stopped <- s.term() }()
		}
	}
	if stopped == nil {
		return fmt.Errorf("only %d payments were answered", answered)
	}
	return <-stopped
}

func requestOf(i int) payRequest {
	return payRequest{Amount: 100 + int64(i)*7, Currency: "eur", Source: "tok_visa"}
}

func keyOf(i int) string { return fmt.Sprintf("script-%d", i) }

func (s *stage) kept() error {
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	for _, told := range s.answered {
		var now ledger.Payment
		if err := b.do(context.Background(), http.MethodGet, paymentsPath+"/"+string(told.ID), nil, &now); err != nil {
			return fmt.Errorf("payment %s: %w", told.ID, err)
		}
		if now.Amount != told.Amount || now.Currency != told.Currency {
			return fmt.Errorf("payment %s: told %+v, now %+v", told.ID, told, now)
		}
	}
	for i, told := range s.taken {
		var now ledger.Payment
		if err := b.do(context.Background(), http.MethodGet, paymentsPath+"/"+string(told.ID), nil, &now); err != nil {
			return fmt.Errorf("payment %d: %w", i, err)
		}
		again, err := b.pay(context.Background(), requestOf(i), keyOf(i), "")
		if err != nil {
			return fmt.Errorf("payment %d, repeated: %w", i, err)
		}
		if now.Amount != told.Amount || now.Currency != told.Currency || again.ID != told.ID {
			return fmt.Errorf("payment %d: told %+v, now %+v, its key means %s", i, told, now, again.ID)
		}
	}
	return nil
}

func (s *stage) settled(count string) error {
	if err := s.poll("the backlog to be settled", func(v *ledger.Overview) bool { return v.Backlog.Count == 0 }); err != nil {
		return err
	}
	if strconv.Itoa(len(s.taken)) != count {
		return fmt.Errorf("%d payments were taken, not %s", len(s.taken), count)
	}
	b, err := s.as(defaultKeyFile)
	if err != nil {
		return err
	}
	d := &demo{out: &strings.Builder{}, box: b, processor: s.processor, paid: s.taken}
	return d.count(context.Background())
}

// control gives the processor an order.
func (s *stage) control(order string) error {
	answer, err := http.Post(s.upstream+"/_control", "application/json", strings.NewReader(order))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("the processor does not take the order: %s", text)
	}
	return nil
}
