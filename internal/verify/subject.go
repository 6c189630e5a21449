package verify

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"
)

// Subject is one replica of the system under test. It is used by many goroutines at once.
type Subject interface {
	// Get answers with the state of a row. An error is an answer that could not be given; it breaks
	// no promise.
	Get(ctx context.Context, key uint64, want Want) (Answer, error)
	// List answers with the rows of a category, in any order.
	List(ctx context.Context, group uint64, want Want) (ListAnswer, error)
	// Write brings the change about, in one transaction, by [Change.Apply], and tells whoever the
	// system wants to tell. The token may be "". After an error the change may or may not have
	// happened; a nil error promises that it has.
	Write(ctx context.Context, change Change) (token string, err error)
	// Close releases everything.
	Close() error
}

// Open opens a replica on its own endpoints. It returns when the replica is ready to serve.
type Open func(ctx context.Context, at Endpoints) (Subject, error)

// Endpoints are how one replica reaches the servers: by its own proxies.
type Endpoints struct {
	// Replica is the number of this start of a replica; no two of a run have the same.
	Replica uint32
	// App is the same for all replicas of one run, and for no other run.
	App string
	// Groups is the number of categories: mostly, a row is in 1 + its key % Groups.
	Groups uint64
	// Postgres is a URL for lib/pq.
	Postgres string
	// Redis are addresses of the cluster to begin with. They stay the same wherever its nodes move.
	Redis []string
	// RedisDial says for each address that a node may tell to clients where to dial instead. Use
	// [Endpoints.RedisAddr].
	RedisDial map[string]string
	// NATS is a URL.
	NATS string
}

// RedisAddr is where to dial to reach the node that calls itself addr.
func (e Endpoints) RedisAddr(addr string) string {
	if to, ok := e.RedisDial[addr]; ok {
		return to
	}
	return addr
}

// Want is what a read asks for.
type Want struct {
	// Budget is how old a FRESH answer may be; 0 = every commit that was acknowledged before counts.
	Budget time.Duration
	// Token is that of the session's last answer or write; "" = none.
	Token string
	// Lenient: the reader takes an old value whose writer allows it, not labelled FRESH. The budget is the
	// subject's own of a second.
	Lenient bool
}

// Answer is what a read of a row found.
type Answer struct {
	Op     uint64 // of the write that made the row's state; 0 if Absent
	Absent bool
	Fresh  bool   // the label
	Tier   uint8  // where it came from: 1 memory, 2 Redis, 3 another replica, 4 the source; 0 = not told
	Token  string // for later reads of the session; may be ""
}

// ListAnswer is what a read of a category found.
type ListAnswer struct {
	Rows  []ListRow
	Fresh bool
	Tier  uint8
	Token string
}

// ListRow is a row in a list.
type ListRow struct{ Key, Op uint64 }

// Kind is what a [Change] does.
type Kind uint8

// The kinds of changes that go through replicas.
const (
	// Set inserts the row or updates it, and puts it into the category.
	Set Kind = iota + 1
	// Remove deletes the row, if it is there.
	Remove
	// Rename gives the row, if it is there, the primary key To, in the place of the row that has that
	// key, if any.
	Rename
	// Transfer moves the amount from the account Key to the account To.
	Transfer
)

// The accounts, whose ids are firstAccount and those after it: above those of rows, below the numbers of writes.
const (
	Accounts     = 16
	firstAccount = 1 << 24
	firstBank    = firstAccount // the category in the audit of a bank's accounts
	balance      = 1000         // of each in the beginning
)

// Change is one write through a replica.
type Change struct {
	Kind  Kind
	Key   uint64
	To    uint64        // of Rename and Transfer
	Money int64         // the amount of Transfer
	Group uint64        // the category after it, of Set
	Op    uint64        // unique number of the write
	Sent  time.Duration // before which nobody can have seen it, on the clock of [Now]
}

// Effect is what a change touched, for systems that delete what they cached of it.
type Effect struct {
	Keys   []uint64 // rows that are different now, by their keys before and after
	Groups []uint64 // categories that the rows were or are in; may have duplicates
}

func (e Effect) and(more Effect) Effect {
	return Effect{Keys: append(e.Keys, more.Keys...), Groups: append(e.Groups, more.Groups...)}
}

