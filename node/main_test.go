package node_test

import (
	"context"
	"fmt"
	"log/slog"
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

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

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

// config is that of a node on all servers.
func (s *site) config() node.Config {
	stack := stacktest.Stack()
	return node.Config{
		App:      s.app,
		Postgres: node.PostgresConfig{DSN: s.dsn},
		Redis:    node.RedisConfig{Addrs: stack.Redis.Addrs()},
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
	replicas := make([]*replica, n)
	for i := range replicas {
		replicas[i] = s.open(nil)
	}
	for _, r := range replicas {
		s.ready(r)
		s.until("L2 is connected", func() bool {
			for _, shard := range r.Stats().Shards {
				if shard.State != "closed" {
					return false
				}
			}
			return true
		})
		s.until("members see each other", func() bool { return len(r.Stats().Members) == n })
	}
	return replicas
}

func (s *site) ready(r *replica) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// until waits for a condition that servers or other goroutines bring about.
func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
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
