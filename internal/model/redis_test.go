package model

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/tiers"
)

// long is a TTL that does not end within a test.
const long = time.Hour

// cache is the real cluster as the library uses it, beside the model.
type cache struct {
	t      *testing.T
	l2     *tiers.L2
	model  *Redis
	prefix string
	trace  []string
}

func openCache(t *testing.T) *cache {
	t.Helper()
	stack := stacktest.Stack().Redis
	if err := stack.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &cache{t: t, model: NewRedis(3), prefix: strings.ToLower(t.Name())}
	var err error
	c.l2, err = tiers.OpenL2(tiers.L2Config{Addrs: stack.Addrs(), Timeout: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.l2.Close)
	c.ready()
	return c
}

// ready waits until every shard answers.
func (c *cache) ready() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for number := 0; number < names; {
		if _, err := c.l2.Get(ctx, c.key(number)); err == nil || errors.Is(err, tiers.ErrMiss) {
			number++
			continue
		}
		select {
		case <-ctx.Done():
			c.t.Fatal("a shard does not answer")
		case <-tick.C:
		}
	}
}

// names is how many keys a schedule uses.
const names = 9

func (c *cache) key(number int) string { return fmt.Sprintf("%s:{%d}:v", c.prefix, number) }

func (c *cache) leaseKey(number int) string { return fmt.Sprintf("%s:{%d}:lease", c.prefix, number) }

// both compares what the sides said.
func (c *cache) both(command string, model, actual any) {
	c.t.Helper()
	c.trace = append(c.trace, fmt.Sprintf("%s -> %v", command, actual))
	if fmt.Sprint(model) != fmt.Sprint(actual) {
		c.t.Fatalf("%s\n%s: the model says %v, the server %v", strings.Join(c.trace, "\n"), command, model, actual)
	}
}

// play runs random commands on both sides.
func (c *cache) play(r *rand.Rand, n int) {
	c.t.Helper()
	ctx, m := c.t.Context(), c.model
	for range n {
		number, token, value := r.IntN(names), fmt.Sprint("token", r.IntN(3)), fmt.Sprint(r.IntN(100))
		key, leaseKey := c.key(number), c.leaseKey(number)
		switch r.IntN(7) {
		case 0, 1:
			c.get(number)
		case 2, 3:
			reply := c.l2.Lease(ctx, tiers.LeaseRequest{Key: key, LeaseKey: leaseKey, Token: token, TTL: long})
			held := m.Lease(0, leaseKey, token, long)
			found, _ := m.Get(0, key)
			c.both(fmt.Sprintf("lease %d, %s", number, token), fmt.Sprintf("%t %s %v", held, found, nil), fmt.Sprintf("%t %s %v", reply.Held, reply.Value, reply.Err))
		case 4:
			err := c.l2.Fill(ctx, tiers.Filling{Key: key, Bytes: []byte(value), TTL: long, LeaseKey: leaseKey, Token: token})
			m.Set(0, key, value, long)
			m.Release(0, leaseKey, token)
			c.both(fmt.Sprintf("fill %d with %s, %s", number, value, token), nil, err)
		case 5:
			err := c.l2.Release(ctx, leaseKey, token)
			m.Release(0, leaseKey, token)
			c.both(fmt.Sprintf("release %d, %s", number, token), nil, err)
		case 6:
			err := c.l2.Unlink(ctx, key)
			m.Unlink(0, key)
			c.both(fmt.Sprint("unlink ", number), nil, err)
		}
	}
}

func (c *cache) get(number int) {
	c.t.Helper()
	model, ok := c.model.Get(0, c.key(number))
	actual, err := c.l2.Get(c.t.Context(), c.key(number))
	c.both(fmt.Sprint("get ", number), fmt.Sprintf("%q %t", model, ok), fmt.Sprintf("%q %t", actual, !errors.Is(err, tiers.ErrMiss)))
}

// same compares all keys, leases too.
func (c *cache) same(when string) {
	c.t.Helper()
	c.trace = append(c.trace, when)
	for number := range names {
		c.get(number)
		held, err := c.l2.Get(c.t.Context(), c.leaseKey(number))
		model, ok := c.model.Get(0, c.leaseKey(number))
		c.both(fmt.Sprint("lease of ", number), fmt.Sprintf("%q %t", model, ok), fmt.Sprintf("%q %t", held, !errors.Is(err, tiers.ErrMiss)))
	}
}

