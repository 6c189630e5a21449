package node_test

import (
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Row 22: an L1 in each replica over the L2 of all, coherent under reads and writes, also while a replica is cut
// off from NATS; within its entries and its bytes at any moment; the answers of each tier counted.
func TestRow22TwoTiers(t *testing.T) {
	const entries, bytes, keys = 64, 40_000, 90
	s := newSite(t)
	proxy, err := devstack.NewProxy(strings.TrimPrefix(stacktest.Stack().NATS.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	var opened int
	r := s.openAll(3, func(c *node.Config, cache *node.CacheConfig[Thing]) {
		cache.Tags, cache.MaxEntries, cache.MaxBytes = nil, entries, bytes
		if opened++; opened == 3 {
			c.NATS.URLs = []string{"nats://" + proxy.Addr()}
			cache.MaxBytes = bytes / 2 // which are fewer than the entries
		}
	})

	// What one has loaded the others find in L2, and then in their L1.
	for _, want := range []node.Tier{node.TierSource, node.TierL1} {
		if e := s.get(r[0], thing(200)); e.Tier != want {
			t.Errorf("the first to read was answered from %v, want %v", e.Tier, want)
		}
	}
	s.until("L2 has it", func() bool { return s.get(r[1], thing(200)).Tier != node.TierSource })
	if e := s.get(r[1], thing(200)); e.Tier != node.TierL1 {
		t.Errorf("the second was answered from %v the second time", e.Tier)
	}
	if n := sum(r, loads); n != 1 {
		t.Errorf("%d loads of one thing", n)
	}

	f := s.traffic(r, trafficConfig{keys: keys, writers: 2})
	var fullest int64 // the most bytes of the last replica's L1
	bounded := func() {
		for i, r := range r {
			st := r.of()
			if most := []int64{bytes, bytes, bytes / 2}[i]; st.L1Entries > entries || st.L1Bytes > most || st.L1Bytes < 0 {
				t.Errorf("replica %d: %d entries of %d, %d bytes of %d", i, st.L1Entries, entries, st.L1Bytes, most)
			}
		}
		fullest = max(fullest, r[2].of().L1Bytes)
	}
	goOn := func() {
		t.Helper()
		goal := f.reads.Load() + 3000
		s.until("reads go on", func() bool { bounded(); return f.reads.Load() >= goal })
	}
	goOn()
	proxy.Cut()
	s.changeSeen(r[0], thing(199), r[2]) // by a poll
	goOn()
	proxy.Heal()
	s.until("members see each other again", func() bool { return len(r[2].Stats().Members) == 3 })
	goOn()
	f.stop()
	f.noneFailed()

	for i, r := range r {
		st := r.of()
		if st.L1Hits == 0 || st.L2Hits == 0 || st.L1Evictions == 0 {
			t.Errorf("replica %d: %d hits in L1, %d in L2, %d evictions; want some of each", i, st.L1Hits, st.L2Hits, st.L1Evictions)
		}
		if all := st.L1Hits + st.L2Hits + st.OwnerHits + st.SourceHits + st.Errors; all != st.Reads || st.Reads != st.Fresh+st.Stale+st.Errors {
			t.Errorf("replica %d: its reads are not the sum of its answers: %+v", i, st)
		}
		t.Logf("replica %d: L1 %.2f, L2 %.2f of the rest; %d entries, %d bytes", i, float64(st.L1Hits)/float64(st.Reads),
			float64(st.L2Hits)/float64(max(st.Reads-st.L1Hits, 1)), st.L1Entries, st.L1Bytes)
	}
	if fullest < bytes/4 {
		t.Errorf("the smallest L1 held %d bytes at most: the test shows nothing", fullest)
	}
}
