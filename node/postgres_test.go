package node_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// outage is how Postgres goes away.
type outage struct {
	name      string
	away      func() error
	length    time.Duration // at least; it goes on until each replica has answered in all its ways
	answering time.Duration // the longest that a read may take meanwhile
}

// Postgres away, in each way: answers are FRESH within the budget and never after, then STALE as
// labelled within what is allowed, or an error, all in bounded time; an acknowledged write is never
// lost from view, and everything recovers without a restart.
func TestI1I5PostgresAway(t *testing.T) {
	postgres := stacktest.Stack().Postgres
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := postgres.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	for _, o := range []outage{
		{"stopped", postgres.Stop, 10 * time.Second, 1500 * time.Millisecond},
		{"paused", postgres.Pause, 2200 * time.Millisecond, 2500 * time.Millisecond},
		{"killed", postgres.Kill, time.Second, 1500 * time.Millisecond},
	} {
		t.Run(o.name, func(t *testing.T) { testOutage(t, o) })
	}
}

func testOutage(t *testing.T, o outage) {
	t.Helper()
	const budget = 500 * time.Millisecond
	s := newSite(t)
	change := func(maxStale time.Duration) func(*node.Config, *node.CacheConfig[Thing]) {
		return func(c *node.Config, _ *node.CacheConfig[Thing]) {
			c.Budget, c.MaxStale = budget, maxStale
			c.Postgres.PollInterval = 100 * time.Millisecond
			c.Postgres.PollTimeout = 500 * time.Millisecond
			c.Postgres.LoadTimeout = time.Second
			c.Redis.Timeout = 0
		}
	}
	const briefly = 2 * time.Second // longer than a read that looks for fresher takes
	strict, brief, lenient := s.open(change(0)), s.open(change(briefly)), s.open(change(time.Minute))
	all := []*replica{strict, brief, lenient}
	for _, r := range all {
		s.ready(r)
	}
	for n := range 50 { // an entry of each kind in every L1; the traffic touches the tags of five
		for _, r := range all {
			s.get(r, thing(n+1))
		}
	}
	f := s.traffic(all, trafficConfig{keys: 5, writers: 3, budgets: []time.Duration{0, budget}})
	f.progress()

	var want int64
	token, err := strict.Write(t.Context(), func(tx *node.Tx) error {
		return tx.GetContext(t.Context(), &want, nextRevision, "thing-20")
	})
	if err != nil {
		t.Fatal(err)
	}
	const untouched = "thing-46"
	for _, r := range all {
		s.get(r, untouched)
	}
	leaving := time.Now() // polls may fail from now on
	if err := o.away(); err != nil {
		t.Fatal(err)
	}
	gone := time.Now() // nothing was acknowledged after

	// Each replica is asked for one entry until Postgres is back; what it may answer depends on when.
	var readers sync.WaitGroup
	back := make(chan struct{}) // closed before Postgres returns
	type seen struct{ fresh, stale, refused atomic.Int64 }
	counts := make([]seen, len(all))
	for i, r := range all {
		readers.Go(func() {
			for {
				began := time.Now()
				e, err := r.things.Lookup(t.Context(), untouched)
				took := time.Since(began)
				select {
				case <-back:
					return
				default:
				}
				since := began.Sub(gone)
				switch {
				case took > o.answering+slack:
					t.Errorf("replica %d: a read took %v", i, took)
				case err == nil && e.Fresh:
					counts[i].fresh.Add(1)
					if e.Age > budget || since > budget {
						t.Errorf("replica %d: FRESH of age %v, %v after Postgres went away", i, e.Age, since)
					}
				case err == nil:
					counts[i].stale.Add(1)
					maxStale := []time.Duration{0, briefly, time.Minute}[i]
					if e.Age > maxStale || e.Age < since {
						t.Errorf("replica %d: STALE of age %v, %v after Postgres went away; %v is allowed", i, e.Age, since, maxStale)
					}
				default:
					counts[i].refused.Add(1)
				}
				if err != nil && began.Sub(leaving) < budget/2 {
					t.Errorf("replica %d: %v, %v after Postgres began to go away", i, err, began.Sub(leaving))
				}
				if err != nil && i == 2 {
					t.Errorf("replica %d: %v, though STALE is allowed", i, err)
				}
				if err != nil && !errors.Is(err, node.ErrUncertain) {
					t.Errorf("replica %d: %v, want ErrUncertain", i, err)
				}
			}
		})
	}
	// Many ids cost no more time than one.
	var ids []string
	for n := range 150 {
		ids = append(ids, thing(n+1))
	}
	for i, r := range all {
		readers.Go(func() {
			began := time.Now()
			_, _ = r.things.GetMany(t.Context(), ids, node.Within(0))
			if took := time.Since(began); took > o.answering+time.Second+slack {
				t.Errorf("replica %d: GetMany took %v", i, took)
			}
		})
	}
	outageOver := time.NewTimer(o.length)
	<-outageOver.C
	if o.length > 2*time.Second {
		s.until("each replica has answered in all its ways", func() bool {
			return counts[0].refused.Load() > 0 && counts[1].stale.Load() > 0 && counts[1].refused.Load() > 0 && counts[2].stale.Load() > 0
		})
	}
	close(back)
	if err := stacktest.Stack().Postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	returned := time.Now()
	readers.Wait()
	for i, name := range []string{"strict", "brief", "lenient"} {
		t.Logf("%s: %d fresh, %d stale, %d refused", name, counts[i].fresh.Load(), counts[i].stale.Load(), counts[i].refused.Load())
	}
	if o.length > 2*time.Second {
		// An orderly shutdown may take the whole budget.
		if (counts[0].fresh.Load() == 0 && o.name == "paused") || counts[0].stale.Load() != 0 {
			t.Error("the strict replica did not answer FRESH, or answered STALE")
		}
	}
	for i, r := range all {
		s.until("reads are FRESH again", func() bool {
			e, err := r.things.Lookup(t.Context(), untouched)
			return err == nil && e.Fresh
		})
		if took := time.Since(returned); took > 2*time.Second+slack {
			t.Errorf("replica %d: recovered after %v", i, took)
		}
		e, err := r.things.Lookup(t.Context(), "thing-20", node.AtLeast(token), node.Within(0))
		if err != nil || e.Value.Revision != want {
			t.Errorf("replica %d: the acknowledged write is not seen: %+v, %v", i, e, err)
		}
	}
	f.progress()
	f.stop()
}

