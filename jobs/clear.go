package jobs

// Clear reports whether a job of the tenant's that came into the queue now would be leased at once: no other of its jobs waits there, nothing
// is paused, and nothing limits how many are leased at a time or a second. Who does such a job's work without the queue overtakes nobody.
func (e *Engine) Clear(tenant, queue string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.queues[queue]
	if e.closed || q == nil || q.paused || q.Limits != (Limits{}) {
		return false
	}
	l := q.lines[tenant]
	return l == nil || l.waiting <= 0 && !l.paused && l.limits.active == 0 && l.limits.rate == nil
}
