package model

import (
	"cmp"
	"fmt"
	"strings"
	"testing"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
)

// goesOn takes up the comparison after the server's end: least and most are the model's bounds of the
// next transaction id; the model goes on with what the server gives.
func (d *difference) goesOn(t *testing.T, lost string, least, most uint64) {
	t.Helper()
	d.server.disconnect()
	d.server.connect()
	if id := d.server.timeline(); id != 0 {
		t.Errorf("after the %s there is the timeline %x, want none", lost, id)
	}
	var next uint64
	err := d.server.db.QueryRowContext(t.Context(), `select pg_snapshot_xmax(pg_current_snapshot())::text`).Scan(&next)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after the %s ids go on at %d; the model says %d to %d", lost, next, least, most)
	if next < least || next > most {
		t.Errorf("after the %s ids go on at %d, the model says %d to %d", lost, next, least, most)
	}
	p := d.model
	p.next, p.xmax, p.written, p.flushed, p.known = next, next, next, next, false
	d.txs, d.waiting = [observer]*Tx[product]{}, -1
	if model, actual := looks(p, nil, true), d.server.look(observer, true); model != actual {
		t.Errorf("after the %s: by the model %q, by the server %q\n%s", lost, model, actual, strings.Join(d.trace, "\n"))
	}
	log := p.Log(nil)
	for _, since := range []coherence.Snapshot{{}, d.seen[len(d.seen)/2]} {
		r, err := log.Poll(t.Context(), since, 1000)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.server.log.Poll(t.Context(), since, 1000)
		if model, actual := polled(r, nil), polled(got, err); model != actual {
			t.Errorf("after the %s, poll since %s:\nmodel  %s\nserver %s\n%s", lost, since, model, actual, strings.Join(d.trace, "\n"))
		}
	}
	d.seen = []coherence.Snapshot{{}}
}

// unfinished leaves a commit between two writers that have not committed.
func (d *difference) unfinished(t *testing.T) {
	t.Helper()
	var steps []step
	for i := range 2 * writers { // twice: one may wait for another
		steps = append(steps, step{action: doRollback, conn: i % writers, limit: 1000})
	}
	steps = append(steps, step{action: doReaderEnd, limit: 1000})
	for i := range 2 {
		for _, action := range []action{doBegin, doUpsert} {
			steps = append(steps, step{action: action, conn: i, key: uint64(i + 1), row: product{1, 1}, limit: 1000})
		}
	}
	d.mustPlay(t, append(steps, step{action: doCommit, conn: 0, limit: 1000}, step{action: doBegin, conn: 2, limit: 1000},
		step{action: doUpsert, conn: 2, key: 3, row: product{1, 1}, limit: 1000}))
}

func (d *difference) mustPlay(t *testing.T, steps []step) {
	t.Helper()
	if failure := d.play(steps); failure != "" {
		t.Fatalf("%s\n%s", strings.Join(d.trace, "\n"), failure)
	}
}

// abandon ends the server's connections as its end does.
func (d *difference) abandon(t *testing.T, end func() error) {
	t.Helper()
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if d.waiting >= 0 {
		<-d.result
	}
}

// A server killed with transactions open: they are gone, committed ones are there, the timeline is not,
// and both sides agree on all that comes after.
func TestPostgresCrashes(t *testing.T) {
	s := openServer(t)
	for seed := *firstSeed; seed < *firstSeed+uint64(max(*schedules/40, 1)); seed++ {
		d := newDifference(s)
		steps := randomSteps(seed, 80)
		d.mustPlay(t, steps[:40])
		d.unfinished(t)
		old := d.model.Log(nil)
		if _, err := old.Poll(t.Context(), coherence.Snapshot{}, 10); err != nil {
			t.Fatal(err)
		}
		d.abandon(t, func() error { return stacktest.Stack().Postgres.Kill() })
		least, most := d.model.flushed, d.model.written
		d.model.Crash(true)
		if err := stacktest.Stack().Postgres.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The connections of before are broken, once.
		_, modelErr := old.Poll(t.Context(), coherence.Snapshot{}, 10)
		_, realErr := s.log.Poll(t.Context(), coherence.Snapshot{}, 10)
		if modelErr == nil || realErr == nil {
			t.Errorf("a poll over a connection of before the crash: in the model %v, on the server %v", modelErr, realErr)
		}
		d.goesOn(t, "crash", least, most)
		d.mustPlay(t, steps[40:])
		d.end()
	}
}

