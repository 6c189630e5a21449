package coherence_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
)

// changes are the rows of the log since the last call, as text: kind:namespace:id:view, sorted.
func changes(t *testing.T, db *sqlx.DB) []string {
	t.Helper()
	var rows []string
	err := db.SelectContext(t.Context(), &rows, `
		with gone as (delete from freshet.log returning *)
		select kind::text || ':' || namespace || ':' || id || ':' || view from gone order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(rows)
	return rows
}

func wantChanges(t *testing.T, db *sqlx.DB, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := changes(t, db); !slices.Equal(got, want) {
		t.Errorf("log:\n got %.900q\nwant %.900q", got, want)
	}
}

func TestInvalidateFunctions(t *testing.T) {
	db, dsn := database(t)
	log := openLog(t, dsn, 5*time.Second)
	since := poll(t, log, coherence.Snapshot{})
	for _, c := range []struct {
		call string
		want []coherence.Scope
	}{
		{`freshet.invalidate('product', '42')`, []coherence.Scope{coherence.Entity("product", "42")}},
		{`freshet.invalidate('product', '1', '2', '1')`, []coherence.Scope{coherence.Entity("product", "1"), coherence.Entity("product", "2")}},
		{`freshet.invalidate('product', variadic array['é:{"}', E'a\nb'])`, []coherence.Scope{coherence.Entity("product", `é:{"}`), coherence.Entity("product", "a\nb")}},
		{`freshet.invalidate('product', variadic '{}')`, nil},
		{`freshet.invalidate_view('product', '42', 'detail')`, []coherence.Scope{coherence.View("product", "42", "detail")}},
		{`freshet.invalidate_tag('category:7', 'x')`, []coherence.Scope{coherence.Tag("category:7"), coherence.Tag("x")}},
		{`freshet.invalidate_namespace('product')`, []coherence.Scope{coherence.Namespace("product")}},
	} {
		do(t, db, "select "+c.call)
		r := poll(t, log, since.Snapshot)
		since = r
		var got, want []coherence.ScopeHash
		for _, change := range r.Changes {
			got = append(got, change.Scope)
			if !r.Snapshot.Sees(change.XID) {
				t.Errorf("%s: poll %s brought transaction %d that it does not see", c.call, r.Snapshot, change.XID)
			}
		}
		for _, scope := range c.want {
			want = append(want, scope.Hash())
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: polled %x, want %x", c.call, got, want)
		}
	}
	do(t, db, `insert into freshet.log (kind) values ('a')`)
	if r := poll(t, log, since.Snapshot); len(r.Changes) != 1 || r.Changes[0].Scope != coherence.Everything().Hash() {
		t.Errorf("everything: polled %+v", r.Changes)
	}
}

// Every refusal names the argument and what would be right.
func TestFunctionErrors(t *testing.T) {
	db, _ := database(t)
	do(t, db, `create table products (id int primary key, category_id int)`, `create view seen as select * from products`, `create table keyless (id int)`)
	for call, want := range map[string]string{
		`freshet.invalidate('', '1')`:                                "namespace is empty",
		`freshet.invalidate(null, '1')`:                              "namespace is empty",
		`freshet.invalidate('p', '')`:                                "ids: an id is empty",
		`freshet.invalidate('p', '1', null)`:                         "ids: an id is empty",
		`freshet.invalidate('p', variadic null)`:                     "ids: an id is empty",
		`freshet.invalidate_view('', '1', 'v')`:                      "namespace is empty",
		`freshet.invalidate_view('p', null, 'v')`:                    "id is empty",
		`freshet.invalidate_view('p', '1', '')`:                      "view is empty",
		`freshet.invalidate_tag('')`:                                 "tags: a tag is empty",
		`freshet.invalidate_tag(variadic null)`:                      "tags: a tag is empty",
		`freshet.invalidate_namespace('')`:                           "namespace is empty",
		`freshet.watch(null, 'p')`:                                   "relation is null",
		`freshet.watch('nowhere', 'p')`:                              `relation "nowhere" does not exist`,
		`freshet.watch('seen', 'p')`:                                 "relation: public.seen is not a table",
		`freshet.watch('products', '')`:                              "namespace is empty",
		`freshet.watch('products', 'p', id => 'ID')`:                 `id: table public.products has no column "ID"`,
		`freshet.watch('products', 'p', id => null)`:                 `id: table public.products has no column`,
		`freshet.watch('products', 'p', tags => '{a,null}')`:         "tags: a tag is empty",
		`freshet.watch('products', 'p', tags => array['c:{cat}'])`:   `tags: {cat} in "c:{cat}": table public.products has no such column`,
		`freshet.watch('products', 'p', tags => array['c:{}'])`:      `tags: {} in "c:{}"`,
		`freshet.watch('products', 'p', tags => array['c:{id'])`:     `tags: "c:{id": a brace without its partner`,
		`freshet.watch('products', 'p', tags => array['c:id}'])`:     `a brace without its partner`,
		`freshet.watch('products', 'p', id => 'id, ID')`:             `id: table public.products has no column "ID"`,
		`freshet.watch('products', 'p', id => 'id,')`:                `id: table public.products has no column ""`,
		`freshet.watch('products', 'p', columns => '{nah}')`:         `columns: table public.products has no column "nah"`,
		`freshet.watch('products', 'p', columns => '{null}')`:        `columns: table public.products has no column ""`,
		`freshet.watch('keyless', 'p', columns => '{id}')`:           "columns: table public.keyless has no primary key",
		`freshet.trim(null)`:                                         "keep is null",
		`freshet.trim('-1 s')`:                                       "keep is -00:00:01",
		`freshet.trim('1 s', 0)`:                                     "at_most is 0",
		`freshet.watch('products', 'p', tags => array['{id}{nah}'])`: `{nah}`,
	} {
		_, err := db.ExecContext(t.Context(), "select "+call)
		if e := (*pq.Error)(nil); !errors.As(err, &e) || !strings.Contains(e.Message, want) {
			t.Errorf("%s: error %v, want one with %q", call, err, want)
		}
	}
	wantChanges(t, db)
	if n := ask[int](t, db, `select count(*) from pg_proc where proname like 'watch\_%'`); n != 0 {
		t.Errorf("refused watches left %d functions", n)
	}
}

func TestWatch(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table products (id int primary key, category_id int, name text)`,
		`select freshet.watch('products', namespace => 'product', id => 'id', tags => array['product', 'category:{category_id}', '{category_id}/{name}'])`)
	wantChanges(t, db, "n:product::", "t::product:", "a:::") // nothing is known of the time before
	for _, step := range []struct {
		statement string
		want      []string
	}{
		{
			`insert into products values (1, 7, 'a'), (2, 8, null)`,
			[]string{"e:product:1:", "e:product:2:", "t::product:", "t::category:7:", "t::category:8:", "t::7/a:"},
		},
		{`insert into products values (3, null, 'c')`, []string{"e:product:3:", "t::product:"}},
		{`update products set name = 'b' where id = 1`, []string{"e:product:1:", "t::product:", "t::category:7:", "t::7/a:", "t::7/b:"}},
		{`update products set category_id = 9 where id = 2`, []string{"e:product:2:", "t::product:", "t::category:8:", "t::category:9:"}},
		{`update products set id = 20 where id = 2`, []string{"e:product:2:", "e:product:20:", "t::product:", "t::category:9:"}},
		{`update products set name = name where false`, nil},
		{`delete from products where id = 100`, nil},
		{`insert into products values (1, 7, 'z') on conflict do nothing`, nil},
		{
			`insert into products values (1, 7, 'z'), (4, null, 'n') on conflict (id) do update set name = excluded.name`,
			[]string{"e:product:1:", "e:product:4:", "t::product:", "t::product:", "t::category:7:", "t::7/b:", "t::7/z:"},
		},
		{
			`with gone as (delete from products where id = 4 returning 1) insert into products select 5, 1, 'e' from gone`,
			[]string{"e:product:4:", "e:product:5:", "t::product:", "t::product:", "t::category:1:", "t::1/e:"},
		},
		{`truncate products`, []string{"n:product::", "t::product:", "a:::"}},
	} {
		do(t, db, step.statement)
		t.Log(step.statement)
		wantChanges(t, db, step.want...)
	}

	// COPY, as bulk loaders write.
	tx := begin(t, db)
	copying, err := tx.PrepareContext(t.Context(), `copy products (id, category_id, name) from stdin`)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := copying.ExecContext(t.Context(), i, 1, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := copying.ExecContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := copying.Close(); err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	wantChanges(t, db, "e:product:0:", "e:product:1:", "e:product:2:", "t::product:", "t::category:1:", "t::1/x:")

	// What is rolled back, in part or whole, is not in the log; what is not, is, under one id.
	tx = begin(t, db)
	run(t, tx, `update products set name = 'kept' where id = 0`)
	run(t, tx, `savepoint s`)
	run(t, tx, `update products set name = 'not kept' where id = 1`)
	run(t, tx, `rollback to s`)
	run(t, tx, `savepoint s2`)
	run(t, tx, `delete from products where id = 2`)
	run(t, tx, `release s2`)
	var xid int64
	if err := tx.GetContext(t.Context(), &xid, `select pg_current_xact_id()::text::bigint`); err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	if n := ask[int](t, db, `select count(distinct xid) from freshet.log where xid::text::bigint = $1`, xid); n != 1 {
		t.Errorf("rows of the transaction %d are under other ids: %v", xid, changes(t, db))
	}
	wantChanges(t, db, "e:product:0:", "t::product:", "t::category:1:", "t::1/x:", "t::1/kept:", "e:product:2:", "t::product:", "t::category:1:", "t::1/x:")

	// Bulk statements escalate at 1001 entities or tags, and not at 1000.
	do(t, db, `truncate products`, `delete from freshet.log`,
		`insert into products select i, 1, 'x' from generate_series(1, 1000) i`)
	if got := changes(t, db); len(got) != 1003 {
		t.Errorf("1000 rows: %d changes, want 1003", len(got))
	}
	do(t, db, `insert into products select i, 1, 'x' from generate_series(1001, 2001) i`)
	wantChanges(t, db, "n:product::", "t::product:", "t::category:1:", "t::1/x:")
	do(t, db, `update products set id = id + 10000 where id <= 501`) // 1002 ids, before and after
	wantChanges(t, db, "n:product::", "t::product:", "t::category:1:", "t::1/x:")
	do(t, db, `insert into products select i + 100000, i, null from generate_series(1, 1000) i`)
	wantChanges(t, db, func() []string {
		want := []string{"a:::"} // 1001 tags
		for i := 1; i <= 1000; i++ {
			want = append(want, fmt.Sprintf("e:product:%d:", 100000+i))
		}
		return want
	}()...)
	do(t, db, `delete from products where id > 100000`)
	if got := changes(t, db); len(got) != 1001 || !slices.Contains(got, "a:::") {
		t.Errorf("delete of 1001 tags: %d changes", len(got))
	}
}

// Names, tags and namespaces are data, whatever bytes they hold.
func TestWatchOddNames(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create schema "Odd $body$ Schema"`,
		`create table "Odd $body$ Schema"."My ""Table"" %s" ("The Id" text, "c'at%L" text, tags text, "id" text, gone int)`,
		`alter table "Odd $body$ Schema"."My ""Table"" %s" drop column gone`,
		`select freshet.watch('"Odd $body$ Schema"."My ""Table"" %s"', 'n''s $body$ %s $create$', 'The Id',
			array['50%', '%s''{c''at%L}\', 'a{tags}b{id}', '$branch$'])`)
	changes(t, db)
	do(t, db, `insert into "Odd $body$ Schema"."My ""Table"" %s" values ('1', 'x%y', 'z', 'w')`)
	wantChanges(t, db, "e:n's $body$ %s $create$:1:", "t::50%:", `t::%s'x%y\:`, "t::azbw:", "t::$branch$:")
	do(t, db, `truncate "Odd $body$ Schema"."My ""Table"" %s"`)
	wantChanges(t, db, "n:n's $body$ %s $create$::", "t::50%:", "t::$branch$:", "a:::")

	// Without tags with columns a TRUNCATE is no more than its namespace.
	do(t, db, `create table plain (id uuid)`, `select freshet.watch('plain', 'plain', tags => null)`)
	changes(t, db)
	do(t, db, `truncate plain`)
	wantChanges(t, db, "n:plain::")
	do(t, db, `insert into plain values ('00000000-0000-0000-0000-00000000000A'), (null)`)
	wantChanges(t, db, "e:plain:00000000-0000-0000-0000-00000000000a:")
}

