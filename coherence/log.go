package coherence

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Change is one row of the log: the transaction that wrote it and what it is about.
type Change struct {
	XID   uint64
	Scope ScopeHash
}

// PollResult is what one poll of the log brought.
type PollResult struct {
	// Snapshot is the snapshot of the poll: every change it sees is in this result or was visible to
	// the snapshot that the poll was asked to start from. Timeline 0: Postgres has none to give.
	Snapshot Snapshot
	// Horizon: changes that it sees may be missing from the log, since they are past retention.
	Horizon Snapshot
	// Changes that the starting snapshot does not see, in no particular order.
	Changes []Change
	// Overrun: there were more changes than the limit, and Changes is not all of them.
	Overrun bool
}

// Log is where changes are polled from.
type Log interface {
	// Poll returns what changed since the given snapshot, all that the log still has when it is the
	// zero Snapshot, and at most limit changes. It returns within a bound of its own. An error says
	// nothing about the log's state.
	Poll(ctx context.Context, since Snapshot, limit int) (PollResult, error)
	// Renew asks for a new timeline in place of one that has been seen to be broken.
	Renew(ctx context.Context, broken uint64) error
	// Trim deletes a bounded number of changes older than keep and returns how many.
	Trim(ctx context.Context, keep time.Duration) (int, error)
	Close() error
}

// LogConfig describes the connection to the log.
type LogConfig struct {
	DSN     string        // required
	Timeout time.Duration // bounds one poll, including connecting; 0 = 1 s
}

// PostgresLog polls freshet.log over one connection of its own, so that polls never wait for a
// connection behind loads. It is for one caller at a time.
type PostgresLog struct {
	db      *sqlx.DB
	timeout time.Duration
	conn    *sqlx.Conn // nil: not connected
	poll    *sqlx.Stmt
}

// OpenLog prepares the connection without connecting. The error is about the DSN.
func OpenLog(c LogConfig) (*PostgresLog, error) {
	timeout := cmp.Or(c.Timeout, time.Second)
	db, err := OpenPool(PoolConfig{
		DSN: c.DSN, MaxConns: 1, ReadTimeout: timeout, ConnectTimeout: timeout,
		Runtime: map[string]string{
			"application_name":  "freshet-log",
			"statement_timeout": fmt.Sprint(timeout.Milliseconds()),
			// The poll always starts at the end of an index; a plan made for it once stays right
			// however the log grows, and planning would cost more than the poll.
			"plan_cache_mode":   "force_generic_plan",
			"enable_seqscan":    "off",
			"enable_bitmapscan": "off",
			"jit":               "off",
		},
	})
	if err != nil {
		return nil, err
	}
	return &PostgresLog{db: db, timeout: timeout}, nil
}

// pollQuery reads, in one statement and so under one snapshot: the timeline, the snapshot, the
// horizon, and the changes that the starting snapshot ($1 its xmax, $2 its xip) does not see. A row
// that commits late has an id that was in progress or not yet given then, so nothing is lost, and a
// transaction that stays open makes the list $2 longer, not the result.
const pollQuery = `
select coalesce((select t.id from freshet.timeline t), 0), pg_current_snapshot()::text, h.kept_from::text,
       l.xid::text::bigint, l.kind, l.namespace, l.id, l.view
  from freshet.horizon h
  left join lateral (
        (select xid, kind, namespace, id, view from freshet.log where xid >= $1::xid8 order by xid limit $3)
        union all
        (select xid, kind, namespace, id, view from freshet.log where xid = any ($2::xid8[]) limit $3)
       ) l on true`

// Poll implements [Log].
func (l *PostgresLog) Poll(ctx context.Context, since Snapshot, limit int) (PollResult, error) {
	result, err := l.tryPoll(ctx, since, limit)
	if err != nil {
		l.disconnect()
		return PollResult{}, fmt.Errorf("coherence: poll: %w", err)
	}
	return result, nil
}

