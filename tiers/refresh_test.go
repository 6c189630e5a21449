package tiers

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence/logtest"
)

// half draws the middle of every range: times to live have no jitter, and XFetch draws ln 2.
func half(n int64) int64 { return n / 2 }

// refreshes makes the desk's cache one whose entries live 10 s and are refreshed so.
func (d *desk) refreshes(r Refresh) {
	d.t.Helper()
	d.reopen(func(s *Shared, c *Config[int]) {
		c.TTL, c.Refresh, s.Random = 10*time.Second, r, half
	})
}

// slow makes every load take so long.
func (d *desk) slow(takes time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pause = func() { pass(takes) }
}

// Entries that are read all the time are loaded anew behind their soft time to live, one load each time, and
// no read waits for one. What is read is what the source has within the budget.
func TestRefreshAhead(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.refreshes(Refresh{Ahead: 0.8})
		d.read("a", second)
		d.read("none", second)
		d.slow(time.Second)
		began := time.Now()
		for ; time.Since(began) < time.Minute; pass(10 * time.Millisecond) {
			for _, id := range []string{"a", "none"} { // the second, which is absent, lives 30 s
				asked := time.Now()
				if r := d.read(id, second); !r.Fresh || r.Tier != TierL1 || time.Since(asked) > 0 {
					d.t.Fatalf("%s after %v: %+v, which took %v", id, time.Since(began), r, time.Since(asked))
				}
			}
		}
		// Each is due 8 s, or 24 s, after the one before began to be kept, and takes 1 s.
		if s := d.cache.Stats(); s.Refreshed != 6+2 || s.Loads != 2+6+2 || s.RefreshErrors+s.RefreshesSkipped+s.RefreshesTaken != 0 {
			d.t.Errorf("in a minute: %+v", s)
		}
	})
}

// Reads that are no plain hits refresh, too: those that poll first, and those that many make together.
func TestRefreshByAnyRead(t *testing.T) {
	for name, read := range map[string]func(d *desk) error{
		"budget 0": func(d *desk) error { d.read("a", Want{}); return nil },
		"many": func(d *desk) error {
			_, err := d.cache.LookupMany(d.t.Context(), []string{"a", "b"}, second)
			return err
		},
		"Hit": func(d *desk) error { d.cache.Hit("a", time.Second); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			onDesk(t, func(d *desk) {
				d.refreshes(Refresh{Ahead: 0.5})
				d.read("a", second)
				pass(4900 * time.Millisecond)
				if err := read(d); err != nil || d.cache.Stats().Refreshed != 0 {
					d.t.Errorf("before its time: %v, %+v", err, d.cache.Stats())
				}
				pass(200 * time.Millisecond)
				if err := read(d); err != nil {
					d.t.Error(err)
				}
				synctest.Wait()
				if s := d.cache.Stats(); s.Refreshed != 1 {
					d.t.Errorf("behind its soft time to live: %+v", s)
				}
			})
		})
	}
}

// A source that takes longer than the entry has left: whoever misses then joins the refresh.
func TestRefreshIsJoined(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.refreshes(Refresh{Ahead: 0.8})
		d.read("a", second)
		d.slow(4 * time.Second)
		pass(8 * time.Second)
		d.read("a", second)
		pass(2 * time.Second)
		asked := time.Now()
		if r := d.read("a", second); !r.Fresh || r.Tier != TierSource || time.Since(asked) != 2*time.Second || d.loads != 2 {
			d.t.Errorf("a read at expiry: %+v after %v and %d loads", r, time.Since(asked), d.loads)
		}
	})
}

