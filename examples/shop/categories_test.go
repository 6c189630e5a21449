package shop_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/node"
)

// A rename is there at once for who made it; the list of all may be what it was for a while, and says so.
func TestCategoryIsWrittenThrough(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 1, Categories: 3})
	writer := c.replica(t, nil)
	reader := c.replica(t, func(config *node.Config) { config.Postgres.PollInterval = 50 * time.Millisecond })
	before, _ := get[shop.CategoryPage](t, reader, "/categories")
	old, _ := get[shop.Category](t, reader, "/categories/2")

	put := writer.do(t, "PUT", "/categories/2", `{"name": "AAA", "description": "first"}`)
	got := decode[shop.Category](t, put)
	if put.status != http.StatusOK || got.Name != "AAA" || got.Description != "first" || got.Slug != old.Slug || got.Revision != old.Revision+1 {
		t.Fatalf("%d %s", put.status, put.body)
	}
	_, a := get[shop.Category](t, writer, "/categories/2")
	if a.header.Get("Freshet-Tier") != "l1" || a.header.Get("ETag") != put.header.Get("ETag") {
		t.Errorf("after the put: %v", a.header)
	}
	// Who has no token and names no budget: the old list, and that it is old, or the new one. Never the old one as fresh.
	graced := false
	eventually(t, "the new list", func() bool {
		list, a := get[shop.CategoryPage](t, reader, "/categories")
		if strings.HasSuffix(a.header.Get("Cache-Status"), "; detail=grace") {
			graced = true
			if a.header.Get("Freshet-Fresh") != "stale" || list.Items[0].Name != before.Items[0].Name {
				t.Errorf("in the grace: %v %s", a.header, a.body)
			}
		}
		return list.Items[0].Name == "AAA"
	})
	if !graced {
		t.Error("no answer was one in its grace")
	}
	token := put.header.Get("Freshet-Token")
	if got, a := get[shop.Category](t, reader, "/categories/2", "Freshet-Token", token); got.Name != "AAA" || a.header.Get("Freshet-Fresh") != "fresh" {
		t.Errorf("with the token: %v %s", a.header, a.body)
	}

	wantProblem(t, writer.do(t, "PUT", "/categories/4", `{"name": "x"}`), http.StatusNotFound, "not-found")
	for _, body := range []string{`{}`, `{"name": ""}`, `{"name": "` + strings.Repeat("x", 101) + `"}`, `{"name": "x", "description": null}`} {
		wantProblem(t, writer.do(t, "PUT", "/categories/1", body), http.StatusUnprocessableEntity, "invalid-body")
	}
	wantProblem(t, writer.do(t, "PUT", "/categories/1", `{"name": "x", "slug": "x"}`), http.StatusBadRequest, "bad-request")
}

// Each change writes the same number to the category and to its first product.
func TestCategoryViewIsOfOneMoment(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 30, Categories: 1})
	c.exec(t, `update products set status = 'active', stock = 0`)
	c.exec(t, `update categories set description = '0'`)
	r := c.replica(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			if _, err := c.db.ExecContext(ctx, `with c as (update categories set description = $1::int::text where id = 1)
				update products set stock = $1::int where id = 1`, n); err != nil && ctx.Err() == nil {
				t.Errorf("write: %v", err)
				return
			}
		}
	})
	for n := range 150 {
		v, a := get[shop.CategoryView](t, r, "/categories/1/page", "Freshet-Budget", []string{"0", "1s"}[n%2])
		if v.Category.Description != fmt.Sprint(v.Products.Items[0].Stock) || v.Products.Total != 30 || len(v.Products.Items) != shop.DefaultLimit {
			t.Fatalf("the category is of change %s, its first product of %d", v.Category.Description, v.Products.Items[0].Stock)
		}
		if a.header.Get("Freshet-Fresh") != "fresh" || a.header.Get("Surrogate-Key") != "category:1 sale" {
			t.Fatalf("got %v", a.header)
		}
	}
	stop()
	work.Wait()
	_, a := get[shop.CategoryView](t, r, "/categories/1/page", "Freshet-Budget", "0")
	if a := r.do(t, "GET", "/categories/1/page", "", "If-None-Match", a.header.Get("ETag")); a.status != http.StatusNotModified {
		t.Errorf("got %d, want 304", a.status)
	}
	missing := r.do(t, "GET", "/categories/2/page", "")
	wantProblem(t, missing, http.StatusNotFound, "not-found")
	if missing.header.Get("Freshet-Fresh") != "fresh" {
		t.Errorf("a missing one is not labelled: %v", missing.header)
	}
}
