package tiers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// verify compares up to 100 entries, with what is to come of it.
func (d *desk) verify(want Verified) {
	d.t.Helper()
	v, err := d.cache.Verify(d.t.Context(), 100)
	if (err != nil) != (want.Failed > 0) {
		d.t.Errorf("error %v of %+v", err, v)
	}
	ids := func(of []Mismatch) string {
		var all []string
		for _, m := range of {
			all = append(all, m.ID)
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	if v.Checked != want.Checked || v.Moved != want.Moved || v.Failed != want.Failed || v.Skipped != want.Skipped ||
		ids(v.Mismatches) != ids(want.Mismatches) {
		d.t.Errorf("%+v; want %+v", v, want)
	}
}

// during has the next load do something before it reads.
func (d *desk) during(do func()) {
	d.reopen(func(_ *Shared, c *Config[int]) { c.Source = &interrupted{d, nil} })
	d.read("a", second)
	d.read("b", second)
	d.cache.config.Source.(*interrupted).do = do
}

type interrupted struct {
	*desk
	do func()
}

func (i *interrupted) Load(ctx context.Context, ids []string) (Batch[int], error) {
	if do := i.do; do != nil {
		i.do = nil
		do()
	}
	return i.desk.Load(ctx, ids)
}

// What changes past the log is found, and replaced in both tiers; what is equal fills nothing.
func TestVerify(t *testing.T) {
	onShelf(t, func(d *desk, s *shelf) {
		d.verify(Verified{}) // there is nothing
		for id := range map[string]int{"a": 1, "b": 2, "c": 0} {
			_, _ = d.cache.Lookup(d.t.Context(), id, second) // c is absent
		}
		synctest.Wait()
		a, _ := d.cache.l1.get("a")
		before, stored := d.cache.Stats(), fmt.Sprint(s.values)
		d.verify(Verified{Checked: 3})
		after := d.cache.Stats()
		if it, _ := d.cache.l1.get("a"); it != a || fmt.Sprint(s.values) != stored || after.Reads != before.Reads || after.Loads != before.Loads+3 {
			d.t.Errorf("it filled something, or counts reads: %+v, %+v", before, after)
		}

		d.mu.Lock()
		d.values["a"] = 10 // unlogged
		d.values["c"] = 30
		delete(d.values, "b")
		d.mu.Unlock()
		d.from(TierL1, "a", 1)
		d.verify(Verified{Mismatches: []Mismatch{{ID: "a"}, {ID: "b"}, {ID: "c"}}})
		loads := d.loads
		d.from(TierL1, "a", 10)
		d.from(TierL1, "c", 30)
		if r := d.read("b", second); !r.Absent || r.Tier != TierL1 {
			d.t.Errorf("b is %+v; want absent", r)
		}
		other := d.newCache(d.t, func(shared *Shared, _ *Config[int]) { shared.L2 = s })
		defer other.Close()
		if r, err := other.Lookup(d.t.Context(), "a", second); r.Value != 10 || r.Tier != TierL2 {
			d.t.Errorf("from L2 %+v, %v; want 10", r, err)
		}
		if d.loads != loads {
			d.t.Errorf("%d loads; want what the sample has loaded", d.loads-loads)
		}
		d.verify(Verified{Checked: 3})
		if s := d.cache.Stats(); s.Verified != 6 || s.Mismatched != 3 || s.VerifyFailed+s.VerifyMoved+s.VerifySkipped != 0 {
			d.t.Errorf("counts %+v", s)
		}
	})
}

// A mismatch tells what was held and what was loaded, under which snapshots.
func TestVerifyMismatch(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		held := d.log.Snapshot()
		d.values["a"] = 10
		d.commit("z", 0, coherence.Entity("n", "z"))
		v, err := d.cache.Verify(d.t.Context(), 1)
		if err != nil || len(v.Mismatches) != 1 {
			d.t.Fatalf("%+v, %v", v, err)
		}
		m := v.Mismatches[0]
		if m.ID != "a" || m.Tier != TierSource || !m.Held.Snapshot.Equal(held) || !m.Loaded.Snapshot.Equal(d.log.Snapshot()) ||
			m.Held.Version == m.Loaded.Version || m.Loaded.Version != d.read("a", second).Version {
			d.t.Errorf("%+v", m)
		}
	})
}

