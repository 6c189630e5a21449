package tiers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// slack is what a busy machine may add to a deadline before a test calls it broken.
const slack = 100 * time.Millisecond

const (
	// patient is the Timeout of tests that are not about time.
	patient = 2 * time.Second
	// brisk is the Timeout of tests of a hanging node, whose other shards must answer within it.
	brisk = 250 * time.Millisecond
)

func l2Config(timeout time.Duration) L2Config {
	return L2Config{Addrs: stacktest.Stack().Redis.Addrs(), Timeout: timeout, Logger: slog.New(slog.DiscardHandler)}
}

// openL2 is an L2 on the test's cluster, ready for every slot.
func openL2(tb testing.TB, timeout time.Duration) *L2 {
	tb.Helper()
	ready(tb)
	l, err := OpenL2(l2Config(timeout))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.Close)
	until(tb, "every shard is connected", func() bool { return allClosed(l) })
	return l
}

// ready waits until the cluster is whole, and sees to it that the next test finds it so.
func ready(tb testing.TB) {
	tb.Helper()
	// Not the test's own context: that has ended when cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := stacktest.Stack().Redis.WaitReady(ctx); err != nil {
		tb.Fatal(err)
	}
}

// repair starts every node again when the test ends.
func repair(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := stacktest.Stack().Redis.StartAll(ctx); err != nil {
			t.Error(err)
		}
		ready(t)
	})
}

func allClosed(l *L2) bool {
	shards := l.Shards()
	return len(shards) >= 3 && !slices.ContainsFunc(shards, func(s ShardState) bool { return s.State != "closed" })
}

// until waits for what something else brings about.
func until(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(30 * time.Second)
	for !done() {
		select {
		case <-ticker.C:
		case <-limit:
			tb.Fatalf("waited 30 s in vain: %s", what)
		}
	}
}

// keyOn is a key that the shard serves, a new one each time.
func keyOn(l *L2, address string) string {
	for {
		key := fmt.Sprintf("t:{%x}:k", rand.Uint64())
		if s := l.topology.Load().shard(cluster.Slot(key)); s != nil && s.address == address {
			return key
		}
	}
}

func stateOf(l *L2, address string) ShardState {
	for _, s := range l.Shards() {
		if s.Name == address {
			return s
		}
	}
	return ShardState{Name: address, State: "gone"}
}

// nodeAt is the server process of an address.
func nodeAt(t *testing.T, address string) *devstack.RedisNode {
	t.Helper()
	for _, n := range stacktest.Stack().Redis.Nodes() {
		if n.Addr() == address {
			return n
		}
	}
	t.Fatalf("no node has the address %s", address)
	return nil
}

// bare is a plain client of one node, for what L2 does not do.
func bare(tb testing.TB, address string) rueidis.Client {
	tb.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func mustSet(tb testing.TB, l *L2, key, value string) {
	tb.Helper()
	if err := l.Set(tb.Context(), key, []byte(value), time.Minute); err != nil {
		tb.Fatal(err)
	}
}

func TestL2RoundTrip(t *testing.T) {
	l := openL2(t, patient)
	large := make([]byte, 8<<20)
	for i := range large {
		large[i] = byte(rand.Uint32())
	}
	for name, c := range map[string]struct {
		key   string
		value []byte
	}{
		"plain":         {"t:v1:{p:1}:detail", []byte("value")},
		"nasty key":     {"t:{\x00\r\n\xff\t\"' *$}\r\n$5\r\n:\u2028", []byte("value")},
		"empty key":     {"", []byte("value")},
		"64 KiB key":    {"t:{long}" + strings.Repeat("x", 64<<10), []byte("value")},
		"no hash tag":   {"t:plain{}", []byte("value")},
		"nasty value":   {"t:{nasty}", []byte("\x00\r\n$-1\r\n\xff")},
		"one byte":      {"t:{one}", []byte{0}},
		"8 MiB of rand": {"t:{large}", large},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := l.Get(t.Context(), c.key); !errors.Is(err, ErrMiss) {
				t.Fatalf("before: %v, want a miss", err)
			}
			if err := l.Set(t.Context(), c.key, c.value, time.Minute); err != nil {
				t.Fatal(err)
			}
			got, err := l.Get(t.Context(), c.key)
			if err != nil || !bytes.Equal(got, c.value) {
				t.Fatalf("%d bytes came back, %v; want the %d that were stored", len(got), err, len(c.value))
			}
			if err := l.Unlink(t.Context(), c.key); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Get(t.Context(), c.key); !errors.Is(err, ErrMiss) {
				t.Fatalf("after Unlink: %v, want a miss", err)
			}
		})
	}
}

