package tiers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

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

// underLease loads what this replica gets the lease for, and lands the rest with what other replicas
// load meanwhile. alone needs no lease and is loaded with the first.
func (c *Cache[V]) underLease(ctx context.Context, batch, alone []*flight[V]) {
	asking, span := c.spans.Lease(ctx, len(batch))
	defer span.End("")
	patience := c.Tracker.Now().Add(c.LeaseWait)
	token := rand.Text() // of this load, not of this process: what an old holder does must not pass for a new one's
	for pause := 500 * time.Microsecond; ; pause = min(pause*3/2, 16*time.Millisecond) {
		last := ctx.Err() != nil || c.Tracker.Now() >= patience
		var others []*flight[V]
		load := alone
		alone = nil
		for i, reply := range c.L2.LeaseMany(asking, c.leasesOf(batch, token)) {
			f := batch[i]
			if reply.Held {
				f.lease = token
			}
			switch {
			case reply.Value != nil && c.landEntry(f, reply.Value, TierL2):
				f.course.lease.note(StepWaited)
				c.release(ctx, f)
			case reply.Held:
				f.course.lease.note(StepHeld)
				load = append(load, f)
			case reply.Err != nil:
				f.course.lease.note(StepSilent)
				load = append(load, f)
			default:
				others = append(others, f)
			}
		}
		if len(others) == 0 {
			span.End("") // the wait is over
		}
		if len(load) > 0 {
			c.load(ctx, load)
		}
		batch = others
		if len(batch) == 0 {
			return
		}
		if last {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	// The holder takes long, or died. What it loads is good for others; these readers have waited enough.
	c.counts.cutThru.Add(uint64(len(batch)))
	for _, f := range batch {
		f.course.lease.note(StepCutThrough)
	}
	span.Outcome("cut-through")
	span.End("")
	c.load(ctx, batch)
}

// release gives up the lease that the flight holds, if it does.
func (c *Cache[V]) release(ctx context.Context, f *flight[V]) {
	if f.lease == "" {
		return
	}
	// If this fails, the lease ends by itself.
	_ = c.L2.Release(context.WithoutCancel(ctx), cluster.Lease(f.key), f.lease)
	f.lease = ""
}

// fromOwners lands what the owner replicas answer and returns the rest.
func (c *Cache[V]) fromOwners(ctx context.Context, batch []*flight[V]) []*flight[V] {
	if c.Peers == nil {
		return batch
	}
	ctx, cancel := context.WithTimeout(ctx, c.PeerWait) // for all together: an owner may hang
	defer cancel()
	landed := make([]bool, len(batch))
	var next atomic.Int64
	ask := func() {
		for i := int(next.Add(1)) - 1; i < len(batch); i = int(next.Add(1)) - 1 {
			f := batch[i]
			b, err := c.Peers.Fetch(ctx, c.config.Namespace, c.config.View, f.id)
			switch {
			case err == nil:
				landed[i] = c.landEntry(f, b, TierOwner)
			case errors.Is(err, ErrNoOwner):
				f.course.owner.note(StepHere)
			default:
				f.course.owner.note(StepSilent)
			}
		}
	}
	var others sync.WaitGroup
	for range min(len(batch), maxQuestions) - 1 {
		others.Go(ask)
	}
	ask()
	others.Wait()
	var rest []*flight[V]
	for i, f := range batch {
		if !landed[i] {
			rest = append(rest, f)
		}
	}
	return rest
}

// maxQuestions bounds the questions to owners that one flight has under way.
const maxQuestions = 16

// load lands the flights with what the source has, and shares it.
func (c *Cache[V]) load(ctx context.Context, batch []*flight[V]) {
	defer func() {
		for _, f := range batch {
			c.release(ctx, f)
		}
	}()
	began, loaded, err := c.ask(ctx, idsOf(batch))
	if err != nil && len(batch) > 1 && ofOneID(err) {
		for _, f := range batch {
			c.load(ctx, []*flight[V]{f})
		}
		return
	}
	if err != nil {
		c.counts.classes[ClassOf(err)].Add(1)
		if began.order != 0 { // else the bulkhead let nobody ask
			c.counts.loadErrs.Add(uint64(len(batch)))
		}
		failed := StepFailed
		if errors.Is(err, ErrOverloaded) {
			failed = StepOverloaded
		}
		for _, f := range batch {
			f.course.source.note(failed)
			c.land(f, nil, err)
		}
		return
	}
	cost := c.Tracker.Now().Sub(began.at)
	var fillings []Filling
	for _, f := range batch {
		it := c.loadedItem(f, loaded, began, cost)
		brought := StepFound
		if it.absent {
			brought = StepNothing
		}
		f.course.source.note(brought)
		keep := it.snapshot.Timeline != 0 && c.revalidate(it)
		e, err := c.encode(f.key, it)
		if err != nil {
			c.cannotKeep(err)
			keep = false
		}
		it.version, it.size = e.version, sizeOf(f.id, e.payload)
		if keep {
			c.l1.put(f.id, it)
		}
		c.land(f, it, nil)
		if keep && c.L2 != nil && c.L2.Available(f.key) {
			filling := Filling{Key: f.key, Bytes: e.bytes, TTL: it.ttl}
			if f.lease != "" {
				filling.LeaseKey, filling.Token = cluster.Lease(f.key), f.lease
				f.lease = ""
			}
			fillings = append(fillings, filling)
		}
	}
	if len(fillings) == 0 {
		return
	}
	// Best effort, bounded by L2's own time-out; the readers have their answer.
	for _, err := range c.L2.SetMany(context.WithoutCancel(ctx), fillings) {
		if err != nil {
			c.countUnfilled(err)
		} else {
			c.counts.fills.Add(1)
		}
	}
}

// ofOneID reports whether one id of a batch may have spoilt it for the others: Postgres could not read
// one as the type of its column, say, or its row does not fit V.
func ofOneID(err error) bool {
	var answer *pq.Error
	return errors.Is(err, errRow) || (errors.As(err, &answer) && answer.Code.Class() == "22") // data exception
}

// loadStart is when a load began, on the clock and in the order of reads and loads.
type loadStart struct {
	at    coherence.Instant
	order uint64
}

// ask loads the ids through the bulkhead. A panic of the source is an error of this load only.
func (c *Cache[V]) ask(ctx context.Context, ids []string) (began loadStart, loaded Batch[V], err error) {
	if err := c.Bulkhead.Enter(ctx); err != nil {
		return began, loaded, err
	}
	defer c.Bulkhead.Leave()
	c.counts.loads.Add(uint64(len(ids)))
	began = loadStart{at: c.Tracker.Now(), order: c.order.Add(1)}
	ctx, span := c.spans.Load(ctx, c.config.Namespace, c.config.View, len(ids), c.runsSQL, c.Database)
	defer func() {
		c.counts.loadTimes.Observe(c.Tracker.Now().Sub(began.at))
		endSpan(span, err)
	}()
	defer func() {
		if p := recover(); p != nil {
			c.Logger.Error("tiers: the source panicked", "namespace", c.config.Namespace, "panic", loggablePanic(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("the source panicked: %v", p)
		}
	}()
	loaded, err = c.config.Source.Load(ctx, ids)
	return began, loaded, err
}

func idsOf[V any](batch []*flight[V]) []string {
	ids := make([]string, len(batch))
	for i, f := range batch {
		ids[i] = f.id
	}
	return ids
}

func keysOf[V any](batch []*flight[V]) []string {
	keys := make([]string, len(batch))
	for i, f := range batch {
		keys[i] = f.key
	}
	return keys
}

func (c *Cache[V]) leasesOf(batch []*flight[V], token string) []LeaseRequest {
	leases := make([]LeaseRequest, len(batch))
	for i, f := range batch {
		leases[i] = LeaseRequest{Key: f.key, LeaseKey: cluster.Lease(f.key), Token: token, TTL: c.LeaseTTL}
	}
	return leases
}
