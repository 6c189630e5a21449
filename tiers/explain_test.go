package tiers

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

func (d *desk) explain(id string, want Want) Explanation {
	d.t.Helper()
	synctest.Wait() // for what reads have left behind
	before, l1 := d.cache.Stats(), d.l1()
	e, err := d.cache.Explain(d.t.Context(), id, want)
	if err != nil {
		d.t.Fatalf("explain %s: %v", id, err)
	}
	if after := d.cache.Stats(); !reflect.DeepEqual(before, after) || !reflect.DeepEqual(l1, d.l1()) {
		d.t.Errorf("explaining %s changed something: %+v, then %+v", id, before, after)
	}
	return e
}

// l1 is all that can change of the items in L1: id -> that.
func (d *desk) l1() map[string][]int64 {
	all := map[string][]int64{}
	for i := range d.cache.l1.shards {
		lru := d.cache.l1.shards[i].lru
		for place, id := range lru.Keys() { // in the order of use
			it, _ := lru.Peek(id)
			all[id] = []int64{int64(place), int64(it.sum.Load()), it.checked.Load(), it.early.Load(), it.retry.Load(), int64(it.promoted.Load())}
		}
	}
	return all
}

// What an explanation says of L1 is what a read finds: it says FRESH iff a read is answered so at once, and STALE within the
// age that a read then says, whatever has changed, expired, is in doubt or cannot be proven.
func TestExplainAgreesWithReads(t *testing.T) {
	labels := map[Label]int{}
	for seed := range uint64(20) {
		onDesk(t, func(d *desk) {
			random := rand.New(rand.NewPCG(seed, 3))
			d.reopen(func(_ *Shared, c *Config[int]) { c.TTL = 40 * time.Second })
			refused := errors.New("connection refused")
			for range 300 {
				switch random.IntN(14) {
				case 0:
					d.write("a", random.Int())
				case 1:
					d.ownWrite("a", random.Int())
				case 2:
					d.log.Fail(nil)
					d.writeWithGrace("a", random.Int(), coherence.Entity("n", "a"))
					d.poll()
				case 3:
					d.goDown()
				case 4, 5, 11:
					d.log.Fail(nil)
					d.mu.Lock()
					d.fail = nil
					d.mu.Unlock()
				case 6:
					d.tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{coherence.Namespace("n").Hash(): d.tracker.Now()})
				case 7:
					d.tracker.Doubt(nil)
				case 8:
					pass(time.Duration(random.IntN(30)) * time.Second)
				case 9:
					d.log.SetGeneration("n", uint32(1+random.IntN(3)))
				case 10:
					d.log.Fail(refused) // nothing can be proven, and the source answers
				default:
					pass(time.Duration(random.IntN(2000)) * time.Millisecond)
				}
				want := Want{Budget: time.Second, MaxStale: time.Duration(random.IntN(60)) * time.Second, Grace: random.IntN(2) == 0}
				e := d.explain("a", want)
				labels[e.Label]++
				_, hit := d.cache.Hit("a", want.Budget)
				if hit && e.Label != LabelFresh {
					d.t.Fatalf("seed %d: a hit, explained as %v: %+v", seed, e.Label, e)
				}
				r, err := d.cache.Lookup(d.t.Context(), "a", want)
				switch {
				case e.Label == LabelFresh && (err != nil || !r.Fresh || r.Tier != TierL1):
					d.t.Fatalf("seed %d: explained as FRESH, read as %+v, %v", seed, r, err)
				case err == nil && r.Tier == TierL1 && !r.Fresh && r.Grace == 0 && (e.Label != LabelStale || e.Age > r.Age):
					d.t.Fatalf("seed %d: read as STALE of %v, explained as %v of %v", seed, r.Age, e.Label, e.Age)
				case err == nil && r.Grace > 0 && e.Proven && e.Label != LabelGraced:
					d.t.Fatalf("seed %d: read in its grace, explained as %v", seed, e.Label)
				case err != nil && e.Label == LabelStale && want.MaxStale-e.Age > 5*time.Second:
					d.t.Fatalf("seed %d: explained as STALE of %v within %v, and not answered: %v", seed, e.Age, want.MaxStale, err)
				}
			}
		})
	}
	for _, label := range []Label{LabelNone, LabelStale, LabelGraced, LabelFresh} {
		if labels[label] < 10 {
			t.Errorf("%d of all were explained as %v", labels[label], label)
		}
	}
}

