package node_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
)

// wholeRedis ends a test that stops Redis nodes: all run again and agree.
func (s *site) wholeRedis() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 40*time.Second)
	defer cancel()
	redis := stacktest.Stack().Redis
	if err := redis.StartAll(ctx); err != nil {
		s.t.Error(err)
	}
	if err := redis.WaitReady(ctx); err != nil {
		s.t.Error(err)
	}
}

// rawL2 reads and writes the bytes in L2.
func (s *site) rawL2() *tiers.L2 {
	s.t.Helper()
	l2, err := tiers.OpenL2(tiers.L2Config{Addrs: stacktest.Stack().Redis.Addrs(), Timeout: patient})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(l2.Close)
	s.until("the test is connected to Redis", func() bool {
		return !slices.ContainsFunc(l2.Shards(), func(s tiers.ShardState) bool { return s.State != "closed" })
	})
	return l2
}

func (s *site) key(id string) string {
	s.t.Helper()
	keys, err := cluster.NewKeys(s.app)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := keys.Entity(cluster.FirstGeneration(), "thing", id, "detail")
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// inL2 waits for the id's entry in L2.
func (s *site) inL2(l2 *tiers.L2, id string) []byte {
	s.t.Helper()
	var entry []byte
	s.until("the entry of "+id+" is in L2", func() bool {
		var err error
		entry, err = l2.Get(s.t.Context(), s.key(id))
		return err == nil
	})
	return entry
}

// OtherThing is what another build of the service keeps under the same keys.
type OtherThing struct {
	ID    string `json:"id"`
	Title string `json:"name" db:"name"`
}

// Whatever Redis holds under a key, no reader gets it as an answer, nor an error for it.
func TestI1RedisIsAnUntrustedBagOfBytes(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	writer, reader := r[0], r[1]
	l2 := s.rawL2()
	ctx := t.Context()

	other, err := node.Open(ctx, s.config())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	others, err := node.NewCache(other, node.CacheConfig[OtherThing]{
		Namespace: "thing", Source: node.SQL[OtherThing](`select id, name from things where id = any($1)`),
	})
	if err != nil {
		t.Fatal(err)
	}

	noise := make([]byte, 300)
	_, _ = rand.Read(noise)
	for n, c := range []struct {
		name     string
		forge    func(id string, good []byte) []byte
		rejected bool // read, but out of date; else not readable
	}{
		{"nothing", func(string, []byte) []byte { return []byte{} }, false},
		{"noise", func(string, []byte) []byte { return noise }, false},
		{"text", func(string, []byte) []byte { return []byte(`{"id":"thing-1","name":"old"}`) }, false},
		{"half an entry", func(_ string, good []byte) []byte { return good[:len(good)/2] }, false},
		{"an entry less its last byte", func(_ string, good []byte) []byte { return good[:len(good)-1] }, false},
		{"a byte too many", func(_ string, good []byte) []byte { return append(bytes.Clone(good), 0) }, false},
		{"a turned bit", func(_ string, good []byte) []byte {
			bad := bytes.Clone(good)
			bad[len(bad)-10] ^= 4
			return bad
		}, false},
		{"another format", func(_ string, good []byte) []byte {
			bad := bytes.Clone(good)
			bad[4] = 200
			return bad
		}, false},
		{"another entity's entry", func(string, []byte) []byte {
			s.get(writer, thing(150))
			return s.inL2(l2, thing(150))
		}, false},
		{"another type's entry", func(id string, _ []byte) []byte {
			if err := l2.Unlink(ctx, s.key(id)); err != nil {
				t.Fatal(err)
			}
			if _, err := others.Get(ctx, id); err != nil {
				t.Fatal(err)
			}
			return s.inL2(l2, id)
		}, false},
		{"the entry from before a change", func(id string, good []byte) []byte {
			s.exec(`update things set name = 'new ' || name where id = $1`, id)
			s.until("the writer sees the change", func() bool { return s.get(writer, id).Value.Name[:3] == "new" })
			s.until("the reader polled", func() bool { e, err := reader.things.Lookup(ctx, "thing-200"); return err == nil && e.Fresh })
			return good
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := thing(100 + n)
			s.get(writer, id)
			bad := c.forge(id, s.inL2(l2, id))
			if err := l2.Set(ctx, s.key(id), bad, time.Minute); err != nil {
				t.Fatal(err)
			}
			var want Thing
			if err := s.db.GetContext(ctx, &want, `select * from things where id = $1`, id); err != nil {
				t.Fatal(err)
			}
			before := reader.of()
			e, err := reader.things.Lookup(ctx, id, node.Within(0))
			if err != nil || e.Value != want || !e.Fresh {
				t.Fatalf("answer %+v, %v, want %+v", e, err, want)
			}
			now := reader.of()
			if unusable, rejected := now.Unusable > before.Unusable, now.Rejected > before.Rejected; rejected != c.rejected || unusable == c.rejected {
				t.Errorf("counted: unusable %v, rejected %v", unusable, rejected)
			}
			s.until("L2 is put right", func() bool {
				now, err := l2.Get(ctx, s.key(id))
				return err == nil && !bytes.Equal(now, bad)
			})
		})
	}
}

// Redis gone as a whole: at the start and under reads. L1 stays FRESH, a miss is loaded once per
// cluster, no read fails, and L2 is used again without a restart.
func TestI6RedisDown(t *testing.T) {
	s := newSite(t)
	redis := stacktest.Stack().Redis
	t.Cleanup(s.wholeRedis)
	if err := redis.KillAll(); err != nil {
		t.Fatal(err)
	}
	// Owners have time to load.
	unhurried := func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Redis.LeaseWait = patient / 4 }
	r := []*replica{s.open(unhurried), s.open(unhurried), s.open(unhurried)}
	for _, r := range r {
		s.ready(r)
		s.until("members see each other", func() bool { return len(r.Stats().Members) == 3 })
	}
	// missesOnce reads things that no replica has, on every replica: each is loaded once.
	missesOnce := func(from, to int) {
		t.Helper()
		loadsBefore, ownersBefore := sum(r, loads), sum(r, ownerHits)
		for n := from; n < to; n++ {
			for i := range r {
				if e := s.get(r[(n+i)%3], thing(n)); !e.Fresh || e.Value.Name != fmt.Sprintf("name %d", n) {
					t.Fatalf("answer %+v", e)
				}
			}
		}
		if n := sum(r, loads) - loadsBefore; n != uint64(to-from) {
			t.Errorf("%d loads of %d things", n, to-from)
		}
		if n := sum(r, ownerHits) - ownersBefore; n != uint64(2*(to-from)) {
			t.Errorf("%d answers of owners for %d things on 3 replicas", n, to-from)
		}
	}
	missesOnce(100, 120)

	s.wholeRedis()
	for _, r := range r {
		s.until("L2 is connected", func() bool { return slices.Equal(r.shardStates(), []string{"closed", "closed", "closed"}) })
	}
	l2 := s.rawL2()
	const untouched = "thing-126" // the traffic's writes touch neither it nor its tag
	s.get(r[0], untouched)
	s.inL2(l2, untouched)
	if e := s.get(r[1], untouched); e.Tier != node.TierL2 {
		t.Errorf("after Redis came up: %+v", e)
	}

	f := s.traffic(r, trafficConfig{keys: 5, writers: 2})
	f.progress()
	if err := redis.KillAll(); err != nil {
		t.Fatal(err)
	}
	f.progress()
	for _, r := range r {
		s.until("the breakers are open", func() bool { return slices.Equal(r.shardStates(), []string{"open", "open", "open"}) })
	}
	hits := r[0].of().L1Hits
	for range 100 {
		if e := s.get(r[0], untouched); e.Tier != node.TierL1 || !e.Fresh {
			t.Fatalf("a hit in L1 without Redis: %+v", e)
		}
	}
	if r[0].of().L1Hits < hits+100 {
		t.Error("hits are not counted")
	}
	f.progress()
	s.wholeRedis()
	for _, r := range r {
		s.until("L2 is connected", func() bool { return slices.Equal(r.shardStates(), []string{"closed", "closed", "closed"}) })
	}
	again := sum(r, l2Hits)
	s.until("L2 answers again", func() bool { return sum(r, l2Hits) > again })
	f.stop()
	f.noneFailed()
}