// I1: a refresh that fails leaves the entry as it is: hit until it expires, tried again now and then, and not
// FRESH beyond its time to live.
func TestI1FailedRefresh(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.refreshes(Refresh{Ahead: 0.8})
		began := time.Now()
		d.read("a", second)
		broken := errors.New("broken")
		d.mu.Lock()
		d.fail = broken
		d.mu.Unlock()
		for ; time.Since(began) < 10*time.Second; pass(time.Millisecond) {
			if r := d.read("a", second); !r.Fresh {
				d.t.Fatalf("after %v: %+v", time.Since(began), r)
			}
		}
		if r, err := d.cache.Lookup(d.t.Context(), "a", second); !errors.Is(err, broken) {
			d.t.Errorf("expired, the source being broken: %+v, %v", r, err)
		}
		if s := d.cache.Stats(); s.Refreshed != 0 || s.RefreshErrors < 10 || s.RefreshErrors > 50 {
			d.t.Errorf("%+v", s)
		}
	})
}

// I2: a refresh that has read before a write does not bring back what was there.
func TestI2RefreshBeforeAWrite(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.refreshes(Refresh{Ahead: 0.8})
		d.read("a", second)
		d.slow(time.Second)
		pass(9 * time.Second)
		d.read("a", second)
		synctest.Wait() // the refresh has read, and is on its way back
		d.ownWrite("a", 10)
		d.mu.Lock()
		d.pause = nil
		d.mu.Unlock()
		for range 3 {
			if r := d.read("a", second); r.Value != 10 || !r.Fresh {
				d.t.Errorf("the writer reads %+v", r)
			}
			pass(time.Second)
		}
	})
}

// Equal snapshots: nothing was committed meanwhile, and the refreshed entry lives on all the same.
func TestRefreshRenewsExpiry(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.refreshes(Refresh{Ahead: 0.5})
		d.read("a", second)
		pass(6 * time.Second)
		d.read("a", second)
		synctest.Wait()
		if r := d.read("a", second); r.TTL != 10*time.Second || r.Tier != TierL1 {
			d.t.Errorf("after the refresh: %+v", r)
		}
	})
}

// XFetch begins when what is left is less than the load's cost, times Beta, times a draw.
func TestRefreshXFetch(t *testing.T) {
	onDesk(t, func(d *desk) {
		const cost, beta = 2 * time.Second, 1.5
		d.slow(cost)
		d.refreshes(Refresh{Beta: beta})
		d.read("a", second)
		begins := 10*time.Second - time.Duration(math.Floor(beta*math.Ln2*cost.Seconds()*float64(time.Second)))
		pass(begins - time.Millisecond)
		d.read("a", second)
		synctest.Wait()
		if d.loads != 1 {
			d.t.Error("refreshed before its time")
		}
		pass(2 * time.Millisecond)
		if r := d.read("a", second); r.Tier != TierL1 {
			d.t.Errorf("%+v", r)
		}
		synctest.Wait()
		if d.loads != 2 {
			d.t.Error("not refreshed")
		}
	})
}

// Of entries that are read far more often than a load takes, XFetch lets none expire, and begins some loads
// before the expiry: by the paper's formula about 200 ms here.
func TestRefreshXFetchDraws(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.slow(50 * time.Millisecond)
		d.reopen(func(s *Shared, c *Config[int]) {
			c.TTL, c.Refresh, s.Bulkhead = 2*time.Second, Refresh{Beta: 1}, NewBulkhead(100, 100)
		})
		ids := make([]string, 12)
		for i := range ids {
			ids[i] = fmt.Sprint(i)
			d.mu.Lock()
			d.values[ids[i]] = i
			d.mu.Unlock()
			d.read(ids[i], second)
		}
		for began := time.Now(); time.Since(began) < 20*time.Second; pass(time.Millisecond) {
			for _, id := range ids {
				if r := d.read(id, second); !r.Fresh {
					d.t.Fatalf("%+v", r)
				}
			}
		}
		s := d.cache.Stats()
		if missed := s.SourceHits - 12; missed > 0 || s.Refreshed < 12*9 || s.Refreshed > 12*13 {
			d.t.Errorf("%d reads waited for a load, %d refreshes of 12 entries in ten times to live", missed, s.Refreshed)
		}
	})
}

