package tiers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

// Tier is where an answer came from.
type Tier uint8

// The tiers, from the nearest to the farthest.
const (
	TierL1     Tier = iota + 1 // this process
	TierL2                     // the Redis Cluster
	TierOwner                  // the entity's owner replica
	TierSource                 // the source
)

// String is the tier's name in headers, logs and metrics.
func (t Tier) String() string {
	switch t {
	case TierL1:
		return "l1"
	case TierL2:
		return "l2"
	case TierOwner:
		return "owner"
	case TierSource:
		return "source"
	}
	return "none"
}

// Errors that callers of a read branch on.
var (
	// ErrUncertain: the freshness asked for cannot be proven, and no STALE answer was allowed or there.
	ErrUncertain = errors.New("freshness cannot be proven")
	// ErrClosed: the cache or its node is closed.
	ErrClosed = errors.New("closed")
	// ErrBadID: no entry can have that id.
	ErrBadID = errors.New("bad id")
)

// Want is what a reader asks of one read.
type Want struct {
	// Budget: a FRESH answer reflects every commit that is older. 0: every commit before the read.
	Budget time.Duration
	// MaxStale bounds the age of a STALE answer; 0 = none is allowed.
	MaxStale time.Duration
	// SoftTimeout is how long the read waits, for a poll or a load, before it takes a STALE answer that
	// MaxStale allows; 0 = as long as they may take. What it has waited for goes on without it.
	SoftTimeout time.Duration
	// Token: the answer is not behind it.
	Token coherence.Token
	// Consistent: several values are of one moment, all FRESH; see [ReadTogether].
	Consistent bool
	// Grace: the reader takes a value that lacks nothing but changes in their grace, at once, while it is
	// loaded anew in the background. It is not labelled FRESH.
	Grace bool
}

// Result is an answer. Its fields describe the moment at which it was checked.
type Result[V any] struct {
	Value  V
	Absent bool // the source has no such thing; Value is zero
	// Fresh: the answer is labelled FRESH; otherwise STALE.
	Fresh bool
	// Age bounds the staleness: the answer reflects every commit older than this.
	Age time.Duration
	// Tier is where the answer came from.
	Tier Tier
	// Version is the hash of the encoded value; the same value has the same on every replica.
	Version uint64
	// TTL is what is left of the entry's time to live.
	TTL time.Duration
	// Grace is what is left of the grace of the changes that the answer lacks; 0 = it was not given for
	// that. Every commit older than Age is reflected all the same.
	Grace time.Duration
	// Tags are the hashes of the entry's tags; not to be changed.
	Tags []coherence.ScopeHash

	snapshot *coherence.Snapshot
	poll     *coherence.Poll
	why      staleReason // if it is STALE, and not for a grace
}

// staleReason is why a STALE answer was given; see [Stats].
type staleReason uint8

const (
	staleUnproven staleReason = iota
	staleFailed
	staleSlow
	staleChanged
	staleReasons
)

// label is the answer's, in spans.
func (r *Result[V]) label() string {
	switch {
	case r.Fresh:
		return "fresh"
	case r.Grace > 0:
		return "grace"
	}
	return "stale"
}

// endRead ends the span of a read.
func endRead[V any](span spans.Span, r *Result[V], err error) {
	if err == nil {
		span.Answer(r.Tier.String(), r.label())
	}
	endSpan(span, err)
}

// Token is that of a session that has seen this answer.
func (r *Result[V]) Token() coherence.Token {
	var t coherence.Token
	if r.snapshot != nil && r.snapshot.Timeline != 0 {
		t = coherence.TokenOf(*r.snapshot)
	}
	if r.poll != nil && r.Fresh {
		t = t.Merge(coherence.TokenOf(r.poll.Snapshot))
	}
	return t
}

// Hit returns the value of a plain hit in L1 that is FRESH within the budget. When there is none it
// says so at once, and [Cache.Lookup] is what to call.
func (c *Cache[V]) Hit(id string, budget time.Duration) (value V, ok bool) {
	it, shard, _, now := c.seek(id, budget)
	if it == nil || it.absent {
		return value, false // Lookup counts what is absent
	}
	shard.hit(id, it, now)
	return it.value, true
}

