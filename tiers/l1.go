package tiers

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// item is an entry in memory: the value itself, decoded, and what decides whether it may be served.
// What a hit looks at stands first, on as few cache lines as may be.
type item[V any] struct {
	expires coherence.Instant
	// early is the instant before which a hit does nothing to refresh the item.
	early atomic.Int64
	// sum is the stamps' sum when the item was last found valid: as long as it stays, nothing has
	// changed.
	sum    atomic.Uint64
	stamps coherence.StampSet // of the scopes
	// promoted is the shard's clock when the item last moved to the front.
	promoted atomic.Uint64
	absent   bool // the source has no such thing
	tier     Tier // where it came from
	value    V
	version  uint64
	// loaded is when the load that made it began, if this process made it, and order that load's place
	// among the cache's reads and loads: the item is then known to reflect every commit before.
	// Otherwise noInstant and 0.
	loaded coherence.Instant
	order  uint64
	// checked is the send time of the poll against which the item was last found valid.
	checked atomic.Int64
	// retry is the instant before which a reader that may have the item as STALE does not ask the source
	// again: it has just failed.
	retry atomic.Int64
	heat  heat

	// generation under which it was loaded: the item is used as long as that is the namespace's.
	generation cluster.Generation

	snapshot coherence.Snapshot
	after    *coherence.Poll // of [Batch]
	tags     []coherence.ScopeHash
	scopes   []coherence.ScopeHash // entity, view, namespace, everything, tags
	size     int64                 // encoded bytes and what the entry takes beside them
	loadedAt time.Time             // wall clock of the load, for entries that travel on
	soft     time.Duration         // from loadedAt; behind it the item is to be refreshed
	ttl      time.Duration         // from loadedAt
	cost     time.Duration         // how long the load took
	place    int                   // among its shard's members, under that shard's lock
}

// noInstant is before every instant.
const noInstant = coherence.Instant(-1 << 62)

// itemOverhead is what an item takes beside its encoded bytes: the structs, the map and list cells,
// the slices. Measured as heap growth per entry of small values.
const itemOverhead = 640

// L1 is the tier in this process: golang-lru shards, each under its own lock, bounded in entries and
// in bytes. A hit moves its item to the front only when it has left the first eighth of its shard, so
// that hot items are read without a write.
type L1[V any] struct {
	seed   maphash.Seed
	mask   uint64
	shards []l1Shard[V]
}

type l1Shard[V any] struct {
	mu       sync.RWMutex
	lru      *simplelru.LRU[string, *item[V]]
	bytes    int64 // of the items in lru
	maxBytes int64
	// clock counts movements to the front; an item that was promoted less than near movements ago is
	// among the first near items, and a hit need not move it.
	clock atomic.Uint64
	near  uint64

	hits      atomic.Uint64 // counted here so that no counter is shared by all keys
	absences  atomic.Uint64 // hits that said absent
	evictions atomic.Uint64
	// members are the items in lru in no order, each at its place, so that any can be drawn at random. The lock
	// guards them, too; they stand behind what a hit looks at.
	members []member[V]
	_       [64]byte // keeps neighbours off this cache line
}

// member is an item with its id.
type member[V any] struct {
	id string
	it *item[V]
}

// These decide how many locks an L1 has: as many as the first allows while each shard has at least the
// second in entries and the third in bytes, since no item is larger than its shard.
const (
	maxShards     = 64
	minPerShard   = 128
	minShardBytes = 1 << 20
)

// newL1 makes an L1 of at most the given entries and bytes, both positive.
func newL1[V any](entries int, bytes int64) *L1[V] {
	n := 1
	for n < maxShards && entries/(2*n) >= minPerShard && bytes/int64(2*n) >= minShardBytes {
		n *= 2
	}
	l := &L1[V]{seed: maphash.MakeSeed(), mask: uint64(n - 1), shards: make([]l1Shard[V], n)}
	for i := range l.shards {
		s := &l.shards[i]
		s.maxBytes = bytes / int64(n)
		size := (entries + n - 1) / n
		s.near = uint64(size / 8)
		// The callback runs under the shard's lock, at every removal.
		s.lru, _ = simplelru.NewLRU(size, func(_ string, it *item[V]) { s.forget(it) }) // size > 0
	}
	return l
}

