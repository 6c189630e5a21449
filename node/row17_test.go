package node_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Row 17: cache-aside is Get. A miss is loaded once, whoever asks, and kept in L2 and L1; what does not exist is kept,
// too. Redis is killed in the middle of a load, under reads and writes: the load's readers get what it brings,
// and reads go on with L1, owners and the source until Redis is back.
func TestRow17CacheAside(t *testing.T) {
	s := newSite(t)
	const held = "thing-150"
	loading, goOn := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(loading) })
	query := &countedSource{site: s, loads: map[string][]time.Time{}}
	r := s.openAll(3, func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.Redis.LeaseWait = patient
		cache.Source = node.Func(func(ctx context.Context, ids []string) (map[string]Thing, error) {
			if slices.Contains(ids, held) {
				begin()
				<-goOn
			}
			return query.load(ctx, ids)
		})
	})
	l2 := s.rawL2()
	ctx := t.Context()
	for n := 100; n < 110; n++ {
		id := thing(n)
		if e := s.get(r[n%3], id); e.Tier != node.TierSource || !e.Fresh {
			t.Errorf("the first read: %+v", e)
		}
		if e := s.get(r[n%3], id); e.Tier != node.TierL1 || !e.Fresh {
			t.Errorf("the second: %+v", e)
		}
		s.inL2(l2, id)
		if e := s.get(r[(n+1)%3], id); e.Tier != node.TierL2 || !e.Fresh {
			t.Errorf("on another replica: %+v", e)
		}
		if n := len(query.of(id)); n != 1 {
			t.Errorf("%d loads of %s", n, id)
		}
	}
	for range 2 {
		for i, r := range r {
			if e, err := r.things.Lookup(ctx, "none"); !errors.Is(err, node.ErrNotFound) || !e.Fresh {
				t.Errorf("what does not exist on replica %d: %+v, %v", i, e, err)
			}
		}
	}
	if n := len(query.of("none")); n != 1 {
		t.Errorf("%d loads of what does not exist", n)
	}

	f := s.traffic(r, trafficConfig{keys: 5, readers: 1, writers: 1})
	t.Cleanup(s.wholeRedis)
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			if e, err := r[0].things.Lookup(ctx, held); err != nil || !e.Fresh || e.Value.Name != "name 150" {
				t.Errorf("readers of the load: %+v, %v", e, err)
			}
		})
	}
	<-loading
	if err := stacktest.Stack().Redis.KillAll(); err != nil {
		t.Error(err)
	}
	close(goOn)
	readers.Wait()
	if e := s.get(r[0], held); e.Tier != node.TierL1 || len(query.of(held)) != 1 {
		t.Errorf("after the load: %+v, %d loads", e, len(query.of(held)))
	}
	f.progress()
	if s := r[0].of(); s.Fills >= s.Loads {
		t.Errorf("what did not get into L2 shows nowhere: %+v", s)
	}
	s.wholeRedis()
	for _, r := range r {
		s.until("L2 is connected", func() bool { return !slices.Contains(r.shardStates(), "open") })
	}
	filled := sum(r, func(s node.NamespaceStats) uint64 { return s.Fills })
	s.until("L2 is filled again", func() bool { return sum(r, func(s node.NamespaceStats) uint64 { return s.Fills }) > filled })
	f.stop()
	f.noneFailed()
}
