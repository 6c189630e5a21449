package nodehttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// An API whose requests are measured, whose answers say where they came from, and whose clients read their own writes
// on whichever replica they come to.
func Example() {
	run := func(ctx context.Context, dsn string) error {
		registry := prometheus.NewRegistry()
		n, err := node.Open(ctx, node.Config{App: "shop", Postgres: node.PostgresConfig{DSN: dsn}, Registry: registry})
		if err != nil {
			return err
		}
		defer n.Close()
		products, err := node.NewCache(n, node.CacheConfig[Thing]{
			Namespace: "product", Source: node.SQL[Thing](`select id, name from products where id = any($1)`),
		})
		if err != nil {
			return err
		}
		middleware, err := nodehttp.New(nodehttp.Config{Registry: registry, Cookie: "shop-session"})
		if err != nil {
			return err
		}

		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		mux.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
			s, err := nodehttp.SessionOf(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			e, err := products.Lookup(r.Context(), r.PathValue("id"), s.Options()...)
			nodehttp.Note(r.Context(), e)
			switch {
			case errors.Is(err, node.ErrNotFound):
				http.NotFound(w, r)
			case err != nil:
				http.Error(w, "try again", http.StatusServiceUnavailable)
			default:
				_ = json.NewEncoder(w).Encode(e.Value)
			}
		})
		mux.HandleFunc("POST /products/{id}/name", func(w http.ResponseWriter, r *http.Request) {
			token, err := n.Write(r.Context(), func(tx *node.Tx) error {
				_, err := tx.ExecContext(r.Context(), `update products set name = $2 where id = $1`, r.PathValue("id"), r.FormValue("name"))
				return err
			})
			if err != nil {
				http.Error(w, "try again", http.StatusServiceUnavailable)
				return
			}
			nodehttp.NoteToken(r.Context(), token)
			w.WriteHeader(http.StatusNoContent)
		})
		server := http.Server{Addr: "127.0.0.1:8080", Handler: middleware.Handler(mux)}
		return server.ListenAndServe()
	}
	_ = run
}
