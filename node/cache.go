package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Tier is where an answer came from.
type Tier = tiers.Tier

// The tiers, from the nearest to the farthest.
const (
	TierL1     = tiers.TierL1
	TierL2     = tiers.TierL2
	TierOwner  = tiers.TierOwner
	TierSource = tiers.TierSource
)

// Token is how far a session has come; see [AtLeast].
type Token = coherence.Token

// ParseToken reads a token's text; empty text is the zero Token, which asks for nothing.
func ParseToken(text string) (Token, error) { return coherence.ParseToken(text) }

// ReadOption changes what one read asks for.
type ReadOption struct {
	kind     optionKind
	duration time.Duration
	token    Token
}

type optionKind uint8

const (
	optionBudget optionKind = iota + 1
	optionStale
	optionToken
	optionConsistent
	optionSoftTimeout
	optionCommitted
)

// Within sets the freshness budget of this read, up to [MaxBudget], and refuses values in their grace. 0
// asks for every commit that was acknowledged before the read began, at the price of a poll that concurrent
// reads share.
func Within(budget time.Duration) ReadOption { return ReadOption{kind: optionBudget, duration: budget} }

// StaleWithin allows this read a STALE answer up to this age, in place of the cache's MaxStale; 0 = none.
func StaleWithin(age time.Duration) ReadOption { return ReadOption{kind: optionStale, duration: age} }

// SoftTimeout makes this read wait so long before it takes a STALE answer, in place of the cache's; 0 = as
// long as a poll or a load may take.
func SoftTimeout(d time.Duration) ReadOption { return ReadOption{kind: optionSoftTimeout, duration: d} }

// AtLeast keeps this read from going behind the token: it sees the session's own writes and nothing
// older than what the session has read, on whichever replica.
func AtLeast(t Token) ReadOption { return ReadOption{kind: optionToken, token: t} }

// Consistent makes all entries of one [Cache.GetMany] the state at one snapshot of Postgres: no transaction is
// seen in one of them and missed in another. Most cost no more than without: when one was read newer than the
// node's last poll, one more poll; when something changes meanwhile, the changed is read again, and in the end,
// if need be, all of it in one transaction. There is no STALE answer: the entries are FRESH, all of one Age, or
// the error is [ErrUncertain]. In that transaction a [Func] cannot take part: see [Node.Snapshot], which does the
// same over several caches. For a read of one value the option changes nothing.
func Consistent() ReadOption { return ReadOption{kind: optionConsistent} }

// ID is the id of an entity that several columns name together, in their order: as freshet.id makes it in SQL, and
// freshet.watch of id => 'order_id, line'. It is the parts, joined by slashes, with % as %25 and / as %2F in each. An
// entity that one column names has that column's text as its id, as it is.
func ID(parts ...string) string { return cluster.ID(parts...) }

// IDParts are the parts of which [ID] made the id; an error if it has not made it.
func IDParts(id string) ([]string, error) { return cluster.IDParts(id) }

// Entry is a labelled answer.
type Entry[V any] struct {
	Value V
	// Fresh is the label: FRESH if true; STALE otherwise, or pending.
	Fresh bool
	// Grace, if it is positive, is why the answer is not FRESH: it lacks nothing but changes whose writers allow
	// that for so long from now ([WithGrace]), and it is being loaded anew.
	Grace time.Duration
	// Pending: the answer is that of a [Cache.PutLater] or [Cache.DeleteLater] that need not be in Postgres yet,
	// and may still be refused there. It is newer than what is committed, and of the other labels only Token says
	// something of it.
	Pending bool
	// Age bounds the staleness: the answer reflects every commit older than this.
	Age time.Duration
	// Tier is where the answer came from.
	Tier Tier
	// Version is a hash of the encoded value: the same value has the same on every replica.
	Version uint64
	// TTL is what is left of the entry's time to live; not positive for a STALE one that expired.
	TTL time.Duration
	// Token is that of a session that has seen this answer. It covers the token that the read was given,
	// so that the latest one is enough.
	Token Token
}

// Source says where a cache's values come from: [SQL] or [Func].
type Source[V any] func(n *Node) (tiers.Source[V], error)

