package nodetest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodetest"
)

type product struct {
	Name  string
	Price int
}

// shop is a cluster with a table of products and a cache of them on each node, in virtual time.
type shop struct {
	*nodetest.Cluster
	t        *testing.T
	products *nodetest.Table[product]
	caches   []*node.Cache[product]
}

func inShop(t *testing.T, c nodetest.Config, test func(s *shop)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shop{Cluster: nodetest.New(t, c), t: t}
		s.products = nodetest.NewTaggedTable(s.Cluster, "product", func(_ string, p product) []string { return []string{"name:" + p.Name} })
		for _, n := range s.Nodes() {
			s.caches = append(s.caches, s.cache(n))
		}
		test(s)
	})
}

func (s *shop) cache(n *node.Node) *node.Cache[product] {
	s.t.Helper()
	cache, err := node.NewCache(n, node.CacheConfig[product]{
		Namespace: "product", Source: s.products.Source(), Store: s.products.Store(),
		Tags: func(_ string, p product) []string { return []string{"name:" + p.Name} },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return cache
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// answers checks a node's answer to a plain read: the price, 0 = not found, and that it is FRESH.
func (s *shop) answers(i int, id string, price int, options ...node.ReadOption) node.Entry[product] {
	s.t.Helper()
	e, err := s.caches[i].Lookup(s.t.Context(), id, options...)
	if price == 0 && errors.Is(err, node.ErrNotFound) {
		err = nil
	}
	if err != nil || e.Value.Price != price || !e.Fresh {
		s.t.Errorf("node %d answers %s with %+v, %v; want the price %d, FRESH", i, id, e, err, price)
	}
	return e
}

func (s *shop) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// uncertain checks that a node cannot answer.
func (s *shop) uncertain(i int, id string, options ...node.ReadOption) {
	s.t.Helper()
	if e, err := s.caches[i].Lookup(s.t.Context(), id, options...); !errors.Is(err, node.ErrUncertain) {
		s.t.Errorf("node %d answers %s with %+v, %v; want ErrUncertain", i, id, e, err)
	}
}

func TestOpensInMilliseconds(t *testing.T) {
	least := time.Hour
	for range 10 {
		began := time.Now()
		c, err := nodetest.Open(nodetest.Config{})
		least = min(least, time.Since(began))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if least > 100*time.Millisecond {
		t.Errorf("three nodes take %v to open", least)
	}
	t.Logf("three nodes open in %v", least)
}

func TestConfigIsChecked(t *testing.T) {
	for want, c := range map[string]nodetest.Config{
		"Nodes":        {Nodes: nodetest.MaxNodes + 1},
		"Node.ID":      {Node: node.Config{ID: "mine"}},
		"Postgres.DSN": {Node: node.Config{Postgres: node.PostgresConfig{DSN: "postgres://localhost/x"}}},
		"Redis.Addrs":  {Node: node.Config{Redis: node.RedisConfig{Addrs: []string{"localhost:6379"}}}},
		"NATS.URLs":    {Node: node.Config{NATS: node.NATSConfig{URLs: []string{"nats://localhost"}}}},
		"App":          {Node: node.Config{App: "No App"}},
		"Registry":     {Node: node.Config{Registry: prometheus.NewRegistry()}},
	} {
		if _, err := nodetest.Open(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestReadsAndTiers(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		s.answers(0, "42", 0)
		s.products.Set("42", product{"lamp", 100})
		pass(time.Second)
		if e := s.answers(0, "42", 100); e.Tier != node.TierSource {
			s.t.Errorf("from %v", e.Tier)
		}
		if e := s.answers(0, "42", 100); e.Tier != node.TierL1 {
			s.t.Errorf("from %v", e.Tier)
		}
		if e := s.answers(1, "42", 100); e.Tier != node.TierL2 {
			s.t.Errorf("from %v", e.Tier)
		}
		s.products.Delete("42")
		s.answers(1, "42", 0, node.Within(0))
		if many, err := s.caches[2].GetMany(s.t.Context(), []string{"42", "43"}); err != nil || len(many) != 0 {
			s.t.Errorf("%v, %v", many, err)
		}
	})
}

func TestFuncSource(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		cache, err := node.NewCache(s.Node(0), node.CacheConfig[product]{
			Namespace: "product", View: "func", Source: node.Func(func(_ context.Context, ids []string) (map[string]product, error) {
				all := map[string]product{}
				for _, id := range ids {
					if p, ok := s.products.Get(id); ok {
						all[id] = p
					}
				}
				return all, nil
			}),
		})
		s.must(err)
		for price := 1; price < 4; price++ {
			s.products.Set("42", product{"lamp", price})
			pass(time.Second)
			if e, err := cache.Lookup(s.t.Context(), "42"); err != nil || e.Value.Price != price || !e.Fresh {
				s.t.Errorf("%+v, %v", e, err)
			}
		}
	})
}

// A list of products by name, with the tag that the table's changes have.
func TestQueryCache(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx := s.t.Context()
		lists, err := node.NewQueryCache(s.Node(0), node.QueryConfig[[]string]{
			Namespace: "product", View: "by-name",
			Func: func(_ context.Context, p cluster.Params) ([]string, bool, error) {
				var ids []string
				for id, product := range s.products.Rows() {
					if product.Name == p["name"] {
						ids = append(ids, id)
					}
				}
				slices.Sort(ids)
				return ids, ids != nil, nil
			},
			Tags: func(p cluster.Params, _ []string) []string { return []string{"name:" + p["name"]} },
		})
		s.must(err)
		answers := func(want string, tier node.Tier) {
			s.t.Helper()
			pass(time.Second)
			e, err := lists.Lookup(ctx, cluster.Params{"name": "lamp"})
			if want == "" && errors.Is(err, node.ErrNotFound) {
				err = nil
			}
			if err != nil || !e.Fresh || e.Tier != tier || strings.Join(e.Value, " ") != want {
				s.t.Errorf("%+v, %v; want %q from %v", e, err, want, tier)
			}
		}
		answers("", node.TierSource)
		s.products.Set("42", product{"lamp", 100})
		answers("42", node.TierSource)
		s.products.Set("43", product{"table", 100})
		answers("42", node.TierL1)
		s.products.Set("43", product{"lamp", 100})
		answers("42 43", node.TierSource)
		s.products.Set("42", product{"table", 100})
		answers("43", node.TierSource)
		_, none := node.NewQueryCache(s.Node(1), node.QueryConfig[int]{Namespace: "product", View: "none"})
		_, both := node.NewQueryCache(s.Node(1), node.QueryConfig[int]{
			Namespace: "product", View: "both", Func: func(context.Context, cluster.Params) (int, bool, error) { return 0, false, nil },
			Query: func(cluster.Params) (string, []any, error) { return "", nil, nil },
		})
		if none == nil || both == nil || !strings.Contains(both.Error(), "both set") {
			s.t.Errorf("%v; %v", none, both)
		}
	})
}

// What psql would do.
func TestInvalidate(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		s.products.Set("42", product{"lamp", 100})
		pass(time.Second)
		tier := func(what string, want node.Tier) {
			s.t.Helper()
			pass(time.Second)
			if e := s.answers(0, "42", 100); e.Tier != want {
				s.t.Errorf("%s: from %v, want %v", what, e.Tier, want)
			}
		}
		s.answers(0, "42", 100)
		tier("nothing has changed", node.TierL1)
		s.Invalidate("product", "42")
		tier("the entity", node.TierSource)
		s.must(s.Commit(func(tx *nodetest.Tx) error { return tx.InvalidateView("product", "42", "detail") }))
		tier("its view", node.TierSource)
		s.InvalidateTag("name:lamp")
		tier("the tag", node.TierSource)
		s.InvalidateNamespace("product")
		tier("the namespace", node.TierSource)
		s.products.Set("1", product{"lamp", 1})
		tier("another row with the tag", node.TierSource)
		s.products.Delete("1")
		tier("that row as it was", node.TierSource)
		s.Invalidate("product", "1")
		tier("another entity", node.TierL1)
	})
}

