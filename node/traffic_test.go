package node_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
	"github.com/freshet-cache/freshet/node"
)

// traffic is reads, and writes if asked for, of the first things on all replicas until stop, with
// every answer judged by the checker.
type traffic struct {
	site     *site
	replicas []*replica
	keys     int
	checker  *check.Checker
	start    time.Time
	end      context.CancelFunc
	ctx      context.Context //nolint:containedctx // its lifetime
	work     sync.WaitGroup

	reads, fresh, stale, failed atomic.Int64
	writes, writesFailed        atomic.Int64
	slowest                     atomic.Int64 // ns

	mu     sync.Mutex
	errors map[string]error // the first of each text
}

// trafficConfig says what a traffic does.
type trafficConfig struct {
	keys    int             // the first things are read and written; 0 = 20
	readers int             // per replica; 0 = 2
	writers int             // half of them through replicas, half as another service
	budgets []time.Duration // nil = 0, 50 ms and 1 s
	pause   time.Duration   // of a reader, after each read
}

func (s *site) traffic(replicas []*replica, c trafficConfig) *traffic {
	s.t.Helper()
	if c.keys == 0 {
		c.keys = 20
	}
	if c.readers == 0 {
		c.readers = 2
	}
	if c.budgets == nil {
		c.budgets = []time.Duration{0, 50 * time.Millisecond, time.Second}
	}
	checker, err := check.New(check.Config{})
	if err != nil {
		s.t.Fatal(err)
	}
	f := &traffic{site: s, replicas: replicas, keys: c.keys, checker: checker, start: time.Now(), errors: map[string]error{}}
	for n := range c.keys {
		var revision int64
		if err := s.db.Get(&revision, `select revision from things where id = $1`, thing(n+1)); err != nil {
			s.t.Fatal(err)
		}
		if err := checker.Declare(int64(n+1), revision); err != nil {
			s.t.Fatal(err)
		}
	}
	f.ctx, f.end = context.WithCancel(s.t.Context())
	s.t.Cleanup(func() { f.end(); f.work.Wait() })
	for i, r := range replicas {
		for range c.readers {
			f.work.Go(func() { f.read(r, fmt.Sprint(i), c.budgets, c.pause) })
		}
	}
	for n := range c.writers {
		f.work.Go(func() { f.write(n) })
	}
	return f
}

func (f *traffic) clock() time.Duration { return time.Since(f.start) }

func (f *traffic) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errors) < 10 {
		f.errors[err.Error()] = err
	}
}

func (f *traffic) read(r *replica, name string, budgets []time.Duration, pause time.Duration) {
	for ; f.ctx.Err() == nil; f.wait(pause) {
		id := 1 + rand.IntN(f.keys)
		budget := budgets[rand.IntN(len(budgets))]
		began := f.clock()
		e, err := r.things.Lookup(f.ctx, thing(id), node.Within(budget))
		ended := f.clock()
		if f.ctx.Err() != nil {
			return
		}
		f.reads.Add(1)
		for took := int64(ended - began); ; {
			slowest := f.slowest.Load()
			if took <= slowest || f.slowest.CompareAndSwap(slowest, took) {
				break
			}
		}
		switch {
		case err != nil:
			f.failed.Add(1)
			f.fail(err)
			continue
		case e.Fresh:
			f.fresh.Add(1)
		default:
			f.stale.Add(1)
		}
		f.checker.Observe(check.Read{
			ID: int64(id), Revision: e.Value.Revision, Fresh: e.Fresh, Budget: budget, Replica: name,
			Invoked: began, Returned: ended,
		})
	}
}

const nextRevision = `update things set revision = revision + 1 where id = $1 returning revision`

