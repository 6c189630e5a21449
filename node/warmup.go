package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// WarmUp says which entities are brought into L1 as soon as a cache is made, before anybody asks for them:
// [Node.Ready] waits for it. They come from Peers, then IDs, then Query, whichever are set, until Limit is
// reached, and are read as by [Cache.GetMany], mostly from L2, at a bounded rate and only while no reader
// waits for Postgres. A warm-up that fails is logged and counted, and keeps nobody from being ready. The zero
// value is none.
type WarmUp struct {
	// Peers takes what other replicas read most of late: three of them, those that have run longest, or as many
	// as are seen within 1.2 s.
	Peers bool
	// IDs returns ids, those first that matter most. It must heed its context.
	IDs func(ctx context.Context) ([]string, error)
	// Query is SQL without parameters that returns ids, those first that matter most, in a column named id.
	Query string
	// Limit bounds the ids of one run, up to MaxEntries; 0 = 10,000, or MaxEntries if that is less. A run ends,
	// too, when it has filled three quarters of MaxBytes: it shall not push out what it brought.
	Limit int
	// Rate bounds the ids that are read in a second, 1 to 1,000,000; 0 = 2,000.
	Rate int
	// Timeout is how long Ready waits, 10 ms to 10 min; 0 = 5 s. What is left then goes on behind it, unless it
	// fails. It also bounds each call of IDs and Query.
	Timeout time.Duration
	// Every has it done again at this interval, give or take a fifth, for what is not in L1 by then; 1 s to a
	// week, 0 = once.
	Every time.Duration
}

// QueryWarmUp is [WarmUp] for a cache of query results.
type QueryWarmUp struct {
	// Peers as in [WarmUp].
	Peers bool
	// Params returns the parameters of queries, those first that matter most. It must heed its context.
	Params func(ctx context.Context) ([]cluster.Params, error)
	// Limit, Rate, Timeout and Every as in [WarmUp]. Each result is a query of its own: 0 = 1,000 of them, or
	// MaxEntries if that is less, at 200 a second.
	Limit, Rate    int
	Timeout, Every time.Duration
}

const (
	maxWarmUp   = 10_000_000 // ids of one run, and of one question to peers
	maxWarmRate = 1_000_000  // ids/s
	// maxWarmBatch bounds the ids that are read at once: a twentieth of a second's.
	maxWarmBatch = 100
	// storePatience is how long a warm-up, and Ready, wait for all shards of L2 to be connected before they go on without.
	storePatience = time.Second
	// yieldPause is how long a warm-up steps aside when readers wait for Postgres.
	yieldPause = 5 * time.Millisecond
	// Between two tries of something that failed.
	minWarmPause = 100 * time.Millisecond
	maxWarmPause = time.Second
	// warmUpEnd is how long Close waits for a function that goes on after its context has ended.
	warmUpEnd = 2 * time.Second
)

// warmPlan is what [WarmUp] and [QueryWarmUp] come down to.
type warmPlan struct {
	sources        []warmSource // none = there is no warm-up
	limit, rate    int
	timeout, every time.Duration
}

// warmSource is where a warm-up has its ids from.
type warmSource struct {
	name string // in logs, metrics and statistics
	ids  func(ctx context.Context, limit int) ([]string, error)
}

func (u *WarmUp) plan(n *Node, name cacheName) warmPlan {
	p := warmPlan{limit: u.Limit, rate: u.Rate, timeout: u.Timeout, every: u.Every}
	if u.Peers {
		p.sources = append(p.sources, n.hotPeers(name))
	}
	if u.IDs != nil {
		p.sources = append(p.sources, warmSource{"ids", func(ctx context.Context, _ int) ([]string, error) { return u.IDs(ctx) }})
	}
	if u.Query != "" {
		p.sources = append(p.sources, warmSource{"query", func(ctx context.Context, limit int) ([]string, error) {
			return n.queryIDs(ctx, u.Query, limit)
		}})
	}
	return p
}

func (u *QueryWarmUp) plan(n *Node, name cacheName) warmPlan {
	p := warmPlan{limit: u.Limit, rate: u.Rate, timeout: u.Timeout, every: u.Every}
	if u.Peers {
		p.sources = append(p.sources, n.hotPeers(name))
	}
	if u.Params != nil {
		p.sources = append(p.sources, warmSource{"params", func(ctx context.Context, limit int) ([]string, error) {
			params, err := u.Params(ctx)
			ids := make([]string, min(limit, len(params)))
			for i := range ids {
				ids[i] = idOf(params[i])
			}
			return ids, err
		}})
	}
	return p
}

// tuned is what becomes of the code's plan under the operators' settings: left is the plan with the sources that they
// leave, and most, unless 0, the entries to which they have bounded the cache.
func (p warmPlan) tuned(left warmPlan, s WarmUpSettings, most int) warmPlan {
	switch {
	case len(left.sources) > 0:
		left.limit, left.rate, left.timeout, left.every = s.Limit, s.Rate, s.Timeout, s.Every
		if most > 0 {
			left.limit = min(left.limit, most)
		}
		return left
	case len(p.sources) > 0:
		return warmPlan{} // they have turned it off
	default:
		return p
	}
}

