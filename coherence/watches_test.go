package coherence_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
)

// An UPDATE is logged only if it changes a column that matters: those that were named, and those of the id, of
// tags and of the primary key.
func TestWatchColumns(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table products (id int primary key, sku text, category_id int, name text, seen int default 0, price float8)`,
		`select freshet.watch('products', 'product', id => 'sku', tags => array['category:{category_id}'], columns => array['name', 'price'])`,
		`insert into products (id, sku, category_id, name) values (1, 'a', 7, 'x'), (2, 'b', 7, 'y'), (3, 'c', 8, null), (4, null, 9, 'n')`)
	changes(t, db)
	for _, step := range []struct {
		statement string
		want      []string
	}{
		{`update products set seen = seen + 1`, nil},
		{`update products set name = name, price = price`, nil},
		{`update products set name = 'z', seen = 0 where id < 3 and name <> 'y'`, []string{"e:product:a:", "t::category:7:"}},
		{`update products set name = 'c' where id = 3`, []string{"e:product:c:", "t::category:8:"}},
		{`update products set name = null where id = 3`, []string{"e:product:c:", "t::category:8:"}},
		{`update products set category_id = 9 where id = 3`, []string{"e:product:c:", "t::category:8:", "t::category:9:"}},
		{`update products set sku = 'd' where id = 3`, []string{"e:product:c:", "e:product:d:", "t::category:9:"}},
		{`update products set id = 30 where id = 3`, []string{"e:product:d:", "t::category:9:"}},
		// What two rows hold is exchanged: as a set it is the same as before.
		{`update products set name = case id when 1 then 'y' else 'z' end where id < 3`, []string{"e:product:a:", "e:product:b:", "t::category:7:"}},
		{`update products set sku = case id when 1 then 'b' else 'a' end where id < 3`, []string{"e:product:a:", "e:product:b:", "t::category:7:"}},
		{`update products set price = 0.1 + id where id = 1`, []string{"e:product:b:", "t::category:7:"}},
		{`update products set price = price + 1e-15 where id = 1`, []string{"e:product:b:", "t::category:7:"}}, // 16 digits tell
		{`update products set name = 'm' where id = 4`, []string{"t::category:9:"}},                            // it is no entity
		{`insert into products (id, sku, category_id) values (5, 'e', 7)`, []string{"e:product:e:", "t::category:7:"}},
		{`delete from products where id = 5`, []string{"e:product:e:", "t::category:7:"}},
		{`truncate products`, []string{"n:product::", "a:::"}},
	} {
		tx := begin(t, db)
		run(t, tx, `set local extra_float_digits = 0`)
		run(t, tx, step.statement)
		commit(t, tx)
		t.Log(step.statement)
		wantChanges(t, db, step.want...)
	}

	// Equal is not the same: what is compared is the text that a reader gets.
	do(t, db,
		`create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
		`create table words (id text collate nocase primary key, word text collate nocase, n numeric, j json)`,
		`select freshet.watch('words', 'word', columns => array['word', 'n', 'j'])`,
		`insert into words values ('a', 'b', 1.0, '{}')`)
	changes(t, db)
	for _, statement := range []string{
		`update words set word = 'B'`, `update words set n = 1.00`, `update words set j = '{ }'`, `update words set j = null`,
	} {
		do(t, db, statement)
		t.Log(statement)
		wantChanges(t, db, "e:word:a:")
	}
	do(t, db, `update words set id = 'A'`)
	wantChanges(t, db, "e:word:A:", "e:word:a:")

	// None but those of the id and the tags.
	do(t, db, `select freshet.watch('words', 'word', columns => '{}')`)
	changes(t, db)
	do(t, db, `update words set word = 'c'`)
	wantChanges(t, db)
}