func TestOutOfOrderCommits(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		s.products.Set("1", product{"a", 1})
		s.products.Set("2", product{"b", 1})
		early := s.Begin()
		s.must(s.products.SetIn(early, "1", product{"a", 2}))
		if p, ok := s.products.GetIn(early, "1"); !ok || p.Price != 2 {
			s.t.Errorf("the transaction sees %+v", p)
		}
		s.must(s.Commit(func(tx *nodetest.Tx) error { return s.products.SetIn(tx, "2", product{"b", 2}) }))
		pass(time.Minute)
		s.answers(0, "1", 1)
		s.answers(0, "2", 2)
		s.must(early.Commit())
		s.answers(0, "1", 2, node.Within(0))
		pass(time.Second)
		s.answers(1, "1", 2)
		if err := early.Commit(); err == nil {
			s.t.Error("a transaction commits twice")
		}
		lost := s.Begin()
		s.must(s.products.DeleteIn(lost, "1"))
		lost.Rollback()
		pass(time.Second)
		s.answers(1, "1", 2)
	})
}

// Who changes a row that another transaction has changed waits for its end.
func TestRowLocks(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		first, second := s.Begin(), s.Begin()
		s.must(s.products.SetIn(first, "1", product{"a", 1}))
		var order []string
		var work sync.WaitGroup
		work.Go(func() {
			s.must(s.products.SetIn(second, "1", product{"a", 2}))
			order = append(order, "second")
			s.must(second.Commit())
		})
		pass(time.Second)
		order = append(order, "first")
		s.must(first.Commit())
		work.Wait()
		if s.answers(0, "1", 2, node.Within(0)); strings.Join(order, " ") != "first second" {
			s.t.Errorf("%v", order)
		}
		holder, other := s.Begin(), s.Begin()
		s.must(s.products.DeleteIn(holder, "1"))
		if err := s.products.DeleteIn(other, "1"); err == nil {
			s.t.Error("two transactions hold one row")
		}
	})
}

