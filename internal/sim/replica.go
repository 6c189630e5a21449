package sim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/model"
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
	detail  *tiers.Cache[Value]
	lists   *tiers.Cache[[]Entry]

	seq    uint64             // of its hints
	heard  []coherence.Hint   // the first hints that reached it, to come again
	cancel context.CancelFunc // ends its clients' calls
	life   context.Context    //nolint:containedctx // the process's
}

// Value is a row of the table, and what its entry holds.
type Value struct {
	Op    uint64 // the write that made it
	Group int
}

// details is where the keys begin of the rows that only the detail view shows.
const details = 1000

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
	r.log.server = w.postgres.Log(w.now)
	logger := slog.New(slog.DiscardHandler)
	r.tracker = coherence.NewTracker(coherence.TrackerConfig{
		Log: &r.log, Boot: r.boot, Interval: w.plan.Interval, Retention: w.plan.Retention,
		MaxChanges: w.plan.MaxChanges, Scopes: w.plan.Scopes, Logger: logger, Random: r.random("poll"),
	})
	r.shared = tiers.Shared{
		Tracker: r.tracker, L2: &store{r}, Peers: peers{r}, Bulkhead: tiers.NewBulkhead(4, 64), Own: &tiers.OwnWrites{},
		LoadTimeout: time.Second, Logger: logger, Random: r.random("ttl"),
	}
	r.rows, r.detail, r.lists = r.caches()
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
func (r *replica) caches() (rows, detail *tiers.Cache[Value], lists *tiers.Cache[[]Entry]) {
	w := r.world
	key := func(view string) func(cluster.Generation, string) (string, error) {
		return func(g cluster.Generation, id string) (string, error) {
			return "s:v" + g.String() + ":{" + namespace + ":" + id + "}:" + view, nil
		}
	}
	one := func(first int) func(at *coherence.Snapshot, id string) (Value, bool) {
		return func(at *coherence.Snapshot, id string) (Value, bool) { return w.get(at, first+number(id)) }
	}
	config := tiers.Config[Value]{
		Namespace: namespace, View: "full", Key: key("full"), TTL: w.plan.TTL, NegativeTTL: w.plan.TTL, MaxEntries: w.plan.MaxEntries,
		Source: source[Value]{r, callLoad, one(0)}, Refresh: tiers.Refresh{Ahead: 0.5, Beta: 1},
	}
	if w.plan.Func > 0 {
		config.Source = tiers.FuncSource[Value]{Tracker: r.tracker, Func: r.function}
	}
	rows = must(tiers.NewCache(r.shared, config))
	config.View, config.Key, config.Source = "detail", key("detail"), source[Value]{r, callLoad, one(details)}
	detail = must(tiers.NewCache(r.shared, config))
	lists = must(tiers.NewCache(r.shared, tiers.Config[[]Entry]{
		Namespace: namespace, View: "list", Key: key("list"), TTL: w.plan.TTL, NegativeTTL: w.plan.TTL, MaxEntries: w.plan.MaxEntries,
		Tags:      func(id string, _ []Entry) []string { return []string{tagOf(number(id[1:]))} },
		TagAbsent: true,
		Source: source[[]Entry]{r, callList, func(at *coherence.Snapshot, id string) ([]Entry, bool) {
			return w.list(at, number(id[1:])), true
		}},
	}))
	return rows, detail, lists
}

// get is a row as an earlier snapshot saw it; nil = by now.
func (w *world) get(at *coherence.Snapshot, key int) (Value, bool) {
	if at == nil {
		return w.postgres.Get(uint64(key))
	}
	return w.postgres.GetAt(*at, uint64(key))
}

// list is the rows of a group.
func (w *world) list(at *coherence.Snapshot, group int) []Entry {
	list := []Entry{}
	for key := 1; key <= w.plan.Keys; key++ {
		if row, ok := w.get(at, key); ok && row.Group == group {
			list = append(list, Entry{key, row.Op})
		}
	}
	return list
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
	_ = r.detail.Close()
	_ = r.lists.Close()
}