// Seeded commands of the library on the model and on the cluster: every reply is the same.
func TestRedisAgrees(t *testing.T) {
	c := openCache(t)
	for seed := *firstSeed; seed < *firstSeed+uint64(*schedules); seed++ {
		c.trace = []string{fmt.Sprint("seed ", seed)}
		c.play(rand.New(rand.NewPCG(seed, 0)), 60)
		c.same("in the end")
		if err := stacktest.Stack().Redis.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for shard := range c.model.Shards() {
			c.model.Flush(shard)
		}
		c.same("flushed")
	}
}

// The model's slots are where the cluster has them.
func TestRedisShards(t *testing.T) {
	c := openCache(t)
	nodes := stacktest.Stack().Redis.Nodes()
	for shard, first := range c.model.first {
		for _, slot := range []uint16{first, (first + cluster.Slots - 1) % cluster.Slots} {
			node, err := stacktest.Stack().Redis.Primary(slot)
			if err != nil {
				t.Fatal(err)
			}
			want := shard
			if slot != first {
				want = (shard + 2) % 3
			}
			if actual := slices.Index(nodes, node) % 3; actual != want {
				t.Errorf("slot %d: in the model at shard %d, on the server at %d", slot, want, actual)
			}
		}
	}
}

// A value is there until its time is over, and then it is not.
func TestRedisExpires(t *testing.T) {
	c := openCache(t)
	const ttl = 30 * time.Millisecond
	key := c.key(0)
	before := time.Now()
	if err := c.l2.Set(t.Context(), key, []byte("v"), ttl); err != nil {
		t.Fatal(err)
	}
	after := time.Now()
	c.model.Set(0, key, "v", ttl)
	for gone := false; !gone; {
		asked := time.Since(after)
		_, err := c.l2.Get(t.Context(), key)
		answered := time.Since(before)
		gone = errors.Is(err, tiers.ErrMiss)
		// The server did both somewhere in between, and rounds to milliseconds.
		if _, there := c.model.Get(answered+time.Millisecond, key); gone && there {
			t.Fatalf("gone after %v at most", answered)
		}
		if asked > ttl+2*time.Millisecond && !gone {
			t.Fatalf("there after %v at least", asked)
		}
	}
}

// A primary killed before it replicated: its replica takes over without those commands.
func TestRedisFailsOver(t *testing.T) {
	c := openCache(t)
	stack := stacktest.Stack().Redis
	r := rand.New(rand.NewPCG(*firstSeed, 1))
	shard := c.model.Shard(c.key(0))
	slot := cluster.Slot(c.key(0))
	c.play(r, 60)
	nodes, err := stack.Shard(slot)
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.CutReplication(t.Context(), nodes[0]); err != nil {
		t.Fatal(err)
	}
	for i := range c.model.Shards() {
		c.model.Replicate(i, c.model.Behind(i))
	}
	c.play(r, 60)
	c.same("before the failover")
	if err := nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := stack.AwaitSuccessor(t.Context(), slot, nodes[0]); err != nil {
		t.Fatal(err)
	}
	c.ready()
	if lost := c.model.Failover(shard); lost == 0 {
		t.Error("nothing was lost")
	}
	c.same("after the failover")
	c.play(r, 60)
	if err := errors.Join(nodes[0].Start(t.Context()), stack.HealReplication(t.Context()), stack.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	c.ready()
	c.same("whole again")
}

// A shard that comes back with an old dump.
func TestRedisComesBackWithADump(t *testing.T) {
	c := openCache(t)
	stack := stacktest.Stack().Redis
	r := rand.New(rand.NewPCG(*firstSeed, 2))
	shard := c.model.Shard(c.key(0))
	c.play(r, 60)
	if err := stack.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	dump := c.model.Save(shard)
	c.play(r, 60)
	nodes, err := stack.Shard(cluster.Slot(c.key(0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stack.Restore(t.Context(), nodes...), stack.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	c.ready()
	c.model.Restart(shard, dump)
	c.same("with the dump")
	c.play(r, 60)
}
