package tiers

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// Explanation is what a cache knows of one id, without its value: where it is, and why a read is answered as it is. It
// describes the moment at which it was made; nothing was loaded, filled, moved or counted for it.
type Explanation struct {
	// Generation is the namespace's present one, and Key the id's in L2 under it.
	Generation cluster.Generation
	Key        string
	// Now is the present, and Known when the last poll was sent; noInstant, before every instant, if nothing is proven.
	Now, Known coherence.Instant
	// Proven: what is known is recent enough for the read.
	Proven bool
	// L1 is the entry in this process; nil = none.
	L1 *Copy
	// Label is that of a read which L1 answers now: FRESH, or else what it may have if nothing newer can be had, of Postgres
	// or the other tiers. LabelNone: none. Age is the answer's.
	Label Label
	Age   time.Duration
	// Resting is for how long reads that may have a STALE answer take it without asking the source, since a load has just
	// failed; 0 = they ask.
	Resting time.Duration
	// Loading: a flight for the id is under way.
	Loading bool
	// InL2 is what came of asking L2: StepFound, StepNothing, StepExpired, StepChanged, StepUnreadable, StepUnavailable,
	// StepSilent, or StepNotAsked, where there is no L2. L2 is the entry if one could be read, and Unread why not.
	InL2   Step
	L2     *Copy
	Unread error
	// Scopes are what the entries depend on; without an entry nobody knows its tags.
	Scopes []ScopeExplanation
	// Miss is the last read that L1 had no FRESH answer for, if it is remembered.
	Miss *Miss
}

// Copy is an entry in one tier.
type Copy struct {
	Absent     bool // the source had no such thing
	Snapshot   coherence.Snapshot
	Generation cluster.Generation
	// Tier is where it came from.
	Tier Tier
	// LoadedAt is the loader's wall clock. Left and Refresh are what is left until it expires, and until it is to be
	// refreshed; not positive when that is over.
	LoadedAt      time.Time
	Left, Refresh time.Duration
	// Tags as texts; those that only the maker of the entry knows are # and their hash.
	Tags []string
	// Bytes are what it takes in the tier: in L1 with what stands around it, in L2 as it is stored.
	Bytes int64
	// Payload is the size before compression, Codec and Compression are how it is stored; zero in L1.
	Payload     int
	Codec       Codec
	Compression Algorithm
	// Standing is how it stands to what this replica knows, its scopes are those of the Explanation.
	Standing coherence.Standing
}

// ScopeExplanation is what is known of one scope that an entry depends on.
type ScopeExplanation struct {
	Scope coherence.ScopeHash
	// Name is as [coherence.Scope.String] writes it.
	Name string
	// Last is the transaction of the last change that this replica heard of, and Heard when; 0 = of none, or not known.
	Last  uint64
	Heard coherence.Instant
	// Doubt is since when changes may go unlogged; nil = they do not.
	Doubt *coherence.Instant
	// L1 and L2 are why it refuses the entry in that tier.
	L1, L2 coherence.Refusal
}

