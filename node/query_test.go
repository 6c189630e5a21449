package node_test

import (
	"errors"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// I1: a query that had no result has one after a change of what it depends on, on the replica that asked
// first and on one that finds its answer in L2.
func TestI1QueryWithoutAResult(t *testing.T) {
	s := newSite(t)
	replicas := s.openReady(2)
	var queries []*node.QueryCache[Thing]
	for _, r := range replicas {
		q, err := node.NewQueryCache(r.Node, node.QueryConfig[Thing]{
			Namespace: "thing", View: "of-kind",
			Query: func(p cluster.Params) (string, []any, error) {
				return `select to_json(t) from things t where kind = $1`, []any{p["kind"]}, nil
			},
			Tags: func(p cluster.Params, _ Thing) []string { return []string{"kind:" + p["kind"]} },
		})
		if err != nil {
			t.Fatal(err)
		}
		queries = append(queries, q)
	}
	unheard := cluster.Params{"kind": "unheard-of"}
	for _, q := range queries {
		if e, err := q.Lookup(t.Context(), unheard); !errors.Is(err, node.ErrNotFound) {
			t.Fatalf("before: %+v, %v", e, err)
		}
	}
	s.exec(`insert into things (id, name, kind) values ('first', 'the first', 'unheard-of')`)
	for n, q := range queries {
		if e, err := q.Lookup(t.Context(), unheard, node.Within(0)); err != nil || e.Value.ID != "first" {
			t.Errorf("replica %d after the insert: %+v, %v", n, e, err)
		}
	}
}

// A query's column may change its type while the query is prepared.
func TestQueryColumnChangesItsType(t *testing.T) {
	s := newSite(t)
	r := s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Postgres.MaxConns = 1 })
	s.ready(r)
	s.exec(`create table documents (id text primary key, body json)`)
	s.exec(`insert into documents values ('a', '{"name": "old"}')`)
	q, err := node.NewQueryCache(r.Node, node.QueryConfig[Thing]{
		Namespace: "document", View: "body",
		Query: func(p cluster.Params) (string, []any, error) {
			return `select body from documents where id = $1`, []any{p["id"]}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := q.Get(t.Context(), cluster.Params{"id": "a"}); err != nil || v.Name != "old" {
		t.Fatalf("%+v, %v", v, err)
	}
	s.exec(`alter table documents alter column body type jsonb`)
	s.exec(`update documents set body = '{"name": "new"}'`)
	token, err := r.InvalidateNamespace(t.Context(), "document")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := q.Get(t.Context(), cluster.Params{"id": "a"}, node.AtLeast(token)); err != nil || v.Name != "new" {
		t.Errorf("afterwards: %+v, %v", v, err)
	}
}