func TestL2Expires(t *testing.T) {
	l := openL2(t, patient)
	if err := l.Set(t.Context(), "t:{brief}", []byte("x"), 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	until(t, "it expires", func() bool { _, err := l.Get(t.Context(), "t:{brief}"); return errors.Is(err, ErrMiss) })
}

func TestL2Refuses(t *testing.T) {
	l := openL2(t, patient)
	if err := l.Set(t.Context(), "t:{x}", make([]byte, 8<<20+1), time.Minute); !errors.Is(err, ErrTooLarge) {
		t.Errorf("8 MiB and a byte: %v, want ErrTooLarge", err)
	}
	if err := l.Set(t.Context(), "t:{x}", nil, time.Microsecond); err == nil || !strings.Contains(err.Error(), "TTL 1µs") {
		t.Errorf("a TTL of 1µs: %v", err)
	}
	for want, r := range map[string]LeaseRequest{
		"Token": {Key: "t:{x}", LeaseKey: "t:{x}:l", TTL: time.Second},
		"TTL":   {Key: "t:{x}", LeaseKey: "t:{x}:l", Token: "a"},
	} {
		if err := l.Lease(t.Context(), r).Err; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error that names %s", r, err, want)
		}
	}
}

func TestOpenL2NamesEveryProblem(t *testing.T) {
	_, err := OpenL2(L2Config{Addrs: []string{"nowhere", ":1"}, Username: "u", Timeout: time.Microsecond, MaxValue: -1})
	for _, want := range []string{`"nowhere"`, `":1"`, "Password", "Timeout 1µs", "MaxValue -1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
	if _, err := OpenL2(L2Config{}); err == nil || !strings.Contains(err.Error(), "Addrs is empty") {
		t.Errorf("no Addrs: %v", err)
	}
}

func TestL2Many(t *testing.T) {
	l := openL2(t, patient)
	const n = 1000
	keys := make([]string, n)
	var fillings []Filling
	for i := range keys {
		keys[i] = fmt.Sprintf("t:{many %d}", i)
		if i%3 != 0 {
			fillings = append(fillings, Filling{Key: keys[i], Bytes: []byte(keys[i]), TTL: time.Minute})
		}
	}
	for i, err := range l.SetMany(t.Context(), fillings) {
		if err != nil {
			t.Fatalf("set %d: %v", i, err)
		}
	}
	check := func(stored func(i int) bool) {
		t.Helper()
		for i, r := range l.GetMany(t.Context(), keys) {
			if stored(i) && (r.Err != nil || string(r.Bytes) != keys[i]) {
				t.Fatalf("key %d: %q, %v", i, r.Bytes, r.Err)
			}
			if !stored(i) && !errors.Is(r.Err, ErrMiss) {
				t.Fatalf("key %d: %q, %v, want a miss", i, r.Bytes, r.Err)
			}
		}
	}
	check(func(i int) bool { return i%3 != 0 })
	if err := l.Unlink(t.Context(), keys[:n/2]...); err != nil {
		t.Fatal(err)
	}
	check(func(i int) bool { return i%3 != 0 && i >= n/2 })
	if got := l.GetMany(t.Context(), nil); len(got) != 0 {
		t.Errorf("no keys: %v", got)
	}
}

// What another program stored under the key with another type must not stand in the way for ever.
func TestL2ForeignTypeIsAMiss(t *testing.T) {
	l := openL2(t, patient)
	address := l.Shards()[0].Name
	key := keyOn(l, address)
	c := bare(t, address)
	if err := c.Do(t.Context(), c.B().Lpush().Key(key).Element("x").Build()).Error(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Get(t.Context(), key); !errors.Is(err, ErrMiss) {
		t.Fatalf("a list: %v, want a miss", err)
	}
	mustSet(t, l, key, "value")
	if b, err := l.Get(t.Context(), key); err != nil || string(b) != "value" {
		t.Fatalf("after Set: %q, %v", b, err)
	}
}

func TestLeaseIsHeldOnce(t *testing.T) {
	clients := []*L2{openL2(t, patient), openL2(t, patient), openL2(t, patient)}
	for round := range 20 {
		key := fmt.Sprintf("t:{lease %d %x}", round, rand.Uint64())
		var held atomic.Int32
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				r := clients[i%3].Lease(t.Context(), LeaseRequest{key, cluster.Lease(key), fmt.Sprint(i), time.Minute})
				if r.Err != nil {
					t.Error(r.Err)
				}
				if r.Held {
					held.Add(1)
				}
			})
		}
		all.Wait()
		if held.Load() != 1 {
			t.Fatalf("round %d: %d hold the lease", round, held.Load())
		}
	}
}

