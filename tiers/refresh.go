package tiers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// Refresh says when an entry that is hit is loaded anew in the background, ahead of its expiry, so that no
// read has to wait for that. One replica of the cluster does it in the normal case, as for any load (see
// [Shared].LeaseTTL), and the others take over what it has loaded. A refresh that fails is tried again until
// the entry expires. It follows either rule, or whichever applies first. The zero value: never.
type Refresh struct {
	// Ahead is the part of an entry's time to live behind which it is refreshed, below 1, such as 0.8; 0 = off.
	Ahead float64
	// Beta above 0 turns on XFetch: a hit refreshes with a probability that grows as the expiry comes
	// nearer, and begins the earlier the longer the entry's load took. 1 is the authors' choice, more
	// refreshes earlier, up to 100; 0 = off. Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache
	// Stampede Prevention, VLDB 2015.
	Beta float64
}

// maxBeta bounds Refresh.Beta.
const maxBeta = 100

func (r Refresh) validate() error {
	var problems []error
	if within := r.Ahead >= 0 && r.Ahead < 1; !within {
		problems = append(problems, fmt.Errorf("tiers: Refresh.Ahead is %v; want a part of the time to live, above 0 and below 1, or 0 for never", r.Ahead))
	}
	if within := r.Beta >= 0 && r.Beta <= maxBeta; !within {
		problems = append(problems, fmt.Errorf("tiers: Refresh.Beta is %v; want above 0 to %d, or 0 for never", r.Beta, maxBeta))
	}
	return errors.Join(problems...)
}

// soft is the time to live behind which an entry is to be refreshed.
func (r Refresh) soft(ttl time.Duration) time.Duration {
	if r.Ahead == 0 {
		return ttl
	}
	return time.Duration(r.Ahead * float64(ttl))
}

// drawBits are those of a draw of XFetch, and so say how early it can come true at all: at the expiry less
// cost * Beta * ln 2^drawBits.
const drawBits = 53

// never is after every instant.
const never = coherence.Instant(math.MaxInt64)

// early is the instant before which an item need not be looked at: one that expires then, is to be
// refreshed by the first rule for the given time before that, and took so long to load.
func (r Refresh) early(expires coherence.Instant, ahead, cost time.Duration) coherence.Instant {
	early := never
	if r.Ahead > 0 {
		early = expires.Add(-ahead)
	}
	if r.Beta > 0 {
		early = min(early, expires.Add(-time.Duration(r.Beta*float64(cost)*drawBits*math.Ln2)))
	}
	return early
}

// due reports whether an item that was looked at is to be refreshed now.
func (c *Cache[V]) due(it *item[V], now coherence.Instant) bool {
	r := c.config.Refresh
	if r.Ahead > 0 && now >= it.expires.Add(it.soft-it.ttl) {
		return true
	}
	if r.Beta == 0 {
		return false
	}
	u := float64(1+c.Random(1<<drawBits)) / (1 << drawBits) // above 0, up to 1
	return now.Add(time.Duration(-r.Beta*float64(it.cost)*math.Log(u))) >= it.expires
}

const (
	// maxRefreshes bounds the refreshes of one cache under way. Entries beyond it are looked at again later.
	maxRefreshes = 16
	// minRefreshPause and maxRefreshPause bound the time until an item is looked at again: an eighth of what
	// it has left.
	minRefreshPause = 10 * time.Millisecond
	maxRefreshPause = 10 * time.Second
)

