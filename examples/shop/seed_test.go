package shop_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// digest is a hash over all rows of both tables.
func digest(t *testing.T, db *sqlx.DB) (hash string) {
	t.Helper()
	if err := db.GetContext(t.Context(), &hash, `select md5(
		(select string_agg(c::text, '' order by id) from categories c) ||
		(select string_agg(p::text, '' order by id) from products p))`); err != nil {
		t.Fatal(err)
	}
	return hash
}

func TestSeedIsDeterministic(t *testing.T) {
	hashes := map[uint64][]string{}
	for _, seed := range []uint64{1, 1, 2} {
		_, db := emptyDatabase(t)
		if err := shop.Seed(t.Context(), db, shop.SeedConfig{Products: 2000, Seed: seed}); err != nil {
			t.Fatal(err)
		}
		hashes[seed] = append(hashes[seed], digest(t, db))
	}
	if hashes[1][0] != hashes[1][1] {
		t.Error("one seed made two catalogues")
	}
	if hashes[1][0] == hashes[2][0] {
		t.Error("two seeds made one catalogue")
	}
}

func TestSeedIsRealistic(t *testing.T) {
	_, db := emptyDatabase(t)
	if err := shop.Seed(t.Context(), db, shop.SeedConfig{Products: 10_000, Categories: 120}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Products, Categories, LastID             int64
		Largest, Middle                          int64 // products in the first and the 60th category
		Active, Empty                            float64
		Low, Median, High, Mean                  float64 // prices of the first category, in cents
		Names, Texts                             int64
		Slugs, Dear, Future, Revised, NoMaterial int64
	}
	if err := db.GetContext(t.Context(), &got, `
		select count(*) as products, (select count(*) from categories) as categories, max(id) as lastid,
			count(*) filter (where category_id = 1) as largest, count(*) filter (where category_id = 60) as middle,
			avg((status = 'active')::int) as active, avg((stock = 0)::int) as empty,
			percentile_cont(0.05) within group (order by price_cents) filter (where category_id = 1) as low,
			percentile_cont(0.5) within group (order by price_cents) filter (where category_id = 1) as median,
			percentile_cont(0.95) within group (order by price_cents) filter (where category_id = 1) as high,
			avg(price_cents) filter (where category_id = 1) as mean,
			count(distinct name) as names, count(distinct description) as texts,
			(select count(distinct slug) from categories) as slugs, count(*) filter (where price_cents % 100 <> 99) as dear,
			count(*) filter (where updated_at < created_at or updated_at >= '2026-01-02') as future,
			count(*) filter (where revision <> 1) as revised, count(*) filter (where not attributes ? 'material') as nomaterial
		from products`); err != nil {
		t.Fatal(err)
	}
	switch {
	case got.Products != 10_000 || got.LastID != 10_000 || got.Categories != 120 || got.Slugs != 120:
		t.Errorf("sizes: %+v", got)
	case got.Largest < 20*got.Middle || got.Middle == 0:
		t.Errorf("category sizes are not Zipf's: %+v", got)
	case got.Active < .8 || got.Active > .9 || got.Empty < .05 || got.Empty > .12:
		t.Errorf("shares: %+v", got)
	case got.Median < 3000 || got.Median > 5000 || got.Mean < 1.1*got.Median || got.High < 8*got.Low:
		t.Errorf("prices are not log-normal: %+v", got)
	case got.Names < 9500 || got.Texts < 8000 || got.Dear+got.Future+got.Revised+got.NoMaterial > 0:
		t.Errorf("rows: %+v", got)
	}
	var next int64
	if err := db.GetContext(t.Context(), &next, `insert into products (name, category_id, price_cents) values ('New', 1, 1) returning id`); err != nil || next != 10_001 {
		t.Errorf("the next product has the id %d, %v, want 10001", next, err)
	}
}

func TestSeedRunsOnce(t *testing.T) {
	_, db := emptyDatabase(t)
	config := shop.SeedConfig{Products: 500, Categories: 10, Seed: 7}
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			if err := shop.Seed(t.Context(), db, config); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	before := digest(t, db)
	if _, err := db.ExecContext(t.Context(), `update products set stock = stock + 1 where id = 1`); err != nil {
		t.Fatal(err)
	}
	changed := digest(t, db)
	if changed == before {
		t.Fatal("the digest does not see a change")
	}
	if err := shop.Seed(t.Context(), db, config); err != nil || digest(t, db) != changed {
		t.Errorf("seeding again: %v; want no error and no change", err)
	}
	config.Seed++
	if err := shop.Seed(t.Context(), db, config); err == nil || !strings.Contains(err.Error(), "500 products in 10 categories of seed 7") {
		t.Errorf("another seed: %v", err)
	}
	if digest(t, db) != changed {
		t.Error("a refused seed changed the tables")
	}
}

func TestSeedRefuses(t *testing.T) {
	_, db := emptyDatabase(t)
	err := shop.Seed(t.Context(), db, shop.SeedConfig{Products: -1, Categories: 501, Seed: 1 << 63})
	for _, field := range []string{"Products", "Categories", "Seed"} {
		if err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("got %v, want all fields named", err)
		}
	}
	if _, err := db.ExecContext(t.Context(), `insert into categories (slug, name) values ('mine', 'Mine')`); err != nil {
		t.Fatal(err)
	}
	if err := shop.Seed(t.Context(), db, shop.SeedConfig{Products: 1}); err == nil || !strings.Contains(err.Error(), "rows that Seed did not make") {
		t.Errorf("got %v", err)
	}
}

func TestMigrateNeedsFreshet(t *testing.T) {
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), "shop_bare")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqlx.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := shop.Migrate(t.Context(), db); err == nil || !strings.Contains(err.Error(), "freshet.watch is missing") {
		t.Errorf("got %v", err)
	}
}

func TestMigrateAgainChangesNothing(t *testing.T) {
	_, db := emptyDatabase(t)
	if err := shop.Seed(t.Context(), db, shop.SeedConfig{Products: 10}); err != nil {
		t.Fatal(err)
	}
	before := digest(t, db)
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			if err := shop.Migrate(t.Context(), db); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if digest(t, db) != before {
		t.Error("the tables changed")
	}
}

// Any writer's update bumps the revision, and none can set it.
func TestRevisionCountsUpdates(t *testing.T) {
	_, db := emptyDatabase(t)
	if err := shop.Seed(t.Context(), db, shop.SeedConfig{Products: 3}); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"products", "categories"} {
		for want := int64(2); want < 5; want++ {
			var revision int64
			var touched bool
			row := db.QueryRowContext(t.Context(), `update `+table+` set name = name || '!', revision = 900 where id = 2
				returning revision, updated_at = now()`)
			if err := row.Scan(&revision, &touched); err != nil || revision != want || !touched {
				t.Errorf("%s: revision %d, touched %v, %v; want %d", table, revision, touched, err, want)
			}
		}
	}
}
