package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/verify"
)

// subject is one replica of a rival: rows and lists of Postgres behind its cache. Rivals do not say how sure an answer
// is, and have no tokens: every answer is given as FRESH.
type subject struct {
	cache cache
	db    *sql.DB
	app   string
}

// open makes the verify.Open of a rival.
func open(opened func(context.Context, verify.Endpoints) (cache, error)) verify.Open {
	return func(ctx context.Context, at verify.Endpoints) (verify.Subject, error) {
		pool, err := coherence.OpenPool(coherence.PoolConfig{DSN: at.Postgres})
		if err != nil {
			return nil, err
		}
		c, err := opened(ctx, at)
		if err != nil {
			return nil, errors.Join(err, pool.Close())
		}
		return &subject{cache: c, db: pool.DB, app: at.App}, nil
	}
}

// Get reads a row, its op in decimal.
func (s *subject) Get(ctx context.Context, key uint64, _ verify.Want) (verify.Answer, error) {
	a := verify.Answer{Fresh: true}
	err := s.read(ctx, s.rowKey(key), &a.Op, func(ctx context.Context) (any, error) {
		rows, err := s.query(ctx, verify.RowQuery, fmt.Sprintf("{%d}", key))
		if err == nil && len(rows) == 0 {
			return nil, errAbsent
		}
		if err != nil {
			return nil, err
		}
		return rows[0].Op, nil
	})
	if errors.Is(err, errAbsent) {
		a.Absent, err = true, nil
	}
	return a, err
}

// List reads the rows of a category, as JSON.
func (s *subject) List(ctx context.Context, group uint64, _ verify.Want) (verify.ListAnswer, error) {
	a := verify.ListAnswer{Fresh: true}
	err := s.read(ctx, s.listKey(group), &a.Rows, func(ctx context.Context) (any, error) {
		return s.query(ctx, verify.ListQuery, group)
	})
	return a, err
}

// Write makes the change in one transaction and then invalidates what it touched, as each rival's documentation says.
func (s *subject) Write(ctx context.Context, c verify.Change) (string, error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return "", err
	}
	defer tx.Rollback()
	touched, err := c.Apply(ctx, tx)
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return "", err
	}
	var keys []string
	for _, key := range touched.Keys {
		keys = append(keys, s.rowKey(key))
	}
	for _, group := range touched.Groups {
		keys = append(keys, s.listKey(group))
	}
	slices.Sort(keys)
	s.invalidate(ctx, slices.Compact(keys))
	return "", nil
}

// Close ends the replica.
func (s *subject) Close() error { return errors.Join(s.cache.close(), s.db.Close()) }

func (s *subject) rowKey(key uint64) string    { return fmt.Sprintf("%s:row:%d", s.app, key) }
func (s *subject) listKey(group uint64) string { return fmt.Sprintf("%s:list:%d", s.app, group) }

// read answers from the cache into what the pointer leads to. When the cache fails, and not the load, it answers from
// Postgres: the rivals leave that to their users, and this is what a careful one does.
func (s *subject) read(ctx context.Context, key string, into any, query func(context.Context) (any, error)) error {
	var failed error // of the load that this call made
	load := func(ctx context.Context) (string, error) {
		value, err := query(ctx)
		if err != nil {
			if !errors.Is(err, errAbsent) {
				failed = err
			}
			return "", err
		}
		text, err := json.Marshal(value)
		return string(text), err
	}
	text, err := s.cache.get(ctx, key, load)
	if err != nil && !errors.Is(err, errAbsent) && failed == nil {
		text, err = load(ctx)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// query reads rows of (id, op).
func (s *subject) query(ctx context.Context, query string, arg any) ([]verify.ListRow, error) {
	rows, err := s.db.QueryContext(ctx, query, arg)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := []verify.ListRow{}
	for rows.Next() {
		var r verify.ListRow
		if err := rows.Scan(&r.Key, &r.Op); err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, rows.Err()
}

const (
	// attempts is how often a writer tries to invalidate one key, each time for attemptLimit.
	attempts     = 3
	attemptLimit = redisTimeout
	// invalidateLimit bounds how long it tries for all keys of one write together.
	invalidateLimit = 2 * time.Second
)

// invalidate tells the cache of a committed change, again where that fails. What fails in the end leaves the write as
// it is: it was committed, and there is nothing left that the rivals' documentation names.
func (s *subject) invalidate(ctx context.Context, keys []string) {
	// A caller that gives up between the commit and this is no excuse.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), invalidateLimit)
	defer cancel()
	for _, key := range keys {
		for range attempts {
			attempt, cancel := context.WithTimeout(ctx, attemptLimit)
			err := s.cache.invalidate(attempt, key)
			cancel()
			if err == nil || ctx.Err() != nil {
				break
			}
		}
	}
}
