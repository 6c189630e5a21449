package tiers

import (
	"context"
	"errors"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// proven reports whether knowledge as of the poll is what the read wants.
func (r *reading) proven(poll *coherence.Poll, now coherence.Instant) bool {
	if poll == nil {
		return false
	}
	if r.barrier != nil && !poll.Before(r.barrier) {
		return true
	}
	if r.Budget <= 0 {
		return false
	}
	return now.Sub(poll.Sent) <= r.Budget && r.Token.SeenBy(poll.Snapshot)
}

// prove makes sure that the latest poll is what the read wants, polling if it is not. The error says
// why it cannot be.
func (c *Cache[V]) prove(ctx context.Context, id string, r *reading) error {
	if r.proven(c.Tracker.Latest(), c.Tracker.Now()) {
		return nil
	}
	failing, patience := c.Tracker.Failing(), c.ProofTimeout
	if failing || r.patience != 0 {
		// Waiting for the next attempt would make every read slow while Postgres is away. Without a STALE
		// answer at hand there is nothing better to do.
		if _, ok := c.stale(id, nil, r, staleUnproven); ok && failing {
			return errors.New("the last poll of Postgres failed")
		} else if ok {
			patience = min(patience, r.patience.Sub(c.Tracker.Now()))
		}
	}
	err := c.poll(ctx, patience, r)
	if err != nil && patience < c.ProofTimeout {
		c.counts.softTimeouts.Add(1)
	}
	return err
}

// proveAgain is prove after a flight whose item could not be labelled FRESH: it has changed meanwhile,
// or the proof ran out of the budget. An item of another history than the latest poll's says that
// Postgres has restarted: then nothing but a new poll proves anything.
func (c *Cache[V]) proveAgain(ctx context.Context, id string, it *item[V], r *reading) error {
	if it.ofHistory(c.Tracker.Latest()) {
		return c.prove(ctx, id, r)
	}
	return c.poll(ctx, c.ProofTimeout, r)
}

// ofHistory reports whether the item's snapshot and the poll's can be compared.
func (it *item[V]) ofHistory(poll *coherence.Poll) bool {
	return it.snapshot.Timeline != 0 && (poll == nil || poll.Timeline == it.snapshot.Timeline)
}

// poll waits for a poll sent from now on, for so long.
func (c *Cache[V]) poll(ctx context.Context, patience time.Duration, r *reading) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ctx, span := c.spans.Barrier(ctx)
	poll, err := c.Tracker.Barrier(ctx)
	endSpan(span, err)
	if err != nil {
		return err
	}
	r.barrier = poll
	return nil
}

// label checks the item at its return: whether it may be served as FRESH, and with which bound.
func (c *Cache[V]) label(it *item[V], tier Tier, r *reading) (Result[V], bool) {
	poll := c.Tracker.Latest()
	now := c.Tracker.Now()
	if it.order > r.order && it.ofHistory(poll) {
		if !c.revalidate(it) {
			// It has changed since, or its changes may go unlogged, which the reader need not mind. But nothing
			// older may be served after it, whatever the directory says of the change later.
			c.Tracker.Admit(it.scopes[viewScope], nil, it.snapshot)
		}
		return it.result(tier, true, now.Sub(it.loaded), now, poll), true
	}
	if now >= it.expires || !c.revalidate(it) {
		return Result[V]{}, false
	}
	as := it.loaded
	if poll != nil {
		as = max(as, poll.Sent)
		it.checked.Store(int64(poll.Sent))
	}
	// A load of this node within the budget proves as much as a poll, but nothing of a token. Without any
	// poll there may be a write of this node that the directory could not hold.
	if !r.proven(poll, now) && (poll == nil || (now.Sub(it.loaded) > r.Budget || !r.Token.IsZero())) {
		return Result[V]{}, false
	}
	return it.result(tier, true, now.Sub(as), now, poll), true
}

// graced answers from L1 with a value that lacks nothing but changes in their grace, if the reader takes
// it. What the node knows must be as recent as for a FRESH answer, and the token needs no more than the
// value itself.
func (c *Cache[V]) graced(id string, r *reading) (Result[V], bool) {
	if !r.Grace {
		return Result[V]{}, false
	}
	it, _ := c.l1.get(id)
	if it == nil {
		return Result[V]{}, false
	}
	poll := c.Tracker.Latest() // before the checks: what it saw they know
	if it.generation != c.generation() {
		return Result[V]{}, false
	}
	grace, ok := c.Tracker.Grace(it.scopes[viewScope], it.scopes, it.snapshot)
	now := c.Tracker.Now()
	if !ok || now >= grace.Until || now >= it.expires || !r.proven(poll, now) || !r.Token.SeenBy(it.snapshot) {
		return Result[V]{}, false
	}
	as := max(it.loaded, min(grace.Since, poll.Sent))
	it.heat.add(1, now)
	answer := it.result(TierL1, false, now.Sub(as), now, poll)
	answer.Grace = grace.Until.Sub(now)
	return answer, true
}

// revalidate reports whether the item is valid as far as the node knows, and notes that it is.
func (c *Cache[V]) revalidate(it *item[V]) bool {
	sum := c.stamps.Sum(&it.stamps) // before the checks: what comes in between shows next time
	if it.generation != c.generation() {
		return false
	}
	if !c.Tracker.Admit(it.scopes[viewScope], it.scopes, it.snapshot) {
		return false
	}
	it.sum.Store(sum)
	return true
}

// stale finds an answer for a read that cannot have a FRESH one: the newer of what is in L1 and what
// the last flight brought, nil if there was none. why is what keeps it from being FRESH.
func (c *Cache[V]) stale(id string, last *item[V], r *reading, why staleReason) (Result[V], bool) {
	if r.MaxStale <= 0 {
		return Result[V]{}, false
	}
	poll := c.Tracker.Latest()
	it, _ := c.l1.get(id)
	tier := TierL1
	as, ok := c.reflects(it, poll, r)
	if other, allowed := c.reflects(last, poll, r); allowed && (!ok || other > as) {
		it, tier, as, ok = last, last.tier, other, true
	}
	now := c.Tracker.Now()
	if !ok || now.Sub(as) > r.MaxStale {
		return Result[V]{}, false
	}
	answer := it.result(tier, false, now.Sub(as), now, poll)
	answer.why = why
	return answer, true
}

// reflects is the instant before which the item reflects every commit, as far as is known. It reports
// false if the item cannot be given to the reader even as STALE: it may lack a write of this replica,
// or something that the reader's session has seen, or it is of a generation that was given up.
func (c *Cache[V]) reflects(it *item[V], poll *coherence.Poll, r *reading) (coherence.Instant, bool) {
	if it == nil || it.generation != c.generation() {
		return noInstant, false
	}
	checked := coherence.Instant(it.checked.Load())
	if since, doubted := c.Tracker.Doubted(it.scopes...); doubted {
		checked = min(checked, since)
	}
	as := max(it.loaded, checked)
	seen := r.Token.SeenBy(it.snapshot)
	if poll != nil && c.Tracker.Valid(it.scopes[viewScope], it.scopes, it.snapshot) {
		as = max(as, poll.Sent)
		seen = seen || r.Token.SeenBy(poll.Snapshot)
	}
	return as, seen && !c.Own.writtenSince(as, it.scopes)
}
