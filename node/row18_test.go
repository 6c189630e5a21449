package node_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// thingStore writes things where thingQuery finds them.
func thingStore() node.Store[Thing] {
	return node.SQLStore[Thing](`
insert into things (id, name, kind, revision)
select v.id, v.name, v.kind, v.revision from jsonb_to_recordset($2::jsonb) v (id text, name text, kind text, revision bigint)
 where v.id = any($1::text[])
on conflict (id) do update set name = excluded.name, kind = excluded.kind, revision = excluded.revision`,
		`delete from things where id = any($1)`)
}

// Values are written through under load, with every answer judged, while a Redis shard is down: the writer and
// every other replica read them, and what is cached was read from Postgres.
func TestRow18WriteThrough(t *testing.T) {
	s := newSite(t)
	r := s.openAll(2, func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.Redis.Timeout = 500 * time.Millisecond
		cache.Store = thingStore()
	})
	f := s.traffic(r, trafficConfig{})
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var writers sync.WaitGroup
	var puts, loaded atomic.Int64
	for n := range 4 { // each writes keys of its own
		writers.Go(func() {
			for revision := int64(2); ctx.Err() == nil; revision++ {
				for key := 1 + n; key <= f.keys && ctx.Err() == nil; key += 4 {
					w := f.checker.Begin(int64(key), 0, f.clock())
					e, err := r[n%2].things.Put(t.Context(), thing(key), Thing{ID: thing(key), Name: "put", Kind: "kind", Revision: revision})
					if err != nil {
						w.Unknown(revision)
						t.Errorf("put: %v", err)
						return
					}
					w.Acked(revision, f.clock())
					if e.Tier != 0 && (!e.Fresh || e.Value.Revision != revision) {
						t.Errorf("the entry of a put of %d: %+v", revision, e)
					}
					// The other replica, with the token, and this one without.
					for i, options := range [][]node.ReadOption{nil, {node.AtLeast(e.Token)}} {
						if e, err := r[(n+i)%2].things.Lookup(t.Context(), thing(key), options...); err != nil || e.Value.Revision < revision {
							t.Errorf("a read after a put of %d: %+v, %v", revision, e, err)
						}
					}
					puts.Add(1)
					if e.Tier != 0 {
						loaded.Add(1)
					}
				}
			}
		})
	}
	more := func() {
		goal := puts.Load() + 40
		s.until("puts go on", func() bool { return puts.Load() >= goal || t.Failed() })
	}
	more()
	t.Cleanup(s.wholeRedis)
	if err := stacktest.Stack().Redis.Nodes()[0].Kill(); err != nil {
		t.Fatal(err)
	}
	more()
	end()
	writers.Wait()
	f.stop()
	f.noneFailed()
	if loaded.Load() == 0 {
		t.Error("no put was read anew")
	}
	t.Logf("%d puts, of which %d were read anew", puts.Load(), loaded.Load())

	// Several at once, and their deletion: each is one transaction.
	values := map[string]Thing{}
	for n := range 50 {
		id := fmt.Sprintf("new-%d", n)
		values[id] = Thing{ID: id, Name: "new", Kind: "kind", Revision: 1}
	}
	token, err := r[0].things.SetMany(t.Context(), values)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for id := range maps.Keys(values) {
		ids = append(ids, id)
	}
	before := r[0].of().Loads
	for i, r := range r {
		several, err := r.things.GetMany(t.Context(), ids, node.AtLeast(token))
		if err != nil || len(several) != len(values) {
			t.Errorf("replica %d has %d of %d values, %v", i, len(several), len(values), err)
		}
	}
	if n := r[0].of().Loads - before; n != 0 {
		t.Errorf("%d values were loaded that SetMany had filled", n)
	}
	if token, err = r[0].things.Delete(t.Context(), append(ids, "never was", ids[0])...); err != nil {
		t.Fatal(err)
	}
	for i, r := range r {
		if several, err := r.things.GetMany(t.Context(), ids, node.AtLeast(token)); err != nil || len(several) != 0 {
			t.Errorf("replica %d has %d values after they were deleted, %v", i, len(several), err)
		}
	}
}

