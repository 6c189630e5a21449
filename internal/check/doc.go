// Package check judges, while a load test runs, whether the answers of caches kept the promises of
// this project (invariants I1 to I5 of the design), from what clients could see: which writes they
// sent and saw acknowledged, and which revisions they were answered.
//
// # Model
//
// Every product has a revision that goes up by exactly one with every committed update, whoever
// made it (a trigger sees to it). One process writes and reads, so all times are of one monotonic
// clock: durations since the run began. The Postgres database is the authority.
//
//	c, err := check.New(check.Config{})
//	c.Declare(id, revision)               // every product, before the run
//
//	w := c.Begin(id, 0, clock())          // before the request that updates it is sent, or
//	w := c.Begin(id, revision, clock())   // before COMMIT is sent, when "returning" has told the revision
//	w.Acked(revision, clock())            // or w.Aborted(), or w.Unknown(revision)
//
//	c.Observe(check.Read{...})            // every answer, FRESH or STALE
//
//	c.Finish()                            // at the end
//	c.Final(id, revision)                 // every written or suspect product, from Postgres
//	c.Converged(check.Answer{...})        // and, with budget 0, from every replica
//	s := c.Summary()
//
// What counts as a violation:
//
//   - I1: a FRESH answer with revision r, though a commit with a higher one had been acknowledged
//     before the read was sent less its budget.
//   - I2: a FRESH answer below the revision of a write whose session token the read carried.
//   - I3: a FRESH answer of a replica below one that the same replica gave, FRESH, to a read that had
//     returned before this one was sent; or below one whose session token the read carried.
//   - I4: an answer, FRESH or not, with a revision that cannot have been committed: none was sent
//     before the read returned; or "absent" for a product that is never deleted.
//   - I5: after the run a replica asked with budget 0 differs from Postgres.
//   - Lost: Postgres ends below an acknowledged revision, or gave one revision to two acknowledged
//     writes.
//
// A write whose outcome is unknown (an error at commit) may or may not have happened: it excuses the
// answers that show it and obliges nobody to.
//
// An answer is judged when every write of its product that was under way before the answer returned
// has an outcome, since only then it is known which revision is whose.
//
// # Not promised
//
// The run's own writes are updates; deletions and new products by it are not modelled. Other writers
// (somebody at psql) are noticed at the end, by the number of revisions in Postgres that no write of
// the run explains: their products' I4 verdicts are then withdrawn and counted as Excused, since
// nothing is known of their times.
//
// Memory is bounded. Per written product it keeps the commits of the last MaxBudget + Slack, at most
// 1,024, older ones as their highest; the last eight steps up per replica; up to 256 waiting answers.
// Where a bound cuts something off, the verdict errs on the side of no violation; answers judged
// before all is known are counted as Early. The bounds never make a right answer wrong. Products
// that were never written and always answered as declared cost one map entry.
package check