// check reports all problems at once, each naming its field.
func (p *warmPlan) check(maxEntries int) error {
	var problems []error
	wrong := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("WarmUp.%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if most := min(cmp.Or(max(maxEntries, 0), tiers.DefaultMaxEntries), maxWarmUp); p.limit < 0 || p.limit > most {
		wrong("Limit", "%d; want 1 to %d, as many as MaxEntries allows, or 0 for the default", p.limit, most)
	}
	if p.rate < 0 || p.rate > maxWarmRate {
		wrong("Rate", "%d; want 1 to %d ids in a second, or 0 for the default", p.rate, maxWarmRate)
	}
	if p.timeout != 0 && (p.timeout < 10*time.Millisecond || p.timeout > 10*time.Minute) {
		wrong("Timeout", "%v; want 10ms to 10m, or 0 for the default", p.timeout)
	}
	if p.every != 0 && (p.every < time.Second || p.every > 7*24*time.Hour) {
		wrong("Every", "%v; want 1s to 168h, or 0 for once", p.every)
	}
	if len(p.sources) == 0 && (p.limit != 0 || p.rate != 0 || p.timeout != 0 || p.every != 0) {
		problems = append(problems, errors.New("WarmUp says how, and not what; want a source of ids in it, or the zero value"))
	}
	return errors.Join(problems...)
}

// warmUp is that of one cache.
type warmUp struct {
	warmPlan // without zeros but every

	node  *Node
	name  cacheName
	cache cache
	bytes int64         // that one run may bring into L1
	done  chan struct{} // closed when Ready need not wait any more
	ran   atomic.Bool   // the first run is over

	mu    sync.Mutex
	stats []WarmUpStats // of each source
}

// startWarmUp sets the cache's warm-up to work until the node closes. The bounds are those of the cache,
// and the defaults those of its kind.
func (n *Node) startWarmUp(p warmPlan, name cacheName, maxEntries int, maxBytes int64, defaults warmPlan) error {
	if len(p.sources) == 0 {
		return nil
	}
	p.limit = cmp.Or(p.limit, min(defaults.limit, cmp.Or(maxEntries, tiers.DefaultMaxEntries)))
	p.rate = cmp.Or(p.rate, defaults.rate)
	p.timeout = cmp.Or(p.timeout, 5*time.Second)
	w := &warmUp{
		warmPlan: p, node: n, name: name, bytes: cmp.Or(maxBytes, tiers.DefaultMaxBytes) / 4 * 3, done: make(chan struct{}),
		stats: make([]WarmUpStats, len(p.sources)),
	}
	for i, source := range p.sources {
		w.stats[i].Source = source.name
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	w.cache = n.caches[name]
	n.warmUps[name] = w
	n.warmWork.Go(func() { w.run(n.life) })
	return nil
}

// run is the goroutine of a warm-up.
func (w *warmUp) run(ctx context.Context) {
	late := time.AfterFunc(w.timeout, func() {
		w.node.log.Warn("node: the warm-up takes longer than readiness waits; it goes on", "namespace", w.name.namespace, "view", w.name.view)
		close(w.done)
	})
	w.once(ctx)
	w.ran.Store(true)
	if late.Stop() {
		close(w.done)
	}
	if w.every == 0 {
		return
	}
	timer := time.NewTimer(dutyJitter(w.every))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			w.once(ctx)
			timer.Reset(dutyJitter(w.every))
		}
	}
}

// warmRun is one run of a warm-up.
type warmRun struct {
	*warmUp
	batch    int             // ids that are read at once
	pace     *rate.Limiter   // of those that are not in L1
	patience context.Context //nolint:containedctx // ends with the time for which readiness waits
	storeBy  time.Time       // until when L2 is waited for
	left     int             // ids that may follow
	room     int64           // bytes that may follow
}

// once brings what is not in L1 there.
func (w *warmUp) once(ctx context.Context) {
	patience, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	r := &warmRun{warmUp: w, batch: min(max(w.rate/20, 1), maxWarmBatch), patience: patience, left: w.limit, room: w.bytes}
	r.pace, r.storeBy = rate.NewLimiter(rate.Limit(w.rate), r.batch), time.Now().Add(storePatience)
	_ = w.node.polled(patience) // nothing is FRESH before; without it, reading says what is wrong
	for i := range w.sources {
		if began := time.Now(); ctx.Err() == nil && r.left > 0 && r.room > 0 {
			r.from(ctx, i)
			w.count(i, func(s *WarmUpStats) { s.Runs++; s.Seconds += time.Since(began).Seconds() })
		}
	}
}

