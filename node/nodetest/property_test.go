package nodetest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/internal/history"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodetest"
	"github.com/freshet-cache/freshet/tiers"
)

// Clients read and write a few keys by all ways that there are, while everything fails, as a seed has it. Every
// answer goes into a history, which the judge of all layers judges.

// state is a row: the number of the write that made it.
type state struct{ Op uint64 }

const (
	worldKeys  = 6
	worldNodes = 3
	worldLasts = 8 * time.Second // of virtual time
)

// world is one run.
type world struct {
	t     *testing.T
	began time.Time
	*nodetest.Cluster
	table  *nodetest.Table[state]
	source node.Source[state] // nil = the table's
	turns  [worldKeys]chan struct{}

	mu      sync.Mutex
	random  *rand.Rand
	places  [worldNodes]place
	starts  uint32
	ops     uint64
	history history.History
}

// place is a node as it was started last.
type place struct {
	number uint32
	node   *node.Node
	cache  *node.Cache[state]
}

// newWorld makes a world whose table logs the changes of the namespace: "state" is that of the caches.
func newWorld(t *testing.T, seed uint64, namespace string) *world {
	t.Helper()
	w := &world{
		t: t, began: time.Now(), random: rand.New(rand.NewPCG(seed, 7)),
		Cluster: nodetest.New(t, nodetest.Config{Nodes: worldNodes, Seed: seed, Node: node.Config{
			MaxStale: time.Minute, Verify: node.VerifyConfig{Every: time.Second},
		}}),
	}
	w.table = nodetest.NewTable[state](w.Cluster, namespace)
	for key := range w.turns {
		w.turns[key] = make(chan struct{}, 1)
	}
	return w
}

