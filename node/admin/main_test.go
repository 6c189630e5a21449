package admin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

// patient is how long replicas wait for servers and for each other on a machine that may be very busy.
const patient = 20 * time.Second

// token is the admin token of the tests.
const token = "a-token-of-the-tests-which-is-long-enough"

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
	s := &site{t: t, app: fmt.Sprintf("admin%d", apps.Add(1))}
	var err error
	if s.dsn, err = stacktest.Stack().Postgres.CreateDatabase(t.Context(), s.app); err != nil {
		t.Fatal(err)
	}
	if s.db, err = coherence.OpenPool(coherence.PoolConfig{DSN: s.dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.db.Close() })
	if err := coherence.Migrate(t.Context(), s.db.DB); err != nil {
		t.Fatal(err)
	}
	s.exec(`create table things (id text primary key, name text not null, kind text)`)
	s.exec(`insert into things select 'thing-' || n, 'name ' || n, 'kind-' || n % 10 from generate_series(1, 200) n`)
	s.exec(`select freshet.watch('things', namespace => 'thing', tags => array['kind:{kind}'])`)
	return s
}

func (s *site) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.db.ExecContext(s.t.Context(), query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

// Thing is what the tests cache.
type Thing struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Kind string `json:"kind"`
}

// replica is a node with a cache of things and its admin port.
type replica struct {
	*node.Node
	t      *testing.T
	things *node.Cache[Thing]
	api    *admin.API
	server *httptest.Server
	client admin.Client // with the token
}

// open starts a replica and waits until it is ready.
func (s *site) open(id string, change func(*node.Config, *node.CacheConfig[Thing])) *replica {
	s.t.Helper()
	stack := stacktest.Stack()
	registry := prometheus.NewRegistry()
	c := node.Config{
		App: s.app, ID: id, Address: id + ":80",
		Postgres: node.PostgresConfig{DSN: s.dsn, PollTimeout: patient, LoadTimeout: patient},
		Redis:    node.RedisConfig{Addrs: stack.Redis.Addrs(), Timeout: patient},
		NATS:     node.NATSConfig{URLs: []string{stack.NATS.URL()}},
		Logger:   slog.New(slog.DiscardHandler), Registry: registry,
	}
	cache := node.CacheConfig[Thing]{
		Namespace: "thing", Source: node.SQL[Thing](`select id, name, kind from things where id = any($1)`),
		Tags: func(_ string, v Thing) []string { return []string{"kind:" + v.Kind} },
	}
	if change != nil {
		change(&c, &cache)
	}
	r := &replica{t: s.t}
	var err error
	if r.api, err = admin.New(admin.Config{Token: token, Gatherer: registry, Logger: c.Logger}); err != nil {
		s.t.Fatal(err)
	}
	r.server = httptest.NewServer(r.api)
	s.t.Cleanup(r.server.Close)
	r.client = admin.Client{URL: r.server.URL, Token: token, HTTP: &http.Client{Transport: conforming{s.t, r.server.Client().Transport}}}
	if r.Node, err = node.Open(s.t.Context(), c); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			s.t.Errorf("close %s: %v", id, err)
		}
	})
	r.api.Use(r.Node)
	if r.things, err = node.NewCache(r.Node, cache); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patient)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
	r.api.Started()
	return r
}

// pair opens two replicas and waits until each sees the other.
func (s *site) pair(change func(*node.Config, *node.CacheConfig[Thing])) (a, b *replica) {
	s.t.Helper()
	a, b = s.open("a", change), s.open("b", change)
	s.until("the replicas see each other", func() bool { return len(a.Stats().Members) == 2 && len(b.Stats().Members) == 2 })
	return a, b
}

// until waits for something to come true.
func (s *site) until(what string, holds func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(patient)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if holds() {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("not after %v: %s", patient, what)
		}
	}
}

// answer is what a plain request got.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request as it is, holds the answer against openapi.yaml, and returns it. Headers are name and value in
// turn.
func (r *replica) do(method, path, body string, headers ...string) answer {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, r.server.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body == "" {
		request.Body, request.ContentLength = http.NoBody, 0
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	got, err := r.client.HTTP.Do(request)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{got.StatusCode, got.Header, string(text)}
}

// conforming is a transport that holds requests and answers against openapi.yaml.
type conforming struct {
	t    *testing.T
	next http.RoundTripper
}

var described = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	return legacy.NewRouter(doc)
})

func (c conforming) RoundTrip(request *http.Request) (*http.Response, error) {
	var body []byte
	if request.Body != nil {
		var err error
		if body, err = io.ReadAll(request.Body); err != nil {
			return nil, err
		}
		request.Body = io.NopCloser(bytes.NewReader(body))
	}
	got, err := c.next.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(got.Body)
	if err != nil {
		return nil, err
	}
	got.Body.Close()
	got.Body = io.NopCloser(bytes.NewReader(text))
	if got.StatusCode == http.StatusMethodNotAllowed || request.Method == http.MethodHead {
		return got, nil // OpenAPI describes what a path takes
	}
	router, err := described()
	if err != nil {
		return nil, err
	}
	plain := request.Clone(request.Context())
	plain.URL.Scheme, plain.URL.Host, plain.Host = "", "", ""
	plain.Body = io.NopCloser(bytes.NewReader(body))
	route, parameters, err := router.FindRoute(plain)
	if err != nil {
		if got.StatusCode != http.StatusNotFound {
			c.t.Errorf("%s %s is not described, but answered with %d", request.Method, request.URL.Path, got.StatusCode)
		}
		return got, nil
	}
	for name, value := range parameters { // as it stands in the path
		if parameters[name], err = url.PathUnescape(value); err != nil {
			return nil, err
		}
	}
	options := &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	input := &openapi3filter.RequestValidationInput{Request: plain, PathParams: parameters, Route: route, Options: options}
	if got.StatusCode < 300 {
		if err := openapi3filter.ValidateRequest(request.Context(), input); err != nil {
			c.t.Errorf("%s %s was taken, but openapi.yaml does not allow it: %v", request.Method, request.URL, err)
		}
	}
	err = openapi3filter.ValidateResponse(request.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: got.StatusCode, Header: got.Header, Body: io.NopCloser(bytes.NewReader(text)), Options: options,
	})
	if err != nil {
		c.t.Errorf("%s %s: the answer %d %s is not as described: %v", request.Method, request.URL, got.StatusCode, text, err)
	}
	return got, nil
}