// I6: without Redis, a source slower than half a second is read once, when LeaseWait says that it may take
// longer: the others wait for the owner.
func TestI6OwnerTakesItsTime(t *testing.T) {
	s := newSite(t)
	var calls atomic.Int64
	r := make([]*replica, 3)
	for i := range r {
		r[i] = s.open(func(c *node.Config, cache *node.CacheConfig[Thing]) {
			c.Redis.Addrs = []string{"127.0.0.1:1"} // nobody listens there
			c.Redis.LeaseWait = patient
			cache.Source = node.Func(func(_ context.Context, ids []string) (map[string]Thing, error) {
				calls.Add(1)
				var now time.Time
				return someThings(ids), s.db.Get(&now, `select now() from pg_sleep(0.7)`)
			})
		})
		s.ready(r[i])
	}
	s.until("members see each other", func() bool {
		return !slices.ContainsFunc(r, func(one *replica) bool { return len(one.Stats().Members) != len(r) })
	})
	var readers sync.WaitGroup
	for i := range r {
		readers.Go(func() { s.get(r[i], "slow") })
	}
	readers.Wait()
	for _, one := range r {
		if err := one.Close(); err != nil { // what still loads, loads now
			t.Error(err)
		}
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d loads of one thing by %d replicas", n, len(r))
	}
}

