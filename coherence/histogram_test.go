package coherence

import (
	"slices"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	bounds := Bounds()
	if !slices.IsSorted(bounds[:]) || bounds[0] != 50*time.Microsecond || bounds[len(bounds)-1] != 5*time.Second {
		t.Fatalf("bounds %v; want them to rise from 50µs to 5s", bounds)
	}
	var h Histogram
	var want Durations
	for i, bound := range bounds {
		h.Observe(bound)
		h.ObserveMany(bound+1, 2)
		want.Counts[i]++
		want.Counts[i+1] += 2
		want.Sum += bound + 2*(bound+1)
	}
	h.Observe(-time.Second)
	want.Counts[0]++
	if got := h.Durations(); got != want {
		t.Errorf("got %+v; want %+v", got, want)
	}
	if n := want.Count(); n != uint64(3*len(bounds)+1) {
		t.Errorf("Count is %d", n)
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