// ahead has the item refreshed if its time has come and nobody is at it. It does not wait.
func (c *Cache[V]) ahead(id string, it *item[V], now coherence.Instant) {
	early := it.early.Load()
	if int64(now) < early || !c.due(it, now) {
		return
	}
	if !it.early.CompareAndSwap(early, int64(never)) {
		return
	}
	f := &flight[V]{id: id, generation: c.generation(), done: make(chan struct{})}
	var err error
	if f.key, err = c.config.Key(f.generation, id); err != nil {
		return // it could not be in L1
	}
	if c.refreshing.Add(1) > maxRefreshes || c.Bulkhead.busy() { // reads come first
		c.counts.refreshesSkipped.Add(1)
		c.pause(it)
		return
	}
	c.flights.mu.Lock() // as in board: Close waits for it, or it does not start
	closed := c.life.Err() != nil
	if !closed {
		c.work.Add(1)
	}
	c.flights.mu.Unlock()
	if closed {
		c.pause(it)
		return
	}
	c.depart(c.life, []*flight[V]{f}, func(ctx context.Context, _ []*flight[V]) { c.refresh(ctx, f, it) })
}

// pause ends a refresh of the item: if it is not replaced, it is looked at again after a while.
func (c *Cache[V]) pause(it *item[V]) {
	now := c.Tracker.Now()
	it.early.Store(int64(now.Add(min(max(it.expires.Sub(now)/8, minRefreshPause), maxRefreshPause))))
	c.refreshing.Add(-1)
}

// refresh is the course of a flight that nobody asked for. Reads can join it once it loads.
func (c *Cache[V]) refresh(ctx context.Context, f *flight[V], old *item[V]) {
	outcome := &c.counts.refreshErrs // also when what the application gave us panics
	defer func() {
		outcome.Add(1)
		c.pause(old)
	}()
	switch newer, mine := c.turn(ctx, f, old); {
	case newer != nil:
		c.l1.put(f.id, newer)
		c.land(f, newer, nil)
		outcome = &c.counts.refreshesTaken
	case !mine || !c.enlist(f):
		c.land(f, old, nil)
		outcome = &c.counts.refreshesSkipped
	default:
		c.load(ctx, []*flight[V]{f})
		if <-f.done; f.err == nil {
			outcome = &c.counts.refreshed
		}
		return // load has given up the lease, or has passed it on with what it filled in
	}
	c.release(ctx, f)
}

// turn reports whether this replica is the one to refresh: it gets the key's lease or, with L2 out, owns the
// entity. If another replica has done it already, its entry comes instead.
func (c *Cache[V]) turn(ctx context.Context, f *flight[V], old *item[V]) (newer *item[V], mine bool) {
	if c.L2 != nil && c.L2.Available(f.key) {
		token := rand.Text()
		reply := c.L2.LeaseMany(ctx, c.leasesOf([]*flight[V]{f}, token))[0]
		if reply.Held {
			f.lease = token
		}
		return c.newer(f, old, reply.Value, TierL2), reply.Held
	}
	if c.Peers == nil {
		return nil, true
	}
	ctx, cancel := context.WithTimeout(ctx, c.PeerWait)
	defer cancel()
	b, err := c.Peers.Fetch(ctx, c.config.Namespace, c.config.View, f.id) // a hit there, which has the owner refresh
	if err != nil {
		return nil, errors.Is(err, ErrNoOwner)
	}
	return c.newer(f, old, b, TierOwner), false
}

// newer is the item of an entry from L2 or the owner if it was loaded after the old one and is not to be
// refreshed itself, nil otherwise.
func (c *Cache[V]) newer(f *flight[V], old *item[V], b []byte, from Tier) *item[V] {
	if b == nil {
		return nil
	}
	it := c.usable(f, b, from)
	if it == nil || !it.loadedAt.After(old.loadedAt) || c.Tracker.Now() >= it.expires.Add(it.soft-it.ttl) {
		return nil
	}
	return it
}

// enlist makes the flight one that reads may join. It reports false if there is one of its id already, whose
// load is as good, or too many of others.
func (c *Cache[V]) enlist(f *flight[V]) bool {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	if c.flights.byID[f.id] != nil || len(c.flights.byID) >= maxFlights {
		return false
	}
	c.flights.byID[f.id] = f
	return true
}
