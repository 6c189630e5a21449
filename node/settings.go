package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// CacheSettings are what operators say of a cache: they hold in place of what its code says, of which zero fields leave
// everything as it is. Meaning, units and bounds are those of the fields of [CacheConfig] that have the same names.
type CacheSettings struct {
	TTL, NegativeTTL time.Duration
	// Refresh replaces both parts of the code's; nil = it stays.
	Refresh *Refresh
	// A MaxStale below 0 allows no STALE answer.
	Budget, MaxStale                     time.Duration
	SoftTimeout, LoadTimeout, RetryAfter time.Duration
	MaxEntries                           int
	MaxBytes                             int64
	MaxValue                             int
	// Compress replaces all parts of the code's; nil = it stays.
	Compress *Compression
	WarmUp   WarmUpSettings
}

// WarmUpSettings are the part of [WarmUp] and [QueryWarmUp] that is no code.
type WarmUpSettings struct {
	Peers          *bool // nil = as the code says
	Limit, Rate    int
	Timeout, Every time.Duration
}

// over is what holds when s is said over what is below.
func (s CacheSettings) over(below CacheSettings) CacheSettings {
	return CacheSettings{
		TTL: cmp.Or(s.TTL, below.TTL), NegativeTTL: cmp.Or(s.NegativeTTL, below.NegativeTTL), Refresh: cmp.Or(s.Refresh, below.Refresh),
		Budget: cmp.Or(s.Budget, below.Budget), MaxStale: cmp.Or(s.MaxStale, below.MaxStale),
		SoftTimeout: cmp.Or(s.SoftTimeout, below.SoftTimeout), LoadTimeout: cmp.Or(s.LoadTimeout, below.LoadTimeout),
		RetryAfter: cmp.Or(s.RetryAfter, below.RetryAfter),
		MaxEntries: cmp.Or(s.MaxEntries, below.MaxEntries), MaxBytes: cmp.Or(s.MaxBytes, below.MaxBytes), MaxValue: cmp.Or(s.MaxValue, below.MaxValue),
		Compress: cmp.Or(s.Compress, below.Compress),
		WarmUp: WarmUpSettings{
			Peers: cmp.Or(s.WarmUp.Peers, below.WarmUp.Peers), Limit: cmp.Or(s.WarmUp.Limit, below.WarmUp.Limit), Rate: cmp.Or(s.WarmUp.Rate, below.WarmUp.Rate),
			Timeout: cmp.Or(s.WarmUp.Timeout, below.WarmUp.Timeout), Every: cmp.Or(s.WarmUp.Every, below.WarmUp.Every),
		},
	}
}

// reads is the part that is about reads and loads.
func (s CacheSettings) reads() settings {
	return settings{s.Budget, s.MaxStale, s.SoftTimeout, s.LoadTimeout}
}

// validate reports all problems at once, as far as they can be told without the code's configuration.
func (s CacheSettings) validate(n Config) error {
	warm := warmPlan{sources: make([]warmSource, 1), limit: s.WarmUp.Limit, rate: s.WarmUp.Rate, timeout: s.WarmUp.Timeout, every: s.WarmUp.Every}
	return errors.Join(s.reads().validate(n), warm.check(cmp.Or(s.MaxEntries, maxWarmUp)), tiers.Config[string]{
		TTL: s.TTL, NegativeTTL: s.NegativeTTL, RetryAfter: s.RetryAfter, MaxEntries: s.MaxEntries, MaxBytes: s.MaxBytes, MaxValue: s.MaxValue,
		Refresh: *cmp.Or(s.Refresh, &Refresh{}), Compression: *cmp.Or(s.Compress, &Compression{}),
	}.Validate())
}

// tuned are the settings of a cache whose code says own.
func (c Config) tuned(name cacheName, own CacheSettings) CacheSettings {
	return c.Caches[name.namespace+"/"+name.view].over(c.Caches[name.namespace]).over(own)
}

// checkCacheName reports why the text is no name in [Config.Caches].
func checkCacheName(text string) error {
	namespace, view, both := strings.Cut(text, "/")
	err := cluster.CheckNamespace(namespace)
	if both {
		err = errors.Join(err, cluster.CheckView(view))
	}
	if err != nil {
		return fmt.Errorf("%w; want namespace or namespace/view", err)
	}
	return nil
}

// warnOfSettings logs the settings that are of no cache of this node: mistyped, or of one that is gone.
func (n *Node) warnOfSettings() {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var idle []string
	for text := range n.config.Caches {
		namespace, view, both := strings.Cut(text, "/")
		if !slices.ContainsFunc(slices.Collect(maps.Keys(n.caches)), func(name cacheName) bool {
			return name.namespace == namespace && (!both || name.view == view)
		}) {
			idle = append(idle, text)
		}
	}
	if len(idle) > 0 {
		slices.Sort(idle)
		n.log.Warn("node: Config.Caches has settings for caches that this node does not have", "caches", idle)
	}
}