// forget takes an item that has left the lru out of the account. The caller holds mu.
func (s *l1Shard[V]) forget(it *item[V]) {
	s.bytes -= it.size
	last := len(s.members) - 1
	s.members[it.place] = s.members[last]
	s.members[it.place].it.place = it.place
	s.members[last] = member[V]{}
	s.members = s.members[:last]
}

func (l *L1[V]) shard(id string) *l1Shard[V] {
	return &l.shards[maphash.String(l.seed, id)&l.mask]
}

// get returns the id's item, nil if there is none, and its shard.
func (l *L1[V]) get(id string) (*item[V], *l1Shard[V]) {
	s := l.shard(id)
	s.mu.RLock()
	it, _ := s.lru.Peek(id)
	s.mu.RUnlock()
	return it, s
}

// hit counts a hit of the id's item and keeps the item near the front.
func (s *l1Shard[V]) hit(id string, it *item[V], now coherence.Instant) {
	if sampled(s.hits.Add(1)) {
		it.heat.add(heatSample, now)
	}
	if it.absent {
		s.absences.Add(1)
	}
	if s.clock.Load()-it.promoted.Load() >= s.near {
		s.promote(id)
	}
}

// promote moves the id's item to the front.
func (s *l1Shard[V]) promote(id string) {
	s.mu.Lock()
	if it, ok := s.lru.Get(id); ok {
		it.promoted.Store(s.clock.Add(1))
	}
	s.mu.Unlock()
}

// put stores the item unless it is too large for its shard or the one that is there is of a newer
// snapshot and of the same generation. An older one goes in either case: it must not be hit after the newer
// has been served. One of another generation goes, too, however new: it was given up, and whatever was
// found valid before generations changed is looked at again before it is hit. It reports whether the item
// is there now.
func (l *L1[V]) put(id string, it *item[V]) bool {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.lru.Peek(id); ok {
		if old.generation == it.generation && old.snapshot.Includes(it.snapshot) && !it.snapshot.Includes(old.snapshot) {
			return false
		}
		it.heat.inherit(&old.heat)
		s.lru.Remove(id)
	}
	if it.size > s.maxBytes {
		return false
	}
	for s.bytes+it.size > s.maxBytes {
		s.lru.RemoveOldest()
		s.evictions.Add(1)
	}
	if s.lru.Add(id, it) {
		s.evictions.Add(1)
	}
	s.bytes += it.size
	it.place = len(s.members)
	s.members = append(s.members, member[V]{id, it})
	it.promoted.Store(s.clock.Add(1))
	return true
}

// drop removes the item if it is still the id's.
func (l *L1[V]) drop(id string, it *item[V]) {
	s := l.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if there, _ := s.lru.Peek(id); there == it {
		s.lru.Remove(id)
	}
}

// draw returns up to n of the items, each as likely as any other, without a look at the rest: no shard is
// locked for longer than it takes to read one. It is R. W. Floyd's sample of different numbers (Bentley: A
// Sample of Brilliance, CACM 1987); only while items come and go may it return fewer, or one twice. random
// draws a number below its argument, from 0 on.
func (l *L1[V]) draw(n int, random func(int64) int64) []member[V] {
	before := make([]int, len(l.shards)+1) // items in the shards before each; all, in the end
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.RLock()
		before[i+1] = before[i] + len(s.members)
		s.mu.RUnlock()
	}
	total := before[len(l.shards)]
	n = min(n, total)
	drawn := make([]member[V], 0, n)
	taken := make(map[int]struct{}, n)
	for most := total - n; most < total; most++ {
		at := int(random(int64(most) + 1))
		if _, there := taken[at]; there {
			at = most
		}
		taken[at] = struct{}{}
		i, _ := slices.BinarySearch(before, at+1) // before[i] is the first above at
		s := &l.shards[i-1]
		s.mu.RLock()
		if place := at - before[i-1]; place < len(s.members) {
			drawn = append(drawn, s.members[place])
		}
		s.mu.RUnlock()
	}
	return drawn
}

// L1Stats describes an L1 by now.
type L1Stats struct {
	Entries, Bytes            int64
	Hits, Absences, Evictions uint64 // Absences are among the hits
}

func (l *L1[V]) stats() L1Stats {
	var sum L1Stats
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.RLock()
		sum.Entries += int64(s.lru.Len())
		sum.Bytes += s.bytes
		s.mu.RUnlock()
		sum.Hits += s.hits.Load()
		sum.Absences += s.absences.Load()
		sum.Evictions += s.evictions.Load()
	}
	return sum
}