// I6: refreshes are bounded, none begins when reads need the source, and Close ends them.
func TestI6BoundedRefreshes(t *testing.T) {
	for _, places := range []int{4, 100} {
		t.Run(fmt.Sprint(places), func(t *testing.T) {
			onDesk(t, func(d *desk) {
				d.reopen(func(s *Shared, c *Config[int]) {
					c.TTL, c.Refresh, s.Random, s.Bulkhead = 10*time.Second, Refresh{Ahead: 0.5}, half, NewBulkhead(places, 100)
				})
				for i := range 40 {
					d.read(fmt.Sprint(i), second)
				}
				var running atomic.Int64
				goOn := make(chan struct{})
				d.mu.Lock()
				d.pause = func() { running.Add(1); <-goOn }
				d.mu.Unlock()
				// Absent: their time to live is 30 s.
				pass(16 * time.Second)
				for i := range 40 {
					d.read(fmt.Sprint(i), second)
					synctest.Wait()
				}
				want := min(places, maxRefreshes)
				if s := d.cache.Stats(); int(running.Load()) != want || int(s.RefreshesSkipped) != 40-want {
					d.t.Errorf("%d run, %d are skipped; want %d and the rest", running.Load(), s.RefreshesSkipped, want)
				}
				close(goOn)
				if err := d.cache.Close(); err != nil {
					d.t.Error(err)
				}
				if d.cache.refreshing.Load() != 0 {
					d.t.Error("refreshes go on after Close")
				}
			})
		})
	}
}

// I7: a hit allocates nothing in a cache that refreshes, before the time has come and while it is drawn for.
func TestI7HitThatDrawsAllocatesNothing(t *testing.T) {
	d := newDesk(t, logtest.NewMemory())
	d.t = t
	defer d.close()
	d.reopen(func(s *Shared, c *Config[int]) {
		c.Refresh = Refresh{Beta: 1}
		s.Random = func(n int64) int64 { return n - 1 } // a draw of 0, which never comes true
	})
	d.read("a", Want{Budget: time.Hour})
	it, _ := d.cache.l1.get("a")
	ctx := t.Context()
	for range 2 {
		if n := testing.AllocsPerRun(1000, func() {
			if r, err := d.cache.Lookup(ctx, "a", Want{Budget: time.Hour}); err != nil || r.Tier != TierL1 {
				t.Error(r, err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		it.early.Store(int64(noInstant))
	}
	if s := d.cache.Stats(); s.Refreshed+s.RefreshesSkipped != 0 {
		t.Errorf("%+v", s)
	}
}

func TestRefreshIsValidated(t *testing.T) {
	for _, r := range []Refresh{{Ahead: -0.1}, {Ahead: 1}, {Ahead: math.NaN()}, {Beta: -1}, {Beta: 101}, {Beta: math.NaN()}, {Beta: math.Inf(1)}} {
		if err := (Config[int]{Refresh: r}).Validate(); err == nil || !strings.Contains(err.Error(), "Refresh.") {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if err := (Config[int]{Refresh: Refresh{Ahead: 0.8, Beta: 1}}).Validate(); err != nil {
		t.Error(err)
	}
}

// BenchmarkHit is a hit in L1: in a cache that does not refresh, in one that does, and while XFetch draws.
func BenchmarkHit(b *testing.B) {
	for _, c := range []struct {
		name    string
		refresh Refresh
		draws   bool
	}{{"plain", Refresh{}, false}, {"refresh", Refresh{Ahead: 0.8, Beta: 1}, false}, {"draw", Refresh{Beta: 1}, true}} {
		b.Run(c.name, func(b *testing.B) {
			d := newDesk(b, logtest.NewMemory())
			defer d.close()
			d.cache.Close()
			d.cache = d.newCache(b, func(_ *Shared, config *Config[int]) { config.Refresh = c.refresh })
			if _, err := d.cache.Lookup(b.Context(), "a", Want{Budget: time.Hour}); err != nil {
				b.Fatal(err)
			}
			if it, _ := d.cache.l1.get("a"); c.draws {
				it.early.Store(int64(noInstant))
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := d.cache.Hit("a", time.Hour); !ok {
					b.Fatal("no hit")
				}
			}
		})
	}
}
