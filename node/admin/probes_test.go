package admin_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// Each part that falls short degrades its check, names what is wrong, and no other.
func TestHealthOf(t *testing.T) {
	well := func() node.Stats {
		return node.Stats{
			Budget: 1, PollAge: 0.1, HasRedis: true, HasNATS: true, Connected: true, WatchAge: 3,
			Shards:     []node.ShardStats{{Name: "r1", State: "closed"}, {Name: "r2", State: "half-open"}},
			Namespaces: []node.NamespaceStats{{Namespace: "cart", View: "detail", PutsPending: 3, PutsOldest: 29, PutsDead: 7}},
		}
	}
	h, verbose := admin.HealthOf(well())
	if h.Status != "ready" || len(h.Checks) != 6 {
		t.Errorf("of a replica that is well: %+v", h)
	}
	if !strings.HasSuffix(verbose, "\nready\n") || strings.Count(verbose, "[+]") != 6 || strings.Contains(verbose, "[-]") {
		t.Errorf("of a replica that is well:\n%s", verbose)
	}
	for name, c := range map[string]struct {
		change      func(s *node.Stats)
		check, says string
	}{
		"postgres":     {func(s *node.Stats) { s.PollAge = 2 }, "postgres", "last poll 2s ago, more than the budget of 1s"},
		"no shard":     {func(s *node.Stats) { s.Shards = nil }, "redis", "no shard is known yet"},
		"open breaker": {func(s *node.Stats) { s.Shards[1].State = "open" }, "redis", "1 of 2 breakers are open: r2"},
		"many breakers": {func(s *node.Stats) {
			s.Shards = nil
			for n := range 9 {
				s.Shards = append(s.Shards, node.ShardStats{Name: fmt.Sprint("r", n), State: "open"})
			}
		}, "redis", "9 of 9 breakers are open: r0, r1, r2, and 6 more"},
		"nats":    {func(s *node.Stats) { s.Connected = false }, "nats", "there is no connection: changes of other replicas are found by polling"},
		"puts":    {func(s *node.Stats) { s.Namespaces[0].PutsOldest = 31 }, "puts", "3 of cart wait to be flushed, the oldest for 31s"},
		"watches": {func(s *node.Stats) { s.WatchDrift = []node.DriftStats{{Relation: "things", Problem: "no trigger"}} }, "watches", "1 problems, the first is of table things: no trigger"},
		"warm-up": {func(s *node.Stats) { s.Namespaces[0].WarmingUp = true }, "warm-up", "goes on for cart (detail)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := well()
			c.change(&s)
			got, verbose := admin.HealthOf(s)
			want := maps.Clone(h.Checks)
			want[c.check] = c.says
			if got.Status != "degraded" || !maps.Equal(got.Checks, want) {
				t.Errorf("%+v, want degraded and %q", got, want)
			}
			if !strings.Contains(verbose, "[-]"+c.check+" "+c.says+" (") || !strings.HasSuffix(verbose, "\ndegraded\n") {
				t.Errorf("verbose:\n%s", verbose)
			}
		})
	}
	if h, _ := admin.HealthOf(node.Stats{Budget: 1}); len(h.Checks) != 3 || h.Status != "ready" {
		t.Errorf("without Redis and NATS: %+v", h)
	}
}
