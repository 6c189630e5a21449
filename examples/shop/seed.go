package shop

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

// SeedConfig says what catalogue Seed makes. One configuration makes the same rows everywhere.
type SeedConfig struct {
	Products   int    // number of products, with the ids 1 to Products; 0 = 100,000, at most 10,000,000
	Categories int    // number of categories, with the ids 1 to Categories; 0 = 50, at most 500
	Seed       uint64 // of the random numbers; 0 = 1, at most 2^63-1
}

func (c SeedConfig) withDefaults() SeedConfig {
	c.Products = cmp.Or(c.Products, 100_000)
	c.Categories = cmp.Or(c.Categories, len(departments))
	c.Seed = cmp.Or(c.Seed, 1)
	return c
}

func (c SeedConfig) validate() error {
	var problems []error
	if c.Products < 1 || c.Products > 10_000_000 {
		problems = append(problems, fmt.Errorf("Products: %d; want 1 to 10000000", c.Products))
	}
	if limit := len(departments) * len(ranges); c.Categories < 1 || c.Categories > limit {
		problems = append(problems, fmt.Errorf("Categories: %d; want 1 to %d", c.Categories, limit))
	}
	if c.Seed > math.MaxInt64 {
		problems = append(problems, fmt.Errorf("Seed: %d; want 1 to %d", c.Seed, math.MaxInt64))
	}
	return errors.Join(problems...)
}

// Seed fills an empty, migrated catalogue, in one transaction: readers wait for it and then
// see all of it. Category sizes follow Zipf's law and prices are log-normal within a category. When the tables already
// hold the data of the same configuration, Seed does nothing, whatever was changed since; any other content
// is an error and stays as it is. Processes may call it at once: one works, the others wait.
func Seed(ctx context.Context, db *sqlx.DB, c SeedConfig) error {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return fmt.Errorf("shop: seed: %w", err)
	}
	done, err := seedOnce(ctx, db, c)
	if err != nil {
		return fmt.Errorf("shop: seed: %w", err)
	}
	if done {
		return nil
	}
	// Statistics for the planner, and the visibility map, without which index-only counts read the table.
	// Outside the transaction: VACUUM refuses to run in one.
	if _, err := db.ExecContext(ctx, `vacuum (analyze) categories, products`); err != nil {
		return fmt.Errorf("shop: seed: %w", err)
	}
	return nil
}

// seedOnce reports whether the work had been done before.
func seedOnce(ctx context.Context, db *sqlx.DB, c SeedConfig) (done bool, err error) {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() // after Commit it does nothing

	// One seeder at a time.
	if _, err := tx.ExecContext(ctx, `lock table shop_seed in exclusive mode`); err != nil {
		return false, err
	}
	var was struct{ Products, Categories, Seed int64 }
	err = tx.GetContext(ctx, &was, `select products, categories, seed from shop_seed`)
	switch {
	case err == nil:
		if want := int64(c.Seed); was.Products != int64(c.Products) || was.Categories != int64(c.Categories) || was.Seed != want {
			return false, fmt.Errorf("the database holds %d products in %d categories of seed %d; want %d in %d of seed %d (use another database)",
				was.Products, was.Categories, was.Seed, c.Products, c.Categories, want)
		}
		return true, nil
	case !errors.Is(err, sql.ErrNoRows):
		return false, err
	}
	var occupied bool
	if err := tx.GetContext(ctx, &occupied, `select exists (select from categories) or exists (select from products)`); err != nil {
		return false, err
	}
	if occupied {
		return false, errors.New("the tables hold rows that Seed did not make: use an empty database")
	}

	random := rand.New(rand.NewPCG(c.Seed, 0x66726573686574)) // the second word is "freshet"
	if err := copyCategories(ctx, tx, c); err != nil {
		return false, err
	}
	if err := copyProducts(ctx, tx, c, random); err != nil {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, `insert into shop_seed (products, categories, seed) values ($1, $2, $3)`,
		c.Products, c.Categories, int64(c.Seed)); err != nil {
		return false, err
	}
	return false, tx.Commit()
}

// The seeded rows are from the four years before newest, so that they do not depend on when Seed runs.
func newest() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

const years = 4 * 365 * 24 * time.Hour

func copyCategories(ctx context.Context, tx *sqlx.Tx, c SeedConfig) error {
	return copyRows(ctx, tx, "categories", []string{"id", "slug", "name", "description", "created_at", "updated_at"}, c.Categories, func(i int) []string {
		d := departments[i%len(departments)]
		name := strings.TrimSpace(ranges[i/len(departments)] + " " + d.name)
		at := newest().Add(-years).Format(time.RFC3339)
		return []string{
			strconv.Itoa(i + 1), strings.ReplaceAll(strings.ToLower(name), " ", "-"), name,
			fmt.Sprintf("%s and more, for %s.", strings.Join(d.nouns[:3], ", "), d.uses[0]), at, at,
		}
	})
}

