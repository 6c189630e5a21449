package tiers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

// Together is one read of several values, of any caches of one node, as of one snapshot of Postgres. Its
// function reads by [Cache.LookupIn], from one goroutine. See [ReadTogether].
type Together struct {
	shared Shared
	spans  *spans.Tracer
	ctx    context.Context //nolint:containedctx // of the run; a Together lives within one call of ReadTogether
	proof  reading         // what the reader wants proven; its order is not used

	// What the run has read.
	values int
	held   []coherence.Holding // through the tiers: valid when it was read
	finds  []find              // by all calls of LookupIn
	failed error               // the first read without an answer; nil = none

	// Of the last resort.
	tx    Transaction       // nil = this is none
	began coherence.Instant // before tx began
	// generations are those before tx began: what it reads is of these.
	generations *coherence.Generations
	at          coherence.Snapshot    // of tx, once it has been read in
	read        []coherence.ScopeHash // values that were read in tx
	ended       bool
}

// find is what one call of LookupIn has read, of whatever type.
type find interface {
	// renew loads what has changed, where no transaction can.
	renew(ctx context.Context)
	// count says that the values were answered, or why they were not.
	count(err error)
}

// Moment is the instant of which all values of a read are.
type Moment struct {
	// Age bounds the staleness: the values reflect every commit older than this.
	Age time.Duration
	// Snapshot is that of which they are the state; zero if nothing was read.
	Snapshot coherence.Snapshot
}

// TogetherCounts are what reads of several values as of one moment cost beyond hits in L1. The zero value is
// ready; it is safe for concurrent use.
type TogetherCounts struct {
	Polls        atomic.Uint64 // that were waited for
	Repeats      atomic.Uint64 // runs that had to be repeated, since something changed meanwhile
	Transactions atomic.Uint64 // that were needed in the end
}

const (
	// maxRuns bounds how often a read of several values tries to find them in the tiers as of one moment.
	maxRuns = 3
	// maxTogether bounds its values.
	maxTogether = 10_000
)

// ReadTogether runs the function until all that it has read is the state at one snapshot: that of the latest
// poll, if it is what the reader wants; else that of one more poll; and when something changes all the time,
// after maxRuns, that of one transaction, in which the function runs for the last time. There is no STALE answer:
// want.MaxStale is not looked at. The error says why what was read is not of one moment, and wraps
// [ErrUncertain]. What the function could not read is no part of it.
func ReadTogether(ctx context.Context, shared Shared, want Want, read func(t *Together)) (Moment, error) {
	t := &Together{shared: shared, spans: spans.New(shared.Tracer), ctx: ctx, proof: reading{Want: want}}
	defer func() { t.ended = true }()
	for range maxRuns {
		t.forget()
		read(t)
		moment, settled, err := t.settle() //nolint:contextcheck // the context is in t
		switch {
		case settled:
			t.count(nil)
			return moment, nil
		case ctx.Err() != nil:
			return t.giveUp(context.Cause(ctx))
		case err != nil:
			return t.giveUp(err)
		}
		if counts := shared.Together; counts != nil {
			counts.Repeats.Add(1)
		}
	}
	return t.lastResort(read) //nolint:contextcheck // the context is in t
}

// forget begins a run.
func (t *Together) forget() {
	clear(t.finds)
	t.values, t.held, t.finds, t.failed = 0, t.held[:0], t.finds[:0], nil
}

// settle finds the snapshot of which all that was read is the state, by a poll if that is what it takes. It
// reports false when something has changed, so that the function must run again. The poll is sent when all
// loads have ended: it includes their snapshots, so that when nothing changes it is the only one.
func (t *Together) settle() (moment Moment, settled bool, err error) {
	moment, agreement := t.look()
	if agreement == coherence.Ahead {
		if err := t.poll(); err != nil {
			return Moment{}, false, err
		}
		moment, agreement = t.look()
	}
	return moment, agreement == coherence.Agreed, nil
}

// look compares all that was read with the latest poll, if that is what the reader wants.
func (t *Together) look() (Moment, coherence.Agreement) {
	if len(t.held) == 0 {
		return Moment{}, coherence.Agreed
	}
	poll, agreement := t.shared.Tracker.Agree(t.held)
	now := t.shared.Tracker.Now()
	if agreement != coherence.Agreed {
		return Moment{}, agreement
	}
	if !t.proof.proven(poll, now) {
		return Moment{}, coherence.Ahead
	}
	return Moment{Age: now.Sub(poll.Sent), Snapshot: poll.Snapshot}, coherence.Agreed
}

