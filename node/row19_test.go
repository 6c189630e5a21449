package node_test

import (
	"context"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// stock is what the tests of later puts cache: a count with its audit.
type stock struct {
	ID string `json:"id"`
	N  int64  `json:"n"`
}

const (
	stockQuery = `select id, n from stock where id = any($1)`
	stockPut   = `
insert into stock (id, n) select v.id, v.n from jsonb_to_recordset($2::jsonb) v (id text, n bigint) where v.id = any($1::text[])
on conflict (id) do update set n = excluded.n`
	stockRemove = `delete from stock where id = any($1)`
)

// makeStock makes a table whose every change leaves a row in an audit, in the order of the changes of a row. It
// refuses negative numbers.
func (s *site) makeStock() {
	s.t.Helper()
	s.exec(`create table stock (id text primary key, n bigint not null check (n >= 0))`)
	s.exec(`create table audit (at bigint generated always as identity, id text not null, n bigint)`)
	s.exec(`
create function audit() returns trigger language plpgsql as $$ begin
    insert into audit (id, n) values (coalesce(new.id, old.id), new.n);
    return null;
end $$`)
	s.exec(`create trigger audit after insert or update or delete on stock for each row execute function audit()`)
}

// keeper is a replica with its cache of stock.
type keeper struct {
	*node.Node
	stock *node.Cache[stock]
}

func (s *site) keeper(change func(*node.Config, *node.CacheConfig[stock])) *keeper {
	s.t.Helper()
	c := s.config()
	cache := node.CacheConfig[stock]{
		Namespace: "stock", Source: node.SQL[stock](stockQuery), Store: node.SQLStore[stock](stockPut, stockRemove), WriteBehind: true,
	}
	if change != nil {
		change(&c, &cache)
	}
	n, err := node.Open(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			s.t.Errorf("close: %v", err)
		}
	})
	k := &keeper{Node: n}
	if k.stock, err = node.NewCache(n, cache); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := n.Ready(ctx); err != nil {
		s.t.Fatal(err)
	}
	return k
}

func (k *keeper) later(t *testing.T, id string, n int64) node.Token {
	t.Helper()
	token, err := k.stock.PutLater(t.Context(), id, stock{id, n})
	if err != nil {
		t.Fatalf("put later: %v", err)
	}
	return token
}

func TestRow19First(t *testing.T) {
	s := newSite(t)
	s.makeStock()
	k := []*keeper{s.keeper(nil), s.keeper(nil)}
	token := k[0].later(t, "a", 1)
	e, err := k[0].stock.Lookup(t.Context(), "a")
	t.Logf("%+v %v", e, err)
	e, err = k[1].stock.Lookup(t.Context(), "a", node.AtLeast(token))
	t.Logf("%+v %v", e, err)
	began := time.Now()
	for i, k := range k {
		s.until("committed", func() bool {
			e, err := k.stock.Lookup(t.Context(), "a")
			return err == nil && e.Fresh && e.Value.N == 1
		})
		t.Logf("%d after %v", i, time.Since(began))
	}
}
