package node

import (
	"sync/atomic"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// nodeCounts is what a node counts besides its caches and its tracker.
type nodeCounts struct {
	writes, hintsHeard, hintsUnsent atomic.Uint64
	cleaned                         atomic.Uint64 // keys removed by clean-ups
}

// Stats describes a node by now; counts are since it was opened. It is made for JSON.
type Stats struct {
	ID   string `json:"id"`
	Boot uint64 `json:"boot"`
	// Budget in seconds is the default of reads: [Config.Budget].
	Budget float64 `json:"budget_seconds"`
	// HasRedis and HasNATS say whether the node was given them; Connected whether there is a connection to NATS.
	HasRedis  bool `json:"has_redis"`
	HasNATS   bool `json:"has_nats"`
	Connected bool `json:"nats_connected"`
	// PollAge in seconds bounds the staleness of FRESH answers; a day if nothing is known.
	PollAge     float64 `json:"poll_age_seconds"`
	PollSeconds float64 `json:"poll_seconds"` // duration of the last poll
	Polls       uint64  `json:"polls"`
	PollErrors  uint64  `json:"poll_errors"`
	// Polls sent to Postgres, those that came by a relay, those of the first that a relay should have
	// answered and did not, and those that were given to other replicas.
	PollsDirect  uint64 `json:"polls_direct"`
	PollsRelayed uint64 `json:"polls_relayed"`
	PollsVain    uint64 `json:"polls_unanswered"`
	PollsGiven   uint64 `json:"polls_given"`

	Changes uint64 `json:"changes"` // scopes that changed, as they became known
	Flushes uint64 `json:"flushes"`
	Writes  uint64 `json:"writes"` // through this node
	// GenerationChanges are the polls that brought other generations than before, the first poll included;
	// Cleaned are the keys that this node's clean-ups have removed from Redis, by hand and of old generations.
	GenerationChanges uint64 `json:"generation_changes"`
	Cleaned           uint64 `json:"cleaned_keys"`

	// What reads of several values as of one moment cost: polls that they waited for, runs that were repeated,
	// and those that took a transaction in the end.
	ConsistentPolls        uint64 `json:"consistent_polls"`
	ConsistentRepeats      uint64 `json:"consistent_repeats"`
	ConsistentTransactions uint64 `json:"consistent_transactions"`

	HintsSent     uint64 `json:"hints_sent"`
	HintsUnsent   uint64 `json:"hints_unsent"` // NATS was away: others found the change by polling
	HintsReceived uint64 `json:"hints_received"`
	HintGaps      uint64 `json:"hint_gaps"` // hints of others that did not arrive
	HintsRefused  uint64 `json:"hints_refused"`

	// WatchAge in seconds is how long ago the watches of tables were checked; a day if they never were.
	// WatchDrift is what was wrong with them: its namespaces, and the tags of these watches, cannot be proven.
	WatchAge   float64      `json:"watch_age_seconds"`
	WatchDrift []DriftStats `json:"watch_drift"`

	Source     SourceStats      `json:"source"`
	Shards     []ShardStats     `json:"shards"`
	Members    []MemberStats    `json:"members"`
	Namespaces []NamespaceStats `json:"namespaces"`
}

// DriftStats is a problem of a watched table, or of a partition or child of one, as freshet.drift() names it.
type DriftStats struct {
	Namespace string `json:"namespace"`
	Relation  string `json:"relation"`
	Problem   string `json:"problem"`
}

// SourceStats describes the bulkhead before Postgres.
type SourceStats struct {
	Running int64  `json:"running"`
	Waiting int64  `json:"waiting"`
	Peak    int64  `json:"peak"`
	Places  int64  `json:"places"`
	Refused uint64 `json:"refused"`
}

// ShardStats describes a Redis shard and its breaker.
type ShardStats struct {
	Name  string `json:"name"`
	Slots string `json:"slots"`
	State string `json:"state"` // closed, half-open, open
	// Connected: there is a connection. Without one the state is open.
	Connected bool   `json:"connected"`
	Requests  uint64 `json:"requests"`
	Failures  uint64 `json:"failures"`
	Refused   uint64 `json:"refused"`
}

// MemberStats describes a replica of the application as this one sees it.
type MemberStats struct {
	ID      string  `json:"id"`
	Address string  `json:"address"`
	PollAge float64 `json:"poll_age_seconds"`
	Load    uint64  `json:"load"`
}

// NamespaceStats describes one view of a namespace.
type NamespaceStats struct {
	Namespace string `json:"namespace"`
	View      string `json:"view"`
	// Generation is the present one, "3.1": the application's and the namespace's.
	Generation string `json:"generation"`
	// Reads = Fresh + Stale + Errors = Hits + Misses. The answers by tier sum up to Reads - Errors: Hits are
	// those of L1, L2 and owners, Misses those of the source, and the Errors.
	Reads  uint64 `json:"reads"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
	Fresh  uint64 `json:"fresh"`
	Stale  uint64 `json:"stale"`
	Graced uint64 `json:"graced"` // of Stale, since the changes that they lacked have a grace
	// The rest of Stale: Postgres could not be asked what has changed; the load failed, or had just failed for another
	// read; it took longer than SoftTimeout; what was loaded had changed each time.
	StaleUnproven uint64 `json:"stale_unproven"`
	StaleFailed   uint64 `json:"stale_failed"`
	StaleSlow     uint64 `json:"stale_slow"`
	StaleChanged  uint64 `json:"stale_changed"`

	Errors     uint64 `json:"errors"`
	L1Hits     uint64 `json:"l1_hits"`
	L2Hits     uint64 `json:"l2_hits"`
	OwnerHits  uint64 `json:"owner_hits"`
	SourceHits uint64 `json:"source_hits"`
	Negative   uint64 `json:"negative"`
	// Loads are ids asked of the source.
	Loads       uint64  `json:"loads"`
	LoadErrors  uint64  `json:"load_errors"`
	LoadSeconds float64 `json:"load_seconds"`
	Coalesced   uint64  `json:"coalesced"`
	CutThrough  uint64  `json:"cut_through"`
	Rejected    uint64  `json:"rejected"`
	Unusable    uint64  `json:"unusable"`
	// Fills are loaded entries that got into L2, FillErrors those for which that failed; while a shard's breaker
	// is open it is not tried. Unlinks are keys whose removal from L2 was asked for since a write of this node
	// changed their entity; the shards count what fails.
	Fills      uint64 `json:"fills"`
	FillErrors uint64 `json:"fill_errors"`
	Unlinks    uint64 `json:"unlinks"`
	// TooLarge are loaded values that were above a limit of size, and so not kept or not in L2.
	TooLarge uint64 `json:"too_large"`
	// SoftTimeouts are reads that had waited for SoftTimeout when there was a STALE answer for them.
	SoftTimeouts uint64 `json:"soft_timeouts"`
	// Refreshes ahead of an expiry by what became of them: loaded here; taken, another replica having loaded;
	// skipped, another being at it or reads needing the source; or failed.
	Refreshed        uint64 `json:"refreshed"`
	RefreshesTaken   uint64 `json:"refreshes_taken"`
	RefreshesSkipped uint64 `json:"refreshes_skipped"`
	RefreshErrors    uint64 `json:"refresh_errors"`

	// Verified are entries of samples that the source has, too; Mismatched those that it has not; VerifyMoved, VerifyFailed
	// and VerifySkipped as in [VerifyReport].
	Verified      uint64 `json:"verified"`
	Mismatched    uint64 `json:"mismatched"`
	VerifyMoved   uint64 `json:"verify_moved"`
	VerifyFailed  uint64 `json:"verify_failed"`
	VerifySkipped uint64 `json:"verify_skipped"`

	L1Entries   int64  `json:"l1_entries"`
	L1Bytes     int64  `json:"l1_bytes"`
	L1Evictions uint64 `json:"l1_evictions"`
	// L1MaxEntries and L1MaxBytes bound them.
	L1MaxEntries int   `json:"l1_max_entries"`
	L1MaxBytes   int64 `json:"l1_max_bytes"`
	// WarmingUp: the first run of its warm-up is under way, whether or not readiness waits for it.
	WarmingUp bool `json:"warming_up,omitempty"`
	// WarmUps are those of its sources, in their order; what they read is none of the counts above.
	WarmUps []WarmUpStats `json:"warm_ups,omitempty"`
	// WritesBehind says whether the view has [CacheConfig.WriteBehind].
	WritesBehind bool `json:"writes_behind"`
	// Later puts: those that this node knows to be pending and since when the oldest is, in seconds; and what
	// its flushers did: wrote, passed over since a later put of the key was there, gave up, tried again.
	PutsPending    int     `json:"puts_pending"`
	PutsOldest     float64 `json:"puts_oldest_seconds"`
	PutsApplied    uint64  `json:"puts_applied"`
	PutsSuperseded uint64  `json:"puts_superseded"`
	PutsDead       uint64  `json:"puts_dead"`
	PutRetries     uint64  `json:"put_retries"`
}

// Stats describes the node by now.
func (n *Node) Stats() Stats { return n.measure().Stats }

// measured is what metrics are made of.
type measured struct {
	Stats
	caches      []tiers.Stats      // of Stats.Namespaces, in their order
	shards      []tiers.ShardState // of Stats.Shards, in their order
	lag, echoes coherence.Durations
}

func (n *Node) measure() measured {
	t := n.tracker.Stats()
	m := measured{lag: t.Lag}
	b := n.bulkhead.Stats()
	s := Stats{
		ID: n.id, Boot: n.boot, Budget: n.config.budget().Seconds(), HasRedis: n.parts.L2 != nil, HasNATS: n.conn != nil, Connected: n.connected(),
		PollAge: n.pollAge().Seconds(), PollSeconds: t.PollTime.Seconds(),
		Polls: t.Polls, PollErrors: t.PollErrors, Changes: t.Changes, Flushes: t.Flushes, Writes: n.counts.writes.Load(),
		GenerationChanges: t.Regenerations, Cleaned: n.counts.cleaned.Load(),
		HintsReceived: n.counts.hintsHeard.Load(), HintGaps: t.HintsMissed, HintsRefused: t.HintsRefused,
		Source:   SourceStats{Running: b.Running, Waiting: b.Waiting, Peak: b.Peak, Places: b.Places, Refused: b.Refused},
		WatchAge: n.watches.age(n.tracker.Now()).Seconds(), WatchDrift: n.watches.stats(),
		Shards: []ShardStats{}, Members: []MemberStats{}, Namespaces: []NamespaceStats{},
	}
	r := n.polls.Stats()
	s.PollsDirect, s.PollsRelayed, s.PollsVain, s.PollsGiven = r.Direct, r.Relayed, r.Vain, r.Answered
	s.ConsistentPolls, s.ConsistentRepeats = n.together.Polls.Load(), n.together.Repeats.Load()
	s.ConsistentTransactions = n.together.Transactions.Load()
	if n.bus != nil {
		s.HintsUnsent = n.counts.hintsUnsent.Load() // before those that are numbered: each of it is among them
		s.HintsSent = n.bus.Published() - s.HintsUnsent
		m.echoes = n.bus.Echoes()
	}
	if n.parts.L2 != nil {
		m.shards = n.parts.L2.Shards()
		for _, shard := range m.shards {
			s.Shards = append(s.Shards, ShardStats{
				Name: shard.Name, Slots: shard.Slots, State: shard.State, Connected: shard.Connected,
				Requests: shard.Requests, Failures: shard.Failures, Refused: shard.Refused,
			})
		}
	}
	if n.members != nil {
		for _, m := range n.members.View().Members {
			s.Members = append(s.Members, MemberStats{ID: m.ID, Address: m.Address, PollAge: m.PollAge.Seconds(), Load: m.Load})
		}
	}
	for _, c := range n.cacheStats() {
		stats := c.json()
		stats.Generation = n.Generation(c.name.namespace).String()
		if p := n.puts.Load().follower(c.name.namespace); p != nil && p.cache() == c.name {
			describePuts(&stats, p)
		}
		s.Namespaces = append(s.Namespaces, stats)
		m.caches = append(m.caches, c.Stats)
	}
	m.Stats = s
	return m
}

// connected reports whether there is a connection to the bus; of one that cannot tell, that there is.
func (n *Node) connected() bool {
	if c, ok := n.conn.(interface{ Connected() bool }); ok {
		return c.Connected()
	}
	return n.conn != nil
}

// describePuts adds what is known of a cache's later puts.
func describePuts(v *NamespaceStats, p follower) {
	v.WritesBehind = true
	var since time.Time
	if v.PutsPending, since = p.oldest(); !since.IsZero() {
		v.PutsOldest = max(time.Since(since).Seconds(), 0)
	}
	c := p.count()
	v.PutsApplied, v.PutsSuperseded, v.PutsDead, v.PutRetries = c.applied.Load(), c.superseded.Load(), c.dead.Load(), c.retries.Load()
}

// namedStats are a cache's counts with its name.
type namedStats struct {
	name cacheName
	tiers.Stats
	warmUps   []WarmUpStats
	warmingUp bool
	settings  tiers.Settings
}

// cacheStats are those of every cache, in the order of their names.
func (n *Node) cacheStats() []namedStats {
	n.mu.RLock()
	defer n.mu.RUnlock()
	all := make([]namedStats, 0, len(n.caches))
	for name, c := range n.caches {
		warmUps, under := n.warmUpStats(name)
		all = append(all, namedStats{name, c.Stats(), warmUps, under, c.Settings()})
	}
	sortStats(all)
	return all
}

func (s namedStats) json() NamespaceStats {
	return NamespaceStats{
		Namespace: s.name.namespace, View: s.name.view,
		Reads: s.Reads, Hits: s.L1Hits + s.L2Hits + s.OwnerHits, Misses: s.SourceHits + s.Errors,
		Fresh: s.Fresh, Stale: s.Stale, Graced: s.Graced, Errors: s.Errors,
		StaleUnproven: s.StaleUnproven, StaleFailed: s.StaleFailed, StaleSlow: s.StaleSlow, StaleChanged: s.StaleChanged,
		L1Hits: s.L1Hits, L2Hits: s.L2Hits, OwnerHits: s.OwnerHits, SourceHits: s.SourceHits, Negative: s.Negative,
		Loads: s.Loads, LoadErrors: s.LoadErrors, LoadSeconds: s.LoadTime.Seconds(), Coalesced: s.Coalesced,
		CutThrough: s.CutThrough, Rejected: s.Rejected, Unusable: s.Unusable,
		Fills: s.Fills, FillErrors: s.FillErrors, Unlinks: s.Unlinks, TooLarge: s.TooLarge, SoftTimeouts: s.SoftTimeouts,
		Refreshed: s.Refreshed, RefreshesTaken: s.RefreshesTaken, RefreshesSkipped: s.RefreshesSkipped, RefreshErrors: s.RefreshErrors,
		Verified: s.Verified, Mismatched: s.Mismatched, VerifyMoved: s.VerifyMoved, VerifyFailed: s.VerifyFailed, VerifySkipped: s.VerifySkipped,
		L1Entries: s.L1.Entries, L1Bytes: s.L1.Bytes, L1Evictions: s.L1.Evictions, WarmingUp: s.warmingUp, WarmUps: s.warmUps,
		L1MaxEntries: s.settings.MaxEntries, L1MaxBytes: s.settings.MaxBytes,
	}
}
