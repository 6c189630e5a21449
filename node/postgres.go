package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// postgres implements [Database].
type postgres struct{ loads, db *sqlx.DB }

// Begin implements [Database].
func (p postgres) Begin(ctx context.Context) (Transaction, error) {
	tx, err := p.db.BeginTxx(ctx, nil)
	if err != nil {
		return nil, err
	}
	return postgresTx{tx}, nil
}

// BeginRead implements [Database].
func (p postgres) BeginRead(ctx context.Context, ended func()) (tiers.Transaction, error) {
	tx, err := tiers.BeginSQL(ctx, p.loads, ended)
	if err != nil {
		return nil, err
	}
	return tx, nil
}

// GenerationHistory implements [Database].
func (p postgres) GenerationHistory(ctx context.Context, namespace string, limit int) ([]GenerationEvent, error) {
	events := []GenerationEvent{}
	err := p.db.SelectContext(ctx, &events, `
select number, namespace, generation, previous, action, who, why, at from freshet.generation_history
 where namespace = $1 order by number desc limit $2`, namespace, limit)
	return events, err
}

// Batches implements [Database].
func (p postgres) Batches(ctx context.Context) ([]BatchStats, error) {
	var rows []struct {
		BatchStats
		DueAt sql.NullTime `db:"due"`
	}
	err := p.db.SelectContext(ctx, &rows, fmt.Sprintf(`select name, entries, due, since from freshet.batches order by name limit %d`, MaxBatches))
	if err != nil {
		return nil, err
	}
	batches := make([]BatchStats, len(rows))
	for i, r := range rows {
		batches[i] = r.BatchStats
		batches[i].Due = r.DueAt.Time
	}
	return batches, nil
}

// Due implements [Database].
func (p postgres) Due(ctx context.Context) (due bool, err error) {
	err = p.db.GetContext(ctx, &due, `select exists (select from freshet.scheduled where due <= clock_timestamp())`)
	return due, err
}

// Scheduled implements [Database].
func (p postgres) Scheduled(ctx context.Context, namespace string, ids []string, limit int) ([]coherence.Scope, error) {
	var rows []struct{ Kind, Namespace, ID, View string }
	err := p.loads.SelectContext(ctx, &rows, fmt.Sprintf(`
select distinct kind::text as kind, namespace, id, view from freshet.scheduled
 where kind in ('t', 'n') or (namespace = $1 and id = any($2)) limit %d`, limit), namespace, pq.StringArray(ids))
	if err != nil {
		return nil, err
	}
	scopes := make([]coherence.Scope, len(rows))
	for i, r := range rows {
		scopes[i] = coherence.Scope{Kind: coherence.Kind(r.Kind[0]), Namespace: r.Namespace, ID: r.ID, View: r.View}
	}
	return scopes, nil
}

// postgresTx implements [Transaction].
type postgresTx struct{ tx *sqlx.Tx }

// SQL implements [Transaction].
func (t postgresTx) SQL() *sqlx.Tx { return t.tx }

// Invalidate implements [Transaction].
func (t postgresTx) Invalidate(ctx context.Context, i Invalidation) error {
	var err error
	if i.Delay > 0 || i.Batch != "" {
		_, err = t.tx.ExecContext(ctx, `select freshet.schedule('Invalidate', $1, make_interval(secs => $2), $3, $4, $5, $6, make_interval(secs => $7))`,
			i.Batch, seconds(i.Delay), string(i.Kind), i.Namespace, pq.StringArray(i.IDs), i.View, seconds(i.Grace))
	} else {
		_, err = t.tx.ExecContext(ctx, `select freshet.log_change('Invalidate', $1, $2, $3, $4, make_interval(secs => $5))`,
			string(i.Kind), i.Namespace, pq.StringArray(i.IDs), i.View, seconds(i.Grace))
	}
	return err
}

// seconds is a duration for make_interval; null = none is given.
func seconds(d time.Duration) sql.NullFloat64 {
	return sql.NullFloat64{Float64: d.Seconds(), Valid: d != 0}
}

// Grace implements [Transaction].
func (t postgresTx) Grace(ctx context.Context, d time.Duration) error {
	_, err := t.tx.ExecContext(ctx, `select freshet.grace(make_interval(secs => $1))`, d.Seconds())
	return err
}

// conflict is the SQLSTATE of a generation that is not the expected one.
const conflict = "ZF001"

