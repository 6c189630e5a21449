package node

import (
	"cmp"
	"slices"
	"strings"

	"github.com/freshet-cache/freshet/tiers"
)

// CacheDescription describes a cache of the node by what is in effect: defaults are filled in, and what came from the
// node or from overrides is there. It is made for JSON; times are in seconds.
type CacheDescription struct {
	Namespace string `json:"namespace"`
	View      string `json:"view"`
	// Kind is "entity" or "query".
	Kind string `json:"kind"`
	// Generation is the present one, "3.1": the application's and the namespace's.
	Generation string `json:"generation"`

	TTL         float64 `json:"ttl_seconds"`
	NegativeTTL float64 `json:"negative_ttl_seconds"`
	Budget      float64 `json:"budget_seconds"`
	// MaxStale of 0: no STALE answer. SoftTimeout of 0: a read waits as long as a poll or a load may take.
	MaxStale    float64 `json:"max_stale_seconds"`
	SoftTimeout float64 `json:"soft_timeout_seconds"`
	LoadTimeout float64 `json:"load_timeout_seconds"`
	RetryAfter  float64 `json:"retry_after_seconds"`

	MaxEntries int    `json:"max_entries"`
	MaxBytes   int64  `json:"max_bytes"`
	MaxValue   int    `json:"max_value_bytes"`
	Codec      string `json:"codec"`
	// Compression is "s2", "zstd" or "none", of what is above CompressAbove bytes, at CompressLevel, 1 to 3.
	Compression   string `json:"compression"`
	CompressAbove int    `json:"compress_above_bytes"`
	CompressLevel int    `json:"compress_level"`

	// RefreshAhead is the part of its time to live behind which an entry is refreshed, RefreshBeta that of XFetch;
	// both 0: never.
	RefreshAhead float64 `json:"refresh_ahead"`
	RefreshBeta  float64 `json:"refresh_beta"`
	// WriteThrough: the cache has a [Store]. WriteBehind: it takes later puts.
	WriteThrough bool `json:"write_through"`
	WriteBehind  bool `json:"write_behind"`
	// WarmUp are the sources of the warm-up, in their order.
	WarmUp []string `json:"warm_up"`
}

// describeCache describes a cache that was made by what its reads want that name nothing, and what its tiers have.
func describeCache(name cacheName, kind string, want tiers.Want, s tiers.Settings) CacheDescription {
	return CacheDescription{
		Namespace: name.namespace, View: name.view, Kind: kind,
		TTL: s.TTL.Seconds(), NegativeTTL: s.NegativeTTL.Seconds(), Budget: want.Budget.Seconds(), MaxStale: want.MaxStale.Seconds(),
		SoftTimeout: want.SoftTimeout.Seconds(), LoadTimeout: s.LoadTimeout.Seconds(), RetryAfter: s.RetryAfter.Seconds(),
		MaxEntries: s.MaxEntries, MaxBytes: s.MaxBytes, MaxValue: s.MaxValue, Codec: strings.ToLower(s.Codec.String()),
		Compression: s.Compression.Algorithm.String(), CompressAbove: s.Compression.Above, CompressLevel: s.Compression.Level,
		RefreshAhead: s.Refresh.Ahead, RefreshBeta: s.Refresh.Beta,
	}
}

// describe keeps the description of a cache that is complete.
func (n *Node) describe(d CacheDescription) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.described = append(n.described, d)
}

// Caches are the caches of the node with their settings, in the order of their namespaces and views.
func (n *Node) Caches() []CacheDescription {
	n.mu.RLock()
	defer n.mu.RUnlock()
	all := slices.Clone(n.described)
	for i := range all {
		s := &all[i]
		s.Generation = n.Generation(s.Namespace).String()
		s.WarmUp = []string{}
		warmUps, _ := n.warmUpStats(cacheName{s.Namespace, s.View})
		for _, w := range warmUps {
			s.WarmUp = append(s.WarmUp, w.Source)
		}
	}
	slices.SortFunc(all, func(a, b CacheDescription) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.View, b.View))
	})
	return all
}
