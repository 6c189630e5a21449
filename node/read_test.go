package node_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// The way of an entry through the tiers: the source once, then L1, and L2 for another replica.
func TestReadThroughTiers(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)

	first := s.get(r[0], "thing-1")
	if first.Tier != node.TierSource || !first.Fresh || first.Value.Name != "name 1" {
		t.Fatalf("first read: %+v", first)
	}
	if again := s.get(r[0], "thing-1"); again.Tier != node.TierL1 || !again.Fresh || again.Version != first.Version {
		t.Errorf("second read: %+v", again)
	}
	s.until("the entry is in L2", func() bool {
		e := s.get(r[1], "thing-1")
		if e.Tier == node.TierSource {
			t.Fatalf("the other replica loaded what L2 has")
		}
		return e.Value == first.Value && e.Version == first.Version
	})
	if _, err := r[0].things.Lookup(t.Context(), "nothing"); !errors.Is(err, node.ErrNotFound) {
		t.Errorf("missing thing: %v", err)
	}
	loads := r[0].Stats().Namespaces[0].Loads
	if e, err := r[0].things.Lookup(t.Context(), "nothing"); !errors.Is(err, node.ErrNotFound) || e.Tier != node.TierL1 || !e.Fresh {
		t.Errorf("missing thing again: %+v, %v", e, err)
	}
	if now := r[0].Stats().Namespaces[0].Loads; now != loads {
		t.Errorf("a negative entry was loaded again")
	}
}

// I2: also a STALE answer's token covers the one that the read carried, so that a session which keeps only the
// latest does not go back behind its own write.
func TestI2TokenOfAStaleAnswerCoversTheSessions(t *testing.T) {
	s := newSite(t)
	r := s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) { c.MaxStale = time.Minute })
	s.ready(r)
	s.get(r, "thing-46")
	token, err := r.Write(t.Context(), func(tx *node.Tx) error {
		_, err := tx.Exec(`update things set revision = revision + 1 where id = 'thing-2'`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if e := s.get(r, "thing-46", node.AtLeast(token)); !e.Fresh {
		t.Fatalf("after the write: %+v", e)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel() // nothing can be proven any more
	e, err := r.things.Lookup(gone, "thing-46", node.Within(0), node.AtLeast(token))
	if err != nil || e.Fresh {
		t.Fatalf("want a STALE answer: %+v, %v", e, err)
	}
	if covers := e.Token.Merge(token); e.Token.String() != covers.String() {
		t.Errorf("the answer's token %v does not cover that of the write, %v", e.Token, token)
	}
}

// I2: who writes on a replica reads it there at once, and anywhere with the token.
func TestI2ReadYourWrites(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	for i := range 50 {
		s.get(r[0], "thing-2")
		s.get(r[1], "thing-2")
		var want int64
		token, err := r[0].Write(t.Context(), func(tx *node.Tx) error {
			return tx.GetContext(t.Context(), &want, `update things set revision = revision + 1 where id = 'thing-2' returning revision`)
		})
		if err != nil {
			t.Fatal(err)
		}
		if e := s.get(r[0], "thing-2"); e.Value.Revision != want || !e.Fresh {
			t.Fatalf("write %d: own replica answers %+v, want revision %d", i, e, want)
		}
		text := token.String()
		carried, err := node.ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		if e := s.get(r[1], "thing-2", node.AtLeast(carried)); e.Value.Revision != want || !e.Fresh {
			t.Fatalf("write %d: other replica with token answers %+v, want revision %d", i, e, want)
		}
	}
}

// I1 with budget 0: every acknowledged commit of anybody shows in the next read.
func TestI1BudgetZeroIsLinearizable(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	for want := int64(2); want < 50; want++ {
		s.exec(`update things set revision = $1 where id = 'thing-3'`, want)
		for _, r := range r {
			if e := s.get(r, "thing-3", node.Within(0)); e.Value.Revision != want || !e.Fresh {
				t.Fatalf("read after commit: %+v, want revision %d", e, want)
			}
		}
	}
}

// A change by another service, without any hint, is seen within two poll intervals.
func TestOutsideWritesAreSeen(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)[0]
	s.get(r, "thing-4")
	for want := int64(2); want < 6; want++ {
		s.exec(`update things set revision = $1 where id = 'thing-4'`, want)
		began := time.Now()
		s.until("the change is seen", func() bool { return s.get(r, "thing-4").Value.Revision == want })
		if took := time.Since(began); took > 600*time.Millisecond {
			t.Errorf("change seen after %v", took)
		}
	}
}

// Tags: one row invalidates every entry that has the tag.
func TestTags(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)[0]
	ids := []string{"thing-10", "thing-20", "thing-30", "thing-11"}
	entries, err := r.things.GetMany(t.Context(), ids)
	if err != nil || len(entries) != len(ids) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if _, err := r.InvalidateTag(t.Context(), []string{"kind:kind-0"}); err != nil {
		t.Fatal(err)
	}
	before := r.Stats().Namespaces[0].Loads
	if entries, err = r.things.GetMany(t.Context(), ids); err != nil || len(entries) != len(ids) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if loads := r.Stats().Namespaces[0].Loads - before; loads != 3 {
		t.Errorf("%d loads after the tag of 3 entries changed", loads)
	}
	if entries["thing-11"].Tier != node.TierL1 {
		t.Errorf("an entry without the tag came from %v", entries["thing-11"].Tier)
	}
}
