package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/freshet-cache/freshet/node"
)

const (
	natsWrites    = 500
	pollingWrites = 40
	// writtenIDs is how many products are written in turn.
	writtenIDs = 100
	// pollInterval is the nodes' default.
	pollInterval = 250 * time.Millisecond
)

func changeNATS(ctx context.Context, l *lab) (n number, err error) {
	delays, err := l.delays(ctx, natsWrites, true)
	if err != nil {
		return n, err
	}
	p99 := quantile(delays, 0.99)
	return number{Value: float64(p99) / float64(time.Millisecond), Detail: describeDelays(delays)}, nil
}

func changePolling(ctx context.Context, l *lab) (n number, err error) {
	delays, err := l.delays(ctx, pollingWrites, false)
	if err != nil {
		return n, err
	}
	p99 := quantile(delays, 0.99)
	return number{Value: float64(p99) / float64(pollInterval), Detail: describeDelays(delays)}, nil
}

func describeDelays(delays []time.Duration) string {
	return fmt.Sprintf("p50 %v, p99 %v, max %v of %d on two peers",
		round(quantile(delays, 0.5)), round(quantile(delays, 0.99)), round(quantile(delays, 1)), len(delays))
}

// delays measures as many writes.
func (l *lab) delays(ctx context.Context, writes int, hints bool) (delays []time.Duration, err error) {
	s, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	c, err := openCrowd(ctx, s, hints)
	if err != nil {
		return nil, err
	}
	for i := range writes {
		more, err := c.follow(ctx, productID(i%writtenIDs))
		if err != nil {
			return nil, err
		}
		delays = append(delays, more...)
	}
	return delays, nil
}

// crowd is three replicas: one that writes, and two that have in L1 what it writes.
type crowd struct {
	writer *replica
	peers  []*replica
}

func openCrowd(ctx context.Context, s *site, hints bool) (*crowd, error) {
	var replicas [3]*replica
	for i := range replicas {
		var err error
		replicas[i], err = s.open(ctx, func(c *node.Config, _ *node.CacheConfig[Product]) {
			if !hints {
				c.NATS.URLs = nil
			}
		})
		if err != nil {
			return nil, err
		}
	}
	c := &crowd{replicas[0], replicas[1:]}
	for i := range writtenIDs {
		if _, err := behind(ctx, c.peers, productID(i), 0); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// follow writes once and returns how long after the write's return a read with the default budget gets
// it from each peer.
func (c *crowd) follow(ctx context.Context, id string) (delays []time.Duration, err error) {
	revision, err := c.writer.write(ctx, id)
	if err != nil {
		return nil, err
	}
	written := time.Now()
	for left := c.peers; len(left) > 0; {
		still, err := behind(ctx, left, id, revision)
		if err != nil {
			return nil, err
		}
		for range len(left) - len(still) {
			delays = append(delays, time.Since(written))
		}
		left = still
		if err := pace(ctx, time.Since(written)); err != nil {
			return nil, err
		}
	}
	return delays, nil
}

// write changes a product and returns its new revision.
func (r *replica) write(ctx context.Context, id string) (revision int64, err error) {
	_, err = r.Write(ctx, func(tx *node.Tx) error {
		return tx.GetContext(ctx, &revision, `update products set revision = revision + 1 where id = $1 returning revision`, id)
	})
	return revision, err
}

// behind are the peers that do not serve the revision yet.
func behind(ctx context.Context, peers []*replica, id string, revision int64) ([]*replica, error) {
	var left []*replica
	for _, peer := range peers {
		p, err := peer.products.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		if p.Revision < revision {
			left = append(left, peer)
		}
	}
	return left, nil
}

// pace is between two looks at the peers: at first they follow at once, since timers are coarser than
// what is measured; later one per millisecond, so that the looking does not take the CPU from the looked at.
func pace(ctx context.Context, waited time.Duration) error {
	switch {
	case waited > time.Minute:
		return errors.New("the peers do not see a write after a minute")
	case waited < 2*time.Millisecond:
		runtime.Gosched()
		return ctx.Err()
	}
	timer := time.NewTimer(time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