// Several columns name an entity together.
func TestWatchCompositeID(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table lines (order_id int, line text, qty int, "The, Column" int)`,
		`select freshet.watch('lines', 'line', id => 'order_id, line', tags => array['order:{order_id}'])`)
	changes(t, db)
	do(t, db, `insert into lines values (1, 'a', 1), (1, 'b/c%', 1), (2, '', 1), (3, null, 1)`)
	wantChanges(t, db, "e:line:1/a:", "e:line:1/b%2Fc%25:", "e:line:2/:", "t::order:1:", "t::order:2:", "t::order:3:")
	do(t, db, `update lines set line = 'd', qty = 2 where line = 'a'`)
	wantChanges(t, db, "e:line:1/a:", "e:line:1/d:", "t::order:1:")
	if n := ask[int](t, db, `select count(*) from lines where freshet.id(order_id::text, line) = '1/b%2Fc%25'`); n != 1 {
		t.Errorf("%d rows have the id that the watch logged, want 1", n)
	}
	do(t, db, `delete from lines`, `delete from freshet.log`, `alter table lines add primary key (order_id, line)`,
		`select freshet.watch('lines', 'line', id => 'order_id,line', columns => array['qty'])`,
		`insert into lines values (1, 'a', 1, 1), (1, 'b', 2, 1)`)
	changes(t, db)
	do(t, db, `update lines set "The, Column" = 2`)
	wantChanges(t, db)
	do(t, db, `update lines set qty = 3 - qty`)
	wantChanges(t, db, "e:line:1/a:", "e:line:1/b:")
	do(t, db, `update lines set line = 'c' where line = 'a'`)
	wantChanges(t, db, "e:line:1/a:", "e:line:1/c:")

	// A column's own name goes before the list that it could be.
	do(t, db, `create table odd ("a, b" int, a int, b int)`, `select freshet.watch('odd', 'odd', id => 'a, b')`)
	changes(t, db)
	do(t, db, `insert into odd values (1, 2, 3)`)
	wantChanges(t, db, "e:odd:1:")
}

// Entities of several columns are found by an index, either way that the documentation shows.
func TestCompositeIDByIndex(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table lines (order_id bigint, line int, qty int, primary key (order_id, line))`,
		`insert into lines select n, n % 7, n from generate_series(1, 20000) n`, `analyze lines`)
	const byKey = `
select l.*, freshet.id(l.order_id::text, l.line::text) as id
  from unnest($1::text[]) wanted(id), freshet.id_parts(wanted.id) part
  join lines l on l.order_id = part[1]::bigint and l.line = part[2]::int`
	const byID = `select l.*, freshet.id(order_id::text, line::text) as id from lines l where freshet.id(order_id::text, line::text) = any($1)`
	for name, query := range map[string]string{"by its key": byKey, "by an index of its id": byID} {
		if query == byID {
			do(t, db, `create index lines_id on lines (freshet.id(order_id::text, line::text))`, `analyze lines`)
		}
		var found []string
		rows := `select distinct id || ' ' || qty from (` + query + `) q order by 1`
		if err := db.SelectContext(t.Context(), &found, rows, pq.StringArray{"8/1", "9/2", "9/3", "9/2/", "9"}); err != nil {
			t.Fatal(err)
		}
		if want := []string{"8/1 8", "9/2 9"}; !slices.Equal(found, want) {
			t.Errorf("%s: found %q, want %q", name, found, want)
		}
		var plan []string
		if err := db.SelectContext(t.Context(), &plan, "explain "+strings.ReplaceAll(query, "$1", `array['8/1', '9/2']`)); err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "\n"); !strings.Contains(text, "lines_") || strings.Contains(text, "Seq Scan on lines") {
			t.Errorf("%s: no index is used:\n%s", name, text)
		}
	}
}

