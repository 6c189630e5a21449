package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lib/pq"
)

// Store writes a cache's values where its source reads them: [SQLStore], or what the application brings.
// It is called concurrently, and only ever within a transaction of [Cache.Put] and its kin. The ids are
// invalidated in that transaction; what else changes by it (tags, other namespaces) is for the Store to
// invalidate, or for the triggers of freshet.watch.
type Store[V any] interface {
	// Put makes each value that of its id, whether or not there was one. With [Cache.PutLater] an error
	// that is not about the connection to Postgres, or its state, is taken to be about the values.
	Put(ctx context.Context, tx *Tx, values map[string]V) error
	// Delete removes what there is of the ids.
	Delete(ctx context.Context, tx *Tx, ids []string) error
}

// SQLStore is a store of two statements. The parameters of put are $1, the array of ids, sorted, and $2, a
// JSON array of the values in the order of the ids; that of remove is $1, the array of ids. For example
//
//	insert into products (id, name, price)
//	select v.id, v.name, v.price from jsonb_to_recordset($2::jsonb) v (id text, name text, price int)
//	 where v.id = any($1::text[])
//	on conflict (id) do update set name = excluded.name, price = excluded.price
//
// and, of values that do not hold their id,
//
//	select i.id, v.value from unnest($1::text[]) with ordinality i (id, n)
//	  join jsonb_array_elements($2::jsonb) with ordinality v (value, n) using (n)
//
// Postgres wants both parameters to be named. With an empty remove values can be put and not deleted.
func SQLStore[V any](put, remove string) Store[V] { return sqlStore[V]{put, remove} }

type sqlStore[V any] struct{ put, remove string }

func (s sqlStore[V]) Put(ctx context.Context, tx *Tx, values map[string]V) error {
	ids := slices.Sorted(maps.Keys(values))
	list := make([]V, len(ids))
	for i, id := range ids {
		list[i] = values[id]
	}
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode %T: %w", list, err)
	}
	_, err = tx.ExecContext(ctx, s.put, pq.StringArray(ids), string(text))
	return err
}

func (s sqlStore[V]) Delete(ctx context.Context, tx *Tx, ids []string) error {
	if s.remove == "" {
		return errors.New("SQLStore has no statement that removes")
	}
	_, err := tx.ExecContext(ctx, s.remove, pq.StringArray(ids))
	return err
}

// Put writes the value through: the Store writes it and its id is invalidated in one transaction, and then
// the entry is read anew, under a snapshot that sees the commit, which fills L1 and L2. No value gets into a
// cache that was not read from Postgres, so a load that was under way cannot bring back what was before.
//
// Without an error the value is committed, and the entry is what there is now: this value as Postgres keeps
// it, or that of a later write. When it cannot be read, the write stands all the same: the entry is then the
// value as it was given, not Fresh, with Tier 0, and nothing is filled. The entry's Token is that of the write
// in any case. An error means that nothing was written, unless it says that the outcome of the commit is not
// known; it wraps [ErrBadID] for an id that cannot be.
func (c *Cache[V]) Put(ctx context.Context, id string, v V) (Entry[V], error) {
	token, err := c.SetMany(ctx, map[string]V{id: v})
	if err != nil {
		return Entry[V]{}, err
	}
	want := c.want
	r, err := c.tiers.Lookup(ctx, id, want)
	if e, err := entryOf(c.name, token, &r, err); err == nil {
		return e, nil
	}
	return Entry[V]{Value: v, Token: token}, nil
}

// SetMany is [Cache.Put] of several values in one transaction; what can be read anew is filled, and no entry is
// returned. At most [MaxIDs] values; of none it does nothing.
func (c *Cache[V]) SetMany(ctx context.Context, values map[string]V) (Token, error) {
	ids := slices.Sorted(maps.Keys(values))
	return c.writeThrough(ctx, "put", ids, func(tx *Tx) error { return c.store.Put(ctx, tx, values) })
}

// Delete removes the values by the Store, in one transaction, and fills that they are not there, as
// [Cache.SetMany] does for what is. At most [MaxIDs] ids; of none it does nothing.
func (c *Cache[V]) Delete(ctx context.Context, ids ...string) (Token, error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	return c.writeThrough(ctx, "delete", ids, func(tx *Tx) error { return c.store.Delete(ctx, tx, ids) })
}

// writeThrough runs the store's function in a transaction that invalidates the ids, and reads them anew.
func (c *Cache[V]) writeThrough(ctx context.Context, op string, ids []string, write func(tx *Tx) error) (Token, error) {
	if err := c.writable(ids); err != nil {
		return Token{}, &Error{Op: op, Namespace: c.name.namespace, View: c.name.view, Err: err}
	}
	if len(ids) == 0 {
		return Token{}, nil
	}
	ctx, span := c.node.spans.Put(ctx, op, c.name.namespace, c.name.view, len(ids))
	token, err := c.node.Write(ctx, func(tx *Tx) error {
		if err := guarded(func() error { return write(tx) }); err != nil {
			return fmt.Errorf("%s of %s (%s): the store: %w", op, c.name.namespace, c.name.view, err)
		}
		return tx.Invalidate(c.name.namespace, ids)
	})
	defer endSpan(span, err) // after the reads
	if err != nil {
		return Token{}, err
	}
	// Plain reads: this node answers nothing older than its own write. What cannot be read is not filled.
	_, _ = c.tiers.LookupMany(ctx, ids, c.want)
	return token, nil
}

// writable says why the ids cannot be written.
func (c *Cache[V]) writable(ids []string) error {
	if c.store == nil {
		return errors.New("CacheConfig.Store is nil; want where values are written: SQLStore, or a Store of your own")
	}
	if len(ids) > MaxIDs {
		return fmt.Errorf("%d ids: want at most %d: %w", len(ids), MaxIDs, ErrTooLarge)
	}
	for _, id := range ids {
		if err := c.tiers.Check(id); err != nil {
			return err
		}
	}
	return nil
}

// guarded runs a function of the application's, whose panic is its error.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}
