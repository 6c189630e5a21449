// Package nodetest is a cluster of nodes in one process, for an application's own tests: no server runs, it opens in
// milliseconds, everything can fail, and inside a bubble of testing/synctest time is virtual. The nodes are real ones,
// with the read path of production. What they stand on is in memory and passes the suites that Postgres, Redis and NATS
// pass; so what a test sees of labels, budgets and tokens is what the application sees later.
//
//	func TestPrice(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			c := nodetest.New(t, nodetest.Config{Nodes: 2})
//			products := nodetest.NewTable[Product](c, "product")
//			shop, err := NewShop(c.Node(1), products.Source(), products.Store()) // code under test: it makes its caches
//			...
//			products.Set("42", Product{Price: 100}) // as another program writes to Postgres
//			c.NATSAway(1)
//			products.Set("42", Product{Price: 120})
//			time.Sleep(time.Second) // the budget, in no time
//			// shop answers 120
//		})
//	}
//
// A [Table] stands for a watched table: its transactions log their changes, may stay open and commit in any order, and
// its Source reads under exact snapshots. [node.Func] sources work as they are, and query caches with a Func. So do Write with its Invalidate
// methods, all strategies, generations, [node.Node.Snapshot], tokens, warm-ups, and Put through a Store: that of a Table,
// or the application's own, which changes tables by [TxOf].
//
// In a bubble nothing depends on the machine's speed or load. What is random in production stays random: the jitter of
// times to live and of background work.
//
// There is no SQL: [node.SQL], query caches with a Query and warm-ups by a query are refused by NewCache; statements on a [node.Tx]
// or on [node.Node.DB] fail and say so. There is no JetStream: a cache with WriteBehind is refused. Nor is there
// clean-up of Redis ([node.Node.Clean]), or drift of watches. For these, tests need servers.
package nodetest
