package node

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
	"github.com/freshet-cache/freshet/tiers"
)

// Node is one replica's part of the cache. It is safe for concurrent use.
type Node struct {
	config Config
	id     string
	boot   uint64
	log    *slog.Logger
	spans  *spans.Tracer
	keys   cluster.Keys

	parts    Parts
	db       *sqlx.DB // Parts.DB, or one whose statements fail
	sweeper  sweeper  // of Parts.L2; nil = it cannot be cleaned
	tracker  *coherence.Tracker
	bulkhead *tiers.Bulkhead
	own      tiers.OwnWrites
	together tiers.TogetherCounts
	watches  *watches
	verifier *verifier
	conn     Link                // nil = none
	bus      *coherence.Bus      // nil = none
	members  *cluster.Membership // nil = none
	peers    *peers              // nil = none
	polls    *coherence.RelayedLog
	relays   atomic.Pointer[relays] // nil = none
	hot      *hotIDs                // nil = none
	puts     atomic.Pointer[queue]  // nil = no cache writes behind
	asks     *asks                  // nil = none
	surveys  chan struct{}          // bounds the surveys under way: one token each
	window   window                 // of the summary

	stop context.CancelFunc // ends the membership
	work sync.WaitGroup

	life     context.Context //nolint:containedctx // of the warm-ups and the clean-up: ends at Close
	end      context.CancelFunc
	warmWork sync.WaitGroup // entered under mu, unless closed

	offDuty  context.CancelFunc // ends the duties; nil = there are none
	dutyWork sync.WaitGroup

	cleanup cleanup // in the background

	due alarm // wakes the duty that runs what is due

	settingsChecked sync.Once // the names in Config.Caches, by Ready

	writes sync.WaitGroup // and transactions of snapshots, and samples, under way; entered under mu, unless closed

	mu        sync.RWMutex
	caches    map[cacheName]known   // every cache made on this node
	warmUps   map[cacheName]*warmUp // of the caches that have one
	described []CacheDescription    // of the caches, in the order in which they were made
	closed    bool

	registered bool // the collector is in the Registry; set by start
	closing    sync.Once
	closeError error // of Close

	counts nodeCounts
}

// cacheName is what distinguishes the caches of a node.
type cacheName struct{ namespace, view string }

// cache is what the node needs of a cache, whatever its type.
type cache interface {
	Entry(ctx context.Context, id string, want tiers.Want) ([]byte, error)
	Hottest(n int) []tiers.Hot
	Cold(ids []string, want tiers.Want) []string
	Warm(ctx context.Context, ids []string, want tiers.Want) (tiers.Warmed, error)
	Verifiable() int
	Verify(ctx context.Context, n int) (tiers.Verified, error)
	L2Key(id string) (string, error)
	Explain(ctx context.Context, id string, want tiers.Want) (tiers.Explanation, error)
	CountUnlink()
	Stats() tiers.Stats
	Settings() tiers.Settings
	Close() error
}

// Open starts a node. It fails for a bad configuration only, with all its problems: Postgres, Redis
// and NATS may be down, and the node works as far as it can until they come. ctx bounds opening.
func Open(ctx context.Context, c Config) (*Node, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("node: open: %w", err)
	}
	return openOn(c, servers) //nolint:contextcheck // what it starts lives as long as the node
}

// OpenOn starts a node on the parts, in place of servers: Config.Postgres.DSN, Redis.Addrs and NATS.URLs stay empty.
// The parts are the node's, also when it fails, which it does for a bad configuration only.
//
// The guarantee is only as good as the parts: each has a suite that it must pass. For an application's own tests there
// are parts in memory, see package nodetest.
func OpenOn(ctx context.Context, c Config, p Parts) (*Node, error) {
	wrong := errors.Join(errors.Join(c.problems()...), p.check(c))
	if wrong == nil && ctx.Err() != nil {
		wrong = fmt.Errorf("node: open: %w", ctx.Err())
	}
	if wrong != nil {
		return nil, errors.Join(wrong, p.close())
	}
	return openOn(c, func(*Node) (Parts, error) { return p, nil }) //nolint:contextcheck // what it starts lives as long as the node
}

// openOn starts a node on the parts, which it owns also when they come with an error.
func openOn(c Config, provide func(*Node) (Parts, error)) (*Node, error) {
	n := &Node{
		config: c, id: c.id(), boot: newBoot(), due: newAlarm(), watches: newWatches(), verifier: newVerifier(),
		surveys: make(chan struct{}, maxSurveys),
		caches:  map[cacheName]known{}, warmUps: map[cacheName]*warmUp{},
	}
	n.window.since = time.Now()
	n.life, n.end = context.WithCancel(context.Background())
	n.log, n.spans = c.logger().With("node", n.id), spans.New(c.Tracer)
	var err error
	if n.parts, err = provide(n); err == nil {
		err = n.start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node: open: %w", err), n.Close())
	}
	return n, nil
}