// What a tag or an id looks like does not depend on the writer's settings.
func TestWatchWriterSettings(t *testing.T) {
	db, _ := database(t)
	do(t, db, `create table events (id timestamptz, day date)`, `select freshet.watch('events', 'event', tags => array['day:{day}'])`)
	changes(t, db)
	tx := begin(t, db)
	run(t, tx, `set local datestyle = 'German'`)
	run(t, tx, `set local timezone = 'Asia/Tokyo'`)
	run(t, tx, `insert into events values ('2024-02-01 00:00:00Z', '2024-02-03')`)
	var zone string
	if err := tx.GetContext(t.Context(), &zone, `show timezone`); err != nil || zone != "Asia/Tokyo" {
		t.Errorf("the trigger changed the writer's time zone to %q (%v)", zone, err)
	}
	commit(t, tx)
	wantChanges(t, db, "e:event:2024-02-01 00:00:00+00:", "t::day:2024-02-03:")
}

func TestWatchAgain(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table products (id int, sku text)`,
		`select freshet.watch('products', 'old')`,
		`select freshet.watch('products', 'product', 'sku', '{x}')`)
	wantChanges(t, db, "n:old::", "n:old::", "n:product::", "t::x:")
	do(t, db, `insert into products values (1, 's1')`)
	wantChanges(t, db, "e:product:s1:", "t::x:")
	if n := ask[int](t, db, `select count(*) from pg_proc where proname like 'watch\_%'`); n != 1 {
		t.Errorf("%d trigger functions after watching again, want 1", n)
	}

	// A table that takes another's name does not take its triggers.
	do(t, db,
		`alter table products rename to products_old`,
		`create table products (id int, code text)`,
		`select freshet.watch('products', 'product2', 'code')`)
	changes(t, db)
	do(t, db, `insert into products values (1, 'c1')`, `insert into products_old values (2, 's2')`)
	wantChanges(t, db, "e:product2:c1:", "e:product:s2:", "t::x:")

	// Concurrent watches of one table leave one.
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := db.ExecContext(t.Context(), `select freshet.watch('products', 'product3', 'code')`)
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	changes(t, db)
	do(t, db, `insert into products values (3, 'c3')`)
	wantChanges(t, db, "e:product3:c3:")
	if got := ask[string](t, db, `select string_agg(relation || ' ' || name || ' ' || namespace, ', ' order by namespace) from freshet.watches`); got !=
		"products_old products_old product, products products product3" {
		t.Errorf("watches: %s", got)
	}
}

func TestWatchPartitions(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table orders (id int, region text) partition by list (region)`,
		`create table orders_eu partition of orders for values in ('eu') partition by range (id)`,
		`create table orders_eu_low partition of orders_eu for values from (0) to (100)`,
		`create table orders_us partition of orders for values in ('us')`,
		`select freshet.watch('orders', 'order', tags => array['region:{region}'])`)
	changes(t, db)
	for statement, want := range map[string][]string{
		`insert into orders values (1, 'eu'), (2, 'us')`:  {"e:order:1:", "e:order:2:", "t::region:eu:", "t::region:us:"},
		`insert into orders_eu values (3, 'eu')`:          {"e:order:3:", "t::region:eu:"},
		`insert into orders_eu_low values (4, 'eu')`:      {"e:order:4:", "t::region:eu:"},
		`update orders set region = 'us' where id in (1)`: nil, // by order of the map it may find nothing
		`delete from only orders_us where id = 999`:       nil,
	} {
		do(t, db, statement)
		if got := changes(t, db); want != nil && !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", statement, got, want)
		}
	}
	do(t, db, `delete from orders`, `insert into orders values (1, 'eu')`)
	changes(t, db)
	do(t, db, `update orders set region = 'us'`) // moves the row to another partition
	wantChanges(t, db, "e:order:1:", "t::region:eu:", "t::region:us:")
	do(t, db, `truncate orders_us`)
	wantChanges(t, db, "n:order::", "a:::")

	// Children by inheritance are rows of their parent.
	do(t, db,
		`create table animals (id int)`, `create table cats (lives int) inherits (animals)`,
		`select freshet.watch('animals', 'animal')`)
	changes(t, db)
	do(t, db, `insert into cats values (1, 9)`, `update animals set id = 2`)
	wantChanges(t, db, "e:animal:1:", "e:animal:1:", "e:animal:2:")
}