func TestLeaseBelongsToItsToken(t *testing.T) {
	l := openL2(t, patient)
	key := fmt.Sprintf("t:{token %x}", rand.Uint64())
	take := func(token string) LeaseReply {
		t.Helper()
		r := l.Lease(t.Context(), LeaseRequest{key, cluster.Lease(key), token, time.Minute})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		return r
	}
	if r := take("first"); !r.Held || r.Value != nil {
		t.Fatalf("a free lease: %+v", r)
	}
	if r := take("second"); r.Held {
		t.Fatal("a lease that is held was granted")
	}
	if err := l.Release(t.Context(), cluster.Lease(key), "late"); err != nil {
		t.Fatal(err)
	}
	// Nor does a late fill release it, though its value is stored.
	if err := l.Fill(t.Context(), Filling{key, []byte("late"), time.Minute, cluster.Lease(key), "late"}); err != nil {
		t.Fatal(err)
	}
	if r := take("second"); r.Held || string(r.Value) != "late" {
		t.Fatalf("after a late holder's release and fill: %+v", r)
	}
	if err := l.Fill(t.Context(), Filling{key, []byte("value"), time.Minute, cluster.Lease(key), "first"}); err != nil {
		t.Fatal(err)
	}
	if r := take("second"); !r.Held || string(r.Value) != "value" {
		t.Fatalf("after the holder's fill: %+v", r)
	}
	if err := l.Release(t.Context(), cluster.Lease(key), "second"); err != nil {
		t.Fatal(err)
	}
	if r := take("third"); !r.Held {
		t.Fatal("a released lease is not free")
	}
}

func TestLeaseEndsByTime(t *testing.T) {
	l := openL2(t, patient)
	key := fmt.Sprintf("t:{time %x}", rand.Uint64())
	if r := l.Lease(t.Context(), LeaseRequest{key, cluster.Lease(key), "first", 50 * time.Millisecond}); !r.Held {
		t.Fatalf("%+v", r)
	}
	until(t, "the lease ends", func() bool {
		return l.Lease(t.Context(), LeaseRequest{key, cluster.Lease(key), "second", time.Minute}).Held
	})
}

