package main

import (
	"context"
	"errors"

	"github.com/dtm-labs/rockscache"
	"github.com/redis/go-redis/v9"

	"github.com/freshet-cache/freshet/internal/verify"
)

// rocks is rockscache with StrongConsistency, its strictest way to read, and its defaults. It has no L1;
// an empty text is what is not there, cached for its EmptyExpire.
type rocks struct {
	redis  *redis.ClusterClient
	client *rockscache.Client
}

func openRocks(_ context.Context, at verify.Endpoints) (cache, error) {
	o := rockscache.NewDefaultOptions()
	o.StrongConsistency = true
	client := openGoRedis(at)
	return rocks{client, rockscache.NewClient(client, o)}, nil
}

func (r rocks) get(ctx context.Context, key string, load load) (string, error) {
	text, err := r.client.Fetch2(ctx, key, ttl, func() (string, error) {
		text, err := load(ctx)
		if errors.Is(err, errAbsent) {
			return "", nil
		}
		return text, err
	})
	if err == nil && text == "" {
		return "", errAbsent
	}
	return text, err
}

func (r rocks) invalidate(ctx context.Context, key string) error {
	return r.client.TagAsDeleted2(ctx, key)
}

func (r rocks) close() error { return r.redis.Close() }