// Explain says what is known of the id, for a read that asks for so much. L2 is asked as for any read: by way of its
// shard's breaker, within its time-out. The error says that the id is bad.
func (c *Cache[V]) Explain(ctx context.Context, id string, want Want) (Explanation, error) {
	if err := c.checkID(id); err != nil {
		return Explanation{}, err
	}
	e := Explanation{Generation: c.generation()}
	var err error
	if e.Key, err = c.config.Key(e.Generation, id); err != nil {
		return Explanation{}, err
	}
	f := &flight[V]{id: id, generation: e.Generation, key: e.Key}
	fromL2, stored := c.explainL2(ctx, f, &e)
	it, _ := c.l1.get(id)

	r := reading{Want: want}
	poll := c.Tracker.Latest()
	e.Now, e.Known = c.Tracker.Now(), noInstant
	if e.Proven = r.proven(poll, e.Now); poll != nil {
		e.Known = poll.Sent
	}
	if m, ok := c.misses.last(id); ok {
		e.Miss = &m
	}
	c.flights.mu.Lock()
	_, e.Loading = c.flights.byID[id]
	c.flights.mu.Unlock()
	names, scopes := c.explainScopes(id, it, fromL2, &e)
	if fromL2 != nil {
		e.L2 = c.copyOf(fromL2, names, scopes, e.Now)
		e.L2.Bytes, e.L2.Payload, e.L2.Codec, e.L2.Compression = stored.bytes, stored.payload, stored.codec, stored.compression
		switch {
		case e.L2.Left <= 0:
			e.InL2 = StepExpired
		case e.L2.Standing.Refused != coherence.NotRefused:
			e.InL2 = StepChanged
		}
		for i := range e.Scopes {
			e.Scopes[i].L2 = e.L2.Standing.Scopes[i].Refused
		}
	}
	if it != nil {
		e.L1 = c.copyOf(it, names, scopes, e.Now)
		e.L1.Bytes = it.size
		if e.Proven && it.sum.Load() == c.stamps.Sum(&it.stamps) {
			// A hit: it was found valid, and nothing has changed since. The directory need not know that of an old value.
			e.L1.Standing = coherence.Standing{Scope: -1, Scopes: make([]coherence.ScopeStanding, len(scopes))}
		}
		e.Resting = max(coherence.Instant(it.retry.Load()).Sub(e.Now), 0)
		for i := range e.Scopes {
			e.Scopes[i].L1 = e.L1.Standing.Scopes[i].Refused
		}
		e.Label, e.Age = c.outlook(it, e.L1, poll, &r, e.Now)
	}
	return e, nil
}

// storage is how an entry is stored in L2.
type storage struct {
	bytes       int64
	payload     int
	codec       Codec
	compression Algorithm
}

// explainL2 asks L2 for the flight's entry, and notes what came of it.
func (c *Cache[V]) explainL2(ctx context.Context, f *flight[V], e *Explanation) (*item[V], storage) {
	if c.L2 == nil {
		return nil, storage{}
	}
	b, err := c.L2.Get(ctx, f.key)
	if err != nil {
		if e.InL2 = c.stepL2(f.key, err); e.InL2 != StepNothing {
			e.Unread = err
		}
		return nil, storage{}
	}
	e.InL2 = StepUnreadable
	h, payload, err := c.packing.DecodeEntry(b)
	if err != nil {
		e.Unread = err
		return nil, storage{}
	}
	it, err := c.decode(f, b, TierL2)
	switch {
	case err == nil:
	case h.Key != KeySum(f.key):
		e.Unread = fmt.Errorf("%w: it is for another key", ErrForeign)
	case h.Fingerprint != c.coder.fingerprint:
		e.Unread = fmt.Errorf("%w: its type is not this build's", ErrForeign)
	case h.Generation != f.generation.Packed():
		e.Unread = fmt.Errorf("%w: it is of generation %d.%d", ErrForeign, h.Generation>>32, uint32(h.Generation))
	default: // the error may tell of the value
		e.Unread = fmt.Errorf("%w: its payload, by %v, cannot be decoded", ErrForeign, h.Codec)
	}
	if err != nil {
		return nil, storage{}
	}
	e.InL2 = StepFound
	return it, storage{int64(len(b)), len(payload), h.Codec, compressionOf(b)}
}

// compressionOf is how an entry that can be read is compressed.
func compressionOf(b []byte) Algorithm {
	switch b[5] & flagPacked {
	case flagS2:
		return S2
	case flagZstd:
		return Zstd
	}
	return NoCompression
}

