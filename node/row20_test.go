package node_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsio "github.com/nats-io/nats.go"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Row 20: a replica that joins under load has, when it is ready, what its peers' readers want of L1, from L2 and
// within seconds, also when a peer dies over the question. Redis away, it comes from the others' L1 or from
// Postgres, at the bounded rate. What a list or a query says is there, too, and is brought again.
func TestRow20WarmUp(t *testing.T) {
	s := newSite(t)
	s.exec(`insert into things (id, name, kind) select 'thing-' || n, 'name ' || n, 'kind-' || n % 10 from generate_series(201, $1) n`, popular)
	// Things are not tagged: a change of one is about no other.
	open := func(s *site, w node.WarmUp, change func(*node.Config)) *replica {
		s.t.Helper()
		return s.open(func(c *node.Config, cache *node.CacheConfig[Thing]) {
			cache.Tags, cache.WarmUp = nil, w
			if change != nil {
				change(c)
			}
		})
	}
	peers := s.openAll(3, func(_ *node.Config, cache *node.CacheConfig[Thing]) { cache.Tags = nil })
	for _, r := range peers {
		s.readAll(r)
	}
	load := s.zipf(peers...)
	traffic := s.traffic(peers[:2], trafficConfig{writers: 1, readers: 1}) // the other dies on the way
	s.until("the peers have read much", func() bool { return load.reads.Load() > 60_000 })

	t.Run("peers", func(t *testing.T) {
		s := s.in(t)
		// A replica that has been there for longest dies over the question, and another does.
		dying := s.mute(func() { _ = peers[2].Close() })
		began := time.Now()
		joined := open(s, node.WarmUp{Peers: true, Limit: brought}, nil)
		s.ready(joined)
		took := time.Since(began)
		if !dying.asked.Load() {
			t.Error("nobody asked the one that dies")
		}
		warm, theirs := s.hitRatio(joined, 600), s.hitRatio(peers[0], 600)
		if took > 5*time.Second || warm < 0.9*theirs {
			t.Errorf("%v after its start %.3f of the reads hit L1, %.3f do with the peers", took, warm, theirs)
		}
		up := joined.of().WarmUps[0]
		if up.Loaded < brought*9/10 || joined.of().Loads > up.Loaded/10 {
			t.Errorf("%+v, and %d loads from Postgres: want most of %d from L2", up, joined.of().Loads, brought)
		}
		cold := open(s, node.WarmUp{}, nil)
		s.ready(cold)
		unwarmed := s.hitRatio(cold, 300)
		if unwarmed > 0.6*theirs {
			t.Errorf("without a warm-up %.3f of the reads hit L1: the test shows nothing", unwarmed)
		}
		t.Logf("ready after %v: hit ratio %.3f, the peers' %.3f, without warm-up %.3f; %+v", took.Round(time.Millisecond), warm, theirs, unwarmed, up)
	})

	t.Run("Redis away", func(t *testing.T) {
		s := s.in(t)
		const rate, limit = 500, 300
		away := func(c *node.Config) { c.Redis = node.RedisConfig{Addrs: []string{"127.0.0.1:1"}} }
		began := time.Now()
		joined := open(s, node.WarmUp{Peers: true, Limit: limit, Rate: rate}, away)
		query := `select id, revision from things order by length(id), id;`
		alone := open(s, node.WarmUp{Query: query, Limit: limit, Rate: rate}, func(c *node.Config) {
			away(c)
			c.NATS.URLs = nil
		})
		s.ready(joined)
		s.ready(alone)
		took := time.Since(began)
		if least := (limit - rate/20) * time.Second / rate; took < least {
			t.Errorf("%d ids took %v, want %v at least", limit, took, least)
		}
		if up := joined.of().WarmUps[0]; up.Loaded < limit*9/10 || joined.of().OwnerHits+joined.of().Loads == 0 {
			t.Errorf("%+v of %+v", up, joined.of())
		}
		if up := alone.of().WarmUps[0]; up.Loaded != limit || alone.of().Loads < limit {
			t.Errorf("%+v of %+v", up, alone.of())
		}
		if e := s.get(alone, thing(limit-1)); e.Tier != node.TierL1 {
			t.Errorf("one of the query's came from %v", e.Tier)
		}
	})

	t.Run("list, query, schedule", func(t *testing.T) {
		s := s.in(t)
		r := open(s, node.WarmUp{
			IDs:   func(context.Context) ([]string, error) { return []string{thing(77), "no-such-thing", "\xff"}, nil },
			Query: `select id from things where name = 'promoted'`,
			Every: time.Second,
		}, nil)
		s.ready(r)
		for _, id := range []string{thing(77), "no-such-thing"} {
			if e, _ := r.things.Lookup(t.Context(), id); e.Tier != node.TierL1 {
				t.Errorf("%s came from %v", id, e.Tier)
			}
		}
		ups := r.of().WarmUps
		if ups[0].Source != "ids" || ups[0].IDs != 3 || ups[0].Loaded != 2 || ups[0].Failed != 1 || ups[1].Source != "query" || ups[1].Runs != 1 {
			t.Errorf("%+v", ups)
		}
		loads := r.of().Loads
		s.exec(`update things set name = 'promoted' where id in ('thing-1500', 'thing-1501')`)
		s.until("what is popular now has been brought", func() bool { return r.of().WarmUps[1].Loaded >= 2 })
		if e := s.get(r, thing(1500)); e.Tier != node.TierL1 || e.Value.Name != "promoted" {
			t.Errorf("%+v", e)
		}
		if n := r.of().Loads - loads; n > 10 {
			t.Errorf("%d loads: what is in L1 is not to be read again", n)
		}
	})

	load.stop()
	traffic.stop()
	traffic.noneFailed()
}

