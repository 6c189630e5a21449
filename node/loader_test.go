package node_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// function opens a replica whose things come from a function.
func (s *site) function(load func(ctx context.Context, ids []string) (map[string]Thing, error)) *replica {
	s.t.Helper()
	r := s.open(func(_ *node.Config, cache *node.CacheConfig[Thing]) { cache.Source = node.Func(load) })
	s.ready(r)
	s.until("L2 is connected", func() bool { return len(r.shardStates()) == 3 && r.shardStates()[0] == "closed" })
	return r
}

func someThings(ids []string) map[string]Thing {
	things := map[string]Thing{}
	for _, id := range ids {
		things[id] = Thing{ID: id, Name: "a thing"}
	}
	return things
}

// A loader that panics or fails is an error for who asked, is not kept, and frees its lease: the next
// read loads at once, also on another replica.
func TestLoaderFails(t *testing.T) {
	s := newSite(t)
	boom := errors.New("boom")
	var fail atomic.Pointer[func()]
	load := func(_ context.Context, ids []string) (map[string]Thing, error) {
		if f := fail.Load(); f != nil {
			(*f)()
			return nil, boom
		}
		return someThings(ids), nil
	}
	r := []*replica{s.function(load), s.function(load)}
	for n, f := range []func(){func() {}, func() { panic("a loader panics") }, func() { panic(errors.New("with an error")) }} {
		id := fmt.Sprint(n)
		fail.Store(&f)
		if e, err := r[0].things.Lookup(t.Context(), id); err == nil || errors.Is(err, node.ErrNotFound) || (n == 0 && !errors.Is(err, boom)) {
			t.Errorf("failing load: %+v, %v", e, err)
		}
		fail.Store(nil)
		began := time.Now()
		if e := s.get(r[1], id); e.Tier != node.TierSource || !e.Fresh {
			t.Errorf("the next read: %+v", e)
		}
		if took := time.Since(began); took > 120*time.Millisecond+slack {
			t.Errorf("the next read took %v: the lease was not released", took)
		}
		s.get(r[0], id)
	}
	if n := sum(r, func(n node.NamespaceStats) uint64 { return n.CutThrough }); n > 0 {
		t.Errorf("%d loads waited for a lease in vain", n)
	}
	if r[0].of().LoadErrors != 3 {
		t.Errorf("%d load errors are counted, want 3", r[0].of().LoadErrors)
	}
	if running := r[0].Stats().Source.Running; running != 0 {
		t.Errorf("%d places of the bulkhead are taken for ever", running)
	}
}