// hit is the whole way of a plain hit: no lock but the shard's for reading, no allocation. It returns
// the poll that proves the item fresh at the instant, or no item.
func (c *Cache[V]) hit(id string, budget time.Duration) (*item[V], *coherence.Poll, coherence.Instant) {
	it, shard, poll, now := c.seek(id, budget)
	if it != nil {
		shard.hit(id, it, now)
	}
	return it, poll, now
}

// seek is a hit that is not counted yet.
func (c *Cache[V]) seek(id string, budget time.Duration) (*item[V], *l1Shard[V], *coherence.Poll, coherence.Instant) {
	poll := c.Tracker.Latest() // before the stamps: what it saw has raised them
	if poll == nil || budget <= 0 {
		return nil, nil, nil, 0 // a budget of 0 wants a poll of its own, which no clock can tell from an older one
	}
	now := c.Tracker.Now()
	if now.Sub(poll.Sent) > budget {
		return nil, nil, nil, 0
	}
	it, shard := c.l1.get(id)
	if it == nil || now >= it.expires || it.sum.Load() != c.stamps.Sum(&it.stamps) {
		return nil, nil, nil, 0
	}
	if int64(now) >= it.early.Load() {
		c.ahead(id, it, now)
	}
	return it, shard, poll, now
}

// Lookup reads one id.
func (c *Cache[V]) Lookup(ctx context.Context, id string, want Want) (Result[V], error) {
	if poll := c.Tracker.Latest(); want.Token.IsZero() || (poll != nil && want.Token.SeenBy(poll.Snapshot)) {
		if it, poll, now := c.hit(id, want.Budget); it != nil {
			return it.result(TierL1, true, now.Sub(max(poll.Sent, it.loaded)), now, poll), nil
		}
	}
	r := c.begin(want)
	ctx, span := c.spans.Read(ctx, c.config.Namespace, c.config.View, 1)
	answer, err := c.lookup(ctx, id, &r)
	endRead(span, &answer, err)
	return answer, err
}

// reading is one read that is not a plain hit.
type reading struct {
	Want
	// order is the read's place in the order of all reads and loads of the cache: a load with a higher
	// one began after the read, and so reflects every commit before it. Clocks could not tell.
	order uint64
	// barrier is a poll that was sent after the read began; nil = none was needed so far. What it saw,
	// and any poll after it, proves whatever the budget and the token.
	barrier *coherence.Poll
	// patience is when SoftTimeout is over; 0 = never, since none was set or no STALE answer is allowed.
	patience coherence.Instant
	// began is when it did.
	began coherence.Instant
	// uncounted: no reader waits for the answer, so it is none of the cache's counts.
	uncounted bool
}

func (c *Cache[V]) begin(want Want) reading {
	r := reading{Want: want, order: c.order.Add(1), began: c.Tracker.Now()}
	if want.SoftTimeout > 0 && want.MaxStale > 0 {
		r.patience = r.began.Add(want.SoftTimeout)
	}
	return r
}

// maxAttempts bounds how often a read joins a flight whose answer turns out to be too old for it. The
// second flight began after the read, so what it loads cannot be; more are only needed when L2 keeps
// bringing what has just been invalidated.
const maxAttempts = 4

// lookup is a read that is not a plain hit.
func (c *Cache[V]) lookup(ctx context.Context, id string, r *reading) (Result[V], error) {
	if err := c.checkID(id); err != nil {
		return c.done(r, Result[V]{}, err)
	}
	unproven := c.prove(ctx, id, r)
	answer, ok := c.near(id, r, unproven)
	if ok && answer.Fresh {
		return c.done(r, answer, nil)
	}
	miss := c.missedL1(id, r, unproven)
	var f *flight[V]
	var err error
	if !ok {
		answer, f, err = c.travel(ctx, id, r, unproven)
	} else if answer.Grace > 0 {
		c.flyAll(c.spans.Behind(ctx), []string{id}, []int{0}, r)
	}
	c.ended(id, miss, f, &answer, err)
	return c.done(r, answer, err)
}