func TestLeaseMany(t *testing.T) {
	l := openL2(t, patient)
	var leases []LeaseRequest
	for i := range 200 {
		key := fmt.Sprintf("t:{lease many %d %x}", i, rand.Uint64())
		leases = append(leases, LeaseRequest{key, cluster.Lease(key), "a", time.Minute})
	}
	leases[7].Token = ""
	mustSet(t, l, leases[9].Key, "nine")
	for i, r := range l.LeaseMany(t.Context(), leases) {
		switch {
		case i == 7:
			if r.Err == nil {
				t.Error("an empty token was accepted")
			}
		case r.Err != nil || !r.Held || (i == 9) != (string(r.Value) == "nine"):
			t.Fatalf("lease %d: %+v", i, r)
		}
	}
	for i, r := range l.LeaseMany(t.Context(), leases) {
		if i != 7 && (r.Err != nil || r.Held) {
			t.Fatalf("lease %d taken again: %+v", i, r)
		}
	}
}

// get measures a call against its deadline.
func get(t *testing.T, l *L2, key string) ([]byte, error) {
	t.Helper()
	began := time.Now()
	b, err := l.Get(t.Context(), key)
	if took := time.Since(began); took > l.config.timeout()+slack {
		t.Errorf("a call took %v, its Timeout is %v", took, l.config.timeout())
	}
	return b, err
}

func TestL2Authenticates(t *testing.T) {
	ready(t)
	for _, address := range stacktest.Stack().Redis.Addrs() {
		c := bare(t, address)
		if err := c.Do(t.Context(), c.B().Arbitrary("ACL", "SETUSER", "shop", "on", ">secret", "~t:*", "+@all").Build()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	config := l2Config(patient)
	config.Username, config.Password = "shop", "secret"
	l, err := OpenL2(config)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	until(t, "every shard is connected", func() bool { return allClosed(l) })
	mustSet(t, l, "t:{allowed}", "value")
	if err := l.Set(t.Context(), "other", nil, time.Minute); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("a key that the user may not touch: %v", err)
	}
	config.Password = "wrong"
	wrong, err := OpenL2(config)
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	if _, err := wrong.Get(t.Context(), "t:{allowed}"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with a wrong password: %v", err)
	}
}

// One primary dies: the others' keys do not notice, its own get errors at once, then the promoted
// replica serves them, without a breaker to wait for.
func TestL2PrimaryDies(t *testing.T) {
	l := openL2(t, patient)
	repair(t)
	shards := l.Shards()
	dead := shards[rand.IntN(len(shards))].Name
	var keys []string
	for _, s := range shards {
		for range 20 {
			keys = append(keys, keyOn(l, s.Name))
			mustSet(t, l, keys[len(keys)-1], "value")
		}
	}
	deadKey := keyOn(l, dead)
	owner := func(key string) string {
		return shards[slices.IndexFunc(shards, func(s ShardState) bool { return within(s.Slots, cluster.Slot(key)) })].Name
	}
	if err := nodeAt(t, dead).Kill(); err != nil {
		t.Fatal(err)
	}

	until(t, "its shard is off", func() bool { return !l.Available(deadKey) })
	if _, err := get(t, l, deadKey); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("a key of the dead primary: %v", err)
	}
	promoted := false
	until(t, "the promoted replica serves", func() bool {
		for i, r := range l.GetMany(t.Context(), keys) {
			if owner(keys[i]) != dead && (r.Err != nil || string(r.Bytes) != "value") {
				t.Fatalf("a key of %s, which lives: %q, %v", owner(keys[i]), r.Bytes, r.Err)
			}
		}
		for _, s := range shards {
			if now := stateOf(l, s.Name); s.Name != dead && now.State != "closed" {
				t.Fatalf("the breaker of %s is %s", s.Name, now.State)
			}
		}
		_, err := get(t, l, deadKey)
		promoted = err == nil || errors.Is(err, ErrMiss)
		return promoted
	})
	if s := stateOf(l, dead); s.State != "gone" {
		t.Errorf("the dead primary is still a shard: %+v", s)
	}
	if err := l.Set(t.Context(), deadKey, []byte("new"), time.Minute); err != nil {
		t.Errorf("the promoted replica: %v", err)
	}
	if !allClosed(l) {
		t.Errorf("after the failover: %+v", l.Shards())
	}
}