// start sets the parts to work; Close ends them in the reverse order.
func (n *Node) start() error {
	c := n.config
	if n.db = n.parts.DB; n.db == nil {
		n.db = sqlx.NewDb(sql.OpenDB(noSQL{}), "postgres")
	}
	n.sweeper, _ = n.parts.L2.(sweeper)
	n.polls = coherence.NewRelayedLog(coherence.RelayConfig{
		Direct: n.parts.Log, Ask: n.ask, Patience: c.pollInterval() / 2, Timeout: c.pollInterval(), Idle: 10 * c.pollInterval(),
	})
	n.tracker = coherence.NewTracker(coherence.TrackerConfig{
		Log: n.polls, Boot: n.boot, Interval: c.Postgres.PollInterval, Retention: c.Postgres.Retention, Logger: n.log,
	})
	n.bulkhead = tiers.NewBulkhead(c.Postgres.MaxConns, c.Postgres.Queue)
	var err error
	if n.keys, err = cluster.NewKeys(c.App); err != nil {
		return err
	}
	if n.parts.Connect != nil {
		if err := n.join(); err != nil {
			return err
		}
	}
	if c.Registry != nil {
		if err := c.Registry.Register(n.Collector()); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
		n.registered = true
	}
	var ctx context.Context
	ctx, n.offDuty = context.WithCancel(context.Background())
	n.startDuties(ctx)
	return nil
}

// join connects to the bus and starts what needs it.
func (n *Node) join() error {
	var err error
	if n.conn, err = n.parts.Connect(n.missed); err != nil {
		return err
	}
	if n.bus, err = coherence.OpenBus(n.conn, n.config.App, n.boot, n.hear); err != nil {
		return err
	}
	n.members, err = cluster.NewMembership(cluster.MembershipConfig{
		Conn: n.conn, App: n.config.App, Logger: n.log,
		Self: cluster.Member{ID: n.id, Boot: n.boot, Address: n.config.Address},
		Report: func() cluster.Report {
			return cluster.Report{PollAge: n.pollAge(), Load: uint64(n.bulkhead.Stats().Running), HintSeq: n.bus.Published()}
		},
		OnHeartbeat: func(boot, hints uint64) { n.tracker.Observe(coherence.PeerHeard{Boot: boot, Seq: hints}) },
	})
	if err != nil {
		return err
	}
	if n.peers, err = openPeers(n); err != nil {
		return err
	}
	if n.hot, err = openHot(n); err != nil {
		return err
	}
	if n.asks, err = openAsks(n); err != nil {
		return err
	}
	if c := n.config.relayFrom(); c >= 0 {
		r, err := openRelays(n)
		if err != nil {
			return err
		}
		n.relays.Store(r)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.work.Go(func() {
		if err := n.members.Run(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("node: membership ended", "error", err)
		}
	})
	return nil
}

// missed is told that messages may have been lost, and of each new connection.
func (n *Node) missed() {
	n.tracker.Observe(coherence.HintsMissed{})
	if q := n.puts.Load(); q != nil {
		q.reconnected()
	}
}

// writeBehind enters a cache whose values are written later.
func (n *Node) writeBehind(c follower) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	q := n.puts.Load()
	if q == nil {
		var err error
		if q, err = openQueue(n); err != nil {
			return err
		}
		n.puts.Store(q)
	}
	return q.add(c)
}

// hear takes a hint from the bus.
func (n *Node) hear(h coherence.Hint) {
	if h.Boot != n.boot {
		n.counts.hintsHeard.Add(1)
	}
	n.tracker.Observe(coherence.HintHeard{Hint: h})
}

// Close ends the node: reads and new writes fail with [ErrClosed], writes under way and the transactions of
// snapshots are waited for, up to PostgresConfig.WriteTimeout, and as long for what this replica flushes of later
// puts; other replicas flush the rest. A check of the watches ends within PostgresConfig.LoadTimeout and 1 s.
// Loads under way end, hints are sent, and every goroutine and connection is gone when it returns. It waits for
// loads no longer than twice PostgresConfig.LoadTimeout and 2 s: a source that goes on regardless of its context
// is an error. Closing again does nothing but wait for the first call and return its error.
func (n *Node) Close() error {
	n.closing.Do(func() { n.closeError = n.close() })
	return n.closeError
}

