package coherence_test

import (
	"errors"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// number runs a statement that returns one.
func number(t *testing.T, db sqlx.QueryerContext, query string) (n int) {
	t.Helper()
	if err := sqlx.GetContext(t.Context(), db, &n, query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

const waiting = `select count(*) from freshet.scheduled`

// Sessions that run what is due at the same time share it, and what one of them does not commit is still
// due.
func TestRunDueShared(t *testing.T) {
	db, _ := database(t)
	do(t, db, `select freshet.invalidate_after('1 ms', 'n', variadic array(select n::text from generate_series(1, 10) n))`,
		`select freshet.invalidate_after('1 h', 'n', 'later')`, `select pg_sleep(0.01)`)
	one := begin(t, db)
	if a, b := number(t, one, `select freshet.run_due(4)`), number(t, db, `select freshet.run_due(100)`); a != 4 || b != 6 {
		t.Errorf("two sessions ran %d and %d, want 4 and 6", a, b)
	}
	if err := one.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n := number(t, db, `select freshet.run_due(100)`); n != 4 {
		t.Errorf("%d are run after the other session has ended, want 4", n)
	}
	if n, rest := number(t, db, `select count(*) from freshet.log`), number(t, db, waiting); n != 10 || rest != 1 {
		t.Errorf("%d in the log, %d wait; want 10 and 1", n, rest)
	}
}

// A batch is due with the first of its changes, until all of them have run: also when it is run in parts,
// and one of the sessions that run it does not come to its end.
func TestRunDueWholeBatches(t *testing.T) {
	db, _ := database(t)
	do(t, db, `select freshet.batch_add('b', 'n', '1', '2', '3')`, `select freshet.batch_after('b', '1 ms')`,
		`select freshet.batch_add('b', 'n', '4', '5', '6')`, `select pg_sleep(0.01)`)
	one := begin(t, db)
	if a, b := number(t, one, `select freshet.run_due(4)`), number(t, db, `select freshet.run_due(100)`); a != 4 || b != 0 {
		t.Errorf("two sessions ran %d and %d, want 4 and nothing", a, b)
	}
	if err := one.Rollback(); err != nil {
		t.Fatal(err)
	}
	for left := 6; left > 0; left -= 2 {
		if n := number(t, db, `select freshet.run_due(2)`); n != 2 || number(t, db, waiting) != left-2 {
			t.Errorf("%d ran of %d, %d are left", n, left, number(t, db, waiting))
		}
	}
	if n := number(t, db, `select count(distinct id) from freshet.log`); n != 6 {
		t.Errorf("%d in the log, want 6", n)
	}
}

// What is added in a transaction that is open while its batch runs is not run, and not lost.
func TestRunBatchMeanwhile(t *testing.T) {
	db, _ := database(t)
	do(t, db, `select freshet.batch_add('b', 'n', '1')`)
	writer := begin(t, db)
	run(t, writer, `select freshet.batch_add('b', 'n', '1')`)
	if n := number(t, db, `select freshet.run_batch('b')`); n != 1 {
		t.Errorf("%d ran, want 1", n)
	}
	commit(t, writer)
	if n := number(t, db, `select entries from freshet.batches where name = 'b'`); n != 1 {
		t.Errorf("the batch has %d, want the one that came meanwhile", n)
	}
	if n := number(t, db, `select freshet.drop_batch('b')`); n != 1 || number(t, db, waiting) != 0 {
		t.Errorf("%d dropped, %d wait", n, number(t, db, waiting))
	}
}

// The changes that wait are bounded, and the error says what to do.
func TestScheduleIsBounded(t *testing.T) {
	db, _ := database(t)
	do(t, db, `select freshet.batch_add('b', 'n', variadic array(select n::text from generate_series(1, 60000) n))`)
	_, err := db.ExecContext(t.Context(), `select freshet.batch_add('b', 'n', variadic array(select n::text from generate_series(1, 40001) n))`)
	var refused *pq.Error
	if !errors.As(err, &refused) || refused.Code != "54000" {
		t.Errorf("one too many: %v", err)
	}
	do(t, db, `select freshet.batch_add('b', 'n', variadic array(select n::text from generate_series(1, 40000) n))`)
	if _, err := db.ExecContext(t.Context(), `select freshet.invalidate_after('1 h', 'n', 'x')`); err == nil {
		t.Error("another is accepted")
	}
	if n := number(t, db, `select freshet.run_batch('b')`); n != 100_000 {
		t.Errorf("%d ran", n)
	}
	if n := number(t, db, `select count(*) from freshet.log`); n != 60_000 {
		t.Errorf("%d in the log, want each change once", n)
	}
}
