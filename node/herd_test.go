package node_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/freshet-cache/freshet/node"
)

// I6: a hundred readers on each of three replicas miss one key at once: one load.
func TestI6Herd(t *testing.T) {
	for _, c := range []string{"sql", "func"} {
		t.Run(c, func(t *testing.T) {
			s := newSite(t)
			s.exec(`create sequence loaded`)
			var calls atomic.Int64
			r := s.openAll(3, func(config *node.Config, cache *node.CacheConfig[Thing]) {
				config.Redis.LeaseWait = patient
				cache.Source = node.SQL[Thing](`select id, name, kind, revision from things where id = any($1) and nextval('loaded') > 0`)
				if c == "func" {
					cache.Source = node.Func(func(_ context.Context, ids []string) (map[string]Thing, error) {
						calls.Add(1)
						return someThings(ids), nil
					})
				}
			})
			const rounds = 10
			for n := range rounds {
				start := make(chan struct{})
				var readers sync.WaitGroup
				for i := range r {
					for range 100 {
						readers.Go(func() {
							<-start
							if e, err := r[i].things.Lookup(t.Context(), thing(n+1)); err != nil || !e.Fresh || e.Value.ID != thing(n+1) {
								t.Errorf("%+v, %v", e, err)
							}
						})
					}
				}
				close(start)
				readers.Wait()
			}
			called := calls.Load()
			if c == "sql" {
				if err := s.db.Get(&called, `select last_value from loaded`); err != nil {
					t.Fatal(err)
				}
			}
			if n := sum(r, loads); n != rounds || called != rounds {
				t.Errorf("%d loads (%d counted) of %d things", called, n, rounds)
			}
		})
	}
}

// I6: many keys at once, in batches, on three replicas: each is loaded once.
func TestI6HerdOfMany(t *testing.T) {
	s := newSite(t)
	r := s.openAll(3, func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Redis.LeaseWait = patient })
	ids := make([]string, 200)
	for n := range ids {
		ids[n] = thing(n + 1)
	}
	start := make(chan struct{})
	var readers sync.WaitGroup
	for i := range r {
		for range 5 {
			readers.Go(func() {
				<-start
				got, err := r[i].things.GetMany(t.Context(), ids)
				if err != nil || len(got) != len(ids) {
					t.Errorf("%d entries, %v", len(got), err)
				}
				for n, id := range ids {
					if e := got[id]; !e.Fresh || e.Value.Name != fmt.Sprintf("name %d", n+1) {
						t.Errorf("%s: %+v", id, e)
					}
				}
			})
		}
	}
	close(start)
	readers.Wait()
	if n := sum(r, loads); n != uint64(len(ids)) {
		t.Errorf("%d loads of %d things", n, len(ids))
	}
}
