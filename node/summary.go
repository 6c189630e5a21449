package node

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Summary is what the caches did since the window began: when the node was opened, or since
// [Node.ResetSummary]. Metrics and [Node.Stats] know no window and count on. It is made for JSON.
type Summary struct {
	// Since is when the window began; of several replicas, the earliest.
	Since time.Time `json:"since"`
	// Seconds is how long it is.
	Seconds float64 `json:"seconds"`
	// Replicas are summed up in it.
	Replicas int `json:"replicas"`
	// Namespaces are the views of namespaces, in the order of their names.
	Namespaces []NamespaceSummary `json:"namespaces"`
}

// NamespaceSummary is a view of a namespace in a [Summary].
type NamespaceSummary struct {
	Namespace string `json:"namespace"`
	View      string `json:"view"`
	// Reads = Hits + Misses = Fresh + Stale + Errors, as in [NamespaceStats].
	Reads  uint64 `json:"reads"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
	// HitRatio is Hits / Reads; 0 if there were no reads.
	HitRatio float64 `json:"hit_ratio"`
	Fresh    uint64  `json:"fresh"`
	Stale    uint64  `json:"stale"`
	Errors   uint64  `json:"errors"`
	// Answers by tier.
	L1Hits     uint64 `json:"l1_hits"`
	L2Hits     uint64 `json:"l2_hits"`
	OwnerHits  uint64 `json:"owner_hits"`
	SourceHits uint64 `json:"source_hits"`
	// Loads are ids asked of the source; LoadSeconds what that took, all together.
	Loads       uint64  `json:"loads"`
	LoadErrors  uint64  `json:"load_errors"`
	LoadSeconds float64 `json:"load_seconds"`
	// Fills are entries that were stored in L2, Unlinks those whose removal from it was asked for.
	Fills   uint64 `json:"fills"`
	Unlinks uint64 `json:"unlinks"`
	// What L1 holds now, and what it had to drop for space in the window.
	L1Entries   int64  `json:"l1_entries"`
	L1Bytes     int64  `json:"l1_bytes"`
	L1Evictions uint64 `json:"l1_evictions"`
}

// window is from when on a summary counts.
type window struct {
	mu    sync.Mutex
	since time.Time
	// base is what was counted before it, a cache -> its counts. A cache that is not in it began later.
	base map[cacheName]NamespaceSummary
}

// Summary sums up what the node's caches did in the window.
func (n *Node) Summary() Summary { return n.summary(false) }

// ResetSummary begins a new window and returns the summary of the one before. Of what is counted meanwhile each
// is in one of the two.
func (n *Node) ResetSummary() Summary { return n.summary(true) }

func (n *Node) summary(reset bool) Summary {
	w := &n.window
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	s := Summary{Since: w.since, Seconds: now.Sub(w.since).Seconds(), Replicas: 1, Namespaces: []NamespaceSummary{}}
	all := map[cacheName]NamespaceSummary{}
	for _, c := range n.cacheStats() {
		counted := summaryOf(c.json())
		all[c.name] = counted
		s.Namespaces = append(s.Namespaces, counted.minus(w.base[c.name]))
	}
	if reset {
		w.since, w.base = now, all
	}
	return s
}

func summaryOf(v NamespaceStats) NamespaceSummary {
	return NamespaceSummary{
		Namespace: v.Namespace, View: v.View,
		Reads: v.Reads, Hits: v.Hits, Misses: v.Misses, Fresh: v.Fresh, Stale: v.Stale, Errors: v.Errors,
		L1Hits: v.L1Hits, L2Hits: v.L2Hits, OwnerHits: v.OwnerHits, SourceHits: v.SourceHits,
		Loads: v.Loads, LoadErrors: v.LoadErrors, LoadSeconds: v.LoadSeconds, Fills: v.Fills, Unlinks: v.Unlinks,
		L1Entries: v.L1Entries, L1Bytes: v.L1Bytes, L1Evictions: v.L1Evictions,
	}
}

// minus is what was counted since base. What L1 holds is of now.
func (v NamespaceSummary) minus(base NamespaceSummary) NamespaceSummary {
	v.Reads -= base.Reads
	v.Hits -= base.Hits
	v.Misses -= base.Misses
	v.Fresh -= base.Fresh
	v.Stale -= base.Stale
	v.Errors -= base.Errors
	v.L1Hits -= base.L1Hits
	v.L2Hits -= base.L2Hits
	v.OwnerHits -= base.OwnerHits
	v.SourceHits -= base.SourceHits
	v.Loads -= base.Loads
	v.LoadErrors -= base.LoadErrors
	v.LoadSeconds -= base.LoadSeconds
	v.Fills -= base.Fills
	v.Unlinks -= base.Unlinks
	v.L1Evictions -= base.L1Evictions
	return v.rated()
}

func (v NamespaceSummary) plus(o NamespaceSummary) NamespaceSummary {
	v.Reads += o.Reads
	v.Hits += o.Hits
	v.Misses += o.Misses
	v.Fresh += o.Fresh
	v.Stale += o.Stale
	v.Errors += o.Errors
	v.L1Hits += o.L1Hits
	v.L2Hits += o.L2Hits
	v.OwnerHits += o.OwnerHits
	v.SourceHits += o.SourceHits
	v.Loads += o.Loads
	v.LoadErrors += o.LoadErrors
	v.LoadSeconds += o.LoadSeconds
	v.Fills += o.Fills
	v.Unlinks += o.Unlinks
	v.L1Entries += o.L1Entries
	v.L1Bytes += o.L1Bytes
	v.L1Evictions += o.L1Evictions
	return v.rated()
}

// rated sets the ratio.
func (v NamespaceSummary) rated() NamespaceSummary {
	v.HitRatio = 0
	if v.Reads > 0 {
		v.HitRatio = float64(v.Hits) / float64(v.Reads)
	}
	return v
}

// sumUp is the sum over the replicas that answered.
func sumUp(answers []Answer[Summary]) Summary {
	sum := Summary{Namespaces: []NamespaceSummary{}}
	all := map[cacheName]NamespaceSummary{}
	for _, a := range answers {
		if a.Answer == nil {
			continue
		}
		if sum.Replicas == 0 || a.Answer.Since.Before(sum.Since) {
			sum.Since = a.Answer.Since
		}
		sum.Seconds = max(sum.Seconds, a.Answer.Seconds)
		sum.Replicas += a.Answer.Replicas
		for _, v := range a.Answer.Namespaces {
			name := cacheName{v.Namespace, v.View}
			before, there := all[name]
			if !there {
				before = NamespaceSummary{Namespace: v.Namespace, View: v.View}
			}
			all[name] = before.plus(v)
		}
	}
	for _, v := range all {
		sum.Namespaces = append(sum.Namespaces, v)
	}
	slices.SortFunc(sum.Namespaces, func(a, b NamespaceSummary) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.View, b.View))
	})
	return sum
}
