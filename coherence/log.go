package coherence

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Change is one row of the log: the transaction that wrote it and what it is about.
type Change struct {
	XID   uint64
	Scope ScopeHash
	// Grace is for how long after the commit values from before it may still be served, labelled, in whole
	// milliseconds up to [MaxGrace]; 0 = not at all.
	Grace time.Duration
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
	// Generations are those that the snapshot sees. The same pointer as in the poll before, or the same
	// [Generations.Version], says that none has changed. nil: the log has none.
	Generations *Generations
	// Overrun: there were more changes than the limit, and Changes is not all of them.
	Overrun bool
}

// Log is where changes are polled from.
type Log interface {
	// Poll returns what changed since the given snapshot, all that the log still has when it is the
	// zero Snapshot, and at most limit changes. It returns within a bound of its own. An error says
	// nothing about the log's state; one that is [os.ErrDeadlineExceeded] says that the bound was
	// reached, perhaps because there was too much to bring.
	Poll(ctx context.Context, since Snapshot, limit int) (PollResult, error)
	// Renew asks for a new timeline in place of one that has been seen to be broken.
	Renew(ctx context.Context, broken uint64) error
	// Trim deletes a bounded number of changes older than keep and returns how many.
	Trim(ctx context.Context, keep time.Duration) (int, error)
	Close() error
}

// LogConfig describes the connection to the log.
type LogConfig struct {
	// DSN is a lib/pq URL or key=value text, of the primary; required. The connection makes settings of
	// its own, so it cannot go through a pooler that shares sessions.
	DSN string
	// Timeout bounds one poll, one trim, and one renewal, including connecting; 0 = 1 s.
	Timeout time.Duration
}

// PostgresLog polls freshet.log over one connection of its own, so that polls never wait for a
// connection behind loads. It is for one caller at a time.
type PostgresLog struct {
	db      *sqlx.DB
	timeout time.Duration
	until   atomic.Pointer[time.Time] // bounds what the sockets wait for
	conn    *sqlx.Conn                // nil: not connected
	poll    *sqlx.Stmt
	known   *Generations // of the last poll; nil = there was none
}

