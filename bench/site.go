package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/node"
)

// lab is where experiments are made.
type lab struct {
	stack  *devstack.Stack
	length time.Duration // of each comparison
	sites  int           // so far
}

// Product is what the experiments cache: a row of eight columns, about 350 bytes as JSON.
type Product struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	About    string `json:"about"`
	Category string `json:"category"`
	Currency string `json:"currency"`
	Price    int64  `json:"price"`
	Stock    int64  `json:"stock"`
	Revision int64  `json:"revision"`
}

const (
	// products is how many there are.
	products = 10_000
	query    = `select id, name, about, category, currency, price, stock, revision from products where id = any($1)`
)

// productID is the id of a product, 0 to products-1.
func productID(n int) string { return fmt.Sprintf("product-%d", n) }

// site is one application on the lab's servers: a database with watched products, and nodes.
type site struct {
	stack *devstack.Stack
	app   string
	dsn   string
	db    *sqlx.DB // as another service would write
	nodes []*node.Node
}

// open makes a site that shares nothing with others but the servers.
func (l *lab) open(ctx context.Context) (*site, error) {
	l.sites++
	s := &site{stack: l.stack, app: fmt.Sprintf("bench%d", l.sites)}
	var err error
	if s.dsn, err = l.stack.Postgres.CreateDatabase(ctx, s.app); err != nil {
		return nil, err
	}
	if s.db, err = coherence.OpenPool(coherence.PoolConfig{DSN: s.dsn}); err != nil {
		return nil, err
	}
	err = coherence.Migrate(ctx, s.db.DB)
	if err == nil {
		_, err = s.db.ExecContext(ctx, fmt.Sprintf(`
create table products (
	id text primary key, name text not null, about text not null, category text not null, currency text not null,
	price bigint not null, stock bigint not null, revision bigint not null default 1);
insert into products (id, name, about, category, currency, price, stock)
	select 'product-' || n, 'Product number ' || n, repeat('what there is to say ', 10), 'category-' || n %% 50, 'EUR', n * 7 %% 5000, n %% 100
	  from generate_series(0, %d - 1) n;
analyze products;
create sequence loads;
select freshet.watch('products', namespace => 'product')`, products))
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close ends the nodes.
func (s *site) close() error {
	var problems []error
	for _, n := range s.nodes {
		problems = append(problems, n.Close())
	}
	return errors.Join(append(problems, s.db.Close())...)
}

// replica is a node with its caches of products.
type replica struct {
	*node.Node
	products *node.Cache[Product]
}

// open starts a replica and waits until it is ready. change may be nil.
func (s *site) open(ctx context.Context, change func(*node.Config, *node.CacheConfig[Product])) (*replica, error) {
	c := node.Config{
		App:      s.app,
		Postgres: node.PostgresConfig{DSN: s.dsn},
		Redis:    node.RedisConfig{Addrs: s.stack.Redis.Addrs()},
		NATS:     node.NATSConfig{URLs: []string{s.stack.NATS.URL()}},
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	cache := node.CacheConfig[Product]{Namespace: "product", Source: node.SQL[Product](query)}
	if change != nil {
		change(&c, &cache)
	}
	n, err := node.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	s.nodes = append(s.nodes, n)
	if err := n.Ready(ctx); err != nil {
		return nil, err
	}
	if err := connected(ctx, n, len(c.Redis.Addrs) > 0); err != nil {
		return nil, err
	}
	r := &replica{Node: n}
	r.products, err = node.NewCache(n, cache)
	return r, err
}

// connected waits until the node has found all shards of L2.
func connected(ctx context.Context, n *node.Node, redis bool) error {
	return until(ctx, "the node to be connected to three shards", func() bool {
		open := 0
		for _, shard := range n.Stats().Shards {
			if shard.State == "closed" {
				open++
			}
		}
		return !redis || open == 3
	})
}

// until waits for a condition, half a minute at most.
func until(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, fmt.Errorf("waited 30s in vain for %s", what))
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
