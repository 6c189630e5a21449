package node

import (
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Every reason for which an entry is refused, and everything that L2 may say, is said in words.
func TestExplanationsInWords(t *testing.T) {
	second := coherence.Instant(time.Second)
	now := 100 * second
	why := func(refused coherence.Refusal, change func(*reasoning)) string {
		standing := coherence.Standing{Refused: refused, Scope: -1}
		if refused != coherence.NotRefused && refused != coherence.RefusedNoted {
			standing.Scope = 0
			standing.By = coherence.ScopeStanding{
				Refused: refused, Last: 881, Lacks: 881, Heard: now - 3*second, Since: now - 5*second, Grace: coherence.Grace{Until: now + 2*second},
			}
		}
		e := reasoning{
			Explanation: &Explanation{
				Label: "none", Budget: 1, PollAge: 3.2, MaxStale: 30, Generation: "1.1", Owner: "r2", Shard: &ExplainedShard{Name: "redis:7001"},
				L1: &ExplainedEntry{Generation: "1.1", LoadedAgo: 7, ExpiresIn: 60},
			},
			tiers: &tiers.Explanation{
				Now: now, Known: now - second, Proven: true, Generation: cluster.FirstGeneration(), InL2: tiers.StepNothing,
				L1:     &tiers.Copy{Generation: cluster.FirstGeneration(), Left: time.Minute, Standing: standing},
				Scopes: []tiers.ScopeExplanation{{Name: "product:42"}},
			},
		}
		if change != nil {
			change(&e)
		}
		return e.why()
	}
	for _, c := range []struct {
		refused coherence.Refusal
		change  func(*reasoning)
		want    string
	}{
		{coherence.RefusedChanged, nil, "NOT ANSWERED BY L1: product:42 changed in transaction 881, which this replica heard of 3.00 s ago, after the entry was read."},
		{coherence.RefusedChanged, func(e *reasoning) { e.tiers.Label, e.tiers.Proven, e.failing = tiers.LabelStale, false, true }, "STALE: product:42 changed in transaction 881, which this replica heard of 3.00 s ago, after the entry was read; and the last poll of Postgres is 3.20 s old and the budget is 1.00 s; polls fail. A read waits for a poll first; if none comes it is answered from L1"},
		{coherence.RefusedGrace, func(e *reasoning) { e.tiers.Label = tiers.LabelGraced }, "STALE, in its grace: product:42 changed in transaction 881, which this replica heard of 3.00 s ago, whose writer allows it as it was for 2.00 s more."},
		{coherence.RefusedDoubt, func(e *reasoning) {
			e.drift = &drift{Relation: "products", Problem: "its trigger is disabled"}
		}, "changes of product:42 may go unlogged (products: its trigger is disabled; see freshet.drift())"},
		{coherence.RefusedNoted, nil, "this replica has served a newer one"},
		{coherence.RefusedHistory, nil, "another timeline"},
		{coherence.RefusedHistory, func(e *reasoning) { e.tiers.Known, e.tiers.Proven = never, false }, "no poll of Postgres has come back, so nothing can be proven"},
		{coherence.RefusedFlushed, nil, "had missed some, 5.00 s ago"},
		{coherence.RefusedEarlier, nil, "product:42 has changed, more often than is told apart, and the entry is older than what was polled 5.00 s ago"},
		{coherence.RefusedForgotten, nil, "older than what was polled 5.00 s ago"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.Label, e.RetryIn = tiers.LabelStale, 0.1 }, "A load has just failed, so for 100 ms more reads are answered from L1 at once"},
		{coherence.RefusedChanged, func(e *reasoning) { e.tiers.Label = tiers.LabelStale }, "A read looks further: L2 does not have it, so the source is asked. If that fails it is answered from L1"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.Known, e.tiers.Proven = never, false }, "no poll of Postgres counts"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1.Left, e.L1.ExpiresIn = 0, -90 }, "in L1 it expired 1m30s ago"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1, e.tiers.InL2 = nil, tiers.StepFound }, "L1 does not have it. A read looks further: L2 has an entry that it can use."},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1, e.tiers.InL2 = nil, tiers.StepExpired }, "the entry in L2 has expired, so the source is asked"},
		{coherence.RefusedChanged, func(e *reasoning) { e.tiers.L2, e.tiers.InL2 = e.tiers.L1, tiers.StepChanged }, "the entry in L2 is refused, too (product:42 changed in transaction 881"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1, e.tiers.InL2, e.L2Error = nil, tiers.StepUnreadable, "corrupt" }, "what L2 has cannot be read (corrupt)"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1, e.tiers.InL2 = nil, tiers.StepUnavailable }, "shard redis:7001 is out (its breaker is open, or there is no connection), so the owner r2 is asked"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1, e.tiers.InL2, e.OwnedHere = nil, tiers.StepSilent, true }, "shard redis:7001 does not answer, and this replica is the owner, so the source is asked"},
		{coherence.NotRefused, func(e *reasoning) { e.tiers.L1, e.tiers.InL2 = nil, tiers.StepNotAsked }, "A read looks further: the source is asked."},
		{coherence.NotRefused, func(e *reasoning) { e.Loading = true }, "It is being loaded now."},
		{coherence.NotRefused, func(e *reasoning) { e.Pending = &ExplainedPut{Seq: 7, Ago: 4, Removed: true, Settled: true} }, "PENDING: reads are answered with a deletion of 4.00 s ago, number 7 of the queue, which is settled"},
	} {
		if got := why(c.refused, c.change); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q does not say %q", c.refused, got, c.want)
		}
	}
}