// within reports whether the text of a ShardState's slots has the slot.
func within(slots string, slot uint16) bool {
	for part := range strings.FieldsSeq(slots) {
		var first, last uint16
		if n, _ := fmt.Sscanf(part, "%d-%d", &first, &last); n == 1 {
			last = first
		}
		if first <= slot && slot <= last {
			return true
		}
	}
	return false
}

// A primary hangs: no call takes longer than Timeout, the breaker of that shard alone opens, and when
// the primary goes on, it closes again.
func TestL2PrimaryHangs(t *testing.T) {
	l := openL2(t, patient)
	repair(t)
	shards := l.Shards()
	hung, other := shards[0].Name, shards[1].Name
	node, key, otherKey := nodeAt(t, hung), keyOn(l, hung), keyOn(l, other)
	mustSet(t, l, key, "value")
	mustSet(t, l, otherKey, "other")
	if err := node.Pause(); err != nil {
		t.Fatal(err)
	}

	var longest atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for range 10 {
				began := time.Now()
				replies := l.GetMany(t.Context(), []string{otherKey, key})
				if took := time.Since(began); took > time.Duration(longest.Load()) {
					longest.Store(int64(took))
				}
				if r := replies[0]; r.Err != nil || string(r.Bytes) != "other" {
					t.Errorf("a key of the other shard: %q, %v", r.Bytes, r.Err)
				}
				if r := replies[1]; !errors.Is(r.Err, ErrUnavailable) {
					t.Errorf("a key of the hung primary: %q, %v", r.Bytes, r.Err)
				}
			}
		})
	}
	all.Wait()
	t.Logf("the longest of 500 calls took %v", time.Duration(longest.Load()))
	if took := time.Duration(longest.Load()); took > l.config.timeout()+slack {
		t.Errorf("a call took %v, its Timeout is %v", took, l.config.timeout())
	}
	if s := stateOf(l, hung); s.State != "open" || s.Failures < 5 || s.Refused == 0 {
		t.Errorf("the hung shard: %+v", s)
	}
	if s := stateOf(l, other); s.State != "closed" || s.Failures > 0 {
		t.Errorf("the other shard: %+v", s)
	}
	if l.Available(key) || !l.Available(otherKey) {
		t.Errorf("Available says %v for the hung shard, %v for the other", l.Available(key), l.Available(otherKey))
	}

	if err := node.Resume(); err != nil {
		t.Fatal(err)
	}
	until(t, "the breaker closes", func() bool {
		_, err := get(t, l, key)
		return err == nil && stateOf(l, hung).State == "closed"
	})
}

// A primary hangs for good: its replica takes over, and calls keep their deadline all the while.
func TestL2PrimaryHangsUntilFailover(t *testing.T) {
	l := openL2(t, brisk)
	repair(t)
	hung := l.Shards()[0].Name
	key := keyOn(l, hung)
	if err := nodeAt(t, hung).Pause(); err != nil {
		t.Fatal(err)
	}
	until(t, "the replica serves", func() bool { _, err := get(t, l, key); return errors.Is(err, ErrMiss) })
	if err := nodeAt(t, hung).Resume(); err != nil {
		t.Fatal(err)
	}
	until(t, "the topology is settled", func() bool { return allClosed(l) && stateOf(l, hung).State == "gone" })
}

