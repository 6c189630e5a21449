package admin_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// soon is what an answer may take while servers hang, with what a busy machine adds.
const soon = 12 * time.Second

// What only reads answers while the servers are away or hang, and says which.
func TestSeeingWithoutServers(t *testing.T) {
	s := newSite(t)
	stack := stacktest.Stack()
	postgres, err := stack.Postgres.Proxy()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(postgres.Close)
	bus, err := devstack.NewProxy(stack.NATS.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	redis, err := stack.Redis.Proxies()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Close)
	a := s.open("a", nil)
	b := s.open("b", func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.Postgres.DSN = stack.Postgres.DSNVia(postgres.Addr(), s.app)
		c.Postgres.PollTimeout, c.Postgres.LoadTimeout = time.Second, time.Second
		c.NATS.URLs = []string{"nats://" + bus.Addr()}
		c.Redis.Addrs, c.Redis.Dial, c.Redis.Timeout = []string{redis.Service().Addr()}, redis.Dial, 50*time.Millisecond
	})
	s.until("the replicas see each other", func() bool { return len(a.Stats().Members) == 2 && len(b.Stats().Members) == 2 })
	s.until("the topology is known", func() bool { return len(b.Stats().Shards) == 3 })

	// Everything at once hangs for b.
	postgres.Stall()
	bus.Stall()
	for _, p := range redis.All() {
		p.Stall()
	}
	var asking sync.WaitGroup
	ask := func(what string, check func() string) {
		asking.Go(func() {
			began := time.Now()
			if wrong := check(); wrong != "" {
				t.Errorf("%s: %s", what, wrong)
			}
			if took := time.Since(began); took > soon {
				t.Errorf("%s took %v", what, took)
			}
		})
	}
	ask("postgres", func() string {
		p, err := b.client.Postgres(t.Context())
		if err != nil || p.Answers || len(p.Problems) != 1 || !strings.Contains(p.Problems[0], "Postgres") {
			return dump(p, err)
		}
		return ""
	})
	ask("watches", func() string {
		w, err := b.client.Watches(t.Context(), true)
		if err != nil || !strings.Contains(w.Error, "Postgres") || len(w.Tables) != 0 || len(w.Replicas) == 0 {
			return dump(w, err)
		}
		return ""
	})
	ask("redis", func() string {
		r, err := b.client.Redis(t.Context())
		if err != nil || r.State != "unknown" || len(r.Servers) < 3 {
			return dump(r, err)
		}
		for _, v := range r.Servers {
			if v.Error == "" {
				return dump(r, err)
			}
		}
		return ""
	})
	ask("members, asked of the one that hangs", func() string {
		m, err := b.client.Members(t.Context())
		if err != nil || m.Asked != "b" || len(m.Replicas) == 0 {
			return dump(m, err)
		}
		for _, r := range m.Replicas {
			if r.Replica == "a" && (r.State != "silent" || r.Error == "") {
				return dump(m, err)
			}
		}
		return ""
	})
	ask("namespaces", func() string {
		if caches, err := b.client.Namespaces(t.Context()); err != nil || len(caches) != 1 {
			return dump(caches, err)
		}
		return ""
	})
	asking.Wait()

	s.until("b lags, and says that it has no NATS", func() bool {
		m, err := b.client.Members(t.Context())
		return err == nil && len(m.Replicas) == 1 && m.Replicas[0].State == "lagging" && !b.Stats().Connected
	})
	s.until("a does not know b any more", func() bool {
		m, err := a.client.Members(t.Context())
		return err == nil && len(m.Replicas) == 1 && m.Replicas[0].Replica == "a"
	})

	// Postgres is back, NATS refuses.
	postgres.Heal()
	bus.Cut()
	for _, p := range redis.All() {
		p.Heal()
	}
	s.until("b is cut off and no more", func() bool {
		m, err := b.client.Members(t.Context())
		return err == nil && len(m.Replicas) == 1 && m.Replicas[0].State == "cut off"
	})
	if told, err := b.client.Shards(t.Context(), true); err != nil || len(told) != 1 || told[0].Replica != "b" {
		t.Errorf("shards, asked of one without NATS: %s", dump(told, err))
	}
	bus.Heal()
	s.until("all is well again", func() bool {
		m, err := a.client.Members(t.Context())
		return err == nil && len(m.Replicas) == 2 && m.Replicas[1].State == "ok"
	})
}

// dump is an answer for the log.
func dump[T any](v T, err error) string { return fmt.Sprintf("%+v, %v", v, err) }

