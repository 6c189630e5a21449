package nodetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
)

// Table is a table of a [Cluster]'s database whose changes are logged, like those of a table under freshet.watch: what
// its rows' caches serve is as fresh as with Postgres. Values are kept as they are given: what they point to must not
// be changed afterwards. It is safe for concurrent use.
type Table[V any] struct {
	cluster   *Cluster
	db        *database
	namespace string
	number    int // index in the database's tables
	tags      func(id string, v V) []string

	// Under the database's mu.
	rows    map[string]V
	changes map[*Tx]map[string]row[V]
	pinned  map[*reading]map[string]V
}

// row is what a transaction makes of one.
type row[V any] struct {
	value V
	gone  bool
}

// NewTable makes an empty table whose changes are those of the namespace's entities.
func NewTable[V any](c *Cluster, namespace string) *Table[V] {
	return NewTaggedTable[V](c, namespace, nil)
}

// NewTaggedTable is [NewTable] of one whose changes are also those of tags: as the tags of freshet.watch, those of the
// row before and after the change. nil = none.
func NewTaggedTable[V any](c *Cluster, namespace string, tags func(id string, v V) []string) *Table[V] {
	t := &Table[V]{
		cluster: c, db: c.db, namespace: namespace, tags: tags,
		rows: map[string]V{}, changes: map[*Tx]map[string]row[V]{}, pinned: map[*reading]map[string]V{},
	}
	c.db.mu.Lock()
	defer c.db.mu.Unlock()
	t.number = len(c.db.tables)
	c.db.tables = append(c.db.tables, t)
	return t
}

// Set makes the value that of the row, in a transaction of its own, as any other program does that writes to the
// database: no node is told but by the log. When it cannot, since another transaction holds the row for 5 s, the test
// fails.
func (t *Table[V]) Set(id string, v V) {
	t.cluster.must(t.cluster.Commit(func(tx *Tx) error { return t.SetIn(tx, id, v) }))
}

// Delete removes the row, as [Table.Set] sets it. Of a row that is not there nothing is logged.
func (t *Table[V]) Delete(id string) {
	t.cluster.must(t.cluster.Commit(func(tx *Tx) error { return t.DeleteIn(tx, id) }))
}

// Get is the row as it is committed now. It is for tests, and for a [node.Func] source.
func (t *Table[V]) Get(id string) (v V, ok bool) {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	v, ok = t.rows[id]
	return v, ok
}

// Rows are all rows as they are committed now: id -> value. It is for tests, and for a [node.QueryConfig] with a Func.
func (t *Table[V]) Rows() map[string]V {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	return maps.Clone(t.rows)
}

// SetIn is [Table.Set] as a part of the transaction.
func (t *Table[V]) SetIn(tx *Tx, id string, v V) error { return t.change(tx, id, row[V]{value: v}) }

// DeleteIn is [Table.Delete] as a part of the transaction.
func (t *Table[V]) DeleteIn(tx *Tx, id string) error { return t.change(tx, id, row[V]{gone: true}) }

// GetIn is the row as the transaction sees it: as it has changed it, or as it is committed now.
func (t *Table[V]) GetIn(tx *Tx, id string) (v V, ok bool) {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	return t.seen(tx, id)
}

// seen is GetIn with the database's mu held.
func (t *Table[V]) seen(tx *Tx, id string) (v V, ok bool) {
	if r, changed := t.changes[tx][id]; changed {
		return r.value, !r.gone
	}
	v, ok = t.rows[id]
	return v, ok
}

func (t *Table[V]) change(tx *Tx, id string, r row[V]) error {
	switch {
	case tx == nil:
		return errNobody
	case tx.db != t.db:
		return fmt.Errorf("nodetest: table of %s: a transaction of another cluster", t.namespace)
	case id == "":
		return fmt.Errorf("nodetest: table of %s: id is empty; want that of an entity", t.namespace)
	}
	if err := tx.acquire(lock{t.number, id}); err != nil {
		return fmt.Errorf("nodetest: %s %q: %w", t.namespace, id, err)
	}
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	if err := tx.usable(); err != nil {
		return err
	}
	old, there := t.seen(tx, id)
	if r.gone && !there {
		return nil
	}
	if t.changes[tx] == nil {
		t.changes[tx] = map[string]row[V]{}
		tx.relations = append(tx.relations, t)
	}
	t.changes[tx][id] = r
	var tags []string
	if t.tags != nil {
		if there {
			tags = t.tags(id, old)
		}
		if !r.gone {
			tags = slices.Concat(tags, t.tags(id, r.value))
		}
	}
	scopes := []coherence.Scope{coherence.Entity(t.namespace, id)}
	for _, tag := range slices.Compact(slices.Sorted(slices.Values(tags))) {
		scopes = append(scopes, coherence.Tag(tag))
	}
	tx.change(-1, scopes...)
	return nil
}