// Without Redis and without peers, misses are bounded by the bulkhead, and none fails.
func TestI6BulkheadWithoutRedisAndPeers(t *testing.T) {
	s := newSite(t)
	var running, peak gauge
	r := s.open(func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.NATS.URLs = nil
		c.Redis.Addrs = []string{"127.0.0.1:1"} // nobody listens there
		c.Postgres.MaxConns = 4
		cache.Source = node.Func(func(_ context.Context, ids []string) (map[string]Thing, error) {
			peak.raise(running.add(1))
			defer running.add(-1)
			things := map[string]Thing{}
			for _, id := range ids {
				things[id] = Thing{ID: id}
			}
			var now time.Time // a load that takes a while
			return things, s.db.Get(&now, `select now() from pg_sleep(0.01)`)
		})
	})
	s.ready(r)
	var readers sync.WaitGroup
	for n := range 200 {
		readers.Go(func() {
			if e, err := r.things.Lookup(t.Context(), fmt.Sprint(n)); err != nil || !e.Fresh || e.Tier != node.TierSource {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
	readers.Wait()
	if peak.load() > 4 || r.Stats().Source.Peak > 4 || peak.load() < 2 {
		t.Errorf("%d loads at once (counted %d), want at most 4", peak.load(), r.Stats().Source.Peak)
	}
}

// shardOf is the index of the shard, of three, that serves the id's key.
func (s *site) shardOf(id string) int {
	return int(cluster.Slot(s.key(id))) * 3 / cluster.Slots
}

// primaryOf is the node that serves the id's key, and the one that does not but was given its shard.
func (s *site) primaryOf(id string) (primary, replica *devstack.RedisNode) {
	s.t.Helper()
	primary, err := stacktest.Stack().Redis.Primary(cluster.Slot(s.key(id)))
	if err != nil {
		s.t.Fatal(err)
	}
	nodes := stacktest.Stack().Redis.Nodes()
	at := slices.Index(nodes, primary)
	return primary, nodes[(at+3)%6]
}

// One shard dead with its replica: the others' keys keep L2, and the breakers show just that one.
func TestOneRedisShardDown(t *testing.T) {
	s := newSite(t)
	r := s.openAll(2, func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Redis.LeaseWait = patient / 4 })
	primary, replica := s.primaryOf("thing-1")
	dead := s.shardOf("thing-1")
	f := s.traffic(r, trafficConfig{keys: 1, writers: 1})
	f.progress()
	t.Cleanup(s.wholeRedis)
	for _, n := range []*devstack.RedisNode{replica, primary} {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range r {
		s.until("the dead shard's breaker is open", func() bool { return r.shardStates()[dead] == "open" })
	}
	l2 := sum(r, l2Hits)
	for n := 100; n < 130; n++ {
		id := thing(n)
		if n%10 == 1 {
			continue // its tag is that of thing-1, which is written all the time
		}
		s.get(r[0], id)
		if s.shardOf(id) != dead {
			s.until("another replica has it from L2", func() bool {
				e := s.get(r[1], id)
				if e.Tier == node.TierSource {
					t.Fatalf("%s was loaded twice: %+v", id, e)
				}
				return true
			})
		} else if e := s.get(r[1], id); !e.Fresh || e.Tier == node.TierL2 {
			t.Errorf("%s of the dead shard: %+v", id, e)
		}
	}
	if sum(r, l2Hits) == l2 {
		t.Error("no hits in the shards that live")
	}
	for _, r := range r {
		for i, state := range r.shardStates() {
			if (state == "open") != (i == dead) {
				t.Errorf("shard %d is %s; shard %d is dead", i, state, dead)
			}
		}
	}
	f.stop()
	f.noneFailed()
	s.wholeRedis()
	for _, r := range r {
		s.until("L2 is whole again", func() bool { return !slices.Contains(r.shardStates(), "open") })
	}
}

// A primary dies and its replica takes over: reads go on, and L2 works there.
func TestRedisFailover(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	primary, replica := s.primaryOf("thing-1")
	f := s.traffic(r, trafficConfig{writers: 1})
	f.progress()
	t.Cleanup(s.wholeRedis)
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	s.until("the replica is promoted", func() bool {
		now, err := stacktest.Stack().Redis.Primary(cluster.Slot(s.key("thing-1")))
		return err == nil && now == replica
	})
	for _, r := range r {
		s.until("L2 is whole again", func() bool { return !slices.Contains(r.shardStates(), "open") })
	}
	n := 100
	s.until("L2 works in the promoted node", func() bool {
		for n++; s.shardOf(thing(n)) != s.shardOf("thing-1"); n++ {
		}
		if n > 190 {
			t.Fatal("no thing left to try")
		}
		s.get(r[0], thing(n))
		return s.get(r[1], thing(n)).Tier == node.TierL2
	})
	f.stop()
	f.noneFailed()
}
