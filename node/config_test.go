package node_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/node"
)

// All problems of a configuration are told at once, each with its field.
func TestConfigNamesAllProblems(t *testing.T) {
	_, err := node.Open(t.Context(), node.Config{
		App: "Shop!", ID: "a b", Budget: -time.Second, MaxStale: 48 * time.Hour,
		Postgres: node.PostgresConfig{
			PollInterval: time.Hour, PollTimeout: time.Nanosecond, LoadTimeout: -1, MaxConns: -1, Queue: 1 << 30, Retention: time.Second,
		},
		Redis:    node.RedisConfig{Addrs: []string{"nowhere"}, Timeout: time.Nanosecond, MaxValue: -1, Username: "u"},
		Registry: prometheus.NewRegistry(),
		Verify:   node.VerifyConfig{Every: time.Millisecond, Sample: 1001},
		WriteBehind: node.WriteBehind{
			MaxPending: -1, MaxBytes: 1 << 40, Replicas: 6, Timeout: -1, Batch: 1 << 20, FlushEvery: time.Hour, Flushers: 17,
			AckWait: time.Millisecond, MaxAttempts: -1, MinRetry: time.Minute, MaxRetry: time.Second,
		},
	})
	if err == nil {
		t.Fatal("opened")
	}
	for _, field := range []string{
		"Config.App", "Config.ID", "Config.Budget", "Config.MaxStale", "Config.Postgres.DSN", "Config.Postgres.PollInterval",
		"Config.Postgres.PollTimeout", "Config.Postgres.LoadTimeout", "Config.Postgres.MaxConns", "Config.Postgres.Queue",
		"Config.Postgres.Retention", "Config.Verify.Every", "Config.Verify.Sample", "Config.Redis", "Addrs", "Timeout", "MaxValue", "Username",
		"WriteBehind.MaxPending", "WriteBehind.MaxBytes", "WriteBehind.Replicas", "WriteBehind.Timeout", "WriteBehind.Batch", "WriteBehind.FlushEvery",
		"WriteBehind.Flushers", "WriteBehind.AckWait", "WriteBehind.MaxAttempts", "WriteBehind.MinRetry",
	} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("the error does not name %s:\n%v", field, err)
		}
	}
}

// What only the clients of the servers can judge is an error of the configuration, too, and it does not
// give away the password.
func TestConfigOfServers(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		name   string
		change func(*node.Config)
		want   string
	}{
		{"DSN", func(c *node.Config) { c.Postgres.DSN = "postgres://freshet:opensesame@host:port/db" }, "Config.Postgres.DSN"},
		{"DSN of words", func(c *node.Config) { c.Postgres.DSN = "host=h password=very opensesame" }, "Config.Postgres.DSN"},
		{"NATS", func(c *node.Config) { c.NATS.URLs = []string{"nats://user:opensesame@host:port"} }, "Config.NATS"},
		{"credentials", func(c *node.Config) { c.NATS.Credentials = "/nowhere" }, "Config.NATS"},
	} {
		config := s.config()
		config.Registry = prometheus.NewRegistry()
		c.change(&config)
		n, err := node.Open(t.Context(), config)
		if err == nil {
			t.Errorf("%s: opened", c.name)
			_ = n.Close()
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "opensesame") {
			t.Errorf("%s: %v, want %s named and no password", c.name, err, c.want)
		}
	}
	s.until("no goroutine is left", func() bool { n, _ := ours(); return n == 0 })
}

func TestCacheConfig(t *testing.T) {
	s := newSite(t)
	r := s.open(nil)
	source := node.SQL[Thing](thingQuery)
	for _, c := range []struct {
		name string
		c    node.CacheConfig[Thing]
		want []string
	}{
		{"no source", node.CacheConfig[Thing]{Namespace: "x"}, []string{"Source"}},
		{"nil function", node.CacheConfig[Thing]{Namespace: "x", Source: node.Func[Thing](nil)}, []string{"Func"}},
		{"no parameter", node.CacheConfig[Thing]{Namespace: "x", Source: node.SQL[Thing]("select 1")}, []string{"$1"}},
		{"names", node.CacheConfig[Thing]{Namespace: "Pro duct", View: "a:b", Source: source}, []string{"Pro duct", "a:b"}},
		{
			"negative",
			node.CacheConfig[Thing]{Namespace: "x", Source: source, TTL: -1, NegativeTTL: -1, MaxEntries: -1, MaxBytes: -1},
			[]string{"TTL", "NegativeTTL", "MaxEntries", "MaxBytes"},
		},
		{"for ever", node.CacheConfig[Thing]{Namespace: "x", Source: source, TTL: math.MaxInt64, NegativeTTL: 1}, []string{" TTL", "NegativeTTL"}},
		{"twice", node.CacheConfig[Thing]{Namespace: "thing", Source: source}, []string{"one already"}},
	} {
		_, err := node.NewCache(r.Node, c.c)
		if err == nil {
			t.Errorf("%s: made", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", c.name, err, want)
			}
		}
	}
}