// commit implements [relation].
func (t *Table[V]) commit(tx *Tx) {
	for id, r := range t.changes[tx] {
		if t.rows[id] = r.value; r.gone {
			delete(t.rows, id)
		}
	}
	delete(t.changes, tx)
}

// forget implements [relation].
func (t *Table[V]) forget(tx *Tx) { delete(t.changes, tx) }

// pin implements [relation].
func (t *Table[V]) pin(at *reading) { t.pinned[at] = maps.Clone(t.rows) }

// unpin implements [relation].
func (t *Table[V]) unpin(at *reading) { delete(t.pinned, at) }

// Source loads the table's rows, under exact snapshots as [node.SQL] does, by the node's own way to Postgres with its
// faults. It takes part in the transaction of [node.Node.Snapshot].
func (t *Table[V]) Source() node.Source[V] {
	return func(n *node.Node) (tiers.Source[V], error) {
		m := t.cluster.member(n)
		if m == nil {
			return nil, errors.New("Table.Source: the node is not of the table's cluster")
		}
		return tableSource[V]{t, m.postgres}, nil
	}
}

// tableSource implements [tiers.TransactionSource] for one node.
type tableSource[V any] struct {
	table *Table[V]
	way   *way
}

// Load implements [tiers.Source].
func (s tableSource[V]) Load(ctx context.Context, ids []string) (tiers.Batch[V], error) {
	var batch tiers.Batch[V]
	err := s.way.call(ctx, 0, func() error {
		s.table.db.mu.Lock()
		defer s.table.db.mu.Unlock()
		batch = batchOf(s.table.db.log.Snapshot(), s.table.rows, ids)
		return nil
	})
	return batch, err
}

// LoadIn implements [tiers.TransactionSource].
func (s tableSource[V]) LoadIn(ctx context.Context, tx tiers.Transaction, ids []string) (tiers.Batch[V], error) {
	at, ok := tx.(*reading)
	if !ok || at.db != s.table.db {
		return tiers.Batch[V]{}, fmt.Errorf("nodetest: a transaction of type %T: want one of the table's cluster", tx)
	}
	var batch tiers.Batch[V]
	err := s.way.call(ctx, 0, func() error {
		s.table.db.mu.Lock()
		defer s.table.db.mu.Unlock()
		rows, there := s.table.pinned[at]
		if !there {
			return errors.New("nodetest: the transaction has ended, or began before the table was made")
		}
		batch = batchOf(at.snapshot, rows, ids)
		return nil
	})
	return batch, err
}

func batchOf[V any](at coherence.Snapshot, rows map[string]V, ids []string) tiers.Batch[V] {
	batch := tiers.Batch[V]{Snapshot: at, Values: make(map[string]V, len(ids))}
	for _, id := range ids {
		if v, ok := rows[id]; ok {
			batch.Values[id] = v
		}
	}
	return batch
}

// Store writes a cache's values into the table, for [node.CacheConfig].Store.
func (t *Table[V]) Store() node.Store[V] { return tableStore[V]{t} }

type tableStore[V any] struct{ table *Table[V] }

// Put implements [node.Store].
func (s tableStore[V]) Put(_ context.Context, tx *node.Tx, values map[string]V) error {
	for _, id := range slices.Sorted(maps.Keys(values)) {
		if err := s.table.SetIn(TxOf(tx), id, values[id]); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements [node.Store].
func (s tableStore[V]) Delete(_ context.Context, tx *node.Tx, ids []string) error {
	for _, id := range slices.Sorted(slices.Values(ids)) {
		if err := s.table.DeleteIn(TxOf(tx), id); err != nil {
			return err
		}
	}
	return nil
}
