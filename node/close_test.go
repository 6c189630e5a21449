package node_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// ours counts the goroutines that run this module's packages, tests excepted.
func ours() (n int, stacks string) {
	b := make([]byte, 4<<20)
	b = b[:runtime.Stack(b, true)]
	for stack := range strings.SplitSeq(string(b), "\n\n") {
		for _, p := range []string{"freshet/node.", "freshet/tiers.", "freshet/coherence.", "freshet/cluster.", "nats.go.(*Conn)"} {
			if strings.Contains(stack, p) && !strings.Contains(stack, "node_test.") {
				n++
				stacks += stack + "\n\n"
				break
			}
		}
	}
	return n, stacks
}

// closeTwice closes the node, from two sides, within the bound, and looks for what is left.
func (s *site) closeTwice(r *replica, bound time.Duration) {
	s.t.Helper()
	began := time.Now()
	var closers sync.WaitGroup
	for range 2 {
		closers.Go(func() {
			if err := r.Close(); err != nil {
				s.t.Errorf("close: %v", err)
			}
		})
	}
	closers.Wait()
	if took := time.Since(began); took > bound {
		s.t.Errorf("closing took %v, want at most %v", took, bound)
	}
	if err := r.Close(); err != nil {
		s.t.Errorf("close again: %v", err)
	}
	for _, options := range [][]node.ReadOption{nil, {node.Within(0)}, {node.StaleWithin(time.Hour)}, {node.Within(time.Hour)}} {
		if e, err := r.things.Lookup(s.t.Context(), "thing-1", options...); !errors.Is(err, node.ErrClosed) {
			s.t.Errorf("a read after Close: %+v, %v", e, err)
		}
	}
	if v, err := r.things.Get(s.t.Context(), "thing-1"); !errors.Is(err, node.ErrClosed) {
		s.t.Errorf("a Get after Close: %+v, %v", v, err)
	}
	if _, err := r.things.GetMany(s.t.Context(), []string{"thing-1", "thing-2"}, node.StaleWithin(time.Hour)); !errors.Is(err, node.ErrClosed) {
		s.t.Errorf("GetMany after Close: %v", err)
	}
	if _, err := r.Invalidate(s.t.Context(), "thing", []string{"thing-1"}); !errors.Is(err, node.ErrClosed) {
		s.t.Errorf("a write after Close: %v", err)
	}
	if err := r.Ready(s.t.Context()); !errors.Is(err, node.ErrClosed) {
		s.t.Errorf("ready after Close: %v", err)
	}
	if _, err := node.NewCache(r.Node, node.CacheConfig[Thing]{Namespace: "late", Source: node.SQL[Thing](thingQuery)}); !errors.Is(err, node.ErrClosed) {
		s.t.Errorf("NewCache after Close: %v", err)
	}
	_ = r.Stats()
}

// I9: Close under reads and writes, from two sides at once, leaves nothing behind.
func TestI9CloseUnderLoad(t *testing.T) {
	s := newSite(t)
	r := s.openReady(1)[0]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	for n := range 8 {
		load.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_, err := r.things.Lookup(ctx, thing(1+(n+i)%200), node.Within(time.Duration(n%3)*50*time.Millisecond))
				if errors.Is(err, node.ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				if i%10 == 0 {
					if _, err := r.things.GetMany(ctx, []string{"thing-1", "thing-2", thing(1 + i%200)}); err != nil && !errors.Is(err, node.ErrClosed) {
						t.Errorf("GetMany: %v", err)
					}
					_, _ = r.Invalidate(ctx, "thing", []string{thing(1 + i%200)})
				}
			}
		})
	}
	s.until("reads are under way", func() bool { return r.of().Reads > 500 })
	s.closeTwice(r, 2*time.Second+slack)
	load.Wait()
	s.until("no goroutine is left", func() bool { n, _ := ours(); return n == 0 })
}

