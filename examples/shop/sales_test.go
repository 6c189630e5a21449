package shop_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/examples/shop"
)

// A sale begins and ends by time alone: nobody writes then, and no answer that was cached before is left.
func TestSaleBeginsAndEndsByItself(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 20, Categories: 2})
	c.exec(t, `update products set price_cents = 1000, category_id = 1 where id = 3`)
	r, other := c.replica(t, nil), c.replica(t, nil)
	shown := func(r *replica) (sale *int64, inLists bool, quoted int64) {
		p, _ := get[shop.Product](t, r, "/products/3")
		inLists = true
		for _, path := range []string{"/products?limit=100", "/products?category=1&limit=100"} {
			list, _ := get[shop.ProductPage](t, r, path)
			for _, item := range list.Items {
				if item.ID == 3 && (item.SalePriceCents == nil) != (p.SalePriceCents == nil) {
					inLists = false
				}
			}
		}
		q, _ := get[shop.Quote](t, r, "/quotes?product=3")
		return p.SalePriceCents, inLists, q.TotalCents
	}
	if sale, _, quoted := shown(other); sale != nil || quoted != 1000 {
		t.Fatalf("before the sale: %v, quoted %d", sale, quoted)
	}

	put := r.do(t, "POST", "/products/3/sale", `{"price_cents": 700, "starts_in": "1s", "lasts": "2s"}`)
	if s := decode[shop.Sale](t, put); put.status != http.StatusOK || s.ProductID != 3 || s.PriceCents != 700 || s.Ends.Sub(s.Starts) != 2*time.Second {
		t.Fatalf("%d %s", put.status, put.body)
	}
	if p, _ := get[shop.Product](t, other, "/products/3", "Freshet-Token", put.header.Get("Freshet-Token")); p.SalePriceCents != nil || p.PriceCents != 1000 {
		t.Errorf("a second before the sale: %+v", p)
	}
	// The product's next list is tagged for its sale, too, wherever the product went meanwhile.
	c.exec(t, `update products set category_id = 2 where id = 3`)
	c.exec(t, `update products set category_id = 1 where id = 3`)
	for _, r := range []*replica{r, other} {
		eventually(t, "the sale is on", func() bool {
			sale, inLists, quoted := shown(r)
			return sale != nil && *sale == 700 && inLists && quoted == 700
		})
	}
	for _, r := range []*replica{r, other} {
		eventually(t, "the sale is over", func() bool {
			sale, inLists, quoted := shown(r)
			return sale == nil && inLists && quoted == 1000
		})
	}

	// One that begins now shows at once, and one by SQL, too.
	now := r.do(t, "POST", "/products/3/sale", `{"price_cents": 0, "lasts": "1h"}`)
	if p, _ := get[shop.Product](t, other, "/products/3", "Freshet-Token", now.header.Get("Freshet-Token")); p.SalePriceCents == nil || *p.SalePriceCents != 0 {
		t.Errorf("after a sale that begins now: %+v", p)
	}
	c.exec(t, `delete from sales`)
	if list, _ := get[shop.ProductPage](t, other, "/products?category=1&limit=100", "Freshet-Budget", "0"); list.Items[0].SalePriceCents != nil {
		t.Errorf("after the sale was deleted: %+v", list.Items[0])
	}
}

func TestBadSales(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 1}).replica(t, nil)
	for body, pointers := range map[string][]string{
		`{}`: {"/price_cents", "/lasts"},
		`{"price_cents": -1, "lasts": "999ms", "starts_in": "-1s"}`:        {"/price_cents", "/starts_in", "/lasts"},
		`{"price_cents": 1, "lasts": 5}`:                                   {"/lasts"},
		`{"price_cents": 1, "lasts": "", "starts_in": null}`:               {"/starts_in", "/lasts"},
		`{"price_cents": 1, "lasts": "1441h"}`:                             {"/lasts"},
		`{"price_cents": 10000000001, "lasts": "1h", "starts_in": "soon"}`: {"/price_cents", "/starts_in"},
	} {
		p := wantProblem(t, r.do(t, "POST", "/products/1/sale", body), http.StatusUnprocessableEntity, "invalid-body")
		var got []string
		for _, f := range p.Errors {
			got = append(got, f.Pointer)
		}
		if !slices.Equal(got, pointers) {
			t.Errorf("%s: got %q, want %q", body, got, pointers)
		}
	}
	wantProblem(t, r.do(t, "POST", "/products/1/sale", `{"price_cents": 1, "lasts": "1h", "ends": 1}`), http.StatusBadRequest, "bad-request")
	wantProblem(t, r.do(t, "POST", "/products/2/sale", `{"price_cents": 1, "lasts": "1h"}`), http.StatusNotFound, "not-found")
	wantProblem(t, r.do(t, "PATCH", "/products/1", `{"sale_price_cents": 1}`), http.StatusUnprocessableEntity, "invalid-product")
}
