package node_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// countedSource reads things slowly, and notes when each was asked for.
type countedSource struct {
	site *site
	took time.Duration

	mu    sync.Mutex
	loads map[string][]time.Time // id -> when loads of it began
}

func (c *countedSource) load(ctx context.Context, ids []string) (map[string]Thing, error) {
	c.mu.Lock()
	for _, id := range ids {
		c.loads[id] = append(c.loads[id], time.Now())
	}
	c.mu.Unlock()
	var rows []Thing
	err := c.site.db.SelectContext(ctx, &rows, `select t.* from things t, pg_sleep($2) where id = any($1)`, pq.Array(ids), c.took.Seconds())
	things := make(map[string]Thing, len(rows))
	for _, row := range rows {
		things[row.ID] = row
	}
	return things, err
}

// of are the loads of an id by now.
func (c *countedSource) of(id string) []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loads[id]
}

// Row 21: three replicas under load, over the expiry of all that they read, with a slow source: no read waits for
// a load, and each entry is loaded anew by one replica for all. Beside it a replica is killed in the middle of a
// refresh: the others answer from what they have, and one of them refreshes when the dead one's lease is over.
func TestRow21RefreshAhead(t *testing.T) {
	const (
		keys = 20
		ttl  = 5 * time.Second
		part = 4 // of it, behind which entries are refreshed
		dead = "thing-150"
	)
	s := newSite(t)
	source := &countedSource{site: s, took: 100 * time.Millisecond, loads: map[string][]time.Time{}}
	r := s.openAll(3, func(config *node.Config, c *node.CacheConfig[Thing]) {
		config.Redis.LeaseWait = patient
		c.Source, c.TTL, c.Refresh = node.Func(source.load), ttl, node.Refresh{Ahead: 1.0 / part}
	})
	var others []*node.Cache[Thing] // those that the dead replica takes part in
	for _, r := range r {
		c, err := node.NewCache(r.Node, mortal(node.Func(source.load)))
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, c)
	}
	var ids []string
	for n := range keys {
		ids = append(ids, thing(n+1))
	}
	for _, r := range r {
		if got, err := r.things.GetMany(t.Context(), ids); err != nil || len(got) != keys {
			t.Fatalf("%d entries, %v", len(got), err)
		}
	}
	kept := time.Now()
	misses := func(s node.NamespaceStats) uint64 { return s.Misses }
	before := sum(r, misses)
	f := s.traffic(r, trafficConfig{keys: keys, readers: 1, budgets: []time.Duration{patient}, pause: time.Millisecond})

	killed := s.killRefresher(dead)
	began := time.Now()
	s.until("another replica refreshes", func() bool {
		for i, c := range others {
			if e, err := c.Lookup(t.Context(), dead, node.Within(patient)); err != nil || !e.Fresh || e.Tier == node.TierSource {
				t.Fatalf("replica %d, %v after the refresher died: %+v, %v", i, time.Since(began), e, err)
			}
		}
		return len(source.of(dead)) > 0
	})
	if waited := source.of(dead)[0].Sub(killed); waited < 300*time.Millisecond {
		t.Errorf("refreshed %v after the refresher died with its lease, of 2 s", waited)
	}
	s.until("all have expired once", func() bool { return time.Since(kept) > ttl*11/10+200*time.Millisecond })
	if n := sum(r, misses) - before; n > 0 {
		t.Errorf("%d of %d reads waited for a load", n, f.reads.Load())
	}
	f.stop() // reads with a budget of 0
	f.noneFailed()
	for _, id := range ids {
		loads := source.of(id)
		if len(loads) < 2 {
			t.Errorf("%s was loaded %d times", id, len(loads))
		}
		for i := 1; i < len(loads); i++ {
			if d := loads[i].Sub(loads[i-1]); d < ttl/part*9/10 {
				t.Errorf("%s was loaded twice within %v", id, d)
			}
		}
	}
	if n := len(source.of(dead)); n != 1 {
		t.Errorf("%d loads of %s", n, dead)
	}
	taken := sum(r, func(s node.NamespaceStats) uint64 { return s.RefreshesTaken })
	if refreshed := sum(r, func(s node.NamespaceStats) uint64 { return s.Refreshed }); refreshed < keys || taken < keys {
		t.Errorf("%d refreshed, %d taken from another replica", refreshed, taken)
	}
}

// mortal is the cache of a replica that dies: what it loads is to be refreshed soon, and lives much longer.
func mortal(source node.Source[Thing]) node.CacheConfig[Thing] {
	return node.CacheConfig[Thing]{Namespace: "thing", View: "mortal", Source: source, TTL: 10 * time.Second, Refresh: node.Refresh{Ahead: 0.01}}
}

// killRefresher has a replica load the id, and die by SIGKILL in the middle of refreshing it. It returns when that was.
func (s *site) killRefresher(id string) time.Time {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	stack := stacktest.Stack()
	command := exec.CommandContext(s.t.Context(), self)
	command.Env = append(os.Environ(), childMode+"=refresh", "ID="+id, "APP="+s.app, "DSN="+s.dsn,
		"REDIS="+strings.Join(stack.Redis.Addrs(), ","), "NATS="+stack.NATS.URL())
	output, err := command.CombinedOutput()
	var status *exec.ExitError
	if !errors.As(err, &status) || status.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		s.t.Fatalf("the child did not die as planned: %v\n%s", err, output)
	}
	return time.Now()
}

// dieRefreshing is what the killed replica does.
func dieRefreshing(ctx context.Context, n *node.Node, die func() error) error {
	var loads atomic.Int64
	id := os.Getenv("ID")
	c, err := node.NewCache(n, mortal(node.Func(func(context.Context, []string) (map[string]Thing, error) {
		if loads.Add(1) > 1 {
			return nil, die()
		}
		return someThings([]string{id}), nil
	})))
	for err == nil {
		_, err = c.Get(ctx, id)
	}
	return err
}
