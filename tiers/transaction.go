package tiers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
)

// Transaction is read-only, and all of its statements see one snapshot. A source knows those of its own
// database.
type Transaction interface {
	// End gives it up; again it does nothing.
	End()
}

// TransactionSource is a [Source] that can load within a transaction.
type TransactionSource[V any] interface {
	Source[V]
	// LoadIn is Load by statements of the transaction, which is left open. All batches of one transaction have
	// one snapshot.
	LoadIn(ctx context.Context, tx Transaction, ids []string) (Batch[V], error)
}

// SQLTransaction is a [Transaction] of Postgres, of isolation level repeatable read: pg_current_snapshot() is the
// same in each of its statements.
type SQLTransaction struct {
	tx  *sqlx.Tx
	end func()
}

// BeginSQL begins a transaction, which ends with its context at the latest. ended is called once, when it is
// given up; nil = nobody needs to know.
func BeginSQL(ctx context.Context, db *sqlx.DB, ended func()) (*SQLTransaction, error) {
	tx, err := db.BeginTxx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("tiers: begin: %w", err)
	}
	return &SQLTransaction{tx: tx, end: sync.OnceFunc(func() {
		_ = tx.Rollback() // it has written nothing
		if ended != nil {
			ended()
		}
	})}, nil
}

// End implements [Transaction].
func (t *SQLTransaction) End() { t.end() }

// sqlOf is the transaction as one of Postgres.
func sqlOf(tx Transaction) (*sqlx.Tx, error) {
	t, ok := tx.(*SQLTransaction)
	if !ok {
		return nil, fmt.Errorf("tiers: a transaction of type %T: want one of BeginSQL", tx)
	}
	return t.tx, nil
}

// in is the statement within a transaction. It is prepared on the transaction's connection if need be: there may
// be no other to spare. origin is what outdated wants.
func (s *statement) in(ctx context.Context, tx *sqlx.Tx) (stmt, origin *sqlx.Stmt, err error) {
	s.mu.Lock()
	origin = s.stmt
	s.mu.Unlock()
	if origin != nil {
		return tx.StmtxContext(ctx, origin), origin, nil
	}
	if stmt, err = tx.PreparexContext(ctx, s.text); err != nil {
		return nil, nil, fmt.Errorf("tiers: prepare the query of a source: %w", err)
	}
	return stmt, nil, nil
}

// LoadIn implements [TransactionSource].
func (s *SQLSource[V]) LoadIn(ctx context.Context, tx Transaction, ids []string) (Batch[V], error) {
	within, err := sqlOf(tx)
	if err != nil {
		return Batch[V]{}, err
	}
	stmt, origin, err := s.in(ctx, within)
	if err != nil {
		return Batch[V]{}, err
	}
	batch, err := s.query(ctx, stmt, ids)
	s.outdated(origin, err)
	return batch, err
}

// LoadIn implements [TransactionSource].
func (s *QuerySource[V]) LoadIn(ctx context.Context, tx Transaction, ids []string) (Batch[V], error) {
	within, err := sqlOf(tx)
	if err != nil {
		return Batch[V]{}, err
	}
	return s.loadAll(ids, func(text string, args []any) (at coherence.Snapshot, result []byte, err error) {
		st, kept := s.statement(text)
		if !kept {
			return scanResult(within.QueryRowxContext(ctx, st.text, args...))
		}
		stmt, origin, err := st.in(ctx, within) //nolint:sqlclosecheck // it goes with the transaction
		if err != nil {
			return at, nil, err
		}
		at, result, err = scanResult(stmt.QueryRowxContext(ctx, args...))
		st.outdated(origin, err)
		return at, result, err
	})
}

// planChanged reports whether a transaction failed since a table of a prepared query has changed. Another one
// prepares it anew.
func planChanged(err error) bool {
	var answer *pq.Error
	return errors.As(err, &answer) && answer.Code == cachedPlan
}