// SQL is the source of entities that one query returns. Its parameter $1 is the array of ids; one of
// its columns must be named id, and the others match V's fields as in sqlx. An id exists if it is the text
// of that column, as Postgres writes it: 42, not 042. Where several columns name the entity, the query
// returns freshet.id of them, and may find it by their own index through freshet.id_parts (docs/watch.md). The node wraps the query
// so that the rows and the snapshot under which they were read come from one statement. It must read under that
// snapshot alone: no volatile functions that read tables, no locking clause, no foreign tables.
func SQL[V any](query string) Source[V] {
	return func(n *Node) (tiers.Source[V], error) {
		if n.parts.Loads == nil {
			return nil, errNoSQL
		}
		return tiers.NewSQLSource[V](n.parts.Loads, query)
	}
}

// Func is a source in Go. It returns what there is of the ids, and must read the present state, not a
// replica's. Since nobody knows when it reads, each load costs two polls more than with [SQL]: one before
// it, and one after it.
func Func[V any](load func(ctx context.Context, ids []string) (map[string]V, error)) Source[V] {
	return func(n *Node) (tiers.Source[V], error) {
		if load == nil {
			return nil, errors.New("Func got a nil function")
		}
		return tiers.FuncSource[V]{Tracker: n.tracker, Func: load}, nil
	}
}

// CacheConfig describes a cache of entities. What of it [CacheSettings] can say, operators may replace by
// [Config.Caches].
type CacheConfig[V any] struct {
	// Namespace of the entities, as in the change log: a lower-case letter, then letters, digits,
	// dots, dashes, underscores. Required.
	Namespace string
	// View names this representation among several of the same entities; "" = "detail".
	View string
	// Source is required.
	Source Source[V]
	// Store is where values are written, so that the Source finds them; nil = they are not, through this cache.
	Store Store[V]
	// WriteBehind allows PutLater and DeleteLater, and has this replica flush what others put: [WriteBehind].
	// It needs a Store, NATS with JetStream, and is for one cache of a namespace.
	WriteBehind bool
	// Tags of an entry, up to 64: invalidating a tag invalidates every entry that has it. nil = none. What
	// does not exist has none: only its own id, or the namespace, can tell that it exists now.
	Tags func(id string, v V) []string
	// TTL and NegativeTTL bound how long an entry is kept, with a tenth of jitter, for what exists and
	// for what does not, 10 ms to 10 years; 0 = 1 h and 30 s. They save space; freshness does not need
	// them.
	TTL, NegativeTTL time.Duration
	// Refresh loads entries that are hit anew ahead of their expiry; zero = never.
	Refresh Refresh

	// Budget and MaxStale of the reads that name none; 0 = the node's. A MaxStale below 0 allows no STALE
	// answer where the node allows some.
	Budget, MaxStale time.Duration
	// SoftTimeout is how long a read waits, for a poll or a load, before it takes a STALE answer that
	// MaxStale allows. What it has waited for goes on and fills the cache. 1 ms up to LoadTimeout; 0 = as
	// long as they may take.
	SoftTimeout time.Duration
	// LoadTimeout bounds one load, waiting included: 10 ms up to [PostgresConfig].LoadTimeout; 0 = as long
	// as that.
	LoadTimeout time.Duration
	// RetryAfter is for how long after a load failed the reads of its id that may have a STALE answer take it
	// without asking the source again, with a tenth of jitter: 1 ms to 1 h; 0 = 100 ms.
	RetryAfter time.Duration

	// MaxEntries and MaxBytes bound this cache in L1; 0 = 100,000 and 64 MiB. Bytes are those of the
	// encoded values and an allowance for what stands around them; an entry above 1 MiB, or a 64th of
	// MaxBytes if that is more, may find no room.
	MaxEntries int
	MaxBytes   int64
	// WarmUp is what L1 is filled with before the node is ready; the zero value is nothing.
	WarmUp WarmUp
	// Codec encodes the values; 0 = [JSON]. It must suit V.
	Codec Codec
	// Compress is how they are compressed.
	Compress Compression
	// MaxValue is the largest encoded value that is kept, in bytes before compression, up to 64 MiB; a larger one is
	// served each time from the source, and counted. 0 = 64 MiB. See also [RedisConfig.MaxValue].
	MaxValue int
	// NoVerify leaves the cache out of [Config].Verify and [Node.VerifySample]: where the Source does not give the same
	// each time for the same state of Postgres, such as now() or random(), an order or a choice of rows that the query
	// leaves open, or what comes from elsewhere.
	NoVerify bool
}

