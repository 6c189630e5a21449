package tiers

import (
	"cmp"
	"time"
)

// Settings are those of a cache as they are in effect: none is left to a default.
type Settings struct {
	TTL, NegativeTTL time.Duration
	LoadTimeout      time.Duration
	RetryAfter       time.Duration
	MaxEntries       int
	MaxBytes         int64
	Codec            Codec
	Compression      Compression
	MaxValue         int
	Refresh          Refresh // zero = never
}

// Settings are the cache's.
func (c *Cache[V]) Settings() Settings {
	return Settings{
		TTL: c.config.TTL, NegativeTTL: c.config.NegativeTTL, LoadTimeout: c.LoadTimeout, RetryAfter: c.config.RetryAfter,
		MaxEntries: cmp.Or(c.config.MaxEntries, DefaultMaxEntries), MaxBytes: cmp.Or(c.config.MaxBytes, DefaultMaxBytes),
		Codec: c.coder.codec, Compression: c.packing.how, MaxValue: c.config.MaxValue, Refresh: c.config.Refresh,
	}
}
