package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
)

// l2 is a cache whose L1 has room for one product, so that reading products in turn never hits it, and
// bare clients of the same Redis Cluster.
//
// rueidis sends by the caller's goroutine until two calls of one connection meet for the first time;
// from then on by goroutines of its own that pipeline. Every client in use comes to that, so the bare
// client has been brought to it; the one that never met two calls is shown beside.
type l2 struct {
	cache  *node.Cache[Product]
	client rueidis.Client // pipelines
	fresh  rueidis.Client // does not
	ids    []string
	keys   []string // where the products stand in Redis
	ourAt  int      // the next product that ours reads, modulo their number
	bareAt int
	// What the bare client reads entries with.
	packing *tiers.Packing
	coder   *tiers.Coder[Product]
	others  int // reads of ours that another tier answered
	reads   int // of ours
}

// spreadIDs is how many products the L2 experiments read: over all shards.
const spreadIDs = 1000

func openL2(ctx context.Context, s *site) (*l2, error) {
	r, err := s.open(ctx, func(_ *node.Config, c *node.CacheConfig[Product]) { c.MaxEntries = 1 })
	if err != nil {
		return nil, err
	}
	keys, err := cluster.NewKeys(s.app)
	if err != nil {
		return nil, err
	}
	packing, err1 := tiers.NewPacking(tiers.Compression{})
	coder, err2 := tiers.NewCoder[Product](tiers.JSON)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	l := &l2{cache: r.products, packing: packing, coder: coder}
	for i := range spreadIDs {
		key, err := keys.Entity(cluster.FirstGeneration(), "product", productID(i), "detail")
		if err != nil {
			return nil, err
		}
		l.ids, l.keys = append(l.ids, productID(i)), append(l.keys, key)
	}
	for _, id := range l.ids {
		// Filling follows the answer: it is there when L2 answers.
		var failed error
		err := until(ctx, "an entry in L2", func() bool {
			if _, failed = l.cache.Lookup(ctx, productID(products-1)); failed != nil { // puts the id out of L1
				return true
			}
			var e node.Entry[Product]
			e, failed = l.cache.Lookup(ctx, id)
			return failed != nil || e.Tier == node.TierL2
		})
		if err := errors.Join(err, failed); err != nil {
			return nil, err
		}
	}
	for _, client := range []*rueidis.Client{&l.client, &l.fresh} {
		*client, err = rueidis.NewClient(rueidis.ClientOption{
			InitAddress: s.stack.Redis.Addrs(), DisableCache: true, AlwaysPipelining: client == &l.client,
		})
		if err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// close ends the clients that are there; the cache ends with its site.
func (l *l2) close() {
	for _, client := range []rueidis.Client{l.client, l.fresh} {
		if client != nil {
			client.Close()
		}
	}
}

// ours reads through the cache; for one goroutine.
func (l *l2) ours(ctx context.Context) side {
	return side{run: func(_, n int) error {
		for range n {
			e, err := l.cache.Lookup(ctx, l.ids[l.ourAt%len(l.ids)])
			if err != nil {
				return err
			}
			if e.Tier != node.TierL2 {
				l.others++
			}
			l.ourAt++
		}
		l.reads += n
		return nil
	}}
}

// plain reads the same bytes by the client and decodes them; for one goroutine.
func (l *l2) plain(ctx context.Context, client rueidis.Client) side {
	return side{run: func(_, n int) error {
		for range n {
			b, err := client.Do(ctx, client.B().Get().Key(l.keys[l.bareAt%len(l.keys)]).Build()).AsBytes()
			if err != nil {
				return err
			}
			h, payload, err := l.packing.DecodeEntry(b)
			if err != nil {
				return err
			}
			if _, err := l.coder.Decode(h.Codec, payload); err != nil {
				return err
			}
			l.bareAt++
		}
		return nil
	}}
}

// tripSlice is a slice of the comparisons that have round trips: some dozens of them.
const tripSlice = time.Millisecond

func l2Hit(ctx context.Context, l *lab) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	inner, err := openL2(ctx, s)
	if err != nil {
		return n, err
	}
	defer inner.close()
	caller := context.WithoutCancel(ctx) // no deadline and nothing to cancel, on both sides
	c, err := compare(ctx, inner.ours(caller), inner.plain(caller, inner.client), tripSlice, l.length)
	if err != nil {
		return n, err
	}
	f, err := compare(ctx, inner.ours(caller), inner.plain(caller, inner.fresh), tripSlice, l.length)
	if err != nil {
		return n, err
	}
	if inner.others*100 > inner.reads {
		return n, fmt.Errorf("%d of %d reads were no hits in L2", inner.others, inner.reads)
	}
	n = c.number()
	n.Detail += fmt.Sprintf("; %.2fx of a client that has not begun to pipeline", f.ratio)
	return n, nil
}