// popular is how many things there are in row 20, and brought how many a replica brings that joins.
const (
	popular = 2000
	brought = 1700
)

// in is the site for a subtest.
func (s *site) in(t *testing.T) *site {
	t.Helper()
	inner := *s
	inner.t = t
	return &inner
}

// readAll reads each thing once.
func (s *site) readAll(r *replica) {
	s.t.Helper()
	for i := 0; i < popular; i += 100 {
		ids := make([]string, 100)
		for n := range ids {
			ids[n] = thing(i + n + 1)
		}
		if _, err := r.things.GetMany(s.t.Context(), ids); err != nil {
			s.t.Fatal(err)
		}
	}
}

// zipfLoad reads some things often and most seldom.
type zipfLoad struct {
	reads atomic.Int64
	end   context.CancelFunc
	work  sync.WaitGroup
}

// popularity draws things: half of the reads are of a twentieth of them, and the order of popularity is not that
// in which readAll has read them.
func popularity(seed uint64) func() string {
	z := rand.NewZipf(rand.New(rand.NewPCG(seed, 1)), 1.1, 8, popular-1)
	return func() string { return thing(1 + int(z.Uint64()*1237%popular)) }
}

func (s *site) zipf(replicas ...*replica) *zipfLoad {
	var l zipfLoad
	var ctx context.Context
	ctx, l.end = context.WithCancel(s.t.Context())
	s.t.Cleanup(l.stop)
	for i, r := range replicas {
		l.work.Go(func() {
			next := popularity(uint64(i))
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				for range 50 {
					_, _ = r.things.Get(ctx, next()) // a closed replica's fail
					l.reads.Add(1)
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return &l
}

func (l *zipfLoad) stop() {
	l.end()
	l.work.Wait()
}

// hitRatio is how many of the next reads of the popular things are answered from L1.
func (s *site) hitRatio(r *replica, reads int) float64 {
	s.t.Helper()
	next := popularity(99)
	hits := 0
	for range reads {
		if e := s.get(r, next()); e.Tier == node.TierL1 {
			hits++
		}
	}
	return float64(hits) / float64(reads)
}

// muted is a member that takes questions and answers none.
type muted struct{ asked atomic.Bool }

// mute joins as the replica that has run longest, and calls dies when it is asked for its hot ids.
func (s *site) mute(dies func()) *muted {
	s.t.Helper()
	var m muted
	conn, err := natsio.Connect(stacktest.Stack().NATS.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = conn.Subscribe("freshet."+s.app+".hot.0000000000000001", func(*natsio.Msg) {
		if !m.asked.Swap(true) {
			dies()
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	members, err := cluster.NewMembership(cluster.MembershipConfig{
		Conn: cluster.NATS(conn), App: s.app, Self: cluster.Member{ID: "muted", Boot: 1}, Interval: 50 * time.Millisecond, Expire: time.Minute, Logger: s.config().Logger,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, end := context.WithCancel(s.t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		if err := members.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() { end(); work.Wait(); conn.Close() })
	return &m
}
