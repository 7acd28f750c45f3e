// Package tenants knows who is calling: which tenants exist, what their keys are, and for whom a request acts.
//
// # Promise
//
// What a change returned without error is on disk and in force for the next request, a revoked key included.
// A caller acts for exactly one tenant, the one that its key belongs to; a request that names another
// is refused, never served for either. No secret stands in clear: of API keys and the operator's token only hashes are
// kept, of upstream keys and webhook secrets only ciphertext that opens in no other record.
//
// # Types
//
// [Registry] keeps the [Tenant]s in box.db and answers [Registry.Resolve] from memory; [ID] is a tenant's
// validated name; [Webhooks] keeps the tenants' [Endpoint]s in the same file; [Secret] is a string that refuses to be
// printed; [Keyring] seals secrets at rest and derives keys by purpose from the box's one key file.
//
// # After a crash
//
// A change is whole or absent. After each one box.db is copied to box.db.copy. If box.db is found damaged or missing at
// the next start, [OpenFile] moves it aside, goes on with the copy and says so: at worst the very last change is undone.
// With both damaged the box does not start: one that guessed its tenants would serve the wrong people.
//
// # Caveats
//
// Reads never wait: they see an immutable snapshot, replaced after each durable change. The Tenants that the registry
// returns share memory with it and must not be modified; [Registry.Update] works on a copy.
//
// Whoever holds the key file and the data folder can read every sealed value; without the key file nobody can. Back up
// the two apart.
package tenants