// Callers that give up say nothing about the shard, and do not fill rueidis' ring, where the next
// callers would wait without a deadline.
func TestL2CallersGiveUp(t *testing.T) {
	l := openL2(t, patient)
	repair(t)
	hung := l.Shards()[0].Name
	key := keyOn(l, hung)
	var all sync.WaitGroup
	for range 50 { // so that rueidis pipelines
		all.Go(func() {
			for range 50 {
				_, _ = l.Get(t.Context(), key)
			}
		})
	}
	all.Wait()
	before := stateOf(l, hung)
	nodes := stacktest.Stack().Redis.Nodes()
	at := slices.Index(nodes, nodeAt(t, hung))
	for _, n := range []*devstack.RedisNode{nodes[(at+3)%6], nodes[at]} { // the two of the shard: nobody takes over
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "calls are refused", func() bool { // on a busy machine many give up before they are sent
		for range 3 * maxOutstanding {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				if _, err := l.Get(ctx, key); !errors.Is(err, ErrUnavailable) {
					t.Errorf("%v", err)
				}
			})
		}
		all.Wait()
		return stateOf(l, hung).Refused > 0
	})
	s := stateOf(l, hung)
	if s.Failures > before.Failures || s.State != "closed" {
		t.Errorf("callers that gave up counted against the shard: %+v", s)
	}
	if sent := s.Requests - before.Requests; sent > maxOutstanding {
		t.Errorf("%d calls were sent without an answer; the most is %d", sent, maxOutstanding)
	}
	if _, err := get(t, l, key); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with a full pipeline: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Get(ctx, keyOn(l, l.Shards()[1].Name)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v", err)
	}
	for _, n := range []*devstack.RedisNode{nodes[at], nodes[(at+3)%6]} {
		if err := n.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the shard serves again", func() bool { _, err := get(t, l, key); return errors.Is(err, ErrMiss) })
}

func TestL2AllDownAndUpAgain(t *testing.T) {
	l := openL2(t, brisk)
	repair(t)
	redis := stacktest.Stack().Redis
	if err := redis.StopAll(); err != nil {
		t.Fatal(err)
	}
	keys := make([]string, 50)
	for i := range keys {
		keys[i] = fmt.Sprintf("t:{down %d}", i)
	}
	began := time.Now()
	for _, r := range l.GetMany(t.Context(), keys) {
		if !errors.Is(r.Err, ErrUnavailable) {
			t.Fatalf("all are down: %v", r.Err)
		}
	}
	if took := time.Since(began); took > l.config.timeout()+slack {
		t.Errorf("with all down a call took %v", took)
	}
	// Opened while nothing runs, by a replica that starts now.
	late, err := OpenL2(l2Config(brisk))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if _, err := get(t, late, "t:{x}"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("never reached: %v", err)
	}
	if s := late.Shards(); len(s) != 1 || s[0].Name != "unreached" || s[0].State != "open" || late.Available("t:{x}") {
		t.Errorf("never reached: %+v", s)
	}

	if err := redis.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, client := range map[string]*L2{"the one from before": l, "the one opened meanwhile": late} {
		until(t, name+" works again", func() bool {
			for _, err := range client.SetMany(t.Context(), []Filling{
				{Key: keys[0], Bytes: []byte("x"), TTL: time.Minute},
				{Key: keys[1], Bytes: []byte("x"), TTL: time.Minute},
				{Key: keys[2], Bytes: []byte("x"), TTL: time.Minute},
			}) {
				if err != nil {
					return false
				}
			}
			return allClosed(client)
		})
	}
}