func TestWrite(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx := s.t.Context()
		s.products.Set("42", product{"lamp", 100})
		for i := range s.caches {
			s.answers(i, "42", 100, node.Within(0))
		}
		s.NATSFaults(conntest.Faults{Drop: 1})
		token, err := s.Node(0).Write(ctx, func(tx *node.Tx) error {
			if _, err := tx.ExecContext(ctx, `update products set price = 120`); err == nil || !strings.Contains(err.Error(), "no SQL") {
				s.t.Errorf("a statement: %v", err)
			}
			return s.products.SetIn(nodetest.TxOf(tx), "42", product{"lamp", 120})
		})
		s.must(err)
		s.answers(0, "42", 120)
		s.answers(1, "42", 120, node.AtLeast(token))
		pass(time.Second)
		s.answers(2, "42", 120)

		failed := errors.New("no")
		if _, err := s.Node(0).Write(ctx, func(tx *node.Tx) error {
			s.must(s.products.DeleteIn(nodetest.TxOf(tx), "42"))
			return failed
		}); !errors.Is(err, failed) {
			s.t.Errorf("%v", err)
		}
		s.answers(0, "42", 120, node.Within(0))

		if _, err := s.Node(0).Write(ctx, func(tx *node.Tx) error {
			s.must(s.products.DeleteIn(nodetest.TxOf(tx), "42"))
			return tx.Rollback()
		}); err == nil {
			s.t.Error("what was rolled back commits")
		}
		s.answers(0, "42", 120, node.Within(0))

		e, err := s.caches[1].Put(ctx, "42", product{"lamp", 130})
		if err != nil || e.Value.Price != 130 || !e.Fresh {
			s.t.Errorf("%+v, %v", e, err)
		}
		s.answers(2, "42", 130, node.AtLeast(e.Token))
		if _, err := s.caches[1].Delete(ctx, "42"); err != nil {
			s.t.Error(err)
		}
		s.answers(1, "42", 0)
		if _, err := s.Node(2).Invalidate(ctx, "product", []string{"42"}, node.View("detail")); err != nil {
			s.t.Error(err)
		}
		if _, err := s.Node(2).Invalidate(ctx, "product", []string{""}); err == nil {
			s.t.Error("an empty id is taken")
		}
		if _, err := s.Node(2).InvalidateNamespace(ctx, ""); err == nil {
			s.t.Error("an empty namespace is taken")
		}
	})
}