func (f *traffic) write(n int) {
	for f.ctx.Err() == nil {
		id := 1 + rand.IntN(f.keys)
		f.writes.Add(1)
		w := f.checker.Begin(int64(id), 0, f.clock())
		var revision int64
		var err error
		if n%2 == 0 {
			r := f.replicas[rand.IntN(len(f.replicas))]
			_, err = r.Write(f.ctx, func(tx *node.Tx) error {
				return tx.GetContext(f.ctx, &revision, nextRevision, thing(id))
			})
		} else {
			err = f.site.db.GetContext(f.ctx, &revision, nextRevision, thing(id))
		}
		if err != nil {
			w.Unknown(revision)
			if f.ctx.Err() == nil {
				f.writesFailed.Add(1)
				f.fail(err)
				f.wait(20 * time.Millisecond) // Postgres is away: do not ask in a loop
			}
			continue
		}
		w.Acked(revision, f.clock())
		f.wait(rand.N(10 * time.Millisecond))
	}
}

func (f *traffic) wait(d time.Duration) {
	if d == 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.ctx.Done():
	}
}

// stop ends the traffic and judges it: no invariant may be broken, and every replica must have what
// Postgres has. It returns with the counts complete.
func (f *traffic) stop() {
	t := f.site.t
	t.Helper()
	f.end()
	f.work.Wait()
	f.checker.Finish()
	for id := range f.checker.Written {
		var revision int64
		if err := f.site.db.GetContext(t.Context(), &revision, `select revision from things where id = $1`, thing(int(id))); err != nil {
			t.Fatal(err)
		}
		f.checker.Final(id, revision)
		for i, r := range f.replicas {
			e, err := r.things.Lookup(t.Context(), thing(int(id)), node.Within(0))
			if err != nil {
				t.Errorf("after the run: %v", err)
				continue
			}
			f.checker.Converged(check.Answer{ID: id, Replica: fmt.Sprint(i), Revision: e.Value.Revision, AtLeast: revision, AtMost: revision})
		}
	}
	s := f.checker.Summary()
	t.Logf("%d reads (%d fresh, %d stale, %d failed, slowest %v), %d writes (%d failed), staleness max %v",
		f.reads.Load(), f.fresh.Load(), f.stale.Load(), f.failed.Load(), time.Duration(f.slowest.Load()).Round(time.Millisecond),
		f.writes.Load(), f.writesFailed.Load(), s.Staleness.Max)
	for _, v := range s.First {
		t.Errorf("violation: %+v", v)
	}
	if s.Violations > uint64(len(s.First)) {
		t.Errorf("%d violations: %v", s.Violations, s.Counts)
	}
}

// noneFailed fails the test for reads or writes that failed.
func (f *traffic) noneFailed() {
	f.site.t.Helper()
	if f.failed.Load() == 0 && f.writesFailed.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, err := range f.errors {
		f.site.t.Errorf("failed: %v", err)
	}
}

// progress waits until each reader may be expected to have read since now.
func (f *traffic) progress() {
	f.site.t.Helper()
	goal := f.reads.Load() + 200
	f.site.until("reads go on", func() bool { return f.reads.Load() >= goal })
}

// I1, I3, I4, I5: reads of any budget and writes of any writer on three replicas, without a fault.
func TestI1I3I4I5RandomWorkload(t *testing.T) {
	s := newSite(t)
	r := s.openReady(3)
	f := s.traffic(r, trafficConfig{writers: 4})
	s.until("enough was written", func() bool { return f.writes.Load() >= 600 })
	f.stop()
	f.noneFailed()
	if f.fresh.Load() != f.reads.Load() {
		t.Errorf("%d of %d answers are FRESH", f.fresh.Load(), f.reads.Load())
	}
}

// The traffic would notice a cache that breaks its promises: here one that does not hear of changes,
// since they are made where no trigger sees them.
func TestTrafficNoticesABrokenPromise(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)
	f := s.traffic(r, trafficConfig{keys: 1})
	f.progress()
	s.exec(`alter table things disable trigger user`)
	w := f.checker.Begin(1, 0, f.clock())
	s.exec(`update things set revision = revision + 1 where id = 'thing-1'`)
	w.Acked(2, f.clock())
	s.until("the checker notices", func() bool { return f.checker.Summary().Counts[check.I1] > 0 })
	f.end()
	f.work.Wait()
}
