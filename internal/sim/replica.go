package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// namespace of all rows and lists.
const namespace = "row"

// replica is one process of the system under test: the real tracker and the real read path, over calls
// of the simulated network.
type replica struct {
	world *world
	place int
	boot  uint64
	// stoppedUntil: nothing reaches the process and nothing leaves it before.
	stoppedUntil time.Duration

	log     replicaLog
	tracker *coherence.Tracker
	shared  tiers.Shared
	rows    *tiers.Cache[Value]
	details *tiers.Cache[Value]
	lists   *tiers.Cache[[]Entry]

	seq    uint64             // of its hints
	heard  []coherence.Hint   // the first hints that reached it, to come again
	cancel context.CancelFunc // ends its clients' calls
	life   context.Context    //nolint:containedctx // the process's
}

// Value is what a row's entry holds.
type Value struct {
	Op    uint64
	Group int
}

// Entry is one element of a list.
type Entry struct {
	Key int
	Op  uint64
}

// start makes the process at a place.
func (w *world) start(place int) *replica {
	w.lives[place]++
	r := &replica{world: w, place: place, boot: w.lives[place]*maxReplicas + uint64(place)}
	r.life, r.cancel = context.WithCancel(context.Background())
	r.log.replica = r
	r.log.epoch = w.postgres.epoch
	logger := slog.New(slog.DiscardHandler)
	r.tracker = coherence.NewTracker(coherence.TrackerConfig{
		Log: &r.log, Boot: r.boot, Interval: w.plan.Interval, Retention: w.plan.Retention,
		MaxChanges: w.plan.MaxChanges, Scopes: w.plan.Scopes, Logger: logger, Random: r.random("poll"),
	})
	r.shared = tiers.Shared{
		Tracker: r.tracker, L2: &store{r}, Bulkhead: tiers.NewBulkhead(4, 64), Own: &tiers.OwnWrites{},
		LoadTimeout: time.Second, Logger: logger, Random: r.random("ttl"),
	}
	r.rows, r.details, r.lists = r.caches()
	return r
}

// random is a source of numbers of the process's own.
func (r *replica) random(what string) func(int64) int64 {
	d := draw{mixText(mix(r.world.plan.Seed, r.boot), what)}
	var mu sync.Mutex
	return func(n int64) int64 {
		mu.Lock()
		defer mu.Unlock()
		return int64(d.next() % uint64(n))
	}
}

// caches makes the read paths of the process with nothing in L1.
func (r *replica) caches() (rows, details *tiers.Cache[Value], lists *tiers.Cache[[]Entry]) {
	w := r.world
	key := func(view string) func(string) (string, error) {
		return func(id string) (string, error) { return "s:v1:{" + namespace + ":" + id + "}:" + view, nil }
	}
	rows = must(tiers.NewCache(r.shared, tiers.Config[Value]{
		Namespace: namespace, View: "full", Key: key("full"), TTL: w.plan.TTL, NegativeTTL: w.plan.TTL, MaxEntries: w.plan.MaxEntries,
		Source: source[Value]{r, callLoad, func(id string) (Value, bool) {
			row := w.postgres.rows[number(id)]
			return Value{row.op, row.group}, row.group != 0
		}},
	}))
	details = must(tiers.NewCache(r.shared, tiers.Config[Value]{
		Namespace: namespace, View: "detail", Key: key("detail"), TTL: w.plan.TTL, NegativeTTL: w.plan.TTL, MaxEntries: w.plan.MaxEntries,
		Source: source[Value]{r, callLoad, func(id string) (Value, bool) {
			row := w.postgres.rows[number(id)]
			return Value{Op: row.detail}, row.detail != 0
		}},
	}))
	lists = must(tiers.NewCache(r.shared, tiers.Config[[]Entry]{
		Namespace: namespace, View: "list", Key: key("list"), TTL: w.plan.TTL, NegativeTTL: w.plan.TTL, MaxEntries: w.plan.MaxEntries,
		Tags:      func(id string, _ []Entry) []string { return []string{tagOf(number(id[1:]))} },
		TagAbsent: true,
		Source: source[[]Entry]{r, callList, func(id string) ([]Entry, bool) {
			list := []Entry{}
			for key, row := range w.postgres.rows {
				if row.group == number(id[1:]) {
					list = append(list, Entry{key, row.op})
				}
			}
			return list, true
		}},
	}))
	return rows, details, lists
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // a configuration of ours
	}
	return v
}

