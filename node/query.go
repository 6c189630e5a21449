package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// QueryConfig describes a cache of query results: lists, counts. What of it [CacheSettings] can say, operators may
// replace by [Config.Caches].
type QueryConfig[V any] struct {
	// Namespace is that of the entities the query is about: invalidating it invalidates the results.
	Namespace string
	// View names this query among those of the namespace; required.
	View string
	// Query gives the SQL and its arguments. It must return one row with one column of JSON that
	// decodes into V, by protojson if that is a message, or of a number or boolean for a V of that kind, as
	// select count(*) does for int64; no row or null means that there is no result. The texts should be few:
	// each is prepared once per connection. Required, unless there is a Func.
	Query func(p cluster.Params) (sql string, args []any, err error)
	// Func gives the result in Go, and whether there is one, in place of Query. It must read the present state, and
	// costs two polls more, as [Func] does for entities.
	Func func(ctx context.Context, p cluster.Params) (result V, ok bool, err error)
	// Tags are what the result depends on, up to 64. They are asked for with the zero V where there is no
	// result: that depends on them no less.
	Tags func(p cluster.Params, v V) []string
	// These are as in [CacheConfig], but for a NegativeTTL of 0, which means as long as TTL.
	TTL, NegativeTTL         time.Duration
	Refresh                  Refresh
	Budget, MaxStale         time.Duration
	SoftTimeout, LoadTimeout time.Duration
	RetryAfter               time.Duration
	MaxEntries               int
	MaxBytes                 int64
	// WarmUp as in [CacheConfig].
	WarmUp QueryWarmUp
	// Codec, Compress, MaxValue as in [CacheConfig]. With [Bytes], json.RawMessage keeps the JSON as Postgres wrote it.
	Codec    Codec
	Compress Compression
	MaxValue int
	// NoVerify as in [CacheConfig].
	NoVerify bool
}

// QueryCache is a cache of the results of one query under its parameters.
type QueryCache[V any] struct {
	node  *Node
	name  cacheName
	want  tiers.Want // of reads that name nothing
	tiers *tiers.Cache[V]
}

