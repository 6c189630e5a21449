package main

import (
	"context"
	"errors"

	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/verify"
)

// plain is cache-aside as every introduction shows it: GET, load and SET with a TTL, DEL after a write.
// It has no L1. absent is stored as an empty text.
type plain struct{ redis rueidis.Client }

func openPlain(_ context.Context, at verify.Endpoints) (cache, error) {
	client, err := rueidis.NewClient(rueidisOption(at))
	return plain{client}, err
}

func (p plain) get(ctx context.Context, key string, load load) (string, error) {
	text, err := p.redis.Do(ctx, p.redis.B().Get().Key(key).Build()).ToString()
	if rueidis.IsRedisNil(err) {
		if text, err = load(ctx); err != nil && !errors.Is(err, errAbsent) {
			return "", err
		}
		set := p.redis.B().Set().Key(key).Value(text).Ex(ttl).Build()
		_ = p.redis.Do(ctx, set).Error() // the text is right, whether it is kept or not
		err = nil
	}
	if err == nil && text == "" {
		err = errAbsent
	}
	return text, err
}

func (p plain) invalidate(ctx context.Context, key string) error {
	return p.redis.Do(ctx, p.redis.B().Del().Key(key).Build()).Error()
}

func (p plain) close() error {
	p.redis.Close()
	return nil
}
