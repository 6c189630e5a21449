package node

import (
	"cmp"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Collector exports the node's metrics. Each call returns an equal one: registering two is an error.
// Labels are bounded: namespaces, views and shards come from the configuration and the cluster, never
// from keys.
func (n *Node) Collector() prometheus.Collector { return collector{n} }

type collector struct{ node *Node }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("freshet_"+name, help, labels, nil)
}

// Describe implements [prometheus.Collector]. What it says never changes: a registry knows a collector by
// that, and would not find one again that has got a namespace since.
func (c collector) Describe(descs chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(sample{c}, descs)
}

// sample collects one of each metric.
type sample struct{ collector }

// Collect implements [prometheus.Collector].
func (sample) Collect(out chan<- prometheus.Metric) {
	one := NamespaceStats{Generation: cluster.FirstGeneration().String(), WarmUps: make([]WarmUpStats, 1)}
	collect(measured{
		Stats:  Stats{HasNATS: true, Namespaces: []NamespaceStats{one}, Shards: make([]ShardStats, 1), WatchDrift: make([]DriftStats, 1)},
		caches: make([]tiers.Stats, 1), shards: make([]tiers.ShardState, 1),
	}, out)
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) { collect(c.node.measure(), out) }

// histogram turns durations into a metric.
func histogram(d *prometheus.Desc, m coherence.Durations, labels ...string) prometheus.Metric {
	upTo, sum := map[float64]uint64{}, uint64(0)
	for i, bound := range coherence.Bounds() {
		sum += m.Counts[i]
		upTo[bound.Seconds()] = sum
	}
	return prometheus.MustNewConstHistogram(d, m.Count(), m.Sum.Seconds(), upTo, labels...)
}

// The classes of errors that a source, and a shard of Redis, can have.
func sourceClasses() []tiers.ErrorClass {
	return []tiers.ErrorClass{
		tiers.ClassCanceled, tiers.ClassTimeout, tiers.ClassOverloaded, tiers.ClassConnection, tiers.ClassServer, tiers.ClassData,
		tiers.ClassUncertain, tiers.ClassOther,
	}
}

func shardClasses() []tiers.ErrorClass {
	return []tiers.ErrorClass{
		tiers.ClassCanceled, tiers.ClassTimeout, tiers.ClassOverloaded, tiers.ClassRefused, tiers.ClassConnection, tiers.ClassServer,
	}
}

