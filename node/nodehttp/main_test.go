package nodehttp_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

// patient is how long replicas wait for servers on a machine that may be very busy.
const patient = 20 * time.Second

// apps numbers the applications, so that tests share the servers but nothing on them.
var apps atomic.Int64

// site is one test's own application on the shared servers: a database with a watched table of things.
type site struct {
	t   *testing.T
	app string
	dsn string
	db  *sqlx.DB // as another service would write
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, app: fmt.Sprintf("h%d", apps.Add(1))}
	var err error
	if s.dsn, err = stacktest.Stack().Postgres.CreateDatabase(t.Context(), "nodehttp_"+s.app); err != nil {
		t.Fatal(err)
	}
	if s.db, err = coherence.OpenPool(coherence.PoolConfig{DSN: s.dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.db.Close() })
	if err := coherence.Migrate(t.Context(), s.db.DB); err != nil {
		t.Fatal(err)
	}
	s.exec(`create table things (id text primary key, name text not null)`)
	s.exec(`insert into things select 'thing-' || n, 'name ' || n from generate_series(1, 500) n`)
	s.exec(`select freshet.watch('things', namespace => 'thing')`)
	return s
}

func (s *site) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.db.ExecContext(s.t.Context(), query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
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

// Thing is what the tests cache.
type Thing struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func thing(n int) string { return fmt.Sprintf("thing-%d", n) }

// replica is a node with its cache of things, and all that it tells of itself.
type replica struct {
	*node.Node
	things   *node.Cache[Thing]
	registry *prometheus.Registry
	spans    *tracetest.InMemoryExporter
	tracer   *sdktrace.TracerProvider
	log      *lines
	broken   bool // its connections to Postgres were, so closing them may fail
}

// lines is a log that is kept.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// open starts a replica with everything on, and waits until it is ready and sees so many members.
func (s *site) open(members int, change func(*node.Config, *node.CacheConfig[Thing])) *replica {
	s.t.Helper()
	r := &replica{registry: prometheus.NewRegistry(), spans: tracetest.NewInMemoryExporter(), log: &lines{}}
	r.tracer = sdktrace.NewTracerProvider(sdktrace.WithSyncer(r.spans))
	stack := stacktest.Stack()
	c := node.Config{
		App:      s.app,
		Postgres: node.PostgresConfig{DSN: s.dsn, PollTimeout: patient, LoadTimeout: patient},
		Redis:    node.RedisConfig{Addrs: stack.Redis.Addrs(), Timeout: patient},
		NATS:     node.NATSConfig{URLs: []string{stack.NATS.URL()}},
		Logger:   slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registry: r.registry, Tracer: r.tracer,
	}
	cache := node.CacheConfig[Thing]{
		Namespace: "thing", Source: node.SQL[Thing](`select id, name from things where id = any($1)`),
		Store: node.SQLStore[Thing](`insert into things (id, name) select v.id, v.name from jsonb_to_recordset($2::jsonb) v (id text, name text)
 where v.id = any($1::text[]) on conflict (id) do update set name = excluded.name`, `delete from things where id = any($1::text[])`),
	}
	if change != nil {
		change(&c, &cache)
	}
	var err error
	if r.Node, err = node.Open(s.t.Context(), c); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := r.Close(); err != nil && !r.broken {
			s.t.Errorf("close: %v", err)
		}
	})
	if r.things, err = node.NewCache(r.Node, cache); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
	s.until("L2 is connected and members are seen", func() bool {
		stats := r.Stats()
		return len(stats.Members) == members && (len(c.Redis.Addrs) == 0 || len(stats.Shards) == 3 &&
			!slices.ContainsFunc(stats.Shards, func(shard node.ShardStats) bool { return shard.State == "open" }))
	})
	return r
}

// get reads a thing.
func (s *site) get(ctx context.Context, r *replica, id string, options ...node.ReadOption) node.Entry[Thing] {
	s.t.Helper()
	e, err := r.things.Lookup(ctx, id, options...)
	if err != nil {
		s.t.Fatalf("lookup of %s: %v", id, err)
	}
	return e
}

// metrics are the registry's: name{labels in their order} -> value, or count of a histogram.
func metrics(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			all[f.GetName()+labelsOf(m)] = valueOf(m)
		}
	}
	return all
}

func labelsOf(m *dto.Metric) string {
	var labels []string
	for _, l := range m.GetLabel() {
		labels = append(labels, l.GetName()+"="+l.GetValue())
	}
	return "{" + strings.Join(labels, ",") + "}"
}

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.GetCounter().GetValue()
	case m.Histogram != nil:
		return float64(m.GetHistogram().GetSampleCount())
	}
	return m.GetGauge().GetValue()
}
