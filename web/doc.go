// Package web is the box's HTTP API.
//
// # Promise
//
// An answer 2xx says that what it speaks of is on the disk; a 4xx, that nothing was changed; a 5xx or none, that the client
// should repeat the request with the same Idempotency-Key. No input, however strange, is answered with a
// 5xx or ends the process. A request acts for one tenant, the one that its credential is for, and sees nothing of another:
// what is foreign and what does not exist get the same bytes. Every error is an RFC 9457 problem with a stable `code`.
//
// # Types
//
// [New] makes the [Server], an http.Handler, from [Options]. [Problem] is the error form. What the server needs of the rest
// of the box it declares itself: [Ledger] and [JobEngine] with their parts, [Deliveries]. [Server.Leave] begins a shutdown.
//
// # The road of a request
//
// Cheap refusals come first, so that a flood costs little: admission (503 before any work), header size, Host (421), origin
// (403), target (404), route (404, 405), credential (401, 403), the tenant's share (429). Only then is the body read (413),
// decoded strictly (400, 422) and given to the ledger or the job engine. huma routes, documents and writes; decoding is ours, once.
// Hot routes, and those that answer with jobs, whose data must come back byte for byte, are documented by huma and served without it.
// What waits by intention (an outcome, a job, a stream's next event) gives its place up and is counted apart.
//
// # After a crash
//
// This package keeps nothing: a request that was cut is repeated with its key. Cursors stay valid over restarts.
//
// # Caveats
//
// The http.Server around it sets the time limits; see admission.go for what it must bound. huma's error constructor is
// a global of that library: this package sets it at start-up, so that no other should.
package web