func (l *PostgresLog) tryPoll(ctx context.Context, since Snapshot, limit int) (PollResult, error) {
	if err := l.connect(ctx); err != nil {
		return PollResult{}, err
	}
	open := make(pq.Int64Array, len(since.Xip))
	for i, xid := range since.Xip {
		open[i] = int64(xid)
	}
	// No context: its watcher would cost a goroutine per poll, and the socket's own bound holds.
	rows, err := l.poll.QueryContext(context.WithoutCancel(ctx), int64(since.Xmax), open, limit+1)
	if err != nil {
		return PollResult{}, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err below says it

	var (
		result                  PollResult
		timeline                int64
		snapshot, horizon       string
		xid                     sql.NullInt64
		kind, namespace, id, vw sql.NullString
	)
	for rows.Next() {
		if err := rows.Scan(&timeline, &snapshot, &horizon, &xid, &kind, &namespace, &id, &vw); err != nil {
			return PollResult{}, err
		}
		if !xid.Valid { // nothing changed: the one row of the left join
			continue
		}
		if len(result.Changes) == limit {
			result.Overrun, result.Changes = true, nil
			break
		}
		var k Kind
		if kind.String != "" {
			k = Kind(kind.String[0])
		}
		scope := Scope{Kind: k, Namespace: namespace.String, ID: id.String, View: vw.String}
		result.Changes = append(result.Changes, Change{XID: uint64(xid.Int64), Scope: scope.Hash()})
	}
	if err := rows.Close(); err != nil {
		return PollResult{}, err
	}
	if err := rows.Err(); err != nil {
		return PollResult{}, err
	}
	if snapshot == "" {
		return PollResult{}, errors.New("freshet.horizon is empty: run the migrations again")
	}
	if result.Snapshot, err = ParseSnapshot(uint64(timeline), snapshot); err != nil {
		return PollResult{}, err
	}
	if result.Horizon, err = ParseSnapshot(uint64(timeline), horizon); err != nil {
		return PollResult{}, err
	}
	return result, nil
}

// connect makes sure of a connection to a primary with a timeline.
func (l *PostgresLog) connect(ctx context.Context) error {
	if l.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	conn, err := l.db.Connx(ctx)
	if err != nil {
		return err
	}
	l.conn = conn
	if err := l.begin(ctx, 0); err != nil {
		return err
	}
	l.poll, err = conn.PreparexContext(ctx, pollQuery)
	return err
}

// begin makes sure that a timeline other than the broken one has begun.
func (l *PostgresLog) begin(ctx context.Context, broken uint64) error {
	var timeline int64
	if err := l.conn.GetContext(ctx, &timeline, `select freshet.begin_timeline($1)`, int64(broken)); err != nil {
		return err
	}
	if timeline == 0 {
		return errors.New("the server is a standby: want the primary")
	}
	return nil
}

// disconnect drops the connection: after an error its state is not known.
func (l *PostgresLog) disconnect() {
	if l.conn == nil {
		return
	}
	// ErrBadConn keeps the pool from handing this connection out again.
	_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = l.conn.Close()
	l.conn, l.poll = nil, nil
}

// Renew implements [Log].
func (l *PostgresLog) Renew(ctx context.Context, broken uint64) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err := l.connect(ctx)
	if err == nil {
		err = l.begin(ctx, broken)
	}
	if err != nil {
		l.disconnect()
		return fmt.Errorf("coherence: begin a new timeline: %w", err)
	}
	return nil
}

// trimAtMost bounds the rows deleted by one trim, and so the time that polls wait behind it.
const trimAtMost = 5000

// Trim implements [Log].
func (l *PostgresLog) Trim(ctx context.Context, keep time.Duration) (int, error) {
	if err := l.connect(ctx); err != nil {
		l.disconnect()
		return 0, fmt.Errorf("coherence: trim: %w", err)
	}
	var gone int
	err := l.conn.GetContext(context.WithoutCancel(ctx), &gone,
		`select freshet.trim(make_interval(secs => $1), $2)`, keep.Seconds(), trimAtMost)
	if err != nil {
		l.disconnect()
		return 0, fmt.Errorf("coherence: trim: %w", err)
	}
	return gone, nil
}

// Close ends the connection.
func (l *PostgresLog) Close() error {
	l.disconnect()
	return l.db.Close()
}