func (w *warmUp) count(source int, add func(s *WarmUpStats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	add(&w.stats[source])
}

func (w *warmUp) warn(problem string, source int, err error) {
	w.node.log.Warn("node: a warm-up falls short", "problem", problem, "namespace", w.name.namespace, "view", w.name.view,
		"source", w.sources[source].name, "error", tiers.Loggable(err))
}

// from warms the cache with the ids of one source.
func (r *warmRun) from(ctx context.Context, source int) {
	ids, err := r.ids(ctx, source)
	if err != nil {
		r.count(source, func(s *WarmUpStats) { s.Failures++ })
		r.warn("it has no ids", source, err)
		return
	}
	ids = ids[:min(len(ids), r.left)]
	r.left -= len(ids)
	r.count(source, func(s *WarmUpStats) { s.IDs += uint64(len(ids)) })
	pause := minWarmPause
	for batch := range slices.Chunk(ids, r.batch) {
		if r.room <= 0 {
			return
		}
		warmed, err := r.load(ctx, batch)
		if ctx.Err() != nil {
			return
		}
		r.room -= warmed.Bytes
		r.count(source, func(s *WarmUpStats) { s.Loaded += uint64(warmed.Loaded); s.Failed += uint64(warmed.Failed) })
		if err == nil || warmed.Loaded > 0 {
			pause = minWarmPause
			continue
		}
		if !idle(r.patience, pause) { //nolint:contextcheck // readiness has its own patience
			r.warn("it is given up", source, err)
			return
		}
		pause = min(2*pause, maxWarmPause)
	}
}

// ids asks the source, again as long as readiness waits.
func (r *warmRun) ids(ctx context.Context, source int) (ids []string, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.node.log.Error("node: a source of ids panicked", "namespace", r.name.namespace, "panic", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = fmt.Errorf("it panicked: %v", p)
		}
	}()
	for pause := minWarmPause; ; pause = min(2*pause, maxWarmPause) {
		asking, cancel := context.WithTimeout(ctx, r.timeout)
		ids, err = r.sources[source].ids(asking, r.left)
		cancel()
		if err == nil || !idle(r.patience, pause) { //nolint:contextcheck // readiness has its own patience
			return ids, err
		}
	}
}

// load reads those of a batch that are not in L1, when it is their turn and no reader waits for Postgres.
func (r *warmRun) load(ctx context.Context, batch []string) (tiers.Warmed, error) {
	want := r.node.want(nil)
	want.MaxStale = 0
	cold := r.cache.Cold(batch, want)
	if err := r.pace.WaitN(ctx, len(cold)); err != nil {
		return tiers.Warmed{}, err
	}
	for time.Now().Before(r.storeBy) && r.node.storeAway() && idle(ctx, yieldPause) {
	}
	for r.node.bulkhead.Stats().Waiting > 0 && idle(ctx, yieldPause) {
	}
	return r.cache.Warm(ctx, cold, want)
}

// storeAway reports whether a shard of L2 is not connected, so that Postgres would be asked for what is there.
func (n *Node) storeAway() bool {
	return n.parts.L2 != nil && slices.ContainsFunc(n.parts.L2.Shards(), func(s tiers.ShardState) bool { return s.State == "open" })
}

// idle waits and reports true, or false when the context ends before.
func idle(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// queryIDs is [WarmUp.Query], under the bulkhead like every read of a source.
func (n *Node) queryIDs(ctx context.Context, query string, limit int) ([]string, error) {
	if n.parts.Loads == nil {
		return nil, errNoSQL
	}
	if err := n.bulkhead.Enter(ctx); err != nil {
		return nil, err
	}
	defer n.bulkhead.Leave()
	var ids []string
	err := n.parts.Loads.SelectContext(ctx, &ids, `select q.id::text from (`+strings.TrimRight(strings.TrimSpace(query), "; \t\n")+`
) q limit $1`, limit)
	return ids, err
}

// awaitWarmUps waits for the warm-ups, which have been told to end.
func (n *Node) awaitWarmUps() error {
	ended := make(chan struct{})
	go func() {
		n.warmWork.Wait()
		close(ended)
	}()
	patience := time.NewTimer(warmUpEnd)
	defer patience.Stop()
	select {
	case <-ended:
		return nil
	case <-patience.C:
		return fmt.Errorf("node: close: a warm-up goes on %v after its context ended: its function must heed the context", warmUpEnd)
	}
}

// WarmUpStats describes the warm-up of one cache by one source.
type WarmUpStats struct {
	Source   string  `json:"source"` // peers, ids, params or query
	Runs     uint64  `json:"runs"`
	Failures uint64  `json:"failures"` // runs in which it gave no ids since it failed
	IDs      uint64  `json:"ids"`      // that it gave, up to the limit
	Loaded   uint64  `json:"loaded"`   // of them, those that were not in L1 and have been read
	Failed   uint64  `json:"failed"`   // of them, those that could not be read
	Seconds  float64 `json:"seconds"`  // of all runs together
}

// warmUpStats are those of the cache, and whether its first run is under way; n.mu is held.
func (n *Node) warmUpStats(name cacheName) (stats []WarmUpStats, underWay bool) {
	w := n.warmUps[name]
	if w == nil {
		return nil, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.stats), !w.ran.Load()
}
