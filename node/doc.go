// Package node is Freshet as a service uses it: a [Node] per process, a [Cache] per view of a
// namespace.
//
//	n, err := node.Open(ctx, node.Config{App: "shop", Postgres: ..., Redis: ..., NATS: ...})
//	defer n.Close()
//	products, err := node.NewCache(n, node.CacheConfig[Product]{
//		Namespace: "product",
//		Source:    node.SQL[Product](`select id, name from products where id = any($1)`),
//	})
//	product, err := products.Get(ctx, "42")
//
// # What an answer says
//
// Every answer is labelled. FRESH ([Entry.Fresh]) means that it reflects every Postgres commit older
// than the budget of the read: [Config.Budget], or [Within] for one read; 0 asks for every commit that
// was acknowledged before the read began. STALE means that this cannot be proven now, or not as soon as
// the reader wants an answer ([SoftTimeout]); the answer is then at most [Entry.Age] old, and is only given
// to who allows it ([Config.MaxStale], [StaleWithin]).
//
// A writer may allow that values from before a change are given for a while ([WithGrace]). Reads that name no
// budget may then get one at once, labelled as STALE with [Entry.Grace] above 0; it reflects all else as a
// FRESH answer does. So does [Cache.Get], which has no label: name a budget where that matters.
//
// [Consistent] and [Node.Snapshot] make several values FRESH as of one snapshot of Postgres; otherwise each is
// for itself.
//
// # Writing
//
// [Node.Write] runs a transaction that says what it changes. [Cache.Put], of a cache with a [Store], is such a
// write of a value, which then fills the cache as Postgres has it. [Cache.PutLater] returns when NATS JetStream
// has the value, and Postgres gets it later; answers show it at once, labelled [Entry.Pending]. That is a
// weaker promise: see there.
//
// # What it needs
//
// Postgres is the authority. A change counts when the writer's transaction logs it: through
// [Node.Write], through a trigger that freshet.watch made, or by freshet.invalidate in SQL. Redis and
// NATS make answers faster, never righter; both may be missing or down, also when the node opens.
//
// Tests need none of the servers: package nodetest has a cluster in one process, in virtual time if they like.
//
// # What is not promised
//
// See package coherence: two primaries at once, synchronous_commit off, writers that bypass triggers
// and log. Values are shared by all who read them: who changes what a returned value points to
// changes it for everybody.
package node