// The server ends the connections, as a load balancer or CLIENT KILL does: a hiccup, no outage.
func TestL2ConnectionsAreCut(t *testing.T) {
	l := openL2(t, patient)
	for _, s := range l.Shards() {
		c := bare(t, s.Name)
		up := l.topology.Load().at(s.Name).link.Load()
		if err := c.Do(t.Context(), c.B().Arbitrary("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Build()).Error(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		key := keyOn(l, s.Name)
		until(t, "a new connection", func() bool {
			_, _ = l.Get(t.Context(), key) // an idle connection learns of its end from the next call, or the next PING
			now := l.topology.Load().at(s.Name).link.Load()
			return now != nil && now != up
		})
		if took := time.Since(began); took > time.Second {
			t.Errorf("a new connection took %v", took)
		}
		if _, err := get(t, l, key); !errors.Is(err, ErrMiss) {
			t.Errorf("on a new connection: %v", err)
		}
	}
}

// A slot moves from one primary to another while it is read and written: ASK, then MOVED, no error.
func TestL2SlotMigration(t *testing.T) {
	l := openL2(t, patient)
	shards := l.Shards()
	from, to := bare(t, shards[0].Name), bare(t, shards[1].Name)
	keys := []string{keyOn(l, shards[0].Name)}
	tag := keys[0][:strings.Index(keys[0], "}")+1]
	for i := range 40 {
		keys = append(keys, fmt.Sprintf("%s:%d", tag, i))
	}
	slot := int64(cluster.Slot(keys[0]))
	for _, key := range keys[:30] {
		mustSet(t, l, key, key)
	}
	ask := func(c rueidis.Client, args ...string) string {
		t.Helper()
		s, err := c.Do(t.Context(), c.B().Arbitrary(args...).Build()).ToString()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return s
	}
	fromID, toID, slotText := ask(from, "CLUSTER", "MYID"), ask(to, "CLUSTER", "MYID"), fmt.Sprint(slot)
	others := []rueidis.Client{to, from}
	for _, s := range shards[2:] {
		others = append(others, bare(t, s.Name))
	}
	assign := func(id string) {
		for _, c := range others {
			ask(c, "CLUSTER", "SETSLOT", slotText, "NODE", id)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	var reads atomic.Int64
	for reader := range 4 {
		readers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				i := (n*7 + reader) % len(keys)
				b, err := l.Get(t.Context(), keys[i])
				if i < 30 && (err != nil || string(b) != keys[i]) || i >= 30 && !errors.Is(err, ErrMiss) && err != nil {
					t.Errorf("key %d during the migration: %q, %v", i, b, err)
					return
				}
				if r := l.Lease(t.Context(), LeaseRequest{keys[i], cluster.Lease(keys[i]), "a", time.Minute}); r.Err != nil {
					t.Errorf("lease %d during the migration: %v", i, r.Err)
					return
				}
				if i >= 30 {
					if err := l.Fill(t.Context(), Filling{keys[i], []byte(keys[i]), time.Minute, cluster.Lease(keys[i]), "a"}); err != nil {
						t.Errorf("fill %d during the migration: %v", i, err)
						return
					}
				}
				for _, r := range l.GetMany(t.Context(), keys[:30]) {
					if r.Err != nil {
						t.Errorf("GetMany during the migration: %v", r.Err)
						return
					}
				}
				reads.Add(1)
			}
		})
	}
	moreReads := func() {
		until := reads.Load() + 50
		for reads.Load() < until && !t.Failed() {
			if _, err := l.Get(t.Context(), keys[0]); err != nil {
				t.Error(err)
			}
		}
	}
	moreReads()
	ask(to, "CLUSTER", "SETSLOT", slotText, "IMPORTING", fromID)
	ask(from, "CLUSTER", "SETSLOT", slotText, "MIGRATING", toID)
	moreReads()
	host, port, _ := strings.Cut(shards[1].Name, ":")
	for {
		batch, err := from.Do(t.Context(), from.B().ClusterGetkeysinslot().Slot(slot).Count(5).Build()).AsStrSlice()
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			break
		}
		ask(from, append([]string{"MIGRATE", host, port, "", "0", "1000", "REPLACE", "KEYS"}, batch...)...)
		moreReads()
	}
	assign(toID)
	moreReads()
	until(t, "the topology follows", func() bool {
		s := l.topology.Load().shard(uint16(slot))
		return s != nil && s.address == shards[1].Name
	})
	moreReads()
	stop()
	readers.Wait()
	t.Logf("%d rounds of reads, leases and fills", reads.Load())

	// The slot goes back where the cluster's other tests expect it, without keys: theirs that were in it, too.
	for {
		batch, err := to.Do(t.Context(), to.B().ClusterGetkeysinslot().Slot(slot).Count(100).Build()).AsStrSlice()
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			break
		}
		if err := to.Do(t.Context(), to.B().Del().Key(batch...).Build()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(others[:2])
	assign(fromID)
	ready(t)
}

func TestL2Close(t *testing.T) {
	l := openL2(t, brisk)
	repair(t)
	hung := l.Shards()[0].Name
	if err := nodeAt(t, hung).Pause(); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() { _, _ = l.Get(t.Context(), keyOn(l, hung)) })
	}
	began := time.Now()
	l.Close()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Close took %v with a node that hangs", took)
	}
	calls.Wait()
	l.Close()
	if _, err := get(t, l, "t:{x}"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if l.Available("t:{x}") {
		t.Error("after Close it is available")
	}
}

