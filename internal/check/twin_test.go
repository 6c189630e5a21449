package check_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
)

// update is one write of a made-up history, with what really became of it.
type update struct {
	id, revision int64 // 0 = never committed
	named        bool  // the writer knows the revision before the commit
	sent, at     time.Duration
	ended        time.Duration
	outcome      string // acked, aborted, unknown
}

type history struct {
	updates []update
	reads   []check.Read
}

// makeUpdates commits about n updates over the products, each product's one after the other.
func makeUpdates(rng *rand.Rand, n int, unknowns bool) []update {
	var all []update
	for id := int64(1); id <= 5; id++ {
		revision, at := int64(10), time.Duration(0)
		for range n / 5 {
			before := at
			at += time.Duration(1 + rng.Int64N(int64(400*ms)))
			u := update{id: id, at: at, outcome: "acked", named: rng.IntN(2) == 0}
			switch {
			case unknowns && rng.IntN(5) == 0:
				u.outcome = "unknown"
			case rng.IntN(6) == 0:
				u.outcome = "aborted"
			}
			if u.outcome == "acked" || u.outcome == "unknown" && rng.IntN(2) == 0 {
				revision++
				u.revision = revision
			}
			// A named write holds the row's lock from before it is sent; others may be sent long before.
			u.sent = before + time.Duration(rng.Int64N(int64(at-before)))
			if !u.named {
				u.sent = max(0, u.sent-time.Duration(rng.Int64N(int64(time.Second))))
			}
			u.ended = at + time.Duration(1+rng.Int64N(int64(100*ms)))
			if u.named {
				u.ended = at + 1 // the lock goes with the commit, the next one's revision is drawn after it
			}
			all = append(all, u)
		}
	}
	return all
}

// play reports the history to a checker in the order in which one process would see it.
func (h history) play(t *testing.T, k *check.Checker) check.Summary {
	t.Helper()
	type event struct {
		at time.Duration
		do func()
	}
	var events []event
	next := map[int64]int64{} // id -> last committed revision, to name what an uncommitted write would have had
	for _, u := range h.updates {
		if u.revision > 0 {
			next[u.id] = u.revision
		}
		name := int64(0)
		if u.named {
			name = cmp.Or(u.revision, max(next[u.id], 10)+1)
		}
		var w *check.Write
		events = append(events, event{u.sent, func() { w = k.Begin(u.id, name, u.sent) }}, event{u.ended, func() {
			switch u.outcome {
			case "acked":
				w.Acked(u.revision, u.ended)
			case "aborted":
				w.Aborted()
			default:
				w.Unknown(name)
			}
		}})
	}
	for _, r := range h.reads {
		events = append(events, event{r.Returned, func() { k.Observe(r) }})
	}
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	for _, e := range events {
		e.do()
	}
	k.Finish()
	last := map[int64]int64{}
	for _, u := range h.updates {
		last[u.id] = max(last[u.id], u.revision, 10)
	}
	for id, revision := range last {
		k.Final(id, revision)
	}
	return k.Summary()
}

// twin is the dumb checker: it looks at everything, after the fact, and knows what was committed.
func (h history) twin() map[check.Invariant]uint64 {
	found := map[check.Invariant]uint64{}
	for i, r := range h.reads {
		possible, known, phantom := int64(10), r.Revision <= 10, false
		late := false
		for _, u := range h.updates {
			if u.id != r.ID || u.revision == 0 {
				continue
			}
			if u.revision == r.Revision {
				known, phantom = true, u.sent >= r.Returned
			}
			if u.sent < r.Returned {
				possible = max(possible, u.revision)
			}
			late = late || u.outcome == "acked" && u.ended < r.Invoked-r.Budget && u.revision > r.Revision
		}
		if phantom || !known && r.Revision > possible {
			found[check.I4]++
		}
		if !r.Fresh {
			continue
		}
		if late {
			found[check.I1]++
		}
		if r.Revision < r.Wrote {
			found[check.I2]++
		}
		for j, q := range h.reads {
			if i != j && q.Fresh && q.ID == r.ID && q.Replica == r.Replica && q.Returned < r.Invoked && q.Revision > r.Revision {
				found[check.I3]++
				break
			}
		}
	}
	return found
}

