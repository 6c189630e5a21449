package coherence_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

// What a directory remembers for explanations takes no room.
func TestDirectoryCellSize(t *testing.T) {
	if coherence.CellBytes != 64 {
		t.Errorf("a scope takes %d bytes, want 64: a cache line", coherence.CellBytes)
	}
}

// A tracker says of a value what it is refused for, by which scope and transaction, and since when it knows: what it has
// heard as a hint keeps its time when the poll brings it, too.
func TestTrackerExplains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemory()
		log.Delay(time.Millisecond) // the first poll is not back before this test waits
		tracker := startTracker(t, coherence.TrackerConfig{Log: log})
		entity, tag, other := coherence.Entity("product", "42"), coherence.Tag("category:7"), coherence.Entity("product", "43")
		value := coherence.View("product", "42", "detail").Hash()
		scopes := []coherence.ScopeHash{entity.Hash(), value, tag.Hash()}
		old := log.Snapshot()
		if s := tracker.Explain(value, scopes, old); s.Refused != coherence.RefusedHistory || s.Scope != 0 {
			t.Errorf("before any poll: %+v", s)
		}
		log.Delay(0)
		barrier(t, tracker)
		agree := func(snapshot coherence.Snapshot) coherence.Standing {
			t.Helper()
			s := tracker.Explain(value, scopes, snapshot)
			if valid := tracker.Valid(value, scopes, snapshot); valid != (s.Refused == coherence.NotRefused) {
				t.Fatalf("valid %t, explained as %+v", valid, s)
			}
			if r := tracker.Refusal(value, scopes, snapshot); r.Refused != s.Refused || r.Scope != s.Scope || r.By != s.By {
				t.Fatalf("refused as %+v, explained as %+v", r, s)
			}
			return s
		}
		if s := agree(old); s.Refused != coherence.NotRefused || s.Scope != -1 || s.By != (coherence.ScopeStanding{}) {
			t.Errorf("before any change: %+v", s)
		}
		if s := agree(coherence.Snapshot{}); s.Refused != coherence.RefusedHistory {
			t.Errorf("a value of no history: %+v", s)
		}

		pass(3 * time.Second)
		heard := tracker.Now()
		xid := log.Commit(tag)
		tracker.Observe(coherence.HintHeard{Hint: coherence.Hint{Boot: 2, Seq: 1, Timeline: old.Timeline, XID: xid, Scopes: scopes[2:]}})
		pass(2 * time.Second)
		s := agree(old)
		if by := s.By; s.Refused != coherence.RefusedChanged || s.Scope != 2 || by.Lacks != xid || by.Last != xid || heard.Sub(by.Heard).Abs() > 10*time.Millisecond {
			t.Errorf("after a hint of %d at %v, and polls: %+v", xid, heard, s)
		}
		now := log.Snapshot()
		if s := agree(now); s.Refused != coherence.NotRefused || s.Scopes[2].Last != xid || s.Scopes[2].Lacks != 0 {
			t.Errorf("a value that sees it: %+v", s)
		}

		log.Commit(other)
		newer := log.Snapshot()
		if !tracker.Admit(value, scopes, newer) {
			t.Fatal("the newer is not admitted")
		}
		if s := agree(now); s.Refused != coherence.RefusedNoted || s.Scope != -1 {
			t.Errorf("after a newer one was served: %+v", s)
		}
		barrier(t, tracker)

		since := tracker.Now()
		tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{entity.Hash(): since})
		if s := agree(newer); s.Refused != coherence.RefusedDoubt || s.Scope != 0 || s.By.Since != since {
			t.Errorf("in doubt: %+v", s)
		}
		tracker.Doubt(nil)

		tx := log.Begin()
		tx.Grace(time.Minute)
		tx.Change(entity)
		tx.Commit()
		barrier(t, tracker)
		s = agree(newer)
		if by := s.By; s.Refused != coherence.RefusedGrace || by.Lacks != tx.XID() || by.Last != tx.XID() || by.Grace.Until.Sub(tracker.Now()) > time.Minute {
			t.Errorf("in a grace: %+v", s)
		}
		pass(61 * time.Second)
		if s := agree(newer); s.Refused != coherence.RefusedChanged || s.By.Lacks != tx.XID() {
			t.Errorf("after it: %+v", s)
		}
		pass(time.Second)
		if by := agree(newer).By; by.Last != tx.XID() || tracker.Now().Sub(by.Heard) < time.Minute {
			t.Errorf("after it, and a poll: %+v", by)
		}
	})
}

// What a directory looks at as changed, since it may have missed something, it says since when.
func TestDirectoryExplainsFlush(t *testing.T) {
	log, dir := logtest.NewMemory(), coherence.NewDirectory(1)
	old := log.Snapshot()
	dir.Reset(old)
	dir.Polled(old, 5, dir.Sent(), nil)
	log.Commit(coherence.Entity("n", "0"))
	dir.At(7)
	dir.Flush(log.Snapshot())
	if s := dir.Explain(coherence.Entity("n", "1").Hash(), old, 9); s.Refused != coherence.RefusedFlushed || s.Since != 7 {
		t.Errorf("after a flush: %+v", s)
	}
	// More scopes than there is room for: those that must be dropped are refused from the last poll that knew them.
	dir.Reset(old)
	poll := dir.Polled(old, 5, dir.Sent(), nil)
	for i := range 9 {
		r, err := log.Poll(t.Context(), poll.Snapshot, 10)
		if err != nil {
			t.Fatal(err)
		}
		poll = dir.Polled(r.Snapshot, coherence.Instant(10+i), dir.Sent(), r.Changes)
		log.Commit(coherence.Entity("n", string(rune('0'+i))))
	}
	r, err := log.Poll(t.Context(), poll.Snapshot, 10)
	if err != nil {
		t.Fatal(err)
	}
	dir.Polled(r.Snapshot, 20, dir.Sent(), r.Changes)
	if s := dir.Explain(coherence.Entity("n", "never changed").Hash(), old, 30); s.Refused != coherence.RefusedForgotten || s.Since == 0 || s.Last != 0 {
		t.Errorf("after more changes than there is room for: %+v", s)
	}
}