// What changes while it is compared is no mismatch: it moved, if the log has it, now or later, or history is another.
func TestVerifyMoved(t *testing.T) {
	entity := coherence.Entity("n", "a")
	for name, change := range map[string]func(d *desk){
		"logged":    func(d *desk) { d.write("a", 10) },
		"by a view": func(d *desk) { d.commit("a", 10, coherence.View("n", "a", "detail")) },
		"graced": func(d *desk) {
			tx := d.log.Begin()
			tx.Grace(time.Minute)
			tx.Change(entity)
			d.values["a"] = 10
			tx.Commit()
		},
		"generation": func(d *desk) { d.values["a"] = 10; d.log.SetGeneration("n", 2) },
		"crash":      func(d *desk) { d.values["a"] = 10; d.log.Crash() },
		"doubted": func(d *desk) {
			d.values["a"] = 10
			d.tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{coherence.Namespace("n").Hash(): 0})
		},
		"scheduled": func(d *desk) { d.values["a"] = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			onDesk(t, func(d *desk) {
				d.during(func() { change(d) })
				if name == "scheduled" {
					d.cache.Scheduled = func(_ context.Context, namespace string, ids []string) ([]coherence.ScopeHash, error) {
						if namespace != "n" || !slices.Equal(ids, []string{"a"}) {
							d.t.Errorf("it asks for %q of %q", ids, namespace)
						}
						return []coherence.ScopeHash{entity.Hash()}, nil
					}
				}
				d.verify(Verified{Checked: 1, Moved: 1})
			})
		})
	}
}

// A change that the log gets only after it was looked for among the scheduled is found by the poll, which is sent later.
func TestVerifyScheduledMeanwhile(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.during(func() { d.values["a"] = 10 })
		d.cache.Scheduled = func(context.Context, string, []string) ([]coherence.ScopeHash, error) {
			d.log.Commit(coherence.Entity("n", "a")) // it was due just before
			return nil, nil
		}
		d.verify(Verified{Checked: 1, Moved: 1})
	})
}

// What was read of a state before that of the entry, against the rule of a [Source], says nothing of it.
func TestVerifyLoadIsBehind(t *testing.T) {
	onDesk(t, func(d *desk) {
		old := d.log.Snapshot()
		d.write("a", 10)
		d.poll()
		d.read("a", second)
		d.cache.config.Source = sourceFunc(func([]string) Batch[int] { return Batch[int]{Snapshot: old, Values: map[string]int{"a": 1}} })
		d.verify(Verified{Moved: 1})
	})
}

// What nobody would be given as FRESH is not compared: what has changed, expired, or is in doubt.
func TestVerifySkips(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		d.read("b", second)
		d.write("a", 10) // nobody has told the tracker
		loads := d.loads
		d.verify(Verified{Checked: 1, Skipped: 1})
		d.tracker.Doubt(map[coherence.ScopeHash]coherence.Instant{coherence.Namespace("n").Hash(): 0})
		d.verify(Verified{Skipped: 2})
		d.tracker.Doubt(nil)
		pass(2 * time.Hour)
		d.verify(Verified{Skipped: 2})
		if d.loads != loads+1 {
			d.t.Errorf("%d loads; want one", d.loads-loads)
		}
		d.reopen(func(_ *Shared, c *Config[int]) { c.NoVerify = true })
		d.read("a", second)
		d.verify(Verified{})
	})
}

