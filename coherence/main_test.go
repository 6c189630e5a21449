package coherence_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{Postgres: true, NATS: true}) }

// database makes a database of the test's own with Freshet's schema, and a pool of connections to it.
func database(t testing.TB) (*sqlx.DB, string) {
	t.Helper()
	db, dsn := emptyDatabase(t)
	if err := coherence.Migrate(t.Context(), db.DB); err != nil {
		t.Fatal(err)
	}
	return db, dsn
}

// emptyDatabase is database without the schema.
func emptyDatabase(t testing.TB) (*sqlx.DB, string) {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(t.Name()))
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), "t_"+name[max(0, len(name)-60):])
	if err != nil {
		t.Fatal(err)
	}
	// The role is called like the schema, which would come first in its search path.
	dsn += "&search_path=public"
	return pool(t, dsn), dsn
}

func pool(t testing.TB, dsn string) *sqlx.DB {
	t.Helper()
	db, err := coherence.OpenPool(coherence.PoolConfig{DSN: dsn, ReadTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// do runs statements in one transaction each.
func do(t testing.TB, db *sqlx.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// ask reads one value.
func ask[T any](t testing.TB, db *sqlx.DB, query string, args ...any) T {
	t.Helper()
	var v T
	if err := db.GetContext(t.Context(), &v, query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// openLog opens the log of a database.
func openLog(t testing.TB, dsn string, timeout time.Duration) *coherence.PostgresLog {
	t.Helper()
	log, err := coherence.OpenLog(coherence.LogConfig{DSN: dsn, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return log
}

// poll polls once.
func poll(t testing.TB, log coherence.Log, since coherence.Snapshot) coherence.PollResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := log.Poll(ctx, since, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	if r.Overrun {
		t.Fatal("overrun")
	}
	return r
}

// begin starts a transaction that the test ends, or else its end.
func begin(t testing.TB, db *sqlx.DB) *sqlx.Tx {
	t.Helper()
	tx, err := db.BeginTxx(context.WithoutCancel(t.Context()), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

// run executes a statement in a transaction.
func run(t testing.TB, tx *sqlx.Tx, statement string) {
	t.Helper()
	if _, err := tx.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func commit(t testing.TB, tx *sqlx.Tx) {
	t.Helper()
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}
