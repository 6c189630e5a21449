package tiers

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// heat is about how many reads have found an item in L1 of late: what was counted halves every heatHalf. An
// item that replaces another of its id inherits it. It stands in the item, so it needs no table and no lock
// of its own, is bounded as L1 is, and knows of every id that a peer could have use for.
//
// The upper half of the word is the period in which it was last changed, the lower half the reads.
type heat struct{ word atomic.Uint64 }

const (
	// heatHalf is the length of a period. After an hour a 4096th is left.
	heatHalf = 5 * time.Minute
	// heatSample is the hits for which the one stands that is counted: a count at each would have all
	// readers of a hot item write to its memory.
	heatSample = 16
)

// sampled reports whether the n-th hit is the one of heatSample that is counted. The multiples of the golden
// ratio spread evenly, and do so among any that are equally far apart: reads that come round in a circle
// are all met.
func sampled(n uint64) bool { return n*0x9e3779b97f4a7c15 < 1<<64/heatSample }

// add counts reads. Of two at once one may be lost: it is an estimate.
func (h *heat) add(reads uint32, now coherence.Instant) {
	total := h.at(now) + reads
	if total < reads {
		total = 1<<32 - 1
	}
	h.word.Store(uint64(period(now))<<32 | uint64(total))
}

// at is the heat by now.
func (h *heat) at(now coherence.Instant) uint32 {
	word := h.word.Load()
	then := uint32(word >> 32)
	return uint32(word) >> (max(period(now), then) - then) // 0 after 32 periods
}

func period(now coherence.Instant) uint32 { return uint32(now / coherence.Instant(heatHalf)) }

func (h *heat) inherit(from *heat) { h.word.Store(from.word.Load()) }

// Hot is an id with about how many reads of it were answered from L1 of late.
type Hot struct {
	ID    string
	Reads uint32
}

// Hottest returns up to n of the ids that L1 could answer, those first that were read most of late, and
// of those that were read alike the ones that were used last. It looks at every entry, one shard after the
// other, each under its lock for reading: for who asks seldom.
func (c *Cache[V]) Hottest(n int) []Hot {
	if n <= 0 {
		return nil
	}
	now := c.Tracker.Now()
	var found []hotItem
	for i := range c.l1.shards {
		if found = c.l1.shards[i].appendHot(found, now); len(found) > 2*n {
			found = hottest(found, n)
		}
	}
	found = hottest(found, n)
	hot := make([]Hot, len(found))
	for i, f := range found {
		hot[i] = f.Hot
	}
	return hot
}

// hotItem is an id of a shard.
type hotItem struct {
	Hot
	place int // 0 = the last used of its shard
}

func (s *l1Shard[V]) appendHot(found []hotItem, now coherence.Instant) []hotItem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ids := s.lru.Keys() // the last used at the end
	for i, id := range ids {
		if it, ok := s.lru.Peek(id); ok && now < it.expires {
			found = append(found, hotItem{Hot{id, it.heat.at(now)}, len(ids) - 1 - i})
		}
	}
	return found
}

// hottest are the first n in order, in the same memory.
func hottest(found []hotItem, n int) []hotItem {
	slices.SortFunc(found, func(a, b hotItem) int {
		return cmp.Or(cmp.Compare(b.Reads, a.Reads), cmp.Compare(a.place, b.place))
	})
	return found[:min(n, len(found))]
}