// Cache is a cache of one view of a namespace's entities. It is safe for concurrent use.
type Cache[V any] struct {
	node    *Node
	name    cacheName
	want    tiers.Want // of reads that name nothing
	tiers   *tiers.Cache[V]
	store   Store[V]    // nil = values are not written
	pending *pending[V] // nil = not later
}

// Refresh says when an entry that is hit is loaded anew in the background, ahead of its expiry, by one
// replica for all: behind a part of its time to live (Ahead), or by XFetch (Beta). The replica is the one that
// gets the entry's lease in Redis; without Redis, the entity's owner.
type Refresh = tiers.Refresh

// NewCache makes a cache on the node. A node has one cache for each namespace and view. The error names all
// fields that are wrong.
func NewCache[V any](n *Node, c CacheConfig[V]) (*Cache[V], error) {
	name := cacheName{c.Namespace, c.View}
	if name.view == "" {
		name.view = "detail"
	}
	fail := func(err error) (*Cache[V], error) {
		return nil, fmt.Errorf("node: cache of %q, view %q: %w", name.namespace, name.view, err)
	}
	var source tiers.Source[V]
	wrong := errors.New("CacheConfig.Source is nil; want SQL or Func")
	if c.Source != nil {
		source, wrong = c.Source(n)
	}
	t := n.config.tuned(name, CacheSettings{
		TTL: c.TTL, NegativeTTL: c.NegativeTTL, Refresh: &c.Refresh, Budget: c.Budget, MaxStale: c.MaxStale,
		SoftTimeout: c.SoftTimeout, LoadTimeout: c.LoadTimeout, RetryAfter: c.RetryAfter,
		MaxEntries: c.MaxEntries, MaxBytes: c.MaxBytes, MaxValue: c.MaxValue, Compress: &c.Compress,
		WarmUp: WarmUpSettings{Peers: &c.WarmUp.Peers, Limit: c.WarmUp.Limit, Rate: c.WarmUp.Rate, Timeout: c.WarmUp.Timeout, Every: c.WarmUp.Every},
	})
	own := c.WarmUp.plan(n, name)
	c.WarmUp.Peers = *t.WarmUp.Peers
	warm := own.tuned(c.WarmUp.plan(n, name), t.WarmUp, n.config.tuned(name, CacheSettings{}).MaxEntries)
	if c.WriteBehind && c.Store == nil {
		wrong = errors.Join(wrong, errors.New("CacheConfig.WriteBehind wants a Store: SQLStore, or one of your own"))
	}
	wrong = errors.Join(wrong, warm.check(t.MaxEntries))
	s := t.reads()
	inner, err := newTiers(n, name, false, s, wrong, tiers.Config[V]{
		Source: source, Tags: c.Tags, TTL: t.TTL, NegativeTTL: t.NegativeTTL, MaxEntries: t.MaxEntries, MaxBytes: t.MaxBytes,
		Refresh: *t.Refresh, RetryAfter: t.RetryAfter,
		Codec: c.Codec, Compression: *t.Compress, MaxValue: t.MaxValue, NoVerify: c.NoVerify,
		Key: func(g cluster.Generation, id string) (string, error) {
			key, err := n.keys.Entity(g, name.namespace, id, name.view)
			if err != nil {
				return "", fmt.Errorf("%w: %w", ErrBadID, err)
			}
			return key, nil
		},
	})
	if err != nil {
		return fail(err)
	}
	made := &Cache[V]{node: n, name: name, want: s.want(n.config), tiers: inner, store: c.Store}
	if c.WriteBehind {
		made.pending = newPending(name, c.Store)
		if err := n.writeBehind(made.pending); err != nil {
			n.mu.Lock()
			delete(n.caches, name)
			n.mu.Unlock()
			return fail(errors.Join(err, inner.Close()))
		}
	}
	if err := n.startWarmUp(warm, name, t.MaxEntries, t.MaxBytes, warmPlan{limit: 10_000, rate: 2_000}); err != nil {
		return fail(err)
	}
	effective := describeCache(name, "entity", made.want, inner.Settings())
	effective.WriteThrough, effective.WriteBehind = c.Store != nil, c.WriteBehind
	n.describe(effective)
	return made, nil
}

