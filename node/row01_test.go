package node_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/node"
)

// Row 1: the client of a Redis Cluster that takes nothing but TLS, from a known client, as a user with the few rights that
// a cache needs. It starts while Redis is down and is connected when that comes up; under load, a node that hangs costs no
// read more than the deadline of a call, and its shard alone; who has the wrong password or certificates works
// without L2, and says why.
func TestRow01RedisClient(t *testing.T) {
	s := newSite(t)
	stack, err := devstack.Start(t.Context(), devstack.Options{Redis: true, RedisSecure: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	access := stack.Redis.Access()
	secure := func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.Redis = node.RedisConfig{Addrs: stack.Redis.Addrs(), Username: access.Username, Password: access.Password, TLS: access.TLS, Timeout: 500 * time.Millisecond}
	}
	states := func(r *replica, want string) func() bool {
		return func() bool { return slices.Equal(r.shardStates(), []string{want, want, want}) }
	}

	if err := stack.Redis.KillAll(); err != nil {
		t.Fatal(err)
	}
	r := []*replica{s.open(secure), s.open(secure)}
	for _, r := range r {
		s.ready(r)
	}
	f := s.traffic(r, trafficConfig{writers: 1})
	f.progress()
	if n := sum(r, l2Hits); n != 0 {
		t.Errorf("%d hits in L2 without Redis", n)
	}
	if err := stack.Redis.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := stack.Redis.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range r {
		s.until("all shards are connected, by TLS", states(r, "closed"))
	}
	hits := sum(r, l2Hits)
	s.until("L2 answers", func() bool { return sum(r, l2Hits) > hits+20 })

	// A node that hangs.
	paused, err := stack.Redis.Primary(cluster.Slot(s.key(thing(1))))
	if err != nil {
		t.Fatal(err)
	}
	failures := func() (n uint64) {
		for _, shard := range r[0].Stats().Shards {
			if shard.Name == paused.Addr() {
				n += shard.Failures
			}
		}
		return n
	}
	before := failures()
	f.slowest.Store(0)
	if err := paused.Pause(); err != nil {
		t.Fatal(err)
	}
	s.until("calls to the node that hangs are given up", func() bool { return failures() > before })
	f.progress()
	if slowest := time.Duration(f.slowest.Load()); slowest > patient/2 {
		t.Errorf("a read took %v while a node hung", slowest)
	}
	if err := paused.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, r := range r {
		s.until("all shards are connected again", states(r, "closed"))
	}

	f.stop()
	f.noneFailed()
	if f.fresh.Load() != f.reads.Load() {
		t.Errorf("%d of %d answers are FRESH", f.fresh.Load(), f.reads.Load())
	}

	survey, err := r[0].Redis(t.Context())
	if err != nil || survey.State != "ok" || len(survey.Servers) != 6 {
		t.Errorf("the servers, as the user may see them: %+v, %v", survey, err)
	}
	for _, v := range survey.Servers {
		if v.Error != "" || v.Version == "" || v.ID == "" {
			t.Errorf("a server, as the user may see it: %+v", v)
		}
	}

	// Who is not let in.
	for _, c := range []struct {
		name, want string
		change     func(*node.RedisConfig)
	}{
		{"a wrong password", "WRONGPASS", func(c *node.RedisConfig) { c.Password = "not-the-password" }},
		{"no user", "NOAUTH", func(c *node.RedisConfig) { c.Username, c.Password = "", "" }},
		{"an authority that it does not know", "x509: certificate signed by unknown authority", func(c *node.RedisConfig) {
			c.TLS = c.TLS.Clone()
			c.TLS.RootCAs = x509.NewCertPool()
		}},
		// TLS 1.3 tells a client after its handshake: it reads that, or fails to write to who has closed already.
		{"no certificate", "certificate required|broken pipe|connection reset", func(c *node.RedisConfig) { c.TLS = &tls.Config{RootCAs: c.TLS.RootCAs, MinVersion: tls.VersionTLS12} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &logBuffer{}
			registry := prometheus.NewRegistry()
			outsider := s.open(func(n *node.Config, _ *node.CacheConfig[Thing]) {
				secure(n, nil)
				c.change(&n.Redis)
				n.Logger, n.Registry = slog.New(slog.NewTextHandler(log, nil)), registry
			})
			s.ready(outsider)
			for n := range 20 {
				if e := s.get(outsider, thing(n+1), node.Within(0)); !e.Fresh || e.Tier == node.TierL2 {
					t.Errorf("%+v", e)
				}
			}
			why := regexp.MustCompile(c.want)
			s.until("the log says why", func() bool { return why.MatchString(log.String()) })
			if strings.Contains(log.String(), "not-the-password") || strings.Contains(log.String(), access.Password) {
				t.Errorf("a password is in the log:\n%s", log)
			}
			if states := outsider.shardStates(); !slices.Equal(states, []string{"open"}) {
				t.Errorf("its shards are %v", states)
			}
			if open := metric(t, registry, "freshet_l2_breaker_state", "open"); open != 1 {
				t.Errorf("freshet_l2_breaker_state is %v for open, want 1", open)
			}
		})
	}
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// metric is the sum of a metric over the samples that have the value among their labels'.
func metric(t *testing.T, from prometheus.Gatherer, name, label string) (sum float64) {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == label {
					sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}
