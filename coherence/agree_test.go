package coherence_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// I8: in random histories, with transactions that stay open, hints and a small directory, values agree only if
// each is what a read under the poll's snapshot finds; and after a poll they do if nothing has changed.
func TestI8Agree(t *testing.T) {
	counts := map[coherence.Agreement]int{}
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) { agreeAtRandom(t, rand.New(rand.NewPCG(seed, 0)), counts) })
	}
	for _, a := range []coherence.Agreement{coherence.Changed, coherence.Ahead, coherence.Agreed} {
		if counts[a] < 100 {
			t.Errorf("agreement %d came up %d times: the test shows little", a, counts[a])
		}
	}
}

func agreeAtRandom(t *testing.T, random *rand.Rand, counts map[coherence.Agreement]int) {
	t.Helper()
	const keys = 12
	log := logtest.NewMemory()
	tracker := startTracker(t, coherence.TrackerConfig{Log: log, Scopes: 8})
	barrier(t, tracker)
	scope := func(key int) coherence.Scope { return coherence.Entity("n", fmt.Sprint(key)) }
	changed := make([][]uint64, keys) // key -> its changes
	type transaction struct {
		*logtest.Tx
		keys []int
	}
	var open []transaction
	held := map[int]coherence.Holding{} // key -> a value of it
	read := func(key int) {
		hash := scope(key).Hash()
		held[key] = coherence.Holding{Value: hash, Scopes: []coherence.ScopeHash{hash}, Snapshot: log.Snapshot()}
	}
	// same reports whether the key's state was the same under both.
	same := func(key int, a, b coherence.Snapshot) bool {
		return !slices.ContainsFunc(changed[key], func(xid uint64) bool { return a.Sees(xid) != b.Sees(xid) })
	}
	for range 400 {
		switch n := random.IntN(12); {
		case n < 2 && len(open) < 4:
			tx := transaction{Tx: log.Begin()}
			for range 1 + random.IntN(3) {
				key := random.IntN(keys)
				tx.Change(scope(key))
				tx.keys = append(tx.keys, key)
			}
			open = append(open, tx)
		case n < 4 && len(open) > 0:
			i := random.IntN(len(open))
			tx := open[i]
			open = slices.Delete(open, i, i+1)
			for _, key := range tx.keys {
				changed[key] = append(changed[key], tx.XID())
			}
			tx.Commit()
			if random.IntN(2) == 0 {
				hint := coherence.Hint{Boot: 9, Timeline: 1, XID: tx.XID(), Scopes: []coherence.ScopeHash{scope(tx.keys[0]).Hash()}}
				tracker.Observe(coherence.HintHeard{Hint: hint})
			}
		case n < 5:
			barrier(t, tracker)
		case n < 9:
			read(random.IntN(keys))
		default:
			var some []int
			var values []coherence.Holding
			for key, value := range held {
				if random.IntN(6) == 0 {
					some, values = append(some, key), append(values, value)
				}
			}
			poll, agreement := tracker.Agree(values)
			counts[agreement]++
			for i, key := range some {
				if agreement == coherence.Agreed && !same(key, values[i].Snapshot, poll.Snapshot) {
					t.Fatalf("key %d of %s agrees with the poll at %s; it changed by %v", key, values[i].Snapshot, poll, changed[key])
				}
			}
		}
	}
	barrier(t, tracker)
	barrier(t, tracker)
	for key := range keys {
		read(key)
	}
	barrier(t, tracker)
	for key, value := range held {
		if poll, agreement := tracker.Agree([]coherence.Holding{value}); agreement != coherence.Agreed {
			t.Errorf("key %d of %s is %d with the poll at %s, which was sent after", key, value.Snapshot, agreement, poll)
		}
	}
}

// Values of another timeline than the poll's, or without any poll, may agree after another one.
func TestAgreeAcrossTimelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		barrier(t, tracker)
		log.Crash()
		value := []coherence.Holding{{Snapshot: log.Snapshot()}}
		if poll, agreement := tracker.Agree(value); poll == nil || agreement != coherence.Ahead {
			t.Errorf("before the poll notices: %v, %d", poll, agreement)
		}
		tracker.Observe(coherence.Wrote{}) // nothing is proven until a poll
		if poll, agreement := tracker.Agree(value); poll != nil || agreement != coherence.Ahead {
			t.Errorf("without a poll: %v, %d", poll, agreement)
		}
		if poll := barrier(t, tracker); poll.Timeline != 2 {
			t.Fatalf("the poll is at %s", poll)
		}
		if _, agreement := tracker.Agree(value); agreement != coherence.Agreed {
			t.Errorf("after the poll: %d", agreement)
		}
	})
}