// A crash of Postgres begins a new timeline: everything cached before is looked at as changed.
func TestI1PostgresCrashFlushes(t *testing.T) {
	s := newSite(t)
	postgres := stacktest.Stack().Postgres
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := postgres.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	r := s.openReady(2)
	for range 2 {
		for _, r := range r {
			s.get(r, "thing-50")
		}
		flushes := r[0].Stats().Flushes
		if err := postgres.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := postgres.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A commit that nobody but Postgres knows of, in the new history.
		var want int64
		s.until("Postgres takes a write", func() bool {
			return s.db.GetContext(t.Context(), &want, nextRevision, "thing-50") == nil
		})
		for i, r := range r {
			var e node.Entry[Thing]
			s.until("the replica answers", func() bool {
				var err error
				e, err = r.things.Lookup(t.Context(), "thing-50", node.Within(0))
				return err == nil
			})
			if e.Value.Revision < want || !e.Fresh {
				t.Errorf("replica %d: %+v, want revision %d", i, e, want)
			}
		}
		if r[0].Stats().Flushes == flushes {
			t.Error("nothing was flushed")
		}
	}
}

// Postgres away when the nodes open: they open, say what they cannot do, and work when it comes.
func TestPostgresDownAtStart(t *testing.T) {
	s := newSite(t)
	postgres := stacktest.Stack().Postgres
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := postgres.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	r := s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) { c.MaxStale = time.Minute })
	if _, err := r.things.Get(t.Context(), "thing-1"); err == nil {
		t.Error("a value without Postgres")
	}
	if _, err := r.Invalidate(t.Context(), "thing", []string{"thing-1"}); err == nil {
		t.Error("a write without Postgres")
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Ready(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ready without Postgres: %v", err)
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(r)
	if e := s.get(r, "thing-1"); !e.Fresh {
		t.Errorf("after Postgres came: %+v", e)
	}
}
