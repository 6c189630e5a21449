package tiers

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/freshet-cache/freshet/coherence"
)

// Verified is what came of entries that were compared with the source.
type Verified struct {
	// Checked are those that the source has, too.
	Checked int
	// Moved are those that changed while they were compared, or whose change is scheduled: nothing is said of them.
	Moved int
	// Failed are those for which the source, or a poll, could not be had.
	Failed int
	// Skipped are those that no read would have been given as FRESH: expired, changed, or in doubt.
	Skipped int
	// Mismatches are those that the source has otherwise, though nothing says that they changed.
	Mismatches []Mismatch
}

// Mismatch is an entry that was given as FRESH and was not what the source had.
type Mismatch struct {
	ID string
	// Tier is where the entry came from into L1.
	Tier         Tier
	Held, Loaded State
}

// State is what an id had under a snapshot.
type State struct {
	Snapshot coherence.Snapshot
	Version  uint64 // as in [Result]
	Absent   bool
}

const (
	// verifyBatch bounds the ids of one load: where each is a query of its own, all run in one transaction.
	verifyBatch = 20
	// yieldPause is between two looks at whether readers wait for the source.
	yieldPause = 5 * time.Millisecond
)

// Verify compares up to n entries of L1, 1 or more, drawn at random, with the source, past all tiers. An entry
// that the source has otherwise is a mismatch only if it is valid still after a poll that was sent when the load
// was back. That is no false alarm, as long as the source gives the same for the same state:
//
//   - The entry is the state at its snapshot A, or later; it was read before the load, so what the load saw is
//     not older, and B, the load's snapshot, includes A. If it does not, they are of two histories of Postgres,
//     and the entry counts as moved.
//   - The values differ, so a transaction that the load saw committed after the entry was read: A does not see it.
//   - If it logged the change, the poll saw the row, since it was sent after the load had returned: the directory
//     has it, A does not see it, the entry is not valid, and counts as moved. The same for changes in their grace.
//   - If it scheduled the change, [Shared].Scheduled has it, or it went into the log before that was asked, which
//     is before the poll.
//   - So it did neither, and the entry was, and still would be, given as FRESH.
//
// A mismatch is replaced by what was loaded, in L1 and in L2. Verify waits while readers wait for the source, takes
// one place of the bulkhead, and never fills a tier with what it has found to be equal. The error says why some failed.
func (c *Cache[V]) Verify(ctx context.Context, n int) (v Verified, err error) {
	defer func() {
		c.counts.verified.Add(uint64(v.Checked))
		c.counts.moved.Add(uint64(v.Moved))
		c.counts.unverified.Add(uint64(v.Failed))
		c.counts.unfresh.Add(uint64(v.Skipped))
		c.counts.mismatched.Add(uint64(len(v.Mismatches)))
	}()
	if c.Verifiable() == 0 {
		return v, nil
	}
	drawn := c.l1.draw(n, c.Random)
	if err := c.poll(ctx, c.ProofTimeout, &reading{}); err != nil {
		v.Failed = len(drawn)
		return v, err
	}
	fresh := slices.DeleteFunc(drawn, func(m member[V]) bool { return c.left(m.it) <= 0 })
	v.Skipped = len(drawn) - len(fresh)
	var problems []error
	hopeless := false
	for batch := range slices.Chunk(fresh, verifyBatch) {
		failed := v.Failed
		if hopeless {
			v.Failed += len(batch)
			continue
		}
		problems = append(problems, c.verify(ctx, batch, &v))
		hopeless = v.Failed-failed == len(batch) // the others would wait for the same
	}
	return v, errors.Join(problems...)
}

// Verifiable is from how many entries [Cache.Verify] draws: those in L1, or none with NoVerify.
func (c *Cache[V]) Verifiable() int {
	if c.config.NoVerify {
		return 0
	}
	return int(c.l1.stats().Entries)
}

