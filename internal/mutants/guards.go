package main

// mutants are the guards of the guarantee, from what a snapshot means to what a reader gets.
//
// Left out are guards that only an interleaving of a few instructions could miss, which no test brings about at will: that
// stamps are summed before a value is checked (tiers: revalidate), that the latest poll is looked at before the stamps
// (tiers: hit), and that stamps are raised before a poll becomes the latest (coherence: apply).
var mutants = []mutant{
	// What a snapshot sees.
	{
		name: "xip-ignored", guard: "a transaction in progress is not seen",
		file: "coherence/snapshot.go",
		old:  "\t_, inProgress := slices.BinarySearch(s.Xip, xid)\n\treturn !inProgress\n", with: "\treturn true\n",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "order-without-xip", guard: "a snapshot with open transactions is not taken for a newer one",
		file: "coherence/snapshot.go",
		old:  "if o.Sees(xid) {", with: "if false {",
		folder: "coherence", killer: "TestSnapshotOrder",
	},
	{
		name: "timeline-ignored", guard: "snapshots of two histories of Postgres are not compared",
		file: "coherence/snapshot.go",
		old:  "if s.Timeline != o.Timeline || s.Timeline == 0 {", with: "if s.Timeline == 0 {",
		folder: "coherence", killer: "TestTrackerAdmit",
	},

	// What a poll brings.
	{
		name: "cursor-by-max-xid", guard: "a poll asks for transactions that commit late",
		file: "coherence/follower.go",
		old:  "since = latest.Snapshot\n", with: "since = Snapshot{Timeline: latest.Timeline, Xmin: latest.Xmax, Xmax: latest.Xmax}\n",
		folder: "coherence", killer: "TestTrackerLateCommit",
	},
	{
		name: "query-without-xip", guard: "so does its query in Postgres",
		file: "coherence/log.go",
		old:  "where xid = any ($2::xid8[]) limit $3", with: "where xid = any ($2::xid8[]) and false limit $3",
		folder: "coherence", killer: "TestPostgresLog",
	},
	{
		name: "timeline-change-ignored", guard: "a new history of Postgres forgets what was known of the old",
		file: "coherence/follower.go",
		old:  "case r.Snapshot.Timeline != latest.Timeline:", with: "case false:",
		folder: "coherence", killer: "TestFollowerTranscripts/timeline_change",
	},
	{
		name: "regress-unnoticed", guard: "a Postgres that went back is noticed",
		file: "coherence/follower.go",
		old:  "case !r.Snapshot.Includes(latest.Snapshot), !f.dir.noted(r.Snapshot):", with: "case !f.dir.noted(r.Snapshot):",
		folder: "coherence", killer: "TestFollowerTranscripts/regress",
	},
	{
		name: "regress-behind-served-unnoticed", guard: "so is one that went back behind what was served",
		file: "coherence/follower.go",
		old:  "case !r.Snapshot.Includes(latest.Snapshot), !f.dir.noted(r.Snapshot):", with: "case !r.Snapshot.Includes(latest.Snapshot):",
		folder: "coherence", killer: "TestFollowerTranscripts/regress_behind_served",
	},
	{
		name: "retention-ignored", guard: "a node that slept longer than the log remembers flushes",
		file: "coherence/follower.go",
		old:  "case !latest.Includes(r.Horizon):", with: "case false:",
		folder: "coherence", killer: "TestFollowerTranscripts/retention",
	},
	{
		name: "horizon-ignored", guard: "a new node trusts nothing older than the log",
		file: "coherence/follower.go",
		old:  "f.dir.Reset(r.Horizon)", with: "f.dir.Reset(Snapshot{Timeline: r.Snapshot.Timeline})",
		folder: "coherence", killer: "TestFollowerTranscripts/first_poll",
	},
	{
		name: "overrun-ignored", guard: "more changes than a poll takes flush",
		file: "coherence/follower.go",
		old:  "f.dir.Flush(r.Snapshot) // it sees all changes that are not told", with: "",
		folder: "coherence", killer: "TestTrackerNeverCatchesUp",
	},
	{
		name: "mark-ignored", guard: "a poll that was sent before a write that the directory cannot hold proves nothing",
		file: "coherence/follower.go",
		old:  "if e.Mark >= f.needMark {", with: "if true {",
		folder: "coherence", killer: "TestFollowerTranscripts/own_write_before_first_poll",
	},
	{
		name: "mark-not-set-by-reset", guard: "nor does one sent before a reset that forgot changes",
		file: "coherence/follower.go",
		old:  "\tf.dir.Reset(Snapshot{})\n\tf.needMark = f.dir.heard\n", with: "\tf.dir.Reset(Snapshot{})\n",
		folder: "coherence", killer: "TestFollowerTranscripts/own_write_during_reset",
	},
	{
		name: "budget-from-reply", guard: "a poll's age counts from its sending",
		file: "coherence/tracker.go",
		old:  "PollReturned{Sent: sent,", with: "PollReturned{Sent: t.Now(),",
		folder: "coherence", killer: "TestTrackerSent",
	},
	{
		name: "barrier-joins-sent-poll", guard: "a barrier waits for a poll sent after its call",
		file: "coherence/tracker.go",
		old:  "\tt.next = newCohort()\n", with: "\tdefer func() { t.mu.Lock(); t.next = newCohort(); t.mu.Unlock() }()\n",
		folder: "coherence", killer: "TestTrackerBarrierShares",
	},
	{
		name: "unproven-kept", guard: "nothing is proven after a write that the directory cannot hold",
		file: "coherence/tracker.go",
		old:  "\tif do.Unproven {\n", with: "\tif false {\n",
		folder: "coherence", killer: "TestTrackerUnproven",
	},
	// Polls by way of a relay.
	{
		name: "relay-answers-without-poll", guard: "a relay answers with a poll that it sent after the request",
		file: "coherence/relay.go",
		old:  "if _, err := r.Tracker.barrier(ctx, q.patience); err == nil {", with: "if r.Tracker.Latest() != nil {",
		folder: "coherence", killer: "TestRelayPollsAfterRequest",
	},
	{
		name: "relay-gap-ignored", guard: "a relay that does not remember all since the asker's poll does not answer",
		file: "coherence/relay_ring.go",
		old:  "if !s.Includes(r.base) {", with: "if s.Timeline != r.base.Timeline {",
		folder: "coherence", killer: "TestRelayBehindMemory",
	},
	{
		name: "relay-since-ignored", guard: "a relay tells the changes since the asker's poll, not others",
		file: "coherence/relay_ring.go",
		old:  "if !s.Sees(c.XID) {", with: "if c.XID >= s.Xmax {",
		folder: "coherence", killer: "TestRelayedLog",
	},
	{
		name: "relay-timeline-ignored", guard: "an answer of another timeline, or older than the asker's poll, is not believed",
		file: "coherence/relay.go",
		old:  "case !a.poll.Snapshot.Includes(q.since):", with: "case false:",
		folder: "coherence", killer: "TestRelayAnswersRefused",
	},
	{
		name: "stamps-not-raised", guard: "a change shows to those who hit L1 without a lock",
		file: "coherence/tracker.go",
		old:  "\t\tt.stamps.raise(scope)\n", with: "\t\t_ = scope\n",
		folder: "coherence", killer: "TestTrackerStamps",
	},
	{
		name: "stamps-not-flushed", guard: "so does a flush",
		file: "coherence/tracker.go",
		old:  "\t\tt.stamps.flush()\n", with: "",
		folder: "coherence", killer: "TestTrackerFlush",
	},
	{
		name: "generations-not-flushed", guard: "so do other generations",
		file: "coherence/tracker.go",
		old:  "if do.Flush != \"\" || do.Generations != nil {", with: "if do.Flush != \"\" {",
		folder: "coherence", killer: "TestTrackerGenerations",
	},

	// What is heard before a poll.
	{
		name: "absurd-hint", guard: "a hint of a transaction that cannot be is refused",
		file: "coherence/follower.go",
		old:  "case h.XID >= latest.Xmax+maxAhead:", with: "case false:",
		folder: "coherence", killer: "TestFollowerTranscripts/absurd_hint",
	},
	{
		name: "hint-of-other-timeline", guard: "a hint of another history is refused",
		file: "coherence/follower.go",
		old:  "case h.Timeline != latest.Timeline:", with: "case false:",
		folder: "coherence", killer: "TestFollowerTranscripts/other_timeline_hint",
	},
	{
		name: "own-writes-untold", guard: "the directory learns of the node's own writes before any poll",
		file: "coherence/follower.go",
		old:  "return Effects{Raised: f.raise(e.XID, e.Scopes)}", with: "return Effects{Raised: e.Scopes}",
		folder: "tiers", killer: "TestI2JoinedFlight",
	},

	// What the directory forgets.
	{
		name: "floor-ignored", guard: "what is below the directory's floor is refused",
		file: "coherence/directory.go",
		old:  "if !value.Includes(d.floor) { // or of another timeline, or of none", with: "if value.Timeline != d.floor.Timeline {",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "set-floor-ignored", guard: "what is below the floor of dropped scopes is refused",
		file: "coherence/directory.go",
		old:  "if s.blockedAt != 0 || (s.floor != nil && !value.Includes(s.floor.Snapshot)) {", with: "if s.blockedAt != 0 {",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "set-floor-not-raised", guard: "a dropped scope raises that floor",
		file: "coherence/directory.go",
		old:  "\t\t\ts.floor = room.settled\n", with: "",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "set-block-ignored", guard: "a scope dropped before a poll saw it blocks its set",
		file: "coherence/directory.go",
		old:  "if s.blockedAt != 0 || (s.floor != nil && !value.Includes(s.floor.Snapshot)) {", with: "if s.floor != nil && !value.Includes(s.floor.Snapshot) {",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "cell-floor-ignored", guard: "earlier changes of a scope count, too",
		file: "coherence/directory.go",
		old:  "if c.blockedAt != 0 || (c.floor != nil && !value.Includes(c.floor.Snapshot)) {", with: "if c.blockedAt != 0 {",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "cell-block-ignored", guard: "more changes than a cell holds block it",
		file: "coherence/directory.go",
		old:  "if c.blockedAt != 0 || (c.floor != nil && !value.Includes(c.floor.Snapshot)) {", with: "if c.floor != nil && !value.Includes(c.floor.Snapshot) {",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "block-ends-with-any-poll", guard: "a block ends with a poll that was sent after it began",
		file: "coherence/directory.go",
		old:  "if c.blockedAt != 0 && c.blockedAt <= poll.heard {", with: "if c.blockedAt != 0 {",
		folder: "coherence", killer: "TestDirectorySafety",
	},

	// What was served.
	{
		name: "note-not-made", guard: "a value newer than the latest poll is noted when it is served",
		file: "coherence/validity.go",
		old:  "if !t.dir.Note(value, snapshot) {", with: "if false {",
		folder: "tiers", killer: "TestI3NoteOfANewerValue",
	},
	{
		name: "note-ignored", guard: "nothing older is served after it",
		file: "coherence/validity.go",
		old:  "if !t.dir.CheckNote(value, snapshot) {", with: "if !snapshot.Includes(t.dir.floor) {",
		folder: "tiers", killer: "TestI3NoteOfANewerValue",
	},
	{
		name: "old-note-ignored", guard: "nor while a poll is on its way",
		file: "coherence/directory.go",
		old:  "if s, ok := d.oldNotes[value]; ok && !snapshot.Includes(s) {", with: "if s, ok := d.oldNotes[value]; false && ok && !snapshot.Includes(s) {",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "note-floor-ignored", guard: "notes that found no room count",
		file: "coherence/directory.go",
		old:  "return (d.noteFloor.Timeline == 0 || snapshot.Includes(d.noteFloor)) &&\n\t\t", with: "return ",
		folder: "coherence", killer: "TestDirectoryNotesBound",
	},

	// Where a value comes from.
	{
		name: "snapshot-after-load", guard: "a function's values count as of a barrier before it starts",
		file:   "tiers/source.go",
		old:    "Batch[V]{Snapshot: before.Snapshot, After: after, Values: values}, err",
		with:   "Batch[V]{Snapshot: after.Snapshot, After: before, Values: values}, err",
		folder: "tiers", killer: "TestI1SlowFunction",
	},
	{
		name: "no-barrier-after-function", guard: "what they reflect beyond it is known before they are served",
		file: "tiers/source.go",
		old:  "after, err := s.Tracker.Barrier(ctx)", with: "after := before",
		folder: "tiers", killer: "TestI3FunctionReadsLate",
	},
	{
		name: "standby-trusted", guard: "a load without a timeline proves no age",
		file: "tiers/item.go",
		old:  "it.loaded, it.order = noInstant, 0", with: "_ = it",
		folder: "tiers", killer: "TestI1LoadFromAStandby",
	},
	{
		name: "entry-of-other-key", guard: "an entry in L2 under another key's name is refused",
		file: "tiers/item.go",
		old:  "if h.Key != KeySum(f.key) || ", with: "if ",
		folder: "tiers", killer: "TestI4EntriesOfOthers",
	},
	{
		name: "entry-of-other-type", guard: "so is one of another Go type",
		file: "tiers/item.go",
		old:  "|| h.Fingerprint != c.coder.fingerprint ", with: "",
		folder: "tiers", killer: "TestI4EntriesOfOthers",
	},
	{
		name: "entry-of-other-codec", guard: "nor is one of another codec read as if it were of this cache's",
		file: "tiers/codec.go",
		old:  "	if codec != c.codec {\n", with: "	if false {\n",
		folder: "tiers", killer: "TestI4EntriesOfOthers",
	},
	{
		name: "entry-of-other-generation", guard: "and one of another generation",
		file: "tiers/item.go",
		old:  " || h.Generation != f.generation.Packed() {", with: " {",
		folder: "tiers", killer: "TestI4EntriesOfOthers",
	},
	{
		name: "generation-unchecked", guard: "what was loaded under a generation that was given up is not used",
		file: "tiers/proof.go",
		old:  "\tif it.generation != c.generation() {\n\t\treturn false\n\t}\n", with: "",
		folder: "tiers", killer: "TestI1NewGeneration",
	},
	{
		name: "generation-of-many-unchecked", guard: "nor with others as of one moment",
		file: "coherence/agree.go",
		old:  "case v.Namespace != \"\" && v.Generation != t.Generations().Of(v.Namespace):", with: "case v.Namespace == \"none\":",
		folder: "tiers", killer: "TestI8Generation",
	},
	{
		name: "generation-at-landing", guard: "what a load brings is of the generation in which it began",
		file: "tiers/item.go",
		old:  "cost: cost, loaded: began.at, order: began.order,\n\t\tgeneration: f.generation,", with: "cost: cost, loaded: began.at, order: began.order,\n\t\tgeneration: c.generation(),",
		folder: "tiers", killer: "TestI1LoadAcrossGenerations",
	},
	{
		name: "stale-of-given-up-generation", guard: "nor is it given as STALE",
		file: "tiers/proof.go",
		old:  "if it == nil || it.generation != c.generation() {", with: "if it == nil {",
		folder: "tiers", killer: "TestStaleIsOfThePresentGeneration",
	},
	{
		name: "relayed-generations-lost", guard: "a relay tells the generations of its poll",
		file: "coherence/relay_ring.go",
		old:  "Horizon: r.horizon, Generations: r.generations}", with: "Horizon: r.horizon}",
		folder: "coherence", killer: "TestRelayedLog",
	},
	{
		name: "own-generation-not-followed", guard: "after its own change of a generation a replica proves nothing until it has polled",
		file: "node/write.go",
		old:  "unlisted := w.Many || w.regenerates()", with: "unlisted := w.Many",
		folder: "node", killer: "TestI2OwnGeneration",
	},
	{
		name: "unknown-commit-ignored", guard: "a commit whose outcome is not known counts as a change",
		file: "node/write.go",
		old:  "if err != nil && w.XID == 0 {", with: "if err != nil {",
		folder: "node/nodetest", killer: "TestPostgresFaults",
	},
	{
		name: "entry-unchecked", guard: "an entry in L2 that a change made invalid is refused",
		file: "tiers/flight.go",
		old:  "if c.Tracker.Now() >= it.expires || !c.revalidate(it) {", with: "if c.Tracker.Now() >= it.expires {",
		folder: "tiers", killer: "TestI5OldEntry",
	},
	{
		name: "tags-ignored", guard: "a tag's change makes its entries invalid",
		file: "tiers/read.go",
		old:  "return append(scopes, tags...)", with: "return scopes",
		folder: "tiers", killer: "TestI1Tags",
	},
	{
		name: "tags-of-entry-ignored", guard: "the tags under which an entry was stored count, whatever they would be now",
		file: "tiers/item.go",
		old:  "it.tags = mergeTags(h.Tags, hashTags(c.config.Tags(f.id, it.value)))", with: "it.tags = hashTags(c.config.Tags(f.id, it.value))",
		folder: "tiers", killer: "TestI1TagsOfAnEntry",
	},
	{
		name: "older-replaces-newer", guard: "an older item does not replace a newer one in L1",
		file: "tiers/l1.go",
		old:  "if old.generation == it.generation && old.snapshot.Includes(it.snapshot) && !it.snapshot.Includes(old.snapshot) {", with: "if old == nil {",
		folder: "tiers", killer: "TestL1KeepsTheNewer",
	},
	{
		name: "lease-of-another-released", guard: "a load releases its own lease only",
		file: "tiers/lease.go",
		old:  `if redis.call("get",KEYS[1])==ARGV[1] then`, with: `if ARGV[1] then`,
		folder: "tiers", killer: "TestLeaseBelongsToItsToken",
	},
	{
		name: "lease-token-per-client", guard: "the lease's token is of one load, not of its process",
		file: "tiers/load.go",
		old:  "token := rand.Text() //", with: "token := rand.Text()[:0] + \"this process\" //",
		folder: "tiers", killer: "TestLeaseIsOfOneLoad",
	},
	{
		name: "refresh-without-lease", guard: "one replica of all refreshes an entry",
		file: "tiers/refresh.go",
		old:  "TierL2), reply.Held\n", with: "TierL2), true\n",
		folder: "node", killer: "TestI6OneRefresher",
	},
	{
		name: "bulkhead-not-entered", guard: "loads at once are bounded",
		file: "tiers/load.go",
		old:  "\tif err := c.Bulkhead.Enter(ctx); err != nil {\n\t\treturn began, loaded, err\n\t}\n\tdefer c.Bulkhead.Leave()\n", with: "",
		folder: "tiers", killer: "TestI6BoundedLoads",
	},

	// Changes with a grace, and those that count later.
	{
		name: "grace-served-as-fresh", guard: "a value in its grace is not labelled FRESH",
		file: "tiers/proof.go",
		old:  "answer := it.result(TierL1, false, now.Sub(as), now, poll)", with: "answer := it.result(TierL1, true, now.Sub(as), now, poll)",
		folder: "tiers", killer: "TestI1GraceIsLabelled",
	},
	{
		name: "graced-change-unknown", guard: "a change with a grace makes a value invalid",
		file: "coherence/grace.go",
		old:  "return slices.ContainsFunc(d.graced[scope], func(g graced) bool { return !value.Sees(g.xid) })", with: "return false",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "grace-without-end", guard: "a grace ends",
		file: "coherence/grace.go",
		old:  "\t\tif now >= g.Until {\n", with: "\t\tif false {\n",
		folder: "coherence", killer: "TestFollowerTranscripts/grace",
	},
	{
		name: "graced-change-forgotten", guard: "and then its change is one like any other",
		file: "coherence/grace.go",
		old:  "\t\t\td.enforce(scope, g.xid, g.learned)\n", with: "",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "grace-from-its-poll", guard: "it counts from before its commit",
		file: "coherence/directory.go",
		old:  "d.latest.Sent, change.Grace, sent)", with: "sent, change.Grace, sent)",
		folder: "coherence", killer: "TestDirectorySafety",
	},
	{
		name: "grace-despite-token", guard: "who brings a token gets nothing older by a grace",
		file: "tiers/proof.go",
		old:  "!r.proven(poll, now) || !r.Token.SeenBy(it.snapshot) {", with: "!r.proven(poll, now) {",
		folder: "tiers", killer: "TestI2GraceIsNotForTokens",
	},
	{
		name: "grace-of-an-old-generation", guard: "nor an entry of a generation that was given up",
		file: "tiers/proof.go",
		old:  "\tif it.generation != c.generation() {\n\t\treturn Result[V]{}, false\n\t}\n", with: "",
		folder: "tiers", killer: "TestI1GraceOfAGeneration",
	},
	{
		name: "grace-excuses-all", guard: "a grace excuses its own change and no other",
		file: "coherence/grace.go",
		old:  "if d.judge(scope, value) != NotRefused {", with: "if false {",
		folder: "tiers", killer: "TestI1GraceNeedsTheRest",
	},
	{
		name: "grace-younger-than-it-is", guard: "its age covers the changes that it lacks",
		file: "tiers/proof.go",
		old:  "min(grace.Since, poll.Sent)", with: "poll.Sent",
		folder: "tiers", killer: "TestI1GraceIsLabelled",
	},
	{
		name: "batch-in-halves", guard: "no two sessions run one batch: one of them may not come to its end",
		file: "coherence/migrations/00003_schedule.sql",
		old:  "         where pg_try_advisory_xact_lock(hashtext('freshet.batch'), hashtext(b.batch))\n", with: "",
		folder: "coherence", killer: "TestRunDueWholeBatches",
	},
	{
		name: "batch-forgets-its-time", guard: "a batch that is run in parts stays due",
		file: "coherence/migrations/00003_schedule.sql",
		old:  "case when s.batch = '' then s.due end, s.due desc nulls first, s.seq", with: "s.due, s.seq",
		folder: "coherence", killer: "TestRunDueWholeBatches",
	},

	// What a reader gets.
	{
		name: "hit-beyond-budget", guard: "a hit in L1 needs a poll within the budget",
		file: "tiers/read.go",
		old:  "if now.Sub(poll.Sent) > budget {", with: "if false {",
		folder: "tiers", killer: "TestI1LabelsOnVirtualTime",
	},
	{
		name: "hit-without-stamps", guard: "and stamps that no change has raised",
		file: "tiers/read.go",
		old:  "|| it.sum.Load() != c.stamps.Sum(&it.stamps) {", with: "{",
		folder: "tiers", killer: "TestI1LabelsOnVirtualTime",
	},
	{
		name: "negative-hit-without-stamps", guard: "also where there was nothing before",
		file: "tiers/read.go",
		old:  "|| it.sum.Load() != c.stamps.Sum(&it.stamps) {", with: "|| (!it.absent && it.sum.Load() != c.stamps.Sum(&it.stamps)) {",
		folder: "tiers", killer: "TestI1NegativeEntry",
	},
	{
		name: "hit-beyond-ttl", guard: "nor is an entry hit that has expired, also when its refresh has failed",
		file: "tiers/read.go",
		old:  "if it == nil || now >= it.expires ||", with: "if it == nil ||",
		folder: "tiers", killer: "TestI1FailedRefresh",
	},
	{
		name: "no-check-at-return", guard: "an answer is checked when it is returned",
		file: "tiers/proof.go",
		old:  "if now >= it.expires || !c.revalidate(it) {", with: "if now >= it.expires {",
		folder: "tiers", killer: "TestI2JoinedFlight",
	},
	{
		name: "flight-joined-after-write", guard: "only a load that began after the read needs no check",
		file: "tiers/proof.go",
		old:  "if it.order > r.order && it.ofHistory(poll) {", with: "if it.order > 0 && it.ofHistory(poll) {",
		folder: "tiers", killer: "TestI2JoinedFlight",
	},
	{
		name: "load-of-lost-history", guard: "nor does it when Postgres has lost what it read",
		file: "tiers/proof.go",
		old:  "return it.snapshot.Timeline != 0 && (poll == nil || poll.Timeline == it.snapshot.Timeline)", with: "return it.snapshot.Timeline != 0",
		folder: "tiers", killer: "TestI4LoadOfALostHistory",
	},
	{
		name: "proof-beyond-budget", guard: "an answer that is not a hit needs a poll within the budget, too",
		file: "tiers/proof.go",
		old:  "return now.Sub(poll.Sent) <= r.Budget && r.Token.SeenBy(poll.Snapshot)", with: "return r.Token.SeenBy(poll.Snapshot)",
		folder: "tiers", killer: "TestI1LabelsOnVirtualTime",
	},
	{
		name: "load-beyond-budget", guard: "or to be loaded within it",
		file: "tiers/proof.go",
		old:  "(now.Sub(it.loaded) > r.Budget || !r.Token.IsZero())", with: "!r.Token.IsZero()",
		folder: "tiers", killer: "TestI1LabelsOnVirtualTime",
	},
	{
		name: "token-ignored-by-hit", guard: "a hit is not behind the reader's token",
		file: "tiers/read.go",
		old:  "if poll := c.Tracker.Latest(); want.Token.IsZero() || (poll != nil && want.Token.SeenBy(poll.Snapshot)) {", with: "{",
		folder: "tiers", killer: "TestI2Token",
	},
	{
		name: "token-ignored-by-hits-of-many", guard: "nor are those of many",
		file: "tiers/many.go",
		old:  "seen := want.Token.IsZero() || (poll != nil && want.Token.SeenBy(poll.Snapshot))", with: "seen := poll != nil",
		folder: "tiers", killer: "TestI2Token",
	},
	{
		name: "token-ignored-by-proof", guard: "a poll that has not seen the token proves nothing to its bearer",
		file: "tiers/proof.go",
		old:  "return now.Sub(poll.Sent) <= r.Budget && r.Token.SeenBy(poll.Snapshot)", with: "return now.Sub(poll.Sent) <= r.Budget",
		folder: "tiers", killer: "TestI2Token",
	},
	{
		name: "token-ignored-by-recent-load", guard: "nor does a recent load",
		file: "tiers/proof.go",
		old:  "(now.Sub(it.loaded) > r.Budget || !r.Token.IsZero())", with: "now.Sub(it.loaded) > r.Budget",
		folder: "tiers", killer: "TestI2TokenWithoutPostgres",
	},
	{
		name: "token-ignored-by-stale", guard: "a STALE answer is not behind the token",
		file: "tiers/proof.go",
		old:  "return as, seen && ", with: "return as, (seen || true) && ",
		folder: "tiers", killer: "TestI2TokenWithoutPostgres",
	},
	{
		name: "own-write-missing-in-stale", guard: "nor behind this replica's own writes",
		file: "tiers/proof.go",
		old:  "return as, seen && !c.Own.writtenSince(as, it.scopes)", with: "return as, seen",
		folder: "tiers", killer: "TestI2StaleHasOwnWrites",
	},
	{
		name: "stale-labelled-fresh", guard: "what a read takes since it has waited long enough, or since the source fails, is labelled",
		file: "tiers/proof.go",
		old:  "answer := it.result(tier, false, now.Sub(as), now, poll)", with: "answer := it.result(tier, true, now.Sub(as), now, poll)",
		folder: "tiers", killer: "TestSoftTimeout",
	},
	{
		name: "stale-beyond-bound", guard: "nor older than the reader allows",
		file: "tiers/proof.go",
		old:  "if !ok || now.Sub(as) > r.MaxStale {", with: "if !ok {",
		folder: "tiers", killer: "TestStaleIsBounded",
	},
	{
		name: "stale-younger-than-it-is", guard: "nor said to be younger than a change that it lacks",
		file: "tiers/proof.go",
		old:  "if poll != nil && c.Tracker.Valid(it.scopes[viewScope], it.scopes, it.snapshot) {", with: "if poll != nil {",
		folder: "tiers", killer: "TestStaleIsBounded",
	},

	// Several values as of one moment.
	{
		name: "moment-newer-than-poll", guard: "a value that is newer than the poll is not as of the poll",
		file: "coherence/agree.go",
		old:  "case !poll.Includes(v.Snapshot):", with: "case false:",
		folder: "coherence", killer: "TestI8Agree",
	},
	{
		name: "moment-changed-ignored", guard: "nor is one that has changed",
		file: "coherence/agree.go",
		old:  "case !t.valid(v.Value, v.Scopes, v.Snapshot):", with: "case false:",
		folder: "coherence", killer: "TestI8Agree",
	},
	{
		name: "moment-hits-newer-than-poll", guard: "nor is a hit in L1",
		file: "tiers/together.go",
		old:  " || !poll.Includes(it.snapshot) {", with: " {",
		folder: "tiers", killer: "TestI8NewerThanThePoll",
	},
	{
		name: "moment-one-by-one", guard: "all values are compared with one poll",
		file: "tiers/together.go",
		old:  "poll, agreement := t.shared.Tracker.Agree(t.held)\n\tnow :=", with: "poll, agreement := t.shared.Tracker.Agree(t.held[len(t.held)-1:])\n\tnow :=",
		folder: "tiers", killer: "TestI8ChangeInBetween",
	},
	{
		name: "moment-not-compared-again", guard: "also after the poll that was waited for",
		file:   "tiers/together.go",
		old:    "\t\tmoment, agreement = t.look()\n\t}\n\treturn moment,",
		with:   "\t\tmoment, agreement = Moment{Snapshot: t.proof.barrier.Snapshot}, coherence.Agreed\n\t}\n\treturn moment,",
		folder: "tiers", killer: "TestI8ChangeInBetween",
	},
	{
		name: "moment-polled-before-loads", guard: "which was sent after all loads had ended",
		file: "tiers/together.go",
		old:  "\tpoll, err := t.shared.Tracker.Barrier(ctx)\n", with: "\tpoll, err := t.shared.Tracker.Latest(), ctx.Err()\n",
		folder: "tiers", killer: "TestI8AbsentAndTagged",
	},
	{
		name: "moment-read-committed", guard: "the last resort is one transaction with one snapshot",
		file: "tiers/transaction.go",
		old:  "sql.LevelRepeatableRead", with: "sql.LevelReadCommitted",
		folder: "node", killer: "TestI8SnapshotInATransaction",
	},
	{
		name: "moment-of-two-snapshots", guard: "and is refused if it has two",
		file: "tiers/together.go",
		old:  "case !t.at.Equal(at):", with: "case false:",
		folder: "tiers", killer: "TestI8Unsettled",
	},
	{
		name: "moment-function-unchecked", guard: "what cannot be read in it has not changed until then",
		file: "tiers/together.go",
		old:  "fits := agreement == coherence.Agreed && t.knownTo(poll) &&", with: "fits := poll != nil &&",
		folder: "tiers", killer: "TestI8Function",
	},
	{
		name: "transaction-load-in-order", guard: "what was read late in a transaction is not taken for a load that began late",
		file: "tiers/together.go",
		old:  "loadStart{at: t.began}", with: "loadStart{at: t.began, order: c.order.Add(1)}",
		folder: "tiers", killer: "TestI1LoadInATransaction",
	},
	{
		name: "transaction-not-kept", guard: "nothing older is hit in L1 after what was read in a transaction",
		file: "tiers/together.go",
		old:  "if c.revalidate(it) && err == nil {", with: "if false {",
		folder: "tiers", killer: "TestI3AfterATransaction",
	},
	{
		name: "transaction-of-later-generation", guard: "it is of the generation in which the transaction began",
		file: "tiers/together.go",
		old:  "generation: t.generations.Of(c.config.Namespace)}", with: "generation: c.generation()}",
		folder: "tiers", killer: "TestI1TransactionAcrossGenerations",
	},

	// Later puts.
	{
		name: "put-order-ignored", guard: "a later put is not overwritten by an earlier one that comes after it",
		file: "node/flush.go",
		old:  "\n where (a.epoch, a.seq) < (excluded.epoch, excluded.seq)\n", with: "\n",
		folder: "node", killer: "TestRow19DeadLetters",
	},
	{
		name: "lost-end-unnoticed", guard: "a stream that gives out numbers again begins a later epoch",
		file: "node/queue.go",
		old:  "if len(s.epochs) == 0 || highest > s.last {", with: "if len(s.epochs) == 0 {",
		folder: "node", killer: "TestRow19StreamMadeAnew",
	},

	// Watches of tables.
	{
		name: "doubts-ignored", guard: "what may go unlogged is not valid",
		file: "coherence/validity.go",
		old:  "\treturn !doubted\n", with: "\treturn !doubted || true\n",
		folder: "tiers", killer: "TestI1DoubtedNamespace",
	},
	{
		name: "doubts-not-shown", guard: "nor a hit in L1",
		file: "coherence/validity.go",
		old:  "\tt.stamps.flush() // after the doubts: who sums the stamps from now on finds them\n", with: "",
		folder: "tiers", killer: "TestI1DoubtedNamespace",
	},
	{
		name: "doubted-tags-ignored", guard: "nor is what has a tag, when any may be concerned",
		file: "tiers/read.go",
		old:  "\t\tscopes = append(scopes, coherence.AnyTag().Hash())\n", with: "",
		folder: "tiers", killer: "TestI1DoubtedTags",
	},
	{
		name: "doubts-ignored-by-stale", guard: "a STALE answer is not said to be younger than the last moment without doubt",
		file: "tiers/proof.go",
		old:  "\t\tchecked = min(checked, since)\n", with: "\t\t_ = since\n",
		folder: "tiers", killer: "TestI1DoubtedNamespace",
	},
	{
		name: "grace-in-doubt", guard: "nor is one excused by the grace of a change that is known",
		file: "coherence/validity.go",
		old:  "\t\treturn Grace{}, false // it may lack more\n", with: "",
		folder: "tiers", killer: "TestI1NoGraceInDoubt",
	},
	{
		name: "drift-ignored", guard: "a node does not trust what it has of a table whose watch has a problem",
		file: "node/watches.go",
		old:  "\t\tn.tracker.Doubt(doubts)\n", with: "",
		folder: "node", killer: "TestRow12Watch",
	},
	{
		name: "moment-without-trigger-unnoticed", guard: "nor of one whose trigger was disabled for a moment",
		file: "coherence/migrations/00004_watch.sql",
		old:  "where freshet.watched_marks(w.function, w.members) <> w.marks", with: "where false",
		folder: "coherence", killer: "TestDrift",
	},
	{
		name: "mended-without-a-word", guard: "what was cached while a watch had a problem counts as changed",
		file: "coherence/migrations/00004_watch.sql",
		old:  "            perform freshet.log_watch(w.namespace, w.tags);\n            n := n + 1;", with: "            n := n + 1;",
		folder: "coherence", killer: "TestDrift",
	},
	{
		name: "watched-without-a-word", guard: "so does what was cached before a table was watched",
		file: "coherence/migrations/00004_watch.sql",
		old:  "    perform freshet.log_watch(namespace, tags);\nend $watch$;", with: "end $watch$;",
		folder: "coherence", killer: "TestWatch",
	},
	{
		name: "columns-without-key", guard: "rows that exchange what they hold have changed",
		file: "coherence/migrations/00004_watch.sql",
		old:  "from unnest(key || columns) u(name)", with: "from unnest(columns) u(name)",
		folder: "coherence", killer: "TestWatchColumns",
	},
	{
		name: "id-of-columns-unescaped", guard: "ids of several columns are told apart",
		file: "coherence/migrations/00004_watch.sql",
		old:  "format('replace(replace(r.%I::text, %L, %L), %L, %L)', p.part, '%', '%25', '/', '%2F')", with: "format('r.%I::text', p.part)",
		folder: "coherence", killer: "TestWatchCompositeID",
	},

	// What a comparison with the source takes for wrong.
	{
		name: "verify-without-second-poll", guard: "what changes while an entry is compared with the source is no mismatch: a poll tells of it",
		file: "tiers/verify.go",
		old:  "\tif err := c.poll(ctx, c.ProofTimeout, &reading{}); err != nil {\n\t\treturn err\n\t}\n", with: "",
		folder: "tiers", killer: "TestVerifyMoved",
	},
	{
		name: "verify-changed-is-wrong", guard: "nor is what that poll, or anything else, made invalid",
		file: "tiers/verify.go",
		old:  " || c.left(r.it) <= 0 {", with: " {",
		folder: "tiers", killer: "TestVerifyMoved",
	},
	{
		name: "verify-ignores-scheduled", guard: "nor a change that is to count later",
		file: "tiers/verify.go",
		old:  "slices.ContainsFunc(r.it.scopes, scheduled) ||", with: "false && scheduled(0) ||",
		folder: "tiers", killer: "TestVerifyMoved",
	},
	{
		name: "verify-by-a-load-behind", guard: "nor what is newer than the load that it is compared with",
		file: "tiers/verify.go",
		old:  "!r.loaded.snapshot.Includes(r.it.snapshot) ||", with: "false ||",
		folder: "tiers", killer: "TestVerifyLoadIsBehind",
	},
	{
		name: "verify-sees-nothing", guard: "what is otherwise in the source without a word of the log is found",
		file: "tiers/verify.go",
		old:  "if !c.same(m.it, r.loaded) {", with: "if false {",
		folder: "tiers", killer: "TestVerify",
	},
}
