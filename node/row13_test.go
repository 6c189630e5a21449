package node_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// Row 13: one call with a strategy, and it means the same on a cache, on a node, in a transaction and in
// SQL; what does not fit together is refused. Under load, without NATS.
func TestRow13OneCall(t *testing.T) {
	s := newSite(t)
	r := s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) { c.NATS = node.NATSConfig{} })
	s.ready(r)
	p := s.openParts(r)[0]
	load := s.traffic([]*replica{r}, trafficConfig{writers: 1, readers: 1})
	ctx := t.Context()
	quoted := func(ids []string) string { return "'" + strings.Join(ids, "', '") + "'" }
	next := 0
	for _, c := range []struct {
		name       string
		strategies []node.Strategy
		sql        string // a format with the list of ids
		first      string // SQL that finishes the job; "" = it takes effect by itself
	}{
		{"default", nil, `select freshet.invalidate('part', %s)`, ""},
		{"immediately", []node.Strategy{node.Immediately()}, `select freshet.invalidate('part', %s)`, ""},
		{"after", []node.Strategy{node.After(20 * time.Millisecond)}, `select freshet.invalidate_after('20 ms', 'part', %s)`, ""},
		{"grace", []node.Strategy{node.WithGrace(time.Minute)}, `select freshet.invalidate_with_grace('1 minute', 'part', %s)`, ""},
		{"grace of the transaction", []node.Strategy{node.WithGrace(time.Minute)}, `select freshet.grace('1 minute'); select freshet.invalidate('part', %s)`, ""},
		{"view", []node.Strategy{node.View("card")}, `select freshet.invalidate_view('part', id, 'card') from unnest(array[%s]) id`, ""},
		{"batch", []node.Strategy{node.Batch("b")}, `select freshet.batch_add('b', 'part', %s)`, `select freshet.run_batch('b')`},
		{
			"batch after",
			[]node.Strategy{node.Batch("c"), node.After(20 * time.Millisecond)},
			`select freshet.batch_add('c', 'part', %s); select freshet.batch_after('c', '20 ms')`, "",
		},
		{
			"view after, with a grace",
			[]node.Strategy{node.View("card"), node.After(20 * time.Millisecond), node.WithGrace(time.Minute)},
			`select freshet.grace('1 minute'); select freshet.invalidate_view_after('20 ms', 'part', id, 'card') from unnest(array[%s]) id`, "",
		},
	} {
		ids := make([]string, 8)
		for n := range ids {
			next++
			ids[n] = part(next)
			s.want(p.card, ids[n], "old")
		}
		s.rename("new", ids...)
		for way, call := range []func(ids []string) error{
			func(ids []string) error { _, err := p.card.Invalidate(ctx, ids, c.strategies...); return err },
			func(ids []string) error { _, err := r.Invalidate(ctx, "part", ids, c.strategies...); return err },
			func(ids []string) error {
				_, err := r.Write(ctx, func(tx *node.Tx) error { return tx.Invalidate("part", ids, c.strategies...) })
				return err
			},
			func(ids []string) error {
				_, err := s.db.ExecContext(ctx, fmt.Sprintf(c.sql, quoted(ids)))
				return err
			},
		} {
			if err := call(ids[2*way : 2*way+2]); err != nil {
				t.Fatalf("%s, way %d: %v", c.name, way, err)
			}
		}
		if c.first != "" {
			s.want(p.card, ids[0], "old", node.Within(0))
			s.exec(c.first)
		}
		for n, id := range ids {
			s.until(c.name+": "+id, func() bool { return s.part(p.card, id, node.Within(0)).Value.Name == "new" })
			if c.name == "view" && n%2 == 0 {
				s.want(p.card, id, "new")
			}
		}
	}

	// Tags and namespaces.
	s.rename("newer", part(1), part(2))
	if _, err := r.InvalidateTag(ctx, []string{"parts"}, node.After(10*time.Millisecond)); err != nil {
		t.Error(err)
	}
	s.until("the tag", func() bool { return s.part(p.card, part(1), node.Within(0)).Value.Name == "newer" })
	s.rename("newest", part(1))
	if _, err := r.InvalidateNamespace(ctx, "part", node.Batch("d")); err != nil {
		t.Error(err)
	}
	if n, err := r.RunBatch(ctx, "d"); n != 1 || err != nil {
		t.Errorf("ran %d, %v", n, err)
	}
	s.want(p.card, part(1), "newest")

	for way, call := range []func() error{
		func() error { _, err := p.card.Invalidate(ctx, nil, node.NextGeneration("a cache")); return err },
		func() error { _, err := r.Invalidate(ctx, "part", nil, node.NextGeneration("a node")); return err },
		func() error {
			_, err := r.InvalidateNamespace(ctx, "part", node.NextGeneration("its namespace"))
			return err
		},
		func() error {
			_, err := r.Write(ctx, func(tx *node.Tx) error { return tx.Invalidate("part", nil, node.NextGeneration("a transaction")) })
			return err
		},
		func() error {
			_, err := s.db.ExecContext(ctx, `select freshet.next_generation('part', 'SQL')`)
			return err
		},
	} {
		name := fmt.Sprint("generation ", way)
		s.rename(name, part(1))
		if err := call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.want(p.card, part(1), name, node.Within(0))
	}

	// Rows of a watched table, too, have the grace of their transaction.
	before := s.get(r, "thing-150")
	if _, err := r.Write(ctx, func(tx *node.Tx) error {
		if err := tx.Grace(time.Minute); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `update things set name = 'graced' where id = 'thing-150'`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if e := s.get(r, "thing-150"); e.Value.Name == before.Value.Name && (e.Fresh || e.Grace <= 0) {
		t.Errorf("after a write with a grace: %+v", e)
	}
	s.until("it is loaded", func() bool { e := s.get(r, "thing-150"); return e.Fresh && e.Value.Name == "graced" })

	for name, c := range map[string]struct {
		strategies []node.Strategy
		want       string
	}{
		"twice":                 {[]node.Strategy{node.After(time.Second), node.After(time.Minute)}, "given twice"},
		"no delay":              {[]node.Strategy{node.After(0)}, "want a delay"},
		"two years":             {[]node.Strategy{node.After(2 * node.MaxDelay)}, "want a delay"},
		"a long grace":          {[]node.Strategy{node.WithGrace(2 * time.Hour)}, "want a grace"},
		"a negative grace":      {[]node.Strategy{node.WithGrace(-time.Second)}, "want a grace"},
		"no batch":              {[]node.Strategy{node.Batch("")}, "characters"},
		"no view":               {[]node.Strategy{node.View("")}, "view"},
		"now and later":         {[]node.Strategy{node.Immediately(), node.After(time.Second)}, "want one of them"},
		"ids of a generation":   {[]node.Strategy{node.NextGeneration("why")}, "no ids"},
		"generation and a view": {[]node.Strategy{node.NextGeneration("why"), node.View("card")}, "want it alone"},
		"generation, no reason": {[]node.Strategy{node.NextGeneration("")}, "characters"},
	} {
		if _, err := r.Invalidate(ctx, "part", []string{part(1)}, c.strategies...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want an error with %q", name, err, c.want)
		}
	}
	if _, err := r.Invalidate(ctx, "", nil, node.NextGeneration("of what")); err == nil || !strings.Contains(err.Error(), "namespace is empty") {
		t.Errorf("a generation of no namespace: %v", err)
	}
	for name, sql := range map[string]string{
		"no delay":            `select freshet.invalidate_after(null, 'part', 'x')`,
		"a negative delay":    `select freshet.invalidate_after('-1 s', 'part', 'x')`,
		"two years":           `select freshet.invalidate_after('2 years', 'part', 'x')`,
		"a long grace":        `select freshet.grace('2 hours')`,
		"no grace":            `select freshet.invalidate_with_grace(null, 'part', 'x')`,
		"no namespace":        `select freshet.invalidate_after('1 s', '', 'x')`,
		"no id":               `select freshet.batch_add('b', 'part', '')`,
		"no tag":              `select freshet.batch_add_tag('b', null)`,
		"no view":             `select freshet.invalidate_view_after('1 s', 'part', 'x', '')`,
		"no batch":            `select freshet.batch_add('', 'part', 'x')`,
		"no such batch":       `select freshet.batch_after('nothing', '1 s')`,
		"nothing to run":      `select freshet.run_batch('')`,
		"too many at once":    `select freshet.invalidate_after('1 h', 'part', variadic array(select n::text from generate_series(1, 100001) n))`,
		"a table of its own":  `insert into freshet.scheduled (due, kind, grace) values (now(), 'x', 0)`,
		"a session's setting": `set local freshet.grace = '99999999'; select freshet.invalidate('part', 'x')`,
	} {
		if _, err := s.db.ExecContext(ctx, sql); err == nil {
			t.Errorf("%s: %s is accepted", name, sql)
		} else {
			t.Log(name+":", err)
		}
	}
	load.stop()
	load.noneFailed()
}
