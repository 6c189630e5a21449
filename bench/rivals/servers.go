package main

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/freshet-cache/freshet/internal/verify"
)

// redisTimeout is how long every rival waits for one answer of Redis, and for a connection: long enough for a healthy
// server, and short enough that a read which must do without still answers in time. The clients' own defaults are
// 3 to 10 s.
const redisTimeout = 500 * time.Millisecond

// dial connects to a node of the cluster by the replica's own proxy.
func dial(ctx context.Context, at verify.Endpoints, node string) (net.Conn, error) {
	d := net.Dialer{Timeout: redisTimeout}
	return d.DialContext(ctx, "tcp", at.RedisAddr(node))
}

func rueidisOption(at verify.Endpoints) rueidis.ClientOption {
	return rueidis.ClientOption{
		InitAddress:      at.Redis,
		ConnWriteTimeout: redisTimeout,
		DialCtxFn: func(ctx context.Context, node string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, at, node)
		},
	}
}

func openGoRedis(at verify.Endpoints) *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{
		Addrs:                 at.Redis,
		ContextTimeoutEnabled: true,
		ReadTimeout:           redisTimeout,
		WriteTimeout:          redisTimeout,
		Dialer: func(ctx context.Context, _, node string) (net.Conn, error) {
			return dial(ctx, at, node)
		},
	})
}

// replicaName is unique among all replicas of all runs on the same servers.
func replicaName(at verify.Endpoints) string { return at.App + ":" + strconv.Itoa(int(at.Replica)) }