func TestStrategies(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx := s.t.Context()
		s.products.Set("42", product{"lamp", 100})
		tier := func(what string, want node.Tier) {
			s.t.Helper()
			pass(time.Second)
			if e := s.answers(0, "42", 100); e.Tier != want {
				s.t.Errorf("%s: from %v, want %v", what, e.Tier, want)
			}
		}
		s.answers(0, "42", 100, node.Within(0))
		tier("before", node.TierL1)
		if _, err := s.Node(1).Invalidate(ctx, "product", []string{"42"}, node.After(10*time.Minute)); err != nil {
			s.t.Error(err)
		}
		pass(9 * time.Minute)
		s.answers(0, "42", 100)
		tier("before its time", node.TierL1)
		before := s.caches[0]
		pass(2 * time.Minute)
		if e, err := before.Lookup(ctx, "42"); err != nil || e.Tier == node.TierL1 {
			s.t.Errorf("after its time: %+v, %v", e, err)
		}

		if _, err := s.Node(1).InvalidateTag(ctx, []string{"name:lamp"}, node.Batch("tonight")); err != nil {
			s.t.Error(err)
		}
		tier("in a batch", node.TierL1)
		batches, err := s.Node(2).Batches(ctx)
		if err != nil || len(batches) != 1 || batches[0].Name != "tonight" || batches[0].Entries != 1 || !batches[0].Due.IsZero() {
			s.t.Errorf("%+v, %v", batches, err)
		}
		if n, err := s.Node(2).RunBatch(ctx, "tonight"); n != 1 || err != nil {
			s.t.Errorf("%d, %v", n, err)
		}
		tier("run", node.TierSource)
		if _, err := s.Node(1).InvalidateNamespace(ctx, "product", node.Batch("never")); err != nil {
			s.t.Error(err)
		}
		if n, err := s.Node(2).DropBatch(ctx, "never"); n != 1 || err != nil {
			s.t.Errorf("%d, %v", n, err)
		}
		if n, err := s.Node(2).RunBatch(ctx, "never"); n != 0 || err != nil {
			s.t.Errorf("%d, %v", n, err)
		}

		s.answers(2, "42", 100)
		if _, err := s.Node(1).Invalidate(ctx, "product", []string{"42"}, node.WithGrace(10*time.Second)); err != nil {
			s.t.Error(err)
		}
		pass(time.Second)
		if e, err := s.caches[2].Lookup(ctx, "42"); err != nil || e.Fresh || e.Grace <= 0 {
			s.t.Errorf("in its grace: %+v, %v", e, err)
		}
	})
}

