package devstack_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// redisClient opens a cluster client that reaches the nodes through its own
// proxies, and begins at their service address.
func redisClient(t *testing.T) (rueidis.Client, *devstack.RedisProxies) {
	t.Helper()
	p, err := stacktest.Stack().Redis.Proxies()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{p.Service().Addr()}, DisableCache: true, ConnWriteTimeout: short, ShuffleInit: true,
		DialCtxFn: func(ctx context.Context, addr string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return devstack.DialMap(p.Map())(ctx, "tcp", addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, p
}

func set(t *testing.T, c rueidis.Client, key, value string) error {
	t.Helper()
	return c.Do(within(t, 2*time.Second), c.B().Set().Key(key).Value(value).Build()).Error()
}

func TestRedisProxiesCutOneClientOffOneShard(t *testing.T) {
	r := stacktest.Stack().Redis
	one, proxies := redisClient(t)
	two, _ := redisClient(t)
	shard, err := r.Shard(fooSlot)
	if err != nil {
		t.Fatal(err)
	}
	if len(shard) != 2 || shard[0] != primary(t, fooSlot) {
		t.Fatalf("the shard of foo is %v, want its primary and one replica", shard)
	}
	for _, c := range []rueidis.Client{one, two} {
		if err := set(t, c, "foo", "1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range proxies.Of(shard...) {
		p.Cut()
	}
	if err := set(t, one, "foo", "2"); err == nil {
		t.Error("the client that was cut off wrote")
	}
	if err := set(t, one, "bar", "2"); err != nil {
		t.Errorf("in another shard: %v", err)
	}
	if err := set(t, two, "foo", "2"); err != nil {
		t.Errorf("another client: %v", err)
	}
	for _, p := range proxies.All() {
		p.Heal()
	}
	eventually(t, "a write after Heal", 10*time.Second, func() bool { return set(t, one, "foo", "3") == nil })
}

func TestRedisFlushEmptiesAllPrimaries(t *testing.T) {
	r := stacktest.Stack().Redis
	c, _ := redisClient(t)
	for _, key := range []string{"a", "b", "c"} {
		if err := set(t, c, key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes() {
		eventually(t, n.Addr()+" empty", 5*time.Second, func() bool { return mustDo(t, n.Addr(), "DBSIZE") == "0" })
	}
}

func TestRedisEvictsWhenMemoryIsShort(t *testing.T) {
	r := stacktest.Stack().Redis
	addr := primary(t, fooSlot).Addr()
	fill := func() (left int) {
		for i := range 200 {
			mustDo(t, addr, "SET", "{foo}"+strconv.Itoa(i), strings.Repeat("x", 20_000))
		}
		left, err := strconv.Atoi(mustDo(t, addr, "DBSIZE"))
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	defer func() {
		if err := errors.Join(r.LimitMemory(context.Background(), 0), r.Flush(context.Background())); err != nil {
			t.Error(err)
		}
	}()
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.LimitMemory(t.Context(), 1_000_000); err != nil {
		t.Fatal(err)
	}
	if left := fill(); left < 1 || left > 150 {
		t.Errorf("%d of 200 keys are left, want some 50", left)
	}
	if err := r.LimitMemory(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if left := fill(); left < 200 {
		t.Errorf("%d of 200 keys are left without the limit", left)
	}
}

func TestRedisShardComesBackWithOldData(t *testing.T) {
	defer heal(t)
	r := stacktest.Stack().Redis
	shard, err := r.Shard(fooSlot)
	if err != nil {
		t.Fatal(err)
	}
	mustDo(t, shard[0].Addr(), "SET", "foo", "old")
	mustDo(t, shard[0].Addr(), "WAIT", "1", "1000")
	if err := r.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustDo(t, shard[0].Addr(), "SET", "foo", "new")
	other := primary(t, barSlot)
	mustDo(t, other.Addr(), "SET", "bar", "new")
	if err := r.Restore(t.Context(), shard...); err != nil {
		t.Fatal(err)
	}
	if err := r.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mustDo(t, primary(t, fooSlot).Addr(), "GET", "foo"); got != "old" {
		t.Errorf("foo is %q after Restore, want old", got)
	}
	if got := mustDo(t, other.Addr(), "GET", "bar"); got != "new" {
		t.Errorf("bar, in another shard, is %q", got)
	}
	n := primary(t, fooSlot)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mustDo(t, n.Addr(), "DBSIZE"); got != "0" {
		t.Errorf("%s keys after an ordinary start, want none", got)
	}
}

func TestRedisFailoverLosesWhatWasNotReplicated(t *testing.T) {
	slow(t)
	r := stacktest.Stack().Redis
	old := primary(t, fooSlot)
	mustDo(t, old.Addr(), "SET", "foo", "replicated")
	mustDo(t, old.Addr(), "WAIT", "1", "1000")
	defer func() {
		if err := r.HealReplication(context.Background()); err != nil {
			t.Error(err)
		}
		heal(t)
	}()
	if err := r.CutReplication(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	mustDo(t, old.Addr(), "SET", "foo", "acknowledged")
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	next, err := r.AwaitSuccessor(t.Context(), fooSlot, old)
	if err != nil {
		t.Fatal(err)
	}
	if got := mustDo(t, next.Addr(), "GET", "foo"); got != "replicated" {
		t.Errorf("foo is %q after the failover, want the value before replication was cut", got)
	}
	if err := old.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRedisReshardsUnderLoad(t *testing.T) {
	defer heal(t)
	r := stacktest.Stack().Redis
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	from, to := primary(t, fooSlot), primary(t, barSlot)
	c, _ := redisClient(t)
	for i := range 250 {
		if err := set(t, c, fmt.Sprintf("{foo}%d", i), "1"); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var load sync.WaitGroup
	defer func() { close(stop); load.Wait() }()
	load.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := set(t, c, fmt.Sprintf("{foo}%d", i%250), "2"); err != nil && t.Context().Err() == nil {
				t.Errorf("a write while the slot moves: %v", err)
				return
			}
		}
	})
	slots := []uint16{fooSlot, fooSlot + 1, fooSlot + 2}
	for _, owner := range []*devstack.RedisNode{to, to, from} {
		if err := r.Reshard(t.Context(), owner, slots...); err != nil {
			t.Fatal(err)
		}
		if err := r.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, slot := range slots {
			if primary(t, slot) != owner {
				t.Errorf("slot %d is not where it was moved to", slot)
			}
		}
		if got := mustDo(t, owner.Addr(), "CLUSTER", "COUNTKEYSINSLOT", strconv.Itoa(fooSlot)); got != "250" {
			t.Errorf("%s keys in the slot, want 250", got)
		}
	}
	if err := r.Reshard(t.Context(), to, make([]uint16, 1025)...); err == nil {
		t.Error("more slots than the bound were moved")
	}
}

func TestRedisMovesWithItsDataAndBack(t *testing.T) {
	slow(t)
	defer heal(t)
	r := stacktest.Stack().Redis
	c, _ := redisClient(t)
	if err := set(t, c, "foo", "1"); err != nil {
		t.Fatal(err)
	}
	first := r.Addrs()
	for round := range 2 {
		before := r.Addrs()
		began := time.Now()
		if err := r.Move(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("moved after %v", time.Since(began))
		for _, addr := range before {
			if slices.Contains(r.Addrs(), addr) {
				t.Errorf("%s is still an address", addr)
			}
			if _, err := do(t.Context(), addr, "PING"); err == nil {
				t.Errorf("somebody answers at the old address %s", addr)
			}
		}
		if got := mustDo(t, primary(t, fooSlot).Addr(), "GET", "foo"); got != "1" {
			t.Errorf("round %d: foo is %q after the move", round, got)
		}
	}
	if !slices.Equal(first, r.Addrs()) {
		t.Error("the second move did not lead back")
	}
	fresh, _ := redisClient(t) // begins at a service address
	if err := set(t, fresh, "foo", "2"); err != nil {
		t.Errorf("a client that begins at the service's address: %v", err)
	}
}
