package shop_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// behind lets nobody flush: what is put stays pending.
func behind(config *node.Config) { config.WriteBehind.Flushers = -1 }

func TestCartIsWrittenBehind(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 3})
	writer, reader := c.replica(t, behind), c.replica(t, behind)
	const path, lines = "/carts/a-Z_9", `{"lines": [{"product_id": 3, "quantity": 2}, {"product_id": 1, "quantity": 1}]}`
	want := shop.Cart{ID: "a-Z_9", Lines: shop.CartLines{{ProductID: 3, Quantity: 2}, {ProductID: 1, Quantity: 1}}}

	put := writer.do(t, "PUT", path, lines)
	if got := decode[shop.Cart](t, put); put.status != http.StatusAccepted || put.header.Get("Freshet-Pending") != "true" || !slices.Equal(got.Lines, want.Lines) {
		t.Fatalf("put: %d %v %s", put.status, put.header, put.body)
	}
	token := put.header.Get("Freshet-Token")
	got, a := get[shop.Cart](t, reader, path, "Freshet-Token", token)
	if got.ID != want.ID || !slices.Equal(got.Lines, want.Lines) || a.header.Get("Freshet-Pending") != "true" || a.header.Get("Freshet-Fresh") != "stale" ||
		a.header.Get("ETag") != "" || a.header.Get("Cache-Status") != "freshet-l1; hit; detail=pending" {
		t.Errorf("pending: %v %s", a.header, a.body)
	}
	var there int
	if err := c.db.GetContext(t.Context(), &there, `select count(*) from carts`); err != nil || there != 0 {
		t.Errorf("%d carts in Postgres, %v; want none yet", there, err)
	}

	c.replica(t, nil) // flushes what the others have put
	eventually(t, "the cart is in Postgres", func() bool {
		got, a = get[shop.Cart](t, reader, path, "Freshet-Token", token)
		return a.header.Get("Freshet-Pending") == ""
	})
	if !slices.Equal(got.Lines, want.Lines) || a.header.Get("Freshet-Fresh") != "fresh" || a.header.Get("ETag") == "" || a.header.Get("Surrogate-Key") != "cart:a-Z_9" {
		t.Errorf("committed: %v %s", a.header, a.body)
	}
	if a := reader.do(t, "GET", path, "", "If-None-Match", a.header.Get("ETag")); a.status != http.StatusNotModified {
		t.Errorf("got %d, want 304", a.status)
	}
	// A change in psql shows, too.
	c.exec(t, `update carts set lines = '[]' where id = 'a-Z_9'`)
	if got, _ := get[shop.Cart](t, reader, path, "Freshet-Budget", "0"); len(got.Lines) != 0 || got.Lines == nil {
		t.Errorf("got %+v", got)
	}

	removed := reader.do(t, "DELETE", path, "", "Freshet-Token", token)
	if removed.status != http.StatusAccepted || len(removed.body) != 0 {
		t.Errorf("delete: %d %s", removed.status, removed.body)
	}
	wantProblem(t, writer.do(t, "GET", path, "", "Freshet-Token", removed.header.Get("Freshet-Token")), http.StatusNotFound, "not-found")
}

// Carts are taken while Postgres is away.
func TestCartIsTakenWithoutPostgres(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 1})
	r := c.replica(t, eager)
	wantProblem(t, r.do(t, "GET", "/carts/x", ""), http.StatusNotFound, "not-found")
	postgres := stacktest.Stack().Postgres
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	put := r.do(t, "PUT", "/carts/x", `{"lines": [{"product_id": 1, "quantity": 7}]}`)
	pending := r.do(t, "GET", "/carts/x", "", "Freshet-Token", put.header.Get("Freshet-Token"))
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if put.status != http.StatusAccepted || pending.status != http.StatusOK || pending.header.Get("Freshet-Pending") != "true" {
		t.Errorf("put: %d %s; read: %d %s", put.status, put.body, pending.status, pending.body)
	}
	eventually(t, "the cart is in Postgres", func() bool {
		var quantity int
		err := c.db.GetContext(t.Context(), &quantity, `select (lines->0->>'quantity')::int from carts where id = 'x'`)
		return err == nil && quantity == 7
	})
	eventually(t, "reads and writes after recovery", func() bool {
		return r.do(t, "GET", "/carts/y", "", "Freshet-Budget", "0").status == http.StatusNotFound &&
			r.do(t, "PATCH", "/products/1", `{"stock": 1}`).status == http.StatusOK
	})
}

func TestCartIsWrittenThroughWithoutNATS(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 1}).serve(t, shop.Options{})
	if a := r.do(t, "PUT", "/carts/x", `{"lines": []}`); a.status != http.StatusOK || a.header.Get("Freshet-Pending") != "" {
		t.Errorf("put: %d %s", a.status, a.body)
	}
	if _, a := get[shop.Cart](t, r, "/carts/x"); a.header.Get("Freshet-Fresh") != "fresh" {
		t.Errorf("got %v", a.header)
	}
	if a := r.do(t, "DELETE", "/carts/x", ""); a.status != http.StatusNoContent {
		t.Errorf("delete: %d %s", a.status, a.body)
	}
	wantProblem(t, r.do(t, "GET", "/carts/x", ""), http.StatusNotFound, "not-found")
}

func TestBadCarts(t *testing.T) {
	r := newCatalogue(t, shop.SeedConfig{Products: 1}).replica(t, nil)
	line := func(n int) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprintf(`{"product_id": %d, "quantity": 1000}`, i+1))
		}
		return lines
	}
	if a := r.do(t, "PUT", "/carts/x", `{"lines": [`+strings.Join(line(100), ",")+`]}`); a.status != http.StatusAccepted {
		t.Errorf("100 lines: %d %s", a.status, a.body)
	}
	for _, body := range []string{
		`{}`, `{"lines": null}`, `{"lines": {}}`, `{"lines": [1]}`, `{"lines": [{"product_id": 1}]}`, `{"lines": [{"quantity": 1}]}`,
		`{"lines": [{"product_id": 1, "quantity": 1001}]}`, `{"lines": [{"product_id": 1, "quantity": 1, "price_cents": 1}]}`,
		`{"lines": [` + strings.Join(line(101), ",") + `]}`, `{"lines": [{"product_id": 1, "quantity": 1}, {"product_id": 1, "quantity": 1}]}`,
	} {
		if p := wantProblem(t, r.do(t, "PUT", "/carts/x", body), http.StatusUnprocessableEntity, "invalid-body"); len(p.Errors) != 1 || p.Errors[0].Pointer != "/lines" {
			t.Errorf("%s: %+v", body, p)
		}
	}
	wantProblem(t, r.do(t, "PUT", "/carts/x", `{"lines": [], "id": "y"}`), http.StatusBadRequest, "bad-request")
	for _, path := range []string{"/carts/a.b", "/carts/" + strings.Repeat("x", 65), "/carts/x?y=1"} {
		wantProblem(t, r.do(t, "PUT", path, `{"lines": []}`), http.StatusBadRequest, "bad-request")
	}
}