// travel is a read that L1 has no answer for. It returns the last of its flights, too.
func (c *Cache[V]) travel(ctx context.Context, id string, r *reading, unproven error) (answer Result[V], f *flight[V], err error) {
	var last *item[V]
	var failed error
	for range maxAttempts {
		f = c.fly(ctx, id, r)
		answer, ok, err := c.await(ctx, f, last, r)
		if ok {
			return answer, f, nil
		}
		if failed = err; failed != nil {
			break
		}
		if answer, ok := c.label(f.item, f.item.tier, r); ok {
			return answer, f, nil
		}
		if last = f.item; unproven != nil {
			break // another flight cannot prove more
		}
		if unproven = c.proveAgain(ctx, id, last, r); unproven != nil {
			break
		}
	}
	answer, err = c.giveUp(id, last, r, failed, unproven)
	return answer, f, err
}

// near answers from L1: FRESH, or in its grace, whereupon the caller must start a flight; or STALE if it is
// known that nothing can be proven, or that the source has just failed.
func (c *Cache[V]) near(id string, r *reading, unproven error) (Result[V], bool) {
	if c.life.Err() != nil {
		return Result[V]{}, false
	}
	if answer, ok := c.again(id, r); ok {
		return answer, true
	}
	if unproven == nil {
		if answer, ok := c.graced(id, r); ok || !c.resting(id) {
			return answer, ok
		}
	}
	if unproven != nil {
		return c.stale(id, nil, r, staleUnproven)
	}
	return c.stale(id, nil, r, staleFailed)
}

// resting reports whether the id's load has just failed.
func (c *Cache[V]) resting(id string) bool {
	it, _ := c.l1.get(id)
	return it != nil && int64(c.Tracker.Now()) < it.retry.Load()
}

// giveUp ends a read that cannot have a FRESH answer: with a STALE one, or with why: the flight failed,
// nothing could be proven, or, when both are nil, what was read had changed each time.
func (c *Cache[V]) giveUp(id string, last *item[V], r *reading, failed, unproven error) (Result[V], error) {
	why := staleChanged
	switch {
	case unproven != nil:
		why = staleUnproven
	case failed != nil:
		why = staleFailed
	}
	if c.life.Err() != nil {
		failed, unproven = ErrClosed, nil
	} else if answer, ok := c.stale(id, last, r, why); ok {
		return answer, nil
	}
	switch {
	case unproven != nil:
		failed = fmt.Errorf("%w: %w", ErrUncertain, cmp.Or(failed, unproven))
	case failed == nil:
		failed = ErrUncertain
	}
	return Result[V]{}, fmt.Errorf("%s %q: %w", c.config.Namespace, short(id), failed)
}

// again looks at L1 once more, with the directory's exact knowledge in place of the stamps.
func (c *Cache[V]) again(id string, r *reading) (Result[V], bool) {
	it, shard := c.l1.get(id)
	if it == nil {
		return Result[V]{}, false
	}
	answer, ok := c.label(it, TierL1, r)
	if ok {
		it.heat.add(1, c.Tracker.Now())
		shard.promote(id)
		c.ahead(id, it, c.Tracker.Now())
	}
	return answer, ok
}

func (it *item[V]) result(tier Tier, fresh bool, age time.Duration, now coherence.Instant, poll *coherence.Poll) Result[V] {
	return Result[V]{
		Value: it.value, Absent: it.absent, Fresh: fresh, Age: age, Tier: tier, Version: it.version,
		TTL: it.expires.Sub(now), Tags: it.tags, snapshot: &it.snapshot, poll: cmp.Or(poll, it.after),
	}
}

// Entry returns the id's entry in L2's format, for a peer that asks its owner.
func (c *Cache[V]) Entry(ctx context.Context, id string, want Want) (b []byte, err error) {
	defer func() {
		if p := recover(); p != nil { // V may encode itself, and nobody else would catch it here
			b, err = nil, fmt.Errorf("%s %q: encoding panicked: %v", c.config.Namespace, short(id), p)
		}
	}()
	r, err := c.Lookup(ctx, id, want)
	if err != nil {
		return nil, err
	}
	it, _ := c.l1.get(id)
	if it == nil || it.snapshot.Timeline == 0 || it.version != r.Version {
		return nil, fmt.Errorf("%s %q: %w: not kept in L1", c.config.Namespace, short(id), ErrUncertain)
	}
	key, err := c.config.Key(it.generation, id)
	if err != nil {
		return nil, err
	}
	e, err := c.encode(key, it)
	return e.bytes, err
}