// verify adds what comes of a batch to v.
func (c *Cache[V]) verify(ctx context.Context, batch []member[V], v *Verified) (err error) {
	left := len(batch) // of which nothing is counted yet
	defer func() {
		if p := recover(); p != nil { // Tags, or the encoding of the application's type
			c.Logger.Error("tiers: a verification panicked", "namespace", c.config.Namespace, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("it panicked: %v", p)
		}
		v.Failed += left
	}()
	began, loaded, err := c.reread(ctx, batch)
	if err != nil && len(batch) > 1 && ofOneID(err) {
		left = 0
		var problems []error
		for one := range slices.Chunk(batch, 1) {
			problems = append(problems, c.verify(ctx, one, v))
		}
		return errors.Join(problems...)
	}
	if err != nil {
		return err
	}
	if loaded.Snapshot.Timeline == 0 {
		return errors.New("what was loaded proves nothing: it is not the primary's")
	}
	cost := c.Tracker.Now().Sub(began.at)
	var differ []reread[V]
	for _, m := range batch {
		r := reread[V]{member: m}
		f := &flight[V]{id: m.id, generation: m.it.generation}
		if f.key, err = c.config.Key(f.generation, m.id); err != nil {
			return err // it could not be in L1
		}
		r.key, r.loaded = f.key, c.loadedItem(f, loaded, began, cost)
		if r.entry, r.unkept = c.encode(f.key, r.loaded); r.unkept != nil && !errors.Is(r.unkept, ErrTooLarge) {
			return r.unkept
		}
		r.loaded.version, r.loaded.size = r.entry.version, sizeOf(m.id, r.entry.payload)
		if !c.same(m.it, r.loaded) {
			differ = append(differ, r)
			continue
		}
		v.Checked++
		left--
	}
	if len(differ) == 0 {
		return nil
	}
	scheduled, err := c.scheduled(ctx, differ)
	if err != nil {
		return err
	}
	if err := c.poll(ctx, c.ProofTimeout, &reading{}); err != nil {
		return err
	}
	for _, r := range differ {
		left--
		if !r.loaded.snapshot.Includes(r.it.snapshot) || slices.ContainsFunc(r.it.scopes, scheduled) || c.left(r.it) <= 0 {
			v.Moved++
			continue
		}
		v.Mismatches = append(v.Mismatches, Mismatch{ID: r.id, Tier: r.it.tier, Held: r.it.state(), Loaded: r.loaded.state()})
		c.replace(ctx, r)
	}
	return nil
}

// reread is an entry with what the source has of it.
type reread[V any] struct {
	member[V]
	key    string
	loaded *item[V]
	entry  encoded // of loaded
	unkept error   // why no tier can hold it; nil = they can
}

func (it *item[V]) state() State {
	return State{Snapshot: it.snapshot, Version: it.version, Absent: it.absent}
}

// errRereading: a load that did not end within its time goes on.
var errRereading = errors.New("the load of the verification before goes on: its source must heed the context")

// reread loads the batch from the source when no reader waits for it. It returns within LoadTimeout each, whatever
// the source does; until a load that is late has ended there is no other.
func (c *Cache[V]) reread(ctx context.Context, batch []member[V]) (began loadStart, loaded Batch[V], err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.LoadTimeout, fmt.Errorf("no answer within %v: %w", c.LoadTimeout, context.DeadlineExceeded))
	defer cancel()
	defer context.AfterFunc(c.life, cancel)() //nolint:contextcheck // it ends with the caller's or with the cache
	defer func() {
		if c.life.Err() != nil {
			err = ErrClosed
		}
	}()
	for c.Bulkhead.waiting.Load() > 0 && ctx.Err() == nil {
		pause(ctx, yieldPause)
	}
	if ctx.Err() != nil {
		return began, loaded, context.Cause(ctx)
	}
	if !c.rereading.CompareAndSwap(false, true) {
		return began, loaded, errRereading
	}
	c.flights.mu.Lock() // as in board: Close waits for it, or it does not start
	closed := c.life.Err() != nil
	if !closed {
		c.work.Add(1)
	}
	c.flights.mu.Unlock()
	if closed {
		c.rereading.Store(false)
		return began, loaded, ErrClosed
	}
	ids := make([]string, len(batch))
	for i, m := range batch {
		ids[i] = m.id
	}
	type answer struct {
		began  loadStart
		loaded Batch[V]
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		defer c.work.Done()
		began, loaded, err := c.ask(ctx, ids)
		if err != nil && began.order != 0 {
			c.counts.loadErrs.Add(uint64(len(ids)))
		}
		c.rereading.Store(false) // before the answer, which the next load may follow at once
		answered <- answer{began, loaded, err}
	}()
	select {
	case a := <-answered:
		return a.began, a.loaded, a.err
	case <-ctx.Done():
		return began, loaded, context.Cause(ctx)
	}
}

// same reports whether an item holds what was loaded. Another build may have written the same value otherwise.
func (c *Cache[V]) same(held, loaded *item[V]) bool {
	if held.absent != loaded.absent || held.version == loaded.version {
		return held.absent == loaded.absent
	}
	payload, err := c.coder.Encode(held.value)
	return err == nil && xxhash.Sum64(payload) == loaded.version
}

// scheduled says of which scopes changes are to go into the log later, as far as it matters to these.
func (c *Cache[V]) scheduled(ctx context.Context, differ []reread[V]) (func(coherence.ScopeHash) bool, error) {
	if c.Scheduled == nil {
		return func(coherence.ScopeHash) bool { return false }, nil
	}
	ids := make([]string, len(differ))
	for i, r := range differ {
		ids[i] = r.id
	}
	ctx, cancel := context.WithTimeout(ctx, c.LoadTimeout)
	defer cancel()
	scopes, err := c.Scheduled(ctx, c.config.Namespace, ids)
	return func(scope coherence.ScopeHash) bool { return slices.Contains(scopes, scope) }, err
}

// replace puts what was loaded in the place of a mismatch, in L1 and in L2.
func (c *Cache[V]) replace(ctx context.Context, r reread[V]) {
	keep := r.unkept == nil && c.revalidate(r.loaded)
	if !keep || !c.l1.put(r.id, r.loaded) {
		c.l1.drop(r.id, r.it)
	}
	if c.L2 == nil || !c.L2.Available(r.key) {
		return
	}
	// Bounded by L2's own time-out. What fails there is found by the next that takes it from there.
	ctx = context.WithoutCancel(ctx)
	if !keep {
		_ = c.L2.Unlink(ctx, r.key)
		return
	}
	if err := c.L2.SetMany(ctx, []Filling{{Key: r.key, Bytes: r.entry.bytes, TTL: r.loaded.ttl}})[0]; err != nil {
		c.countUnfilled(err)
		return
	}
	c.counts.fills.Add(1)
}