// What else of the application runs in a load may panic, too: it costs that load.
func TestTagsAndEncodingMayPanic(t *testing.T) {
	s := newSite(t)
	r := s.open(nil)
	s.ready(r)
	nasty, err := node.NewCache(r.Node, node.CacheConfig[panicky]{
		Namespace: "nasty",
		Source: node.Func(func(_ context.Context, ids []string) (map[string]panicky, error) {
			values := map[string]panicky{}
			for _, id := range ids {
				values[id] = panicky{id}
			}
			return values, nil
		}),
		Tags: func(id string, _ panicky) []string {
			if id == "tags" {
				panic("tags")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"tags", "json"} {
		if _, err := nasty.Get(t.Context(), id); err == nil || !strings.Contains(err.Error(), "panicked") {
			t.Errorf("%s: %v", id, err)
		}
	}
	if v, err := nasty.Get(t.Context(), "fine"); err != nil || v.id != "fine" {
		t.Errorf("afterwards: %+v, %v", v, err)
	}
}

// panicky is a value whose encoding panics for one id.
type panicky struct{ id string }

func (p panicky) MarshalJSON() ([]byte, error) {
	if p.id == "json" {
		panic("json")
	}
	return []byte(`{}`), nil
}

// A value that JSON cannot hold is served, is not kept, and has another version each time: as an ETag
// it must never match.
func TestUnencodableValuesHaveNoVersionInCommon(t *testing.T) {
	s := newSite(t)
	r := s.open(nil)
	s.ready(r)
	numbers, err := node.NewCache(r.Node, node.CacheConfig[float64]{
		Namespace: "number", Source: node.Func(func(_ context.Context, ids []string) (map[string]float64, error) {
			return map[string]float64{ids[0]: math.Inf(1)}, nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	versions := map[uint64]bool{}
	for range 2 {
		e, err := numbers.Lookup(t.Context(), "1")
		if err != nil || !math.IsInf(e.Value, 1) || !e.Fresh || e.Tier != node.TierSource {
			t.Fatalf("%+v, %v", e, err)
		}
		versions[e.Version] = true
	}
	if len(versions) != 2 {
		t.Error("two answers have one version, though nobody knows whether they are the same")
	}
}

// The first caller goes away: the others still get what it had asked for.
func TestLoaderIsCancelledByItsFirstCaller(t *testing.T) {
	s := newSite(t)
	entered, proceed := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	r := s.function(func(ctx context.Context, ids []string) (map[string]Thing, error) {
		calls.Add(1)
		close(entered)
		select {
		case <-proceed:
			return someThings(ids), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	first, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	readers.Go(func() {
		if _, err := r.things.Get(first, "x"); !errors.Is(err, context.Canceled) {
			t.Errorf("the first caller: %v", err)
		}
	})
	<-entered
	for range 10 {
		readers.Go(func() {
			if e, err := r.things.Lookup(t.Context(), "x"); err != nil || e.Value.ID != "x" || !e.Fresh {
				t.Errorf("a waiting caller: %+v, %v", e, err)
			}
		})
	}
	s.until("all wait", func() bool { return r.of().Coalesced >= 10 })
	cancel()
	s.until("the first is gone", func() bool { return r.of().Errors == 1 })
	close(proceed)
	readers.Wait()
	if calls.Load() != 1 {
		t.Errorf("%d loads, want 1", calls.Load())
	}
}

// A source that answers fewer ids than asked says that the others do not exist; more are ignored.
func TestLoaderAnswersOtherIDs(t *testing.T) {
	s := newSite(t)
	r := s.function(func(_ context.Context, ids []string) (map[string]Thing, error) {
		things := someThings([]string{"unasked", "another"})
		for _, id := range ids {
			if !strings.HasPrefix(id, "no") {
				things[id] = Thing{ID: id}
			}
		}
		return things, nil
	})
	got, err := r.things.GetMany(t.Context(), []string{"a", "no-1", "b", "no-2", "a"})
	if err != nil || len(got) != 2 || got["a"].Value.ID != "a" || got["b"].Value.ID != "b" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := r.things.Get(t.Context(), "no-1"); !errors.Is(err, node.ErrNotFound) {
		t.Errorf("what was not answered: %v", err)
	}
	loads := r.of().Loads
	s.get(r, "unasked")
	if r.of().Loads == loads {
		t.Error("what nobody had asked for was kept")
	}
}

// One id that Postgres cannot read as the type of its column does not spoil the batch for the others.
func TestOneBadIDOfABatch(t *testing.T) {
	s := newSite(t)
	s.exec(`create table numbered (id bigint primary key, name text not null)`)
	s.exec(`insert into numbered select n, 'name ' || n from generate_series(1, 50) n`)
	r := s.open(func(_ *node.Config, c *node.CacheConfig[Thing]) {
		c.Source = node.SQL[Thing](`select id, name from numbered where id = any($1::bigint[])`)
	})
	s.ready(r)
	ids := []string{"1", "2", "x", "3", "99999999999999999999", "4"}
	got, err := r.things.GetMany(t.Context(), ids)
	if err == nil || !strings.Contains(err.Error(), `"x"`) || len(got) != 4 {
		t.Errorf("%d entries, %v; want 4 and an error that names the id", len(got), err)
	}
	// So does a row that does not fit the type: thing-5 has no kind.
	s.exec(`update things set kind = null where id = 'thing-5'`)
	whole := s.open(nil)
	s.ready(whole)
	got, err = whole.things.GetMany(t.Context(), []string{"thing-4", "thing-5", "thing-6"})
	if err == nil || !strings.Contains(err.Error(), `"thing-5"`) || !strings.Contains(err.Error(), "kind") || len(got) != 2 {
		t.Errorf("%d entries, %v; want 2 and an error that names the id and the column", len(got), err)
	}
}

// I2: a load that began before a write cannot answer a read after it; nor is what it brings kept, in L1
// or L2.
func TestI2SlowLoader(t *testing.T) {
	s := newSite(t)
	// A load waits, with its snapshot taken, as long as the test holds the lock.
	slow := `select id, name, kind, revision from things where id = any($1) and pg_advisory_xact_lock_shared(1) is not null`
	r := s.openAll(2, func(_ *node.Config, c *node.CacheConfig[Thing]) { c.Source = node.SQL[Thing](slow) })
	var readers sync.WaitGroup
	for n := range 2 {
		id := thing(60 + n)
		hold, err := s.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hold.ExecContext(t.Context(), `select pg_advisory_xact_lock(1)`); err != nil {
			t.Fatal(err)
		}
		running := r[0].Stats().Source.Running
		readers.Go(func() { s.get(r[0], id) })
		s.until("the slow load runs", func() bool {
			var n int
			return r[0].Stats().Source.Running > running && s.db.Get(&n, `select count(*) from pg_stat_activity
				where application_name = 'freshet-load' and state = 'active' and wait_event = 'advisory' and datname = current_database()`) == nil && n > 0
		})
		var want int64
		token, err := r[0].Write(t.Context(), func(tx *node.Tx) error {
			return tx.GetContext(t.Context(), &want, nextRevision, id)
		})
		if err != nil {
			t.Fatal(err)
		}
		joined := r[0].of().Coalesced
		readers.Go(func() {
			if e := s.get(r[0], id); e.Value.Revision != want || !e.Fresh {
				t.Errorf("read after own write: %+v, want revision %d", e, want)
			}
		})
		s.until("the read joins the slow load", func() bool { return r[0].of().Coalesced > joined })
		if err := hold.Rollback(); err != nil {
			t.Fatal(err)
		}
		readers.Wait()
		if e := s.get(r[0], id); e.Value.Revision != want {
			t.Errorf("L1 is poisoned: %+v", e)
		}
		if e := s.get(r[1], id, node.AtLeast(token)); e.Value.Revision != want {
			t.Errorf("L2 is poisoned: %+v", e)
		}
	}
}

// A migration under a running service changes a column's type: loads go on without a restart.
func TestColumnChangesItsType(t *testing.T) {
	s := newSite(t)
	r := s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Postgres.MaxConns = 2 })
	s.ready(r)
	for n := range 4 {
		s.get(r, thing(n+1))
	}
	s.exec(`alter table things alter column kind type varchar(100)`)
	s.exec(`alter table things add column later text`)
	for n := range 8 {
		if e := s.get(r, thing(n+1), node.Within(0)); !e.Fresh || e.Value.Kind == "" {
			t.Errorf("%+v", e)
		}
	}
}
