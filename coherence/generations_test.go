package coherence_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// The functions in SQL, for any role: what they refuse, with which SQLSTATE, and what bounds them.
func TestGenerationsInSQL(t *testing.T) {
	db, _ := database(t)
	db.SetMaxOpenConns(1)
	do(t, db,
		`do $$ begin if not exists (select from pg_roles where rolname = 'freshet_writer') then create role freshet_writer; end if; end $$`,
		`set role freshet_writer`)
	is := func(want int64, query string) {
		t.Helper()
		if got := ask[int64](t, db, query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	refused := func(code, want, statement string) {
		t.Helper()
		_, err := db.ExecContext(t.Context(), statement)
		answer, ok := errors.AsType[*pq.Error](err)
		if !ok || string(answer.Code) != code || !strings.Contains(answer.Message, want) {
			t.Errorf("%s: %v, want %q with SQLSTATE %s", statement, err, want, code)
		}
	}
	is(1, `select freshet.generation('product')`)
	is(2, `select freshet.next_generation('product', 'a test')`)
	is(2, `select freshet.generation('product')`)
	is(1, `select freshet.generation()`)
	is(3, `select freshet.next_generation('product', 'a test', expected => 2, who => 'ann')`)
	refused("ZF001", "the generation of product is 3, not 2 as expected", `select freshet.next_generation('product', 'a test', expected => 2)`)
	refused("ZF001", "the generation of all namespaces is 1, not 7", `select freshet.set_generation('', 9, 'a test', expected => 7)`)
	is(2, `select freshet.rollback_generation('product', 'a test')`)
	is(1, `select freshet.rollback_generation('product', 'a test')`)
	refused("22023", "no generation of product is known from before 1", `select freshet.rollback_generation('product', 'a test')`)
	is(3, `select freshet.rollback_generation('product', 'a test', "to" => 3)`)
	is(4, `select freshet.next_generation('product', 'a test')`)
	is(4, `select freshet.set_generation('product', 4, 'as it is')`)
	is(6, `select count(*) from freshet.generation_history where namespace = 'product'`)
	is(1, `select count(*) from freshet.generation_history where who = 'ann'`)
	refused("22023", "why: want the reason", `select freshet.next_generation('product', null)`)
	refused("22023", `namespace is "null"`, `select freshet.next_generation(null, 'a test')`)
	refused("22023", "generation is null", `select freshet.set_generation('product', null, 'a test')`)
	refused("22023", "want 1 to 4294967295", `select freshet.set_generation('product', 4294967296, 'a test')`)
	is(4294967295, `select freshet.set_generation('product', 4294967295, 'a test')`)
	refused("54000", "set one that is free", `select freshet.next_generation('product', 'a test')`)
	refused("42501", "permission denied", `select freshet.change_generation('set', 'product', 5, 'a test', null, null)`)

	do(t, db, `select freshet.next_generation('list', 'a test') from generate_series(1, 1010)`)
	is(1000, `select count(*) from freshet.generation_history where namespace = 'list'`)
	is(1011, `select freshet.generation('list')`)
	do(t, db, `reset role`)
	do(t, db, `update freshet.generations
                  set current = (select jsonb_object_agg('n' || n, 1) from generate_series(1, 1024) n)`)
	refused("54000", "1024 namespaces have generations of their own", `select freshet.next_generation('another', 'a test')`)
	is(2, `select freshet.next_generation('n7', 'a test')`)
}
