package tiers

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// counts are what a cache counts besides its L1.
type counts struct {
	fresh     atomic.Uint64 // of reads that were no plain hit in L1
	stale     atomic.Uint64
	graced    atomic.Uint64 // of stale
	errors    atomic.Uint64
	byTier    [TierSource + 1]atomic.Uint64 // of those, answers by tier
	absent    atomic.Uint64                 // of those
	loads     atomic.Uint64                 // ids asked of the source
	loadErrs  atomic.Uint64
	loadTimes coherence.Histogram
	classes   [Classes]atomic.Uint64              // loads that failed
	times     [TierSource + 1]coherence.Histogram // of reads that were no plain hit, by the tier that answered; 0 = none did
	staleBy   [staleReasons]atomic.Uint64
	coalesced atomic.Uint64 // reads that joined a flight
	cutThru   atomic.Uint64 // loads that did not wait longer for a lease
	rejected  atomic.Uint64 // entries from L2 or a peer that were out of date
	unusable  atomic.Uint64 // entries that could not be read
	fills     atomic.Uint64 // loaded entries that got into L2
	fillErrs  atomic.Uint64 // and those that did not
	tooLarge  atomic.Uint64 // of those, for their size
	unlinks   atomic.Uint64 // see CountUnlink

	softTimeouts     atomic.Uint64
	refreshed        atomic.Uint64 // refreshes that loaded
	refreshesTaken   atomic.Uint64 // that found what another replica has loaded
	refreshesSkipped atomic.Uint64 // that are another replica's, or would be too many
	refreshErrs      atomic.Uint64 // that failed

	verified, mismatched, moved, unverified, unfresh atomic.Uint64 // see Verified
}

// countUnfilled counts a loaded entry that a tier did not take.
func (c *Cache[V]) countUnfilled(err error) {
	c.counts.fillErrs.Add(1)
	if errors.Is(err, ErrTooLarge) {
		c.counts.tooLarge.Add(1)
	}
}

// done counts the answer to a read, or why there is none, and how long that took.
func (c *Cache[V]) done(r *reading, answer Result[V], err error) (Result[V], error) {
	tier := answer.Tier
	if err != nil {
		tier = 0
	}
	c.counts.times[tier].Observe(c.Tracker.Now().Sub(r.began))
	return c.count(answer, err)
}

func (c *Cache[V]) count(r Result[V], err error) (Result[V], error) {
	switch {
	case err != nil:
		c.counts.errors.Add(1)
		return r, err
	case r.Fresh:
		c.counts.fresh.Add(1)
	default:
		c.counts.stale.Add(1)
		if r.Grace > 0 {
			c.counts.graced.Add(1)
		} else {
			c.counts.staleBy[r.why].Add(1)
		}
	}
	c.counts.byTier[r.Tier].Add(1)
	if r.Absent {
		c.counts.absent.Add(1)
	}
	return r, nil
}

// CountUnlink counts a key of this cache that the caller removes from L2.
func (c *Cache[V]) CountUnlink() { c.counts.unlinks.Add(1) }

// Stats are counts since the cache was made.
type Stats struct {
	L1 L1Stats
	// Reads and their outcomes: Reads = Fresh + Stale + Errors.
	Reads, Fresh, Stale, Errors uint64
	// Graced are those of Stale that were given since the changes they lack have a grace; the others by why they were:
	// Postgres could not be asked what has changed; the load failed, or has just failed for another read; it took
	// longer than SoftTimeout; what was loaded had changed each time.
	Graced, StaleUnproven, StaleFailed, StaleSlow, StaleChanged uint64
	// Answers by tier; they sum up to Reads - Errors. Negative are the answers "absent" among them.
	L1Hits, L2Hits, OwnerHits, SourceHits, Negative uint64
	// Loads are ids asked of the source; LoadTime all of it together.
	Loads, LoadErrors uint64
	LoadTime          time.Duration
	// LoadTimes are of each load, of one id or more, those that failed included; LoadsFailed counts these by
	// [ErrorClass], and those that the bulkhead refused.
	LoadTimes   coherence.Durations
	LoadsFailed [Classes]uint64
	// ReadTimes are of the reads that were no plain hit in L1, by the [Tier] that answered; 0 = none did. A hit is not
	// timed: looking at the clock twice would take as long as the hit.
	ReadTimes [TierSource + 1]coherence.Durations
	// Coalesced reads joined a flight of another; CutThrough loads went on without a lease; Rejected
	// entries from L2 or a peer were out of date, Unusable ones could not be read; FillErrors counts
	// loaded entries that did not get into L2, TooLarge those among them that were above a limit of size.
	Coalesced, CutThrough, Rejected, Unusable, FillErrors, TooLarge uint64
	// Fills are loaded entries that got into L2, Unlinks those of [Cache.CountUnlink].
	Fills, Unlinks uint64
	// SoftTimeouts are reads that had waited for SoftTimeout when there was a STALE answer for them.
	SoftTimeouts uint64
	// Refreshes of entries ahead of their expiry, by what became of them: loaded; taken from L2 or the owner,
	// where another replica's was; skipped, since another replica was at it, or reads needed the source; or
	// failed. Those that loaded or failed are among the Loads.
	Refreshed, RefreshesTaken, RefreshesSkipped, RefreshErrors uint64
	// Entries that [Cache.Verify] drew, by what became of them, as in [Verified]. Its loads are among the Loads.
	Verified, Mismatched, VerifyMoved, VerifyFailed, VerifySkipped uint64
}

// Stats are the counts by now.
func (c *Cache[V]) Stats() Stats {
	n := &c.counts
	l1 := c.l1.stats()
	s := Stats{
		L1: l1, Fresh: l1.Hits + n.fresh.Load(), Stale: n.stale.Load(), Graced: n.graced.Load(), Errors: n.errors.Load(),
		L1Hits: l1.Hits + n.byTier[TierL1].Load(), L2Hits: n.byTier[TierL2].Load(),
		OwnerHits: n.byTier[TierOwner].Load(), SourceHits: n.byTier[TierSource].Load(),
		Negative: l1.Absences + n.absent.Load(), Loads: n.loads.Load(), LoadErrors: n.loadErrs.Load(),
		LoadTimes: n.loadTimes.Durations(), Coalesced: n.coalesced.Load(), CutThrough: n.cutThru.Load(),
		Rejected: n.rejected.Load(), Unusable: n.unusable.Load(), FillErrors: n.fillErrs.Load(),
		Fills: n.fills.Load(), Unlinks: n.unlinks.Load(), SoftTimeouts: n.softTimeouts.Load(), Refreshed: n.refreshed.Load(), RefreshesTaken: n.refreshesTaken.Load(),
		RefreshesSkipped: n.refreshesSkipped.Load(), RefreshErrors: n.refreshErrs.Load(), TooLarge: n.tooLarge.Load(),
		Verified: n.verified.Load(), Mismatched: n.mismatched.Load(), VerifyMoved: n.moved.Load(), VerifyFailed: n.unverified.Load(), VerifySkipped: n.unfresh.Load(),
	}
	s.LoadTime = s.LoadTimes.Sum
	s.StaleUnproven, s.StaleFailed = n.staleBy[staleUnproven].Load(), n.staleBy[staleFailed].Load()
	s.StaleSlow, s.StaleChanged = n.staleBy[staleSlow].Load(), n.staleBy[staleChanged].Load()
	for class := range n.classes {
		s.LoadsFailed[class] = n.classes[class].Load()
	}
	for tier := range n.times {
		s.ReadTimes[tier] = n.times[tier].Durations()
	}
	s.Reads = s.Fresh + s.Stale + s.Errors
	return s
}