// replicaLog is the replica's connection to freshet.log.
type replicaLog struct {
	replica *replica
	server  *model.Log[Value]
}

// do makes a call over the connection. After an error the connection is not used again.
func (l *replicaLog) do(ctx context.Context, kind callKind, way func(*draw) way, f func() error) error {
	r, w := l.replica, l.replica.world
	server := l.server
	// Real calls are not cancelled.
	err := w.call(context.WithoutCancel(ctx), request{
		from: r.boot, kind: kind, timeout: w.plan.PollTimeout, way: way,
		do: func() error {
			if w.faults.postgresDown > w.now() {
				return errRefused
			}
			return f()
		},
	})
	if err != nil && l.server == server {
		l.server = w.postgres.Log(w.now)
	}
	return err
}

// Poll implements [coherence.Log].
func (l *replicaLog) Poll(ctx context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	var result coherence.PollResult
	server := l.server
	err := l.do(ctx, callPoll, l.replica.wayOfPolls, func() (err error) {
		result, err = server.Poll(ctx, since, limit)
		if w := l.replica.world; w.trace != nil && err == nil {
			w.say(l.replica.boot, "poll since %v: %v, horizon %v, %d changes", since, result.Snapshot, result.Horizon, len(result.Changes))
		}
		return err
	})
	return result, err
}

// Renew implements [coherence.Log].
func (l *replicaLog) Renew(ctx context.Context, broken uint64) error {
	server := l.server
	return l.do(ctx, callRenew, l.replica.world.wayToPostgres, func() error { return server.Renew(ctx, broken) })
}

// Trim implements [coherence.Log].
func (l *replicaLog) Trim(ctx context.Context, keep time.Duration) (int, error) {
	var gone int
	server := l.server
	err := l.do(ctx, callTrim, l.replica.world.wayToPostgres, func() (err error) {
		gone, err = server.Trim(ctx, keep)
		return err
	})
	return gone, err
}

// Close implements [coherence.Log].
func (l *replicaLog) Close() error { return nil }

// source loads what one statement reads.
type source[V any] struct {
	replica *replica
	kind    callKind
	read    func(at *coherence.Snapshot, id string) (V, bool) // at: nil = now
}

// Load implements [tiers.Source].
func (s source[V]) Load(ctx context.Context, ids []string) (tiers.Batch[V], error) {
	batch := tiers.Batch[V]{Values: make(map[string]V, len(ids))}
	err := s.replica.ask(ctx, s.kind, ids, func() {
		w := s.replica.world
		old := w.lagging(s.replica)
		if old == nil { // what a standby says has no timeline
			batch.Snapshot = w.postgres.Snapshot()
		}
		for _, id := range ids {
			if v, ok := s.read(old, id); ok {
				batch.Values[id] = v
			}
		}
		if w.trace != nil {
			w.say(s.replica.boot, "%v of %v at %v: %v", s.kind, ids, batch.Snapshot, batch.Values)
		}
	})
	if err != nil {
		return tiers.Batch[V]{}, err
	}
	return batch, nil
}

// ask makes a call that reads from Postgres.
func (r *replica) ask(ctx context.Context, kind callKind, ids []string, read func()) error {
	w := r.world
	return w.call(ctx, request{
		from: r.boot, kind: kind, key: strings.Join(ids, ","), way: r.wayOfLoads,
		do: func() error {
			switch {
			case w.faults.postgresDown > w.now():
				return errRefused
			case w.postgres.Busy():
				return errBlocked
			}
			w.out.Loads += len(ids)
			read()
			return nil
		},
	})
}

// function is a source that says nothing of when it has read.
func (r *replica) function(ctx context.Context, ids []string) (map[string]Value, error) {
	values := make(map[string]Value, len(ids))
	err := r.ask(ctx, callLoad, ids, func() {
		for _, id := range ids {
			if v, ok := r.world.postgres.Get(uint64(number(id))); ok {
				values[id] = v
			}
		}
		r.world.say(r.boot, "function reads %v: %v", ids, values)
	})
	return values, err
}

