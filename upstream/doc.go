// Package upstream talks to the payment processor and says, without ever guessing, what became of a request.
//
// # Promise
//
// Post sends exactly the bytes it is given under exactly the key it is given, and answers with an Outcome that
// the processor's own answer proves. An HTML page with status 200, a cut connection, another amount, a redirect,
// a compressed or endless body: all of these are Unknown, neither success nor failure. MaybeSent is false only
// if not one byte of the request was handed to a connection. The processor is treated as hostile: answers are
// read up to a limit, never decompressed, never followed elsewhere, decoded strictly.
//
// That something is not there is proved by Sweep alone, a list that was read whole, from now back to a time: a 404 proves nothing.
// What is there and has no end yet (Answer.Made) is asked for by its id until it has one. A payment method takes two requests:
// one makes an intent, which moves no money, the other confirms it.
//
// # Main types
//
//   - Accounts holds one Account for each pair of base URL and account name, and runs the probes.
//   - Account sends (Enter, Post, Get; Look and Sweep for who is in no hurry) and tells whether sending makes sense now (Ready), and why not (Link, Breaker, Alarms).
//   - Answer is the typed result.
//
// Three instruments decide Ready, each for one account, so that one tenant's processor stops nobody else's:
//
//   - the link judge (judge.go): does the line reach the processor? Unconfigured, offline, degraded or online.
//   - the breaker (breaker.go): does the processor work? Closed, open or half-open. Answers of the 4xx class,
//     429 among them, are no failures.
//   - the hold (hold.go): has the processor asked us to wait (429), refused our key (401, 403), or is it not
//     at this URL (404, 405 to a payment)?
//
// The pace (pace.go) says how fast: Enter gives a place before a payment is made ready. The number at a time grows while answers are good and
// is halved by 429s, failures and slow answers; the number a second is set, or learned from 429s (allowance.go). Probes and look-ups
// need no place.
//
// A probe is sent only when no answer came within an interval, one at a time, outside the breaker; while the breaker
// is half-open the probe is its trial, so that no payment is. A breaker that opened only for want of a line
// closes with the line's return: the drain starts within one probe interval.
//
// # After a crash
//
// Nothing here is kept. A new process knows nothing of the line, says offline until the first answer (Run
// probes at once), has a closed breaker and no hold, and begins with few requests at a time and no limit of their rate. What was sent is the ledger's to know.
//
// # Caveats
//
// Tries within one Post may show the processor one request more than once, always with the same key and bytes. MaybeSent covers all of
// them, and a refusal to look at one (429, say) is Retryable only if none before it can have left. Sends counts them: a Declined second
// says nothing of the first. net/http is kept from trying POSTs again by itself, for it shows the last answer alone.
//
// The proxy variables of the environment are honoured. Accounts are never forgotten while the process lives.
//
// # Lock order
//
// Accounts.mu comes first, pace.mu next; Account.mu, judge.mu, hold.mu and breaker.mu are leaves. gobreaker's own lock is taken with
// no leaf held, and takes breaker.mu inside. No lock is held while a callback of OnChange or a request runs.
//
// The state machines are drawn in DESIGN.md.
package upstream
