// Package webhook delivers events to tenants' endpoints, as Standard Webhooks 1.0 has it
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
//
// # Promise
//
// An event that [JobsFor] made jobs of reaches each endpoint at least once, or is told as failed with every answer that
// came: after ten attempts over three days, or at once when the endpoint is gone. Every attempt carries the same webhook-id
// (the event's id), its own webhook-timestamp, and in webhook-signature one signature for each secret in force. A request goes to
// the URL that the tenant saved and nowhere else: redirects are failures, and the address is judged when it is dialled.
//
// # Types
//
// [Deliverer] is the handler of the queue; [Endpoints] is all it asks of whoever keeps the endpoints; [JobsFor] is the listener's
// half, from an event to jobs; [ValidateURL] judges a URL when it is saved.
//
// # Attempts
//
// 2xx is a delivery. 410 disables the endpoint and fails the job; failed at once is also what no attempt can mend: an endpoint that was removed or
// disabled, or whose URL the operator has come to forbid. Such jobs can be retried once that has changed. Anything else is an attempt
// that failed, and the next one comes after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h, with up to a tenth more by
// chance, or when Retry-After says, if that is later (but within 24 h). An endpoint that does not answer in time, or says that it has
// too much to do (429, 502, 503, 504, Retry-After), is left in peace for a while: its other jobs wait without losing an attempt, 5 s at
// first and 5 min at most (an hour if it asks for it), and no job longer than the schedule lasts.
//
// When the box's own line is down, it is not the endpoint that failed: the job waits without losing an attempt, and the
// schedule begins when the line is back. [Options.Line] says so. Where nobody knows, a dial without a route and a resolver
// that cannot be reached count as the line, everything else as the endpoint. An endpoint on the LAN needs no line and has no such
// excuse. After 30 days such attempts count again, so that no job waits for ever.
//
// # After a crash
//
// The attempt in hand is made again: the receiver sees the webhook-id twice, which is what it is for. What is known of pauses is
// lost; the next attempts learn it anew.
//
// # Caveats
//
// The body is the event's CloudEvents JSON under Content-Type application/json, because that is what receivers of webhooks parse.
// An event of more than 256 KiB goes without its data and with "dataomitted": true. A failed delivery's own
// job.failed event makes no webhook, else an endpoint that is down would feed itself. Nothing of an answer but its status
// and Retry-After is kept or shown: a response's body could be that of a neighbour on the LAN. A box whose clock is
// wrong signs timestamps that receivers refuse.
package webhook
