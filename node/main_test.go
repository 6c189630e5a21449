package node_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		fmt.Fprintln(os.Stderr, "the child lives on:", child(mode))
		os.Exit(1)
	}
	stacktest.Main(m, devstack.Options{})
}

// patient is how long replicas wait for servers and for each other on a machine that may be very busy.
const patient = 20 * time.Second

// apps numbers the applications, so that tests share the servers but nothing on them.
var apps atomic.Int64

// site is one test's own application on the shared servers: a database with a watched table of
// things, and keys and subjects of its own.
type site struct {
	t   *testing.T
	app string
	dsn string
	db  *sqlx.DB // as another service would write
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, app: fmt.Sprintf("t%d", apps.Add(1))}
	var err error
	if s.dsn, err = stacktest.Stack().Postgres.CreateDatabase(t.Context(), "node_"+s.app); err != nil {
		t.Fatal(err)
	}
	if s.db, err = coherence.OpenPool(coherence.PoolConfig{DSN: s.dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.db.Close() })
	if err := coherence.Migrate(t.Context(), s.db.DB); err != nil {
		t.Fatal(err)
	}
	s.exec(`create table things (id text primary key, name text not null, kind text, revision bigint not null default 1)`)
	s.exec(`insert into things (id, name, kind) select 'thing-' || n, 'name ' || n, 'kind-' || n % 10 from generate_series(1, 200) n`)
	s.exec(`select freshet.watch('things', namespace => 'thing', tags => array['kind:{kind}'])`)
	return s
}

func (s *site) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.db.ExecContext(s.t.Context(), query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

// config is that of a node on all servers, with time-outs that a machine meets on which other tests run:
// a test that is about one sets it.
func (s *site) config() node.Config {
	stack := stacktest.Stack()
	return node.Config{
		App:      s.app,
		Postgres: node.PostgresConfig{DSN: s.dsn, PollTimeout: patient, LoadTimeout: patient},
		Redis:    node.RedisConfig{Addrs: stack.Redis.Addrs(), Timeout: patient},
		NATS:     node.NATSConfig{URLs: []string{stack.NATS.URL()}},
		Logger:   slog.New(slog.NewTextHandler(testWriter{s.t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// testWriter writes into a test's log as long as the test runs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// Thing is what the tests cache.
type Thing struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	Revision int64  `json:"revision"`
}

const thingQuery = `select id, name, kind, revision from things where id = any($1)`

// replica is a node with its cache of things.
type replica struct {
	*node.Node
	things *node.Cache[Thing]
}

// open starts a node and waits until it is ready.
func (s *site) open(change func(*node.Config, *node.CacheConfig[Thing])) *replica {
	s.t.Helper()
	c := s.config()
	cache := node.CacheConfig[Thing]{
		Namespace: "thing", Source: node.SQL[Thing](thingQuery),
		Tags: func(_ string, v Thing) []string { return []string{"kind:" + v.Kind} },
	}
	if change != nil {
		change(&c, &cache)
	}
	n, err := node.Open(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			s.t.Errorf("close: %v", err)
		}
	})
	things, err := node.NewCache(n, cache)
	if err != nil {
		s.t.Fatal(err)
	}
	return &replica{n, things}
}

func (s *site) openReady(n int) []*replica {
	s.t.Helper()
	return s.openAll(n, nil)
}

// openAll starts nodes and waits until they are ready, connected, and see each other.
func (s *site) openAll(n int, change func(*node.Config, *node.CacheConfig[Thing])) []*replica {
	s.t.Helper()
	replicas := make([]*replica, n)
	for i := range replicas {
		replicas[i] = s.open(change)
	}
	for _, r := range replicas {
		s.ready(r)
		s.until("L2 is connected", func() bool { return !slices.Contains(r.shardStates(), "open") })
		s.until("members see each other", func() bool { return len(r.Stats().Members) == n })
	}
	return replicas
}

// shardStates are the breakers' states in the order of the slots.
func (r *replica) shardStates() []string {
	var states []string
	for _, shard := range r.Stats().Shards {
		states = append(states, shard.State)
	}
	return states
}

// of are the counts of the replica's cache of things.
func (r *replica) of() node.NamespaceStats {
	for _, s := range r.Stats().Namespaces {
		if s.Namespace == "thing" && s.View == "detail" {
			return s
		}
	}
	return node.NamespaceStats{}
}

// sum adds a count over replicas.
func sum(replicas []*replica, count func(node.NamespaceStats) uint64) (n uint64) {
	for _, r := range replicas {
		n += count(r.of())
	}
	return n
}

func loads(s node.NamespaceStats) uint64     { return s.Loads }
func l2Hits(s node.NamespaceStats) uint64    { return s.L2Hits }
func ownerHits(s node.NamespaceStats) uint64 { return s.OwnerHits }

// thing names the n-th thing; there are 200.
func thing(n int) string { return fmt.Sprintf("thing-%d", n) }

func (s *site) ready(r *replica) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// until waits for a condition that servers or other goroutines bring about.
func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			s.t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func (s *site) get(r *replica, id string, options ...node.ReadOption) node.Entry[Thing] {
	s.t.Helper()
	e, err := r.things.Lookup(s.t.Context(), id, options...)
	if err != nil {
		s.t.Fatalf("lookup %s: %v", id, err)
	}
	return e
}

// gauge is a number that several goroutines change.
type gauge struct{ n atomic.Int64 }

func (g *gauge) add(d int64) int64 { return g.n.Add(d) }
func (g *gauge) load() int64       { return g.n.Load() }

// raise makes it at least v.
func (g *gauge) raise(v int64) {
	for {
		if old := g.n.Load(); old >= v || g.n.CompareAndSwap(old, v) {
			return
		}
	}
}
