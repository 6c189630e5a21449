package main

import (
	"context"
	"encoding/json"
	"errors"
	"sync"

	jetcache "github.com/mgtv-tech/jetcache-go"
	"github.com/mgtv-tech/jetcache-go/local"
	"github.com/mgtv-tech/jetcache-go/remote"
	"github.com/mgtv-tech/jetcache-go/stats"
	"github.com/redis/go-redis/v9"

	"github.com/freshet-cache/freshet/internal/verify"
)

// jet is jetcache-go with both levels and the syncLocal of its README: FreeCache for a minute, and every
// change published over Redis to the other replicas, which then drop it from their L1.
type jet struct {
	redis   *redis.ClusterClient
	changes *redis.PubSub
	cache   jetcache.Cache
	heard   sync.WaitGroup // ends when changes is closed
}

func openJet(ctx context.Context, at verify.Endpoints) (cache, error) {
	client := openGoRedis(at)
	replica := replicaName(at)
	channel := at.App + ":sync"
	changes := client.Subscribe(ctx, channel)
	if _, err := changes.Receive(ctx); err != nil { // the subscription stands
		return nil, errors.Join(err, changes.Close(), client.Close())
	}
	j := &jet{redis: client, changes: changes}
	j.cache = jetcache.New(
		jetcache.WithName("verify"),
		jetcache.WithRemote(remote.NewGoRedisV9Adapter(client)),
		jetcache.WithRemoteExpiry(ttl),
		jetcache.WithLocal(local.NewFreeCache(jetSize, ttl, replica)),
		jetcache.WithErrNotFound(errAbsent),
		jetcache.WithSourceId(replica),
		jetcache.WithSyncLocal(true),
		jetcache.WithEventHandler(func(e *jetcache.Event) { //nolint:contextcheck // it is called long after the opening
			if message, err := json.Marshal(e); err == nil {
				_ = client.Publish(context.Background(), channel, message).Err() // as in the README: nobody hears of it
			}
		}),
		jetcache.WithStatsHandler(stats.NewHandles(true)),
	)
	j.heard.Go(func() { j.hear(replica) })
	return j, nil
}

// jetSize of its L1, which all replicas in one process share.
const jetSize = 32 * local.MB

// hear drops from L1 what other replicas changed.
func (j *jet) hear(replica string) {
	for m := range j.changes.Channel() {
		var e jetcache.Event
		if err := json.Unmarshal([]byte(m.Payload), &e); err != nil || e.SourceID == replica {
			continue
		}
		for _, key := range e.Keys {
			j.cache.DeleteFromLocalCache(key)
		}
	}
}

func (j *jet) get(ctx context.Context, key string, load load) (text string, err error) {
	err = j.cache.Once(ctx, key, jetcache.Value(&text), jetcache.Do(func(ctx context.Context) (any, error) { return load(ctx) }))
	return text, err
}

func (j *jet) invalidate(ctx context.Context, key string) error { return j.cache.Delete(ctx, key) }

func (j *jet) close() error {
	j.cache.Close()
	err := j.changes.Close()
	j.heard.Wait()
	return errors.Join(err, j.redis.Close())
}