// Tx is what a change needs of its transaction: *sql.Tx, *sqlx.Tx and pgx's database/sql have it.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// The queries by which a subject reads. A row's state is its op.
const (
	// RowQuery returns (id, op) of the rows whose ids are in the array $1.
	RowQuery = `select id, op from verify_row where id = any($1)`
	// ListQuery returns (id, op) of the rows of category $1.
	ListQuery = `select id, op from verify_row where category = $1`
)

// Apply makes the change in the transaction and reports what it touched.
func (c Change) Apply(ctx context.Context, tx Tx) (Effect, error) {
	// Deletions leave no row that could carry the number of their write.
	if c.Kind == Remove || c.Kind == Rename {
		if err := announce(ctx, tx, c.Op, c.Sent); err != nil {
			return Effect{}, err
		}
	}
	switch c.Kind {
	case Set:
		before, err := c.touch(ctx, tx, `select id, category from verify_row where id = $1 for update`, c.Key)
		if err != nil {
			return Effect{}, err
		}
		after, err := c.touch(ctx, tx, `
insert into verify_row (id, category, op, sent) values ($1, $2, $3, $4)
on conflict (id) do update set category = excluded.category, op = excluded.op, sent = excluded.sent, revision = verify_row.revision + 1
returning id, category`, c.Key, c.Group, c.Op, int64(c.Sent))
		return before.and(after), err
	case Remove:
		return c.touch(ctx, tx, `delete from verify_row where id = $1 returning id, category`, c.Key)
	case Rename:
		// In the order of keys, as all who lock several rows do.
		e, err := c.touch(ctx, tx, `select id, category from verify_row where id in ($1, $2) order by id for update`, c.Key, c.To)
		if err != nil || !slices.Contains(e.Keys, c.Key) {
			return Effect{}, err
		}
		e.Keys = append(e.Keys, c.To)
		if _, err := tx.ExecContext(ctx, `delete from verify_row where id = $1`, c.To); err != nil {
			return Effect{}, err
		}
		_, err = tx.ExecContext(ctx, `update verify_row set id = $2, op = $3, sent = $4, revision = revision + 1 where id = $1`,
			c.Key, c.To, c.Op, int64(c.Sent))
		return e, err
	case Transfer:
		if _, err := c.touch(ctx, tx, `select id, bank from verify_account where id in ($1, $2) order by id for update`, c.Key, c.To); err != nil {
			return Effect{}, err
		}
		return c.touch(ctx, tx, `
update verify_account set balance = balance + case id when $1 then -$3::bigint else $3::bigint end, op = $4, sent = $5 where id in ($1, $2)
returning id, bank`, c.Key, c.To, c.Money, c.Op, int64(c.Sent))
	default:
		return Effect{}, fmt.Errorf("verify: change of kind %d", c.Kind)
	}
}

// touch runs a statement that returns (key, category) of what it touched.
func (c Change) touch(ctx context.Context, tx Tx, query string, args ...any) (e Effect, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return e, err
	}
	defer rows.Close()
	for rows.Next() {
		var key, group uint64
		if err := rows.Scan(&key, &group); err != nil {
			return e, err
		}
		e.Keys, e.Groups = append(e.Keys, key), append(e.Groups, group)
	}
	return e, rows.Err()
}

// announce tells the audit trigger whose write this transaction is.
func announce(ctx context.Context, tx Tx, op uint64, sent time.Duration) error {
	_, err := tx.ExecContext(ctx, `select set_config('verify.op', $1, true), set_config('verify.sent', $2, true)`,
		fmt.Sprint(op), fmt.Sprint(int64(sent)))
	return err
}

// Joiner is a [Subject] that can read several rows as of one moment.
type Joiner interface {
	// Join answers with the row and others that it chooses; of an account with all accounts.
	Join(ctx context.Context, key uint64, want Want) (JointAnswer, error)
}

// JointAnswer is what a read of several rows found.
type JointAnswer struct {
	Rows  []JointRow // a row may be there twice
	Fresh bool
}

// JointRow is a row in a joint answer: Op 0 = it is absent.
type JointRow struct {
	Key, Op uint64
	Balance int64 // of an account
}

// SourceLoader is a [Subject] that can tell how much it asks of the source.
type SourceLoader interface {
	SourceLoad() SourceLoad
}

// SourceLoad is what a replica has asked of the source since it was opened.
type SourceLoad struct {
	Peak  int64  // the most loads at once
	Bound int64  // on loads at once; 0 = none is promised
	Loads uint64 // rows and lists loaded
	// Verified are the entries that the replica itself compared with the source and found there; Mismatched those it
	// took for wrong.
	Verified, Mismatched uint64
}