// A source, or a log, that fails, hangs or panics fails the entries, in bounded time, and nobody else.
func TestVerifyFails(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.during(nil)
		d.fail = errors.New("refused")
		d.verify(Verified{Failed: 2})
		d.fail = nil
		d.log.Fail(errors.New("refused"))
		d.verify(Verified{Failed: 2})
		d.log.Fail(nil)
		pass(time.Second)
		source := d.cache.config.Source.(*interrupted)
		source.do = func() { panic("planted") }
		d.verify(Verified{Failed: 2})
		source.do = func() { d.values["a"] = 10; d.log.Fail(errors.New("refused")) }
		d.verify(Verified{Checked: 1, Failed: 1}) // without the second poll nothing is said of a
		d.log.Fail(nil)
		d.values["a"] = 1
		pass(time.Second)
		d.cache.Scheduled = func(context.Context, string, []string) ([]coherence.ScopeHash, error) {
			return nil, errors.New("refused")
		}
		source.do = func() { d.values["a"] = 10 }
		d.verify(Verified{Checked: 1, Failed: 1})
		d.values["a"] = 1

		release := make(chan struct{})
		source.do = func() { <-release } // whatever its context says
		began := time.Now()
		d.verify(Verified{Failed: 2})
		if took := time.Since(began); took > d.cache.LoadTimeout+time.Second {
			d.t.Errorf("it took %v of a source that hangs", took)
		}
		d.verify(Verified{Failed: 2}) // and starts no second load
		if s := d.cache.Bulkhead.Stats(); s.Running != 1 {
			d.t.Errorf("%d loads run", s.Running)
		}
		d.from(TierL1, "a", 1)
		close(release)
		synctest.Wait()
		d.verify(Verified{Checked: 2})

		d.cache.config.Source = sourceFunc(func([]string) Batch[int] { return Batch[int]{Values: map[string]int{"a": 1}} })
		d.verify(Verified{Failed: 2}) // as of a standby
	})
}

// When the source has failed for a batch, it is not asked for the others.
func TestVerifyGivesUp(t *testing.T) {
	onDesk(t, func(d *desk) {
		for n := range 4 * verifyBatch {
			d.values[fmt.Sprint(n)] = n
			d.read(fmt.Sprint(n), second)
		}
		loads := d.loads
		d.fail = errors.New("refused")
		d.verify(Verified{Failed: 4 * verifyBatch})
		if d.loads != loads+1 {
			d.t.Errorf("%d loads; want one", d.loads-loads)
		}
		d.fail = nil
		d.verify(Verified{Checked: 4 * verifyBatch})
		if d.loads != loads+5 {
			d.t.Errorf("%d loads; want four more", d.loads-loads-1)
		}
	})
}

// Readers go first: a sample waits while they do, and no longer than a load may take.
func TestVerifyYields(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		d.cache.Bulkhead = NewBulkhead(1, 8)
		if err := d.cache.Bulkhead.Enter(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(d.t.Context())
		defer cancel()
		go func() { _ = d.cache.Bulkhead.Enter(ctx) }() // a reader, in the queue
		synctest.Wait()
		began := time.Now()
		d.verify(Verified{Failed: 1})
		if took := time.Since(began); took < d.cache.LoadTimeout || took > d.cache.LoadTimeout+time.Second {
			d.t.Errorf("it waited for %v", took)
		}
		time.AfterFunc(time.Second, func() { cancel(); d.cache.Bulkhead.Leave() })
		d.verify(Verified{Checked: 1})
	})
}

// The same value, encoded otherwise by another build, is no mismatch.
func TestVerifyOtherEncoding(t *testing.T) {
	onDesk(t, func(d *desk) {
		d.read("a", second)
		a, _ := d.cache.l1.get("a")
		a.version++
		d.verify(Verified{Checked: 1})
	})
}

// Every item of an L1 is drawn as often as any other, none twice at once, and all of them if so many are wanted.
func TestL1Draw(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 7))
	l := newL1[int](10_000, 1<<40)
	const items, draws, each = 1000, 2000, 50
	for i := range items {
		l.put(fmt.Sprint(i), itemOf(i, 1, 1))
	}
	times := make([]int, items)
	for range draws {
		drawn := l.draw(each, random.Int64N)
		once := map[string]bool{}
		for _, m := range drawn {
			once[m.id] = true
			times[m.it.value]++
		}
		if len(drawn) != each || len(once) != each {
			t.Fatalf("%d drawn, %d different; want %d", len(drawn), len(once), each)
		}
	}
	// Each is Binomial(2000, 0.05): 100 times, give or take ten; six times that is one in 10^9.
	if low, high := slices.Min(times), slices.Max(times); low < 40 || high > 160 {
		t.Errorf("drawn from %d to %d times; want about %d", low, high, draws*each/items)
	}
	if all := l.draw(5*items, random.Int64N); len(all) != items {
		t.Errorf("%d drawn of %d", len(all), items)
	}
	if none := newL1[int](10, 1000).draw(5, random.Int64N); len(none) != 0 {
		t.Errorf("%d drawn of none", len(none))
	}
}
