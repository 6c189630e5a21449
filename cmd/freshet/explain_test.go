package main

import (
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/node"
)

func TestExplainedReport(t *testing.T) {
	entry := func(replica, label string, change func(*node.Explanation)) node.Answer[node.Explanation] {
		e := node.Explanation{
			Replica: replica, Namespace: "product", View: "detail", ID: "42", Label: label, Age: 0.2, Why: "WHY " + replica + ".",
			Key: "shop:v1.1:{product:42}:detail", Slot: 7, Shard: &node.ExplainedShard{Name: "r1:6379", State: "closed", Slots: "0-99"},
			Owner: "a", Generation: "1.1", PollAge: 0.2, Budget: 1, L2: "found",
			L1:     &node.ExplainedEntry{Snapshot: "10:12:11", Generation: "1.1", From: "l2", LoadedAgo: 61, ExpiresIn: 100},
			Scopes: []node.ExplainedScope{{Scope: "product:42", Last: 9, HeardAgo: 30}, {Scope: "tag category:7", Last: 11, HeardAgo: 2}},
		}
		if change != nil {
			change(&e)
		}
		return node.Answer[node.Explanation]{Replica: replica, Answer: &e}
	}
	for name, c := range map[string]struct {
		told explained
		want []string
	}{
		"all is well": {explained{entry("a", "fresh", nil), entry("b", "fresh", nil)}, []string{
			"product 42 (detail) is FRESH from memory on a, b.\n", "WHY b.", "1m1s ago, by way of l2", "10:12:11", "tag category:7, heard 2s ago",
			"\nkey shop:v1.1:{product:42}:detail, slot 7: shard r1:6379 (slots 0-99), breaker closed; owner a", "  - Nothing.\n", "freshet invalidate product ID",
		}},
		"one lags, one is silent": {explained{
			entry("a", "fresh", nil),
			entry("b", "stale", func(e *node.Explanation) {
				e.PollAge, e.Age = 12, 12
				e.L1.Refused = "changed"
				e.Miss = &node.ExplainedMiss{Ago: 3, Why: "how it went.", Tier: "source", Source: "failed"}
			}),
			{Replica: "c", Error: "timeout"},
		}, []string{
			"is FRESH from memory on a; STALE on b; unknown, for want of an answer, on c.", ": changed", "b: the last miss: how it went.", "3s ago: source", "no answer: timeout",
			"b lags: its last poll of Postgres is 12s old", "Loads have failed on b, last 3s ago", "c gave no answer",
		}},
		"a shard is out, a watch is broken, generations differ": {explained{
			entry("a", "none", func(e *node.Explanation) {
				e.L1, e.Shard.State, e.L2, e.Scopes[1].Doubted = nil, "open", "unavailable", true
			}),
			entry("b", "pending", func(e *node.Explanation) { e.Generation = "1.2" }),
		}, []string{
			"is PENDING on b; not answered from memory on a.", "Shard r1:6379 is out for a", "Changes of tag category:7 may go unlogged",
			"freshet queue status", "different generations", "a: key ", "b: key ", ": of generation 1.1",
		}},
		"nobody answers": {explained{{Replica: "a", Error: "timeout"}}, []string{"the entry is unknown, for want of an answer, on a."}},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			c.told.print(&out)
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in\n%s", want, out.String())
				}
			}
			if strings.Contains(out.String(), "Nothing.") != (name == "all is well") {
				t.Errorf("advice:\n%s", out.String())
			}
		})
	}
}