// newTiers makes the read path, of queries or of entities, and enters it in the node, unless something is wrong.
func newTiers[V any](n *Node, name cacheName, query bool, s settings, wrong error, c tiers.Config[V]) (*tiers.Cache[V], error) {
	wrong = errors.Join(wrong, cluster.CheckNamespace(name.namespace), cluster.CheckView(name.view), s.validate(n.config), c.Validate())
	if wrong != nil {
		return nil, wrong
	}
	c.Namespace, c.View = name.namespace, name.view
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	if _, there := n.caches[name]; there {
		return nil, errors.New("this node has one already; want another namespace or view")
	}
	shared := n.shared()
	shared.LoadTimeout = s.hardTimeout(n.config)
	inner, err := tiers.NewCache(shared, c)
	if err != nil {
		return nil, err
	}
	n.caches[name] = known{inner, s.want(n.config), query}
	return inner, nil
}

// shared is what the read paths of the node have in common.
func (n *Node) shared() tiers.Shared {
	shared := tiers.Shared{
		Tracker: n.tracker, Bulkhead: n.bulkhead, Own: &n.own, LeaseWait: n.config.Redis.LeaseWait, LoadTimeout: n.config.loadTimeout(),
		ProofTimeout: max(time.Second, n.config.Postgres.PollTimeout), Together: &n.together, Logger: n.log,
		Tracer: n.config.Tracer, Database: n.config.database(),
	}
	if n.parts.L2 != nil {
		shared.L2 = n.parts.L2
	}
	if n.peers != nil {
		shared.Peers = n.peers
	}
	if n.parts.Database != nil {
		shared.Begin = n.begin
		shared.Scheduled = n.scheduledScopes
	}
	return shared
}

// Get returns the value, [ErrNotFound] if there is none, or why it cannot be had.
func (c *Cache[V]) Get(ctx context.Context, id string, options ...ReadOption) (V, error) {
	if len(options) == 0 && !c.pending.any() {
		if v, ok := c.tiers.Hit(id, c.want.Budget); ok {
			return v, nil
		}
	}
	if c.pending != nil {
		e, err := c.Lookup(ctx, id, options...)
		return e.Value, err
	}
	r, err := c.tiers.Lookup(ctx, id, wanted(c.want, options))
	if err == nil && r.Absent {
		err = ErrNotFound
	}
	return r.Value, wrap(c.name, err)
}

// Lookup is [Cache.Get] with the labels. When the error is [ErrNotFound] the entry's labels are those
// of the answer "not found".
func (c *Cache[V]) Lookup(ctx context.Context, id string, options ...ReadOption) (Entry[V], error) {
	want := wanted(c.want, options)
	if c.pending != nil && !isCommitted(options) {
		if err := c.await(ctx, []string{id}, &want); err != nil {
			return Entry[V]{}, wrap(c.name, err)
		}
		if e, shown, err := c.show(id, want.Token); shown {
			return e, err
		}
	}
	r, err := c.tiers.Lookup(ctx, id, want)
	return entryOf(c.name, want.Token, &r, err)
}

// GetMany returns what there is of the ids, labelled; ids that do not exist are not in the map. What is
// not in L1 travels together: one round trip to each Redis shard, and one load, per 100 ids. On an error the
// map holds the entries that could be had, and the error is that of one that could not; with [Consistent] it
// holds all of them or none. At most [MaxIDs] ids.
func (c *Cache[V]) GetMany(ctx context.Context, ids []string, options ...ReadOption) (map[string]Entry[V], error) {
	if len(ids) > MaxIDs {
		return nil, fmt.Errorf("node: GetMany of %d ids: want at most %d: %w", len(ids), MaxIDs, ErrTooLarge)
	}
	want := wanted(c.want, options)
	entries := make(map[string]Entry[V], len(ids))
	if c.pending != nil && !isCommitted(options) {
		if err := c.await(ctx, ids, &want); err != nil {
			return entries, wrap(c.name, err)
		}
		ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
			e, shown, err := c.show(id, want.Token)
			if shown && err == nil {
				entries[id] = e
			}
			return shown
		})
	}
	results, err := c.tiers.LookupMany(ctx, ids, want)
	for i := range results {
		if r := &results[i]; r.Tier != 0 && !r.Absent {
			entries[ids[i]], _ = entryOf(c.name, want.Token, r, nil)
		}
	}
	if err != nil {
		return entries, wrap(c.name, err)
	}
	return entries, nil
}