func TestWatchCascade(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`create table categories (id int primary key)`,
		`create table products (id int primary key, category_id int references categories on delete cascade on update cascade)`,
		`select freshet.watch('products', 'product')`,
		`insert into categories values (1), (2)`, `insert into products values (10, 1), (20, 2)`)
	changes(t, db)
	do(t, db, `delete from categories where id = 1`)
	wantChanges(t, db, "e:product:10:")
	do(t, db, `update categories set id = 3`)
	wantChanges(t, db, "e:product:20:")
}

// A role that has no rights on Freshet's schema but those of everyone writes a watched table, and may
// say that something changed.
func TestOtherRoles(t *testing.T) {
	db, _ := database(t)
	do(t, db,
		`do $$ begin if not exists (select from pg_roles where rolname = 'freshet_writer') then create role freshet_writer; end if; end $$`,
		`create table products (id int)`,
		`grant insert, update, delete, truncate, select on products to freshet_writer`,
		`select freshet.watch('products', 'product', tags => array['p:{id}'])`)
	changes(t, db)
	tx := begin(t, db)
	run(t, tx, `set local role freshet_writer`)
	run(t, tx, `insert into products values (1)`)
	run(t, tx, `update products set id = 2`)
	run(t, tx, `delete from products`)
	run(t, tx, `truncate products`)
	run(t, tx, `select freshet.invalidate('x', '1'), freshet.invalidate_tag('t'), freshet.invalidate_namespace('n'), freshet.invalidate_view('x', '1', 'v')`)
	run(t, tx, `select freshet.current_timeline()`)
	commit(t, tx)
	if got := changes(t, db); len(got) != 2+4+2+2+4 {
		t.Errorf("another role's writes: %q", got)
	}
	tx = begin(t, db)
	run(t, tx, `set local role freshet_writer`)
	if _, err := tx.ExecContext(t.Context(), `insert into freshet.log (kind) values ('a')`); err == nil {
		t.Error("another role may write the log directly")
	}
}

// Sessions that apply a backup or replicate by hand do not fire ordinary triggers.
func TestWatchReplicaRole(t *testing.T) {
	db, _ := database(t)
	do(t, db, `create table products (id int)`, `select freshet.watch('products', 'product')`)
	changes(t, db)
	tx := begin(t, db)
	run(t, tx, `set local session_replication_role = replica`)
	run(t, tx, `insert into products values (1)`)
	commit(t, tx)
	wantChanges(t, db, "e:product:1:")
}
