package shop_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// Row 8: the routes of the API, all of them by each of several clients at once, each request at another replica than the
// one before, while NATS goes and comes back: whoever carries the token reads what he wrote, errors are problems, and
// nothing fails. What each route says in detail is in read_test.go and write_test.go.
func TestRow08ProductAPI(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 20, Categories: 3})
	r := []*replica{c.replica(t, nil), c.replica(t, nil)}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	var lives atomic.Int64
	for client := range 3 {
		work.Go(func() {
			defer stop() // the others need not go on when one has seen a fault
			for n := 0; ctx.Err() == nil; n++ {
				if err := live(ctx, r, client, n); err != nil {
					if ctx.Err() == nil {
						t.Errorf("client %d, product %d: %v", client, n, err)
					}
					return
				}
				lives.Add(1)
			}
		})
	}
	progress := func() {
		t.Helper()
		goal := lives.Load() + 20
		eventually(t, "clients go on", func() bool { return ctx.Err() != nil || lives.Load() >= goal })
	}
	progress()
	nats := stacktest.Stack().NATS
	if err := nats.Stop(); err != nil {
		t.Fatal(err)
	}
	progress()
	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}
	progress()
	stop()
	work.Wait()
	t.Logf("%d products lived", lives.Load())
	if page, _ := get[shop.ProductPage](t, r[0], "/products?limit=1", "Freshet-Budget", "0"); page.Total > 20+3 {
		t.Errorf("%d products are left, want the 20 that were there and the clients' last at most", page.Total)
	}
}

// live is the life of one product: it is made, found, listed, changed, found changed, deleted, and gone.
func live(ctx context.Context, replicas []*replica, client, n int) error {
	token, step := "", client
	var last answer
	// do sends the next request to the next replica and holds the answer against the status.
	do := func(want int, method, path, body string, headers ...string) error {
		step++
		var err error
		last, err = replicas[step%len(replicas)].send(ctx, method, path, body, append(headers, "Freshet-Token", token)...)
		if err != nil {
			return err
		}
		if last.status != want {
			return fmt.Errorf("%s %s: %d %s, want %d", method, path, last.status, last.body, want)
		}
		if t := last.header.Get("Freshet-Token"); t != "" {
			token = t
		}
		return nil
	}
	product := func(price int64) error {
		var p shop.Product
		if err := json.Unmarshal(last.body, &p); err != nil || p.PriceCents != price {
			return fmt.Errorf("%s: want the price %d (%w)", last.body, price, err)
		}
		return nil
	}
	name := fmt.Sprintf("zeppelin %d %d", client, n)
	category := 1 + client%3
	list := fmt.Sprintf("/products?category=%d&search=zeppelin+%d+%d&status=active&min_price=1&max_price=9", category, client, n)
	listed := func(total int64) error {
		var page shop.ProductPage
		if err := json.Unmarshal(last.body, &page); err != nil || page.Total != total || int64(len(page.Items)) != total {
			return fmt.Errorf("%s: %s: want %d (%w)", list, last.body, total, err)
		}
		return nil
	}

	if err := do(http.StatusCreated, "POST", "/products", fmt.Sprintf(`{"name": %q, "category_id": %d, "price_cents": 5}`, name, category)); err != nil {
		return err
	}
	path := last.header.Get("Location")
	if _, err := strconv.Atoi(strings.TrimPrefix(path, "/products/")); err != nil {
		return fmt.Errorf("Location: %q", path)
	}
	for _, next := range []func() error{
		func() error { return do(http.StatusOK, "GET", path, "") },
		func() error { return product(5) },
		func() error {
			return do(http.StatusNotModified, "GET", path, "", "If-None-Match", last.header.Get("ETag"))
		},
		func() error { return do(http.StatusOK, "GET", list, "") },
		func() error { return listed(1) },
		func() error { return do(http.StatusOK, "GET", path, "") },
		func() error {
			return do(http.StatusOK, "PATCH", path, `{"price_cents": 7}`, "If-Match", last.header.Get("ETag"))
		},
		func() error { return do(http.StatusOK, "GET", path, "") },
		func() error { return product(7) },
		func() error {
			return do(http.StatusPreconditionFailed, "PATCH", path, `{"price_cents": 8}`, "If-Match", `"0000000000000000"`)
		},
		func() error { return do(http.StatusBadRequest, "GET", "/products?limit=101", "") },
		func() error { return do(http.StatusNoContent, "DELETE", path, "") },
		func() error { return do(http.StatusNotFound, "GET", path, "") },
		func() error { return do(http.StatusOK, "GET", list, "") },
		func() error { return listed(0) },
	} {
		if err := next(); err != nil {
			return err
		}
	}
	return nil
}