func number(id string) int { return must(strconv.Atoi(id)) }

func tagOf(group int) string { return "group:" + strconv.Itoa(group) }

func listID(group int) string { return "?" + strconv.Itoa(group) }

// close ends the process. The scheduler must go on meanwhile: it answers what is under way.
func (r *replica) close() {
	r.cancel()
	r.closeCaches()
	_ = r.tracker.Close() // the log closes without an error
}

// closeCaches ends the read paths; loads heed their context, so that none goes on.
func (r *replica) closeCaches() {
	_ = r.rows.Close()
	_ = r.details.Close()
	_ = r.lists.Close()
}

// replicaLog is the replica's connection to freshet.log.
type replicaLog struct {
	replica *replica
	epoch   int  // of the server that it is connected to
	broken  bool // the next call connects
}

// do makes a call over the connection, connecting before if need be.
func (l *replicaLog) do(kind callKind, way func(*draw) way, f func(p *postgres) error) error {
	r, w := l.replica, l.replica.world
	// The log is closed by nobody but us, and real calls are not cancelled.
	err := w.call(context.Background(), request{
		from: r.boot, kind: kind, timeout: w.plan.PollTimeout, way: way,
		do: func() error {
			switch {
			case w.faults.postgresDown > w.now():
				return errRefused
			case l.broken:
				l.broken, l.epoch = false, w.postgres.epoch
				w.postgres.begin(0)
			case l.epoch != w.postgres.epoch:
				return errGone
			}
			return f(w.postgres)
		},
	})
	if err != nil {
		l.broken = true
	}
	return err
}

var errRefused = errors.New("connection refused")

// Poll implements [coherence.Log].
func (l *replicaLog) Poll(_ context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	var result coherence.PollResult
	err := l.do(callPoll, l.replica.wayOfPolls, func(p *postgres) error {
		result = p.poll(since, limit)
		if w := l.replica.world; w.trace != nil {
			w.say(l.replica.boot, "poll since %v: %v, horizon %v, %d changes", since, result.Snapshot, result.Horizon, len(result.Changes))
		}
		return nil
	})
	return result, err
}

// Renew implements [coherence.Log].
func (l *replicaLog) Renew(_ context.Context, broken uint64) error {
	return l.do(callRenew, l.replica.world.wayToPostgres, func(p *postgres) error {
		p.begin(broken)
		return nil
	})
}

// Trim implements [coherence.Log].
func (l *replicaLog) Trim(_ context.Context, keep time.Duration) (int, error) {
	var gone int
	err := l.do(callTrim, l.replica.world.wayToPostgres, func(p *postgres) error {
		gone = p.trim(l.replica.world.now(), keep)
		return nil
	})
	return gone, err
}

// Close implements [coherence.Log].
func (l *replicaLog) Close() error { return nil }

// source loads what one statement reads.
type source[V any] struct {
	replica *replica
	kind    callKind
	read    func(id string) (V, bool)
}

// Load implements [tiers.Source].
func (s source[V]) Load(ctx context.Context, ids []string) (tiers.Batch[V], error) {
	w := s.replica.world
	batch := tiers.Batch[V]{Values: make(map[string]V, len(ids))}
	err := w.call(ctx, request{
		from: s.replica.boot, kind: s.kind, key: strings.Join(ids, ","), way: s.replica.wayOfLoads,
		do: func() error {
			if w.faults.postgresDown > w.now() {
				return errRefused
			}
			w.out.Loads += len(ids)
			batch.Snapshot = w.postgres.snapshot()
			for _, id := range ids {
				if v, ok := s.read(id); ok {
					batch.Values[id] = v
				}
			}
			if w.trace != nil {
				w.say(s.replica.boot, "%v of %v at %v: %v", s.kind, ids, batch.Snapshot, batch.Values)
			}
			return nil
		},
	})
	if err != nil {
		return tiers.Batch[V]{}, err
	}
	return batch, nil
}

// store is the replica's way to Redis.
type store struct{ replica *replica }

// storeTimeout bounds a command, as that of [tiers.L2Config] does.
const storeTimeout = 50 * time.Millisecond

