// Package coherence knows what changed.
//
// # Model
//
// Postgres decides. Every change of a cached thing is a row of the table freshet.log, written by the
// transaction that makes the change and carrying that transaction's id. Every cached value carries
// the [Snapshot] it was read under. A value is valid as long as its snapshot sees every change that
// this node knows for the value's scopes: its entity, its view, its tags, its namespace.
//
// What the node knows is what its last successful poll of the log could see, snapshot S, and more:
// hints and its own writes come sooner. Snapshots of one timeline are totally ordered, S only moves
// forward, and the age of S, from the moment its poll was sent, bounds the staleness of every answer
// that was checked against it.
//
// # Parts
//
//   - [Snapshot], [Scope], [Change]: the vocabulary.
//   - [Directory]: what changed last, per scope, in fixed memory; says whether a snapshot is valid.
//   - [Grace]: what is known of a value that lacks changes whose writers allow that for a while. Such a value
//     is not valid.
//   - [Follower]: the protocol as a pure state machine: events in, effects out. No clock, no socket,
//     no goroutine.
//   - [PostgresLog]: one poll of the log; [Migrate] installs the schema.
//   - [Hint] and [Bus]: news of a commit over NATS, in about a millisecond.
//   - [Generations]: which entries of a namespace count at all, as of the poll that told them.
//   - [Stamps]: what lets a hit in L1 learn of changes by a few atomic loads.
//   - [Tracker]: the shell that runs a Follower on real time, a log and a bus.
//
// # Who is trusted
//
// Postgres, as one primary at a time, with synchronous_commit on. Not trusted for correctness: NATS
// (a lost hint costs latency until the next poll), any clock but the local monotonic one, Redis, and
// other nodes. A hint can only make a value invalid, never valid.
//
// # Not promised
//
// Nothing holds under two primaries that both accept writes, after a crash with synchronous_commit
// off, for writers that bypass both the triggers and the log (as logical replication does when it
// applies rows, and ATTACH and DETACH of partitions), and for a machine whose clocks all stood still,
// until its first poll.
//
// A server that is put back to an earlier state without crash recovery, such as a copy of its files
// made while it was shut down, continues its timeline with ids that it has given before. A node that
// ran meanwhile sees that its polls or the values it served are ahead, and begins a new timeline; nodes
// that all started anew cannot see it. After such a restore: delete from freshet.timeline.
package coherence
