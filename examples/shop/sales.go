package shop

import (
	"net/http"
	"time"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// Sale is a lower price of a product for a time. A product has one: a new one takes the place of the one before.
type Sale struct {
	ProductID  int64     `json:"product_id" db:"product_id"`
	PriceCents int64     `json:"price_cents" db:"price_cents"`
	Starts     time.Time `json:"starts" db:"starts"`
	Ends       time.Time `json:"ends" db:"ends"`
}

// The bounds of a sale.
const (
	maxSaleDelay = 60 * 24 * time.Hour
	minSale      = time.Second
	maxSale      = 60 * 24 * time.Hour
)

func (a *API) putSale(w http.ResponseWriter, r *http.Request, _ session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	fields, err := readObject(w, r, a.timeout, "Accept-Post", "application/json")
	if err != nil {
		return err
	}
	var price int64
	var startsIn, lasts time.Duration
	if err := readFields(fields,
		field{name: "price_cents", required: true, read: integerOf(&price, 0, maxPriceCents)},
		field{name: "starts_in", read: durationOf(&startsIn, 0, maxSaleDelay)},
		field{name: "lasts", required: true, read: durationOf(&lasts, minSale, maxSale)},
	); err != nil {
		return err
	}
	ctx := r.Context()
	var sale Sale
	token, err := a.node.Write(ctx, func(tx *node.Tx) error {
		// The trigger logs this change. Nobody writes when the sale begins and ends: both are scheduled, by the clock
		// of Postgres, and counted from after now(), so that whoever reloads by then sees the other price.
		err := tx.GetContext(ctx, &sale, `
			insert into sales (product_id, price_cents, starts, ends)
			values ($1::bigint, $2, now() + make_interval(secs => $3), now() + make_interval(secs => $4))
			on conflict (product_id) do update set price_cents = excluded.price_cents, starts = excluded.starts, ends = excluded.ends
			returning product_id, price_cents, starts at time zone 'UTC' as starts, ends at time zone 'UTC' as ends`,
			id, price, startsIn.Seconds(), (startsIn + lasts).Seconds())
		if sqlState(err) == "23503" { // foreign_key_violation
			return notFound("There is nothing with this id.")
		}
		for _, d := range []time.Duration{startsIn, startsIn + lasts} {
			if err == nil && d > 0 {
				err = priceChanges(tx, id, d)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	nodehttp.NoteToken(r.Context(), token)
	w.Header().Set("Cache-Control", "no-store")
	return a.send(w, http.StatusOK, sale)
}

// priceChanges schedules that the product, and every list, counts as changed.
func priceChanges(tx *node.Tx, id string, in time.Duration) error {
	if err := tx.Invalidate("product", []string{id}, node.After(in)); err != nil {
		return err
	}
	return tx.InvalidateTag([]string{"sale"}, node.After(in))
}

// cost is what the product costs now.
func (p *Product) cost() int64 {
	if p.SalePriceCents != nil {
		return *p.SalePriceCents
	}
	return p.PriceCents
}
