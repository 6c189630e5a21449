package tiers

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// expired leaves the desk with an entry of a that has expired, and a source that takes so long from now on.
func (d *desk) expired(takes time.Duration) {
	d.t.Helper()
	d.reopen(func(s *Shared, c *Config[int]) { c.TTL, s.Random = 10*time.Second, half })
	d.read("a", second)
	pass(10 * time.Second)
	d.slow(takes)
}

// impatient waits 50 ms before it takes a STALE answer.
var impatient = Want{Budget: time.Second, MaxStale: time.Minute, SoftTimeout: 50 * time.Millisecond}

// A reader that may have a STALE answer waits for a load no longer than SoftTimeout; the load goes on and
// fills the cache. Others wait, up to LoadTimeout.
func TestSoftTimeout(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.expired(time.Second)
		asked := time.Now()
		if r := d.read("a", impatient); r.Fresh || r.Value != 1 || time.Since(asked) != 50*time.Millisecond {
			d.t.Errorf("%+v after %v", r, time.Since(asked))
		}
		results, err := d.cache.LookupMany(d.t.Context(), []string{"a", "a"}, impatient)
		if err != nil || results[1].Fresh || results[0].Tier != TierL1 || time.Since(asked) != 100*time.Millisecond {
			d.t.Errorf("many: %+v, %v after %v", results, err, time.Since(asked))
		}
		if s := d.cache.Stats(); s.SoftTimeouts != 3 || s.Stale != 3 || s.StaleSlow != 3 || s.ReadTimes[TierL1].Sum != 150*time.Millisecond {
			d.t.Errorf("%+v", s)
		}
		if r := d.read("a", second); !r.Fresh || time.Since(asked) != time.Second {
			d.t.Errorf("without a STALE answer: %+v after %v", r, time.Since(asked))
		}
		if r := d.read("a", impatient); !r.Fresh || r.Tier != TierL1 || d.loads != 2 {
			d.t.Errorf("after the late load: %+v, %d loads", r, d.loads)
		}
		// Where there is nothing STALE, it waits, too.
		asked = time.Now()
		if r := d.read("b", impatient); !r.Fresh || time.Since(asked) != time.Second {
			d.t.Errorf("what was never there: %+v after %v", r, time.Since(asked))
		}
	})
}

// So does the wait for a poll end, and a poll that comes late helps the next.
func TestSoftTimeoutOfAPoll(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		d.log.Delay(800 * time.Millisecond)
		want := impatient
		want.Budget = 0
		asked := time.Now()
		if r := d.read("a", want); r.Fresh || time.Since(asked) != 50*time.Millisecond || d.cache.Stats().SoftTimeouts != 1 {
			d.t.Errorf("%+v after %v", r, time.Since(asked))
		}
		if s := d.cache.Stats(); s.Stale != 1 || s.StaleUnproven != 1 {
			d.t.Errorf("%d STALE answers, %d since nothing was proven", s.Stale, s.StaleUnproven)
		}
		if r := d.read("b", want); !r.Fresh || time.Since(asked) < 500*time.Millisecond {
			d.t.Errorf("what was never there: %+v after %v", r, time.Since(asked))
		}
	})
}

// Fail-safe: while the source fails, readers that may have a STALE answer take it at once, but for one of
// them every RetryAfter; others get the error each time. No STALE answer is older than allowed.
func TestFailSafe(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.expired(200 * time.Millisecond)
		broken := errors.New("broken")
		d.mu.Lock()
		d.fail = broken
		d.mu.Unlock()
		patient := Want{Budget: time.Second, MaxStale: 30 * time.Second}
		waited := 0
		for began := time.Now(); time.Since(began) < 3*time.Second; pass(time.Millisecond) {
			asked := time.Now()
			if r := d.read("a", patient); r.Fresh || r.Value != 1 {
				d.t.Fatalf("after %v: %+v", time.Since(began), r)
			}
			if time.Since(asked) > 0 {
				waited++
			}
		}
		if waited != 10 || d.loads != 1+10 {
			d.t.Errorf("%d of the readers waited for %d loads; each takes 200 ms, and 100 ms are between two", waited, d.loads-1)
		}
		if s := d.cache.Stats(); s.StaleFailed != s.Stale || s.LoadsFailed[ClassOther] != 10 || s.LoadTimes.Count() != 11 {
			d.t.Errorf("of %d STALE answers %d since a load failed; %d of %d loads", s.Stale, s.StaleFailed, s.LoadsFailed[ClassOther], s.LoadTimes.Count())
		}
		if r, err := d.cache.Lookup(d.t.Context(), "a", second); !errors.Is(err, broken) {
			d.t.Errorf("without a STALE answer: %+v, %v", r, err)
		}
		d.write("a", 10)
		d.mu.Lock()
		d.fail, d.pause = nil, nil
		d.mu.Unlock()
		pass(time.Second)
		if r := d.read("a", patient); !r.Fresh || r.Value != 10 {
			d.t.Errorf("after the source works again: %+v", r)
		}
		synctest.Wait()
		d.goDown()
		pass(31 * time.Second)
		if r, err := d.cache.Lookup(d.t.Context(), "a", patient); err == nil {
			d.t.Errorf("older than allowed: %+v", r)
		}
	})
}

// What is left of an entry, and where; what could not be served counts as nothing.
func TestLeft(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.reopen(func(s *Shared, c *Config[int]) { c.TTL, s.Random = 10*time.Second, half })
		left := func(id string, want time.Duration, wantTier Tier) {
			d.t.Helper()
			if got, tier, err := d.cache.Left(d.t.Context(), id); got != want || tier != wantTier || err != nil {
				d.t.Errorf("%s: %v in %v, %v; want %v in %v", id, got, tier, err, want, wantTier)
			}
		}
		left("a", 0, 0)
		d.read("a", second)
		pass(4 * time.Second)
		left("a", 6*time.Second, TierL1)
		d.ownWrite("a", 10)
		left("a", 0, 0)
		d.read("a", second)
		pass(10 * time.Second)
		left("a", 0, 0)
		if d.loads != 2 {
			d.t.Errorf("%d loads", d.loads)
		}
		if _, _, err := d.cache.Left(d.t.Context(), "\x00"); !errors.Is(err, ErrBadID) {
			d.t.Errorf("a bad id: %v", err)
		}
	})
}
