package tiers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/freshet-cache/freshet/coherence"
)

// loadedItem makes the item of a flight from a batch that was asked for at the given instant.
func (c *Cache[V]) loadedItem(f *flight[V], loaded Batch[V], began loadStart, cost time.Duration) *item[V] {
	value, found := loaded.Values[f.id]
	it := &item[V]{
		value: value, absent: !found, tier: TierSource, snapshot: loaded.Snapshot, after: loaded.After,
		loadedAt: time.Now(), ttl: c.vary(c.config.TTL), cost: cost, loaded: began.at, order: began.order,
		generation: f.generation,
	}
	if loaded.Snapshot.Timeline == 0 {
		// A standby's, or without any proof that Postgres was there: it may be of any age.
		it.loaded, it.order = noInstant, 0
	}
	if !found {
		it.ttl = c.vary(c.config.NegativeTTL)
	}
	if c.tagged(it) {
		it.tags = hashTags(c.config.Tags(f.id, value))
	}
	it.soft = c.config.Refresh.soft(it.ttl)
	c.place(f.id, it, it.ttl)
	return it
}

// tagged reports whether the item has the tags of the configuration.
func (c *Cache[V]) tagged(it *item[V]) bool {
	return c.config.Tags != nil && (!it.absent || c.config.TagAbsent)
}

// hashTags are the tags' scopes, ascending without duplicates.
func hashTags(tags []string) []coherence.ScopeHash {
	hashes := make([]coherence.ScopeHash, len(tags))
	for i, tag := range tags {
		hashes[i] = coherence.Tag(tag).Hash()
	}
	slices.Sort(hashes)
	return slices.Compact(hashes)
}

// mergeTags are the tags of both, ascending without duplicates, as each of them is.
func mergeTags(a, b []coherence.ScopeHash) []coherence.ScopeHash {
	if slices.Equal(a, b) {
		return a
	}
	merged := slices.Concat(a, b)
	slices.Sort(merged)
	return slices.Compact(merged)
}

// place gives the item what is left of its time to live, its scopes and their stamps.
func (c *Cache[V]) place(id string, it *item[V], left time.Duration) {
	it.expires = c.Tracker.Now().Add(left)
	it.early.Store(int64(c.config.Refresh.early(it.expires, it.ttl-it.soft, it.cost)))
	it.retry.Store(int64(noInstant))
	it.scopes = c.scopesOf(id, it.tags)
	it.stamps = coherence.StampsOf(it.scopes)
	it.checked.Store(int64(noInstant))
}

// encoded is an item in the format of L2.
type encoded struct {
	bytes   []byte
	version uint64 // hash of the payload
	payload int    // bytes before compression
}

// encode is the item as the entry of its key.
func (c *Cache[V]) encode(key string, it *item[V]) (encoded, error) {
	h := Header{
		Absent: it.absent, Codec: c.coder.codec, Key: KeySum(key), Fingerprint: c.coder.fingerprint, Generation: it.generation.Packed(),
		Snapshot: it.snapshot, LoadedAt: it.loadedAt, Soft: it.soft, Hard: it.ttl, Cost: it.cost, Tags: it.tags,
	}
	var payload []byte
	if !it.absent {
		var err error
		if payload, err = c.coder.Encode(it.value); err != nil {
			// Nobody knows whether it is the same as before: no two are.
			return encoded{version: rand.Uint64()}, err
		}
		if len(payload) > c.config.MaxValue {
			return encoded{version: xxhash.Sum64(payload)}, fmt.Errorf("%w: %d bytes encoded, the most is %d", ErrTooLarge, len(payload), c.config.MaxValue)
		}
	}
	b, err := c.packing.EncodeEntry(nil, h, payload)
	return encoded{bytes: b, version: xxhash.Sum64(payload), payload: len(payload)}, err
}

// cannotKeep notes that no tier can hold a loaded value, which is served all the same.
func (c *Cache[V]) cannotKeep(err error) {
	if !errors.Is(err, ErrTooLarge) { // which is no fault, and may come with every load
		c.Logger.Warn("tiers: a loaded value cannot be kept", "namespace", c.config.Namespace, "error", Loggable(err))
	}
	c.countUnfilled(err)
}

// sizeOf is what an item takes in L1.
func sizeOf(id string, payload int) int64 { return int64(len(id)) + int64(payload) + itemOverhead }

// decode is the item of a flight's entry that came from L2 or a peer. Anything that is not of the flight's
// key and generation or does not fit this build's type is an error.
func (c *Cache[V]) decode(f *flight[V], b []byte, from Tier) (it *item[V], err error) {
	defer func() {
		if p := recover(); p != nil { // V may decode itself
			err = fmt.Errorf("%w: decoding panicked: %v", ErrForeign, p)
		}
	}()
	h, payload, err := c.packing.DecodeEntry(b)
	if err != nil {
		return nil, err
	}
	if h.Key != KeySum(f.key) || h.Fingerprint != c.coder.fingerprint || h.Generation != f.generation.Packed() {
		return nil, fmt.Errorf("%w: of another key, type or generation", ErrForeign)
	}
	it = &item[V]{
		absent: h.Absent, tier: from, snapshot: h.Snapshot, version: h.Sum, tags: h.Tags,
		size:     sizeOf(f.id, len(payload)),
		loadedAt: h.LoadedAt, soft: min(h.Soft, h.Hard), ttl: h.Hard, cost: h.Cost, loaded: noInstant, generation: f.generation,
	}
	if !h.Absent {
		if it.value, err = c.coder.Decode(h.Codec, payload); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrForeign, err)
		}
	}
	if c.tagged(it) {
		// What wrote the entry may have had other tags in mind: those of this build count, too.
		it.tags = mergeTags(h.Tags, hashTags(c.config.Tags(f.id, it.value)))
	}
	// Wall clocks serve expiry only: a loader's clock that is ahead must not give more than its TTL.
	c.place(f.id, it, min(time.Until(h.LoadedAt.Add(h.Hard)), h.Hard))
	return it, nil
}
