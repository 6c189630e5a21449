package tiers

import (
	"context"
	"fmt"
	"math"
	"runtime/debug"
	"slices"

	"github.com/freshet-cache/freshet/coherence"
)

// found implements [find].
type found[V any] struct {
	cache   *Cache[V]
	ids     []string
	results []Result[V] // of the ids
}

func (f *found[V]) count(err error) {
	for i := range f.results {
		if err != nil {
			f.results[i] = Result[V]{}
		}
		f.results[i].Fresh = err == nil
		f.results[i], _ = f.cache.count(f.results[i], err)
	}
}

func (f *found[V]) renew(ctx context.Context) {
	if _, able := f.cache.config.Source.(TransactionSource[V]); able {
		return
	}
	// What cannot be had is missed by the run that follows.
	_ = f.collect(&Together{shared: f.cache.Shared, ctx: ctx})
}

// collect reads the ids through the tiers. While a transaction is open it begins no load.
func (f *found[V]) collect(t *Together) error {
	c := f.cache
	// Whatever is valid as far as the node knows will do: all values are looked at together later. No load
	// counts as begun after the read, which would excuse it.
	r := reading{Want: Want{Budget: math.MaxInt64}, order: math.MaxUint64}
	items := make([]*item[V], len(f.ids))
	var missing []int
	misses := map[int]Miss{} // place -> why L1 was not enough
	for i, id := range f.ids {
		it, shard := c.l1.get(id)
		if it == nil {
			missing, misses[i] = append(missing, i), c.missedL1(id, &r, nil)
		} else if answer, ok := c.label(it, TierL1, &r); ok {
			items[i], f.results[i] = it, answer
			it.heat.add(1, c.Tracker.Now())
			shard.promote(id)
		} else {
			missing, misses[i] = append(missing, i), c.missedL1(id, &r, nil)
		}
	}
	switch {
	case len(missing) == 0:
	case t.tx != nil:
		return fmt.Errorf("%s %q cannot be read in a transaction and has just changed: %w", c.config.Namespace, short(f.ids[missing[0]]), ErrUncertain)
	case len(missing) == 1:
		if err := f.land(t, items, missing, misses, []*flight[V]{c.fly(t.ctx, f.ids[missing[0]], &r)}); err != nil {
			return err
		}
	default:
		if err := f.land(t, items, missing, misses, c.flyAll(t.ctx, f.ids, missing, &r)); err != nil {
			return err
		}
	}
	for _, it := range items {
		t.held = append(t.held, coherence.Holding{
			Value: it.scopes[viewScope], Scopes: it.scopes, Snapshot: it.snapshot, Namespace: c.config.Namespace, Generation: it.generation,
		})
	}
	return nil
}

// land waits for the flights of the ids at the places. What they bring may have changed again: that is seen later.
func (f *found[V]) land(t *Together, items []*item[V], places []int, misses map[int]Miss, flights []*flight[V]) error {
	for i, place := range places {
		if err := flights[i].wait(t.ctx); err != nil {
			f.cache.ended(f.ids[place], misses[place], flights[i], nil, err)
			if !t.proof.proven(f.cache.Tracker.Latest(), f.cache.Tracker.Now()) {
				err = fmt.Errorf("%w: %w", ErrUncertain, err)
			}
			return fmt.Errorf("%s %q: %w", f.cache.config.Namespace, short(f.ids[place]), err)
		}
		it := flights[i].item
		items[place] = it
		f.results[place] = it.result(it.tier, true, 0, f.cache.Tracker.Now(), nil)
		f.cache.ended(f.ids[place], misses[place], flights[i], &f.results[place], nil)
	}
	return nil
}

// loadIn reads the ids in the transaction. What the application gave us to call may panic, like a source.
func (f *found[V]) loadIn(t *Together, source TransactionSource[V]) (err error) {
	c := f.cache
	defer func() {
		if p := recover(); p != nil {
			c.Logger.Error("tiers: a load panicked", "namespace", c.config.Namespace, "panic", loggablePanic(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("the load panicked: %v", p)
		}
	}()
	place := 0
	for ids := range slices.Chunk(f.ids, maxBatch) {
		asked := c.Tracker.Now()
		c.counts.loads.Add(uint64(len(ids)))
		ctx, span := c.spans.Load(t.ctx, c.config.Namespace, c.config.View, len(ids), true, c.Database)
		loaded, err := source.LoadIn(ctx, t.tx, ids)
		took := c.Tracker.Now().Sub(asked)
		c.counts.loadTimes.Observe(took)
		endSpan(span, err)
		if err == nil {
			err = t.see(loaded.Snapshot)
		}
		if err != nil {
			c.counts.loadErrs.Add(uint64(len(ids)))
			c.counts.classes[ClassOf(err)].Add(1)
			return fmt.Errorf("%s %q: %w", c.config.Namespace, short(ids[0]), err)
		}
		for _, id := range ids {
			it, err := c.keepFrom(t, id, loaded, took)
			if err != nil {
				return err
			}
			f.results[place] = it.result(TierSource, true, 0, c.Tracker.Now(), nil)
			place++
		}
	}
	return nil
}