// ChangeGeneration implements [Transaction].
func (t postgresTx) ChangeGeneration(ctx context.Context, s GenerationStep) (number uint32, err error) {
	expect := sql.NullInt64{Int64: int64(s.Expect), Valid: s.Expect != 0}
	switch s.Action {
	case ActionIncrement:
		err = t.tx.GetContext(ctx, &number, `select freshet.next_generation($1, $2, $3, $4)`, s.Namespace, s.Why, expect, s.By)
	case ActionSet:
		err = t.tx.GetContext(ctx, &number, `select freshet.set_generation($1, $2, $3, $4, $5)`, s.Namespace, int64(s.Number), s.Why, expect, s.By)
	default:
		err = t.tx.GetContext(ctx, &number, `select freshet.rollback_generation($1, $2, nullif($3::bigint, 0), $4, $5)`,
			s.Namespace, s.Why, int64(s.Number), expect, s.By)
	}
	if answer, ok := errors.AsType[*pq.Error](err); ok && answer.Code == conflict {
		return 0, fmt.Errorf("%w: %s", ErrConflict, answer.Message)
	}
	return number, err
}

// RunScheduled implements [Transaction].
func (t postgresTx) RunScheduled(ctx context.Context, batch string, limit int) (ran int64, err error) {
	if batch == "" {
		err = t.tx.GetContext(ctx, &ran, `select freshet.run_due($1)`, limit)
	} else {
		err = t.tx.GetContext(ctx, &ran, `select freshet.run_batch($1, $2)`, batch, limit)
	}
	return ran, err
}

// DropBatch implements [Transaction].
func (t postgresTx) DropBatch(ctx context.Context, batch string) (dropped int64, err error) {
	err = t.tx.GetContext(ctx, &dropped, `select freshet.drop_batch($1)`, batch)
	return dropped, err
}

// Commit implements [Transaction].
func (t postgresTx) Commit(ctx context.Context) (Written, error) {
	w, err := changesOf(ctx, t.tx)
	if err != nil {
		return Written{}, err
	}
	err = t.tx.Commit()
	if refused(err) {
		return Written{}, err
	}
	if err != nil {
		return w, fmt.Errorf("commit: its outcome is not known: %w", err)
	}
	return w, nil
}

// Rollback implements [Transaction].
func (t postgresTx) Rollback() { _ = t.tx.Rollback() } // nobody is left to be told

// refused reports whether the server said that the transaction is rolled back. Any other error of a
// commit, a lost connection above all, leaves its outcome open.
func refused(err error) bool {
	var answer *pq.Error
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.Code.Class() {
	case "08", "57", "58", "XX": // connection, operator intervention, system error, internal error
		return false
	}
	return answer.Code != "40003" // statement_completion_unknown
}

// maxWritten bounds the scopes of one write that are told one by one; what goes beyond is found by
// polling.
const maxWritten = 5000

// changesOf reads back what the transaction has logged so far, by whichever trigger. Deferred triggers
// run before, so that nothing is logged behind our back.
func changesOf(ctx context.Context, tx *sqlx.Tx) (Written, error) {
	var w Written
	if _, err := tx.ExecContext(ctx, `set constraints all immediate`); err != nil {
		return w, err
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`
select freshet.current_timeline(), pg_current_xact_id_if_assigned()::text::bigint, l.kind, l.namespace, l.id, l.view, l.grace
  from (select 1) one left join lateral (
       select kind, namespace, id, view, grace from freshet.log where xid = pg_current_xact_id_if_assigned() limit %d
  ) l on true`, maxWritten+1))
	if err != nil {
		return w, fmt.Errorf("read back what changed: %w", err)
	}
	defer rows.Close()
	for told := 0; rows.Next(); told++ {
		var timeline int64
		var xid, grace sql.NullInt64
		var kind, namespace, id, view sql.NullString
		if err := rows.Scan(&timeline, &xid, &kind, &namespace, &id, &view, &grace); err != nil {
			return w, fmt.Errorf("read back what changed: %w", err)
		}
		w.Timeline, w.XID = uint64(timeline), uint64(xid.Int64)
		if kind.String == "" {
			continue
		}
		if told == maxWritten {
			w.Many = true
			break
		}
		scope := coherence.Scope{Kind: coherence.Kind(kind.String[0]), Namespace: namespace.String, ID: id.String, View: view.String}
		if grace.Int64 == 0 || scope.Kind == coherence.KindGenerations { // which have none
			w.Scopes = append(w.Scopes, scope)
			continue
		}
		if w.Graced == nil {
			w.Graced = map[time.Duration][]coherence.Scope{}
		}
		d := time.Duration(grace.Int64) * time.Millisecond
		w.Graced[d] = append(w.Graced[d], scope)
	}
	return w, rows.Err()
}
