// Package shop is a product catalogue API on Freshet: a real service to read, to copy from and to load.
//
//	db := ...                                 // *sqlx.DB on the primary; the schema freshet is installed
//	err := shop.Migrate(ctx, db)              // tables, and the triggers that log every change of them
//	err = shop.Seed(ctx, db, shop.SeedConfig{}) // 100,000 products
//	api, err := shop.New(n, shop.Options{})   // n is a node.Node
//	http.ListenAndServe(addr, api.Handler())
//
// # Model
//
// Postgres is the authority; everything that a replica answers came from it through the node's caches.
// Six of them exist: products, categories and carts by id, the pages of lists by filter, and a count. The tables are
// watched by freshet.watch, so a change by psql or by another service is seen like one that came through
// here. A list of one category depends on the tag category:<id>, any other list of products on the tag
// product, and each on the tag sale: when sales begin and end is scheduled (sales.go). Lists and their totals come from one statement, hence from one snapshot. With Options.WarmUp a
// replica fills those of the catalogue before it is ready (warmup.go). Carts are written behind
// (carts.go), categories through (categories.go), and what has to fit together is read as of one snapshot
// (quotes.go). README.md lists which route shows what.
//
// # Freshness over HTTP
//
// Requests may say how fresh the answer has to be:
//
//   - Freshet-Budget: 0, 50ms, 1s and so on, at most 1h: a fresh answer reflects every commit older than this.
//     0 is a linearizable read. Without it the node's default holds.
//   - Freshet-Token: a token of an earlier answer; the answer is then not older than that one.
//
// Answers of reads say what they are:
//
//   - Freshet-Fresh: fresh or stale. Fresh is a proof, not a hope: see the package node.
//   - Freshet-Staleness-Bound: milliseconds, rounded up; no commit older than this is missing.
//   - Freshet-Pending: true for a cart that is not in Postgres yet; it is newer than what is there, and stale.
//   - Freshet-Tier: l1, l2, owner or source: where the value was.
//   - Freshet-Token: send it with the next request to any replica, and its answer will not go back behind
//     this one. It covers the tokens of the request too, so the latest one is enough. Answers of writes carry
//     it as well: read your writes, anywhere.
//   - Age: the same bound in whole seconds, rounded down; Cache-Status (RFC 9211), the cache closest to
//     Postgres first; ETag; Surrogate-Key, the names of what the answer depends on.
//
// # What is not promised
//
// There is no authentication: put the API behind something that has it. Who knows the id of a cart has the cart. Money has no currency: a catalogue
// has one. Two pages of a list that were read one after the other come from two snapshots.
package shop
