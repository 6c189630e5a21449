package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/freshet-cache/freshet/node"
)

const (
	stampedeKeys    = 40
	stampedeReaders = 100 // on each of three replicas
)

// countedQuery loads products and counts what it loads. Every other product takes 20 ms, so that
// replicas meet in the middle of a load, too, and not only before and after.
const countedQuery = `
select id, name, about, category, currency, price, stock, revision + 0 * nextval('loads') as revision
  from products p cross join lateral (select pg_sleep(0.02 * (p.price % 2))) slow
 where id = any($1)`

func oneLoad(ctx context.Context, l *lab) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	loads, err := stampedes(ctx, s, stampedeKeys)
	if err != nil {
		return n, err
	}
	worst, sum := 0, 0
	for _, n := range loads {
		worst, sum = max(worst, n), sum+n
	}
	return number{Value: float64(worst), Detail: fmt.Sprintf("%d loads of %d keys, as Postgres counts them", sum, len(loads))}, nil
}

// stampedes lets three replicas miss as many keys, one after the other, and returns how often each was
// loaded.
func stampedes(ctx context.Context, s *site, keys int) ([]int, error) {
	replicas, err := openStampede(ctx, s)
	if err != nil {
		return nil, err
	}
	loads := make([]int, keys)
	for key := range loads {
		before, err := s.loads(ctx)
		if err != nil {
			return nil, err
		}
		if err := stampede(ctx, replicas, productID(key)); err != nil {
			return nil, err
		}
		after, err := s.loads(ctx)
		if err != nil {
			return nil, err
		}
		if loads[key] = after - before; loads[key] < 1 {
			return nil, fmt.Errorf("key %d was answered without a load", key)
		}
	}
	return loads, nil
}

func openStampede(ctx context.Context, s *site) ([]*replica, error) {
	replicas := make([]*replica, 3)
	for i := range replicas {
		var err error
		replicas[i], err = s.open(ctx, func(_ *node.Config, c *node.CacheConfig[Product]) {
			c.Source = node.SQL[Product](countedQuery)
		})
		if err != nil {
			return nil, err
		}
		// The first load prepares the statement.
		if _, err := replicas[i].products.Get(ctx, productID(products-1-i)); err != nil {
			return nil, err
		}
	}
	return replicas, nil
}

// stampede reads one id with all readers at once.
func stampede(ctx context.Context, replicas []*replica, id string) error {
	var work, ready sync.WaitGroup
	gate := make(chan struct{}) // closed when all readers stand before it
	failures := make([]error, stampedeReaders*len(replicas))
	for reader := range failures {
		ready.Add(1)
		work.Go(func() {
			ready.Done()
			<-gate
			_, failures[reader] = replicas[reader%len(replicas)].products.Get(ctx, id)
		})
	}
	ready.Wait()
	close(gate)
	work.Wait()
	return errors.Join(failures...)
}

// loads are those so far, by Postgres' count.
func (s *site) loads(ctx context.Context) (n int, err error) {
	err = s.db.GetContext(ctx, &n, `select case when is_called then last_value else 0 end from loads`)
	return n, err
}