func TestGenerations(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx, n := s.t.Context(), s.Node(0)
		s.products.Set("42", product{"lamp", 100})
		s.answers(0, "42", 100, node.Within(0))
		why := node.GenerationChange{Why: "a test"}
		number, _, err := n.NextGeneration(ctx, "product", why)
		if err != nil || number != 2 || n.Generation("product") != (node.Generation{Global: 1, Namespace: 2}) {
			s.t.Errorf("%d, %v, %v", number, err, n.Generation("product"))
		}
		if e := s.answers(0, "42", 100); e.Tier != node.TierSource {
			s.t.Errorf("from %v", e.Tier)
		}
		pass(time.Second)
		if g := s.Node(2).Generation("product").Namespace; g != 2 {
			s.t.Errorf("node 2 is in generation %d", g)
		}
		if _, err := n.SetGeneration(ctx, "product", 7, node.GenerationChange{Why: "a test", Expect: 1}); !errors.Is(err, node.ErrConflict) {
			s.t.Errorf("%v", err)
		}
		if _, err := n.SetGeneration(ctx, "product", 7, node.GenerationChange{Why: "a test", Expect: 2, By: "me"}); err != nil {
			s.t.Error(err)
		}
		if number, _, err := n.RollbackGeneration(ctx, "product", 0, why); number != 2 || err != nil {
			s.t.Errorf("%d, %v", number, err)
		}
		if number, _, err := n.RollbackGeneration(ctx, "product", 1, why); number != 1 || err != nil {
			s.t.Errorf("%d, %v", number, err)
		}
		if _, _, err := n.RollbackGeneration(ctx, "product", 5, why); err == nil {
			s.t.Error("a generation that has never been comes back")
		}
		if number, _, err := n.NextGeneration(ctx, "product", why); number != 8 || err != nil {
			s.t.Errorf("%d, %v", number, err)
		}
		events, err := n.GenerationHistory(ctx, "product", 2)
		if err != nil || len(events) != 2 || events[0].Generation != 8 || events[0].Action != node.ActionIncrement || events[1].Previous != 2 {
			s.t.Errorf("%+v, %v", events, err)
		}
	})
}

// A read of several rows as of one moment sees each transaction whole, also when they change all the time.
func TestSnapshot(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		move := func(n int) {
			s.must(s.Commit(func(tx *nodetest.Tx) error {
				return errors.Join(s.products.SetIn(tx, "1", product{"a", n}), s.products.SetIn(tx, "2", product{"b", -n}))
			}))
		}
		move(1)
		changes := 0
		_, err := s.Node(0).Snapshot(s.t.Context(), func(at *node.Snapshot) error {
			a, err := s.caches[0].In(at, "1")
			if err != nil {
				return err
			}
			if changes++; changes < 10 {
				move(changes + 1)
				pass(time.Second)
			}
			b, err := s.caches[0].In(at, "2")
			if changes > 3 && a.Price+b.Price != 0 {
				s.t.Errorf("%+v beside %+v", a, b)
			}
			return err
		})
		if err != nil || changes != 4 {
			s.t.Errorf("%v after %d runs", err, changes)
		}
	})
}

// What there is not says so.
func TestNotThere(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx, n := s.t.Context(), s.Node(0)
		_, ofSQL := node.NewCache(n, node.CacheConfig[product]{Namespace: "sql", Source: node.SQL[product](`select id from x where id = any($1)`)})
		_, ofQuery := node.NewQueryCache(n, node.QueryConfig[int]{
			Namespace: "product", View: "list", Query: func(cluster.Params) (string, []any, error) { return "select 1", nil, nil },
		})
		_, ofDB := n.DB().ExecContext(ctx, "select 1")
		_, ofPuts := node.NewCache(n, node.CacheConfig[product]{
			Namespace: "later", Source: s.products.Source(), Store: s.products.Store(), WriteBehind: true,
		})
		_, ofClean := n.Clean(ctx, node.Clean{})
		_, ofLetters := n.DeadLetters(ctx, 0, 0)
		other := nodetest.New(s.t, nodetest.Config{Nodes: 1})
		_, ofOther := node.NewCache(other.Node(0), node.CacheConfig[product]{Namespace: "product", Source: s.products.Source()})
		for want, err := range map[string]error{
			"no SQL": ofSQL, "there is no SQL": ofQuery, "is no SQL": ofDB, "NATS": ofPuts, "nothing to clean": ofClean, "SQL on these": ofLetters,
			"not of the table's cluster": ofOther,
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				s.t.Errorf("want %q in %v", want, err)
			}
		}
		if err := s.products.SetIn(other.Begin(), "1", product{}); err == nil {
			s.t.Error("a transaction of another cluster changes a row")
		}
		if err := s.products.SetIn(nil, "1", product{}); err == nil {
			s.t.Error("no transaction changes a row")
		}
		if err := s.products.SetIn(s.Begin(), "", product{}); err == nil {
			s.t.Error("an empty id is taken")
		}
	})
}

