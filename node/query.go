package node

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// QueryConfig describes a cache of query results: lists, counts.
type QueryConfig[V any] struct {
	// Namespace is that of the entities the query is about: invalidating it invalidates the results.
	Namespace string
	// View names this query among those of the namespace; required.
	View string
	// Query gives the SQL and its arguments. It must return one row with one column of JSON that
	// decodes into V; no row or null means that there is no result. The texts should be few: each is
	// prepared once per connection. Required.
	Query func(p cluster.Params) (sql string, args []any, err error)
	// Tags are what the result depends on, up to 64. They are asked for with the zero V where there is no
	// result: that depends on them no less.
	Tags func(p cluster.Params, v V) []string
	// TTL, MaxEntries, MaxBytes as in [CacheConfig].
	TTL        time.Duration
	MaxEntries int
	MaxBytes   int64
	// WarmUp as in [CacheConfig].
	WarmUp QueryWarmUp
}

// QueryCache is a cache of the results of one query under its parameters.
type QueryCache[V any] struct {
	node  *Node
	name  cacheName
	tiers *tiers.Cache[V]
}

// NewQueryCache makes a cache of query results on the node.
func NewQueryCache[V any](n *Node, c QueryConfig[V]) (*QueryCache[V], error) {
	name := cacheName{c.Namespace, c.View}
	fail := func(err error) (*QueryCache[V], error) {
		return nil, fmt.Errorf("node: query cache of %q, view %q: %w", name.namespace, name.view, err)
	}
	warm := c.WarmUp.plan(n, name)
	if err := warm.check(c.MaxEntries); c.Query == nil {
		return fail(errors.Join(errors.New("QueryConfig.Query is nil; want a function that gives the SQL"), err))
	} else if err != nil {
		return fail(err)
	}
	config := tiers.Config[V]{
		TTL: c.TTL, NegativeTTL: c.TTL, MaxEntries: c.MaxEntries, MaxBytes: c.MaxBytes,
		Source: tiers.NewQuerySource[V](n.loads, func(id string) (string, []any, error) {
			p, err := paramsOf(id)
			if err != nil {
				return "", nil, err
			}
			return c.Query(p)
		}),
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
	inner, err := newTiers(n, name, config)
	if err == nil {
		err = n.startWarmUp(warm, name, c.MaxEntries, c.MaxBytes, warmPlan{limit: 1_000, rate: 200})
	}
	if err != nil {
		return fail(err)
	}
	return &QueryCache[V]{node: n, name: name, tiers: inner}, nil
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
	want := c.node.want(options)
	r, err := c.tiers.Lookup(ctx, id, want)
	return entryOf(c.name, want.Token, &r, err)
}