// poll waits for a poll sent from now on, which proves whatever the reader wants.
func (t *Together) poll() error {
	if counts := t.shared.Together; counts != nil {
		counts.Polls.Add(1)
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.shared.ProofTimeout)
	defer cancel()
	ctx, span := t.spans.Barrier(ctx)
	poll, err := t.shared.Tracker.Barrier(ctx)
	endSpan(span, err)
	if err != nil {
		return err
	}
	t.proof.barrier = poll
	return nil
}

// giveUp says why the values are not of one moment.
func (t *Together) giveUp(why error) (Moment, error) {
	if errors.Is(why, coherence.ErrTrackerClosed) {
		why = ErrClosed
	}
	err := fmt.Errorf("%w as of one moment: %w", ErrUncertain, cmp.Or(t.failed, why))
	t.count(err)
	return Moment{}, err
}

func (t *Together) count(err error) {
	for _, f := range t.finds {
		f.count(err)
	}
}

// errUnsettled is why a read ends whose values change faster than they can be compared.
var errUnsettled = errors.New("what was read changes all the time")

// lastResort runs the function in one transaction, or in another one if a table was altered since its query
// was prepared.
func (t *Together) lastResort(read func(t *Together)) (Moment, error) {
	if t.shared.Begin == nil {
		return t.giveUp(errUnsettled)
	}
	for _, f := range t.finds {
		f.renew(t.ctx)
	}
	for again := true; ; again = false {
		err := t.transact(read)
		if again && planChanged(t.failed) {
			continue
		}
		if err != nil {
			return t.giveUp(err)
		}
		moment, err := t.settleInTransaction()
		if err != nil {
			return t.giveUp(err)
		}
		t.count(nil)
		return moment, nil
	}
}

// transact runs the function with a transaction open, in which the sources that can do so read. It holds a place
// of the bulkhead, so no other load may begin meanwhile that this one waits for.
func (t *Together) transact(read func(t *Together)) error {
	ctx, cancel := context.WithTimeoutCause(t.ctx, t.shared.LoadTimeout,
		fmt.Errorf("no end within %v: %w", t.shared.LoadTimeout, context.DeadlineExceeded))
	defer cancel()
	if err := t.shared.Bulkhead.Enter(ctx); err != nil {
		return err
	}
	defer t.shared.Bulkhead.Leave()
	if counts := t.shared.Together; counts != nil {
		counts.Transactions.Add(1)
	}
	began, generations := t.shared.Tracker.Now(), t.shared.Tracker.Generations()
	tx, err := t.shared.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.End()
	t.forget()
	t.read = t.read[:0]
	reader := t.ctx
	t.ctx, t.tx, t.began, t.generations, t.at = ctx, tx, began, generations, coherence.Snapshot{}
	defer func() { t.ctx, t.tx = reader, nil }()
	read(t)
	return nil
}

// settleInTransaction is settle after the transaction. What was read in it is of its snapshot. What was not is,
// too, if its own snapshot is not newer and a poll that is newer than the transaction knows of no change. Since the
// transaction began after the read, it proves as much as any poll.
func (t *Together) settleInTransaction() (Moment, error) {
	if t.at.Timeline == 0 { // nothing was read in it
		moment, settled, err := t.settle()
		if err == nil && !settled {
			err = errUnsettled
		}
		return moment, err
	}
	poll, agreement := t.shared.Tracker.Agree(t.held)
	if agreement == coherence.Ahead || poll == nil || !t.knownTo(poll) {
		if err := t.poll(); err != nil {
			return Moment{}, err
		}
		poll, agreement = t.shared.Tracker.Agree(t.held)
	}
	fits := agreement == coherence.Agreed && t.knownTo(poll) &&
		!slices.ContainsFunc(t.held, func(v coherence.Holding) bool { return !t.at.Includes(v.Snapshot) })
	if !fits {
		return Moment{}, errUnsettled
	}
	for _, value := range t.read {
		// What was read may have changed since, and be newer than the poll: nothing older may be served after it.
		t.shared.Tracker.Admit(value, nil, t.at)
	}
	return Moment{Age: t.shared.Tracker.Now().Sub(t.began), Snapshot: t.at}, nil
}

// knownTo reports whether the poll is of the transaction's history, and not older if there is something to compare.
func (t *Together) knownTo(poll *coherence.Poll) bool {
	if len(t.held) == 0 {
		return poll.Timeline == t.at.Timeline
	}
	return poll.Includes(t.at)
}