func TestPostgresFaults(t *testing.T) {
	inShop(t, nodetest.Config{Node: node.Config{MaxStale: time.Hour}}, func(s *shop) {
		ctx := s.t.Context()
		s.products.Set("42", product{"lamp", 100})
		s.answers(0, "42", 100, node.Within(0))
		for name, begin := range map[string]func(int){"away": s.PostgresAway, "hangs": s.PostgresHangs} {
			begin(0)
			pass(2 * time.Second)
			s.uncertain(0, "42", node.StaleWithin(0))
			if e, err := s.caches[0].Lookup(ctx, "42"); err != nil || e.Fresh || e.Age < time.Second {
				s.t.Errorf("%s: %+v, %v; want it STALE", name, e, err)
			}
			short, cancel := context.WithTimeout(ctx, time.Second)
			if _, err := s.Node(0).Invalidate(short, "product", []string{"42"}); err == nil {
				s.t.Errorf("%s: a write succeeds", name)
			}
			cancel()
			s.answers(1, "42", 100)
			s.PostgresBack(0)
			pass(2 * time.Second)
			s.answers(0, "42", 100)
		}
		s.PostgresSlow(0, 400*time.Millisecond)
		began := time.Now()
		s.answers(0, "42", 100, node.Within(0))
		if took := time.Since(began); took < 400*time.Millisecond {
			s.t.Errorf("a poll takes %v", took)
		}
		s.Heal(0)
		pass(time.Second)
		s.answers(0, "42", 100)

		s.PostgresLosesCommits(0)
		if _, err := s.Node(0).Write(ctx, func(tx *node.Tx) error {
			return s.products.SetIn(nodetest.TxOf(tx), "42", product{"lamp", 120})
		}); err == nil || !strings.Contains(err.Error(), "not known") {
			s.t.Errorf("%v", err)
		}
		s.answers(0, "42", 120) // at once: it may have changed
		s.Heal(nodetest.All)

		if _, err := s.Node(0).Write(ctx, func(tx *node.Tx) error {
			s.must(s.products.SetIn(nodetest.TxOf(tx), "42", product{"lamp", 130}))
			s.PostgresAway(0)
			s.PostgresBack(0)
			return nil
		}); err == nil {
			s.t.Error("a transaction outlives its connection")
		}
		open := s.Begin()
		s.must(s.products.SetIn(open, "42", product{"lamp", 140}))
		s.CrashPostgres()
		if err := open.Commit(); err == nil {
			s.t.Error("a transaction outlives its server")
		}
		pass(time.Second)
		if e := s.answers(0, "42", 120); e.Tier != node.TierSource {
			s.t.Errorf("after a crash from %v", e.Tier)
		}
	})
}

func TestRedisFaults(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		s.products.Set("42", product{"lamp", 100})
		pass(time.Second)
		s.answers(0, "42", 100)
		dump := s.DumpRedis()
		s.products.Set("42", product{"lamp", 120})
		pass(time.Second)
		s.RestoreRedis(dump, time.Hour)
		s.answers(1, "42", 120) // what Redis has is old
		for name, begin := range map[string]func(){
			"away": func() { s.RedisAway(nodetest.All) }, "fails": func() { s.RedisFails(nodetest.All) },
			"slow": func() { s.RedisSlow(nodetest.All, time.Second) }, "flushed": s.FlushRedis,
		} {
			begin()
			s.Invalidate("product", "42")
			pass(time.Second)
			if e := s.answers(2, "42", 120); e.Tier == node.TierL1 {
				s.t.Errorf("%s: from %v", name, e.Tier)
			}
			s.Heal(nodetest.All)
		}
	})
}

