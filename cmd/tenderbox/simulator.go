package main

import (
	"errors"
	"fmt"
	"time"

	"tenderbox/upstream/simulator"
)

// simulatorCommand runs the simulated processor by itself.
type simulatorCommand struct {
	Listen     string        `default:"127.0.0.1:12111" help:"Address to listen on."`
	Key        string        `placeholder:"KEY" help:"API key that calls must carry; without it any key will do."`
	Rate       int           `placeholder:"N" help:"Calls a second before it answers 429; 0 means no limit."`
	ForgetKeys time.Duration `placeholder:"DUR" help:"Forgets idempotency keys after this long; 0 means never."`
}

func (simulatorCommand) Help() string {
	return `It keeps its charges in memory. POST /_control sets faults, each with a probability, says how long things are pending (pending,
settle_polls, settle_ms), makes it forget keys (forget_keys) and alters what it holds (alter); GET /_ledger lists every charge that took effect.

Example:

    tenderbox simulator --listen 127.0.0.1:12111 --key sk_test_1
    tenderbox serve --upstream-url http://127.0.0.1:12111 --upstream-key sk_test_1
    curl -d '{"drop_after_effect": 0.3}' http://127.0.0.1:12111/_control
    curl http://127.0.0.1:12111/_ledger
`
}

func (c *simulatorCommand) Run(t *terminal) error {
	if c.Rate < 0 || c.ForgetKeys < 0 {
		return hint(errors.New("--rate and --forget-keys take no negative values"), "`tenderbox simulator --help` shows how")
	}
	processor := simulator.New(simulator.Options{Key: c.Key, Rate: c.Rate, ForgetKeys: c.ForgetKeys})
	err := processor.Run(t.ctx, c.Listen, func(url string) { fmt.Fprintf(t.stdout, "simulator at %s\n", url) })
	return hint(err, "choose another address with --listen HOST:PORT")
}