// A standby that lacks the last commits takes over: rows, log and horizon are as they were then.
func TestPostgresFailsOver(t *testing.T) {
	s := openServer(t)
	stack := stacktest.Stack().Postgres
	for seed := *firstSeed; seed < *firstSeed+uint64(max(*schedules/40, 1)); seed++ {
		if err := stack.Standby(t.Context()); err != nil {
			t.Fatal(err)
		}
		d := newDifference(s)
		steps := randomSteps(seed, 120)
		d.mustPlay(t, steps[:40])
		if err := stack.CutReplication(t.Context()); err != nil {
			t.Fatal(err)
		}
		kept := d.model.Commits()
		least, most := d.model.flushed, d.model.written
		d.mustPlay(t, steps[40:80])
		d.unfinished(t)
		d.abandon(t, func() error { _, err := stack.Failover(t.Context()); return err })
		lost := d.model.Failover(d.model.Commits()-kept, true)
		if d.model.Commits() != kept || d.model.NextXID() != least {
			t.Errorf("the model goes on at %d after %d commits, want %d after %d", d.model.NextXID(), d.model.Commits(), least, kept)
		}
		// devstack draws an id to see whether the server takes writes.
		d.goesOn(t, fmt.Sprintf("failover that lost %d writers", len(lost)), least, most+1)
		d.mustPlay(t, steps[80:])
		d.end()
	}
}

// Statements that change more entities, or tags, than the watch names.
func TestPostgresBulk(t *testing.T) {
	s := openServer(t)
	p := s.fresh()
	rows := func(n uint64, category func(uint64) uint64) []Row[product] {
		var rows []Row[product]
		for key := range n {
			rows = append(rows, Row[product]{key + 1, product{category(key + 1), 0}})
		}
		return rows
	}
	auto := func(do func(tx *Tx[product]) (int, error)) func() (int, error) {
		return func() (int, error) {
			tx := p.Begin()
			n, err := do(tx)
			return n, cmp.Or(err, tx.Commit())
		}
	}
	since := p.Snapshot()
	for _, step := range []struct {
		sql   string
		model func(tx *Tx[product]) (int, error)
	}{
		{`insert into products select i, 1, 0 from generate_series(1, 1000) i`, func(tx *Tx[product]) (int, error) {
			return tx.Insert(rows(1000, func(uint64) uint64 { return 1 })...)
		}},
		{`insert into products values (1001, null, 0)`, func(tx *Tx[product]) (int, error) {
			return tx.Insert(Row[product]{1001, product{}})
		}},
		{`update products set value = 1`, func(tx *Tx[product]) (int, error) {
			return tx.UpdateAll(func(_ uint64, old product) product { return product{old.category, 1} })
		}},
		{`update products set category = id + 1 where id <= 500`, func(tx *Tx[product]) (int, error) {
			return tx.Update(p.keys[:500], func(key uint64, old product) product { return product{key + 1, old.value} })
		}},
		{`update products set category = id + 2000 where id <= 1000`, func(tx *Tx[product]) (int, error) {
			return tx.Update(p.keys[:1000], func(key uint64, old product) product { return product{key + 2000, old.value} })
		}},
		{`delete from products`, func(tx *Tx[product]) (int, error) { return tx.Delete(p.keys...) }},
		{`truncate products`, func(tx *Tx[product]) (int, error) { return tx.Truncate() }},
	} {
		n, err := auto(step.model)()
		if model, actual := outcome(n, err), s.exec(0, step.sql); model != actual {
			t.Errorf("%s: in the model %q, on the server %q", step.sql, model, actual)
		}
		r, err := s.log.Poll(t.Context(), since, 10_000)
		if model, actual := polled(p.Poll(since, 10_000), nil), polled(r, err); model != actual {
			t.Errorf("%s: polled\nmodel  %.900s\nserver %.900s", step.sql, model, actual)
		}
		since = p.Snapshot()
	}
	if model, actual := looks(p, nil, true), s.look(observer, true); model != actual {
		t.Errorf("in the end: by the model %.900q, by the server %.900q", model, actual)
	}
}