// With NATS away news comes by polling, at the latest when the budget is over; with it at once.
func TestNATSFaults(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx := s.t.Context()
		put := func(price int) {
			s.t.Helper()
			if _, err := s.caches[0].Put(ctx, "42", product{"lamp", price}); err != nil {
				s.t.Fatal(err)
			}
		}
		put(1)
		s.answers(1, "42", 1, node.Within(0))
		price := 1
		for name, fault := range map[string]func(){
			"away": func() { s.NATSAway(1) }, "mute": func() { s.NATSMute(1) },
			"dropped": func() { s.NATSFaults(conntest.Faults{Drop: 1}) }, "late": func() { s.NATSFaults(conntest.Faults{Delay: time.Hour}) },
		} {
			pass(time.Minute)
			s.answers(1, "42", price, node.Within(0))
			fault()
			if connected := s.Node(1).Stats().Connected; connected != (name != "away") {
				s.t.Errorf("%s: connected: %t", name, connected)
			}
			pass(10 * time.Millisecond)
			price++
			put(price)
			synctest.Wait()
			e, err := s.caches[1].Lookup(ctx, "42")
			if err != nil || !e.Fresh || e.Value.Price == price && e.Age > 0 {
				s.t.Errorf("%s: %+v, %v", name, e, err)
			}
			pass(time.Second)
			s.answers(1, "42", price)
			s.Heal(nodetest.All)
			pass(time.Minute)
			s.answers(1, "42", price)
			price++
			put(price)
			synctest.Wait()
			if s.answers(1, "42", price); s.t.Failed() {
				s.t.Fatalf("after %s", name)
			}
		}
	})
}

func TestPartition(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		s.products.Set("42", product{"lamp", 100})
		s.answers(0, "42", 100, node.Within(0))
		s.Partition(0)
		s.products.Set("42", product{"lamp", 120})
		pass(2 * time.Second)
		s.uncertain(0, "42")
		s.answers(1, "42", 120)
		s.Heal(0)
		pass(2 * time.Second)
		s.answers(0, "42", 120)
	})
}

func TestKillAndStart(t *testing.T) {
	inShop(t, nodetest.Config{}, func(s *shop) {
		ctx := s.t.Context()
		s.products.Set("42", product{"lamp", 100})
		s.answers(0, "42", 100, node.Within(0))
		var work sync.WaitGroup
		begun := make(chan struct{})
		work.Go(func() { // in the middle of a write
			_, err := s.Node(0).Write(ctx, func(tx *node.Tx) error {
				err := s.products.SetIn(nodetest.TxOf(tx), "42", product{"lamp", 110})
				close(begun)
				pass(time.Second)
				return err
			})
			if err == nil {
				s.t.Error("a killed node commits")
			}
		})
		<-begun
		s.Kill(0)
		work.Wait()
		if _, err := s.caches[0].Get(ctx, "42"); !errors.Is(err, node.ErrClosed) {
			s.t.Errorf("%v", err)
		}
		s.products.Set("42", product{"lamp", 120}) // whose row the killed one held
		for i := range 3 {
			old := s.Node(i)
			n := s.Start(i)
			if n == old || n != s.Node(i) || n.ID() != old.ID() {
				s.t.Errorf("the successor of %s is %s", old.ID(), n.ID())
			}
			s.must(n.Ready(ctx))
			s.caches[i] = s.cache(n)
			s.answers(i, "42", 120)
		}
		pass(10 * time.Second)
		if members := s.Node(0).Stats().Members; len(members) != 3 {
			s.t.Errorf("members are %+v", members)
		}
	})
}

func TestWithoutRedisAndNATS(t *testing.T) {
	inShop(t, nodetest.Config{Nodes: 2, WithoutRedis: true, WithoutNATS: true}, func(s *shop) {
		s.products.Set("42", product{"lamp", 100})
		s.Partition(0)
		s.Heal(0)
		pass(time.Second)
		s.answers(0, "42", 100)
		if e := s.answers(1, "42", 100); e.Tier != node.TierSource {
			s.t.Errorf("from %v", e.Tier)
		}
	})
}
