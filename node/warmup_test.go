package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence/logtest"
	"github.com/freshet-cache/freshet/tiers"
)

// shelf is a node in virtual time, on a log and a source in memory that takes no time.
type shelf struct {
	t    *testing.T
	log  *logtest.Memory
	node *Node

	mu     sync.Mutex
	loaded []string // ids, in the order in which they were loaded
	fail   error
}

// onShelf runs a test in a bubble of virtual time.
func onShelf(t *testing.T, test func(s *shelf)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{t: t, log: logtest.NewMemory()}
		var err error
		s.node, err = openOn(Config{App: "shelf", Logger: slog.New(slog.DiscardHandler)}, func(*Node) (Parts, error) {
			return Parts{Log: s.log}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		test(s)
		if err := s.node.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Load implements [tiers.Source].
func (s *shelf) Load(_ context.Context, ids []string) (tiers.Batch[row], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return tiers.Batch[row]{}, s.fail
	}
	s.loaded = append(s.loaded, ids...)
	batch := tiers.Batch[row]{Snapshot: s.log.Snapshot(), Values: map[string]row{}}
	for _, id := range ids {
		batch.Values[id] = row{1}
	}
	return batch, nil
}

func (s *shelf) loads() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.loaded)
}

func (s *shelf) cache(view string, w WarmUp) *Cache[row] {
	s.t.Helper()
	c, err := NewCache(s.node, CacheConfig[row]{
		Namespace: "row", View: view, Source: func(*Node) (tiers.Source[row], error) { return s, nil }, MaxEntries: 1000, WarmUp: w,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// ready returns how long it took to be ready.
func (s *shelf) ready() time.Duration {
	s.t.Helper()
	began := time.Now()
	if err := s.node.Ready(s.t.Context()); err != nil {
		s.t.Error(err)
	}
	return time.Since(began)
}

func (s *shelf) stats() WarmUpStats {
	s.t.Helper()
	return s.node.Stats().Namespaces[0].WarmUps[0]
}

// numbered are ids, in order.
func numbered(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	return ids
}

func list(ids []string) func(context.Context) ([]string, error) {
	return func(context.Context) ([]string, error) { return ids, nil }
}

// A warm-up brings its ids in their order, those that are there already excepted, up to its limit, at its
// rate, and readiness waits for it.
func TestWarmUpAtItsRate(t *testing.T) {
	onShelf(t, func(s *shelf) {
		s.cache("detail", WarmUp{IDs: list(append([]string{"0"}, numbered(500)...)), Limit: 400, Rate: 100})
		if took := s.ready(); took < 3900*time.Millisecond || took > 4100*time.Millisecond {
			t.Errorf("400 ids at 100/s took %v", took)
		}
		if got := s.loads(); !slices.Equal(got, numbered(399)) {
			t.Errorf("loaded %d ids: %v", len(got), got)
		}
		if got := s.stats(); got.IDs != 400 || got.Failed != 0 || got.Runs != 1 || got.Failures != 0 || got.Seconds < 3.9 {
			t.Errorf("%+v", got)
		}
	})
}

// Readiness waits no longer than it is told, and what is left goes on.
func TestWarmUpGoesOnBehindReadiness(t *testing.T) {
	onShelf(t, func(s *shelf) {
		s.cache("detail", WarmUp{IDs: list(numbered(400)), Rate: 100, Timeout: time.Second})
		if took := s.ready(); took != time.Second {
			t.Errorf("ready after %v, want 1s", took)
		}
		rest(4 * time.Second)
		if got := len(s.loads()); got != 400 {
			t.Errorf("%d ids by then, want 400", got)
		}
	})
}

// A source of ids that hangs, fails or panics, and a source of values that fails, are given up after the
// time that readiness waits, and the node is ready.
func TestWarmUpThatFails(t *testing.T) {
	planted := errors.New("planted")
	for name, c := range map[string]struct {
		ids             func(ctx context.Context) ([]string, error)
		load            error
		took            time.Duration
		failures, tries uint64
	}{
		"hangs":      {ids: func(ctx context.Context) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() }, took: time.Second, failures: 1},
		"fails":      {ids: func(context.Context) ([]string, error) { return nil, planted }, took: time.Second, failures: 1},
		"panics":     {ids: func(context.Context) ([]string, error) { panic("planted") }, failures: 1},
		"loads fail": {ids: list(numbered(1000)), load: planted, took: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			onShelf(t, func(s *shelf) {
				s.fail = c.load
				s.cache("detail", WarmUp{IDs: c.ids, Timeout: time.Second})
				if took := s.ready(); took != c.took {
					t.Errorf("ready after %v, want %v", took, c.took)
				}
				rest(time.Minute) // nothing is tried for ever
				got := s.stats()
				if got.Failures != c.failures || got.Runs != 1 || got.Loaded != 0 {
					t.Errorf("%+v", got)
				}
				if c.load != nil && (got.Failed < 100 || got.Failed > 900) {
					t.Errorf("%d ids failed: want some batches tried, and the rest given up", got.Failed)
				}
			})
		})
	}
}

// While readers wait for Postgres a warm-up steps aside.
func TestWarmUpYields(t *testing.T) {
	onShelf(t, func(s *shelf) {
		_ = s.ready()
		ctx, leave := context.WithCancel(s.t.Context())
		var readers sync.WaitGroup
		for range s.node.bulkhead.Stats().Places {
			if err := s.node.bulkhead.Enter(ctx); err != nil {
				t.Fatal(err)
			}
		}
		readers.Go(func() {
			if s.node.bulkhead.Enter(ctx) == nil {
				s.node.bulkhead.Leave()
			}
		})
		synctest.Wait()
		s.cache("detail", WarmUp{IDs: list(numbered(10)), Timeout: 2 * time.Second})
		if took := s.ready(); took != 2*time.Second {
			t.Errorf("ready after %v, want 2s", took)
		}
		if b := s.node.bulkhead.Stats(); b.Waiting != 1 {
			t.Errorf("%d wait for Postgres, want the reader alone", b.Waiting)
		}
		leave()
		readers.Wait()
		for range s.node.bulkhead.Stats().Places {
			s.node.bulkhead.Leave()
		}
		rest(time.Second)
		if got := len(s.loads()); got != 10 {
			t.Errorf("%d ids by then, want 10", got)
		}
	})
}

// A scheduled warm-up comes round, asks anew, and brings what is not there; a run ends before it pushes out
// what it has brought.
func TestWarmUpOnSchedule(t *testing.T) {
	onShelf(t, func(s *shelf) {
		var mu sync.Mutex
		asked := 0
		s.cache("detail", WarmUp{Every: 10 * time.Second, IDs: func(context.Context) ([]string, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return numbered(10 + asked), nil
		}})
		_ = s.ready()
		rest(time.Minute + time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if asked < 6 || asked > 9 {
			t.Errorf("asked %d times in a minute, want about 7", asked)
		}
		if got := s.loads(); !slices.Equal(got, numbered(10+asked)) {
			t.Errorf("after %d runs these were loaded: %v", asked, got)
		}
	})
	onShelf(t, func(s *shelf) {
		c, err := NewCache(s.node, CacheConfig[row]{
			Namespace: "row", Source: func(*Node) (tiers.Source[row], error) { return s, nil }, MaxBytes: 300_000,
			WarmUp: WarmUp{IDs: list(numbered(1000))},
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.ready()
		st := s.node.Stats().Namespaces[0]
		if st.L1Bytes < 200_000 || st.L1Evictions != 0 {
			t.Errorf("%+v: want most of L1 filled and nothing pushed out", st)
		}
		if e, err := c.Lookup(s.t.Context(), "0"); err != nil || e.Tier != TierL1 {
			t.Errorf("%+v, %v", e, err)
		}
	})
}

// A node that closes ends its warm-ups, and who waits for it to be ready is told.
func TestWarmUpEndsWithTheNode(t *testing.T) {
	onShelf(t, func(s *shelf) {
		hang := func(ctx context.Context) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() }
		s.cache("detail", WarmUp{IDs: hang, Timeout: time.Minute})
		s.cache("other", WarmUp{IDs: list(numbered(1000)), Rate: 1, Timeout: time.Minute})
		told := make(chan error, 1)
		go func() { told <- s.node.Ready(s.t.Context()) }()
		synctest.Wait()
		began := time.Now()
		if err := s.node.Close(); err != nil || time.Since(began) > time.Second {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		if err := <-told; !errors.Is(err, ErrClosed) {
			t.Errorf("who waited was told %v", err)
		}
	})
}

// All that is wrong with a warm-up is said at once, each with its field.
func TestWarmUpIsValidated(t *testing.T) {
	onShelf(t, func(s *shelf) {
		_, err := NewCache(s.node, CacheConfig[row]{Namespace: "row", MaxEntries: 50, WarmUp: WarmUp{
			Peers: true, Limit: 51, Rate: -1, Timeout: time.Hour, Every: time.Millisecond,
		}})
		_, queries := NewQueryCache(s.node, QueryConfig[row]{Namespace: "row", View: "list", WarmUp: QueryWarmUp{
			Peers: true, Limit: -1, Rate: 1 << 30, Timeout: 1, Every: 1000 * time.Hour,
		}})
		for _, err := range []error{err, queries} {
			for _, field := range []string{"is nil", "WarmUp.Limit", "WarmUp.Rate", "WarmUp.Timeout", "WarmUp.Every"} {
				if err == nil || !strings.Contains(err.Error(), field) {
					t.Errorf("the error does not name %s: %v", field, err)
				}
			}
		}
		source := func(*Node) (tiers.Source[row], error) { return s, nil }
		if _, err := NewCache(s.node, CacheConfig[row]{Namespace: "row", Source: source, WarmUp: WarmUp{Rate: 5}}); err == nil {
			t.Error("a warm-up without a source of ids was taken")
		}
	})
}

// Results of queries are warmed up by their parameters.
func TestWarmUpOfQueries(t *testing.T) {
	w := QueryWarmUp{Params: func(context.Context) ([]cluster.Params, error) {
		return []cluster.Params{{"category": "7", "page": "1"}, {"category": "8"}, {}}, nil
	}}
	p := w.plan(nil, cacheName{"row", "list"})
	ids, err := p.sources[0].ids(t.Context(), 2)
	if err != nil || !slices.Equal(ids, []string{"?category=7&page=1", "?category=8"}) {
		t.Errorf("%q, %v", ids, err)
	}
}
