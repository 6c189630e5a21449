package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/cluster/conntest"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
	"github.com/freshet-cache/freshet/internal/history"
	"github.com/freshet-cache/freshet/tiers"
	"github.com/freshet-cache/freshet/tiers/l2test"
)

// These tests run whole nodes in virtual time, on stand-ins for Postgres, Redis and NATS that pass the
// suites which the real ones pass. Every answer goes into a history, which the judge of all layers
// judges.

// row is what a world's source has under a key: the number of the write that made it.
type row struct{ Op uint64 }

// world is one database with the replicas on it.
type world struct {
	t     *testing.T
	began time.Time
	log   *logtest.Memory
	hub   *conntest.Hub
	l2    *l2test.Memory

	mu       sync.Mutex       // also makes a commit and the row it changes one step
	cache    CacheConfig[row] // of replicas that are opened
	random   *rand.Rand
	rows     map[uint64]uint64          // key -> op; none = absent
	loads    map[uint64][]time.Duration // key -> when loads of it began
	delay    time.Duration              // of every load
	ops      uint64
	history  history.History
	replicas []*virtual
	sampled  NamespaceStats // what the samples of those that have closed came to
	number   uint32         // of replicas by now

	changes map[uint64]change // op -> what more is known of its commit
	graced  []gracedRead

	turns map[uint64]chan struct{} // key -> capacity 1: who writes it holds the token, as a row's lock
}

const (
	worldKeys     = 8
	worldReplicas = 3
	// worldLatency bounds one way to Postgres, and how long a transaction stays open.
	worldLatency = 8 * time.Millisecond
)

// change is a commit, as those who judge graces need it.
type change struct {
	at    time.Duration
	grace time.Duration // 0 = none
}

// gracedRead is an answer that was given in its grace.
type gracedRead struct {
	key, op  uint64
	replica  uint32
	returned time.Duration
	age      time.Duration
}

// worldGrace is that of a quarter of the writes.
const worldGrace = 1500 * time.Millisecond

// virtual is one replica, and its ways to the parts.
type virtual struct {
	world  *world
	number uint32
	node   *Node
	rows   *Cache[row]
	log    *postgresWay
	l2     *l2test.Link
	bus    *conntest.Conn
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	return newWorldOf(t, seed, CacheConfig[row]{})
}

// newWorldOf is one whose replicas have such a cache.
func newWorldOf(t *testing.T, seed uint64, cache CacheConfig[row]) *world {
	t.Helper()
	w := &world{
		cache: cache,
		t:     t, began: time.Now(), log: logtest.NewMemory(), hub: conntest.NewHub(seed), l2: l2test.NewMemory(0),
		random: rand.New(rand.NewPCG(seed, 1)), rows: map[uint64]uint64{}, loads: map[uint64][]time.Duration{}, turns: map[uint64]chan struct{}{},
		changes: map[uint64]change{},
	}
	for key := range uint64(worldKeys) {
		w.turns[key] = make(chan struct{}, 1)
	}
	for range worldReplicas {
		w.replicas = append(w.replicas, w.open())
	}
	return w
}

func (w *world) now() time.Duration { return time.Since(w.began) }

// upTo is a random time.
func (w *world) upTo(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.random.Int64N(int64(d)))
}

func (w *world) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random.Float64() < p
}

