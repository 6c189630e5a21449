package node

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// DeadLetter is a put that was given up: Postgres, or the Store, refused it [WriteBehind.MaxAttempts] times.
// It stays in the table freshet.dead_letters until it is written after all, or dropped. Reads show what is
// committed in its place.
type DeadLetter struct {
	Letter    int64   `db:"letter" json:"letter"` // its number
	Namespace string  `db:"namespace" json:"namespace"`
	ID        string  `db:"id" json:"id"`
	Value     *string `db:"value" json:"value"` // JSON; nil = a deletion
	Error     string  `db:"error" json:"error"` // why, of the last attempt; up to 2,000 bytes
	Attempts  int     `db:"attempts" json:"attempts"`
	// PutAt is when NATS got it, DeadAt when it was given up.
	PutAt  time.Time `db:"put_at" json:"put_at"`
	DeadAt time.Time `db:"dead_at" json:"dead_at"`
}

// MaxLetters bounds the dead letters of one answer.
const MaxLetters = 1000

// DeadLetters returns the application's dead letters with numbers above after, in their order: as many as limit, up
// to [MaxLetters]; 0 = 100. Values are up to 1 MiB each.
func (n *Node) DeadLetters(ctx context.Context, after int64, limit int) ([]DeadLetter, error) {
	if limit < 0 || limit > MaxLetters {
		return nil, fmt.Errorf("node: list dead letters: limit is %d; want 1 to %d, or 0 for 100", limit, MaxLetters)
	}
	letters := []DeadLetter{}
	if err := n.db.SelectContext(ctx, &letters, `
select letter, namespace, id, value, error, attempts, put_at, dead_at from freshet.dead_letters
 where app = $1 and letter > $2 order by letter limit $3`, n.config.App, after, cmp.Or(limit, 100)); err != nil {
		return nil, &Error{Op: "list dead letters", Err: err}
	}
	return letters, nil
}

// CountDeadLetters returns how many dead letters the application has.
func (n *Node) CountDeadLetters(ctx context.Context) (int64, error) {
	var count int64
	if err := n.db.GetContext(ctx, &count, `select count(*) from freshet.dead_letters where app = $1`, n.config.App); err != nil {
		return 0, &Error{Op: "count dead letters", Err: err}
	}
	return count, nil
}

var (
	// ErrNoLetter says that there is no dead letter of that number.
	ErrNoLetter = errors.New("no such dead letter")
	// ErrRefused says that a dead letter cannot be written as things are: Postgres or the Store refused it again, or
	// the node has no cache for it.
	ErrRefused = errors.New("refused")
)

// RetryDeadLetter writes the letters after all, each in a transaction that also removes it. This node must have
// the cache of its namespace, with [CacheConfig.WriteBehind]. If a later put of its key is in Postgres, the letter
// is removed and nothing is written. One that is refused again stays, with the new reason, which is the error, and
// wraps [ErrRefused]; the others are tried all the same. A number that is no letter's is [ErrNoLetter].
func (n *Node) RetryDeadLetter(ctx context.Context, letters ...int64) error {
	var problems []error
	for _, letter := range letters {
		if _, err := n.Write(ctx, func(tx *Tx) error { return n.resurrect(ctx, tx, letter) }); err != nil {
			if isRefusal(err) {
				_, err2 := n.db.ExecContext(ctx, `update freshet.dead_letters set error = left($3, 2000), attempts = attempts + 1 where app = $1 and letter = $2`,
					n.config.App, letter, err.Error())
				err = errors.Join(fmt.Errorf("%w: %w", ErrRefused, err), err2)
			}
			problems = append(problems, fmt.Errorf("dead letter %d: %w", letter, err))
		}
	}
	return errors.Join(problems...)
}

func (n *Node) resurrect(ctx context.Context, tx *Tx, letter int64) error {
	var row struct {
		Namespace, ID string
		Epoch, Seq    int64
		Value         *string
	}
	err := sqlx.GetContext(ctx, tx, &row, `delete from freshet.dead_letters where app = $1 and letter = $2 returning namespace, id, epoch, seq, value`, n.config.App, letter)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNoLetter
	}
	if err != nil {
		return err
	}
	q := n.puts.Load()
	c := q.follower(row.Namespace)
	if c == nil {
		return fmt.Errorf("%w: this node has no cache of %q with CacheConfig.WriteBehind", ErrRefused, row.Namespace)
	}
	p := put{id: row.ID, epoch: row.Epoch, seq: uint64(row.Seq)}
	if row.Value != nil {
		p.value = []byte(*row.Value)
	}
	_, err = q.apply(ctx, tx, c, []put{p})
	return err
}

// DropDeadLetter removes the letters for good and returns how many there were.
func (n *Node) DropDeadLetter(ctx context.Context, letters ...int64) (int, error) {
	result, err := n.db.ExecContext(ctx, `delete from freshet.dead_letters where app = $1 and letter = any($2)`, n.config.App, pq.Int64Array(letters))
	if err != nil {
		return 0, &Error{Op: "drop dead letters", Err: err}
	}
	dropped, err := result.RowsAffected()
	return int(dropped), err
}

// keepApplied is how long freshet.applied remembers a put after it was acknowledged. NATS may forget, in a power
// cut, what it wrote within its sync_interval, 2 min by default, and deliver a put again.
const keepApplied = 10 * time.Minute

// trimApplied is a duty: it forgets what was applied of puts that cannot come again. A key that has a dead letter
// is remembered, lest that is written over what came after it.
func (n *Node) trimApplied(ctx context.Context) error {
	q := n.puts.Load()
	if q == nil {
		return nil
	}
	s := q.opened.Load()
	if !q.valid(s) {
		return nil
	}
	for _, c := range q.followers() {
		floor, err := q.floor(ctx, s, c)
		if err != nil {
			return err
		}
		if _, err := n.db.ExecContext(ctx, `
with old as (
    select a.app, a.namespace, a.id, a.epoch, a.seq from freshet.applied a
     where a.app = $1 and a.namespace = $2 and a.at < clock_timestamp() - $3 * interval '1 second' and (a.epoch < $4 or a.seq <= $5)
       and not exists (select from freshet.dead_letters d where d.app = a.app and d.namespace = a.namespace and d.id = a.id)
     limit 10000 for update skip locked
), gone as (
    delete from freshet.applied a using old o
     where a.app = o.app and a.namespace = o.namespace and a.id = o.id and a.epoch = o.epoch and a.seq = o.seq
    returning a.epoch, a.seq
)
update freshet.queues q set trimmed = greatest(q.trimmed, g.seq)
  from (select epoch, max(seq) as seq from gone group by epoch) g where q.epoch = g.epoch`,
			n.config.App, c.cache().namespace, keepApplied.Seconds(), s.epochs[0].Epoch, int64(floor)); err != nil {
			return fmt.Errorf("trim what was applied: %w", err)
		}
	}
	return nil
}