// A load that began before a put and ends after it brings what was before: neither L1 nor L2 keeps it.
func TestRow18SlowLoadLosesNoPut(t *testing.T) {
	s := newSite(t)
	s.exec(`create table slow (id text primary key, n bigint not null)`)
	s.exec(`insert into slow values ('a', 1)`)
	read, goOn := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	first.Store(true)
	open := func() (*node.Node, *node.Cache[stock]) {
		r := s.open(nil)
		s.ready(r)
		c, err := node.NewCache(r.Node, node.CacheConfig[stock]{
			Namespace: "slow",
			Source: node.Func(func(ctx context.Context, ids []string) (map[string]stock, error) {
				values := map[string]stock{}
				for _, id := range ids {
					var v stock
					if err := r.DB().GetContext(ctx, &v, `select id, n from slow where id = $1`, id); err == nil {
						values[id] = v
					}
				}
				if first.CompareAndSwap(true, false) {
					close(read)
					<-goOn
				}
				return values, nil
			}),
			Store: node.SQLStore[stock](`
insert into slow select v.id, v.n from jsonb_to_recordset($2::jsonb) v (id text, n bigint) where v.id = any($1::text[])
on conflict (id) do update set n = excluded.n`, ``),
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.Node, c
	}
	_, slow := open()
	_, other := open()
	loaded := make(chan error, 1)
	go func() {
		_, err := slow.Get(t.Context(), "a")
		loaded <- err
	}()
	<-read
	e, err := other.Put(t.Context(), "a", stock{"a", 2})
	if err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	for i, c := range []*node.Cache[stock]{slow, other, slow} {
		if e, err := c.Lookup(t.Context(), "a", node.AtLeast(e.Token)); err != nil || e.Value.N != 2 || !e.Fresh {
			t.Errorf("read %d after the put: %+v, %v", i, e, err)
		}
	}
	if _, err := slow.Delete(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "no statement that removes") {
		t.Errorf("a deletion without a statement: %v", err)
	}
}

// What cannot be written says why, and a store that fails writes nothing.
func TestRow18Refusals(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)[0]
	_, put := r.things.Put(t.Context(), "thing-1", Thing{})
	_, later := r.things.PutLater(t.Context(), "thing-1", Thing{})
	for _, err := range []error{put, later} {
		if err == nil || !strings.Contains(err.Error(), "CacheConfig.") || !strings.Contains(err.Error(), "Store") {
			t.Errorf("a write without a store: %v", err)
		}
	}
	_, err := node.NewCache(r.Node, node.CacheConfig[Thing]{Namespace: "behind", Source: node.SQL[Thing](thingQuery), WriteBehind: true})
	if err == nil || !strings.Contains(err.Error(), "Store") {
		t.Errorf("WriteBehind without a Store: %v", err)
	}
	stored := s.open(func(_ *node.Config, c *node.CacheConfig[Thing]) { c.Store = thingStore() })
	s.ready(stored)
	for _, id := range []string{"", "a\x00b", "\xff"} {
		if _, err := stored.things.Put(t.Context(), id, Thing{}); !errors.Is(err, node.ErrBadID) {
			t.Errorf("put of %q: %v", id, err)
		}
	}
	if _, err := stored.things.SetMany(t.Context(), make(map[string]Thing)); err != nil {
		t.Errorf("no values: %v", err)
	}
	many := map[string]Thing{}
	for n := range node.MaxIDs + 1 {
		many[thing(n)] = Thing{}
	}
	if _, err := stored.things.SetMany(t.Context(), many); !errors.Is(err, node.ErrTooLarge) {
		t.Errorf("too many values: %v", err)
	}
	// The statement fails: nothing is written, and nothing cached.
	s.exec(`alter table things add check (revision < 1000)`)
	_, err = stored.things.SetMany(t.Context(), map[string]Thing{
		"thing-1": {ID: "thing-1", Name: "new", Revision: 2}, "thing-2": {ID: "thing-2", Name: "new", Revision: 1000},
	})
	if err == nil || !strings.Contains(err.Error(), "check") {
		t.Errorf("a put that is refused: %v", err)
	}
	if e := s.get(stored, "thing-1", node.Within(0)); e.Value.Name != "name 1" {
		t.Errorf("after a put that was refused: %+v", e)
	}
	// Postgres is written, and cannot be read: the write stands.
	for _, again := range []bool{false, true} {
		broken, err := node.NewCache(stored.Node, node.CacheConfig[Thing]{
			Namespace: "thing", View: fmt.Sprintf("broken-%v", again), Store: thingStore(),
			Source: node.Func(func(context.Context, []string) (map[string]Thing, error) {
				if again {
					panic("a source")
				}
				return nil, errors.New("a source that fails")
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		e, err := broken.Put(t.Context(), "thing-3", Thing{ID: "thing-3", Name: "written", Revision: 5})
		if err != nil || e.Tier != 0 || e.Fresh || e.Value.Name != "written" || e.Token.IsZero() {
			t.Errorf("a put that cannot be read: %+v, %v", e, err)
		}
		if e := s.get(stored, "thing-3", node.AtLeast(e.Token)); e.Value.Name != "written" {
			t.Errorf("read through another view: %+v", e)
		}
	}
}
