package main

import (
	"context"
	"errors"
	"time"

	gocache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"

	"github.com/freshet-cache/freshet/internal/verify"
)

// gored is go-redis/cache: Redis behind the TinyLFU of its README as L1. The README's L1 keeps texts
// for a minute and nobody tells it of changes; here it keeps them for half of the budget, without the
// random addition, so that L1 alone never breaks it.
type gored struct {
	redis *redis.ClusterClient
	cache *gocache.Cache
}

const goredL1 = 500 * time.Millisecond

func openGored(_ context.Context, at verify.Endpoints) (cache, error) {
	l1 := gocache.NewTinyLFU(capacity, goredL1)
	l1.UseRandomizedTTL(0)
	client := openGoRedis(at)
	return gored{client, gocache.New(&gocache.Options{Redis: client, LocalCache: l1})}, nil
}

func (g gored) get(ctx context.Context, key string, load load) (string, error) {
	var text string
	err := g.cache.Once(&gocache.Item{Ctx: ctx, Key: key, Value: &text, TTL: ttl, Do: func(*gocache.Item) (any, error) {
		text, err := load(ctx)
		if errors.Is(err, errAbsent) {
			return "", nil
		}
		return text, err
	}})
	if err == nil && text == "" {
		return "", errAbsent
	}
	return text, err
}

func (g gored) invalidate(ctx context.Context, key string) error { return g.cache.Delete(ctx, key) }

func (g gored) close() error { return g.redis.Close() }