// MaxIDs bounds the ids of one call.
const MaxIDs = 10_000

// Exists reports whether there is such an entity, by the rules of [Cache.Get].
func (c *Cache[V]) Exists(ctx context.Context, id string, options ...ReadOption) (bool, error) {
	_, err := c.Get(ctx, id, options...)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// TTL returns what is left of the time to live of the id's entry, and the tier that keeps it: L1, or L2. If
// neither has one that could be served, both are 0. Nothing is loaded. An error says that the id is bad or
// that Redis could not be asked.
func (c *Cache[V]) TTL(ctx context.Context, id string) (time.Duration, Tier, error) {
	left, tier, err := c.tiers.Left(ctx, id)
	return left, tier, wrap(c.name, err)
}

// Invalidate says that the entities changed, in all views, in a transaction of its own, at once or as the
// strategies say. The token keeps reads that carry it from seeing them as they were.
func (c *Cache[V]) Invalidate(ctx context.Context, ids []string, strategies ...Strategy) (Token, error) {
	return c.node.Invalidate(ctx, c.name.namespace, ids, strategies...)
}

// settings are what a cache may say of its reads and loads in place of the node.
type settings struct{ budget, maxStale, softTimeout, loadTimeout time.Duration }

func (s settings) validate(n Config) error {
	var problems []error
	for _, d := range []struct {
		field           string
		value, min, max time.Duration
	}{
		{"Budget", s.budget, time.Millisecond, MaxBudget},
		{"MaxStale", max(s.maxStale, 0), time.Millisecond, MaxBudget},
		{"LoadTimeout", s.loadTimeout, 10 * time.Millisecond, n.loadTimeout()},
		{"SoftTimeout", s.softTimeout, time.Millisecond, min(max(s.hardTimeout(n), time.Millisecond), n.loadTimeout())},
	} {
		if d.value != 0 && (d.value < d.min || d.value > d.max) {
			problems = append(problems, fmt.Errorf("%s is %v; want %v to %v, or 0 for the default", d.field, d.value, d.min, d.max))
		}
	}
	if s.budget != 0 && s.budget <= n.pollInterval() {
		problems = append(problems, fmt.Errorf("Budget %v is not above Config.Postgres.PollInterval %v: most reads would wait for a poll; ask for less by Within", s.budget, n.pollInterval()))
	}
	return errors.Join(problems...)
}

func (s settings) hardTimeout(n Config) time.Duration { return cmp.Or(s.loadTimeout, n.loadTimeout()) }

// want is what a read asks for that names nothing itself.
func (s settings) want(n Config) tiers.Want {
	return tiers.Want{
		Budget: cmp.Or(s.budget, n.budget()), MaxStale: max(cmp.Or(s.maxStale, n.MaxStale), 0), SoftTimeout: s.softTimeout,
		Grace: true,
	}
}

// want is what a read with the options asks for that is of no cache.
func (n *Node) want(options []ReadOption) tiers.Want {
	return wanted(settings{}.want(n.config), options)
}

// wanted is what a read with the options asks for.
func wanted(want tiers.Want, options []ReadOption) tiers.Want {
	for i := range options {
		switch o := &options[i]; o.kind {
		case optionBudget:
			want.Budget, want.Grace = min(max(o.duration, 0), MaxBudget), false
		case optionStale:
			want.MaxStale = min(max(o.duration, 0), MaxBudget)
		case optionSoftTimeout:
			want.SoftTimeout = min(max(o.duration, 0), MaxBudget)
		case optionToken:
			want.Token = want.Token.Merge(o.token)
		case optionConsistent:
			want.Consistent, want.Grace = true, false
		case optionCommitted: // of pending puts, which the tiers know nothing of
		}
	}
	return want
}

// entryOf labels an answer to a read with the token.
func entryOf[V any](name cacheName, token Token, r *tiers.Result[V], err error) (Entry[V], error) {
	if err != nil {
		return Entry[V]{}, wrap(name, err)
	}
	e := Entry[V]{
		Value: r.Value, Fresh: r.Fresh, Grace: r.Grace, Age: r.Age, Tier: r.Tier, Version: r.Version, TTL: r.TTL, Token: token.Merge(r.Token()),
	}
	if r.Absent {
		return e, wrap(name, ErrNotFound)
	}
	return e, nil
}
