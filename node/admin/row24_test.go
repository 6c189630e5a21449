package admin_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// Statistics, members, shards and servers over all replicas, while a Redis primary dies and comes back.
func TestRow24MetricsAPI(t *testing.T) {
	s := newSite(t)
	a, b := s.pair(func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.Redis.Timeout = time.Second // a call to the dead shard must not take as long as the test waits
		c.Postgres.WatchInterval = 200 * time.Millisecond
		cache.TTL = 10 * time.Minute
	})
	if _, err := node.NewQueryCache(a.Node, node.QueryConfig[int64]{
		Namespace: "thing", View: "count", TTL: time.Minute, MaxStale: -1, Codec: node.CBOR,
		Query: func(cluster.Params) (string, []any, error) { return `select count(*) from things`, nil, nil },
	}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"thing-1", "thing-2", "thing-3"} {
		for _, r := range []*replica{a, b} {
			if _, err := r.things.Get(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}

	t.Run("namespaces", func(t *testing.T) {
		caches, err := a.client.Namespaces(t.Context())
		if err != nil || len(caches) != 2 {
			t.Fatalf("%+v, %v", caches, err)
		}
		if c := caches[0]; c.View != "count" || c.Kind != "query" || c.NegativeTTL != 60 || c.MaxStale != 0 || c.Codec != "cbor" {
			t.Errorf("the query cache: %+v", c)
		}
		if c := caches[1]; c.Namespace != "thing" || c.View != "detail" || c.Kind != "entity" || c.Generation != "1.1" || c.TTL != 600 || c.NegativeTTL != 30 ||
			c.Budget != 1 || c.LoadTimeout != patient.Seconds() || c.RetryAfter != 0.1 || c.MaxEntries != 100_000 || c.MaxBytes != 64<<20 ||
			c.MaxValue != 64<<20 || c.Codec != "json" || c.Compression != "s2" || c.CompressAbove != 1024 || c.CompressLevel != 2 || c.WriteThrough || c.WriteBehind {
			t.Errorf("the cache of entities: %+v", c)
		}
	})

	t.Run("members", func(t *testing.T) {
		m, err := b.client.Members(t.Context())
		if err != nil || m.Asked != "b" || len(m.Replicas) != 2 {
			t.Fatalf("%+v, %v", m, err)
		}
		for i, want := range []string{"a", "b"} {
			if r := m.Replicas[i]; r.Replica != want || r.Address != want+":80" || r.State != "ok" || r.Members != 2 || r.Boot == 0 || r.Budget != 1 {
				t.Errorf("%+v", r)
			}
		}
	})

	t.Run("postgres", func(t *testing.T) {
		p, err := a.client.Postgres(t.Context())
		if err != nil || !p.Answers || len(p.Problems) > 0 {
			t.Fatalf("%+v, %v", p, err)
		}
		clients := map[string]int64{}
		for _, c := range p.Clients {
			clients[c.Application] = c.Connections
		}
		if !p.Primary || p.Version == "" || p.Started.IsZero() || p.Schema != p.WantedSchema || p.Schema < 5 || p.Timeline == "0" || p.Timeline == "" ||
			p.Log.Bytes == 0 || p.Log.Horizon == "" || clients["freshet-log"] != 2 || p.MaxConnections == 0 || p.Connections < 2 {
			t.Errorf("%+v", p)
		}
		s.exec(`insert into things values ('thing-new', 'new', 'kind-1')`)
		if p, err = a.client.Postgres(t.Context()); err != nil || p.Log.Oldest <= 0 {
			t.Errorf("with a row in the log: %+v, %v", p.Log, err)
		}
	})

	t.Run("watches", func(t *testing.T) {
		s.exec(`alter table things disable trigger freshet_update`)
		var w admin.Watches
		s.until("both replicas have found the drift", func() bool {
			var err error
			if w, err = b.client.Watches(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, r := range w.Replicas {
				if r.Answer != nil && len(r.Answer.Drift) > 0 && r.Answer.Drift[0].Namespace == "thing" {
					found++
				}
			}
			return found == 2
		})
		if len(w.Tables) != 1 || w.Tables[0].Table != "things" || w.Tables[0].Namespace != "thing" || len(w.Tables[0].Tags) != 1 || w.Error != "" {
			t.Errorf("%+v", w)
		}
		s.exec(`select freshet.rewatch('things')`)
	})

	t.Run("redis", func(t *testing.T) {
		before, err := a.client.Redis(t.Context())
		if err != nil || before.State != "ok" || before.Slots != 16384 || len(before.Servers) != 6 {
			t.Fatalf("%+v, %v", before, err)
		}
		for i, v := range before.Servers {
			role := []string{"primary", "replica"}[i%2]
			if v.Role != role || v.Error != "" || v.Flags != "" || v.Version == "" || v.ID == "" || v.MemoryUsed == 0 || v.MemoryMax != 256<<20 ||
				v.MemoryPolicy != "allkeys-lru" || v.ClusterState != "ok" || v.Clients == 0 || (role == "primary") != (v.Slots != "") {
				t.Errorf("server %d: %+v", i, v)
			}
			if role == "replica" && (v.Primary != before.Servers[i-1].Address || v.Link != "up") {
				t.Errorf("server %d replicates %s by a link that is %q, want %s", i, v.Primary, v.Link, before.Servers[i-1].Address)
			}
		}

		const slot = 0
		primary, err := stacktest.Stack().Redis.Primary(slot)
		if err != nil {
			t.Fatal(err)
		}
		if err := primary.Kill(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patient)
			defer cancel()
			_ = primary.Start(ctx) // it may run
			if err := stacktest.Stack().Redis.WaitReady(ctx); err != nil {
				t.Error(err)
			}
		})
		of := func(r node.RedisSurvey) node.RedisServer {
			for _, v := range r.Servers {
				if v.Address == primary.Addr() {
					return v
				}
			}
			t.Fatalf("the dead server is not listed: %+v", r)
			return node.RedisServer{}
		}
		// From the next word of the topology on the shard has another primary, on a busy machine perhaps at once.
		s.until("both replicas show the breaker as open, or the successor", func() bool {
			told, err := b.client.Shards(t.Context(), true)
			if err != nil || len(told) != 2 {
				t.Fatalf("%+v, %v", told, err)
			}
			shown := 0
			for _, v := range told {
				if shard := v.Answer.Shards[0]; shard.Name != primary.Addr() || shard.State == "open" && !shard.Connected {
					shown++
				}
			}
			return shown == 2
		})
		survey, err := a.client.Redis(t.Context())
		if v := of(survey); err != nil || v.Error == "" || v.Version != "" {
			t.Errorf("the dead server: %+v, %v", v, err)
		}
		if _, err := stacktest.Stack().Redis.AwaitSuccessor(t.Context(), slot, primary); err != nil {
			t.Fatal(err)
		}
		s.until("the cluster is in order, and says that the server has failed", func() bool {
			r, err := b.client.Redis(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			v := of(r)
			return r.State == "ok" && len(r.Servers) == 6 && v.Error != "" && v.Flags == "fail" && v.Role == "primary" && v.Slots == ""
		})
		if err := primary.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.until("the server is back, as a replica", func() bool {
			r, err := a.client.Redis(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			v := of(r)
			return v.Error == "" && v.Role == "replica" && v.Flags == "" && v.Link == "up" && v.UptimeSeconds < 60
		})
	})
	if got := a.do(http.MethodGet, "/metrics", ""); got.status != http.StatusOK || !strings.Contains(got.body, `freshet_reads_total{label="fresh",namespace="thing",view="detail"}`) {
		t.Errorf("/metrics: %d, %.200s", got.status, got.body)
	}
}
