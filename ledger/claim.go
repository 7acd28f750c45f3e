package ledger

import (
	"sync"

	"tenderbox/tenants"
)

// claim is a key that a request works under.
type claim struct {
	tenant tenants.ID
	key    IdempotencyKey
}

// claims are the keys of requests between receipt and commit.
type claims struct {
	mu   sync.Mutex // guards held
	held map[claim]struct{}
}

// take claims a key for one request, until it is let go. false: another one has it.
func (c *claims) take(of claim) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.held[of]; taken {
		return false
	}
	c.held[of] = struct{}{}
	return true
}

func (c *claims) release(of claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.held, of)
}
