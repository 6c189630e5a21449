package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/node"
)

// stackFor starts servers that end with the test, and returns them with the DSN of a catalogue of 200 products.
func stackFor(t *testing.T, o devstack.Options) (stack *devstack.Stack, dsn string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers")
	}
	stack, err := devstack.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	if dsn, err = stack.Postgres.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if err := migrate(t.Context(), dsn, true, 200); err != nil {
		t.Fatal(err)
	}
	return stack, dsn
}

// served is a run of `freshet serve`.
type served struct {
	*freshet

	t          *testing.T
	api, admin string
}

// serveWith starts a replica that is configured by the file, and waits until it is ready.
func serveWith(t *testing.T, file string, flags ...string) *served {
	t.Helper()
	f := begin(t, append([]string{"serve", "--config", file}, flags...)...)
	said := f.await(t, `^replica \S+ api (http://\S+) admin (http://\S+)$`)
	s := &served{f, t, said[1], said[2]}
	s.until("ready", func() bool { return get(t, s.admin+"/readyz") == http.StatusOK })
	return s
}

func (s *served) until(what string, done func() bool) {
	s.t.Helper()
	limit, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.Done():
			s.t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (s *served) stats() (stats node.Stats) {
	s.t.Helper()
	resp, err := http.Get(s.admin + "/admin/v1/stats")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil {
		s.t.Fatal(err)
	}
	return stats
}

// of are the counts of one cache.
func (s *served) of(namespace, view string) node.NamespaceStats {
	s.t.Helper()
	for _, one := range s.stats().Namespaces {
		if one.Namespace == namespace && one.View == view {
			return one
		}
	}
	s.t.Fatalf("there is no cache %s/%s", namespace, view)
	return node.NamespaceStats{}
}

// connected reports whether all shards of Redis are.
func (s *served) connected() bool {
	shards := s.stats().Shards
	return len(shards) == 3 && !slices.ContainsFunc(shards, func(shard node.ShardStats) bool { return shard.State != "closed" })
}

// Row 2: a replica is configured by a file, variables and flags, each over the one before, with its secrets in files of their
// own: it reaches a Redis Cluster that takes nothing but TLS from known users, also after all of that was killed, and the
// settings of its caches hold. A file with mistakes starts nothing.
func TestRow02Configuration(t *testing.T) {
	t.Parallel()
	stack, dsn := stackFor(t, devstack.Options{Redis: true, RedisSecure: true, Postgres: true})
	access := stack.Redis.Access()
	folder := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	text := fmt.Sprintf(`app: tconfig
listen: "127.0.0.1:0"
admin: {listen: "127.0.0.1:0"}
budget: 900ms
postgres:
  dsn_file: %s
  max_conns: 3
redis:
  addrs: [%s]
  username: %s
  password_file: %s
  timeout: 1s
  tls: {ca_file: %s, cert_file: %s, key_file: %s}
log: {level: debug, format: text}
caches:
  product: {max_entries: 64, warm_up: {peers: false, limit: 10}}
  product/page: {max_entries: 64, warm_up: {limit: 5}}
  mistyped: {ttl: 1h}
`, file("dsn", dsn+"\n"), strings.Join(stack.Redis.Addrs(), ", "), access.Username, file("password", access.Password+"\n"),
		access.AuthorityFile, access.CertFile, access.KeyFile)
	path := file("freshet.yaml", text)
	t.Run("in effect", func(t *testing.T) {
		s := serveWith(t, path, "--set", "caches.product.max_entries=16", "--id", "r1")
		s.until("Redis is connected, by TLS, as the user", s.connected)
		for id := range 200 {
			if code := get(t, fmt.Sprintf("%s/products/%d", s.api, id+1)); code != http.StatusOK {
				t.Fatalf("product %d: %d", id+1, code)
			}
		}
		stats := s.stats()
		if stats.ID != "r1" || stats.Budget != 0.9 || stats.Source.Places != 3 {
			t.Errorf("id %s, budget %v s, %d places", stats.ID, stats.Budget, stats.Source.Places)
		}
		if product := s.of("product", "detail"); product.L1Entries > 16 || product.L1Entries == 0 {
			t.Errorf("the product cache has %d entries, want up to 16, by --set over the file", product.L1Entries)
		}
		s.until("a mistyped name of a cache is in the log, which is text", func() bool {
			return strings.Contains(s.err(), "level=WARN") && strings.Contains(s.err(), "[mistyped]")
		})
		if err := stack.Redis.KillAll(); err != nil {
			t.Fatal(err)
		}
		s.until("Redis is gone", func() bool { return !s.connected() })
		if code := get(t, s.api+"/products/1"); code != http.StatusOK {
			t.Errorf("without Redis: %d", code)
		}
		if err := stack.Redis.StartAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := stack.Redis.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.until("Redis is connected again", s.connected)
		s.signal(t, syscall.SIGTERM)
		if code := s.code(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if strings.Contains(s.out()+s.err(), access.Password) || strings.Contains(s.out()+s.err(), dsn) {
			t.Error("a secret is in the log")
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		code, f := finish(t, "serve", "--config", file("wrong.yaml", strings.Replace(text, "  timeout: 1s", "  timout: 1s", 1)), "--budget", "1")
		if code != exitUsage || f.out() != "" || !strings.Contains(f.err(), "wrong.yaml:12:3: redis.timout: unknown key") || !strings.Contains(f.err(), "--budget: ") {
			t.Errorf("exit code %d\n%s%s", code, f.out(), f.err())
		}
	})
	t.Run("print and check", func(t *testing.T) {
		code, f := finish(t, "config", "print", "--config", path, "--max-stale", "1m")
		for _, want := range []string{"budget: 900ms  # " + path + ":4", "max_stale: 1m  # flag --max-stale", "queue: 256  # default", `# password: "(hidden)"  # ` + path + ":11"} {
			if !strings.Contains(f.out(), want) {
				t.Errorf("%q is not in\n%s", want, f.out())
			}
		}
		if code != 0 || strings.Contains(f.out(), access.Password) {
			t.Errorf("exit code %d, or the password is in\n%s", code, f.out())
		}
		if code, f := finish(t, "config", "check", "--config", path); code != 0 || !strings.Contains(f.out(), "is right") {
			t.Errorf("exit code %d\n%s%s", code, f.out(), f.err())
		}
	})
}
