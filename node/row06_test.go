package node_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// reads is how often the Redis node has read from its clients, and how many GET it has run.
func (s *site) redisReads(addr string) (reads, gets int) {
	s.t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	info, err := client.Do(s.t.Context(), client.B().Info().Section("stats", "commandstats").Build()).ToString()
	if err != nil {
		s.t.Fatal(err)
	}
	number := func(before string) int {
		_, rest, _ := strings.Cut(info, before)
		n, _ := strconv.Atoi(rest[:max(strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }), 0)])
		return n
	}
	return number("total_reads_processed:"), number("cmdstat_get:calls=")
}

// Row 6: the verbs of the cache manager for reads. Many ids take one round trip to each shard. While a shard is dead
// what it has is missed, not an error, and every outcome is counted.
func TestRow06CacheManager(t *testing.T) {
	s := newSite(t)
	r := s.openAll(2, func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Redis.LeaseWait = patient / 4 })
	ctx := t.Context()
	l2 := s.rawL2()
	var ids []string
	for n := range 90 {
		ids = append(ids, thing(n+101))
	}
	ids = append(ids, "none-1", "none-2")
	exists := func(r *replica, id string, want bool) {
		t.Helper()
		if is, err := r.things.Exists(ctx, id); is != want || err != nil {
			t.Errorf("%s exists: %v, %v", id, is, err)
		}
	}
	ttl := func(r *replica, id string, want node.Tier) {
		t.Helper()
		left, tier, err := r.things.TTL(ctx, id)
		if tier != want || err != nil || (want != 0) != (left > 50*time.Minute) {
			t.Errorf("%s is kept for %v in %v, %v", id, left, tier, err)
		}
	}
	ttl(r[0], ids[0], 0)
	all, err := r[0].things.GetMany(ctx, ids)
	if err != nil || len(all) != 90 || all[ids[3]].Value.Name != "name 104" {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	for _, id := range ids {
		s.inL2(l2, id)
	}
	ttl(r[0], ids[0], node.TierL1)
	ttl(r[1], ids[0], node.TierL2)
	exists(r[0], ids[0], true)
	exists(r[0], "none-1", false)
	if s := r[0].of(); s.Loads != uint64(len(ids)) || s.Fills != uint64(len(ids)) || s.Misses != uint64(len(ids)) || s.Hits != 2 || s.Negative != 3 {
		t.Errorf("the first replica counts %+v", s)
	}

	// One round trip to each shard, as the shards and as the replica count them.
	shards := r[1].Stats().Shards
	type count struct{ reads, gets int }
	before := make([]count, len(shards))
	for i, shard := range shards {
		before[i].reads, before[i].gets = s.redisReads(shard.Name)
	}
	many, err := r[1].things.GetMany(ctx, ids)
	for i, shard := range r[1].Stats().Shards {
		if trips := shard.Requests - shards[i].Requests; trips != 1 {
			t.Errorf("%d requests to shard %s", trips, shard.Name)
		}
		reads, gets := s.redisReads(shard.Name)
		reads, gets = reads-before[i].reads, gets-before[i].gets
		// Beside the one, the server reads what this test asks, and heartbeats.
		if gets < 15 || reads > 12 {
			t.Errorf("shard %s ran %d GET, and read %d times from its clients", shard.Name, gets, reads)
		}
	}
	if err != nil || len(many) != 90 {
		t.Errorf("%d entries, %v", len(many), err)
	}
	for id, e := range many {
		if e.Tier != node.TierL2 || !e.Fresh {
			t.Errorf("%s: %+v", id, e)
		}
	}
	if s := r[1].of(); s.Hits != uint64(len(ids)) || s.L2Hits != s.Hits || s.Misses != 0 || s.Loads != 0 {
		t.Errorf("the second replica counts %+v", s)
	}
	s.queriesTogether(r)

	// A shard is dead: its keys are missed, and loaded.
	f := s.traffic(r, trafficConfig{readers: 1, writers: 1})
	f.progress()
	primary, standby := s.primaryOf(ids[0])
	dead := s.shardOf(ids[0])
	t.Cleanup(s.wholeRedis)
	if err := errors.Join(standby.Kill(), primary.Kill()); err != nil {
		t.Fatal(err)
	}
	third := s.open(nil)
	s.ready(third)
	s.until("the others are connected", func() bool {
		states := third.shardStates()
		return len(states) == 3 && states[dead] == "open" && states[(dead+1)%3] == "closed" && states[(dead+2)%3] == "closed"
	})
	many, err = third.things.GetMany(ctx, ids)
	if err != nil || len(many) != 90 {
		t.Errorf("with a dead shard: %d entries, %v", len(many), err)
	}
	exists(third, ids[0], true)
	exists(third, "none-1", false)
	// Others may have asked it for what it owns.
	if s := third.of(); s.Reads < uint64(len(ids)+2) || s.Hits+s.Misses != s.Reads {
		t.Errorf("the third replica counts %+v", s)
	}
	if left, tier, err := r[1].things.TTL(ctx, lonely(s, dead)); err == nil {
		t.Errorf("a dead shard says that a key is kept for %v in %v", left, tier)
	}
	unlinks := r[0].of().Unlinks
	if _, err := r[0].things.Invalidate(ctx, ids[:2]); err != nil {
		t.Error(err)
	}
	if n := r[0].of().Unlinks - unlinks; n > 2 {
		t.Errorf("%d unlinks", n)
	}
	f.stop()
	f.noneFailed()
}

// lonely is a thing of the shard that nobody has read.
func lonely(s *site, shard int) string {
	n := 1
	for s.shardOf(fmt.Sprintf("lonely-%d", n)) != shard {
		n++
	}
	return fmt.Sprintf("lonely-%d", n)
}

// queriesTogether reads the results of many queries by one call, on each replica.
func (s *site) queriesTogether(r []*replica) {
	s.t.Helper()
	for place, tier := range []node.Tier{node.TierSource, node.TierL2} {
		counts, err := node.NewQueryCache(r[place].Node, node.QueryConfig[int]{
			Namespace: "thing", View: "count",
			Query: func(p cluster.Params) (string, []any, error) {
				return `select to_json(nullif(count(*), 0)) from things where kind = $1`, []any{p["kind"]}, nil
			},
			Tags: func(p cluster.Params, _ int) []string { return []string{"kind:" + p["kind"]} },
		})
		if err != nil {
			s.t.Fatal(err)
		}
		all := []cluster.Params{{"kind": "kind-1"}, {"kind": "unheard-of"}, {"kind": "kind-2"}}
		entries, err := counts.GetMany(s.t.Context(), all)
		if err != nil || len(entries) != 3 || entries[1].Tier != 0 || entries[2].Tier != tier || entries[0].Value != 20 || !entries[0].Fresh {
			s.t.Errorf("replica %d: %+v, %v", place, entries, err)
		}
		if left, tier, err := counts.TTL(s.t.Context(), all[0]); err != nil || tier != node.TierL1 || left < 50*time.Minute {
			s.t.Errorf("replica %d: kept for %v in %v, %v", place, left, tier, err)
		}
		s.until("the results are in L2", func() bool {
			for _, n := range r[0].Stats().Namespaces {
				if n.View == "count" {
					return n.Fills == 3
				}
			}
			return false
		})
	}
}
