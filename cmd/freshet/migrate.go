package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver "postgres"
	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/examples/shop"
)

func newMigrate() *cobra.Command {
	var postgres string
	var withShop bool
	var products int
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring a database's schemas up to date",
		Long: `Bring the schema "freshet" of a database up to date: the log of changes and the
functions freshet.watch, freshet.invalidate and freshet.invalidate_tag. With --shop,
also the example's tables, and with --products their seeded contents.

Running it again changes nothing, and several may run at once. The role needs the
right to create a schema.`,
		Example: `  freshet migrate --postgres postgres://shop@db/shop
  freshet migrate --postgres postgres://shop@db/shop --shop --products 100000`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var problems []error
			if postgres == "" {
				problems = append(problems, errors.New("--postgres: missing; want the DSN, such as postgres://user@host:5432/shop"))
			}
			if products < 0 || products > maxProducts {
				problems = append(problems, fmt.Errorf("--products: %d; want 0 to %d", products, maxProducts))
			}
			if products > 0 && !withShop {
				problems = append(problems, errors.New("--products: only together with --shop, which makes the tables"))
			}
			if err := errors.Join(problems...); err != nil {
				return usage(err)
			}
			return migrate(cmd.Context(), postgres, withShop, products)
		},
	}
	f := cmd.Flags()
	f.StringVar(&postgres, "postgres", "", "DSN of the database (required)")
	f.BoolVar(&withShop, "shop", false, "also make the tables of the example shop")
	f.IntVar(&products, "products", 0, "with --shop: fill an empty catalogue with so many products")
	return cmd
}

// maxProducts bounds a seeded catalogue: the checker remembers each product.
const maxProducts = 1_000_000

func migrate(ctx context.Context, dsn string, withShop bool, products int) (err error) {
	db, err := sqlx.Open("postgres", dsn)
	if err != nil {
		return fmt.Errorf("--postgres: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := coherence.Migrate(ctx, db.DB); err != nil {
		return err
	}
	if !withShop {
		return nil
	}
	if err := shop.Migrate(ctx, db); err != nil {
		return err
	}
	if products == 0 {
		return nil
	}
	return shop.Seed(ctx, db, shop.SeedConfig{Products: products})
}
