package replica_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{}) }

// database is a migrated, seeded catalogue of its own.
func database(t *testing.T) (dsn string, db *sqlx.DB) {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "_").Replace(t.Name()))
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if db, err = sqlx.Open("postgres", dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, step := range []func() error{
		func() error { return coherence.Migrate(t.Context(), db.DB) },
		func() error { return shop.Migrate(t.Context(), db) },
		func() error { return shop.Seed(t.Context(), db, shop.SeedConfig{Products: 100, Categories: 5}) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return dsn, db
}

// running is a replica that runs until its test ends, or stop.
type running struct {
	*replica.Replica
	client *http.Client
	stop   func() error // begins the drain and returns what Run did
}

func run(t *testing.T, c replica.Config) *running {
	t.Helper()
	c.Listen, c.Admin = "127.0.0.1:0", "127.0.0.1:0"
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	r, err := replica.Listen(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	u := &running{Replica: r, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
	var stopped bool
	u.stop = func() error {
		stopped = true
		cancel()
		return errors.Join(<-ended, r.Close())
	}
	t.Cleanup(func() {
		if !stopped {
			if err := u.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
		}
		cancel()
		transport.CloseIdleConnections()
	})
	return u
}

func (u *running) get(url string) (int, http.Header, string, error) {
	resp, err := u.client.Get("http://" + url)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(body), err
}

func (u *running) mustGet(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	code, header, body, err := u.get(url)
	if err != nil {
		t.Fatal(err)
	}
	return code, header, body
}

func (u *running) probe(path string) int {
	code, _, _, err := u.get(u.Admin() + path)
	if err != nil {
		return 0
	}
	return code
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 30 s: %s", what)
		case <-tick.C:
		}
	}
}

// onStack is the configuration of a node on all servers.
func onStack(app, id, dsn string) node.Config {
	stack := stacktest.Stack()
	return node.Config{
		App: app, ID: id, Postgres: node.PostgresConfig{DSN: dsn}, Redis: node.RedisConfig{Addrs: stack.Redis.Addrs()},
		NATS: node.NATSConfig{URLs: []string{stack.NATS.URL()}},
	}
}

func TestServesTheShop(t *testing.T) {
	dsn, db := database(t)
	u := run(t, replica.Config{Node: onStack("serves", "r1", dsn)})
	eventually(t, "started", func() bool { return u.probe("/startupz") == 200 })

	code, header, body := u.mustGet(t, u.API()+"/products/7")
	if code != 200 || header.Get("Freshet-Replica") != "r1" || header.Get("Freshet-Fresh") != "fresh" {
		t.Fatalf("got %d %v %s", code, header, body)
	}
	// Another service changes the product: the replica answers it within the budget.
	if _, err := db.Exec(`update products set price_cents = 4242 where id = 7`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change is seen", func() bool {
		_, _, body := u.mustGet(t, u.API()+"/products/7")
		return strings.Contains(body, "4242")
	})

	if code, _, body := u.mustGet(t, u.Admin()+"/readyz"); code != 200 || !strings.Contains(body, `"ready"`) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if code, _, body := u.mustGet(t, u.Admin()+"/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") || !strings.Contains(body, "freshet_") {
		t.Errorf("/metrics: %d, %d bytes", code, len(body))
	}
	var stats node.Stats
	if code, _, body := u.mustGet(t, u.Admin()+"/admin/v1/stats"); code != 200 || json.Unmarshal([]byte(body), &stats) != nil || stats.ID != "r1" || !slices.ContainsFunc(stats.Namespaces, func(n node.NamespaceStats) bool { return n.Namespace == "product" && n.Reads > 0 }) {
		t.Errorf("/admin/v1/stats: %d %s", code, body)
	}
	if code, _, _ := u.mustGet(t, u.Admin()+"/products/7"); code != 404 {
		t.Errorf("the admin port serves the API: %d", code)
	}
}

// A replica that is ready has in L1 what the shop shows first, and what is read on the replicas before it.
func TestReadyWhenWarm(t *testing.T) {
	dsn, db := database(t)
	start := func(id string) *running {
		t.Helper()
		u := run(t, replica.Config{Node: onStack("warm", id, dsn)})
		eventually(t, "ready", func() bool { return u.probe("/readyz") == 200 })
		return u
	}
	tier := func(u *running, path string) string {
		t.Helper()
		_, header, _ := u.mustGet(t, u.API()+path)
		return header.Get("Freshet-Tier")
	}
	var popular, archived string
	if err := db.Get(&popular, `select min(id) from products where status = 'active' and stock > 0`); err != nil {
		t.Fatal(err)
	}
	if err := db.Get(&archived, `select min(id) from products where status <> 'active'`); err != nil {
		t.Fatal(err)
	}
	first := start("r1")
	for _, path := range []string{"/products/" + popular, "/categories/1", "/categories"} {
		if got := tier(first, path); got != "l1" {
			t.Errorf("the first replica answered %s from %s", path, got)
		}
	}
	for _, path := range []string{"/products/" + archived, "/products?category=3"} {
		if got := tier(first, path); got != "source" {
			t.Errorf("the first replica answered %s from %s, whom nobody had asked", path, got)
		}
	}
	second := start("r2")
	for _, path := range []string{"/products/" + popular, "/products/" + archived, "/products?category=3", "/categories"} {
		if got := tier(second, path); got != "l1" {
			t.Errorf("the second replica answered %s from %s", path, got)
		}
	}
}

// With Redis, NATS and Postgres all down from the start, a replica starts, is ready and says what is wrong.
func TestStartsWithEverythingDown(t *testing.T) {
	dead := func() string { // an address that refuses
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	u := run(t, replica.Config{
		StartTimeout: time.Second,
		Node: node.Config{
			App: "down", ID: "alone",
			Postgres: node.PostgresConfig{DSN: "postgres://shop@" + dead() + "/shop?sslmode=disable"},
			Redis:    node.RedisConfig{Addrs: []string{dead(), dead()}},
			NATS:     node.NATSConfig{URLs: []string{"nats://" + dead()}},
		},
	})
	if code := u.probe("/livez"); code != 200 {
		t.Errorf("/livez while starting: %d", code)
	}
	eventually(t, "started", func() bool { return u.probe("/startupz") == 200 })
	code, _, body := u.mustGet(t, u.Admin()+"/readyz")
	if code != 200 || !strings.Contains(body, `"degraded"`) || !strings.Contains(body, "postgres") {
		t.Errorf("/readyz: %d %s, want 200 and degraded", code, body)
	}
	code, header, body := u.mustGet(t, u.API()+"/products/1")
	if code != 503 || header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("a read got %d %s, want 503 with a problem", code, body)
	}
	if code := u.probe("/admin/v1/stats"); code != 200 {
		t.Errorf("/admin/v1/stats: %d", code)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := replica.Config{Node: node.Config{App: "taken", Postgres: node.PostgresConfig{DSN: "postgres://x"}}, Listen: "127.0.0.1:0", Admin: l.Addr().String()}
	if _, err := replica.Listen(t.Context(), c); err == nil || !strings.Contains(err.Error(), "admin port") {
		t.Errorf("got %v, want an error that names the admin port", err)
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	err := replica.Config{
		Listen: "8080", Admin: "x:99999", StartTimeout: -1, DrainDelay: time.Hour, DrainTimeout: -time.Second,
		AdminTLS: replica.AdminTLS{ClientCAFile: "ca.pem"}, Trace: replica.Trace{Endpoint: "collector:4318"},
		Node: node.Config{
			App: "Shop", ID: "a b", Address: ":1", Postgres: node.PostgresConfig{DSN: "mysql://user:secret@h/db"},
			Redis: node.RedisConfig{Addrs: []string{"r1"}}, NATS: node.NATSConfig{URLs: []string{"http://n"}}, Budget: -1, MaxStale: 1000 * time.Hour,
		},
	}.Validate()
	for _, want := range []string{
		"Config.App", "Config.ID", "listen:", "admin.listen:", "address:", "Config.Postgres.DSN", "Config.Redis.Addrs", "nats.urls:", "Config.Budget",
		"Config.MaxStale", "start_timeout:", "drain_delay:", "drain_timeout:", "admin.tls.client_ca_file:", "trace.endpoint:",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not reported in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the password is in the error: %v", err)
	}
	if err := (replica.Config{Node: node.Config{App: "shop", Postgres: node.PostgresConfig{DSN: "host=db dbname=shop"}}}).Validate(); err != nil {
		t.Errorf("the smallest configuration is refused: %v", err)
	}
}