// NewQueryCache makes a cache of query results on the node. The error names all fields that are wrong.
func NewQueryCache[V any](n *Node, c QueryConfig[V]) (*QueryCache[V], error) {
	name := cacheName{c.Namespace, c.View}
	fail := func(err error) (*QueryCache[V], error) {
		return nil, fmt.Errorf("node: query cache of %q, view %q: %w", name.namespace, name.view, err)
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
	wrong := warm.check(t.MaxEntries)
	source, err := c.source(n)
	wrong = errors.Join(err, wrong)
	config := tiers.Config[V]{
		TTL: t.TTL, NegativeTTL: cmp.Or(t.NegativeTTL, t.TTL), MaxEntries: t.MaxEntries, MaxBytes: t.MaxBytes,
		Refresh: *t.Refresh, RetryAfter: t.RetryAfter,
		Codec: c.Codec, Compression: *t.Compress, MaxValue: t.MaxValue, NoVerify: c.NoVerify,
		Source: source,
		Key: func(g cluster.Generation, id string) (string, error) {
			p, err := paramsOf(id)
			if err != nil {
				return "", fmt.Errorf("%w: %w", ErrBadID, err)
			}
			key, err := n.keys.Query(g, name.namespace, p, name.view)
			if err != nil {
				return "", fmt.Errorf("%w: %w", ErrBadID, err)
			}
			return key, nil
		},
	}
	if c.Tags != nil {
		config.TagAbsent = true
		config.Tags = func(id string, v V) []string {
			p, err := paramsOf(id)
			if err != nil {
				return nil // Key has refused such an id
			}
			return c.Tags(p, v)
		}
	}
	s := t.reads()
	inner, err := newTiers(n, name, true, s, wrong, config)
	if err == nil {
		err = n.startWarmUp(warm, name, t.MaxEntries, t.MaxBytes, warmPlan{limit: 1_000, rate: 200})
	}
	if err != nil {
		return fail(err)
	}
	made := &QueryCache[V]{node: n, name: name, want: s.want(n.config), tiers: inner}
	n.describe(describeCache(name, "query", made.want, inner.Settings()))
	return made, nil
}

// source is that of the results.
func (c QueryConfig[V]) source(n *Node) (tiers.Source[V], error) {
	switch {
	case c.Query == nil && c.Func == nil:
		return nil, errors.New("QueryConfig.Query is nil; want a function that gives the SQL, or Func")
	case c.Query != nil && c.Func != nil:
		return nil, errors.New("QueryConfig.Query and QueryConfig.Func are both set; want one of them")
	case c.Func != nil:
		return tiers.FuncSource[V]{Tracker: n.tracker, Func: c.load}, nil
	case n.parts.Loads == nil:
		return nil, errNoSQL
	}
	return tiers.NewQuerySource[V](n.parts.Loads, func(id string) (string, []any, error) {
		p, err := paramsOf(id)
		if err != nil {
			return "", nil, err
		}
		return c.Query(p)
	}), nil
}

// load is Func for several ids.
func (c QueryConfig[V]) load(ctx context.Context, ids []string) (map[string]V, error) {
	results := make(map[string]V, len(ids))
	for _, id := range ids {
		p, err := paramsOf(id)
		if err != nil {
			return nil, err
		}
		v, ok, err := c.Func(ctx, p)
		if err != nil {
			return nil, err
		}
		if ok {
			results[id] = v
		}
	}
	return results, nil
}

// idOf is the canonical text of parameters, by which a query's result is known in this process and to
// peers. It starts with ? so that no entity's scope is taken for a query's.
func idOf(p cluster.Params) string {
	values := make(url.Values, len(p))
	for name, value := range p {
		values.Set(name, value)
	}
	return "?" + values.Encode() // sorted by name
}

func paramsOf(id string) (cluster.Params, error) {
	text, ok := strings.CutPrefix(id, "?")
	if !ok {
		return nil, errors.New("not the text of a query's parameters")
	}
	values, err := url.ParseQuery(text)
	if err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	p := make(cluster.Params, len(values))
	for name := range values {
		p[name] = values.Get(name)
	}
	return p, nil
}

// Get returns the query's result, [ErrNotFound] if there is none, or why it cannot be had.
func (c *QueryCache[V]) Get(ctx context.Context, p cluster.Params, options ...ReadOption) (V, error) {
	e, err := c.Lookup(ctx, p, options...)
	return e.Value, err
}

// Lookup is [QueryCache.Get] with the labels.
func (c *QueryCache[V]) Lookup(ctx context.Context, p cluster.Params, options ...ReadOption) (Entry[V], error) {
	id := idOf(p)
	want := wanted(c.want, options)
	r, err := c.tiers.Lookup(ctx, id, want)
	return entryOf(c.name, want.Token, &r, err)
}

// GetMany returns the results under several parameters, in their order, labelled; one that does not exist
// or could not be had has Tier 0. They travel as those of [Cache.GetMany] do, but the query runs once for
// each that is loaded. The error is that of one that could not be had. At most [MaxIDs].
func (c *QueryCache[V]) GetMany(ctx context.Context, all []cluster.Params, options ...ReadOption) ([]Entry[V], error) {
	if len(all) > MaxIDs {
		return nil, fmt.Errorf("node: GetMany of %d queries: want at most %d: %w", len(all), MaxIDs, ErrTooLarge)
	}
	ids := make([]string, len(all))
	for i, p := range all {
		ids[i] = idOf(p)
	}
	want := wanted(c.want, options)
	results, err := c.tiers.LookupMany(ctx, ids, want)
	entries := make([]Entry[V], len(all))
	for i := range results {
		if r := &results[i]; r.Tier != 0 && !r.Absent {
			entries[i], _ = entryOf(c.name, want.Token, r, nil)
		}
	}
	return entries, wrap(c.name, err)
}

// TTL is [Cache.TTL] for the result under the parameters.
func (c *QueryCache[V]) TTL(ctx context.Context, p cluster.Params) (time.Duration, Tier, error) {
	left, tier, err := c.tiers.Left(ctx, idOf(p))
	return left, tier, wrap(c.name, err)
}
