// Package verify puts a cache under load and under faults, on real servers and with replicas as real
// processes, and shows what it answered to the judge of internal/history.
//
// # Model
//
// The system under test is a [Subject]: one replica of it, which reads rows and lists and writes rows.
// Postgres is the authority: a trigger writes every change of a row into an audit table, in the
// writer's own transaction, and the order of that table is the order of commits, whoever wrote, by
// whatever statement, and whether or not anybody lived to tell. Replicas are processes: the program
// starts itself again for each, and calls [RunReplica] there. Each replica reaches each server through
// proxies of its own, so that it alone can be cut off. All processes run on one host and read one clock,
// CLOCK_MONOTONIC.
//
// A run is a series of phases, one for each fault: load without the fault, with it, and after it; then
// the load stops, every replica is asked for every row and every list, and so is a new one, which finds
// them in Redis; and all answers are judged. Of a replica that is killed only the last reads are unknown.
//
// # Not promised
//
// What no answer shows is not seen: a phase judges what its reads met. The load is random by a seed;
// the scheduling of processes is the machine's, so a seed repeats what is asked but not the outcome.
package verify