// Which replies of Redis speak against the node that gives them.
func TestHealthyReplies(t *testing.T) {
	l := openL2(t, patient)
	c := bare(t, l.Shards()[0].Name)
	for reply, want := range map[string]bool{
		"LOADING Redis is loading the dataset in memory": false,
		"CLUSTERDOWN The cluster is down":                false,
		"MASTERDOWN Link with MASTER is down":            false,
		"BUSY Redis is busy running a script":            false,
		"READONLY You can't write":                       false,
		"OOM command not allowed":                        true,
		"WRONGTYPE Operation against a key":              true,
		"MOVED 1 127.0.0.1:7000":                         true,
		"ASK 1 127.0.0.1:7000":                           true,
		"NOSCRIPT No matching script":                    true,
		"ERR anything":                                   true,
	} {
		err := c.Do(t.Context(), c.B().Eval().Script("return redis.error_reply(ARGV[1])").Numkeys(0).Arg(reply).Build()).Error()
		if err == nil || healthy(err) != want {
			t.Errorf("healthy(%v) = %v, want %v", err, healthy(err), want)
		}
	}
	if !healthy(nil) || !healthy(rueidis.Nil) || healthy(context.DeadlineExceeded) {
		t.Error("healthy: nil and a nil reply are, a time-out is not")
	}
}

// BenchmarkL2Get reads with L2 and with rueidis alone, in its defaults for a cluster, by turns, so that
// a busy machine burdens both. "x" is the ratio of the medians.
func BenchmarkL2Get(b *testing.B) {
	l := openL2(b, patient)
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: stacktest.Stack().Redis.Addrs(), DisableCache: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = fmt.Sprintf("bench:{%d}", i)
		if err := l.Set(b.Context(), keys[i], catalogue(b, 2000), time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	readers := []struct {
		name string
		get  func(ctx context.Context, key string) error
	}{
		{"rueidis", func(ctx context.Context, key string) error {
			_, err := c.Do(ctx, c.B().Get().Key(key).Build()).AsBytes()
			return err
		}},
		{"l2", func(ctx context.Context, key string) error { _, err := l.Get(ctx, key); return err }},
	}
	const turn = 50
	for _, width := range []int{1, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", width), func(b *testing.B) {
			times := make([][]time.Duration, len(readers))
			for b.Loop() {
				for i, r := range readers {
					var all sync.WaitGroup
					began := time.Now()
					for g := range width {
						all.Go(func() {
							for n := range turn {
								if err := r.get(context.Background(), keys[(g*turn+n)%len(keys)]); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					all.Wait()
					times[i] = append(times[i], time.Since(began)/time.Duration(turn*width))
				}
			}
			for i, r := range readers {
				slices.Sort(times[i])
				b.ReportMetric(float64(times[i][len(times[i])/2]), r.name+"-ns/get")
			}
			b.ReportMetric(float64(times[1][len(times[1])/2])/float64(times[0][len(times[0])/2]), "x")
		})
	}
}