// Where the value is, under which snapshot, what it depends on, and what changed of that.
func TestExplainTellsTheTiers(t *testing.T) {
	onShelf(t, func(d *desk, s *shelf) {
		d.reopen(func(shared *Shared, c *Config[int]) {
			shared.L2 = s
			c.Tags = func(id string, _ int) []string { return []string{"letter:" + id} }
			c.Refresh = Refresh{Ahead: 0.5}
		})
		if e := d.explain("a", second); e.L1 != nil || e.L2 != nil || e.InL2 != StepNothing || e.Label != LabelNone || e.Miss != nil || !e.Proven || len(e.Scopes) != ownScopes {
			t.Fatalf("before any read: %+v", e)
		}
		snapshot := d.log.Snapshot()
		d.read("a", second)
		pass(200 * time.Millisecond)
		e := d.explain("a", second)
		if e.Key != "k:a" || e.Generation != cluster.FirstGeneration() || e.Label != LabelFresh || e.InL2 != StepFound {
			t.Errorf("after a read: %+v", e)
		}
		for name, c := range map[string]*Copy{"L1": e.L1, "L2": e.L2} {
			if c.Absent || !c.Snapshot.Equal(snapshot) || len(c.Tags) != 1 || c.Tags[0] != "letter:a" || c.Bytes == 0 ||
				c.Left <= 50*time.Minute || c.Refresh >= c.Left || c.Refresh <= 0 || c.Standing.Refused != coherence.NotRefused {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if e.L1.Tier != TierSource || e.L2.Codec != JSON || e.L2.Payload != 1 || e.L2.Compression != NoCompression {
			t.Errorf("L1 %+v, L2 %+v", e.L1, e.L2)
		}
		if m := e.Miss; m == nil || m.L1 != StepNothing || m.L2 != StepNothing || m.Lease != StepHeld || m.Source != StepFound || m.Tier != TierSource || m.Label != LabelFresh {
			t.Errorf("the miss: %+v", m)
		}

		xid := d.commit("a", 10, coherence.Tag("letter:a"))
		d.poll()
		pass(time.Second)
		e = d.explain("a", second)
		if e.L1 == nil || e.Label != LabelNone || e.L1.Standing.Refused != coherence.RefusedChanged || e.L1.Standing.By.Lacks != xid || e.InL2 != StepChanged {
			t.Fatalf("after a change of its tag: %+v", e)
		}
		if by := e.Scopes[e.L1.Standing.Scope]; by.Name != "tag letter:a" || by.Last != xid || e.Now.Sub(by.Heard) < 990*time.Millisecond || by.L1 != coherence.RefusedChanged || by.L2 != coherence.RefusedChanged {
			t.Errorf("the scope that changed: %+v", by)
		}
		d.read("a", second)
		if m := d.explain("a", second).Miss; m.L1 != StepChanged || m.Refused != coherence.RefusedChanged || m.XID != xid || m.Scope != coherence.Tag("letter:a").Hash() || m.L2 != StepChanged || m.Source != StepFound {
			t.Errorf("the miss: %+v", m)
		}

		d.read("none", second)
		if e := d.explain("none", second); !e.L1.Absent || !e.L2.Absent || e.Miss.Source != StepNothing || e.Label != LabelFresh {
			t.Errorf("what is not there: %+v", e)
		}
		s.mu.Lock()
		s.values["k:a"] = s.values["k:none"]
		s.mu.Unlock()
		if e := d.explain("a", second); e.InL2 != StepUnreadable || e.L2 != nil || !errors.Is(e.Unread, ErrForeign) || !strings.Contains(e.Unread.Error(), "another key") {
			t.Errorf("an entry of another key: %v, %v", e.InL2, e.Unread)
		}
		s.mu.Lock()
		s.values["k:a"] = []byte("FRSH\x01 and then something else")
		s.mu.Unlock()
		if e := d.explain("a", second); e.InL2 != StepUnreadable || !errors.Is(e.Unread, ErrCorrupt) {
			t.Errorf("a damaged entry: %v, %v", e.InL2, e.Unread)
		}
		d.cache.l1.shard("a").lru.Purge()
		d.read("a", second)
		if m := d.explain("a", second).Miss; m.L1 != StepNothing || m.L2 != StepUnreadable {
			t.Errorf("the miss: %+v", m)
		}
		if _, err := d.cache.Explain(t.Context(), "a\x00", second); !errors.Is(err, ErrBadID) {
			t.Errorf("a bad id: %v", err)
		}
	})
}

// Whatever the application's functions do, and whatever stands in L2, an explanation has no value and no panic in it.
func TestExplainTellsNoValue(t *testing.T) {
	onShelf(t, func(d *desk, s *shelf) {
		d.read("a", second)
		h := d.header("a")
		b, err := d.cache.packing.EncodeEntry(nil, h, []byte(`"a secret"`)) // no number
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.values["k:a"] = b
		s.mu.Unlock()
		e := d.explain("a", second)
		if e.InL2 != StepUnreadable || e.Unread == nil || strings.Contains(e.Unread.Error(), "secret") {
			t.Errorf("%v, %v", e.InL2, e.Unread)
		}
		d.reopen(func(_ *Shared, c *Config[int]) {
			tags := 0
			c.Tags = func(string, int) []string {
				if tags++; tags > 1 {
					panic("a secret")
				}
				return []string{"x"}
			}
		})
		d.read("a", second)
		if e := d.explain("a", second); len(e.L1.Tags) != 1 || !strings.HasPrefix(e.L1.Tags[0], "#") {
			t.Errorf("tags that cannot be told: %q", e.L1.Tags)
		}
	})
}

// A read's miss says what it met at each tier and how it ended, whoever was asked in its place.
func TestMissesTellTheWay(t *testing.T) {
	onDesk(t, func(d *desk) {
		miss := func(id string) Miss {
			d.t.Helper()
			m, ok := d.cache.misses.last(id)
			if !ok {
				d.t.Fatalf("the read of %s was no miss", id)
			}
			return m
		}
		d.read("a", second)
		d.read("a", second)
		if m := miss("a"); m.L1 != StepNothing || m.L2 != StepNotAsked || m.Source != StepFound || m.Label != LabelFresh {
			d.t.Errorf("the first read: %+v", m)
		}
		first := miss("a").At
		pass(time.Second)
		d.read("a", Want{}) // a poll, and then L1 has it
		d.read("a", second)
		if m := miss("a"); m.At != first {
			d.t.Errorf("an answer of L1: %+v", m)
		}

		d.goDown()
		pass(3 * time.Second)
		d.read("a", Want{Budget: time.Second, MaxStale: time.Minute})
		if m := miss("a"); m.L1 != StepUnproven || m.Label != LabelStale || m.Tier != TierL1 || m.At == first || m.At.Sub(m.Known) < 3*time.Second {
			d.t.Errorf("without Postgres: %+v", m)
		}
		if _, err := d.cache.Lookup(d.t.Context(), "b", second); err == nil {
			d.t.Fatal("an answer without Postgres")
		}
		if m := miss("b"); m.L1 != StepNothing || m.Source != StepFailed || m.Failure != FailureUncertain || m.Label != LabelNone {
			d.t.Errorf("not in L1, and without Postgres: %+v", m)
		}
		d.log.Fail(nil)
		d.mu.Lock()
		d.fail = nil
		d.mu.Unlock()

		if _, err := d.cache.LookupMany(d.t.Context(), []string{"b", "none"}, second); err != nil {
			d.t.Error(err)
		}
		if m := miss("none"); m.Source != StepNothing || m.Label != LabelFresh {
			d.t.Errorf("of many: %+v", m)
		}
		pass(2 * time.Hour)
		if _, err := d.cache.LookupMany(d.t.Context(), []string{"b"}, Want{Budget: time.Second, Consistent: true}); err != nil {
			d.t.Error(err)
		}
		if m := miss("b"); m.L1 != StepExpired || m.Source != StepFound {
			d.t.Errorf("expired, of several as of one moment: %+v", m)
		}
		d.write("b", 7)
		d.poll()
		gone, stop := context.WithCancel(d.t.Context())
		stop()
		d.mu.Lock()
		d.pause = func() { pass(time.Second) }
		d.mu.Unlock()
		if _, err := d.cache.Lookup(gone, "b", second); err == nil {
			d.t.Error("a reader who has left got an answer")
		}
		if m := miss("b"); m.L1 != StepChanged || m.Failure != FailureGone {
			d.t.Errorf("a reader who leaves: %+v", m)
		}
		pass(2 * time.Second)
	})
}

// Misses of many ids take the place of the oldest.
func TestMissesAreBounded(t *testing.T) {
	m := misses{seed: maphash.MakeSeed()}
	for i := range 100_000 {
		m.keep(strconv.Itoa(i), Miss{At: coherence.Instant(1 + i)})
	}
	kept := 0
	for i := range 100_000 {
		if _, ok := m.last(strconv.Itoa(i)); ok {
			kept++
		}
	}
	if kept > missSets*missWays || kept < missSets*missWays*9/10 {
		t.Errorf("%d are kept, want up to %d", kept, missSets*missWays)
	}
	// Of so few no set gets more than it has ways for, but once in some hundred thousand seeds.
	for i := 99_900; i < 100_000; i++ {
		if _, ok := m.last(strconv.Itoa(i)); !ok {
			t.Errorf("%d, one of the last 100, is not kept", i)
		}
	}
}

// The shard of a slot is found by the text of its slots.
func TestShardServes(t *testing.T) {
	s := ShardState{Slots: "0-5460 5462 16383"}
	for slot, want := range map[uint16]bool{0: true, 5460: true, 5461: false, 5462: true, 5463: false, 16383: true} {
		if s.Serves(slot) != want {
			t.Errorf("slot %d: %t", slot, !want)
		}
	}
	if (ShardState{}).Serves(0) {
		t.Error("a shard that is unreached serves a slot")
	}
}
