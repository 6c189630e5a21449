package node_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// Line is an entity that two columns name.
type Line struct {
	OrderID string `db:"order_id" json:"order_id"`
	Line    string `db:"line" json:"line"`
	Qty     int    `db:"qty" json:"qty"`
}

// lineQuery finds lines by their primary key.
const lineQuery = `
select l.order_id, l.line, l.qty, freshet.id(l.order_id, l.line) as id
  from unnest($1::text[]) wanted(id), freshet.id_parts(wanted.id) part
  join lines l on l.order_id = part[1] and l.line = part[2]`

// lines makes a table of lines, watched, and a cache of them on the replica.
func (s *site) lines(r *replica, parts ...[2]string) *node.Cache[Line] {
	s.t.Helper()
	s.exec(`create table if not exists lines (order_id text, line text, qty int not null, seen int not null default 0, primary key (order_id, line))`)
	s.exec(`select freshet.watch('lines', 'line', id => 'order_id, line', tags => array['order:{order_id}'], columns => array['qty'])`)
	for _, p := range parts {
		s.exec(`insert into lines values ($1, $2, 1)`, p[0], p[1])
	}
	c, err := node.NewCache(r.Node, node.CacheConfig[Line]{
		Namespace: "line", Source: node.SQL[Line](lineQuery), Tags: func(_ string, l Line) []string { return []string{"order:" + l.OrderID} },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// queries are a list and a count of the things of a kind.
func (s *site) queries(r *replica) (*node.QueryCache[[]Thing], *node.QueryCache[int64]) {
	s.t.Helper()
	list, err := node.NewQueryCache(r.Node, node.QueryConfig[[]Thing]{
		Namespace: "thing", View: "list",
		Query: func(p cluster.Params) (string, []any, error) {
			return `select coalesce(json_agg(t order by id), '[]') from things t where kind = $1`, []any{p["kind"]}, nil
		},
		Tags: func(p cluster.Params, _ []Thing) []string { return []string{"kind:" + p["kind"]} },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	count, err := node.NewQueryCache(r.Node, node.QueryConfig[int64]{
		Namespace: "thing", View: "count",
		Query: func(p cluster.Params) (string, []any, error) {
			return `select count(*) from things where kind = $1`, []any{p["kind"]}, nil
		},
		Tags: func(p cluster.Params, _ int64) []string { return []string{"kind:" + p["kind"]} },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return list, count
}

// Row 3: the keys of details, lists and counts, of ids of any bytes and of several columns, as they are in the
// cluster: each its own, the same on every replica and after every primary was emptied under load.
func TestRow03Keys(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	f := s.traffic(r, trafficConfig{keys: 10, writers: 1})
	l2 := s.rawL2()
	keys, err := cluster.NewKeys(s.app)
	if err != nil {
		t.Fatal(err)
	}

	nasty := []string{
		"plain", "a b", "{}", "}{", "a}:detail", "a:b", "a%3Ab", "%", "%%", "?x=1", "*", "[a-z]", "a\nb", "\x7f", "é", "😀", "\u2028",
		"'; drop table things; --", "$1", `\`, strings.Repeat("x", cluster.MaxIDBytes),
	}
	for _, id := range nasty {
		s.exec(`insert into things (id, name, kind) values ($1, $1, 'nasty')`, id)
	}
	parts := [][2]string{{"a/b", "c"}, {"a", "b/c"}, {"a%2Fb", "c"}, {"", "c"}, {"c", ""}, {"a:b", "{c}"}, {"1", "2"}}
	lines := s.lines(r[0], parts...)
	list, count := s.queries(r[0])
	otherList, otherCount := s.queries(r[1])

	// key -> what has it, in L2 for sure.
	named := map[string]string{}
	has := func(what, key string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if other, there := named[key]; there {
			t.Errorf("%s and %s share the key %q", what, other, key)
		}
		named[key] = what
		s.until(what+" is in L2 under "+key, func() bool { _, err := l2.Get(t.Context(), key); return err == nil })
		if p, err := cluster.ParseKey(key); err != nil || p.App != s.app {
			t.Errorf("%s: %q is taken for %+v, %v", what, key, p, err)
		}
	}
	fill := func() {
		t.Helper()
		clear(named)
		for _, id := range nasty {
			if e := s.get(r[0], id); e.Value.Name != id {
				t.Errorf("%q is answered as %q", id, e.Value.Name)
			}
			key, err := keys.Entity(cluster.FirstGeneration(), "thing", id, "detail")
			has(fmt.Sprintf("thing %.30q", id), key, err)
			if tag := key[strings.IndexByte(key, '{')+1 : strings.IndexByte(key, '}')]; cluster.Slot(key) != cluster.Slot("{"+tag+"}:other") {
				t.Errorf("the slot of %q is not that of its entity", key)
			}
		}
		for _, p := range parts {
			id := node.ID(p[0], p[1])
			if l, err := lines.Get(t.Context(), id); err != nil || l.OrderID != p[0] || l.Line != p[1] {
				t.Errorf("line %q: %+v, %v", p, l, err)
			}
			key, err := keys.Entity(cluster.FirstGeneration(), "line", id, "detail")
			has(fmt.Sprintf("line %q", p), key, err)
		}
		for _, kind := range []string{"nasty", "kind-1", "kind-2", "none&kind=kind-1", ""} {
			p := cluster.Params{"kind": kind}
			all, err := list.Get(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			n, err := count.Get(t.Context(), p)
			if err != nil || int(n) != len(all) || (kind == "nasty") != (int(n) == len(nasty)) {
				t.Errorf("kind %q: %d counted, %d listed, %v", kind, n, len(all), err)
			}
			key, err := keys.Query(cluster.FirstGeneration(), "thing", p, "list")
			has("list of "+kind, key, err)
			key, err = keys.Query(cluster.FirstGeneration(), "thing", p, "count")
			has("count of "+kind, key, err)
		}
	}
	fill()
	if err := stacktest.Stack().Redis.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.exec(`select freshet.invalidate_namespace('thing'), freshet.invalidate_namespace('line')`)
	f.progress()
	fill()

	// The other replica finds the entries by the same keys, and counts are told of what comes and goes.
	nastyOnes := cluster.Params{"kind": "nasty"}
	if e, err := otherList.Lookup(t.Context(), nastyOnes); err != nil || len(e.Value) != len(nasty) || e.Tier != node.TierL2 {
		t.Errorf("the list on another replica: %d from %v, %v; want %d from L2", len(e.Value), e.Tier, err, len(nasty))
	}
	s.exec(`insert into things (id, name, kind) values ('one more', '', 'nasty')`)
	for _, c := range []*node.QueryCache[int64]{count, otherCount} {
		if n, err := c.Get(t.Context(), nastyOnes, node.Within(0)); err != nil || int(n) != len(nasty)+1 {
			t.Errorf("counted after an insert: %d, %v; want %d", n, err, len(nasty)+1)
		}
	}
	f.stop()
	f.noneFailed()
}