// Check refuses an id that no entry can have, with [ErrBadID].
func (c *Cache[V]) Check(id string) error { return c.checkID(id) }

// checkID refuses ids that cannot stand in Postgres' text, and those that have no key.
func (c *Cache[V]) checkID(id string) error {
	if !utf8.ValidString(id) || strings.ContainsRune(id, 0) {
		return fmt.Errorf("%s %q: %w: want UTF-8 without zero bytes", c.config.Namespace, short(id), ErrBadID)
	}
	if _, err := c.config.Key(cluster.FirstGeneration(), id); err != nil {
		return fmt.Errorf("%s %q: %w", c.config.Namespace, short(id), err)
	}
	return nil
}

// short is the id for an error message.
func short(id string) string {
	if len(id) > 80 {
		return id[:80] + "..."
	}
	return id
}

// vary is d within a tenth of it either way, so that entries loaded together expire apart.
func (s *Shared) vary(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(s.Random(max(int64(d/5), 1)))
}

// The scopes of an item; tags follow.
const (
	entityScope = iota
	viewScope
	namespaceScope
	everythingScope
	ownScopes
)

// scopesOf lists the scopes of a value.
func (c *Cache[V]) scopesOf(id string, tags []coherence.ScopeHash) []coherence.ScopeHash {
	scopes := make([]coherence.ScopeHash, ownScopes, ownScopes+len(tags)+1)
	scopes[entityScope] = coherence.Entity(c.config.Namespace, id).Hash()
	scopes[viewScope] = coherence.View(c.config.Namespace, id, c.config.View).Hash()
	scopes[namespaceScope] = coherence.Namespace(c.config.Namespace).Hash()
	scopes[everythingScope] = coherence.Everything().Hash()
	if len(tags) > 0 {
		scopes = append(scopes, coherence.AnyTag().Hash())
	}
	return append(scopes, tags...)
}

// Left is what is left of the time to live of the id's entry, and the tier that has it: L1, or L2 by the
// entry's own word. An entry that could not be served, since it has expired, changed or cannot be read, is
// none: 0 and Tier 0. Nothing is loaded. The error says that the id is bad or that L2 cannot be asked.
func (c *Cache[V]) Left(ctx context.Context, id string) (time.Duration, Tier, error) {
	if err := c.checkID(id); err != nil {
		return 0, 0, err
	}
	if it, _ := c.l1.get(id); it != nil {
		if left := c.left(it); left > 0 {
			return left, TierL1, nil
		}
	}
	if c.L2 == nil {
		return 0, 0, nil
	}
	f := &flight[V]{id: id, generation: c.generation()}
	var err error
	if f.key, err = c.config.Key(f.generation, id); err != nil {
		return 0, 0, err
	}
	b, err := c.L2.Get(ctx, f.key)
	if errors.Is(err, ErrMiss) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s %q: %w", c.config.Namespace, short(id), err)
	}
	if it, err := c.decode(f, b, TierL2); err == nil {
		if left := c.left(it); left > 0 {
			return left, TierL2, nil
		}
	}
	return 0, 0, nil
}

// left is how long the item may be served yet; not positive if it has expired or changed.
func (c *Cache[V]) left(it *item[V]) time.Duration {
	if it.generation != c.generation() || !c.Tracker.Valid(it.scopes[viewScope], it.scopes, it.snapshot) {
		return 0
	}
	return it.expires.Sub(c.Tracker.Now())
}

// L2Key is the key of an id in the present generation, for those who delete or explain it.
func (c *Cache[V]) L2Key(id string) (string, error) { return c.config.Key(c.generation(), id) }

// generation is the namespace's as of the latest poll or a later one.
func (c *Cache[V]) generation() cluster.Generation {
	return c.Tracker.Generations().Of(c.config.Namespace)
}
