// Package tiers knows where values are: in this process (L1), in the Redis Cluster (L2), at the
// entity's owner replica, or only at the source; and it decides which of them answers a read.
//
// # Model
//
// Only the source is authoritative. Every entry carries the snapshot under which its value was read,
// and package coherence says whether that snapshot knows every change of the value's scopes. So no
// tier needs to be trusted: bytes from Redis or from a peer that are stale, corrupt or of another type
// are a miss and a counter.
//
// # The read path
//
// [Cache.Lookup] is the hit in L1: a look-up under one shard's read lock, a few atomic loads, no
// allocation. Everything else is in read.go, in the order in which it runs: prove that the node's
// knowledge is as recent as the reader wants it, look at L1 once more, then join or lead a flight,
// and check what it brought when it is returned. What proves an answer FRESH, and what may be given as
// STALE, is in proof.go. What a flight does is in flight.go: L2, then a lease so that one replica
// loads, then the owner replica when Redis is out, then the source behind a [Bulkhead]. A hit near its
// expiry starts a flight that nobody waits for, see refresh.go.
//
// Several values as of one moment, of whatever caches, are read in together.go: through the tiers, then compared
// with one poll, all at once; in the end, if they change too fast for that, in one transaction (transaction.go).
//
// # What bounds it
//
// L1 is bounded in entries and bytes, flights in number, loads by the bulkhead, every wait by a
// time-out of its own. Beyond a bound reads get [ErrOverloaded], or a STALE answer if the caller
// allows it; never an unbounded queue.
package tiers
