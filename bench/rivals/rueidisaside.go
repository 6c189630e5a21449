package main

import (
	"context"
	"errors"

	"github.com/redis/rueidis/rueidisaside"

	"github.com/freshet-cache/freshet/internal/verify"
)

// aside is rueidisaside: Redis behind its client-side cache as L1, which Redis itself tells of changes.
// As in its README: a TTL of a minute, Del after a write, and a text of its own for what is not there.
type aside struct{ client rueidisaside.CacheAsideClient }

// nothing is the text of what is not there.
const nothing = "_nil_"

func openAside(_ context.Context, at verify.Endpoints) (cache, error) {
	client, err := rueidisaside.NewClient(rueidisaside.ClientOption{ClientOption: rueidisOption(at)})
	return aside{client}, err
}

func (a aside) get(ctx context.Context, key string, load load) (string, error) {
	text, err := a.client.Get(ctx, ttl, key, func(ctx context.Context, _ string) (string, error) {
		text, err := load(ctx)
		if errors.Is(err, errAbsent) {
			return nothing, nil
		}
		return text, err
	})
	if err == nil && text == nothing {
		return "", errAbsent
	}
	return text, err
}

func (a aside) invalidate(ctx context.Context, key string) error { return a.client.Del(ctx, key) }

func (a aside) close() error {
	a.client.Close()
	return nil
}
