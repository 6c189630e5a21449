package replay_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replay"
	"github.com/freshet-cache/freshet/internal/trace"
)

func TestMain(m *testing.M) { stacktest.Main(m, devstack.Options{Postgres: true}) }

const products = 500

// schema is what a replay needs of the shop's.
const schema = `
create table categories (id bigint primary key);
insert into categories select generate_series(1, 10);
create table products (
	id bigint primary key, category_id bigint not null, price_cents bigint not null default 0, revision bigint not null default 1
);
create index on products (category_id, id);
insert into products select n, n % 10 + 1 from generate_series(1, 500) n;
create function touch() returns trigger language plpgsql as $$
begin new.revision := old.revision + 1; return new; end $$;
create trigger touch before update on products for each row execute function touch();
`

// shop speaks the HTTP of examples/shop, straight from Postgres and therefore always right, unless a
// test makes it lie. It has three replicas and a balancer, and one process for all.
type shop struct {
	db       *sql.DB
	front    *httptest.Server
	replicas []*shopReplica
	turn     atomic.Uint64
	requests atomic.Uint64

	// What a test may change, before requests come.
	before func(http.ResponseWriter, *http.Request) bool // true = it has answered
	cached time.Duration                                 // answers are kept that long, and called fresh; 0 = not at all
	forget bool                                          // PATCH is acknowledged and rolled back
}

type shopReplica struct {
	shop   *shop
	id     string
	server *httptest.Server
	hits   atomic.Uint64
	loads  atomic.Uint64

	mu    sync.Mutex
	cache map[int64]cached
}

type cached struct {
	product row
	at      time.Time
}

type row struct {
	ID       int64 `json:"id"`
	Revision int64 `json:"revision"`
}

func newShop(t *testing.T) *shop {
	t.Helper()
	dsn, err := stacktest.Stack().Postgres.CreateDatabase(t.Context(), strings.ToLower(strings.NewReplacer("/", "_", " ", "_").Replace(t.Name())))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	t.Cleanup(func() { db.Close() })
	if _, err := db.ExecContext(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	s := &shop{db: db}
	for i := range 3 {
		r := &shopReplica{shop: s, id: fmt.Sprint("replica-", i+1), cache: make(map[int64]cached)}
		r.server = httptest.NewServer(r)
		t.Cleanup(r.server.Close)
		s.replicas = append(s.replicas, r)
	}
	s.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.replicas[s.turn.Add(1)%3].ServeHTTP(w, r)
	}))
	t.Cleanup(s.front.Close)
	return s
}

// config is a short lively run against the shop.
func (s *shop) config(t *testing.T) replay.Config {
	t.Helper()
	zipf, err := trace.NewZipf(1000, trace.Theta, 1)
	if err != nil {
		t.Fatal(err)
	}
	return replay.Config{
		Targets: []string{s.front.URL}, Replicas: s.running, DB: s.db, Source: zipf,
		Rate: 400, Duration: 1500 * time.Millisecond, Writes: 0.1, Seed: 1,
	}
}

func (s *shop) running() []replay.Replica {
	var all []replay.Replica
	for _, r := range s.replicas {
		address := r.server.Listener.Addr().String()
		all = append(all, replay.Replica{ID: r.id, API: address, Admin: address})
	}
	return all
}

func (r *shopReplica) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("Freshet-Replica", r.id)
	if req.URL.Path == "/admin/v1/stats" {
		fmt.Fprintf(w, `{"ID":%q,"Boot":1,"Namespaces":[{"l1_hits":%d,"loads":%d}]}`, r.id, r.hits.Load(), r.loads.Load())
		return
	}
	r.shop.requests.Add(1)
	if r.shop.before != nil && r.shop.before(w, req) {
		return
	}
	var answer any
	var err error
	id, _ := strconv.ParseInt(strings.TrimPrefix(req.URL.Path, "/products/"), 10, 64)
	switch {
	case req.Method == http.MethodPatch:
		var revision int64
		revision, err = r.patch(req, id)
		answer = row{id, revision}
		h.Set("Freshet-Token", "t")
	case req.URL.Path == "/products":
		answer, err = r.list(req)
		h.Set("Freshet-Fresh", "fresh")
	default:
		h.Set("Freshet-Fresh", "fresh")
		h.Set("Freshet-Token", "t")
		answer, err = r.read(req.Context(), h, id)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		http.Error(w, "{}", http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

func (r *shopReplica) read(ctx context.Context, h http.Header, id int64) (row, error) {
	r.mu.Lock()
	kept, found := r.cache[id]
	r.mu.Unlock()
	if found && time.Since(kept.at) < r.shop.cached {
		h.Set("Freshet-Tier", "l1")
		r.hits.Add(1)
		return kept.product, nil
	}
	h.Set("Freshet-Tier", "source")
	r.loads.Add(1)
	p := row{ID: id}
	now := time.Now()
	if err := r.shop.db.QueryRowContext(ctx, "select revision from products where id = $1", id).Scan(&p.Revision); err != nil {
		return row{}, err
	}
	r.mu.Lock()
	r.cache[id] = cached{p, now}
	r.mu.Unlock()
	return p, nil
}

func (r *shopReplica) list(req *http.Request) (map[string][]row, error) {
	rows, err := r.shop.db.QueryContext(req.Context(), "select id, revision from products where category_id = $1 order by id limit 20", req.FormValue("category"))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	page := []row{}
	for rows.Next() {
		var p row
		if err := rows.Scan(&p.ID, &p.Revision); err != nil {
			return nil, err
		}
		page = append(page, p)
	}
	return map[string][]row{"items": page}, rows.Err()
}

func (r *shopReplica) patch(req *http.Request, id int64) (revision int64, err error) {
	var change struct {
		Price int64 `json:"price_cents"`
	}
	if err := json.NewDecoder(req.Body).Decode(&change); err != nil {
		return 0, err
	}
	tx, err := r.shop.db.BeginTx(req.Context(), nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	err = tx.QueryRowContext(req.Context(), "update products set price_cents = $2 where id = $1 returning revision", id, change.Price).Scan(&revision)
	if err != nil || r.shop.forget {
		return revision, err
	}
	return revision, tx.Commit()
}