// drifts are the problems that freshet.drift finds: namespace, relation, problem, and whether mending is enough.
func drifts(t *testing.T, db *sqlx.DB) []string {
	t.Helper()
	var rows []string
	err := db.SelectContext(t.Context(), &rows,
		`select namespace || ': ' || relation || ': ' || problem || case when whole then ', whole' else '' end from freshet.drift() order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func wantDrifts(t *testing.T, db *sqlx.DB, want ...string) {
	t.Helper()
	if got := drifts(t, db); !slices.Equal(got, want) {
		t.Errorf("drift:\n got %q\nwant %q", got, want)
	}
}

// Whatever happens to a watch is seen, by the problem's name, until the table is watched again or the watch is
// mended or ended; and what was cached meanwhile counts as changed then.
func TestDrift(t *testing.T) {
	db, _ := database(t)
	function := func() string {
		return ask[string](t, db, `select function from freshet.watches where namespace = 'p'`)
	}
	for _, c := range []struct {
		name   string
		harm   []string // %f is the watch's function
		want   []string
		mend   []string // what makes it whole
		whole  []string // what is left then; nil = nothing
		logged []string // when it is over
	}{
		{
			name: "disabled", harm: []string{`alter table p disable trigger user`},
			want: []string{"p: public.p: trigger disabled"},
			mend: []string{`alter table p enable trigger user`}, whole: []string{"p: public.p: was not whole, whole"},
			logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "disabled for a moment",
			harm: []string{`do $$ begin alter table p disable trigger all; update p set v = v + 1; alter table p enable trigger all; end $$`},
			want: []string{"p: public.p: was not whole, whole"}, whole: []string{"p: public.p: was not whole, whole"},
			logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "for replicas", harm: []string{`alter table p enable replica trigger freshet_update`},
			want: []string{"p: public.p: trigger for replicas only"},
			mend: []string{`alter table p enable always trigger freshet_update`}, whole: []string{"p: public.p: was not whole, whole"},
			logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "one missing", harm: []string{`drop trigger freshet_truncate on p`},
			want: []string{"p: public.p: trigger missing"}, mend: []string{`select freshet.rewatch('p')`},
			logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "function dropped", harm: []string{`drop function freshet.%f() cascade`},
			want: []string{"p: public.p: trigger missing"}, mend: []string{`select freshet.rewatch('p')`},
			logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "function replaced",
			harm: []string{`create or replace function freshet.%f() returns trigger language plpgsql as 'begin return null; end'`},
			want: []string{"p: public.p: function changed"}, mend: []string{`select freshet.watch('p', 'p2')`, `select freshet.watch('p', 'p', tags => '{all}')`},
			logged: []string{"n:p2::", "n:p2::", "n:p::", "n:p::", "t::all:", "t::all:"},
		},
		{
			name: "settings of the function", harm: []string{`alter function freshet.%f() security invoker`},
			want: []string{"p: public.p: function changed"}, mend: []string{`select freshet.rewatch('p')`},
			logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "column", harm: []string{`alter table p rename id to key`},
			want: []string{"p: public.p: column gone"}, mend: []string{`alter table p rename key to id`},
			whole: []string{"p: public.p: was not whole, whole"}, logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "dropped and made anew", harm: []string{`alter table p rename to q`, `create table p (id int primary key, v int)`},
			want: []string{"p: public.p: another table has its name"}, mend: []string{`drop table p`, `alter table q rename to p`},
			whole: []string{"p: public.p: was not whole, whole"}, logged: []string{"n:p::", "t::all:"},
		},
		{
			name: "dropped", harm: []string{`drop table p`, `create table p (id int primary key, v int)`},
			want: []string{"p: public.p: another table has its name", "p: public.p: table gone"},
			mend: []string{`select freshet.watch('p', 'p')`}, logged: []string{"n:p::", "n:p::", "t::all:"},
		},
		{
			name: "dropped for good", harm: []string{`drop table p`}, want: []string{"p: public.p: table gone"},
			mend:   []string{`select freshet.unwatch(relation) from freshet.watches where namespace = 'p'`},
			logged: []string{"n:p::", "t::all:"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			do(t, db, `drop table if exists p, q`, `delete from freshet.watches`,
				`create table p (id int primary key, v int)`, `select freshet.watch('p', 'p', tags => '{all}')`)
			wantDrifts(t, db)
			changes(t, db)
			before := function()
			for _, statement := range c.harm {
				do(t, db, strings.ReplaceAll(statement, "%f", before))
			}
			wantDrifts(t, db, c.want...)
			if !slices.Equal(c.want, c.whole) {
				if n := ask[int](t, db, `select freshet.mend()`); n != 0 {
					t.Errorf("%d watches mended that are not whole", n)
				}
				do(t, db, c.mend...)
				wantDrifts(t, db, c.whole...)
			}
			if n := ask[int](t, db, `select freshet.mend()`); n != len(c.whole) {
				t.Errorf("%d watches mended, want %d", n, len(c.whole))
			}
			wantDrifts(t, db)
			wantChanges(t, db, c.logged...)
			if n := ask[int](t, db, `select freshet.mend()`); n != 0 {
				t.Errorf("%d watches mended that are whole", n)
			}
		})
	}
}

// Partitions and children come and go.
func TestDriftPartitions(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table orders (id int, region text) partition by list (region)`,
		`create table orders_eu partition of orders for values in ('eu')`,
		`create table orders_us (id int, region text)`,
		`insert into orders_us values (7, 'us')`,
		`select freshet.watch('orders', 'order', tags => array['region:{region}'])`)
	wantDrifts(t, db)
	changes(t, db)
	do(t, db, `alter table orders attach partition orders_us for values in ('us')`)
	wantDrifts(t, db, "order: public.orders_us: partition not covered")
	do(t, db, `select freshet.rewatch('orders')`)
	wantDrifts(t, db)
	wantChanges(t, db, "n:order::", "a:::")
	do(t, db, `insert into orders_us values (8, 'us')`)
	wantChanges(t, db, "e:order:8:", "t::region:us:")

	do(t, db, `alter table orders_us disable trigger user`)
	wantDrifts(t, db, "order: public.orders_us: trigger disabled")
	do(t, db, `alter table orders detach partition orders_us`)
	wantDrifts(t, db, "order: public.orders: partition gone, whole", "order: public.orders: was not whole, whole")
	if n := ask[int](t, db, `select freshet.mend()`); n != 1 {
		t.Errorf("%d watches mended, want 1", n)
	}
	wantDrifts(t, db)
	wantChanges(t, db, "n:order::", "a:::")

	// A part that is watched by itself is none of the whole's.
	do(t, db, `select freshet.watch('orders_eu', 'other')`)
	wantDrifts(t, db, "order: public.orders_eu: trigger missing")
	do(t, db, `select freshet.rewatch('orders')`)
	wantDrifts(t, db)
	if got := ask[string](t, db, `select string_agg(namespace, ' ') from freshet.watches`); got != "order" {
		t.Errorf("watches of %q, want order alone", got)
	}
	changes(t, db)

	do(t, db, `create table animals (id int)`, `select freshet.watch('animals', 'animal')`, `create table cats (lives int) inherits (animals)`)
	wantDrifts(t, db, "animal: public.cats: partition not covered")
}

