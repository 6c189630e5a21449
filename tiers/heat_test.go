package tiers

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/freshet-cache/freshet/coherence"
)

// Heat halves with every period, is gone after an hour or so, and does not overflow.
func TestHeatFades(t *testing.T) {
	var h heat
	at := func(periods int) coherence.Instant {
		return coherence.Instant(0).Add(heatHalf) * coherence.Instant(periods)
	}
	h.add(1000, at(3))
	for periods, want := range map[int]uint32{2: 1000, 3: 1000, 4: 500, 5: 250, 13: 0, 3 + 32: 0, 3 + 100: 0} {
		if got := h.at(at(periods)); got != want {
			t.Errorf("in period %d: %d, want %d", periods, got, want)
		}
	}
	if h.add(10, at(4)); h.at(at(4)) != 510 {
		t.Errorf("%d, want 510", h.at(at(4)))
	}
	h.add(1<<32-1, at(4))
	if got := h.at(at(4)); got != 1<<32-1 {
		t.Errorf("%d, want the most there is", got)
	}
}

// Of hits that come round in a circle, of whatever length, each item gets its part of the samples.
func TestSampledIsFair(t *testing.T) {
	for _, circle := range []int{1, 2, 7, heatSample, 2 * heatSample, 1000} {
		const rounds = 64 * heatSample
		counts := make([]int, circle)
		for n := range circle * rounds {
			if sampled(uint64(n + 1)) {
				counts[n%circle]++
			}
		}
		for i, n := range counts {
			if n < rounds/heatSample*3/4 || n > rounds/heatSample*5/4 {
				t.Fatalf("circle of %d: place %d was sampled %d times, want about %d", circle, i, n, rounds/heatSample)
			}
		}
	}
}

// The hottest are those that were read most, whatever came in last; among unread ones those that came in last;
// what has expired is not among them, and what replaces an item is as hot.
func TestHottest(t *testing.T) {
	onDesk(t, func(d *desk) {
		c := d.cache
		now := c.Tracker.Now()
		put := func(id string, revision uint64, expires coherence.Instant) {
			it := itemOf(0, 1, revision)
			it.expires = expires
			c.l1.put(id, it)
		}
		const items, hot = 2000, 100
		random := rand.New(rand.NewPCG(1, 1))
		for i := range items {
			put(fmt.Sprint(i), 1, now.Add(heatHalf))
		}
		for range 400 * heatSample {
			for range 10 {
				id := fmt.Sprint(random.IntN(hot))
				it, s := c.l1.get(id)
				s.hit(id, it, now)
			}
		}
		put("expired", 1, now-1)
		put("0", 2, now.Add(heatHalf))
		got := c.Hottest(hot)
		if len(got) != hot {
			d.t.Fatalf("%d ids, want %d", len(got), hot)
		}
		for i, h := range got {
			var n int
			if _, err := fmt.Sscan(h.ID, &n); err != nil || n >= hot {
				d.t.Errorf("place %d: %q with %d reads was hardly read", i, h.ID, h.Reads)
			}
			if i > 0 && h.Reads > got[i-1].Reads {
				d.t.Errorf("place %d has %d reads, the one before %d", i, h.Reads, got[i-1].Reads)
			}
			// 64,000 hits of 100 ids are 640 for each, 40 samples.
			if h.Reads < 250 || h.Reads > 1250 {
				d.t.Errorf("%q: about %d reads, want about 640", h.ID, h.Reads)
			}
		}
		if all := c.Hottest(10 * items); len(all) != items {
			d.t.Errorf("%d ids, want all %d that have not expired", len(all), items)
		}
		if none := c.Hottest(0); len(none) != 0 {
			d.t.Errorf("%d ids, want none", len(none))
		}
	})
}