// collect turns statistics into metrics.
func collect(m measured, out chan<- prometheus.Metric) {
	s := m.Stats
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	reads := describe("reads_total", "Reads by label of the answer.", "namespace", "view", "label")
	answers := describe("answers_total", "Answers by the tier they came from.", "namespace", "view", "tier")
	negative := describe("negative_answers_total", "Answers that said: not found.", "namespace", "view")
	loads := describe("loads_total", "Ids asked of the source.", "namespace", "view")
	loadErrors := describe("load_errors_total", "Ids asked of the source in vain.", "namespace", "view")
	loadTime := describe("load_duration_seconds", "Loads, of one id or more, that failed or not.", "namespace", "view")
	sourceErrors := describe("source_errors_total", "Loads that failed, by class of the error.", "namespace", "view", "class")
	readTime := describe("read_duration_seconds", "Reads that were no plain hit in L1, by the tier that answered; none = no answer.", "namespace", "view", "tier")
	stale := describe("stale_answers_total", "STALE answers by why they were given.", "namespace", "view", "reason")
	coalesced := describe("coalesced_reads_total", "Reads that joined the flight of another.", "namespace", "view")
	cut := describe("lease_cut_through_total", "Loads that waited for another replica's lease in vain.", "namespace", "view")
	refused := describe("entries_refused_total", "Entries from L2 or a peer that were not used.", "namespace", "view", "reason")
	fills := describe("fills_total", "Loaded entries that got into L2.", "namespace", "view")
	fillErrors := describe("fill_errors_total", "Loaded entries that did not get into L2.", "namespace", "view")
	unlinks := describe("unlinks_total", "Keys whose removal from L2 was asked for since a write of this node changed their entity.", "namespace", "view")
	soft := describe("soft_timeouts_total", "Reads that had waited for SoftTimeout when there was a STALE answer.", "namespace", "view")
	refreshes := describe("refreshes_total", "Refreshes ahead of expiry: loaded, taken from another replica, skipped, failed.", "namespace", "view", "result")
	verify := describe("verify_entries_total", "Entries compared with the source: equal, mismatch, moved, failed, skipped.", "namespace", "view", "result")
	large := describe("too_large_total", "Loaded values that were above a limit of size, and so not kept or not in L2.", "namespace", "view")
	entries := describe("l1_entries", "Entries in L1.", "namespace", "view")
	bytes := describe("l1_bytes", "Bytes accounted to entries in L1.", "namespace", "view")
	generation := describe("generation", "Present generation: that of the application and that of the namespace.", "namespace", "view", "of")
	evictions := describe("l1_evictions_total", "Entries evicted from L1 for space.", "namespace", "view")
	warmRuns := describe("warm_ups_total", "Runs of the warm-up by where the ids came from.", "namespace", "view", "source")
	warmFailures := describe("warm_up_failures_total", "Runs of the warm-up in which the source of ids failed.", "namespace", "view", "source")
	warmIDs := describe("warm_up_ids_total", "Ids of the warm-up by what became of them: given by the source, loaded, failed.", "namespace", "view", "source", "result")
	warmSeconds := describe("warm_up_seconds_total", "Time spent in warm-ups.", "namespace", "view", "source")
	pending := describe("puts_pending", "Later puts that this replica knows to be pending.", "namespace", "view")
	oldest := describe("puts_oldest_seconds", "Age of the oldest later put that is pending.", "namespace", "view")
	puts := describe("puts_total", "Later puts that this replica flushed, by what became of them, and its attempts that failed.", "namespace", "view", "result")
	for i, v := range s.Namespaces {
		counter(reads, v.Fresh, v.Namespace, v.View, "fresh")
		counter(reads, v.Stale-min(v.Graced, v.Stale), v.Namespace, v.View, "stale")
		counter(reads, v.Graced, v.Namespace, v.View, "grace")
		counter(reads, v.Errors, v.Namespace, v.View, "error")
		counter(answers, v.L1Hits, v.Namespace, v.View, TierL1.String())
		counter(answers, v.L2Hits, v.Namespace, v.View, TierL2.String())
		counter(answers, v.OwnerHits, v.Namespace, v.View, TierOwner.String())
		counter(answers, v.SourceHits, v.Namespace, v.View, TierSource.String())
		counter(negative, v.Negative, v.Namespace, v.View)
		counter(loads, v.Loads, v.Namespace, v.View)
		counter(loadErrors, v.LoadErrors, v.Namespace, v.View)
		out <- histogram(loadTime, m.caches[i].LoadTimes, v.Namespace, v.View)
		for _, class := range sourceClasses() {
			counter(sourceErrors, m.caches[i].LoadsFailed[class], v.Namespace, v.View, class.String())
		}
		for tier, times := range m.caches[i].ReadTimes {
			out <- histogram(readTime, times, v.Namespace, v.View, Tier(tier).String())
		}
		counter(stale, v.Graced, v.Namespace, v.View, "grace")
		counter(stale, v.StaleUnproven, v.Namespace, v.View, "unproven")
		counter(stale, v.StaleFailed, v.Namespace, v.View, "failed")
		counter(stale, v.StaleSlow, v.Namespace, v.View, "slow")
		counter(stale, v.StaleChanged, v.Namespace, v.View, "changed")
		counter(coalesced, v.Coalesced, v.Namespace, v.View)
		counter(cut, v.CutThrough, v.Namespace, v.View)
		counter(refused, v.Rejected, v.Namespace, v.View, "outdated")
		counter(refused, v.Unusable, v.Namespace, v.View, "unusable")
		counter(fills, v.Fills, v.Namespace, v.View)
		counter(fillErrors, v.FillErrors, v.Namespace, v.View)
		counter(unlinks, v.Unlinks, v.Namespace, v.View)
		counter(soft, v.SoftTimeouts, v.Namespace, v.View)
		counter(refreshes, v.Refreshed, v.Namespace, v.View, "loaded")
		counter(refreshes, v.RefreshesTaken, v.Namespace, v.View, "taken")
		counter(refreshes, v.RefreshesSkipped, v.Namespace, v.View, "skipped")
		counter(refreshes, v.RefreshErrors, v.Namespace, v.View, "failed")
		counter(verify, v.Verified, v.Namespace, v.View, "equal")
		counter(verify, v.Mismatched, v.Namespace, v.View, "mismatch")
		counter(verify, v.VerifyMoved, v.Namespace, v.View, "moved")
		counter(verify, v.VerifyFailed, v.Namespace, v.View, "failed")
		counter(verify, v.VerifySkipped, v.Namespace, v.View, "skipped")
		counter(large, v.TooLarge, v.Namespace, v.View)
		gauge(entries, float64(v.L1Entries), v.Namespace, v.View)
		gauge(bytes, float64(v.L1Bytes), v.Namespace, v.View)
		counter(evictions, v.L1Evictions, v.Namespace, v.View)
		for _, w := range v.WarmUps {
			counter(warmRuns, w.Runs, v.Namespace, v.View, w.Source)
			counter(warmFailures, w.Failures, v.Namespace, v.View, w.Source)
			counter(warmIDs, w.IDs, v.Namespace, v.View, w.Source, "given")
			counter(warmIDs, w.Loaded, v.Namespace, v.View, w.Source, "loaded")
			counter(warmIDs, w.Failed, v.Namespace, v.View, w.Source, "failed")
			out <- prometheus.MustNewConstMetric(warmSeconds, prometheus.CounterValue, w.Seconds, v.Namespace, v.View, w.Source)
		}
		if g, err := cluster.ParseGeneration(v.Generation); err == nil {
			gauge(generation, float64(g.Global), v.Namespace, v.View, "application")
			gauge(generation, float64(g.Namespace), v.Namespace, v.View, "namespace")
		}
		gauge(pending, float64(v.PutsPending), v.Namespace, v.View)
		gauge(oldest, v.PutsOldest, v.Namespace, v.View)
		counter(puts, v.PutsApplied, v.Namespace, v.View, "applied")
		counter(puts, v.PutsSuperseded, v.Namespace, v.View, "superseded")
		counter(puts, v.PutsDead, v.Namespace, v.View, "dead")
		counter(puts, v.PutRetries, v.Namespace, v.View, "retried")
	}

	gauge(describe("poll_age_seconds", "Age of what the node knows of Postgres; bounds the staleness of FRESH answers."), s.PollAge)
	gauge(describe("poll_seconds", "Duration of the last poll of the log."), s.PollSeconds)
	polls := describe("polls_total", "Polls of the log.", "result")
	counter(polls, s.Polls, "ok")
	counter(polls, s.PollErrors, "error")
	relayed := describe("polls_by_way_total", "Polls by the way they took: direct, relayed, unanswered (direct since the relay did not answer), given to another replica.", "way")
	counter(relayed, s.PollsDirect, "direct")
	counter(relayed, s.PollsRelayed, "relayed")
	counter(relayed, s.PollsVain, "unanswered")
	counter(relayed, s.PollsGiven, "given")
	together := describe("consistent_reads_total", "Reads of several values as of one moment, by what they took beyond hits: a poll, a repeated run, a transaction.", "took")
	counter(together, s.ConsistentPolls, "poll")
	counter(together, s.ConsistentRepeats, "repeat")
	counter(together, s.ConsistentTransactions, "transaction")
	counter(describe("changes_total", "Scopes that changed, as they became known."), s.Changes)
	counter(describe("flushes_total", "Times that everything cached was looked at as changed."), s.Flushes)
	counter(describe("writes_total", "Writes through this node."), s.Writes)
	counter(describe("generation_changes_total", "Polls that brought other generations, the first included."), s.GenerationChanges)
	counter(describe("cleaned_keys_total", "Keys that clean-ups removed from Redis."), s.Cleaned)
	hints := describe("hints_total", "Hints by what became of them.", "result")
	counter(hints, s.HintsSent, "published")
	counter(hints, s.HintsUnsent, "unsent")
	counter(hints, s.HintsReceived, "heard")
	counter(hints, s.HintGaps, "missed")
	counter(hints, s.HintsRefused, "refused")
	if s.HasNATS {
		connected := 0.0
		if s.Connected {
			connected = 1
		}
		gauge(describe("nats_connected", "1 while the node, which was given NATS, is connected to it."), connected)
	}
	gauge(describe("members", "Replicas in the membership view."), float64(len(s.Members)))

	gauge(describe("watch_age_seconds", "How long ago the watches of tables were checked."), s.WatchAge)
	drift := describe("watch_drift", "Watched tables with the problem: changes may go unlogged, so nothing cached of the namespace is FRESH.", "namespace", "problem")
	tables := map[[2]string]int{}
	for _, d := range s.WatchDrift {
		tables[[2]string{d.Namespace, d.Problem}]++
	}
	for of, count := range tables {
		gauge(drift, float64(count), of[0], of[1])
	}

	lag := describe("invalidation_lag_seconds", "How long changes took to be known, by the way: poll, the most it can have been, of what nothing told of before; hint, this node's own on their way back to it.", "way")
	out <- histogram(lag, m.lag, "poll")
	out <- histogram(lag, m.echoes, "hint")
	version, revision := build()
	gauge(describe("build_info", "1 for the build of the library.", "version", "revision", "goversion"), 1, version, revision, runtime.Version())

	source := describe("source_loads", "Loads by state; the limit is that of the bulkhead.", "state")
	gauge(source, float64(s.Source.Running), "running")
	gauge(source, float64(s.Source.Waiting), "waiting")
	gauge(source, float64(s.Source.Peak), "peak")
	gauge(source, float64(s.Source.Places), "limit")
	counter(describe("source_refused_total", "Loads refused by the bulkhead."), s.Source.Refused)

	breaker := describe("l2_breaker_state", "1 for the state that the shard's breaker is in.", "shard", "state")
	requests := describe("l2_requests_total", "Requests to the shard by outcome.", "shard", "outcome")
	shardTime := describe("l2_duration_seconds", "Requests that were sent to the shard, a pipeline being one.", "shard")
	shardErrors := describe("l2_errors_total", "Requests without a good answer, those that were not sent included, by class of the error.", "shard", "class")
	for i, shard := range s.Shards {
		out <- histogram(shardTime, m.shards[i].Took, shard.Name)
		for _, class := range shardClasses() {
			counter(shardErrors, m.shards[i].Errors[class], shard.Name, class.String())
		}
		for _, state := range []string{"closed", "half-open", "open"} {
			is := 0.0
			if shard.State == state {
				is = 1
			}
			gauge(breaker, is, shard.Name, state)
		}
		counter(requests, shard.Requests-min(shard.Failures, shard.Requests), shard.Name, "ok")
		counter(requests, shard.Failures, shard.Name, "failed")
		counter(requests, shard.Refused, shard.Name, "refused")
	}
}

// build is the version of the library's module, and the revision that it was built from if it is the main module;
// empty where the build does not say.
func build() (version, revision string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", ""
	}
	const module = "github.com/freshet-cache/freshet"
	for _, d := range info.Deps {
		if d.Path == module {
			return d.Version, ""
		}
	}
	if info.Main.Path != module {
		return "", ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	return info.Main.Version, revision
}

func sortStats(all []namedStats) {
	slices.SortFunc(all, func(a, b namedStats) int {
		return cmp.Or(cmp.Compare(a.name.namespace, b.name.namespace), cmp.Compare(a.name.view, b.name.view))
	})
}