func TestUnwatch(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table orders (id int, region text) partition by list (region)`,
		`create table orders_eu partition of orders for values in ('eu')`,
		`create table orders_us partition of orders for values in ('us')`,
		`select freshet.watch('orders', 'order', tags => array['orders'])`,
		`alter table orders detach partition orders_us`)
	changes(t, db)
	for call, want := range map[string]string{
		`freshet.unwatch('orders_eu')`: "relation: public.orders_eu is watched as a part of public.orders",
		`freshet.unwatch('pg_class')`:  "relation: pg_class is not watched",
		`freshet.unwatch(null)`:        "relation: null is not watched",
		`freshet.unwatch(123)`:         "relation: 123 is not watched",
		`freshet.rewatch('orders_eu')`: "relation: public.orders_eu is not watched",
		`freshet.rewatch(null)`:        "relation: null is not watched",
	} {
		_, err := db.ExecContext(t.Context(), "select "+call)
		if e := (*pq.Error)(nil); !errors.As(err, &e) || !strings.Contains(e.Message, want) {
			t.Errorf("%s: error %v, want one with %q", call, err, want)
		}
	}
	wantChanges(t, db)
	do(t, db, `select freshet.unwatch('orders')`)
	wantChanges(t, db, "n:order::", "t::orders:")
	do(t, db, `insert into orders values (1, 'eu')`, `insert into orders_us values (1, 'us')`)
	wantChanges(t, db)
	if n := ask[int](t, db, `
		select (select count(*) from pg_proc where proname like 'watch\_%' and prorettype = 'trigger'::regtype)
		     + (select count(*) from pg_trigger where tgname like 'freshet\_%') + (select count(*) from freshet.watches)`); n != 0 {
		t.Errorf("%d functions, triggers or rows are left", n)
	}
}

// Watches of a database that is older than the list of watches get into it, and are checked.
func TestMigrateAdoptsWatches(t *testing.T) {
	db, _ := emptyDatabase(t)
	if err := coherence.MigrateTo(t.Context(), db.DB, 1); err != nil {
		t.Fatal(err)
	}
	do(t, db,
		`create table products (id int, name text)`,
		`create table orders (id int, region text) partition by list (region)`,
		`create table orders_eu partition of orders for values in ('eu')`,
		`select freshet.watch('products', 'product', tags => array['n:{name}'])`,
		`select freshet.watch('orders', 'order')`,
		`create table gone (id int)`, `select freshet.watch('gone', 'gone')`, `drop table gone`)
	if err := coherence.Migrate(t.Context(), db.DB); err != nil {
		t.Fatal(err)
	}
	wantDrifts(t, db)
	got := ask[string](t, db, `select string_agg(concat_ws(' ', relation, namespace, members::text), '; ' order by namespace) from freshet.watches`)
	if want := "orders order {orders,orders_eu}; products product {products}"; got != want {
		t.Errorf("adopted %q, want %q", got, want)
	}
	changes(t, db)
	do(t, db, `insert into orders_eu values (1, 'eu')`)
	wantChanges(t, db, "e:order:1:")
	do(t, db, `alter table orders_eu disable trigger user`)
	wantDrifts(t, db, "order: public.orders_eu: trigger disabled")
	if _, err := db.ExecContext(t.Context(), `select freshet.rewatch('orders')`); err == nil || !strings.Contains(err.Error(), "call freshet.watch") {
		t.Errorf("watched again without knowing how: %v", err)
	}
	do(t, db, `select freshet.watch('orders', 'order')`)
	wantDrifts(t, db)
	wantChanges(t, db, "n:order::", "n:order::", "a:::") // of the old one nobody knows the tags
}

// The two functions agree with each other on what has parts.
func TestIDFunctions(t *testing.T) {
	db, _ := database(t)
	for call, want := range map[string]string{
		`freshet.id('a', 'b')`:                      "a/b",
		`freshet.id('a/b', '%2F')`:                  "a%2Fb/%252F",
		`freshet.id('', '')`:                        "/",
		`freshet.id('')`:                            "",
		`freshet.id(variadic '{}')`:                 "",
		`freshet.id('a', null)`:                     "<null>",
		`freshet.id(variadic null)`:                 "<null>",
		`freshet.id_parts('a%2Fb/%252F')::text`:     "{a/b,%2F}",
		`freshet.id_parts('')::text`:                `{""}`,
		`freshet.id_parts('/')::text`:               `{"",""}`,
		`freshet.id_parts('a%2f')::text`:            "<null>",
		`freshet.id_parts('a%')::text`:              "<null>",
		`freshet.id_parts(E'%25\n/é')::text`:        "{\"%\n\",é}",
		`freshet.id_parts(null)::text`:              "<null>",
		`freshet.id_parts(freshet.id('%25'))::text`: "{%25}",
	} {
		if got := ask[string](t, db, "select coalesce("+call+", '<null>')"); got != want {
			t.Errorf("%s: %q, want %q", call, got, want)
		}
	}
}