// do carries out commands about keys of one shard.
func (s *store) do(ctx context.Context, kind callKind, key string, f func(r *redis, now time.Duration)) error {
	w := s.replica.world
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", tiers.ErrUnavailable, ctx.Err())
	}
	if !s.Available(key) {
		return fmt.Errorf("%w: the breaker is open", tiers.ErrUnavailable)
	}
	err := w.call(context.WithoutCancel(ctx), request{
		from: s.replica.boot, kind: kind, key: key, timeout: storeTimeout, way: w.wayToRedis(key),
		do: func() error {
			if w.faults.redisDown > w.now() {
				return errRefused
			}
			f(w.redis, w.now())
			return nil
		},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", tiers.ErrUnavailable, err)
	}
	return nil
}

// Available implements [tiers.Store]. A breaker is open while connections are refused.
func (s *store) Available(string) bool {
	w := s.replica.world
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults.redisDown <= w.now()
}

// Get implements [tiers.Store].
func (s *store) Get(ctx context.Context, key string) ([]byte, error) {
	var text string
	var ok bool
	err := s.do(ctx, callGet, key, func(r *redis, now time.Duration) { text, ok = r.get(now, key) })
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, tiers.ErrMiss
	}
	return []byte(text), nil
}

// GetMany implements [tiers.Store].
func (s *store) GetMany(ctx context.Context, keys []string) []tiers.Reply {
	replies := make([]tiers.Reply, len(keys))
	for shard := range shards {
		found := map[string]string{}
		mine := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return shardOf(key) != shard })
		if len(mine) == 0 {
			continue
		}
		err := s.do(ctx, callGetMany, strings.Join(mine, ","), func(r *redis, now time.Duration) {
			for _, key := range mine {
				if text, ok := r.get(now, key); ok {
					found[key] = text
				}
			}
		})
		for i, key := range keys {
			if shardOf(key) != shard {
				continue
			}
			if text, ok := found[key]; err == nil && ok {
				replies[i].Bytes = []byte(text)
			} else if replies[i].Err = err; err == nil {
				replies[i].Err = tiers.ErrMiss
			}
		}
	}
	return replies
}

// LeaseMany implements [tiers.Store].
func (s *store) LeaseMany(ctx context.Context, leases []tiers.LeaseRequest) []tiers.LeaseReply {
	replies := make([]tiers.LeaseReply, len(leases))
	for i, lease := range leases {
		var reply tiers.LeaseReply
		err := s.do(ctx, callLease, lease.Key, func(r *redis, now time.Duration) {
			if _, held := r.get(now, lease.LeaseKey); !held {
				r.set(now, lease.LeaseKey, lease.Token, lease.TTL)
				reply.Held = true
			}
			if text, ok := r.get(now, lease.Key); ok {
				reply.Value = []byte(text)
			}
		})
		if err != nil {
			reply = tiers.LeaseReply{Err: err}
		}
		replies[i] = reply
	}
	return replies
}

// Release implements [tiers.Store].
func (s *store) Release(ctx context.Context, leaseKey, token string) error {
	return s.do(ctx, callRelease, leaseKey, func(r *redis, now time.Duration) { r.release(now, leaseKey, token) })
}

func (r *redis) release(now time.Duration, leaseKey, token string) {
	if held, ok := r.get(now, leaseKey); ok && held == token {
		r.unlink(leaseKey)
	}
}

// SetMany implements [tiers.Store].
func (s *store) SetMany(ctx context.Context, fillings []tiers.Filling) []error {
	errs := make([]error, len(fillings))
	for i, f := range fillings {
		errs[i] = s.do(ctx, callSet, f.Key, func(r *redis, now time.Duration) {
			r.set(now, f.Key, string(f.Bytes), f.TTL)
			if f.LeaseKey != "" {
				r.release(now, f.LeaseKey, f.Token)
			}
		})
	}
	return errs
}

// Unlink implements [tiers.Store].
func (s *store) Unlink(ctx context.Context, keys ...string) error {
	for shard := range shards {
		mine := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return shardOf(key) != shard })
		if len(mine) == 0 {
			continue
		}
		err := s.do(ctx, callUnlink, strings.Join(mine, ","), func(r *redis, _ time.Duration) {
			for _, key := range mine {
				r.unlink(key)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

var _ tiers.Store = (*store)(nil)
