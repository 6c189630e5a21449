package l2test_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/tiers"
	"github.com/freshet-cache/freshet/tiers/l2test"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{Redis: true}) }

const maxValue = 64 << 10

// door is the way of one replica to Redis. It can be shut.
type door struct {
	mu    sync.Mutex
	shut  bool
	conns []net.Conn
}

var errShut = errors.New("the door is shut")

func (d *door) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return nil, errors.Join(errShut, conn.Close())
	}
	d.conns = append(d.conns, conn)
	return conn, nil
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	for _, conn := range d.conns {
		_ = conn.Close()
	}
}

func TestL2(t *testing.T) {
	if err := stacktest.Stack().Redis.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	l2test.Exercise(t, func(*testing.T) l2test.Site {
		doors := map[tiers.Store]*door{}
		states := func(s tiers.Store, want string) func() bool {
			return func() bool {
				shards := s.(*tiers.L2).Shards()
				return len(shards) == 3 && !slices.ContainsFunc(shards, func(s tiers.ShardState) bool { return s.State != want })
			}
		}
		return l2test.Site{
			MaxValue: maxValue,
			Open: func(t *testing.T) tiers.Store {
				t.Helper()
				d := &door{}
				l, err := tiers.OpenL2(tiers.L2Config{
					Addrs: stacktest.Stack().Redis.Addrs(), Timeout: 5 * time.Second, MaxValue: maxValue, Dial: d.dial, Logger: slog.New(slog.DiscardHandler),
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(l.Close)
				doors[l] = d
				until(t, "every shard is connected", states(l, "closed"))
				return l
			},
			Outage: func(t *testing.T, s tiers.Store) {
				t.Helper()
				doors[s].close()
				until(t, "every shard is away", states(s, "open"))
			},
		}
	})
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("waited 30 s in vain: %s", what)
		}
	}
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

func TestMemory(t *testing.T) {
	l2test.Exercise(t, func(*testing.T) l2test.Site {
		m := l2test.NewMemory(maxValue)
		return l2test.Site{
			MaxValue: maxValue,
			Open:     func(*testing.T) tiers.Store { return m.Link() },
			Outage:   func(_ *testing.T, s tiers.Store) { s.(*l2test.Link).Down(true) },
		}
	})
}

// A Link is as slow as it is told, and gives up when L2 would; what it was asked for may be done.
func TestMemoryFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := l2test.NewMemory(0)
		a, b := m.Link(), m.Link()
		set := func(l *l2test.Link, key string) error {
			return l.SetMany(t.Context(), []tiers.Filling{{Key: key, Bytes: []byte(key), TTL: time.Minute}})[0]
		}
		took := func(f func() error) (time.Duration, error) {
			began := time.Now()
			err := f()
			return time.Since(began), err
		}
		a.Delay(10 * time.Millisecond)
		if d, err := took(func() error { return set(a, "slow") }); d != 10*time.Millisecond || err != nil {
			t.Errorf("%v, %v", d, err)
		}
		a.Delay(80 * time.Millisecond)
		if d, err := took(func() error { return set(a, "late") }); d != 50*time.Millisecond || !errors.Is(err, tiers.ErrUnavailable) {
			t.Errorf("%v, %v", d, err)
		}
		a.Delay(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if d, err := took(func() error { _, err := a.Get(ctx, "late"); return err }); d != time.Millisecond || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, tiers.ErrUnavailable) {
			t.Errorf("%v, %v", d, err)
		}
		a.Delay(0)
		odd := errors.Join(tiers.ErrUnavailable, errors.New("odd"))
		a.Fail(odd)
		if err := set(a, "failed"); !errors.Is(err, odd) || !a.Available("failed") {
			t.Errorf("%v", err)
		}
		if got := m.Keys(); !slices.Equal(got, []string{"failed", "late", "slow"}) {
			t.Errorf("keys %q", got)
		}
		if _, err := b.Get(t.Context(), "failed"); err != nil {
			t.Errorf("another replica: %v", err)
		}
		if a.Calls() != 4 || b.Calls() != 1 {
			t.Errorf("%d and %d calls", a.Calls(), b.Calls())
		}
		old := m.Copy()
		if err := b.Unlink(t.Context(), "slow"); err != nil {
			t.Error(err)
		}
		if reply := b.LeaseMany(t.Context(), []tiers.LeaseRequest{{Key: "slow", LeaseKey: cluster.Lease("slow"), Token: "t", TTL: time.Second}})[0]; !reply.Held {
			t.Errorf("%+v", reply)
		}
		m.Restore(old, time.Second)
		if got := m.Keys(); len(got) != 3 {
			t.Errorf("keys %q after a restore", got)
		}
		pass(time.Second)
		if got := m.Keys(); len(got) != 0 {
			t.Errorf("keys %q after their time", got)
		}
	})
}
