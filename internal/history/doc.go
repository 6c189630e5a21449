// Package history holds what happened in a run, writes it to files, and judges what a system answered against what
// Postgres committed. It is the one judge under the simulator, the faults on real processes and the comparison with other
// libraries.
//
// # What is known
//
// The commits of a key are totally ordered: by its row's lock, and so by the order in which an audit trigger or a model
// saw them. Each has a unique write (Op), which the row carries, so that an answer names the commit it shows. A commit
// happened not before its Sent and, if somebody was told, not after its Acked. The order tells more: it did not happen
// before one ahead of it was sent, and not after one behind it was acknowledged. So the places of a key, 0 = before its
// first commit, have earliest and latest times that both ascend.
//
// An answer shows the state of a place at some instant: of a FRESH one between Invoked less its budget and Returned, of a
// STALE one before Returned. It fits the places whose state it shows. A number fits one; that there is no such key fits
// every place at which it is absent, that a list lacks it every place outside of the group.
//
// # What is judged
//
//   - I1: a FRESH answer shows a place not before the last one that was acknowledged, or that any answer had shown to
//     anybody, before Invoked less its budget.
//   - I2: within a session no answer, FRESH or not, is behind what the session wrote, or was answered before.
//   - I3: FRESH answers of one replica for one key do not go back: one that was asked for after another was returned shows
//     no earlier place. A replica's lists are judged so among themselves, for each group.
//   - I4: an answer shows no place that had not been sent when it was returned, or that never was; in a list it shows
//     none outside of the group.
//   - I5: answers after the end, when nothing happens any more, show the last place of their key.
//   - I8: an answer about several keys as of one moment (a Joint) shows of each key a place at which it was at one
//     instant, between Invoked less the budget and Returned; its keys alone are judged for I1 and I4. What one write did to several keys happened at one
//     instant: an answer shows all of it or none.
//
// # Why it is sound and complete
//
// Every promise of I1 to I3 about an answer is a lower bound on its place: a number, or the place of an answer that was
// returned before this one was asked for. So the judge goes through the answers of a key in the order of Invoked and gives
// each the least place that fits and that no bound forbids. By induction that is not above the place that the answer truly
// was of, if the system keeps its promises, so the bounds that follow from it hold as well, and a correct system is never
// blamed. If one place only is left or none, nothing better can be said: when every answer has got a place, the places are
// a way in which the promises were kept, key by key. A broken promise stops there: the answer gets the least place that
// fits, so that it is not held against other answers.
//
// With a budget of 0 this is linearizability of single keys. Writes have one order, so what remains are instants for
// commits and reads with Sent <= commit <= Acked and each read between two commits. They exist if and only if no lower
// bound of a commit is above an upper bound of the same or a later one; there are four such pairs (acknowledged before an
// earlier one was sent, shown before it was sent, read below what was acknowledged, read below what another had read
// before), and the first is a broken history (Report.Disordered), the others I4 and I1.
//
// Instants are compared so that equal ones excuse: a commit may be seen at the very instant at which it is sent, and
// obliges nobody at the very instant of its acknowledgement.
//
// For I8 the rules are of the same kind: of an answer that shows some place of one key, the others must show at least
// what came with it by the same write, and what had been acknowledged before that place can have been reached. So the least
// places that fit all rules are found by raising, and if there is an instant, they are not above its own.
//
// # What is not judged
//
// Lists are judged key by key: that all keys of a list are of one instant is not, unless they are a part of a Joint. Nor is
// one key against another within a session, nor that one instant must explain two answers about several keys. What a failover has lost (see Options.Lossy) obliges nobody; answers that it may explain are counted as Excused
// and not judged further, and for that it may have done anything to the keys that it may have changed.
package history
