package node_test

import (
	"slices"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
	"github.com/freshet-cache/freshet/node"
)

// problems are the problems that the replica knows of: namespace, relation, problem.
func (r *replica) problems() []string {
	var all []string
	for _, d := range r.Stats().WatchDrift {
		all = append(all, d.Namespace+" "+d.Relation+" "+d.Problem)
	}
	return all
}

// problems waits until each replica knows of these problems and no others.
func (s *site) problems(replicas []*replica, want ...string) {
	s.t.Helper()
	for _, r := range replicas {
		s.until("every replica knows what is wrong with the watches", func() bool { return slices.Equal(r.problems(), want) })
	}
}

// bumped changes a thing, once, past the library and by the traffic's rules.
func (f *traffic) bumped(n int) {
	f.site.t.Helper()
	w := f.checker.Begin(int64(n), 0, f.clock())
	var revision int64
	if err := f.site.db.GetContext(f.site.t.Context(), &revision, nextRevision, thing(n)); err != nil {
		f.site.t.Fatal(err)
	}
	w.Acked(revision, f.clock())
}

// Row 12: what watches are told to tell of, by whichever writer; and under load an operator disables the triggers
// of a table: as soon as the replicas have noticed, nothing cached of it is FRESH, though nobody tells of its
// changes, and everything is right again when the triggers are back.
func TestRow12Watch(t *testing.T) {
	s := newSite(t)
	often := func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Postgres.WatchInterval = 100 * time.Millisecond }
	r := s.openAll(2, often)
	watchOptions(s, r)

	f := s.traffic(r, trafficConfig{keys: 10})
	f.progress()
	s.exec(`alter table things disable trigger user`)
	s.problems(r, "thing public.things trigger disabled")
	hits := func() uint64 {
		return sum(r, func(n node.NamespaceStats) uint64 { return n.L1Hits + n.L2Hits + n.OwnerHits })
	}
	f.progress() // reads that were under way are over
	before := hits()
	for n := range 20 {
		f.bumped(1 + n%10)
		f.progress()
	}
	if now := hits(); now != before {
		t.Errorf("%d answers from a cache while its table is not watched", now-before)
	}
	if f.stale.Load() > 0 {
		t.Errorf("%d answers are STALE though Postgres was there", f.stale.Load())
	}
	late := s.open(nil) // and so it is for one that comes now, with entries from before in L2
	s.ready(late)
	for n := range 10 {
		if e := s.get(late, thing(n+1)); e.Tier != node.TierSource || !e.Fresh {
			t.Errorf("a new replica answers from %v, fresh: %v", e.Tier, e.Fresh)
		}
	}

	// The triggers are back, by the operator. Nobody has to tell of what changed meanwhile.
	s.exec(`alter table things enable trigger user`)
	s.problems(r)
	before = hits()
	s.until("there are hits again", func() bool { return hits() > before+200 })
	for n := range 10 {
		f.bumped(1 + n)
	}
	f.progress()

	// Disabled for the length of a transaction, which no replica could have seen.
	logged := func() (n int) {
		s.t.Helper()
		if err := s.db.GetContext(t.Context(), &n, `select count(*) from freshet.log where kind = 'n' and namespace = 'thing'`); err != nil {
			t.Fatal(err)
		}
		return n
	}
	was := logged()
	tx, err := s.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`alter table things disable trigger user`, `update things set name = 'unheard of' where id = 'thing-100'`, `alter table things enable trigger user`,
	} {
		if _, err := tx.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	s.until("it is found out", func() bool { return logged() > was })
	s.problems(r)
	if e := s.get(r[0], thing(100), node.Within(0)); e.Value.Name != "unheard of" {
		t.Errorf("answered: %+v", e)
	}

	// Dropped, and watched again.
	s.exec(`drop trigger freshet_update on things`)
	s.problems(r, "thing public.things trigger missing")
	f.bumped(1)
	f.progress()
	s.exec(`select freshet.rewatch('things')`)
	s.problems(r)
	before = hits()
	s.until("there are hits again", func() bool { return hits() > before+200 })
	f.stop()
	f.noneFailed()
	if counts := f.checker.Summary().Counts; counts[check.I1] > 0 {
		t.Error("the cache was trusted while its table was not watched")
	}
}

