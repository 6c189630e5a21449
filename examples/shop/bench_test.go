package shop_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// BenchmarkHandler is a request whose answer is in L1, without the network: what the API adds to the cache.
func BenchmarkHandler(b *testing.B) {
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(b.Context(), "shop_bench")
	if err != nil {
		b.Fatal(err)
	}
	db, err := sqlx.Open("postgres", dsn)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if err := coherence.Migrate(b.Context(), db.DB); err != nil {
		b.Fatal(err)
	}
	if err := shop.Migrate(b.Context(), db); err != nil {
		b.Fatal(err)
	}
	if err := shop.Seed(b.Context(), db, shop.SeedConfig{Products: 1000}); err != nil {
		b.Fatal(err)
	}
	n, err := node.Open(b.Context(), node.Config{App: "shop-bench", Postgres: node.PostgresConfig{DSN: dsn}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	api, err := shop.New(n, shop.Options{})
	if err != nil {
		b.Fatal(err)
	}
	handler := api.Handler()
	for name, path := range map[string]string{"detail": "/products/1", "list": "/products?category=1&limit=20"} {
		b.Run(name, func(b *testing.B) {
			request := httptest.NewRequestWithContext(b.Context(), http.MethodGet, path, nil)
			b.ReportAllocs()
			for b.Loop() {
				recorder := httptest.NewRecorder()
				handler.ServeHTTP(recorder, request)
				if recorder.Code != http.StatusOK {
					b.Fatalf("%d %s", recorder.Code, recorder.Body)
				}
			}
		})
	}
}
