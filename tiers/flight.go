package tiers

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

// flight is one fetch of one id, shared by all reads that want it meanwhile.
type flight[V any] struct {
	id         string
	generation cluster.Generation // when it began: what it brings is of this one
	key        string             // in that generation
	done       chan struct{}      // closed by land; item or err is set before
	// lease is the token under which this flight holds the key's lease in L2; empty = it does not.
	// Only the goroutine of the flight touches it.
	lease string
	item  *item[V]
	err   error
	span  *spans.Flight // of its goroutine, set before that begins; nil = it has none
	// course is for explanations.
	course course
}

// brought is what a flight that has landed brought; nil for none.
func (f *flight[V]) brought() *item[V] {
	if f == nil {
		return nil
	}
	return f.item
}

// wait returns when the flight has landed, with its error, or when the reader's context ends.
func (f *flight[V]) wait(ctx context.Context) error {
	select {
	case <-f.done:
		f.span.Joined(ctx)
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// await waits for the flight. A reader whose patience ends before takes a STALE answer, if it may and there
// is one; ok is then true. Otherwise it waits on.
func (c *Cache[V]) await(ctx context.Context, f *flight[V], last *item[V], r *reading) (answer Result[V], ok bool, err error) {
	if r.patience == 0 {
		return answer, false, f.wait(ctx)
	}
	timer := time.NewTimer(r.patience.Sub(c.Tracker.Now()))
	defer timer.Stop()
	select {
	case <-f.done:
		f.span.Joined(ctx)
		return answer, false, f.err
	case <-ctx.Done():
		return answer, false, context.Cause(ctx)
	case <-timer.C:
	}
	if answer, ok = c.stale(f.id, last, r, staleSlow); ok {
		c.counts.softTimeouts.Add(1)
		return answer, true, nil
	}
	return answer, false, f.wait(ctx)
}

// flights are those under way.
type flights[V any] struct {
	mu   sync.Mutex
	byID map[string]*flight[V] // id -> the flight that reads may join
}

// maxFlights bounds the flights of one cache; beyond it reads fail with [ErrOverloaded].
const maxFlights = 10_000

// maxBatch bounds the ids of one load, and so the time that one slow id can cost others.
const maxBatch = 100

// fly joins the flight of an id or starts one, whose spans are of the trace in ctx.
func (c *Cache[V]) fly(ctx context.Context, id string, r *reading) *flight[V] {
	f, leading := c.board(id, r)
	if leading && !c.nearL2(ctx, f) {
		c.depart(ctx, []*flight[V]{f}, c.run)
	}
	return f
}

// nearL2 lands a flight with what L2 has, on the reader's own goroutine: a hit in L2 then needs no
// other, whose start, stack and wake-ups would cost more than the trip to Redis. It takes L2's time-out
// at most, whatever the reader's context says: others may have joined.
func (c *Cache[V]) nearL2(ctx context.Context, f *flight[V]) (landed bool) {
	if c.L2 == nil || c.passing() {
		f.course.noteDoubt(c.L2)
		return false
	}
	defer func() {
		if p := recover(); p != nil { // the decoding of the application's type
			c.Logger.Error("tiers: a load panicked", "namespace", c.config.Namespace, "panic", loggablePanic(p), "stack", string(debug.Stack()))
			c.land(f, nil, fmt.Errorf("the load panicked: %v", p))
			landed = true
		}
		if landed {
			c.work.Done()
		}
	}()
	b, err := c.L2.Get(c.spans.Carry(c.life, ctx), f.key)
	if err != nil {
		f.course.l2.note(c.stepL2(f.key, err))
		return false
	}
	return c.landEntry(f, b, TierL2)
}

// stepL2 is what an error of L2 says.
func (c *Cache[V]) stepL2(key string, err error) Step {
	switch {
	case errors.Is(err, ErrMiss):
		return StepNothing
	case !c.L2.Available(key):
		return StepUnavailable
	}
	return StepSilent
}

// flyAll joins or starts the flights of the ids at the given places, the new ones together in batches.
func (c *Cache[V]) flyAll(ctx context.Context, ids []string, places []int, r *reading) []*flight[V] {
	all := make([]*flight[V], len(places))
	var lead []*flight[V]
	for i, place := range places {
		f, leading := c.board(ids[place], r)
		all[i] = f
		if leading {
			lead = append(lead, f)
		}
	}
	for batch := range slices.Chunk(lead, maxBatch) {
		c.depart(ctx, batch, func(ctx context.Context, batch []*flight[V]) { c.run(ctx, c.fromL2(ctx, batch)) })
	}
	return all
}

// board returns the flight of an id, and whether the caller has just made it and must depart. Where
// there cannot be one, it has landed with the reason.
func (c *Cache[V]) board(id string, r *reading) (f *flight[V], leading bool) {
	f = &flight[V]{id: id, done: make(chan struct{})}
	landed := func(it *item[V], err error) (*flight[V], bool) {
		f.item, f.err = it, err
		close(f.done)
		return f, false
	}
	f.generation = c.generation()
	key, err := c.config.Key(f.generation, id)
	if err != nil {
		return landed(nil, err)
	}
	f.key = key
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	if f, ok := c.flights.byID[id]; ok {
		c.counts.coalesced.Add(1)
		return f, false
	}
	if c.life.Err() != nil {
		return landed(nil, ErrClosed)
	}
	// The flight before may have landed since the reader looked at L1: flights fill L1 before they land.
	if it, _ := c.l1.get(id); it != nil {
		if _, ok := c.label(it, TierL1, r); ok {
			c.counts.coalesced.Add(1)
			return landed(it, nil)
		}
	}
	if len(c.flights.byID) >= maxFlights {
		return landed(nil, fmt.Errorf("%d flights are under way: %w", maxFlights, ErrOverloaded))
	}
	c.flights.byID[id] = f
	c.work.Add(1) // for the goroutine of depart; under the lock, so that Close cannot miss it
	return f, true
}

// depart runs the flights' course in a goroutine of their own, so that no reader's context or panic ends
// them for the others. They all land within LoadTimeout, whatever the source does. from is the context of the read
// that began them, and tells of which trace their span is.
func (c *Cache[V]) depart(from context.Context, batch []*flight[V], course func(ctx context.Context, batch []*flight[V])) {
	//nolint:contextcheck // a flight outlives the read that began it
	ctx, cancel := context.WithTimeoutCause(c.life, c.LoadTimeout, fmt.Errorf("no answer within %v: %w", c.LoadTimeout, context.DeadlineExceeded))
	ctx, span, shared := c.spans.Flight(ctx, from, c.config.Namespace, c.config.View, len(batch))
	for _, f := range batch {
		f.span = shared
	}
	stop := context.AfterFunc(ctx, func() {
		for _, f := range batch {
			c.land(f, nil, context.Cause(ctx))
		}
	})
	go func() {
		defer func() {
			// What the application gave us to call (Tags, the encoding of its type) may panic, like a source.
			broken := errors.New("the flight broke off")
			if p := recover(); p != nil {
				c.Logger.Error("tiers: a load panicked", "namespace", c.config.Namespace, "panic", loggablePanic(p), "stack", string(debug.Stack()))
				broken = fmt.Errorf("the load panicked: %v", p)
			}
			stop()
			for _, f := range batch { // none is left unless something panicked
				c.land(f, nil, broken)
			}
			endSpan(span, batch[0].err)
			cancel()
			c.work.Add(-len(batch))
		}()
		course(ctx, batch)
	}()
}

// land ends the flight once; what comes later is dropped. After one that failed, readers who may have a
// STALE answer take it for a while.
func (c *Cache[V]) land(f *flight[V], it *item[V], err error) {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	select {
	case <-f.done:
		return
	default:
	}
	f.item, f.err = it, err
	close(f.done)
	if c.flights.byID[f.id] == f { // a refresh that does not load is not among them
		delete(c.flights.byID, f.id)
	}
	if err != nil {
		if old, _ := c.l1.get(f.id); old != nil {
			old.retry.Store(int64(c.Tracker.Now().Add(c.vary(c.config.RetryAfter))))
		}
	}
}

// run is the course of a flight that L2 has nothing for: lease, owner, source.
func (c *Cache[V]) run(ctx context.Context, batch []*flight[V]) {
	if len(batch) == 0 {
		return
	}
	if c.passing() {
		c.load(ctx, batch)
		return
	}
	var shared, alone []*flight[V] // with L2 to share what is loaded, and without
	for _, f := range batch {
		if c.L2 != nil && c.L2.Available(f.key) {
			shared = append(shared, f)
		} else {
			alone = append(alone, f)
		}
	}
	if len(alone) > 0 {
		alone = c.fromOwners(ctx, alone)
	}
	switch {
	case len(shared) > 0:
		c.underLease(ctx, shared, alone)
	case len(alone) > 0: // else the owners had everything, and the source is not to be asked for nothing
		c.load(ctx, alone)
	}
}

// passing reports whether the cache can keep nothing now, since changes of what it holds may go unlogged: it
// would be in vain to look elsewhere than in the source, or to wait for what another replica loads.
func (c *Cache[V]) passing() bool {
	scopes := [2]coherence.ScopeHash{coherence.Namespace(c.config.Namespace).Hash(), coherence.AnyTag().Hash()}
	own := scopes[:1]
	if c.config.Tags != nil {
		own = scopes[:]
	}
	_, doubted := c.Tracker.Doubted(own...)
	return doubted
}

// fromL2 lands what L2 has and returns the rest.
func (c *Cache[V]) fromL2(ctx context.Context, batch []*flight[V]) []*flight[V] {
	if c.L2 == nil || c.passing() {
		for _, f := range batch {
			f.course.noteDoubt(c.L2)
		}
		return batch
	}
	var rest []*flight[V]
	for i, reply := range c.L2.GetMany(ctx, keysOf(batch)) {
		if reply.Err != nil {
			batch[i].course.l2.note(c.stepL2(batch[i].key, reply.Err))
		} else if c.landEntry(batch[i], reply.Bytes, TierL2) {
			continue
		}
		rest = append(rest, batch[i])
	}
	return rest
}

// landEntry lands the flight with an entry from L2 or a peer if the entry is usable and valid.
func (c *Cache[V]) landEntry(f *flight[V], b []byte, from Tier) bool {
	it := c.usable(f, b, from)
	if it == nil {
		return false
	}
	c.l1.put(f.id, it)
	c.land(f, it, nil)
	c.ahead(f.id, it, c.Tracker.Now())
	return true
}

// usable is the item of an entry from L2 or a peer, nil if it cannot be read or is out of date.
func (c *Cache[V]) usable(f *flight[V], b []byte, from Tier) *item[V] {
	it, err := c.decode(f, b, from)
	if err != nil {
		f.course.at(from).note(StepUnreadable)
		c.counts.unusable.Add(1)
		return nil
	}
	if c.Tracker.Now() >= it.expires || !c.revalidate(it) {
		f.course.at(from).note(c.stepRefused(it))
		c.counts.rejected.Add(1)
		return nil
	}
	f.course.at(from).note(StepFound)
	return it
}

// stepRefused is why an item cannot be used.
func (c *Cache[V]) stepRefused(it *item[V]) Step {
	switch {
	case it.generation != c.generation():
		return StepGeneration
	case c.Tracker.Now() >= it.expires:
		return StepExpired
	}
	return StepChanged
}
