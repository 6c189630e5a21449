// Package history judges what a system answered against what Postgres committed. It is the one judge under the
// simulator, the faults on real processes and the comparison with other libraries.
//
// # What is known
//
// The commits of a key are totally ordered: by its row's lock, and so by the order in which an audit trigger or a model
// saw them. Each has a unique write (Op), which the row carries, so that an answer names the commit it shows. A commit
// happened after its Sent and, if somebody was told, before its Acked. An answer that shows it proves as much:
// it had happened when that answer was Returned. So each commit has an instant, the earlier of both, at which it is known
// to have happened; one that a later commit of the key is known at is known, too.
//
// # What is judged
//
//   - I1: a FRESH answer that was asked for at t with budget B shows a commit no earlier than the last one known to have
//     happened before t-B. With a budget of 0 this is linearizability of single keys: all writes are unique and totally
//     ordered, so a history is linearizable if each read lies between what was known when it began and what had been sent
//     when it returned, for known includes what any earlier read has shown.
//   - I2: within a session no answer, FRESH or not, is behind what the session wrote or was answered before.
//   - I3: FRESH answers of one replica for one key do not go back: one that was asked for after another was returned shows
//     no earlier commit.
//   - I4: no answer shows a commit that was sent after it was returned, or that never happened; a list shows no key in a
//     group that it did not belong to, or lacks none that belonged to it throughout.
//   - I5: answers after the end, when nothing happens any more, show the last commit of their key.
//
// An answer that there is no such key fits every commit that leaves it absent. Where several fit, the one is taken
// that blames the system least. So a correct system is never blamed, whatever the scheduling of the observers: Sent,
// Acked, Invoked and Returned only bound the instants at which things happened, and every comparison is strict.
//
// # What is not
//
// Lists are judged key by key: that all keys of a list are of one instant is not. Lost commits (acknowledged, and gone
// after a failover that lost its tail) bound nothing, and may be shown until the failover's end and the budget have passed.
package history