func copyProducts(ctx context.Context, tx *sqlx.Tx, c SeedConfig, random *rand.Rand) error {
	// Building the text index and checking the categories once, behind the rows, is cheaper than with each row.
	if _, err := tx.ExecContext(ctx, `
		alter table products drop constraint products_category_exists;
		drop index products_by_document`); err != nil {
		return err
	}
	maker := newProductMaker(c, random)
	columns := []string{"id", "name", "description", "category_id", "price_cents", "status", "stock", "attributes", "created_at", "updated_at"}
	if err := copyRows(ctx, tx, "products", columns, c.Products, maker.row); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `
		create index products_by_document on products using gin (document);
		alter table products add constraint products_category_exists foreign key (category_id) references categories (id)`)
	return err
}

// copyRows streams n rows into the table by COPY and moves the table's identity behind them.
func copyRows(ctx context.Context, tx *sqlx.Tx, table string, columns []string, n int, row func(i int) []string) error {
	in, err := tx.PrepareContext(ctx, fmt.Sprintf(`copy %s (%s) from stdin`, table, strings.Join(columns, ", ")))
	if err != nil {
		return err
	}
	defer in.Close()
	arguments := make([]any, len(columns))
	for i := range n {
		for k, text := range row(i) {
			arguments[k] = text
		}
		if _, err := in.ExecContext(ctx, arguments...); err != nil {
			return err
		}
	}
	if _, err := in.ExecContext(ctx); err != nil { // without arguments: the end of the data
		return err
	}
	if err := in.Close(); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `select setval(pg_get_serial_sequence($1, 'id'), $2)`, table, n)
	return err
}

// productMaker makes the rows of products, in the order of their ids.
type productMaker struct {
	random *rand.Rand
	upTo   []float64 // category index -> sum of the Zipf weights up to and with it
}

func newProductMaker(c SeedConfig, random *rand.Rand) *productMaker {
	m := &productMaker{random: random, upTo: make([]float64, c.Categories)}
	var sum float64
	for i := range m.upTo {
		sum += math.Pow(float64(i+1), -0.9)
		m.upTo[i] = sum
	}
	return m
}

func (m *productMaker) row(i int) []string {
	category := sort.SearchFloat64s(m.upTo, m.random.Float64()*m.upTo[len(m.upTo)-1])
	d := &departments[category%len(departments)]
	brand, look, noun := m.one(makers), m.one(looks), m.one(d.nouns)
	material, colour := m.one(d.materials), m.one(colours)

	name := fmt.Sprintf("%s %s %s %d", brand, look, noun, 100+m.random.IntN(900))
	description := fmt.Sprintf("%s %s in %s, made for %s.", look, strings.ToLower(noun), material, m.one(d.uses))
	if m.random.IntN(10) < 4 {
		description += " " + m.one(praises)
	}
	if m.random.IntN(10) < 6 {
		description += " " + m.one(cares)
	}
	attributes := fmt.Sprintf(`{"brand": %q, "colour": %q, "material": %q, "weight_g": "%d"}`,
		brand, colour, material, 50+10*m.random.IntN(400))
	created := newest().Add(-time.Duration(m.random.Int64N(int64(years)))).Truncate(time.Microsecond)
	updated := created.Add(time.Duration(m.random.Int64N(int64(newest().Sub(created)) + 1))).Truncate(time.Microsecond)
	return []string{
		strconv.Itoa(i + 1), name, description, strconv.Itoa(category + 1), strconv.FormatInt(m.price(d), 10),
		m.status(), strconv.Itoa(m.stock()), attributes, created.Format(time.RFC3339Nano), updated.Format(time.RFC3339Nano),
	}
}

func (m *productMaker) one(words []string) string { return words[m.random.IntN(len(words))] }

// price is log-normal around the department's median and ends in 99, in cents.
func (m *productMaker) price(d *department) int64 {
	units := math.Round(d.median * math.Exp(d.spread*m.random.NormFloat64()))
	return int64(max(units, 1))*100 - 1
}

func (m *productMaker) status() string {
	switch r := m.random.IntN(100); {
	case r < 85:
		return string(Active)
	case r < 95:
		return string(Archived)
	}
	return string(Draft)
}

// stock is nothing for every twelfth product, else geometric-like with a mean of about 40 pieces.
func (m *productMaker) stock() int {
	if m.random.IntN(12) == 0 {
		return 0
	}
	return 1 + int(m.random.ExpFloat64()*40)
}
