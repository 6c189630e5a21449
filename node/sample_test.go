package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A row that changes past the log is found by the sample of each replica, one after the other, told once, and replaced
// in L1 and in L2. Without Postgres nothing is said of any entry, in bounded time.
func TestVirtualVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		for key := range uint64(worldKeys) {
			if _, err := w.write(t.Context(), nil, key, 0); err != nil {
				t.Fatal(err)
			}
		}
		rest(2 * worldGrace)
		fill := func(v *virtual) {
			for key := range uint64(worldKeys) {
				v.read(t.Context(), key, 0, Token{}, anyBudget, 0)
			}
		}
		for _, v := range w.replicas {
			fill(v)
		}
		first := w.replicas[0]
		if r, err := first.node.VerifySample(t.Context(), MaxVerify); err != nil || r.Checked != worldKeys {
			t.Fatalf("%+v, %v", r, err)
		}

		first.log.Cut(true)
		before, began := first.node.Stats().Namespaces[0], w.now()
		r, err := first.node.VerifySample(t.Context(), MaxVerify)
		if took := w.now() - began; err == nil || r.Failed != worldKeys || r.Checked+r.Moved+len(r.Mismatches) > 0 || took > 3*time.Second {
			t.Errorf("without Postgres, after %v: %+v, %v", took, r, err)
		}
		if s := first.node.Stats().Namespaces[0]; s.VerifyFailed < before.VerifyFailed+worldKeys {
			t.Errorf("%d failed after %d", s.VerifyFailed, before.VerifyFailed)
		}
		first.log.Cut(false)
		rest(2 * time.Second)

		const key, odd = 3, 999
		fill(first)
		w.mu.Lock()
		w.rows[key] = odd // and no row of the log
		w.mu.Unlock()
		r, err = first.node.VerifySample(t.Context(), MaxVerify)
		if m := first.node.Mismatches(); err != nil || len(m) != 1 || m[0].ID != rowID(key) || r.Checked < worldKeys-1 {
			t.Fatalf("%+v, %v; kept %+v", r, err, m)
		}
		value := func(v *virtual) (uint64, Tier) {
			e, err := v.rows.Lookup(t.Context(), rowID(key))
			if err != nil {
				t.Error(err)
			}
			return e.Value.Op, e.Tier
		}
		if op, tier := value(first); op != odd || tier != TierL1 {
			t.Errorf("afterwards %d from %v", op, tier)
		}
		late := w.open()
		defer late.node.Close()
		if op, tier := value(late); op != odd || tier != TierL2 {
			t.Errorf("on a replica that comes later %d from %v", op, tier)
		}
		rest(2 * time.Second) // each takes a sample of all by then
		for _, v := range w.replicas {
			if op, _ := value(v); op != odd {
				t.Errorf("after the samples of each: %d on replica %d", op, v.number)
			}
			if s, m := v.node.Stats().Namespaces[0], v.node.Mismatches(); s.Mismatched != 1 || len(m) != 1 {
				t.Errorf("replica %d has found %d: %+v", v.number, s.Mismatched, m)
			}
			if err := v.node.Close(); err != nil {
				t.Error(err)
			}
		}
		w.hub.Close()
		for _, entries := range []int{-1, 0, MaxVerify + 1} {
			if _, err := first.node.VerifySample(t.Context(), entries); err == nil || !strings.Contains(err.Error(), "want 1 to 10000") {
				t.Errorf("%d entries: %v", entries, err)
			}
		}
		if _, err := first.node.VerifySample(t.Context(), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("when closed: %v", err)
		}
	})
}

// The mismatches that are kept are the last ones, the newest first.
func TestMismatchesAreBounded(t *testing.T) {
	n := &Node{verifier: newVerifier()}
	for i := range maxMismatches + 50 {
		n.verifier.keep(Mismatch{ID: fmt.Sprint(i)})
	}
	if m := n.Mismatches(); len(m) != maxMismatches || m[0].ID != "149" || m[maxMismatches-1].ID != "50" {
		t.Errorf("%d kept, %s to %s", len(m), m[0].ID, m[len(m)-1].ID)
	}
}

// sized is a cache with so many entries.
type sized struct {
	cache
	entries int
}

func (s sized) Verifiable() int { return s.entries }

// A sample takes something of every cache, no more than there is, and the rest from where the entries are.
func TestVerifyShares(t *testing.T) {
	n := &Node{caches: map[cacheName]known{}}
	for view, entries := range map[string]int{"large": 9000, "middle": 900, "small": 3, "none": 0} {
		n.caches[cacheName{"x", view}] = known{cache: sized{entries: entries}}
	}
	for entries, want := range map[int]map[string][2]int{
		1:      {},
		3:      {"large": {1, 1}, "middle": {1, 1}, "small": {1, 1}},
		503:    {"large": {400, 490}, "middle": {10, 101}, "small": {1, 3}},
		10_000: {"large": {9000, 9000}, "middle": {900, 900}, "small": {3, 3}},
	} {
		total, got := 0, map[string]int{}
		for _, s := range n.shares(entries) {
			total += s.entries
			got[s.name.view] = s.entries
		}
		if total != min(entries, 9903) || got["none"] != 0 {
			t.Errorf("%d entries: %v", entries, got)
		}
		for view, bounds := range want {
			if got[view] < bounds[0] || got[view] > bounds[1] {
				t.Errorf("%d entries: %d of %s; want %v", entries, got[view], view, bounds)
			}
		}
	}
}
