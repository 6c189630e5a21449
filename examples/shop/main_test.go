package shop_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

var databases atomic.Int64

// emptyDatabase is a new database with the tables of Freshet and of the shop, and nothing in them.
func emptyDatabase(t *testing.T) (dsn string, db *sqlx.DB) {
	t.Helper()
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), fmt.Sprintf("shop_%d", databases.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	db, err = sqlx.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := coherence.Migrate(t.Context(), db.DB); err != nil {
		t.Fatal(err)
	}
	if err := shop.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return dsn, db
}

// A catalogue is a seeded database with replicas on it. Its db is what psql would be: a writer that knows nothing
// of Freshet.
type catalogue struct {
	app, dsn string
	db       *sqlx.DB
}

func newCatalogue(t *testing.T, c shop.SeedConfig) *catalogue {
	t.Helper()
	dsn, db := emptyDatabase(t)
	if err := shop.Seed(t.Context(), db, c); err != nil {
		t.Fatal(err)
	}
	return &catalogue{app: fmt.Sprintf("shop%d", databases.Load()), dsn: dsn, db: db}
}

// A replica serves the catalogue over HTTP.
type replica struct {
	*httptest.Server
	node *node.Node
}

func (c *catalogue) replica(t *testing.T, change func(*node.Config)) *replica {
	t.Helper()
	config := node.Config{
		App:      c.app,
		Postgres: node.PostgresConfig{DSN: c.dsn},
		Redis:    node.RedisConfig{Addrs: stacktest.Stack().Redis.Addrs()},
		NATS:     node.NATSConfig{URLs: []string{stacktest.Stack().NATS.URL()}},
		Logger:   slog.New(slog.DiscardHandler),
		// JetStream sets that much aside for each application's stream, and a test has one of its own.
		WriteBehind: node.WriteBehind{MaxBytes: 1 << 20},
	}
	if change != nil {
		change(&config)
	}
	n, err := node.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	api, err := shop.New(n, shop.Options{Logger: slog.New(slog.DiscardHandler), WriteBehind: len(config.NATS.URLs) > 0})
	if err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := n.Ready(ready); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(api.Handler())
	t.Cleanup(server.Close)
	return &replica{Server: server, node: n}
}

func (c *catalogue) exec(t *testing.T, statement string, arguments ...any) {
	t.Helper()
	if _, err := c.db.ExecContext(t.Context(), statement, arguments...); err != nil {
		t.Fatal(err)
	}
}

// An answer is all of a response.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// problem is the answer's body as a problem.
type problem struct {
	Type   string
	Title  string
	Status int
	Detail string
	Errors []struct{ Parameter, Header, Pointer, Detail string }
}

// do sends a request and holds the answer against openapi.yaml. Headers are pairs of name and value; a body that
// is not empty is JSON unless they say otherwise.
func (r *replica) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, r.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if request.Header.Get(headers[i]) != "" && headers[i] != "Content-Type" {
			request.Header.Add(headers[i], headers[i+1])
		} else {
			request.Header.Set(headers[i], headers[i+1])
		}
	}
	response, err := r.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: response.StatusCode, header: response.Header, body: text}
	conforms(t, request, body, a)
	return a
}

// get is do for a read that must succeed, decoded.
func get[V any](t *testing.T, r *replica, path string, headers ...string) (V, answer) {
	t.Helper()
	a := r.do(t, http.MethodGet, path, "", headers...)
	if a.status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, a.status, a.body)
	}
	return decode[V](t, a), a
}

func decode[V any](t *testing.T, a answer) (v V) {
	t.Helper()
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return v
}

// wantProblem checks the status and the type of a problem.
func wantProblem(t *testing.T, a answer, status int, name string) problem {
	t.Helper()
	p := decode[problem](t, a)
	if a.status != status || p.Status != status || !strings.HasSuffix(p.Type, "#"+name) || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("got %d %s %s, want %d %s", a.status, a.header.Get("Content-Type"), a.body, status, name)
	}
	if status == http.StatusServiceUnavailable && a.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	return p
}

// eventually waits until the check passes, which it must within ten seconds.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited 10 s: %s", what)
		case <-tick.C:
		}
	}
}
