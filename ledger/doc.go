// Package ledger tells the box's story: how a payment is taken, kept, and settled
// upstream exactly once.
//
// A payment is accepted by [Ledger.Pay] in one transaction of one shard: the
// idempotency key, the payment and its journal row become durable together, or
// none does. The journal is the outbox. A relay turns its rows into jobs, each
// exactly once, because the jobs and the relay's cursor move in one transaction
// of the queue's file; and publishes them to the event log, each at least once.
// The settler works on the queue [PaymentsQueue]: it seals the attempt (number,
// exact bytes, time) on the disk, sends it under the payment's one upstream key,
// and records the outcome in one guarded transaction.
//
// Users, orders and users' inboxes are kept beside payments, each in its user's
// slot, with a journal row for each change.
//
// [Ledger] is the book; [Payment], [Status] and [SyncState] are what it keeps;
// [Event] is a row of the journal; [Error] is a refusal that can be shown.
//
// After a crash at any point:
//   - before the accepting commit: there is no payment;
//   - after it: the payment, its key and its journal row are there, and the relay
//     resumes from its cursor;
//   - between seal and record: the attempt has no outcome, the payment is in
//     doubt, and the same bytes go out again under the same key, for as long as
//     the processor remembers it ([Options.KeyMemory]); then a person decides.
//
// Caveats: the ledger assumes that this process alone owns the shard files (the
// folder is locked) and that the processor honours idempotency keys. An error of
// kind [Unavailable] means that the outcome may be unknown; repeating the request
// with the same key is always safe.
//
// Lock order: accountMu, then a shard's writer, then headMu, then exposure.mu;
// the other locks are leaves.
package ledger