// I9: Close while all servers are away, or silent, is bounded.
func TestI9CloseWithoutServers(t *testing.T) {
	stack := stacktest.Stack()
	s := newSite(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := errors.Join(stack.Postgres.Start(ctx), stack.NATS.Start()); err != nil {
			t.Error(err)
		}
		s.wholeRedis()
	})
	quick := func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.Postgres.LoadTimeout, c.Postgres.PollTimeout, c.Redis.Timeout = 300*time.Millisecond, 0, 0
	}
	for _, c := range []struct {
		name string
		away func() error
	}{
		{"silent", func() error {
			for _, n := range stack.Redis.Nodes() {
				if err := n.Pause(); err != nil {
					return err
				}
			}
			return stack.Postgres.Pause()
		}},
		{"gone", func() error {
			return errors.Join(stack.Redis.KillAll(), stack.Postgres.Kill(), stack.NATS.Stop())
		}},
	} {
		r := s.openAll(1, quick)[0]
		s.get(r, "thing-1")
		if err := c.away(); err != nil {
			t.Fatal(err)
		}
		var load sync.WaitGroup
		for n := range 20 {
			load.Go(func() { _, _ = r.things.Lookup(t.Context(), thing(20+n)) })
		}
		s.until("loads hang", func() bool { s := r.Stats().Source; return s.Running > 0 || r.of().Errors > 0 })
		began := time.Now()
		s.closeTwice(r, 6*time.Second)
		t.Logf("%s: closed after %v", c.name, time.Since(began).Round(time.Millisecond))
		load.Wait()
		if c.name == "silent" {
			if err := stack.Postgres.Resume(); err != nil {
				t.Fatal(err)
			}
			for _, n := range stack.Redis.Nodes() {
				if err := n.Resume(); err != nil {
					t.Fatal(err)
				}
			}
			s.wholeRedis()
		}
	}
	s.until("no goroutine is left", func() bool { n, _ := ours(); return n == 0 })
}

// A source that ignores its context does not hold up Close for ever; Close names it.
func TestCloseNamesASourceThatHangs(t *testing.T) {
	s := newSite(t)
	hang, entered := make(chan struct{}), make(chan struct{})
	c := s.config()
	c.Postgres.LoadTimeout = 200 * time.Millisecond
	n, err := node.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	stuck, err := node.NewCache(n, node.CacheConfig[int]{
		Namespace: "stuck", Source: node.Func(func(context.Context, []string) (map[string]int, error) {
			close(entered)
			<-hang
			return nil, nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := stuck.Get(t.Context(), "1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read of a source that hangs: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second+slack {
		t.Errorf("it took %v", took)
	}
	<-entered
	if err := n.Close(); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("close: %v, want an error that names the namespace", err)
	}
	close(hang)
	s.until("no goroutine is left", func() bool { n, _ := ours(); return n == 0 })
}

// The metrics of a node leave the registry with it, and those of another stay.
func TestRegistryIsLeftClean(t *testing.T) {
	s := newSite(t)
	registry := prometheus.NewRegistry()
	c := s.config()
	c.Registry = registry
	r := s.open(func(into *node.Config, _ *node.CacheConfig[Thing]) { into.Registry = registry })
	if _, err := node.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "metrics") {
		t.Errorf("a second node in one registry: %v", err)
	}
	s.ready(r)
	s.get(r, "thing-1")
	families, err := registry.Gather()
	if err != nil || len(families) < 10 {
		t.Fatalf("%d families of metrics, %v: those of the first node are gone", len(families), err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if families, err = registry.Gather(); err != nil || len(families) != 0 {
		t.Errorf("%d families of metrics after Close, %v", len(families), err)
	}
}

// I9: Close waits for a write under way, and its hint reaches the others.
func TestI9CloseWaitsForWrites(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	inside, goOn := make(chan struct{}), make(chan struct{})
	written, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := r[0].Write(t.Context(), func(tx *node.Tx) error {
			close(inside)
			<-goOn
			return tx.Invalidate("thing", []string{"thing-1"})
		})
		written <- err
	}()
	<-inside
	heard := r[1].Stats().HintsReceived
	go func() { closed <- r[0].Close() }()
	s.until("new writes are refused", func() bool {
		_, err := r[0].Invalidate(t.Context(), "thing", nil)
		return errors.Is(err, node.ErrClosed)
	})
	select {
	case err := <-closed:
		t.Fatalf("closed during a write: %v", err)
	default:
	}
	close(goOn)
	if err := errors.Join(<-written, <-closed); err != nil {
		t.Error(err)
	}
	s.until("the other replica hears of it", func() bool { return r[1].Stats().HintsReceived > heard })
}
