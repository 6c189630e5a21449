// Package replay drives a shop (examples/shop behind a load balancer) with the accesses of a trace
// and has every answer judged by a [check.Checker].
//
//	d, err := replay.New(replay.Config{
//		Targets:  []string{"http://127.0.0.1:8080"},  // the load balancer
//		Replicas: func() []replay.Replica { ... },    // those running now, for probes and the final comparison
//		DB:       db,                                 // the shop's Postgres: the other service, and the authority
//		Source:   trace.NewLoop(r),                   // or a trace.Zipf
//		Rate:     2000, Writes: 0.02, Duration: 30 * time.Second,
//	})
//	report, err := d.Run(ctx)                         // once
//	for _, problem := range report.Problems() { ... } // any: exit non-zero
//
// Whoever breaks something on purpose meanwhile says so, from any goroutine, so that the errors it
// causes are not held against the shop (broken promises still are):
//
//	fault := d.Fault("redis-shard")
//	...
//	fault.Healed()
//
// [Driver.Progress] is for a live status line.
//
// # Model
//
// The load is open: access i is due at i/Rate, whether or not earlier answers have come. At most
// MaxInFlight accesses are under way; one that is due when all are busy is dropped and counted, since
// waiting would turn a slow shop into a slow load. Two latencies are kept: of service, from sending
// the request to having the whole answer, and intended, from the moment at which it was due, which
// also holds what the driver was late by. [Report.Warnings] says when the driver fell behind.
//
// A fraction of the accesses become updates of the product's price: every other one by PATCH through
// the balancer, followed by two reads (of any replica) that carry the session token; the others by
// SQL, as another service would. Their positions are drawn with Seed: traces hold reads only. A
// fraction become reads of a category's first page, whose products are judged like others. A
// fraction, none by default, ask for products that do not exist.
//
// A sample of the acknowledged writes is probed: each replica is asked directly, a millisecond apart,
// until it answers with the write's revision. That is the change latency.
//
// At the end every product written, up to a bound, is asked for at every replica with budget 0 and
// compared with Postgres.
//
// # Goroutines
//
// All end before Run returns: the scheduler (Run itself), up to MaxInFlight workers, the prober with
// up to 64 polls, the reader of the replicas' counters.
//
// # Not promised
//
// Client and servers share a machine in `freshet up`, so latencies include the wait for its
// processors. Products must not be created or deleted by the run's surroundings while it lasts;
// updates by others are noticed and excused as package check says.
package replay
