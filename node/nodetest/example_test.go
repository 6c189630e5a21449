package nodetest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodetest"
)

// Product is what the service sells.
type Product struct {
	Name  string
	Price int
}

// Shop is the service under test. In production its source is node.SQL and its store node.SQLStore.
type Shop struct{ products *node.Cache[Product] }

func NewShop(n *node.Node, source node.Source[Product], store node.Store[Product]) (*Shop, error) {
	products, err := node.NewCache(n, node.CacheConfig[Product]{Namespace: "product", Source: source, Store: store})
	return &Shop{products}, err
}

func (s *Shop) Price(ctx context.Context, id string) (int, error) {
	p, err := s.products.Get(ctx, id)
	return p.Price, err
}

func (s *Shop) Reprice(ctx context.Context, id string, price int) error {
	p, err := s.products.Get(ctx, id)
	if err != nil {
		return err
	}
	p.Price = price
	_, err = s.products.Put(ctx, id, p)
	return err
}

func Example() {
	run(func(t *testing.T) { // as go test runs a TestPriceWithoutNATS
		t.Helper()
		synctest.Test(t, func(t *testing.T) { // time is virtual
			c := nodetest.New(t, nodetest.Config{Nodes: 2})
			products := nodetest.NewTable[Product](c, "product")
			products.Set("42", Product{Name: "lamp", Price: 100}) // as psql or any other service does

			var shops []*Shop
			for _, n := range c.Nodes() {
				shop, err := NewShop(n, products.Source(), products.Store())
				if err != nil {
					t.Fatal(err)
				}
				shops = append(shops, shop)
			}
			show := func(when string) {
				t.Helper()
				price, err := shops[1].Price(t.Context(), "42")
				fmt.Println(when, price, err)
			}
			show("at first:")

			c.NATSAway(1) // nobody can tell node 1 of what node 0 writes
			if err := shops[0].Reprice(t.Context(), "42", 120); err != nil {
				t.Fatal(err)
			}
			show("within the budget:")
			<-time.After(time.Second)
			show("after it:")

			c.PostgresHangs(1)
			<-time.After(time.Minute)
			_, err := shops[1].Price(t.Context(), "42")
			fmt.Println("nothing is known for a minute:", errors.Is(err, node.ErrUncertain))

			c.Heal(nodetest.All)
			<-time.After(time.Second)
			show("in the end:")
		})
	})
	// Output:
	// at first: 100 <nil>
	// within the budget: 100 <nil>
	// after it: 120 <nil>
	// nothing is known for a minute: true
	// in the end: 120 <nil>
}
