package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/freshet-cache/freshet/node"
)

// l1 is an L1 with hot products, and a bare LRU with the same.
type l1 struct {
	cache *node.Cache[Product]
	bare  *shardedLRU
	reads []string // ids in random order; a power of two of them
}

// hot is how many products the L1 experiments read.
const hot = 1000

func openL1(ctx context.Context, s *site, change func(*node.Config, *node.CacheConfig[Product])) (*l1, error) {
	r, err := s.open(ctx, change)
	if err != nil {
		return nil, err
	}
	l := &l1{cache: r.products, bare: newShardedLRU(100_000), reads: make([]string, 1<<12)}
	for i := range hot {
		p, err := l.cache.Get(ctx, productID(i))
		if err != nil {
			return nil, err
		}
		l.bare.add(p.ID, p)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range l.reads {
		l.reads[i] = strings.Clone(productID(random.IntN(hot))) // as it comes in a request: never the key's own memory
	}
	return l, nil
}

// apart is the distance in reads at which workers start.
const apart = 1531

// ours reads through Cache.Get.
func (l *l1) ours(ctx context.Context, goroutines int) side {
	return side{goroutines, func(worker, n int) error {
		for i := worker * apart; i < worker*apart+n; i++ {
			if _, err := l.cache.Get(ctx, l.reads[i&(len(l.reads)-1)]); err != nil {
				return err
			}
		}
		return nil
	}}
}

var errEvicted = errors.New("the bare LRU has lost an entry")

// plain reads from the bare LRU.
func (l *l1) plain(goroutines int) side {
	return side{goroutines, func(worker, n int) error {
		for i := worker * apart; i < worker*apart+n; i++ {
			if _, ok := l.bare.get(l.reads[i&(len(l.reads)-1)]); !ok {
				return errEvicted
			}
		}
		return nil
	}}
}

// shardedLRU is what a hit in L1 is compared with: simplelru in 64 shards, each under a mutex.
type shardedLRU struct {
	seed   maphash.Seed
	shards [64]struct {
		mu  sync.Mutex
		lru *simplelru.LRU[string, Product]
		_   [64]byte
	}
}

func newShardedLRU(size int) *shardedLRU {
	l := &shardedLRU{seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].lru, _ = simplelru.NewLRU[string, Product](size/len(l.shards), nil) // the size is positive
	}
	return l
}

func (l *shardedLRU) get(id string) (Product, bool) {
	s := &l.shards[maphash.String(l.seed, id)%uint64(len(l.shards))]
	s.mu.Lock()
	p, ok := s.lru.Get(id)
	s.mu.Unlock()
	return p, ok
}

func (l *shardedLRU) add(id string, p Product) {
	s := &l.shards[maphash.String(l.seed, id)%uint64(len(l.shards))]
	s.mu.Lock()
	s.lru.Add(id, p)
	s.mu.Unlock()
}

// l1Slice is a slice of the L1 comparisons: short enough that most are not interrupted on a busy
// machine. With two goroutines it must be longer than it takes to wake a thread.
const (
	l1Slice    = 400 * time.Microsecond
	l1TwoSlice = 2 * time.Millisecond
)

func l1Allocations(ctx context.Context, l *lab) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	inner, err := openL1(ctx, s, nil)
	if err != nil {
		return n, err
	}
	return number{Value: inner.allocations(ctx), Detail: fmt.Sprintf("mean of %d reads", allocationReads)}, nil
}

const allocationReads = 100_000

// allocations of a hit, without fractions that polls in the background cause.
func (l *l1) allocations(ctx context.Context) float64 {
	i := 0
	return testing.AllocsPerRun(allocationReads, func() {
		_, _ = l.cache.Get(ctx, l.reads[i&(len(l.reads)-1)])
		i++
	})
}

func l1Hit(ctx context.Context, l *lab) (number, error) {
	return l.compareL1(ctx, l1Slice, func(inner *l1) (side, side) { return inner.ours(ctx, 1), inner.plain(1) })
}

func l1Two(ctx context.Context, l *lab) (number, error) {
	return l.compareL1(ctx, l1TwoSlice, func(inner *l1) (side, side) { return inner.ours(ctx, 2), inner.ours(ctx, 1) })
}

func (l *lab) compareL1(ctx context.Context, slice time.Duration, sides func(*l1) (ours, bare side)) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	inner, err := openL1(ctx, s, nil)
	if err != nil {
		return n, err
	}
	ours, bare := sides(inner)
	c, err := compare(ctx, ours, bare, slice, l.length)
	return c.number(), err
}

// l1Telemetry compares hits of a node that tells all it can, scraped and traced, with those of one that tells nothing,
// by turns. They are different caches in memory, which alone may make some nanoseconds of difference.
func l1Telemetry(ctx context.Context, l *lab) (n number, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	registry := prometheus.NewRegistry()
	provider := trace.NewTracerProvider(trace.WithSampler(trace.AlwaysSample()))
	defer func() { err = errors.Join(err, provider.Shutdown(context.WithoutCancel(ctx))) }()
	told, err := openL1(ctx, s, func(c *node.Config, _ *node.CacheConfig[Product]) { c.Registry, c.Tracer = registry, provider })
	if err != nil {
		return n, err
	}
	untold, err := openL1(ctx, s, nil)
	if err != nil {
		return n, err
	}
	under, span := provider.Tracer("bench").Start(ctx, "reader")
	defer span.End()
	if _, err := registry.Gather(); err != nil {
		return n, err
	}
	c, err := compare(ctx, told.ours(under, 1), untold.ours(ctx, 1), l1Slice, l.length)
	return number{Value: c.more, Detail: c.number().Detail}, err
}
