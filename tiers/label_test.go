package tiers

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// Every read is counted once, also that of something absent that is asked of [Cache.Hit] first.
func TestReadsAreCountedOnce(t *testing.T) {
	onDesk(t, func(d *desk) {
		for range 3 {
			for _, id := range []string{"a", "none"} {
				if _, ok := d.cache.Hit(id, time.Second); !ok { // as Get does
					d.read(id, second)
				}
			}
		}
		if s := d.cache.Stats(); s.Reads != 6 || s.Negative != 3 || s.L1Hits != 4 || s.SourceHits != 2 {
			d.t.Errorf("after 6 reads: %+v", s)
		}
	})
}

// I2: after a write that the directory cannot hold, such as one of too many scopes, what was loaded a
// moment before it is not FRESH, whatever the budget.
func TestI2RecentLoadWithoutAPoll(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		away := errors.New("connection refused")
		d.log.Fail(away)
		d.mu.Lock()
		d.fail = away
		d.mu.Unlock()
		d.write("a", 10)
		d.tracker.Observe(coherence.Wrote{})
		if r, err := d.cache.Lookup(d.t.Context(), "a", second); !errors.Is(err, ErrUncertain) {
			d.t.Errorf("the writer reads %+v, %v", r, err)
		}
	})
}

// I3: what was served is noted also when the directory, for the moment, takes nothing of it for valid.
func TestI3NoteWhileBlocked(t *testing.T) {
	onDesk(t, func(d *desk) {
		for value := 2; value < 8; value++ {
			d.ownWrite("a", value) // more than are told apart before a poll
		}
		d.log.Delay(10 * time.Millisecond)
		polled := make(chan error)
		go func() { _, err := d.tracker.Barrier(d.t.Context()); polled <- err }()
		synctest.Wait() // the poll has looked, and is on its way back
		old := d.log.Snapshot()
		d.write("a", 10)
		if r := d.read("a", second); r.Value != 10 || !r.Fresh {
			d.t.Fatalf("the load brought %+v", r)
		}
		if err := <-polled; err != nil {
			d.t.Fatal(err)
		}
		scopes := d.cache.scopesOf("a", nil)
		if d.tracker.Valid(scopes[viewScope], scopes, old) {
			d.t.Error("a value from before the one that was served is taken for valid")
		}
	})
}

// I3: a newer value that is too large for L1 leaves no older one there to be hit.
func TestI3TooLargeForL1(t *testing.T) {
	l := newL1[int](10, 1000)
	l.put("a", itemOf(2, 1, 20))
	l.put("a", itemOf(1, 2000, 10))
	if it, _ := l.get("a"); it == nil || it.value != 2 {
		t.Error("an older value pushed out a newer one")
	}
	l.put("a", itemOf(3, 2000, 30))
	if it, _ := l.get("a"); it != nil {
		t.Errorf("value %d is left behind value 3", it.value)
	}
	if s := l.stats(); s.Bytes != 0 || s.Entries != 0 {
		t.Errorf("accounts for %+v", s)
	}
}