func (w *world) enter(i int, n *node.Node) {
	w.t.Helper()
	source := w.source
	if source == nil {
		source = w.table.Source()
	}
	cache, err := node.NewCache(n, node.CacheConfig[state]{
		Namespace: "state", Source: source, Store: w.table.Store(), TTL: time.Second, Refresh: node.Refresh{Ahead: 0.5},
	})
	if err != nil {
		w.t.Error(err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts++
	w.places[i] = place{w.starts, n, cache}
}

func (w *world) now() time.Duration { return time.Since(w.began) }

func (w *world) upTo(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random.IntN(n)
}

func (w *world) at(i int) place {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.places[i]
}

// rest lets up to so much virtual time pass, and some.
func (w *world) rest(most time.Duration) { pass(time.Duration(w.upTo(int(most))) + time.Microsecond) }

func idOf(key int) string { return strconv.Itoa(key) }

// write makes one or two keys new by one of the ways that there are.
func (w *world) write(ctx context.Context, session uint64, token node.Token) node.Token {
	first, second := w.upTo(worldKeys), w.upTo(worldKeys)
	keys := []int{min(first, second), max(first, second)}
	if first == second || w.upTo(2) == 0 {
		keys = []int{first}
	}
	before, ops := make([]uint64, len(keys)), make([]uint64, len(keys))
	absent := w.upTo(5) == 0
	for i, key := range keys { // in their order, so that nobody waits in a circle
		select {
		case w.turns[key] <- struct{}{}:
			defer func() { <-w.turns[key] }()
		case <-ctx.Done():
			return token
		}
		s, _ := w.table.Get(idOf(key))
		w.mu.Lock()
		w.ops++
		before[i], ops[i] = s.Op, w.ops
		w.mu.Unlock()
	}
	change := func(tx *nodetest.Tx) error {
		for i, key := range keys {
			err := w.table.SetIn(tx, idOf(key), state{ops[i]})
			if absent {
				err = w.table.DeleteIn(tx, idOf(key))
			}
			if err != nil {
				return err
			}
		}
		w.rest(30 * time.Millisecond) // others begin and commit meanwhile
		return nil
	}
	sent := w.now()
	p := w.at(w.upTo(worldNodes))
	var got node.Token
	var err error
	switch w.upTo(3) {
	case 0:
		session = 0 // there is no token
		err = w.Commit(change)
	case 1:
		got, err = p.node.Write(ctx, func(tx *node.Tx) error { return change(nodetest.TxOf(tx)) })
	default:
		values, ids := map[string]state{}, []string{}
		for i, key := range keys {
			values[idOf(key)] = state{ops[i]}
			ids = append(ids, idOf(key))
		}
		if absent {
			got, err = p.cache.Delete(ctx, ids...)
		} else {
			got, err = p.cache.SetMany(ctx, values)
		}
	}
	acked := w.now()
	if err != nil {
		acked, got = history.Never, node.Token{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, key := range keys {
		if s, _ := w.table.Get(idOf(key)); s.Op == before[i] {
			continue // nothing was committed
		}
		w.history.Commits = append(w.history.Commits, history.Commit{
			Key: uint64(key), Op: ops[i], Absent: absent, Sent: sent, Acked: acked, Session: session,
		})
	}
	return token.Merge(got)
}

// read reads a key on a node, enters the answer in the history, and returns the token of who has seen it.
func (w *world) read(ctx context.Context, p place, key int, session uint64, token node.Token, budget time.Duration) node.Token {
	invoked := w.now()
	e, err := p.cache.Lookup(ctx, idOf(key), node.Within(budget), node.AtLeast(token))
	returned := w.now()
	if ctx.Err() != nil || errors.Is(err, node.ErrClosed) {
		return token
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && !errors.Is(err, node.ErrNotFound) {
		w.history.Failures = append(w.history.Failures, history.Failure{At: invoked, Replica: p.number})
		return token
	}
	w.history.Reads = append(w.history.Reads, history.Read{
		Key: uint64(key), Op: e.Value.Op, Fresh: e.Fresh, Tier: uint8(e.Tier), Replica: p.number, Session: session,
		Budget: budget, Invoked: invoked, Returned: returned,
	})
	return token.Merge(e.Token)
}

// fault has something go wrong, mostly for a while.
func (w *world) fault() {
	i := w.upTo(worldNodes)
	switch w.upTo(16) {
	case 0:
		w.PostgresAway(i)
	case 1:
		w.PostgresHangs(i)
	case 2:
		w.PostgresSlow(i, time.Duration(w.upTo(int(300*time.Millisecond))))
	case 3:
		w.PostgresLosesCommits(i)
	case 4:
		w.CrashPostgres()
	case 5:
		w.RedisAway(i)
	case 6:
		w.RedisFails(i)
	case 7:
		w.RedisSlow(i, time.Duration(w.upTo(int(100*time.Millisecond))))
	case 8:
		w.FlushRedis()
	case 9:
		dump := w.DumpRedis()
		w.rest(time.Second)
		w.RestoreRedis(dump, time.Minute)
	case 10:
		w.NATSAway(i)
	case 11:
		w.NATSMute(i)
	case 12:
		w.NATSFaults(conntest.Faults{Drop: 0.2, Duplicate: 0.2, Delay: time.Second})
	case 13:
		w.Partition(i)
	case 14:
		w.Kill(i)
		w.rest(time.Second)
		w.enter(i, w.Start(i))
	default:
		w.enter(i, w.Start(i))
	}
	w.rest(1500 * time.Millisecond)
	w.Heal(nodetest.All)
}

// run has clients at work and everything fail, heals it, reads everything everywhere, and returns the verdict.
func (w *world) run() *history.Report {
	w.t.Helper()
	for i, n := range w.Nodes() {
		w.enter(i, n)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), worldLasts)
	defer cancel()
	var clients sync.WaitGroup
	again := func(pause time.Duration, do func()) {
		clients.Go(func() {
			for ctx.Err() == nil {
				do()
				w.rest(pause)
			}
		})
	}
	for i := range worldNodes {
		for _, budget := range []time.Duration{0, 100 * time.Millisecond, time.Second, time.Second} {
			again(40*time.Millisecond, func() { w.read(ctx, w.at(i), w.upTo(worldKeys), 0, node.Token{}, budget) })
		}
	}
	for session := range uint64(4) { // those that wander between the nodes with a token
		var token node.Token
		again(60*time.Millisecond, func() {
			if w.upTo(3) == 0 {
				token = w.write(ctx, session+1, token)
			} else {
				token = w.read(ctx, w.at(w.upTo(worldNodes)), w.upTo(worldKeys), session+1, token, time.Second)
			}
		})
	}
	again(100*time.Millisecond, func() { w.write(ctx, 0, node.Token{}) })
	clients.Go(func() {
		for ctx.Err() == nil {
			w.fault()
			w.rest(500 * time.Millisecond)
		}
	})
	clients.Wait()
	w.Heal(nodetest.All)
	pass(time.Second)
	for i := range worldNodes {
		for key := range worldKeys {
			before := len(w.history.Reads)
			if w.read(w.t.Context(), w.at(i), key, 0, node.Token{}, time.Second); len(w.history.Reads) == before {
				w.t.Errorf("node %d has no answer for key %d after all has healed", i, key)
				continue
			}
			w.history.Sweep = append(w.history.Sweep, w.history.Reads[before])
		}
	}
	return history.Judge(&w.history, history.Options{})
}

// I1, I2, I3, I4, I5: whatever fails.
func TestI1I2I3I4I5ByKit(t *testing.T) {
	seeds := uint64(8)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed, "state")
				r := w.run()
				for invariant, n := range r.ByInvariant {
					t.Errorf("%v is violated %d times", invariant, n)
				}
				for _, violation := range r.Kept {
					t.Error(violation)
				}
				for _, n := range w.Nodes() {
					if found := n.Mismatches(); len(found) > 0 {
						t.Errorf("%s has found mismatches: %+v", n.ID(), found)
					}
				}
				if r.Fresh == 0 || len(w.history.Commits) == 0 {
					t.Errorf("%d FRESH answers of %d commits", r.Fresh, len(w.history.Commits))
				}
				t.Logf("%d reads, %d FRESH, %d failures, %d commits, by tier %v", r.Reads, r.Fresh, r.Failures, len(w.history.Commits), r.ByTier)
			})
		})
	}
}

// What is not as the kit has it is caught.
func TestI1BrokenIsCaught(t *testing.T) {
	for name, broken := range map[string]func(t *testing.T) *world{
		"ChangesOfAnotherNamespace": func(t *testing.T) *world {
			t.Helper()
			return newWorld(t, 1, "other")
		},
		"SnapshotAfterTheRead": func(t *testing.T) *world {
			t.Helper()
			w := newWorld(t, 1, "state")
			w.source = func(n *node.Node) (tiers.Source[state], error) {
				inner, err := w.table.Source()(n)
				return hasty{inner}, err
			}
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if r := broken(t).run(); r.ByInvariant[history.I1] == 0 {
					t.Errorf("of %d FRESH answers none is found to be too old", r.Fresh)
				}
			})
		})
	}
}

// hasty is a source that takes its snapshot when it has read, so that it claims to have seen what it has not.
type hasty struct{ tiers.Source[state] }

// Load implements [tiers.Source].
func (s hasty) Load(ctx context.Context, ids []string) (tiers.Batch[state], error) {
	read, err := s.Source.Load(ctx, ids)
	if err != nil {
		return read, err
	}
	pass(20 * time.Millisecond)
	later, err := s.Source.Load(ctx, ids)
	read.Snapshot = later.Snapshot
	return read, err
}