// So is every way that a read can have gone: no step that a miss may tell is left out, but those that go without saying.
func TestMissesInWords(t *testing.T) {
	for step := tiers.StepFound; step <= tiers.StepFailed; step++ {
		for name, m := range map[string]ExplainedMiss{
			"L2": {L2: step.String()}, "lease": {Lease: step.String()}, "owner": {Owner: step.String()}, "source": {Source: step.String()},
		} {
			m.L1, m.Tier, m.Label = "nothing", "source", "fresh"
			said := strings.Count(m.why(), ";") > 1
			told := map[string][]tiers.Step{
				"L2": {
					tiers.StepFound, tiers.StepNothing, tiers.StepExpired, tiers.StepChanged, tiers.StepGeneration, tiers.StepUnreadable,
					tiers.StepUnavailable, tiers.StepSilent, tiers.StepDoubt,
				},
				"lease":  {tiers.StepWaited, tiers.StepCutThrough},
				"owner":  {tiers.StepFound, tiers.StepExpired, tiers.StepChanged, tiers.StepGeneration, tiers.StepUnreadable, tiers.StepSilent, tiers.StepHere},
				"source": {tiers.StepFound, tiers.StepNothing, tiers.StepOverloaded, tiers.StepFailed},
			}
			want := false
			for _, s := range told[name] {
				want = want || s == step
			}
			if said != want {
				t.Errorf("%s met %v: %q", name, step, m.why())
			}
		}
	}
	for _, c := range []struct {
		miss ExplainedMiss
		want string
	}{
		{ExplainedMiss{L1: "changed", Refused: "doubt", Scope: "namespace product", Label: "stale", Tier: "l1"}, "changes of namespace product might go unlogged; answered STALE from l1."},
		{ExplainedMiss{L1: "changed", Refused: "flushed", Label: "none", Failure: "uncertain"}, "L1's entry was refused (flushed); not answered (uncertain)."},
		{ExplainedMiss{L1: "changed", Refused: "grace", Scope: "product:42", Lacks: 7, Label: "grace", Tier: "l1"}, "changed in transaction 7; answered STALE, in its grace, from l1."},
		{ExplainedMiss{Ago: 2.1, L1: "just", Label: "fresh", Tier: "source"}, "2.10 s ago: it came into L1 while the read looked; answered FRESH from source."},
	} {
		if got := c.miss.why(); !strings.Contains(got, c.want) {
			t.Errorf("%q does not say %q", got, c.want)
		}
	}
}

// The text of a snapshot is bounded.
func TestExplainedSnapshotIsBounded(t *testing.T) {
	s := coherence.Snapshot{Timeline: 0x1a, Xmin: 1000, Xmax: 9000}
	for xid := range uint64(5000) {
		s.Xip = append(s.Xip, 1000+xid)
	}
	e := explainedEntry(&tiers.Copy{Snapshot: s, Standing: coherence.Standing{Scope: -1}}, nil)
	if len(e.Snapshot) > 600 || !strings.HasPrefix(e.Snapshot, "1000:9000:1000,1001,") || !strings.HasSuffix(e.Snapshot, ",1099,... (4900 more)") || e.Timeline != "1a" {
		t.Errorf("timeline %s, %s", e.Timeline, e.Snapshot)
	}
}