func TestProfiles(t *testing.T) {
	s := newSite(t)
	r := s.open("a", nil)
	get := func(path string) answer { return r.do(http.MethodGet, path, "", "Authorization", "Bearer "+token) }
	if got := get("/debug/pprof/heap"); got.status != http.StatusOK || !strings.HasPrefix(got.body, "\x1f\x8b") {
		t.Errorf("heap: %d, %d bytes", got.status, len(got.body))
	}
	if got := get("/debug/pprof/goroutine?debug=2"); got.status != http.StatusOK || !strings.Contains(got.body, "coherence.(*Tracker)") {
		t.Errorf("goroutines as text: %d, %.100s", got.status, got.body)
	}
	var recording sync.WaitGroup
	recording.Go(func() {
		if got := get("/debug/pprof/trace?seconds=1"); got.status != http.StatusOK || !bytes.Contains([]byte(got.body[:20]), []byte("trace")) {
			t.Errorf("trace: %d, %d bytes", got.status, len(got.body))
		}
	})
	codes := make([]int, 2)
	for i := range codes {
		recording.Go(func() { codes[i] = get("/debug/pprof/profile?seconds=1").status })
	}
	recording.Wait()
	if codes[0]+codes[1] != http.StatusOK+http.StatusConflict && codes[0]+codes[1] != 2*http.StatusOK {
		t.Errorf("two at once: %v, want one of them, or both in turn", codes)
	}
	for path, want := range map[string]int{
		"/debug/pprof/profile?seconds=121": http.StatusBadRequest,
		"/debug/pprof/profile?debug=1":     http.StatusBadRequest,
		"/debug/pprof/heap?seconds=1":      http.StatusBadRequest,
		"/debug/pprof/heap?gc=1":           http.StatusBadRequest,
		"/debug/pprof/nothing":             http.StatusNotFound,
		"/debug/pprof/":                    http.StatusNotFound,
		"/debug/pprof/cmdline":             http.StatusNotFound,
	} {
		if got := get(path); got.status != want || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %d", path, got.status, got.header.Get("Content-Type"), want)
		}
	}
	if got := r.do(http.MethodGet, "/debug/pprof/heap", ""); got.status != http.StatusUnauthorized {
		t.Errorf("without a token: %d", got.status)
	}
}

// What only reads takes the parameters that it has and no others.
func TestSeeingRefusesParameters(t *testing.T) {
	s := newSite(t)
	r := s.open("a", nil)
	for _, path := range []string{
		"/admin/v1/namespaces?x=1", "/admin/v1/members?replicas=all", "/admin/v1/redis?x", "/admin/v1/postgres?x",
		"/admin/v1/shards?replicas=some", "/admin/v1/shards?replica=all", "/admin/v1/watches?replicas=one&replicas=all",
	} {
		if got := r.do(http.MethodGet, path, ""); got.status != http.StatusBadRequest {
			t.Errorf("%s: %d", path, got.status)
		}
		plain, _, _ := strings.Cut(path, "?")
		if got := r.do(http.MethodGet, plain, ""); got.status != http.StatusOK {
			t.Errorf("%s: %d %s", plain, got.status, got.body)
		}
		if got := r.do(http.MethodPost, plain, "{}"); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
			t.Errorf("POST %s: %d, Allow %q", plain, got.status, got.header.Get("Allow"))
		}
	}
}

// An entry is explained by one replica and by all; what cannot be explained is the request's fault.
func TestExplainRoute(t *testing.T) {
	s := newSite(t)
	a, b := s.pair(nil)
	for _, r := range []*replica{a, b} {
		_, err := node.NewQueryCache(r.Node, node.QueryConfig[int64]{
			Namespace: "thing", View: "count",
			Query: func(cluster.Params) (string, []any, error) { return `select count(*) from things`, nil, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.things.Get(t.Context(), "thing-1"); err != nil {
		t.Fatal(err)
	}
	both, err := b.client.Explain(t.Context(), "thing", "", "thing-1", true)
	if err != nil || len(both) != 2 || both[0].Answer == nil || both[1].Answer == nil {
		t.Fatalf("%+v, %v", both, err)
	}
	if e := both[0].Answer; both[0].Replica != "a" || e.Label != "fresh" || e.L1 == nil || e.L1.Snapshot == "" || e.Shard == nil || e.Miss == nil || len(e.Scopes) < 3 {
		t.Errorf("a, which has read it: %+v", e)
	}
	if e := both[1].Answer; both[1].Replica != "b" || e.Label != "none" || e.L1 != nil || e.L2 != "found" || e.L2Entry == nil {
		t.Errorf("b, which has not: %+v", e)
	}
	one, err := b.client.Explain(t.Context(), "thing", "count", "limit=1&category=a b", false)
	if err != nil || len(one) != 1 || one[0].Replica != "b" || one[0].Answer.ID != "?category=a+b&limit=1" {
		t.Errorf("a query: %+v, %v", one, err)
	}
	for query, want := range map[string]int{
		"": http.StatusBadRequest, "namespace=thing": http.StatusBadRequest, "id=1": http.StatusBadRequest, "namespace=thing&id=1&x=1": http.StatusBadRequest,
		"namespace=thing&id=1&replicas=both": http.StatusBadRequest, "namespace=thing&view=count&id=%25zz": http.StatusBadRequest,
		"namespace=nothing&id=1": http.StatusNotFound, "namespace=nothing&id=1&replicas=all": http.StatusNotFound, "namespace=thing&view=x&id=1": http.StatusNotFound,
	} {
		if got := a.do(http.MethodGet, "/admin/v1/explain?"+query, ""); got.status != want {
			t.Errorf("%q: %d %s, want %d", query, got.status, got.body, want)
		}
	}
}