// store is the replica's way to Redis.
type store struct{ replica *replica }

// storeTimeout bounds a command, as that of [tiers.L2Config] does.
const storeTimeout = 50 * time.Millisecond

// do carries out commands about keys of one shard.
func (s *store) do(ctx context.Context, kind callKind, key string, f func(r *model.Redis, now time.Duration)) error {
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
	err := s.do(ctx, callGet, key, func(r *model.Redis, now time.Duration) { text, ok = r.Get(now, key) })
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
		mine := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return s.replica.world.redis.Shard(key) != shard })
		if len(mine) == 0 {
			continue
		}
		err := s.do(ctx, callGetMany, strings.Join(mine, ","), func(r *model.Redis, now time.Duration) {
			for _, key := range mine {
				if text, ok := r.Get(now, key); ok {
					found[key] = text
				}
			}
		})
		for i, key := range keys {
			if s.replica.world.redis.Shard(key) != shard {
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
		err := s.do(ctx, callLease, lease.Key, func(r *model.Redis, now time.Duration) {
			reply.Held = r.Lease(now, lease.LeaseKey, lease.Token, lease.TTL)
			if text, ok := r.Get(now, lease.Key); ok {
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
	return s.do(ctx, callRelease, leaseKey, func(r *model.Redis, now time.Duration) { r.Release(now, leaseKey, token) })
}

// SetMany implements [tiers.Store].
func (s *store) SetMany(ctx context.Context, fillings []tiers.Filling) []error {
	errs := make([]error, len(fillings))
	for i, f := range fillings {
		errs[i] = s.do(ctx, callSet, f.Key, func(r *model.Redis, now time.Duration) {
			r.Set(now, f.Key, string(f.Bytes), f.TTL)
			if f.LeaseKey != "" {
				r.Release(now, f.LeaseKey, f.Token)
			}
		})
	}
	return errs
}

// Unlink implements [tiers.Store].
func (s *store) Unlink(ctx context.Context, keys ...string) error {
	for shard := range shards {
		mine := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return s.replica.world.redis.Shard(key) != shard })
		if len(mine) == 0 {
			continue
		}
		err := s.do(ctx, callUnlink, strings.Join(mine, ","), func(r *model.Redis, now time.Duration) {
			for _, key := range mine {
				r.Unlink(now, key)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

var _ tiers.Store = (*store)(nil)

// peers asks the owner of an entity, which is the same for all.
type peers struct{ replica *replica }

// Fetch implements [tiers.Peers].
func (p peers) Fetch(ctx context.Context, _, view, id string) ([]byte, error) {
	w, r := p.replica.world, p.replica
	type reply struct {
		bytes []byte
		err   error
	}
	done := make(chan reply, 1)
	w.mu.Lock()
	owner := w.replicas[mixText(2, id)%uint64(w.plan.Replicas)]
	if owner.boot == r.boot || w.dead(r.boot) {
		w.mu.Unlock()
		return nil, tiers.ErrNoOwner
	}
	n, d := w.name(r.boot, callPeer, id)
	back := w.latency(&d)
	w.at(w.now()+w.latency(&d), owner.boot, callPeer, id, n, func() {
		if w.dead(owner.boot) || w.resumed(owner.boot, w.now()) > w.now() {
			return
		}
		w.spawn(func() {
			var answer reply
			want := tiers.Want{Budget: time.Second}
			switch view {
			case "full":
				answer.bytes, answer.err = owner.rows.Entry(owner.life, id, want)
			case "detail":
				answer.bytes, answer.err = owner.detail.Entry(owner.life, id, want)
			default:
				answer.bytes, answer.err = owner.lists.Entry(owner.life, id, want)
			}
			w.mu.Lock()
			w.at(w.now()+back, r.boot, callPeer, id, n, func() {
				w.note(r.boot, callPeer, id, n, answer.err)
				done <- answer
			})
			w.mu.Unlock()
		})
	})
	w.mu.Unlock()
	select {
	case answer := <-done:
		return answer.bytes, answer.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