// LookupIn reads several ids as a part of a read of more; the results stand in the order of the ids, and their
// labels are those of the [Moment] in the end. An error is that of one id, and then there is no result at all.
func (c *Cache[V]) LookupIn(t *Together, ids []string) ([]Result[V], error) {
	f := &found[V]{cache: c, ids: ids, results: make([]Result[V], len(ids))}
	err := t.take(len(ids))
	for _, id := range ids {
		err = cmp.Or(err, c.checkID(id))
	}
	source, able := c.config.Source.(TransactionSource[V])
	switch {
	case err != nil:
	case c.life.Err() != nil:
		err = ErrClosed
	case t.tx != nil && able:
		err = f.loadIn(t, source)
	default:
		err = f.collect(t)
	}
	if err != nil {
		t.failed = cmp.Or(t.failed, err)
		f.count(err)
		return nil, err
	}
	t.finds = append(t.finds, f)
	return f.results, nil
}

// take makes room for more values in the run.
func (t *Together) take(n int) error {
	if t.ended {
		return errors.New("tiers: the read of several values has ended")
	}
	if t.values+n > maxTogether {
		return fmt.Errorf("tiers: %d values as of one moment: want at most %d: %w", t.values+n, maxTogether, ErrTooLarge)
	}
	t.values += n
	return nil
}

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

// see notes the snapshot of what was read in the transaction.
func (t *Together) see(at coherence.Snapshot) error {
	switch {
	case at.Timeline == 0:
		return fmt.Errorf("the server proves nothing: %w", ErrUncertain)
	case t.at.Timeline == 0:
		t.at = at
	case !t.at.Equal(at):
		return fmt.Errorf("the transaction has read under the snapshots %v and %v: %w", t.at, at, ErrUncertain)
	}
	return nil
}

// keepFrom makes an id's item of what was read in the transaction, and puts it into L1, where nothing older may
// be when it has been served.
func (c *Cache[V]) keepFrom(t *Together, id string, loaded Batch[V], cost time.Duration) (*item[V], error) {
	f := &flight[V]{id: id, generation: t.generations.Of(c.config.Namespace)}
	var err error
	if f.key, err = c.config.Key(f.generation, id); err != nil {
		return nil, err
	}
	// It is of the transaction's snapshot, however late it was read: it has no place in the order of loads.
	it := c.loadedItem(f, loaded, loadStart{at: t.began}, cost)
	e, err := c.encode(f.key, it)
	if err != nil {
		c.cannotKeep(err)
	}
	it.version, it.size = e.version, sizeOf(id, e.payload)
	if c.revalidate(it) && err == nil {
		c.l1.put(id, it)
	}
	t.read = append(t.read, it.scopes[viewScope])
	return it, nil
}

// lookupTogether is LookupMany of values as of one moment: all of them or none.
func (c *Cache[V]) lookupTogether(ctx context.Context, ids []string, want Want) ([]Result[V], error) {
	if results := c.hitTogether(ids, want); results != nil {
		return results, nil
	}
	ctx, span := c.spans.Read(ctx, c.config.Namespace, c.config.View, len(ids))
	var results []Result[V]
	var failed error
	moment, err := ReadTogether(ctx, c.Shared, want, func(t *Together) { results, failed = c.LookupIn(t, ids) })
	err = cmp.Or(err, failed)
	endSpan(span, err)
	if err != nil {
		return make([]Result[V], len(ids)), err
	}
	for i := range results {
		r := &results[i]
		r.Fresh, r.Age, r.snapshot, r.poll = true, moment.Age, &moment.Snapshot, nil
	}
	return results, nil
}

// hitTogether is the way of plain hits that are of one moment: the stamps say that none has changed as far as one
// poll knows, which includes the snapshots of all. nil = they are not.
func (c *Cache[V]) hitTogether(ids []string, want Want) []Result[V] {
	first := c.Tracker.Latest()
	if first == nil || !want.Token.SeenBy(first.Snapshot) {
		return nil
	}
	items := make([]*item[V], len(ids))
	var now coherence.Instant
	for i, id := range ids {
		it, _, poll, at := c.seek(id, want.Budget)
		if it == nil || poll != first || !poll.Includes(it.snapshot) {
			return nil
		}
		items[i], now = it, at
	}
	results := make([]Result[V], len(ids))
	for i, it := range items {
		c.l1.shard(ids[i]).hit(ids[i], it, now)
		results[i] = it.result(TierL1, true, now.Sub(first.Sent), now, first)
	}
	return results
}
