package node

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Database is where a node's transactions are: [Open]'s is Postgres, by the functions of the schema freshet. It is
// used by any number of goroutines.
type Database interface {
	// Begin begins a transaction that writes. It ends with ctx at the latest.
	Begin(ctx context.Context) (Transaction, error)
	// BeginRead begins one in which sources read, all under one snapshot. When it has ended, it calls ended once;
	// after an error it does not.
	BeginRead(ctx context.Context, ended func()) (tiers.Transaction, error)
	// GenerationHistory is [Node.GenerationHistory], with a limit of 1 to 1,000.
	GenerationHistory(ctx context.Context, namespace string, limit int) ([]GenerationEvent, error)
	// Batches is [Node.Batches].
	Batches(ctx context.Context) ([]BatchStats, error)
	// Due reports whether anything that was scheduled is due.
	Due(ctx context.Context) (bool, error)
	// Scheduled are the scopes of what waits, at most limit: of tags and namespaces, and of the entities named.
	Scheduled(ctx context.Context, namespace string, ids []string, limit int) ([]coherence.Scope, error)
}

// Transaction is one that writes. What it changes is in the log from its commit on. It is for one goroutine.
type Transaction interface {
	// SQL is the transaction for statements; nil where there is no SQL.
	SQL() *sqlx.Tx
	// Invalidate logs changes, at once or later. It refuses an empty namespace, id or tag.
	Invalidate(ctx context.Context, i Invalidation) error
	// Grace is that of what is logged from here on, for whatever reason; 0 = none.
	Grace(ctx context.Context, d time.Duration) error
	// ChangeGeneration returns the number that it has become. It wraps [ErrConflict] when the present one is not
	// the expected. Of two transactions that do it, one waits for the other.
	ChangeGeneration(ctx context.Context, s GenerationStep) (uint32, error)
	// RunScheduled logs what is in the batch, or with "" what is due, up to so many entries, and returns how many:
	// fewer if no more are left but what another transaction runs.
	RunScheduled(ctx context.Context, batch string, limit int) (int64, error)
	// DropBatch drops what is in the batch, which has a name, and returns how many entries that was.
	DropBatch(ctx context.Context, batch string) (int64, error)
	// Commit commits. With an error it returns what may have changed all the same: nothing, unless the outcome is
	// not known, as when the answer is lost.
	Commit(ctx context.Context) (Written, error)
	// Rollback ends it without its changes; after Commit it does nothing.
	Rollback()
}

// Invalidation is what one call of an Invalidate method says.
type Invalidation struct {
	// Kind of the IDs: entities, views of them, or tags; or the namespace, of one empty id.
	Kind      coherence.Kind
	Namespace string // "" for tags
	IDs       []string
	View      string        // of [coherence.KindView]
	Grace     time.Duration // 0 = that of the transaction
	Delay     time.Duration // after which it counts; 0 = at once, or when its batch is run
	Batch     string        // in which it waits; "" = none
}

// GenerationStep is one change of a generation.
type GenerationStep struct {
	// Action is as in [GenerationEvent].
	Action string
	// Namespace; "" = the whole application.
	Namespace string
	// Number to set, or to go back to, 0 = to that before the present one. Not of an increment.
	Number uint32
	GenerationChange
}

// Written is what a transaction has logged.
type Written struct {
	// Timeline and XID name the transaction as the log does; XID 0 = it wrote nothing.
	Timeline, XID uint64
	// Scopes that changed without a grace, up to 5,000 together with those that have one.
	Scopes []coherence.Scope
	// Graced are the others, by their grace.
	Graced map[time.Duration][]coherence.Scope
	// Many: there were more, which are not among them.
	Many bool
}

// noSQL stands for a database where there is none: a transaction can begin and end, and every statement fails.
type noSQL struct{}

var errNoSQL = errors.New("node: there is no SQL on these parts, Parts.DB is nil: what the application does by SQL must stand behind an interface of its own, " +
	"and caches have a Source of the parts, or Func")

// Connect implements [driver.Connector].
func (noSQL) Connect(context.Context) (driver.Conn, error) { return noSQL{}, nil }

// Driver implements [driver.Connector].
func (noSQL) Driver() driver.Driver { return noSQL{} }

// Open implements [driver.Driver].
func (noSQL) Open(string) (driver.Conn, error) { return noSQL{}, nil }

// Begin implements [driver.Conn].
func (noSQL) Begin() (driver.Tx, error) { return noSQL{}, nil }

// BeginTx implements [driver.ConnBeginTx].
func (noSQL) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return noSQL{}, nil }

// Prepare implements [driver.Conn].
func (noSQL) Prepare(string) (driver.Stmt, error) { return nil, errNoSQL }

// Commit implements [driver.Tx].
func (noSQL) Commit() error { return nil }

// Rollback implements [driver.Tx].
func (noSQL) Rollback() error { return nil }

// Close implements [driver.Conn].
func (noSQL) Close() error { return nil }