func (n *Node) close() error {
	n.mu.Lock()
	n.closed = true
	caches := n.caches
	n.mu.Unlock()

	if n.registered {
		n.config.Registry.Unregister(n.Collector())
	}
	if n.offDuty != nil {
		n.offDuty()
		n.due.stop()
		n.dutyWork.Wait()
	}
	n.watches.tried()
	n.end()
	n.cleanup.work.Wait()
	problems := []error{n.awaitWarmUps(), n.awaitWrites()}
	if q := n.puts.Load(); q != nil {
		q.close()
	}
	if n.peers != nil {
		n.peers.close()
	}
	if n.hot != nil {
		n.hot.close()
	}
	if n.asks != nil {
		n.asks.close()
	}
	if r := n.relays.Load(); r != nil {
		r.close()
	}
	ended := make([]error, len(caches))
	var loads sync.WaitGroup
	for i, c := range slices.Collect(maps.Values(caches)) {
		loads.Go(func() { ended[i] = c.Close() })
	}
	loads.Wait()
	problems = append(problems, ended...)
	if n.stop != nil {
		n.stop()
		n.work.Wait()
	}
	if n.bus != nil {
		problems = append(problems, n.bus.Close())
	}
	if n.conn != nil {
		_ = n.conn.Flush(time.Second) // hints are in the connection's buffer: let the server have them
		n.conn.Close()
	}
	if n.tracker == nil {
		return errors.Join(append(problems, n.parts.close())...)
	}
	if n.parts.L2 != nil {
		n.parts.L2.Close()
	}
	problems = append(problems, n.tracker.Close())
	// A pool ends whatever its Close says: it fails for a good-bye on a connection that Postgres has left already.
	_ = n.db.Close()
	if n.parts.Loads != nil {
		_ = n.parts.Loads.Close()
	}
	return errors.Join(problems...)
}

// ID is the node's name among its peers.
func (n *Node) ID() string { return n.id }

// DB is a pool of connections to Postgres for the application's own statements. It is closed with the
// node. What is changed through it without a watch trigger or freshet.invalidate goes unnoticed; use
// [Node.Write]. On [Parts] without SQL every statement fails.
func (n *Node) DB() *sqlx.DB { return n.db }

// Ready returns when the node has polled the log for the first time and can answer FRESH, has tried to check the
// watches of tables, and each [WarmUp] of its caches is done or has had its time; or with an error when ctx ends
// before. It also waits until every shard of Redis is connected, but no longer than 1 s, and with a cache that writes
// behind until the node knows the pending puts, but no longer than 2 s: Redis and NATS may be away. ([Open] has tried to
// connect to NATS.)
func (n *Node) Ready(ctx context.Context) error {
	began := time.Now()
	if err := n.polled(ctx); err != nil {
		return err
	}
	for n.storeAway() && time.Since(began) < storePatience && idle(ctx, yieldPause) {
	}
	if q := n.puts.Load(); q != nil {
		q.awaitFollowing(ctx)
	}
	n.settingsChecked.Do(n.warnOfSettings)
	n.mu.RLock()
	warmUps := slices.Collect(maps.Values(n.warmUps))
	n.mu.RUnlock()
	for _, w := range warmUps {
		select {
		case <-w.done:
		case <-n.life.Done():
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("node: not ready: warming up %s (%s): %w", w.name.namespace, w.name.view, ctx.Err())
		}
	}
	return nil
}

// polled returns when the node has polled the log for the first time.
func (n *Node) polled(ctx context.Context) error {
	for {
		if n.tracker.Latest() != nil {
			return n.watchesChecked(ctx)
		}
		if _, err := n.tracker.Barrier(ctx); err == nil {
			return n.watchesChecked(ctx)
		} else if errors.Is(err, coherence.ErrTrackerClosed) {
			return ErrClosed
		} else if ctx.Err() != nil {
			return fmt.Errorf("node: not ready: %w", err)
		}
	}
}

// watchesChecked waits for the first check of the watches, whatever comes of it.
func (n *Node) watchesChecked(ctx context.Context) error {
	if n.parts.Loads == nil {
		return nil
	}
	select {
	case <-n.watches.first:
		n.mu.RLock()
		defer n.mu.RUnlock()
		if n.closed {
			return ErrClosed
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("node: not ready: the watches of tables are not checked: %w", context.Cause(ctx))
	}
}

// pollAge is how old the node's knowledge is; a day if it has none.
func (n *Node) pollAge() time.Duration {
	poll := n.tracker.Latest()
	if poll == nil {
		return 24 * time.Hour
	}
	return n.tracker.Now().Sub(poll.Sent)
}

// newBoot names this start of the process: later starts have higher numbers, as membership wants it,
// and random low bits tell apart two that happen at once.
func newBoot() uint64 {
	var b [2]byte
	_, _ = rand.Read(b[:]) // crypto/rand does not fail
	return uint64(time.Now().UnixNano())&^0xffff | uint64(binary.BigEndian.Uint16(b[:]))
}
