package tiers

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/freshet-cache/freshet/coherence"
)

func itemOf(value int, size int64, xmax uint64) *item[int] {
	return &item[int]{value: value, size: size, snapshot: coherence.Snapshot{Timeline: 1, Xmin: xmax, Xmax: xmax}}
}

// An L1 stays within its entries and its bytes whatever is put into it, and accounts for them exactly.
func TestL1Bounds(t *testing.T) {
	const entries, bytes = 300, 50_000
	l := newL1[int](entries, bytes)
	random := rand.New(rand.NewPCG(1, 2))
	sizes := map[string]int64{}
	for i := range 20_000 {
		id := fmt.Sprint(random.IntN(1000))
		size := 1 + random.Int64N(2000)
		if l.put(id, itemOf(i, size, uint64(i+1))) {
			sizes[id] = size
		}
		if s := l.stats(); s.Bytes > bytes || s.Entries > entries+maxShards {
			t.Fatalf("after %d steps: %+v", i, s)
		}
	}
	var sum int64
	for id, size := range sizes {
		if it, _ := l.get(id); it != nil {
			if it.size != size {
				t.Errorf("%s has size %d, want %d", id, it.size, size)
			}
			sum += size
		}
	}
	if s := l.stats(); s.Bytes != sum {
		t.Errorf("accounts for %d bytes, holds %d", s.Bytes, sum)
	}
}

// A value that is larger than its shard is not stored and pushes nothing out.
func TestL1TooLarge(t *testing.T) {
	l := newL1[int](10, 1000)
	l.put("a", itemOf(1, 900, 1))
	if l.put("b", itemOf(2, 1001, 2)) {
		t.Error("stored more than its bytes")
	}
	if it, _ := l.get("a"); it == nil {
		t.Error("pushed another out")
	}
}

// Few bytes are not cut into shards in which no value of some size has room.
func TestL1ShardsHaveRoom(t *testing.T) {
	if l := newL1[int](100_000, 10<<20); !l.put("a", itemOf(1, 1<<20, 1)) {
		t.Errorf("1 MiB has no room in 10 MiB of %d shards", len(l.shards))
	}
	if l := newL1[int](100_000, 64<<20); len(l.shards) != maxShards {
		t.Errorf("%d shards by default, want %d", len(l.shards), maxShards)
	}
}

// An older value does not replace a newer one.
func TestL1KeepsTheNewer(t *testing.T) {
	l := newL1[int](10, 1000)
	l.put("a", itemOf(2, 1, 20))
	if l.put("a", itemOf(1, 1, 10)) {
		t.Error("an older value replaced a newer one")
	}
	if it, _ := l.get("a"); it.value != 2 {
		t.Errorf("value %d, want 2", it.value)
	}
	if !l.put("a", itemOf(3, 1, 20)) {
		t.Error("a value of the same snapshot was refused")
	}
}

// The hit ratio on a skewed load is that of a plain LRU of the same size, within half a point: items
// near the front are read without being moved, and the shards are not exactly balanced.
func TestL1HitRatioIsThatOfLRU(t *testing.T) {
	const size, keys, reads = 2048, 20_000, 300_000
	l := newL1[int](size, 1<<40)
	plain, err := lru.New[string, int](size)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	zipf := rand.NewZipf(random, 1.05, 10, keys-1)
	var ours, theirs int
	for i := range reads {
		id := fmt.Sprint(zipf.Uint64())
		if it, s := l.get(id); it != nil {
			ours++
			if s.clock.Load()-it.promoted.Load() >= s.near {
				s.promote(id)
			}
		} else {
			l.put(id, itemOf(i, 1, uint64(i+1)))
		}
		if _, ok := plain.Get(id); ok {
			theirs++
		} else {
			plain.Add(id, i)
		}
	}
	if diff := float64(ours-theirs) / reads; diff < -0.005 || diff > 0.005 {
		t.Errorf("hit ratio %.4f, that of a plain LRU is %.4f", float64(ours)/reads, float64(theirs)/reads)
	}
}

// Reads and writes from many goroutines leave the accounting exact.
func TestL1Concurrent(t *testing.T) {
	l := newL1[int](256, 10_000)
	var work sync.WaitGroup
	for g := range 4 {
		work.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 5))
			for i := range 5000 {
				id := fmt.Sprint(random.IntN(500))
				it, s := l.get(id)
				if it == nil || i%7 == 0 {
					l.put(id, itemOf(i, 1+random.Int64N(100), uint64(i+1)))
				} else if i%11 == 0 {
					l.drop(id, it)
				} else {
					s.promote(id)
				}
				if i%100 == 0 {
					l.draw(10, random.Int64N)
				}
			}
		})
	}
	work.Wait()
	for i := range l.shards {
		s := &l.shards[i]
		var sum int64
		for _, it := range s.lru.Values() {
			sum += it.size
		}
		if sum != s.bytes {
			t.Errorf("shard %d accounts for %d bytes, holds %d", i, s.bytes, sum)
		}
		if len(s.members) != s.lru.Len() {
			t.Errorf("shard %d has %d members of %d", i, len(s.members), s.lru.Len())
		}
		for place, m := range s.members {
			if it, _ := s.lru.Peek(m.id); it != m.it || it.place != place {
				t.Errorf("shard %d: %q at %d is another item", i, m.id, place)
			}
		}
	}
}