// The checker finds in random histories, right and wrong, exactly what the dumb one finds.
func TestSameVerdictsAsTheDumbTwin(t *testing.T) {
	total := map[check.Invariant]uint64{}
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		h := history{updates: makeUpdates(rng, 50, false)}
		for range 400 {
			r := check.Read{
				ID: 1 + rng.Int64N(5), Fresh: rng.IntN(10) > 0, Replica: string(rune('a' + rng.IntN(3))),
				Budget: []time.Duration{0, 50 * ms, time.Second}[rng.IntN(3)], Invoked: time.Duration(rng.Int64N(int64(3 * time.Second))),
			}
			r.Returned = r.Invoked + time.Duration(1+rng.Int64N(int64(30*ms)))
			// Mostly the truth at some recent moment, sometimes older, sometimes of the future.
			moment := r.Returned - time.Duration(rng.ExpFloat64()*float64(400*ms)) + time.Duration(rng.Int64N(int64(50*ms)))
			r.Revision = 10
			for _, u := range h.updates {
				if u.id == r.ID && u.at <= moment {
					r.Revision = max(r.Revision, u.revision)
				}
			}
			h.reads = append(h.reads, r)
		}
		s := h.play(t, started(t, check.Config{}))
		want := h.twin()
		if !maps.Equal(s.Counts, want) {
			t.Fatalf("seed %d: found %v, the dumb twin %v", seed, s.Counts, want)
		}
		if s.ForeignWrites != 0 {
			t.Fatalf("seed %d: %d foreign writes in a history without any", seed, s.ForeignWrites)
		}
		for i, n := range want {
			total[i] += n
		}
	}
	for _, i := range []check.Invariant{check.I1, check.I3, check.I4} {
		if total[i] == 0 {
			t.Errorf("no history broke %s: the test shows nothing", i)
		}
	}
}

// cache is a simulated replica in front of the truth, in virtual time.
type cache interface {
	answer(id int64, now, budget time.Duration) (revision int64, fresh bool)
}

// truth is the revision that was committed last at a moment.
type truth func(id int64, at time.Duration) int64

// polling is the rule of this project: it knows all changes up to its last poll and answers as of then.
type polling struct {
	truth  truth
	polled time.Duration
	period time.Duration
	down   func(now time.Duration) bool // Postgres is away
}

func (c *polling) answer(id int64, now, budget time.Duration) (int64, bool) {
	if !c.down(now) {
		if due := now - now%c.period; due > c.polled && !c.down(due) {
			c.polled = due
		}
		if now-c.polled > budget {
			c.polled = now
		}
	}
	return c.truth(id, c.polled), now-c.polled <= budget
}

// ttlOnly is a cache as it is found everywhere: it keeps a value for a time and calls it fresh.
type ttlOnly struct {
	truth  truth
	ttl    time.Duration
	values map[int64]struct {
		revision int64
		loaded   time.Duration
	}
}

func (c *ttlOnly) answer(id int64, now, _ time.Duration) (int64, bool) {
	v, found := c.values[id]
	if !found || now-v.loaded > c.ttl {
		v.revision, v.loaded = c.truth(id, now), now
		c.values[id] = v
	}
	return v.revision, true
}

// A cache that keeps the promises passes whatever the history, also while Postgres is away and with
// writes of unknown outcome; a cache that only expires by time is caught.
func TestSimulatedCaches(t *testing.T) {
	const end = 20 * time.Second
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 2))
		updates := makeUpdates(rng, 400, true)
		truth := func(id int64, at time.Duration) int64 {
			revision := int64(10)
			for _, u := range updates {
				if u.id == id && u.at <= at {
					revision = max(revision, u.revision)
				}
			}
			return revision
		}
		away := time.Duration(rng.Int64N(int64(end)))
		down := func(now time.Duration) bool { return away <= now && now < away+3*time.Second }
		play := func(newCache func() cache) check.Summary {
			h := history{updates: updates}
			replicas := []cache{newCache(), newCache(), newCache()}
			for now := time.Duration(0); now < end; now += time.Duration(1 + rng.Int64N(int64(30*ms))) {
				n := rng.IntN(len(replicas))
				r := check.Read{ID: 1 + rng.Int64N(5), Replica: fmt.Sprint(n), Budget: []time.Duration{0, 50 * ms, time.Second}[rng.IntN(3)]}
				r.Revision, r.Fresh = replicas[n].answer(r.ID, now, r.Budget)
				r.Invoked, r.Returned = now-time.Duration(rng.Int64N(int64(ms))), now+1+time.Duration(rng.Int64N(int64(ms)))
				h.reads = append(h.reads, r)
			}
			return h.play(t, started(t, check.Config{}))
		}
		right := play(func() cache { return &polling{truth: truth, period: 250 * ms, down: down} })
		if right.Violations != 0 {
			t.Fatalf("seed %d: a right cache was accused: %v", seed, right.First)
		}
		if right.Fresh == right.Reads || right.Staleness.Max == 0 || right.Staleness.Max > time.Second {
			t.Fatalf("seed %d: the simulation is too tame: %+v", seed, right)
		}
		wrong := play(func() cache {
			return &ttlOnly{truth: truth, ttl: 3 * time.Second, values: map[int64]struct {
				revision int64
				loaded   time.Duration
			}{}}
		})
		if wrong.Counts[check.I1] == 0 || wrong.Staleness.Max < time.Second {
			t.Fatalf("seed %d: a cache that only expires by time was not caught: %+v", seed, wrong)
		}
		if n := wrong.Violations - wrong.Counts[check.I1]; n != 0 {
			t.Fatalf("seed %d: it only breaks I1, found %v: %v", seed, wrong.Counts, wrong.First)
		}
	}
}
