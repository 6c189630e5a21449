package shop_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/freshet-cache/freshet/examples/shop"
)

// While money moves from the price of one product to that of another, no quote of both shows half of it.
func TestQuotesAreOfOneMoment(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 10, Categories: 2})
	c.exec(t, `update products set price_cents = 5000`)
	r := c.replica(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			if _, err := c.db.ExecContext(ctx, `update products set price_cents = price_cents + case id when $1 then $2::int else -$2::int end
				where id in (1, 2)`, 1+n%2, n%50); err != nil && ctx.Err() == nil {
				t.Errorf("write: %v", err)
				return
			}
		}
	})
	for n := range 150 {
		get[shop.Product](t, r, fmt.Sprint("/products/", 1+n%2), "Freshet-Budget", "0") // one of the two is newer now
		q, a := get[shop.Quote](t, r, "/quotes?product=2&product=1", "Freshet-Budget", []string{"0", "1s", "1s"}[n%3])
		if q.TotalCents != 10_000 || len(q.Items) != 2 || q.Items[0].ProductID != 2 || q.Items[0].PriceCents+q.Items[1].PriceCents != q.TotalCents ||
			a.header.Get("Freshet-Fresh") != "fresh" || a.header.Get("Surrogate-Key") != "product:2 product:1" {
			t.Fatalf("got %+v %v", q, a.header)
		}
	}
}

func TestQuoteIsAnEntry(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 10})
	r, other := c.replica(t, nil), c.replica(t, nil)
	_, a := get[shop.Quote](t, r, "/quotes?product=1&product=2")
	if a := other.do(t, "GET", "/quotes?product=1&product=2", "", "If-None-Match", a.header.Get("ETag")); a.status != http.StatusNotModified {
		t.Errorf("another replica: %d %v", a.status, a.header)
	}
	if _, a := get[shop.Quote](t, r, "/quotes?product=1&product=2"); a.header.Get("Freshet-Tier") != "l1" {
		t.Errorf("the second came from %s", a.header.Get("Freshet-Tier"))
	}
	c.exec(t, `update products set price_cents = price_cents + 1 where id = 2`)
	if a := r.do(t, "GET", "/quotes?product=1&product=2", "", "If-None-Match", a.header.Get("ETag"), "Freshet-Budget", "0"); a.status != http.StatusOK {
		t.Errorf("after a change: %d", a.status)
	}
}

func TestBadQuotes(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 100}).replica(t, nil)
	ids := url.Values{}
	for id := range 100 {
		ids.Add("product", fmt.Sprint(id+1))
	}
	if q, _ := get[shop.Quote](t, r, "/quotes?"+ids.Encode()); len(q.Items) != 100 {
		t.Errorf("got %d items", len(q.Items))
	}
	p := wantProblem(t, r.do(t, "GET", "/quotes?product=1&product=101&product=2&product=102", ""), http.StatusNotFound, "not-found")
	if len(p.Errors) != 2 || !strings.HasSuffix(p.Errors[0].Detail, " 101") || !strings.HasSuffix(p.Errors[1].Detail, " 102") {
		t.Errorf("got %+v", p)
	}
	for query, faults := range map[string]int{
		"": 1, "product=0": 1, "product=x&product=-1": 2, "product=1&product=01": 1, "product=1&x=2": 1, ids.Encode() + "&product=101": 1,
	} {
		if p := wantProblem(t, r.do(t, "GET", "/quotes?"+query, ""), http.StatusBadRequest, "bad-request"); len(p.Errors) != faults {
			t.Errorf("%s: %+v, want %d faults", query, p.Errors, faults)
		}
	}
}
