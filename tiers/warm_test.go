package tiers

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// What is warmed is in L1, at the price of one load for all of it, and none of the counts of reads.
func TestWarm(t *testing.T) {
	onDesk(t, func(d *desk) {
		c, want := d.cache, Want{Budget: time.Minute}
		if _, err := c.Lookup(d.t.Context(), "b", want); err != nil {
			d.t.Fatal(err)
		}
		ids := []string{"a", "b", "nothing", "\xff"}
		cold := c.Cold(ids, want)
		if !slices.Equal(cold, []string{"a", "nothing", "\xff"}) {
			d.t.Errorf("cold are %q", cold)
		}
		before := c.Stats()
		w, err := c.Warm(d.t.Context(), cold, want)
		if !errors.Is(err, ErrBadID) || w.Loaded != 2 || w.Failed != 1 || w.Bytes < 2*itemOverhead {
			d.t.Errorf("%+v, %v; want 2 loaded and the bad id failed", w, err)
		}
		after := c.Stats()
		if after.Loads-before.Loads != 2 || after.Reads != before.Reads || after.Errors != before.Errors {
			d.t.Errorf("before %+v, after %+v: want 2 loads and no reads", before, after)
		}
		if d.loads != 2 {
			d.t.Errorf("the source was asked %d times, want once for b and once for all others", d.loads)
		}
		if cold := c.Cold(ids, want); !slices.Equal(cold, []string{"\xff"}) {
			d.t.Errorf("afterwards cold are %q", cold)
		}
		d.mu.Lock()
		d.fail = errors.New("planted")
		d.mu.Unlock()
		if w, err := c.Warm(d.t.Context(), []string{"c", "d"}, want); err == nil || w != (Warmed{Failed: 2}) {
			d.t.Errorf("of a source that fails: %+v, %v", w, err)
		}
		if w, err := c.Warm(d.t.Context(), nil, want); err != nil || w != (Warmed{}) {
			d.t.Errorf("of nothing: %+v, %v", w, err)
		}
	})
}
