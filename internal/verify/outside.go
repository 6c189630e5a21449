package verify

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/internal/history"
)

// ledger notes what this process writes and reads.
type ledger struct {
	mu       sync.Mutex
	last     uint64 // number of a write
	writes   []history.Write
	reads    []history.Read
	failures uint64 // of writes
}

// firstOutside is the first number of the writes of this process. Replicas have those from
// number<<replicaBits; the rows began with the numbers of their keys.
const (
	firstOutside = 1 << 32
	replicaBits  = 40
)

func (l *ledger) number() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	return firstOutside + l.last
}

func (l *ledger) wrote(w history.Write) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes = append(l.writes, w)
}

func (l *ledger) read(r history.Read) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads = append(l.reads, r)
}

// attempt counts what became of a write. Servers may refuse one, by a deadlock, or because somebody
// else has inserted the key, and connections break; what happened is in the audit.
func (l *ledger) attempt(err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
}

// taken is what was noted since the last call.
func (l *ledger) taken() ([]history.Write, []history.Read, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	writes, reads, failures := l.writes, l.reads, l.failures
	l.writes, l.reads, l.failures = nil, nil, 0
	return writes, reads, failures
}

// keys are those that the change may change.
func (c Change) keys() []uint64 {
	if c.Kind == Rename || c.Kind == Transfer {
		return []uint64{c.Key, c.To}
	}
	return []uint64{c.Key}
}

// outside writes as another service would: in SQL, past every replica.
type outside struct {
	db     *sql.DB
	ledger *ledger
}

// transaction does what f does, under a number of its own. f returns the keys that it has changed.
func (o outside) transaction(ctx context.Context, f func(ctx context.Context, tx *sql.Tx, op uint64, sent time.Duration) ([]uint64, error)) error {
	op, sent, acked := o.ledger.number(), Now(), history.Never
	tx, err := o.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing to roll back after a commit
	if err := announce(ctx, tx, op, sent); err != nil {
		return err
	}
	keys, err := f(ctx, tx, op, sent)
	if err != nil {
		return err
	}
	sent = Now()
	if err = tx.Commit(); err == nil {
		acked = Now()
	}
	o.ledger.wrote(history.Write{Op: op, Keys: keys, Sent: sent, Acked: acked, Idle: len(keys) == 0})
	return err
}

// change makes a change as a replica would, without the replica.
func (o outside) change(ctx context.Context, c Change) error {
	return o.transaction(ctx, func(ctx context.Context, tx *sql.Tx, op uint64, sent time.Duration) ([]uint64, error) {
		c.Op, c.Sent = op, sent
		touched, err := c.Apply(ctx, tx)
		return touched.Keys, err
	})
}

// update changes several rows with one statement; no keys = every row.
func (o outside) update(ctx context.Context, keys ...uint64) error {
	return o.transaction(ctx, func(ctx context.Context, tx *sql.Tx, op uint64, sent time.Duration) ([]uint64, error) {
		some := pq.Array(ints(keys))
		// One order for all who lock several rows.
		if _, err := tx.ExecContext(ctx, `select from verify_row where $1::bigint[] is null or id = any($1) order by id for update`, some); err != nil {
			return nil, err
		}
		return ids(tx.QueryContext(ctx, `update verify_row set op = $2, sent = $3, revision = revision + 1 where $1::bigint[] is null or id = any($1)
			returning id`, some, int64(op), int64(sent)))
	})
}

// ids reads the ids that a statement returns.
func ids(rows *sql.Rows, err error) ([]uint64, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var keys []uint64
	for rows.Next() {
		var key uint64
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, rows.Err()
}

func ints(keys []uint64) []int64 {
	if len(keys) == 0 {
		return nil
	}
	all := make([]int64, len(keys))
	for i, k := range keys {
		all[i] = int64(k)
	}
	return all
}

// replace deletes rows and inserts them again in one transaction, by single statements or by COPY.
func (o outside) replace(ctx context.Context, c *choices, byCopy bool, keys ...uint64) error {
	return o.transaction(ctx, func(ctx context.Context, tx *sql.Tx, op uint64, sent time.Duration) ([]uint64, error) {
		some := pq.Array(ints(keys))
		if _, err := tx.ExecContext(ctx, `select from verify_row where id = any($1) order by id for update`, some); err != nil {
			return nil, err
		}
		if _, err := tx.ExecContext(ctx, `delete from verify_row where id = any($1)`, some); err != nil {
			return nil, err
		}
		return keys, insert(ctx, tx, c, byCopy, op, sent, keys)
	})
}

// insert inserts rows that are not there, into categories of their own.
func insert(ctx context.Context, tx *sql.Tx, c *choices, byCopy bool, op uint64, sent time.Duration, keys []uint64) error {
	if !byCopy {
		var values []string
		for _, key := range keys {
			values = append(values, fmt.Sprintf("(%d, %d, %d, %d)", key, c.home(key), op, int64(sent)))
		}
		_, err := tx.ExecContext(ctx, `insert into verify_row (id, category, op, sent) values `+strings.Join(values, ", "))
		return err
	}
	copying, err := tx.PrepareContext(ctx, `copy verify_row (id, category, op, sent) from stdin`)
	if err != nil {
		return err
	}
	defer copying.Close()
	for _, key := range keys {
		if _, err := copying.ExecContext(ctx, int64(key), int64(c.home(key)), int64(op), int64(sent)); err != nil {
			return err
		}
	}
	_, err = copying.ExecContext(ctx)
	return err
}

// truncate empties the table and fills a part of it again, in one transaction.
func (o outside) truncate(ctx context.Context, c *choices) error {
	return o.transaction(ctx, func(ctx context.Context, tx *sql.Tx, op uint64, sent time.Duration) ([]uint64, error) {
		if _, err := tx.ExecContext(ctx, `truncate verify_row`); err != nil {
			return nil, err
		}
		var all, kept []uint64
		for key := uint64(1); key <= c.keys; key++ {
			all = append(all, key)
			if c.IntN(20) > 0 {
				kept = append(kept, key)
			}
		}
		return all, insert(ctx, tx, c, true, op, sent, kept)
	})
}

// hold changes a row and stays idle in the transaction until release is closed or ctx ends, then
// commits.
func (o outside) hold(ctx context.Context, key uint64, release <-chan struct{}) error {
	return o.transaction(ctx, func(ctx context.Context, tx *sql.Tx, op uint64, sent time.Duration) ([]uint64, error) {
		keys, err := ids(tx.QueryContext(ctx, `update verify_row set op = $2, sent = $3, revision = revision + 1 where id = $1 returning id`, int64(key), int64(op), int64(sent)))
		if err != nil {
			return nil, err
		}
		select {
		case <-release:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return keys, nil
	})
}

// write does a random write, as they are done all the time.
func (o outside) write(ctx context.Context, c *choices) error {
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	switch p := c.Float64(); {
	case p < 0.1:
		return o.change(ctx, c.transfer())
	case p < 0.6:
		return o.change(ctx, c.change())
	case p < 0.8:
		return o.update(ctx, c.some(2+c.IntN(20))...)
	case p < 0.9:
		return o.replace(ctx, c, false, c.some(1+c.IntN(3))...)
	default:
		return o.replace(ctx, c, true, c.some(2+c.IntN(20))...)
	}
}

// some are different keys.
func (c *choices) some(n int) []uint64 {
	keys := make([]uint64, n)
	for i := range keys {
		keys[i] = c.key()
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