// explainScopes lists the scopes of both items, either of which may be nil, and what is known of each.
func (c *Cache[V]) explainScopes(id string, a, b *item[V], e *Explanation) (names map[coherence.ScopeHash]string, scopes []coherence.ScopeHash) {
	names = map[coherence.ScopeHash]string{coherence.AnyTag().Hash(): coherence.AnyTag().String()}
	for _, s := range []coherence.Scope{
		coherence.Entity(c.config.Namespace, id), coherence.View(c.config.Namespace, id, c.config.View),
		coherence.Namespace(c.config.Namespace), coherence.Everything(),
	} {
		names[s.Hash()] = s.String()
	}
	var tags []coherence.ScopeHash
	for _, it := range []*item[V]{a, b} {
		if it == nil {
			continue
		}
		tags = mergeTags(tags, it.tags)
		for _, tag := range c.tagsOf(id, it) {
			names[coherence.Tag(tag).Hash()] = coherence.Tag(tag).String()
		}
	}
	scopes = c.scopesOf(id, tags)
	known := c.Tracker.Explain(scopes[viewScope], scopes, coherence.Snapshot{})
	for i, scope := range scopes {
		if names[scope] == "" {
			names[scope] = coherence.Tag("#" + strconv.FormatUint(uint64(scope), 16)).String()
		}
		s := ScopeExplanation{Scope: scope, Name: names[scope], Last: known.Scopes[i].Last, Heard: known.Scopes[i].Heard}
		if known.Scopes[i].Refused == coherence.RefusedDoubt {
			s.Doubt = &known.Scopes[i].Since
		}
		e.Scopes = append(e.Scopes, s)
	}
	return names, scopes
}

// tagsOf are the tags that the configuration gives the item; none if it panics over it.
func (c *Cache[V]) tagsOf(id string, it *item[V]) (tags []string) {
	defer func() {
		if recover() != nil { // the loader says so, and logs it
			tags = nil
		}
	}()
	if !c.tagged(it) {
		return nil
	}
	return c.config.Tags(id, it.value)
}

// copyOf describes the item, among the scopes of an explanation.
func (c *Cache[V]) copyOf(it *item[V], names map[coherence.ScopeHash]string, scopes []coherence.ScopeHash, now coherence.Instant) *Copy {
	e := &Copy{
		Absent: it.absent, Snapshot: it.snapshot, Generation: it.generation, Tier: it.tier, LoadedAt: it.loadedAt,
		Left: it.expires.Sub(now), Refresh: it.expires.Add(it.soft - it.ttl).Sub(now), Tags: []string{},
	}
	for _, tag := range it.tags {
		e.Tags = append(e.Tags, strings.TrimPrefix(names[tag], "tag "))
	}
	own := c.Tracker.Explain(it.scopes[viewScope], it.scopes, it.snapshot)
	e.Standing = coherence.Standing{Refused: own.Refused, Scope: -1, By: own.By, Scopes: make([]coherence.ScopeStanding, len(scopes))}
	for i, scope := range it.scopes { // each is among the scopes of all
		for n := range scopes {
			if scopes[n] != scope {
				continue
			}
			if e.Standing.Scopes[n] = own.Scopes[i]; i == own.Scope {
				e.Standing.Scope = n
			}
		}
	}
	return e
}

// outlook is how the item in L1 would be labelled for the read. It is [Cache.label] and what follows it, but changes nothing.
func (c *Cache[V]) outlook(it *item[V], e *Copy, poll *coherence.Poll, r *reading, now coherence.Instant) (Label, time.Duration) {
	current := it.generation == c.generation() && now < it.expires
	if current && e.Standing.Refused == coherence.NotRefused && r.proven(poll, now) {
		return LabelFresh, now.Sub(max(it.loaded, poll.Sent))
	}
	grace, ok := c.Tracker.Grace(it.scopes[viewScope], it.scopes, it.snapshot)
	if r.Grace && ok && current && now < grace.Until && r.proven(poll, now) && r.Token.SeenBy(it.snapshot) {
		return LabelGraced, now.Sub(max(it.loaded, min(grace.Since, poll.Sent)))
	}
	if as, ok := c.reflects(it, poll, r); ok && r.MaxStale > 0 && now.Sub(as) <= r.MaxStale {
		return LabelStale, now.Sub(as)
	}
	return LabelNone, 0
}