// watchOptions shows what a watch of a partitioned table with an id of two columns tells of, and that its problems are
// no others'.
func watchOptions(s *site, r []*replica) {
	t := s.t
	t.Helper()
	s.exec(`create table lines (order_id text, line text, qty int not null, seen int not null default 0, primary key (order_id, line)) partition by list (order_id)`)
	s.exec(`create table lines_low partition of lines for values in ('1', '2')`)
	lines := s.lines(r[0], [2]string{"1", "a"}, [2]string{"1", "b"}, [2]string{"2", "a"})
	s.problems(r)

	get := func(parts ...string) node.Entry[Line] {
		t.Helper()
		e, err := lines.Lookup(t.Context(), node.ID(parts...), node.Within(0))
		if err != nil {
			t.Fatalf("line %q: %v", parts, err)
		}
		return e
	}
	get("1", "a")
	get("1", "b")
	get("2", "a")
	for _, c := range []struct {
		statement string
		loads     [3]bool // of 1/a, 1/b and 2/a afterwards
	}{
		{`update lines set seen = seen + 1`, [3]bool{}},                                              // does not matter
		{`update lines set qty = 5 where order_id = '1' and line = 'a'`, [3]bool{true, true, false}}, // its order's tag, too
		{`update lines_low set qty = 6 where order_id = '2'`, [3]bool{false, false, true}},           // by the partition's name
		{`select freshet.invalidate('line', freshet.id('1', 'b'))`, [3]bool{false, true, false}},     // from any language
		{`select freshet.invalidate_tag('lines')`, [3]bool{}},                                        // the cache has no such tag
		{`update lines set order_id = '2', line = 'c' where line = 'b'`, [3]bool{true, false, true}}, // both orders'
		{`insert into lines values ('1', 'b', 2)`, [3]bool{true, true, false}},
	} {
		s.exec(c.statement)
		for i, parts := range [][]string{{"1", "a"}, {"1", "b"}, {"2", "a"}} {
			e, err := lines.Lookup(t.Context(), node.ID(parts...), node.Within(0))
			moved := i == 1 && err != nil // to another order
			if !moved && (e.Tier == node.TierSource) != c.loads[i] {
				t.Errorf("%s: line %q comes from %v", c.statement, parts, e.Tier)
			}
		}
	}

	// A partition that comes later is not covered. That is a problem of lines, and of what has tags, since the watch's are
	// made from columns; of nothing else.
	untagged, err := node.NewCache(r[0].Node, node.CacheConfig[Thing]{Namespace: "thing", View: "untagged", Source: node.SQL[Thing](thingQuery)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := untagged.Get(t.Context(), thing(150)); err != nil {
		t.Fatal(err)
	}
	s.exec(`create table lines_high (like lines_low including all)`)
	s.exec(`insert into lines_high values ('3', 'a', 1)`)
	s.exec(`alter table lines attach partition lines_high for values in ('3')`)
	s.problems(r, "line public.lines_high partition not covered")
	for range 2 {
		if e := get("1", "a"); e.Tier != node.TierSource || !e.Fresh {
			t.Errorf("with a partition that is not covered, lines come from %v, fresh: %v", e.Tier, e.Fresh)
		}
	}
	if e, err := untagged.Lookup(t.Context(), thing(150)); err != nil || e.Tier != node.TierL1 {
		t.Errorf("with a problem of another table, things come from %v, %v", e.Tier, err)
	}
	s.exec(`update lines_high set qty = 9`) // nobody tells
	if e := get("3", "a"); e.Value.Qty != 9 {
		t.Errorf("in the partition: %+v", e.Value)
	}
	s.exec(`select freshet.rewatch('lines')`)
	s.problems(r)
	get("3", "a")
	s.exec(`update lines_high set qty = 10`)
	if e := get("3", "a"); e.Value.Qty != 10 {
		t.Errorf("afterwards in the partition: %+v", e.Value)
	}
	if e := get("3", "a"); e.Tier != node.TierL1 {
		t.Errorf("afterwards lines come from %v", e.Tier)
	}
	s.exec(`select freshet.unwatch('lines')`)
	s.exec(`drop table lines`)
	s.problems(r)
}