// OpenLog prepares the connection without connecting. The error is about the DSN.
func OpenLog(c LogConfig) (*PostgresLog, error) {
	l := &PostgresLog{timeout: cmp.Or(c.Timeout, time.Second)}
	var err error
	l.db, err = OpenPool(PoolConfig{
		DSN: c.DSN, MaxConns: 1, ReadTimeout: l.timeout, ConnectTimeout: l.timeout, until: &l.until,
		Runtime: map[string]string{
			"application_name":  "freshet-log",
			"statement_timeout": strconv.FormatInt(max(l.timeout.Milliseconds(), 1), 10),
			// Whatever the role or the database has as its defaults.
			"default_transaction_isolation": "read committed",
			"default_transaction_read_only": "off",
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
	return l, nil
}

// pollQuery reads, in one statement and so under one snapshot: the timeline, the snapshot, the
// horizon, the version of the generations and, if it is not $4, their numbers, and the changes that the
// starting snapshot ($1 its xmax, $2 its xip) does not see. A row that commits late has an id that was in
// progress or not yet given then, so nothing is lost, and a transaction that stays open makes the list $2
// longer, not the result. Rows at or above the present xmax are another server's, come with a dump;
// freshet.trim deletes them.
const pollQuery = `
select coalesce((select t.id from freshet.timeline t where t.home = t.tableoid), 0),
       pg_current_snapshot()::text, h.kept_from::text,
       l.version, l.generations, l.xid::text, l.kind, l.namespace, l.id, l.view, l.grace
  from freshet.horizon h
 cross join lateral (
        (select g.version::text, case when g.version::text <> $4 then g.current::text end as generations,
                null::xid8 as xid, null::"char" as kind, null::text as namespace, null::text as id, null::text as view, null::integer as grace
           from freshet.generations g)
        union all
        (select null, null, xid, kind, namespace, id, view, grace from freshet.log
          where xid >= $1::xid8 and xid < pg_snapshot_xmax(pg_current_snapshot()) order by xid limit $3)
        union all
        (select null, null, xid, kind, namespace, id, view, grace from freshet.log where xid = any ($2::xid8[]) limit $3)
       ) l`

// Poll implements [Log].
func (l *PostgresLog) Poll(ctx context.Context, since Snapshot, limit int) (PollResult, error) {
	var result PollResult
	err := l.do(ctx, func(ctx context.Context) error {
		var err error
		result, err = l.tryPoll(ctx, since, limit)
		return err
	})
	if err != nil {
		return PollResult{}, fmt.Errorf("coherence: poll: %w", err)
	}
	return result, nil
}

// do runs f on the connection, within the timeout. After an error the connection's state is not known
// and it is dropped.
func (l *PostgresLog) do(ctx context.Context, f func(context.Context) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	until := time.Now().Add(l.timeout)
	l.until.Store(&until)
	err := l.connect(ctx)
	if err == nil {
		// No cancellation: its watcher would cost a goroutine per call, and the sockets' bound holds.
		err = f(context.WithoutCancel(ctx))
	}
	if err == nil {
		return nil
	}
	l.disconnect()
	if code := (*pq.Error)(nil); errors.As(err, &code) && code.Code == pqerror.QueryCanceled {
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}

func (l *PostgresLog) tryPoll(ctx context.Context, since Snapshot, limit int) (result PollResult, err error) {
	open := make(pq.Int64Array, len(since.Xip))
	for i, xid := range since.Xip {
		open[i] = int64(xid)
	}
	rows, err := l.poll.QueryContext(ctx, int64(since.Xmax), open, limit+1, l.known.Version())
	if err != nil {
		return PollResult{}, err
	}
	defer rows.Close()

	var (
		timeline                  int64
		snapshot, horizon, xid    sql.RawBytes
		version, generations      sql.RawBytes
		kind, namespace, id, view sql.RawBytes
		grace                     sql.NullInt64
	)
	for first := true; rows.Next(); first = false {
		if err := rows.Scan(&timeline, &snapshot, &horizon, &version, &generations, &xid, &kind, &namespace, &id, &view, &grace); err != nil {
			return PollResult{}, err
		}
		if first {
			if result.Snapshot, err = ParseSnapshot(uint64(timeline), string(snapshot)); err != nil {
				return PollResult{}, err
			}
			if result.Horizon, err = ParseSnapshot(uint64(timeline), string(horizon)); err != nil {
				return PollResult{}, err
			}
		}
		if version != nil { // the row of the generations
			if generations != nil {
				if l.known, err = parseGenerations(string(version), string(generations)); err != nil {
					return PollResult{}, err
				}
			}
			result.Generations = l.known
			continue
		}
		if len(result.Changes) == limit {
			result.Overrun, result.Changes = true, nil
			break
		}
		change := Change{Scope: scopeHash(kind, namespace, id, view), Grace: time.Duration(grace.Int64) * time.Millisecond}
		if change.XID, err = strconv.ParseUint(string(xid), 10, 64); err != nil {
			return PollResult{}, fmt.Errorf("transaction id of a change: %w", err)
		}
		result.Changes = append(result.Changes, change)
	}
	if err := rows.Close(); err != nil {
		return PollResult{}, err
	}
	if err := rows.Err(); err != nil {
		return PollResult{}, err
	}
	if result.Snapshot.Xmax == 0 || result.Generations == nil {
		return PollResult{}, errors.New("freshet.horizon or freshet.generations is empty: put its row back, or drop the schema freshet and migrate again")
	}
	return result, nil
}

// connect makes sure of a connection to a primary with a timeline.
func (l *PostgresLog) connect(ctx context.Context) error {
	if l.conn != nil {
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, *l.until.Load())
	defer cancel()
	conn, err := l.db.Connx(ctx)
	if err != nil {
		return err
	}
	l.conn = conn
	ctx = context.WithoutCancel(ctx)
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

// disconnect drops the connection, if there is one.
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
	err := l.do(ctx, func(ctx context.Context) error { return l.begin(ctx, broken) })
	if err != nil {
		return fmt.Errorf("coherence: begin a new timeline: %w", err)
	}
	return nil
}

// trimAtMost bounds the rows deleted by one trim, and so the time that polls wait behind it.
const trimAtMost = 5000

// Trim implements [Log].
func (l *PostgresLog) Trim(ctx context.Context, keep time.Duration) (int, error) {
	var gone int
	err := l.do(ctx, func(ctx context.Context) error {
		return l.conn.GetContext(ctx, &gone, `select freshet.trim(make_interval(secs => $1), $2)`, keep.Seconds(), trimAtMost)
	})
	if err != nil {
		return 0, fmt.Errorf("coherence: trim: %w", err)
	}
	return gone, nil
}

// Idle closes the connection until it is needed again. It is for the caller of the other methods.
func (l *PostgresLog) Idle() { l.disconnect() }

// Close ends the connection.
func (l *PostgresLog) Close() error {
	l.disconnect()
	_ = l.db.Close() // fails for a good-bye on a connection that Postgres has left already
	return nil
}
