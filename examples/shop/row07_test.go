package shop_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// send sends a request from any goroutine, without holding the answer against openapi.yaml.
func (r *replica) send(ctx context.Context, method, path, body string, headers ...string) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, r.URL+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := r.Client().Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{status: response.StatusCode, header: response.Header, body: text}, err
}

// Row 7: details and filtered, paginated lists with their totals, under load and changes by psql, while all of Redis is
// killed: no read fails, and each list is what Postgres held at one moment.
func TestRow07ProductService(t *testing.T) {
	const products, categories = 300, 4
	c := newCatalogue(t, shop.SeedConfig{Products: products, Categories: categories})
	r := []*replica{c.replica(t, nil), c.replica(t, nil)}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	var reads, moved atomic.Int64
	wrong := func(path string, format string, args ...any) {
		if ctx.Err() == nil {
			t.Errorf("%s: %s", path, fmt.Sprintf(format, args...))
			stop()
		}
	}

	// Each change keeps the stock equal to the price: whoever mixes two moments shows it.
	c.exec(t, `update products set status = 'active', price_cents = id, stock = id`)
	work.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			if _, err := c.db.ExecContext(ctx, `update products set category_id = 1 + (category_id + $1) % $2, price_cents = $3::int, stock = $3::int where id = $4`,
				rand.IntN(categories), categories, rand.IntN(10_000), 1+rand.IntN(products)); err != nil && ctx.Err() == nil {
				t.Errorf("write: %v", err)
				return
			}
			moved.Store(int64(n))
		}
	})
	read := func(r *replica) {
		budget := []string{"0", "50ms", "1s"}[rand.IntN(3)]
		category, offset := 1+rand.IntN(categories), 10*rand.IntN(5)
		filter := []string{"", "status=active", fmt.Sprint("category=", category), fmt.Sprintf("category=%d&max_price=5000", category)}[rand.IntN(4)]
		path := fmt.Sprintf("/products?limit=20&offset=%d&%s", offset, filter)
		if rand.IntN(2) == 0 {
			path = fmt.Sprint("/products/", 1+rand.IntN(products))
		}
		a, err := r.send(ctx, http.MethodGet, path, "", "Freshet-Budget", budget)
		if err != nil || a.status != http.StatusOK || a.header.Get("Freshet-Fresh") != "fresh" {
			wrong(path, "%d %s, %v", a.status, a.body, err)
			return
		}
		reads.Add(1)
		if !strings.Contains(path, "?") {
			var p shop.Product
			if err := json.Unmarshal(a.body, &p); err != nil || p.Stock != p.PriceCents {
				wrong(path, "%+v, %v", p, err)
			}
			return
		}
		var page shop.ProductPage
		if err := json.Unmarshal(a.body, &page); err != nil {
			wrong(path, "%v", err)
			return
		}
		if !strings.Contains(path, "category") && page.Total != products {
			wrong(path, "a total of %d, want %d at all times", page.Total, products)
		}
		if want := min(page.Limit, max(page.Total-page.Offset, 0)); int64(len(page.Items)) != want {
			wrong(path, "%d items at %d of %d: of two moments", len(page.Items), page.Offset, page.Total)
		}
		for _, p := range page.Items {
			if p.Stock != p.PriceCents || strings.Contains(path, "category") && p.CategoryID != int64(category) ||
				strings.Contains(path, "max_price") && p.PriceCents > 5000 {
				wrong(path, "holds %+v", p)
			}
		}
	}
	for i := range 4 {
		work.Go(func() {
			for ctx.Err() == nil {
				read(r[i%2])
			}
		})
	}
	progress := func() {
		t.Helper()
		readGoal, moveGoal := reads.Load()+300, moved.Load()+20
		eventually(t, "reads and changes go on", func() bool { return ctx.Err() != nil || reads.Load() >= readGoal && moved.Load() >= moveGoal })
	}
	progress()
	redis := stacktest.Stack().Redis
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 40*time.Second)
		defer cancel()
		if err := redis.StartAll(ctx); err != nil {
			t.Error(err)
		}
		if err := redis.WaitReady(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := redis.KillAll(); err != nil {
		t.Fatal(err)
	}
	progress()
	stop()
	work.Wait()
	t.Logf("%d reads, %d changes", reads.Load(), moved.Load())

	// What is served in the end is what Postgres has.
	for category := range categories {
		var want, sum int64
		if err := c.db.QueryRowContext(t.Context(), `select count(*), coalesce(sum(stock) filter (where n <= 100), 0) from (
			select stock, row_number() over (order by id) n from products where category_id = $1) p`, category+1).Scan(&want, &sum); err != nil {
			t.Fatal(err)
		}
		for _, r := range r {
			page, _ := get[shop.ProductPage](t, r, fmt.Sprintf("/products?category=%d&limit=100", category+1), "Freshet-Budget", "0")
			var stock int64
			for _, p := range page.Items {
				stock += p.Stock
			}
			if page.Total != want || stock != sum {
				t.Errorf("category %d: %d products with %d pieces on its first page, want %d and %d", category+1, page.Total, stock, want, sum)
			}
		}
	}
}
