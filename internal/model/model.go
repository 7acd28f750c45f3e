// Package model plays a box against a simulated world, thousands of seeds in simulated time, and judges it by what its clients and the processor saw.
//
// # Promise
//
// A seed is one world: two shops whose clients pay, repeat, cancel, confirm and give back; a line that goes down in several ways; a processor
// that drops, forgets, repeats errors and answers garbage; a wall clock that jumps; a box that loses its power at any write and is opened again on what
// was synced. Then the processor heals and time passes. What holds then for every payment, and held on the way, is written down as the
// rules of [Judge], which knows nothing of the box but what came out of it.
//
// # Main types
//
// [World] is the world of a seed and [World.Run] its story. [Log] is what the clients know; [Evidence] adds the books of the box and of the
// processor; [Judge] returns a [Finding] for each rule that is broken. [Tally] counts what happened over all seeds, so that a fault that never comes fails
// the test.
//
// # Caveats
//
// Everything runs in one testing/synctest bubble: ledger, queue, files and HTTP are real, time is not. A seed repeats the same draws; the order of
// goroutines within one instant is the scheduler's, and identifiers are random, so a seed that fails now and then is run a few times. What
// is durable is what shardstest.Disk saw synced, and of the queue its last commit. Nothing here survives the test.
package model
