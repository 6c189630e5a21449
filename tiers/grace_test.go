package tiers

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// The grace of these tests, longer than a few polls and shorter than a budget would matter.
const grace = 3 * time.Second

// lenient is a read that takes values in their grace.
var lenient = Want{Budget: time.Second, Grace: true}

// writeWithGrace commits a change with a grace as another service would.
func (d *desk) writeWithGrace(id string, value int, scopes ...coherence.Scope) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.values[id] = value
	tx := d.log.Begin()
	tx.Grace(grace)
	tx.Change(append(scopes, coherence.Entity("n", id))...)
	tx.Commit()
}

// stuck has loads from now on wait until the returned function is called.
func (d *desk) stuck() (goOn func()) {
	wait := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pause = func() { <-wait }
	return sync.OnceFunc(func() { close(wait) })
}

// I1: a value in its grace is given at once, labelled, and never FRESH; one load in the background brings
// the new one.
func TestI1GraceIsLabelled(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", lenient)
		pass(time.Second)
		began := time.Now()
		d.writeWithGrace("a", 10)
		pass(30 * time.Millisecond)
		d.poll()
		goOn := d.stuck()
		defer goOn()
		loads := d.loads
		for n := range 20 {
			pass(10 * time.Millisecond)
			r := d.read("a", lenient)
			if r.Fresh || r.Value != 1 || r.Grace <= 0 || r.Grace > grace-time.Since(began) {
				d.t.Fatalf("read %d, %v after the commit: %+v; want the old value in its grace", n, time.Since(began), r)
			}
			if r.Age < time.Since(began) {
				d.t.Errorf("an age of %v, %v after a commit that it lacks", r.Age, time.Since(began))
			}
			if v, ok := d.cache.Hit("a", time.Second); ok {
				d.t.Errorf("a plain hit of %d", v)
			}
			many, err := d.cache.LookupMany(d.t.Context(), []string{"a", "a"}, lenient)
			if err != nil || many[0].Fresh || many[1].Grace <= 0 {
				d.t.Fatalf("many: %+v, %v", many, err)
			}
		}
		goOn()
		pass(time.Millisecond)
		if r := d.read("a", lenient); !r.Fresh || r.Value != 10 || r.Grace != 0 {
			d.t.Errorf("after the load: %+v", r)
		}
		if n := d.loads - loads; n != 1 {
			d.t.Errorf("%d loads, want 1", n)
		}
		if s := d.cache.Stats(); s.Graced != 60 || s.Stale != 60 {
			d.t.Errorf("%d answers are counted as in their grace, %d as STALE; want 60 of both", s.Graced, s.Stale)
		}
	})
}

// I1: nothing is served beyond its grace, also when loads fail and polls too.
func TestI1GraceEnds(t *testing.T) {
	for _, polls := range []bool{true, false} {
		t.Run(fmt.Sprintf("polls=%t", polls), func(t *testing.T) {
			onDesk(t, func(d *desk) {
				d.read("a", lenient)
				pass(100 * time.Millisecond)
				d.writeWithGrace("a", 10)
				committed := time.Now()
				d.poll()
				d.mu.Lock()
				d.fail = fmt.Errorf("no load")
				d.mu.Unlock()
				if !polls {
					d.log.Fail(fmt.Errorf("no poll"))
				}
				given := 0
				// The budget of an hour: nothing but the grace itself ends it.
				for range 600 {
					pass(10 * time.Millisecond)
					r, err := d.cache.Lookup(d.t.Context(), "a", Want{Budget: time.Hour, Grace: true})
					switch {
					case err == nil && r.Fresh:
						d.t.Fatalf("%v after the commit: %+v", time.Since(committed), r)
					case err == nil && time.Since(committed) > grace:
						d.t.Fatalf("%v after the commit, beyond its grace of %v: %+v", time.Since(committed), grace, r)
					case err == nil:
						given++
					}
				}
				if given < 200 {
					d.t.Errorf("%d answers within a grace of %v, one every 10ms", given, grace)
				}
			})
		})
	}
}

// I2: who brings a token for which the old value is not new enough, or does not take values in their
// grace, gets the new one.
func TestI2GraceIsNotForTokens(t *testing.T) {
	for name, c := range map[string]struct {
		want  func(before, after coherence.Token) Want
		value int
	}{
		"token of the old value": {func(before, _ coherence.Token) Want { return Want{Budget: time.Second, Grace: true, Token: before} }, 1},
		"token of the new value": {func(_, after coherence.Token) Want { return Want{Budget: time.Second, Grace: true, Token: after} }, 10},
		"no grace":               {func(_, _ coherence.Token) Want { return Want{Budget: time.Second} }, 10},
		"at once":                {func(_, _ coherence.Token) Want { return Want{} }, 10},
		"at once, with grace":    {func(_, _ coherence.Token) Want { return Want{Grace: true} }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			onDesk(t, func(d *desk) {
				before := d.log.Snapshot()
				d.read("a", lenient)
				d.writeWithGrace("a", 10)
				d.poll()
				r := d.read("a", c.want(coherence.TokenOf(before), coherence.TokenOf(d.log.Snapshot())))
				if r.Value != c.value || r.Fresh != (c.value == 10) || r.Fresh != (r.Grace == 0) {
					d.t.Errorf("%+v; want %d", r, c.value)
				}
			})
		})
	}
}

// I1: a change without a grace ends the grace of others, and so does knowledge that is too old.
func TestI1GraceNeedsTheRest(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.reopen(func(_ *Shared, c *Config[int]) { c.Tags = func(string, int) []string { return []string{"tag"} } })
		d.read("a", lenient)
		d.writeWithGrace("a", 10)
		d.poll()
		goOn := d.stuck()
		if r := d.read("a", lenient); r.Grace == 0 {
			d.t.Errorf("in its grace: %+v", r)
		}
		d.commit("a", 20, coherence.Tag("tag"))
		d.poll()
		goOn()
		if r := d.read("a", lenient); !r.Fresh || r.Value != 20 {
			d.t.Errorf("after a change without a grace: %+v", r)
		}

		d.writeWithGrace("a", 30)
		d.poll()
		d.log.Fail(fmt.Errorf("no poll"))
		pass(1500 * time.Millisecond)
		if r, err := d.cache.Lookup(d.t.Context(), "a", lenient); err == nil && r.Value != 30 {
			d.t.Errorf("without a poll for longer than the budget: %+v", r)
		}
	})
}

// I1: nothing of a generation that was given up is served by a grace.
func TestI1GraceOfAGeneration(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", lenient)
		d.writeWithGrace("a", 10)
		d.poll()
		goOn := d.stuck()
		if r := d.read("a", lenient); r.Grace == 0 {
			d.t.Errorf("in its grace: %+v", r)
		}
		tx := d.log.Begin()
		tx.SetGeneration("n", 2)
		tx.Commit()
		d.poll()
		goOn()
		if r := d.read("a", lenient); !r.Fresh || r.Value != 10 {
			d.t.Errorf("after a new generation: %+v", r)
		}
	})
}

// I1: the grace of a change excuses nothing else that the value may lack.
func TestI1NoGraceInDoubt(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		d.writeWithGrace("a", 10, coherence.Entity("n", "a"))
		if _, err := d.tracker.Barrier(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		d.tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{coherence.Namespace("n").Hash(): 0})
		if r := d.read("a", lenient); !r.Fresh || r.Value != 10 {
			d.t.Errorf("%+v, want 10 from a load", r)
		}
	})
}
