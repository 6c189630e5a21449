package node_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// Part is what the tests of strategies cache: rows of a table that nobody watches, so that nothing but
// what a test calls invalidates them.
type Part struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// parts are a replica's caches of them.
type parts struct {
	detail, card *node.Cache[Part]
}

// openParts makes the table, once, and the caches.
func (s *site) openParts(replicas ...*replica) []parts {
	s.t.Helper()
	s.exec(`create table if not exists parts (id text primary key, name text not null)`)
	s.exec(`insert into parts select 'part-' || n, 'old' from generate_series(1, 3000) n on conflict do nothing`)
	all := make([]parts, len(replicas))
	for i, r := range replicas {
		for view, cache := range map[string]**node.Cache[Part]{"detail": &all[i].detail, "card": &all[i].card} {
			var err error
			*cache, err = node.NewCache(r.Node, node.CacheConfig[Part]{
				Namespace: "part", View: view, Source: node.SQL[Part](`select id, name from parts where id = any($1)`),
				Tags: func(string, Part) []string { return []string{"parts"} },
			})
			if err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return all
}

// part names the n-th part.
func part(n int) string { return fmt.Sprintf("part-%d", n) }

// rename changes parts where no trigger sees it.
func (s *site) rename(name string, ids ...string) {
	s.t.Helper()
	s.exec(`update parts set name = $1 where id = any(string_to_array($2, ','))`, name, strings.Join(ids, ","))
}

func (s *site) part(c *node.Cache[Part], id string, options ...node.ReadOption) node.Entry[Part] {
	s.t.Helper()
	e, err := c.Lookup(s.t.Context(), id, options...)
	if err != nil {
		s.t.Fatalf("part %s: %v", id, err)
	}
	return e
}

// want checks the value that a cache has, of which it is sure.
func (s *site) want(c *node.Cache[Part], id, name string, options ...node.ReadOption) {
	s.t.Helper()
	if e := s.part(c, id, options...); e.Value.Name != name || !e.Fresh {
		s.t.Errorf("part %s: %+v, want %q, FRESH", id, e, name)
	}
}

// Row 9: immediate, delayed, with a grace (the reduction of a time to live), of one view, by a new
// generation, under load, while a writer's transaction stays open, and during the grace while the source
// answers nobody.
func TestRow09InvalidationStrategies(t *testing.T) {
	s := newSite(t)
	r := s.openReady(2)
	p := s.openParts(r...)
	load := s.traffic(r, trafficConfig{writers: 2, readers: 1})
	open, err := s.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback()
	if _, err := open.ExecContext(t.Context(), `select freshet.invalidate('part', 'part-1', 'part-2', 'part-3', 'part-4')`); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 4; n++ {
		for i := range r {
			s.want(p[i].detail, part(n), "old")
			s.want(p[i].card, part(n), "old")
		}
	}
	s.rename("new", part(1), part(2), part(3), part(4))
	for i := range r {
		s.want(p[i].detail, part(1), "old", node.Within(0)) // nobody has said that it changed
	}

	// Immediately.
	token, err := p[0].detail.Invalidate(t.Context(), []string{part(1)}, node.Immediately())
	if err != nil {
		t.Fatal(err)
	}
	s.want(p[0].detail, part(1), "new")
	s.want(p[0].card, part(1), "new")
	s.want(p[1].detail, part(1), "new", node.AtLeast(token))

	// After a delay.
	const delay = 400 * time.Millisecond
	began := time.Now()
	if _, err := p[0].detail.Invalidate(t.Context(), []string{part(2)}, node.After(delay)); err != nil {
		t.Fatal(err)
	}
	for i := range r {
		s.until("the delayed change counts", func() bool {
			name := s.part(p[i].detail, part(2), node.Within(0)).Value.Name
			if took := time.Since(began); name == "new" && took < delay {
				t.Errorf("replica %d: after %v, want %v at least", i, took, delay)
			}
			return name == "new"
		})
		if took := time.Since(began); took > delay+3*time.Second+slack {
			t.Errorf("replica %d: after %v, want soon after %v", i, took, delay)
		}
	}

	// One view.
	if _, err := r[0].Invalidate(t.Context(), "part", []string{part(3)}, node.View("card")); err != nil {
		t.Fatal(err)
	}
	for i := range r {
		s.want(p[i].card, part(3), "new", node.Within(0))
		s.want(p[i].detail, part(3), "old", node.Within(0))
	}
	// A new generation of all parts.
	s.rename("newer", part(2))
	if token, err = p[0].detail.Invalidate(t.Context(), nil, node.NextGeneration("row 9")); err != nil {
		t.Fatal(err)
	}
	s.want(p[0].detail, part(2), "newer")
	s.want(p[1].detail, part(2), "newer", node.AtLeast(token))
	s.want(p[1].detail, part(3), "new", node.AtLeast(token))
	var history string
	if err := s.db.Get(&history, `select string_agg(h.why, ', ') from freshet.generation_history h where h.namespace = 'part'`); err != nil || history != "row 9" {
		t.Errorf("the history of generations: %q, %v", history, err)
	}
	s.rename("old", part(4)) // it has been loaded by nobody since
	for i := range r {
		s.want(p[i].detail, part(4), "old")
		s.want(p[i].card, part(4), "old")
	}
	s.rename("new", part(4))
	s.grace(r, p)
	load.stop()
	load.noneFailed()
}

// grace is the part of the test about a grace: old values are served by both replicas, labelled, without
// waiting for a source that answers nobody, and not beyond it.
func (s *site) grace(r []*replica, p []parts) {
	t := s.t
	t.Helper()
	const grace = 3 * time.Second
	block, err := s.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer block.Rollback()
	if _, err := block.ExecContext(t.Context(), `lock table parts in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	loads := r[0].Stats().Namespaces
	began := time.Now()
	token, err := r[0].Invalidate(t.Context(), "part", []string{part(4)}, node.WithGrace(grace))
	if err != nil {
		t.Fatal(err)
	}
	committed := time.Now()
	for i := range r {
		graced := 0
		s.until("the replica answers by the grace", func() bool {
			e := s.part(p[i].detail, part(4))
			switch {
			case time.Since(began) > grace+slack:
				t.Fatalf("replica %d: too slow to tell", i)
			case e.Value.Name != "old":
				t.Fatalf("replica %d: %+v while nothing can be loaded", i, e)
			case e.Fresh && (i == 0 || time.Since(committed) > time.Second+slack):
				t.Errorf("replica %d: %+v, FRESH %v after the commit", i, e, time.Since(committed))
			case !e.Fresh && (e.Grace <= 0 || e.Grace > grace || e.Age < 0):
				t.Errorf("replica %d: %+v; want what is left of %v", i, e, grace)
			case !e.Fresh:
				graced++
			}
			return graced > 20
		})
	}
	answer := make(chan node.Entry[Part], 1)
	go func() {
		e, _ := p[1].detail.Lookup(t.Context(), part(4), node.AtLeast(token)) // judged below
		answer <- e
	}()
	s.until("the grace is over", func() bool { return time.Since(committed) > grace })
	select {
	case e := <-answer:
		t.Errorf("a reader with the token got %+v while nothing can be loaded", e)
	default:
	}
	late := make(chan node.Entry[Part], 1)
	go func() {
		e, _ := p[0].detail.Lookup(t.Context(), part(4)) // judged below
		late <- e
	}()
	if err := block.Rollback(); err != nil {
		t.Fatal(err)
	}
	for who, e := range map[string]node.Entry[Part]{"with the token": <-answer, "after the grace": <-late} {
		if e.Value.Name != "new" || !e.Fresh {
			t.Errorf("%s: %+v, want the new value, FRESH", who, e)
		}
	}
	for i := range r {
		s.want(p[i].detail, part(4), "new")
		s.want(p[i].card, part(4), "new", node.Within(0))
	}
	loaded := func(all []node.NamespaceStats) (n uint64) {
		for _, c := range all {
			if c.Namespace == "part" && c.View == "detail" {
				n += c.Loads
			}
		}
		return n
	}
	if n := loaded(r[0].Stats().Namespaces) - loaded(loads); n > 1 {
		t.Errorf("replica 0 has loaded %d times for one change, want one load", n)
	}
}