// open starts a replica and waits until it is ready.
func (w *world) open() *virtual {
	w.t.Helper()
	w.mu.Lock()
	w.number++
	v := &virtual{world: w, number: w.number, l2: w.l2.Link()}
	w.mu.Unlock()
	v.log = &postgresWay{Memory: w.log, world: w}
	c := Config{
		App: "virtual", ID: fmt.Sprintf("r%d", v.number), Logger: slog.New(slog.DiscardHandler),
		Verify: VerifyConfig{Every: time.Second, Sample: 2 * worldKeys},
	}
	var err error
	v.node, err = openOn(c, func(*Node) (Parts, error) {
		connect := func(missed func()) (Link, error) {
			v.bus = w.hub.Connect(missed)
			return v.bus, nil
		}
		return Parts{Log: v.log, L2: v.l2, Connect: connect}, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	cache := w.cache
	cache.Namespace, cache.Source = "row", func(*Node) (tiers.Source[row], error) { return v, nil }
	v.rows, err = NewCache(v.node, cache)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// postgresWay is one replica's way to Postgres: to the log, and for its loads and writes.
type postgresWay struct {
	*logtest.Memory
	world *world

	mu  sync.Mutex
	cut bool
}

func (p *postgresWay) Cut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
}

var errPostgresAway = errors.New("no answer from Postgres")

// travel takes as long as one way does. Without a connection it takes as long as a poll may.
func (p *postgresWay) travel(ctx context.Context) error {
	p.mu.Lock()
	cut := p.cut
	p.mu.Unlock()
	d := p.world.upTo(worldLatency)
	if cut {
		d = time.Second
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if cut {
		return errPostgresAway
	}
	return nil
}

// Poll implements [coherence.Log].
func (p *postgresWay) Poll(ctx context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	if err := p.travel(ctx); err != nil {
		return coherence.PollResult{}, err
	}
	r, err := p.Memory.Poll(ctx, since, limit)
	return r, cmp.Or(err, p.travel(ctx))
}

// Close implements [coherence.Log]; the log is everybody's.
func (p *postgresWay) Close() error { return nil }

// Load implements [tiers.Source].
func (v *virtual) Load(ctx context.Context, ids []string) (tiers.Batch[row], error) {
	if err := v.log.travel(ctx); err != nil {
		return tiers.Batch[row]{}, err
	}
	v.world.mu.Lock()
	for _, id := range ids {
		v.world.loads[rowKey(id)] = append(v.world.loads[rowKey(id)], v.world.now())
	}
	delay := v.world.delay
	v.world.mu.Unlock()
	rest(delay)
	batch := tiers.Batch[row]{Values: map[string]row{}}
	v.world.mu.Lock()
	batch.Snapshot = v.world.log.Snapshot()
	for _, id := range ids {
		if op, ok := v.world.rows[rowKey(id)]; ok {
			batch.Values[id] = row{op}
		}
	}
	v.world.mu.Unlock()
	return batch, v.log.travel(ctx)
}

// slow makes loads take so much longer.
func (w *world) slow(delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = delay
}

func rowKey(id string) uint64 {
	key, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		panic(err) // an id of this file
	}
	return key
}

func rowID(key uint64) string { return strconv.FormatUint(key, 10) }

var errRolledBack = errors.New("Postgres crashed before the commit")

// transact changes a key in one transaction, like [Node.transact].
func (w *world) transact(ctx context.Context, p *postgresWay, key, session, op uint64) (written, error) {
	if err := p.travel(ctx); err != nil {
		return written{}, err
	}
	w.mu.Lock()
	tx := w.log.Begin()
	timeline := w.log.Snapshot().Timeline
	w.mu.Unlock()
	scope := coherence.Entity("row", rowID(key))
	sent := w.now()
	rest(w.upTo(worldLatency))
	absent := w.chance(0.15)
	w.mu.Lock()
	if w.log.Snapshot().Timeline != timeline {
		w.mu.Unlock()
		return written{}, errRolledBack
	}
	var grace time.Duration
	if w.random.Float64() < 0.25 {
		grace = worldGrace
	}
	tx.Grace(grace)
	tx.Change(scope)
	tx.Commit()
	w.changes[op] = change{w.now(), grace}
	if w.rows[key] = op; absent {
		delete(w.rows, key)
	}
	w.history.Commits = append(w.history.Commits, history.Commit{
		Key: key, Op: op, Absent: absent, Sent: sent, Acked: history.Never, Session: session,
	})
	w.mu.Unlock()
	// If the answer is lost, nobody knows the outcome.
	done := written{Written: Written{Timeline: timeline, XID: tx.XID(), Scopes: []coherence.Scope{scope}}}
	if grace > 0 {
		done.Graced, done.Scopes = map[time.Duration][]coherence.Scope{grace: done.Scopes}, nil
	}
	return done, p.travel(ctx)
}

// write changes a key through the replica, or as another service does if v is nil.
func (w *world) write(ctx context.Context, v *virtual, key, session uint64) (Token, error) {
	select {
	case w.turns[key] <- struct{}{}:
		defer func() { <-w.turns[key] }()
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	w.mu.Lock()
	w.ops++
	op := w.ops
	w.mu.Unlock()
	var token Token
	var err error
	if v != nil {
		token, err = v.node.write(ctx, func() (written, error) {
			since := v.node.tracker.Now()
			done, err := w.transact(ctx, v.log, key, session, op)
			done.since = since
			return done, err
		})
	} else {
		_, err = w.transact(ctx, &postgresWay{world: w}, key, session, op)
	}
	if err != nil {
		return token, err
	}
	acked := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.history.Commits) - 1; i >= 0; i-- {
		if w.history.Commits[i].Op == op {
			w.history.Commits[i].Acked = acked
			break
		}
	}
	return token, nil
}

// anyBudget is that of reads that name none.
const anyBudget = -time.Second

// read reads a key and enters the answer in the history. It returns the token of who has seen it.
func (v *virtual) read(ctx context.Context, key, session uint64, token Token, budget, stale time.Duration) Token {
	w := v.world
	invoked := w.now()
	options := []ReadOption{StaleWithin(stale), AtLeast(token)}
	if budget == anyBudget {
		budget = -anyBudget
	} else {
		options = append(options, Within(budget))
	}
	e, err := v.rows.Lookup(ctx, rowID(key), options...)
	returned := w.now()
	if ctx.Err() != nil {
		return token
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && !errors.Is(err, ErrNotFound) {
		w.history.Failures = append(w.history.Failures, history.Failure{At: invoked, Replica: v.number})
		return token
	}
	w.history.Reads = append(w.history.Reads, history.Read{
		Key: key, Op: e.Value.Op, Fresh: e.Fresh, Tier: uint8(e.Tier), Replica: v.number, Session: session,
		Budget: budget, Invoked: invoked, Returned: returned,
	})
	if e.Grace > 0 {
		if e.Fresh || len(options) > 2 {
			w.t.Errorf("in its grace, FRESH or to who does not take that: %+v", e)
		}
		w.graced = append(w.graced, gracedRead{key, e.Value.Op, v.number, returned, e.Age})
	}
	return token.Merge(e.Token)
}

// judgeGraces checks the answers that were given in their grace: each lacks nothing that was committed longer
// ago than its age, and nothing older than the budget but what has a grace that is not over.
func (w *world) judgeGraces() {
	w.t.Helper()
	lines := map[uint64][]uint64{} // key -> ops in the order of commits
	for _, c := range w.history.Commits {
		lines[c.Key] = append(lines[c.Key], c.Op)
	}
	for _, r := range w.graced {
		if r.op == 0 {
			continue // of several states that the key was absent nobody knows which
		}
		line := lines[r.key]
		for _, op := range line[slices.Index(line, r.op)+1:] {
			c := w.changes[op]
			if c.at >= r.returned {
				break
			}
			if ago := r.returned - c.at; ago > r.age || ago > max(c.grace, -anyBudget) {
				w.t.Errorf("%+v in its grace lacks %d, committed %v before with a grace of %v", r, op, ago, c.grace)
				return
			}
		}
	}
}

// pick is a replica.
func (w *world) pick() *virtual {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.replicas[w.random.IntN(len(w.replicas))]
}

// run has clients at work for so long: readers of each budget on each replica, sessions that wander
// between the replicas with a token, sessions that stay, and other services that write.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	defer cancel()
	var clients sync.WaitGroup
	again := func(pause time.Duration, do func()) {
		clients.Go(func() {
			for ctx.Err() == nil {
				do()
				rest(w.upTo(pause) + time.Microsecond)
			}
		})
	}
	anyKey := func() uint64 { return uint64(w.upTo(worldKeys)) }
	for place := range worldReplicas {
		for _, budget := range []time.Duration{0, 50 * time.Millisecond, time.Second, anyBudget, anyBudget} {
			again(40*time.Millisecond, func() {
				w.mu.Lock()
				v := w.replicas[place]
				w.mu.Unlock()
				v.read(ctx, anyKey(), 0, Token{}, budget, 0)
			})
		}
	}
	for session := range uint64(4) {
		var token Token
		again(60*time.Millisecond, func() {
			v, key := w.pick(), anyKey()
			if w.chance(0.3) {
				if t, err := w.write(ctx, v, key, session+1); err == nil {
					token = token.Merge(t)
				}
			} else {
				token = v.read(ctx, key, session+1, token, time.Second, time.Duration(session%2)*time.Minute)
			}
		})
	}
	for place := range worldReplicas {
		again(40*time.Millisecond, func() { // a session that stays on its replica needs no token
			w.mu.Lock()
			v := w.replicas[place]
			w.mu.Unlock()
			session, key := 100+uint64(v.number), anyKey()
			if w.chance(0.2) {
				_, _ = w.write(ctx, v, key, session) // it may fail, and then promises nothing
			} else {
				v.read(ctx, key, session, Token{}, time.Second, 0)
			}
		})
	}
	again(200*time.Millisecond, func() { _, _ = w.write(ctx, nil, anyKey(), 0) }) // it may be rolled back
	clients.Wait()
}

// converge heals all that tests cut, gives the replicas one budget, and reads everything everywhere.
func (w *world) converge() {
	w.t.Helper()
	w.hub.Set(conntest.Faults{})
	for _, v := range w.replicas {
		v.log.Cut(false)
		v.l2.Down(false)
		v.l2.Fail(nil)
		v.l2.Delay(0)
		v.bus.Heal()
	}
	w.log.Fail(nil)
	rest(time.Second)
	for _, v := range w.replicas {
		for key := range uint64(worldKeys) {
			before := len(w.history.Reads)
			v.read(w.t.Context(), key, 0, Token{}, time.Second, 0)
			if len(w.history.Reads) == before {
				w.t.Errorf("replica %d has no answer for key %d after all has healed", v.number, key)
				continue
			}
			w.history.Sweep = append(w.history.Sweep, w.history.Reads[before])
		}
	}
}

// end closes the replicas and returns the verdict.
func (w *world) end() *history.Report {
	w.t.Helper()
	for _, v := range w.replicas {
		if err := v.node.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
		w.noMismatch(v)
	}
	w.hub.Close()
	w.judgeGraces()
	report := history.Judge(&w.history, history.Options{})
	for invariant, n := range report.ByInvariant {
		w.t.Errorf("%v is violated %d times", invariant, n)
	}
	for _, violation := range report.Kept {
		w.t.Error(violation)
	}
	return report
}

// noMismatch wants the replica's samples to have found nothing that is not so.
func (w *world) noMismatch(v *virtual) {
	w.t.Helper()
	for _, m := range v.node.Mismatches() {
		w.t.Errorf("replica %d has found a mismatch: %+v", v.number, m)
	}
	s := v.node.Stats().Namespaces[0]
	w.sampled.Verified, w.sampled.VerifyMoved = w.sampled.Verified+s.Verified, w.sampled.VerifyMoved+s.VerifyMoved
}

// freshWithin counts the replica's FRESH answers that were asked for and given in the time.
func (w *world) freshWithin(v *virtual, from, to time.Duration) (n int) {
	for _, r := range w.history.Reads {
		if r.Fresh && r.Replica == v.number && r.Invoked >= from && r.Returned < to {
			n++
		}
	}
	return n
}

// scenario is what goes wrong while clients are at work.
type scenario struct {
	lasts time.Duration
	cache CacheConfig[row] // what differs from the defaults
	// faults runs beside the clients; it may take as long as the scenario lasts. nil = none.
	faults func(w *world)
	// check looks at what came of it besides the invariants. nil = nothing.
	check func(w *world, r *history.Report)
}

// rest lets virtual time pass.
func rest(d time.Duration) { <-time.After(d) }

func scenarios() map[string]scenario {
	const long = 6 * time.Second
	first := func(w *world) *virtual { return w.replicas[0] }
	tier := func(w *world, r *history.Report, t Tier) {
		if r.ByTier[uint8(t)] == 0 {
			w.t.Errorf("no answer came from %v: %v", t, r.ByTier)
		}
	}
	refreshing := CacheConfig[row]{
		TTL: 500 * time.Millisecond, NegativeTTL: 500 * time.Millisecond, Refresh: Refresh{Ahead: 0.6, Beta: 1},
		MaxStale: time.Minute, SoftTimeout: 50 * time.Millisecond,
	}
	return map[string]scenario{
		"AllIsWell": {lasts: long, check: func(w *world, r *history.Report) {
			for _, t := range []Tier{TierL1, TierL2, TierSource} {
				tier(w, r, t)
			}
			if n := uint64(len(w.graced)); r.Failures > 0 || n == 0 || r.Fresh+n != r.Reads {
				w.t.Errorf("%d failures, %d of %d answers FRESH, %d in their grace", r.Failures, r.Fresh, r.Reads, n)
			}
		}},
		"RefreshAhead": {lasts: 20 * time.Second, cache: refreshing, check: func(w *world, r *history.Report) {
			tier(w, r, TierL2)
			if n := uint64(len(w.graced)); r.Failures > 0 || r.Fresh+n != r.Reads {
				w.t.Errorf("%d failures, %d of %d answers FRESH, %d in their grace", r.Failures, r.Fresh, r.Reads, n)
			}
			var s NamespaceStats
			for _, v := range w.replicas {
				of := v.node.Stats().Namespaces[0]
				s.Refreshed, s.RefreshesTaken = s.Refreshed+of.Refreshed, s.RefreshesTaken+of.RefreshesTaken
			}
			if s.Refreshed == 0 || s.RefreshesTaken == 0 {
				w.t.Errorf("%d refreshed, %d taken from another replica", s.Refreshed, s.RefreshesTaken)
			}
		}},
		"RefreshAheadOffPostgres": {lasts: 12 * time.Second, cache: refreshing, faults: func(w *world) {
			for range 3 {
				rest(2 * time.Second)
				first(w).log.Cut(true)
				rest(2 * time.Second)
				first(w).log.Cut(false)
			}
		}},
		"HintsLost":      {lasts: long, faults: func(w *world) { w.hub.Set(conntest.Faults{Drop: 1}) }},
		"HintsScrambled": {lasts: long, faults: func(w *world) { w.hub.Set(conntest.Faults{Drop: 0.2, Duplicate: 0.3, Delay: 2 * time.Second}) }},
		"OffTheBus": {lasts: long, faults: func(w *world) {
			rest(time.Second)
			first(w).bus.Cut()
			rest(2 * time.Second)
			first(w).bus.Heal()
		}},
		"OffTheBusUnaware": {lasts: long, faults: func(w *world) {
			rest(time.Second)
			first(w).bus.Mute()
			rest(3 * time.Second)
			first(w).bus.Heal()
		}},
		"OwnerFills": {lasts: long, faults: func(w *world) {
			for _, v := range w.replicas {
				v.l2.Down(true)
			}
		}, check: func(w *world, r *history.Report) {
			tier(w, r, TierOwner)
			if r.Failures > 0 {
				w.t.Errorf("%d failures without L2", r.Failures)
			}
		}},
		"OffL2": {lasts: long, faults: func(w *world) {
			rest(time.Second)
			first(w).l2.Down(true) // its invalidations and fills do not reach the others
			rest(2 * time.Second)
			first(w).l2.Down(false)
			first(w).l2.Delay(80 * time.Millisecond) // each call fails, and does its work all the same
			rest(2 * time.Second)
		}},
		"L2FailsHalfway": {lasts: long, faults: func(w *world) {
			for range 10 {
				for _, v := range w.replicas {
					v.l2.Fail(fmt.Errorf("%w: odd", tiers.ErrUnavailable))
				}
				rest(300 * time.Millisecond)
				for _, v := range w.replicas {
					v.l2.Fail(nil)
				}
				rest(200 * time.Millisecond)
			}
		}},
		"OldDump": {lasts: long, faults: func(w *world) {
			for range 5 {
				dump := w.l2.Copy()
				rest(time.Second)
				w.l2.Restore(dump, time.Hour)
			}
		}},
		"Generations": {lasts: long, faults: func(w *world) { // forward and back
			for i := range uint32(30) {
				rest(w.upTo(400 * time.Millisecond))
				w.log.SetGeneration([]string{"row", "row", ""}[i%3], 1+i*i%4)
			}
		}, check: func(w *world, r *history.Report) {
			if tier(w, r, TierL2); r.Fresh+uint64(len(w.graced)) != r.Reads {
				w.t.Errorf("%d of %d answers FRESH, %d in their grace", r.Fresh, r.Reads, len(w.graced))
			}
		}},
		"OffPostgres": {lasts: 15 * time.Second, faults: func(w *world) {
			rest(2 * time.Second)
			first(w).log.Cut(true)
			rest(5 * time.Second)
			var all sync.WaitGroup
			for key := range uint64(worldKeys) { // whoever takes a STALE answer has one
				all.Go(func() { first(w).read(w.t.Context(), key, 0, Token{}, time.Second, time.Minute) })
			}
			all.Wait()
			rest(12*time.Second - w.now())
			first(w).log.Cut(false)
		}, check: func(w *world, r *history.Report) {
			// A poll under way when the way was cut may have come back, and its age counts from when it was sent.
			if n := w.freshWithin(first(w), 3*time.Second+2*worldLatency, 12*time.Second); n > 0 {
				w.t.Errorf("%d FRESH answers from a replica that has not reached Postgres for longer than any budget", n)
			}
			if n := w.freshWithin(first(w), 13*time.Second+100*time.Millisecond, 15*time.Second); n == 0 {
				w.t.Error("no FRESH answer after Postgres is back")
			}
			if r.Stale == 0 || r.Failures == 0 {
				w.t.Errorf("%d STALE answers, %d failures", r.Stale, r.Failures)
			}
		}},
		"LogOutage": {lasts: 15 * time.Second, faults: func(w *world) {
			rest(2 * time.Second)
			w.log.Fail(errPostgresAway) // writes and loads go on
			rest(10 * time.Second)
			w.log.Fail(nil)
		}, check: func(w *world, r *history.Report) {
			for _, v := range w.replicas {
				// What was loaded since a read began is FRESH without any poll.
				for _, a := range w.history.Reads {
					if a.Fresh && a.Replica == v.number && Tier(a.Tier) == TierL1 && a.Invoked > 3*time.Second+2*worldLatency && a.Returned < 12*time.Second &&
						a.Budget < time.Second {
						w.t.Errorf("FRESH from L1 at %v without a poll for longer than the budget: %+v", a.Invoked, a)
						return
					}
				}
				if n := w.freshWithin(v, 13*time.Second+100*time.Millisecond, 15*time.Second); n == 0 {
					w.t.Error("no FRESH answer after the log is back")
				}
			}
		}},
		"Crash": {lasts: long, faults: func(w *world) {
			for range 4 {
				rest(time.Second)
				w.mu.Lock()
				w.log.Crash()
				w.mu.Unlock()
			}
		}},
		"Restarts": {lasts: 10 * time.Second, faults: func(w *world) {
			for i := range 6 {
				rest(time.Second)
				place := i % worldReplicas
				old := w.replicas[place]
				if err := old.node.Close(); err != nil { // in the middle of reads and writes
					w.t.Errorf("close: %v", err)
				}
				w.noMismatch(old)
				rest(w.upTo(time.Second))
				v := w.open()
				w.mu.Lock()
				w.replicas[place] = v
				w.mu.Unlock()
			}
		}},
		"Storm": {lasts: 15 * time.Second, faults: func(w *world) {
			for range 30 {
				v := w.pick()
				switch int(w.upTo(8)) {
				case 0:
					v.log.Cut(true)
				case 1:
					v.bus.Cut()
				case 2:
					v.bus.Mute()
				case 3:
					v.l2.Down(true)
				case 4:
					v.l2.Delay(w.upTo(100 * time.Millisecond))
				case 5:
					w.hub.Set(conntest.Faults{Drop: 0.1, Duplicate: 0.1, Delay: w.upTo(time.Second) + 1})
				case 6:
					w.l2.Restore(w.l2.Copy(), time.Minute)
				case 7:
					w.l2.Restore(nil, 0)
				}
				rest(w.upTo(800 * time.Millisecond))
				v.log.Cut(false)
				v.bus.Heal()
				v.l2.Down(false)
				v.l2.Delay(0)
			}
		}},
	}
}

// I1, I2, I3, I4, I5: whatever one part, or one replica's way to it, does.
func TestI1I2I3I4I5VirtualCluster(t *testing.T) {
	for name, s := range scenarios() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorldOf(t, 1, s.cache)
				var faults sync.WaitGroup
				if s.faults != nil {
					faults.Go(func() { s.faults(w) })
				}
				w.run(s.lasts)
				faults.Wait()
				w.converge()
				report := w.end()
				if s.check != nil {
					s.check(w, report)
				}
				if w.sampled.Verified == 0 {
					t.Error("no entry was compared with the source")
				}
				t.Logf("%d reads, %d FRESH, %d failures, %d commits, by tier %v; %d compared with the source, %d moved meanwhile",
					report.Reads, report.Fresh, report.Failures, len(w.history.Commits), report.ByTier, w.sampled.Verified, w.sampled.VerifyMoved)
			})
		})
	}
}
