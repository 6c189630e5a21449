package shop

import (
	"context"
	"database/sql"
	"errors"

	"github.com/freshet-cache/freshet/node"
)

// The triggers of freshet.watch log these changes: none of them has to name what it invalidates.

// insertProduct stores p and completes it by what Postgres chose.
func insertProduct(ctx context.Context, tx *node.Tx, p *Product) error {
	return known(tx.GetContext(ctx, p, `
		insert into products (name, description, category_id, price_cents, status, stock, attributes)
		values ($1, $2, $3, $4, $5, $6, $7) returning `+productColumns,
		p.Name, p.Description, p.CategoryID, p.PriceCents, p.Status, p.Stock, p.Attributes))
}

// lockProduct reads the product for a change in tx. revision is the one that it must have; 0 = any.
func lockProduct(ctx context.Context, tx *node.Tx, id string, revision int64) (p Product, err error) {
	err = tx.GetContext(ctx, &p, `select `+productColumns+` from products where id = $1::bigint for update`, id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return p, notFound("There is nothing with this id.")
	case err != nil:
		return p, err
	case revision != 0 && revision != p.Revision:
		return p, preconditionFailed()
	}
	return p, nil
}

func updateProduct(ctx context.Context, tx *node.Tx, p *Product) error {
	return known(tx.GetContext(ctx, p, `
		update products set name = $2, description = $3, category_id = $4, price_cents = $5, status = $6, stock = $7, attributes = $8
		where id = $1 returning `+productColumns,
		p.ID, p.Name, p.Description, p.CategoryID, p.PriceCents, p.Status, p.Stock, p.Attributes))
}

func deleteProduct(ctx context.Context, tx *node.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `delete from products where id = $1::bigint`, id)
	return err
}

// known tells the client when the category of its product does not exist.
func known(err error) error {
	if sqlState(err) == "23503" { // foreign_key_violation
		return invalidBody([]fault{{Pointer: "/category_id", Detail: "there is no category with this id: see /categories"}})
	}
	return err
}
