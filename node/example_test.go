package node_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// Product is a row of a table of the application.
type Product struct {
	ID    string
	Name  string
	Price int
}

// Where the servers are. Without Redis there is no L2, without NATS news travels by polls.
var (
	postgres = node.PostgresConfig{DSN: "postgres://shop@localhost/shop"}
	redis    = node.RedisConfig{Addrs: []string{"redis-0:6379", "redis-1:6379", "redis-2:6379"}}
	nats     = node.NATSConfig{URLs: []string{"nats://localhost:4222"}}
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := func() error {
		n, err := node.Open(ctx, node.Config{App: "shop", Postgres: postgres, Redis: redis, NATS: nats})
		if err != nil {
			return err
		}
		defer n.Close()
		products, err := node.NewCache(n, node.CacheConfig[Product]{
			Namespace: "product",
			Source:    node.SQL[Product](`select id, name, price from products where id = any($1)`),
		})
		if err != nil {
			return err
		}
		e, err := products.Lookup(ctx, "42", node.Within(50*time.Millisecond))
		fmt.Println(e.Value.Name, e.Fresh, e.Age, e.Tier)
		return err
	}()
	if err != nil {
		fmt.Println(err)
	}
}

func ExampleNode_Write() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reprice := func(n *node.Node, products *node.Cache[Product]) error {
		token, err := n.Write(ctx, func(tx *node.Tx) error {
			if _, err := tx.ExecContext(ctx, `update products set price = 950 where id = '42'`); err != nil {
				return err
			}
			return tx.Invalidate("product", []string{"42"})
		})
		if err != nil {
			return err
		}
		p, err := products.Get(ctx, "42", node.AtLeast(token))
		fmt.Println(p.Price)
		return err
	}
	n, err := node.Open(ctx, node.Config{App: "shop", Postgres: postgres})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	products, err := node.NewCache(n, node.CacheConfig[Product]{
		Namespace: "product",
		Source:    node.SQL[Product](`select id, name, price from products where id = any($1)`),
	})
	if err == nil {
		err = reprice(n, products)
	}
	if err != nil {
		fmt.Println(err)
	}
}

// A change that counts in ten minutes, for one view; and one whose old values may be served for half a minute more.
func ExampleCache_Invalidate() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	soften := func(products *node.Cache[Product], ids []string) error {
		if _, err := products.Invalidate(ctx, ids, node.After(10*time.Minute), node.View("price")); err != nil {
			return err
		}
		_, err := products.Invalidate(ctx, ids, node.WithGrace(30*time.Second))
		return err
	}
	n, err := node.Open(ctx, node.Config{App: "shop", Postgres: postgres})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	products, err := node.NewCache(n, node.CacheConfig[Product]{
		Namespace: "product",
		Source:    node.SQL[Product](`select id, name, price from products where id = any($1)`),
	})
	if err == nil {
		err = soften(products, []string{"42"})
	}
	if err != nil {
		fmt.Println(err)
	}
}

// A replica takes over what its peers' readers want; the first of all starts with what sells best, and all have
// that again every hour.
func ExampleWarmUp() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, err := node.Open(ctx, node.Config{App: "shop", Postgres: postgres, Redis: redis, NATS: nats})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	_, err = node.NewCache(n, node.CacheConfig[Product]{
		Namespace: "product",
		Source:    node.SQL[Product](`select id, name, price from products where id = any($1)`),
		WarmUp:    node.WarmUp{Peers: true, Query: `select id from products order by sold desc limit 1000`, Every: time.Hour},
	})
	if err == nil {
		err = n.Ready(ctx) // and now take traffic
	}
	if err != nil {
		fmt.Println(err)
	}
}

func ExampleNode_Snapshot() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	page := func(n *node.Node, products *node.Cache[Product], ids *node.QueryCache[[]string]) error {
		var found map[string]Product
		moment, err := n.Snapshot(ctx, func(s *node.Snapshot) error {
			list, err := ids.In(s, cluster.Params{"category": "toys"})
			if err != nil {
				return err
			}
			found, err = products.ManyIn(s, list) // none is missing, and none has left the category
			return err
		})
		fmt.Println(len(found), moment.Age)
		return err
	}
	n, err := node.Open(ctx, node.Config{App: "shop", Postgres: postgres})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	products, err1 := node.NewCache(n, node.CacheConfig[Product]{
		Namespace: "product",
		Source:    node.SQL[Product](`select id, name, price from products where id = any($1)`),
	})
	ids, err2 := node.NewQueryCache(n, node.QueryConfig[[]string]{
		Namespace: "product", View: "ids",
		Query: func(p cluster.Params) (string, []any, error) {
			return `select json_agg(id) from products where category = $1`, []any{p["category"]}, nil
		},
		Tags: func(p cluster.Params, _ []string) []string { return []string{"category:" + p["category"]} },
	})
	if err = errors.Join(err1, err2); err == nil {
		err = page(n, products, ids)
	}
	if err != nil {
		fmt.Println(err)
	}
}
