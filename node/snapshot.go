package node

import (
	"context"
	"errors"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Snapshot is one moment of Postgres, as the function of [Node.Snapshot] sees it. It reads by the In methods of
// caches, from one goroutine, and not after the function has returned.
type Snapshot struct {
	node     *Node
	together *tiers.Together
}

// Moment says of when a [Snapshot] was.
type Moment struct {
	// Age bounds the staleness: what was read reflects every commit older than this.
	Age time.Duration
	// Token is that of a session that has seen it. It covers the token that the snapshot was asked for.
	Token Token
}

// Snapshot runs the function, which may read from all caches of the node, and makes all that it reads the state at
// one snapshot of Postgres: no transaction is seen in one value and missed in another.
//
//	_, err := n.Snapshot(ctx, func(s *node.Snapshot) (err error) {
//		if order, err = orders.In(s, id); err != nil {
//			return err
//		}
//		lines, err = linesOfOrder.In(s, cluster.Params{"order": id})
//		return err
//	})
//
// What the function reads comes from L1 and L2 where it can, and is compared when the function has returned. If
// one value is newer than the node's last poll, that takes one more poll, and nothing else when nothing has
// changed. If something has, the function runs again, three times in all, and then once more in one read-only
// transaction, isolation level repeatable read, on a connection for loads. So it must do nothing but read, and
// set anew what it sets; what it reads in a run that is repeated may not fit together. Its error is returned, as
// it is, only if what it had read did. There is no STALE answer: what cannot be proven is [ErrUncertain].
//
// A [Func] cannot read in the transaction: values of its caches are loaded before, and if they have changed by
// then the error is [ErrUncertain]. The function may read up to [MaxIDs] values. Its last run must end within
// PostgresConfig.LoadTimeout, or its reads fail.
func (n *Node) Snapshot(ctx context.Context, read func(s *Snapshot) error, options ...ReadOption) (Moment, error) {
	want := n.want(options)
	ctx, span := n.spans.Snapshot(ctx)
	var failed error
	moment, err := tiers.ReadTogether(ctx, n.shared(), want, func(t *tiers.Together) {
		failed = read(&Snapshot{node: n, together: t})
	})
	endSpan(span, err)
	if err != nil {
		return Moment{}, &Error{Op: "snapshot", Err: err}
	}
	m := Moment{Age: moment.Age, Token: want.Token}
	if moment.Snapshot.Timeline != 0 {
		m.Token = want.Token.Merge(coherence.TokenOf(moment.Snapshot))
	}
	return m, failed
}

// In is [Cache.Get] in a snapshot.
func (c *Cache[V]) In(s *Snapshot, id string) (V, error) {
	r, err := lookupIn(s, c.node, c.name, c.tiers, []string{id})
	if err != nil {
		var none V
		return none, err
	}
	if r[0].Absent {
		err = ErrNotFound
	}
	return r[0].Value, err
}

// ManyIn returns what there is of the ids in a snapshot; ids that do not exist are not in the map.
func (c *Cache[V]) ManyIn(s *Snapshot, ids []string) (map[string]V, error) {
	results, err := lookupIn(s, c.node, c.name, c.tiers, ids)
	if err != nil {
		return nil, err
	}
	values := make(map[string]V, len(ids))
	for i := range results {
		if r := &results[i]; !r.Absent {
			values[ids[i]] = r.Value
		}
	}
	return values, nil
}

// In is [QueryCache.Get] in a snapshot.
func (c *QueryCache[V]) In(s *Snapshot, p cluster.Params) (V, error) {
	r, err := lookupIn(s, c.node, c.name, c.tiers, []string{idOf(p)})
	if err != nil {
		var none V
		return none, err
	}
	if r[0].Absent {
		err = ErrNotFound
	}
	return r[0].Value, err
}

func lookupIn[V any](s *Snapshot, n *Node, name cacheName, c *tiers.Cache[V], ids []string) ([]tiers.Result[V], error) {
	if s.node != n {
		return nil, wrap(name, errors.New("a snapshot of another node: want one of the cache's own"))
	}
	results, err := c.LookupIn(s.together, ids)
	return results, wrap(name, err)
}

// begin begins a transaction for a snapshot. Close waits for its end, as it does for writes.
func (n *Node) begin(ctx context.Context) (tiers.Transaction, error) {
	if !n.enter() {
		return nil, ErrClosed
	}
	tx, err := n.parts.Database.BeginRead(ctx, n.writes.Done)
	if err != nil {
		n.writes.Done()
		return nil, err
	}
	return tx, nil
}
