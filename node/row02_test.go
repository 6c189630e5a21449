package node_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// Row 2: each namespace's own settings hold, over those of the node and under those of a call, while the table of the
// source is locked; other reads go on. What is wrong is told all at once, when the cache is made.
func TestRow02Settings(t *testing.T) {
	s := newSite(t)
	const soft, hard, ttl = 50 * time.Millisecond, 400 * time.Millisecond, 500 * time.Millisecond
	r := s.openAll(2, func(c *node.Config, _ *node.CacheConfig[Thing]) { c.MaxStale = time.Minute })
	cacheOf := func(view string, change func(c *node.CacheConfig[Thing])) *node.Cache[Thing] {
		c := node.CacheConfig[Thing]{Namespace: "thing", View: view, Source: node.SQL[Thing](thingQuery), TTL: ttl, NegativeTTL: ttl}
		change(&c)
		cache, err := node.NewCache(r[0].Node, c)
		if err != nil {
			t.Fatal(err)
		}
		return cache
	}
	safe := cacheOf("safe", func(c *node.CacheConfig[Thing]) { c.SoftTimeout, c.LoadTimeout = soft, patient })
	strict := cacheOf("strict", func(c *node.CacheConfig[Thing]) { c.MaxStale, c.LoadTimeout = -1, hard })
	lax := cacheOf("lax", func(c *node.CacheConfig[Thing]) { c.TTL, c.Budget = time.Hour, time.Minute })
	caches := []*node.Cache[Thing]{safe, strict, lax}
	ctx := t.Context()
	for _, c := range caches {
		if _, err := c.Get(ctx, "thing-101"); err != nil {
			t.Fatal(err)
		}
	}
	s.until("those of a short TTL have expired", func() bool {
		left, _, err := safe.TTL(ctx, "thing-101")
		other, _, failed := strict.TTL(ctx, "thing-101")
		return err == nil && failed == nil && left == 0 && other == 0
	})
	if left, tier, err := lax.TTL(ctx, "thing-101"); left < 50*time.Minute || tier != node.TierL1 || err != nil {
		t.Errorf("an hour's TTL: %v in %v, %v", left, tier, err)
	}

	f := s.traffic(r, trafficConfig{readers: 1, budgets: []time.Duration{time.Second}})
	f.progress() // now all that it reads is in L1
	lock, err := s.db.BeginTxx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback()
	if _, err := lock.ExecContext(ctx, `lock table things in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	read := func(c *node.Cache[Thing], options ...node.ReadOption) (node.Entry[Thing], time.Duration, error) {
		began := time.Now()
		e, err := c.Lookup(ctx, "thing-101", options...)
		return e, time.Since(began), err
	}
	if e, took, err := read(safe); err != nil || e.Fresh || e.Value.Name != "name 101" || took < soft || took > patient/2 {
		t.Errorf("fail-safe: %+v, %v after %v", e, err, took)
	}
	if e, took, err := read(strict); !errors.Is(err, context.DeadlineExceeded) || took < hard || took > patient/2 {
		t.Errorf("strict: %+v, %v after %v", e, err, took)
	}
	if e, took, err := read(strict, node.StaleWithin(time.Minute), node.SoftTimeout(soft)); err != nil || e.Fresh || took > patient/2 {
		t.Errorf("strict, but for this call: %+v, %v after %v", e, err, took)
	}
	short, cancel := context.WithTimeout(ctx, 5*soft)
	defer cancel()
	if e, err := safe.Lookup(short, "thing-101", node.StaleWithin(0)); err == nil {
		t.Errorf("fail-safe, but not for this call: %+v", e)
	}
	if e, _, err := read(lax, node.Within(0)); err != nil || !e.Fresh || e.Tier != node.TierL1 {
		t.Errorf("a poll needs no lock: %+v, %v", e, err)
	}
	f.progress()
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.until("the late load has filled the cache", func() bool {
		left, _, err := safe.TTL(ctx, "thing-101")
		return err == nil && left > 0
	})
	f.stop()
	f.noneFailed()
	for _, n := range r[0].Stats().Namespaces {
		if n.View == "safe" && (n.SoftTimeouts != 1 || n.LoadErrors != 0 || n.Stale != 1) || n.View == "strict" && n.LoadErrors == 0 {
			t.Errorf("counted: %+v", n)
		}
	}
	s.settingsAreValidated(r[0].Node)
}

// Row 2, what operators say of caches: it holds over the code's, that of a view over that of its namespace, on caches of
// entities and of queries; the rest stays as the code says. What is wrong with it is told when the node opens.
func TestRow02Operators(t *testing.T) {
	s := newSite(t)
	log := &logBuffer{}
	peers := false
	r := s.open(func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		c.Caches = map[string]node.CacheSettings{
			"thing":         {TTL: 20 * time.Minute, MaxEntries: 16, Budget: time.Minute, MaxStale: -1, WarmUp: node.WarmUpSettings{Peers: &peers}},
			"thing/names":   {TTL: 10 * time.Minute, Refresh: &node.Refresh{}, Compress: &node.Compression{Algorithm: node.Zstd}},
			"things/detail": {TTL: time.Hour},
		}
		c.MaxStale = time.Minute
		cache.TTL, cache.NegativeTTL, cache.MaxEntries = time.Hour, 40*time.Minute, 1000
		cache.WarmUp = node.WarmUp{Peers: true, Query: `select id from things order by id`, Limit: 200}
	})
	names, err := node.NewQueryCache(r.Node, node.QueryConfig[[]string]{
		Namespace: "thing", View: "names", TTL: time.Hour, Query: func(cluster.Params) (string, []any, error) {
			return `select jsonb_agg(name order by id) from things`, nil, nil
		},
		WarmUp: node.QueryWarmUp{Peers: true, Limit: 10}, // which operators turn off
	})
	if err != nil {
		t.Fatal(err)
	}
	s.ready(r)
	if warm := r.of().WarmUps; len(warm) != 1 || warm[0].Source != "query" || warm[0].IDs != 16 {
		t.Errorf("the warm-ups are %+v, want one of 16 ids by the query", warm)
	}
	for n := range 200 {
		s.get(r, thing(n+1))
	}
	if entries := r.of().L1Entries; entries == 0 || entries > 16 {
		t.Errorf("L1 has %d entries, want up to 16", entries)
	}
	within := func(what string, left time.Duration, tier node.Tier, err error, ttl time.Duration) {
		t.Helper()
		if err != nil || tier == 0 || left < ttl*8/10 || left > ttl*12/10 {
			t.Errorf("%s is kept for %v by %v, %v; want about %v", what, left, tier, err, ttl)
		}
	}
	ctx := t.Context()
	left, tier, err := r.things.TTL(ctx, thing(200))
	within("an entity", left, tier, err, 20*time.Minute)
	if _, err := r.things.Get(ctx, "none"); !errors.Is(err, node.ErrNotFound) {
		t.Fatal(err)
	}
	left, tier, err = r.things.TTL(ctx, "none")
	within("what does not exist, as the code says,", left, tier, err, 40*time.Minute)
	if all, err := names.Get(ctx, nil); err != nil || len(all) != 200 {
		t.Fatalf("%d names, %v", len(all), err)
	}
	left, tier, err = names.TTL(ctx, nil)
	within("the query", left, tier, err, 10*time.Minute)
	if !strings.Contains(log.String(), "things/detail") || strings.Contains(log.String(), "thing/names") {
		t.Errorf("the log does not warn of the name that no cache has, and of no other:\n%s", log)
	}

	c := s.config()
	c.Caches = map[string]node.CacheSettings{
		"Thing": {}, "a/b/c": {}, "thing": {TTL: time.Millisecond, Budget: time.Millisecond, Refresh: &node.Refresh{Ahead: 2}, WarmUp: node.WarmUpSettings{Every: 1}},
	}
	_, err = node.Open(ctx, c)
	for _, want := range []string{"Config.Caches.Thing:", "Config.Caches.a/b/c:", "Config.Caches.thing: tiers: TTL", "thing: Budget", "Refresh.Ahead", "WarmUp.Every"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
}

// settingsAreValidated makes caches of wrong settings.
func (s *site) settingsAreValidated(n *node.Node) {
	s.t.Helper()
	for _, c := range []struct {
		what   string
		err    error
		fields []string
	}{
		{"cache", second(node.NewCache(n, node.CacheConfig[Thing]{
			Namespace: "Thing!", View: "a view", TTL: time.Millisecond, NegativeTTL: -1, Budget: 48 * time.Hour, MaxStale: 48 * time.Hour,
			SoftTimeout: time.Hour, LoadTimeout: time.Hour, RetryAfter: 2 * time.Hour, Refresh: node.Refresh{Ahead: 1.5, Beta: math.NaN()},
			MaxEntries: -1, MaxBytes: -1,
		})), []string{
			"Thing!", "a view", "CacheConfig.Source", "TTL", "NegativeTTL", "Budget", "MaxStale", "SoftTimeout", "LoadTimeout", "RetryAfter",
			"Refresh.Ahead", "Refresh.Beta", "MaxEntries", "MaxBytes",
		}},
		{
			"query cache", second(node.NewQueryCache(n, node.QueryConfig[Thing]{Namespace: "thing", View: "q", Budget: time.Millisecond, TTL: -1})),
			[]string{"QueryConfig.Query", "Budget", "PollInterval", "TTL"},
		},
	} {
		if c.err == nil {
			s.t.Errorf("%s: made", c.what)
			continue
		}
		for _, field := range c.fields {
			if !strings.Contains(c.err.Error(), field) {
				s.t.Errorf("%s: the error does not name %s:\n%v", c.what, field, c.err)
			}
		}
	}
	if _, err := node.NewQueryCache(n, node.QueryConfig[Thing]{
		Namespace: "thing", View: "q", Query: func(cluster.Params) (string, []any, error) { return `select null`, nil, nil },
		TTL: time.Minute, NegativeTTL: time.Second, Budget: 2 * time.Second, MaxStale: -1, SoftTimeout: time.Second, LoadTimeout: time.Second,
		RetryAfter: time.Second, Refresh: node.Refresh{Ahead: 0.9, Beta: 1},
	}); err != nil {
		s.t.Error(err)
	}
}

// second is the error of a call.
func second[T any](_ T, err error) error { return err }
