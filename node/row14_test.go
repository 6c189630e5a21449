package node_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
)

// keyIn is the key of a thing's entry in a generation.
func (s *site) keyIn(g node.Generation, id string) string {
	s.t.Helper()
	keys, err := cluster.NewKeys(s.app)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := keys.Entity(g, "thing", id, "detail")
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// kept reports whether L2 has the thing's entry of the generation.
func (s *site) kept(l2 *tiers.L2, g node.Generation, id string) bool {
	s.t.Helper()
	_, err := l2.Get(s.t.Context(), s.keyIn(g, id))
	if err != nil && !errors.Is(err, tiers.ErrMiss) {
		s.t.Fatal(err)
	}
	return err == nil
}

// generation is what the replica knows of the things' number.
func (r *replica) generation() uint32 { return r.Generation("thing").Namespace }

// Generations of a namespace and of all, under load: another one makes every replica load anew, the one of
// before brings back what still holds and nothing else, and what is old enough goes from Redis, also when the
// replica dies that was about to remove it.
func TestRow14Generations(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	s.exec(`update things set kind = id where id in ('thing-150', 'thing-151')`)
	r := s.openReady(3)
	l2 := s.rawL2()
	f := s.traffic(r, trafficConfig{writers: 2})
	const kept, changed = "thing-150", "thing-151" // the traffic leaves them alone, and their tags
	all := func(what string, done func(r *replica) bool) {
		t.Helper()
		for _, one := range r {
			s.until(what, func() bool { return done(one) })
		}
	}
	read := func(id string, tier node.Tier) {
		t.Helper()
		if e := s.get(r[0], id); e.Tier != tier || !e.Fresh {
			t.Errorf("%s comes from %v, FRESH %t, in generation %v; want it FRESH from %v", id, e.Tier, e.Fresh, r[0].Generation("thing"), tier)
		}
	}
	first := cluster.FirstGeneration()
	if g := r[0].Generation("thing"); g != first {
		t.Errorf("generation %v at the beginning", g)
	}
	for _, id := range []string{kept, changed} {
		read(id, node.TierSource)
		read(id, node.TierL1)
		s.until("it is in L2", func() bool { return s.kept(l2, first, id) })
	}

	// Forward.
	number, token, err := r[1].NextGeneration(ctx, "thing", node.GenerationChange{Why: "prices were wrong", By: "ann"})
	if err != nil || number != 2 || r[1].generation() != 2 {
		t.Fatalf("generation %d, known here as %d: %v", number, r[1].generation(), err)
	}
	if e := s.get(r[2], kept, node.AtLeast(token)); e.Tier == node.TierL1 || r[2].generation() != 2 {
		t.Errorf("with the token an answer comes from %v in generation %d", e.Tier, r[2].generation())
	}
	all("generation 2 is known", func(r *replica) bool { return r.generation() == 2 })
	s.get(r[0], kept)
	read(kept, node.TierL1)
	s.exec(`update things set name = 'another' where id = $1`, changed)
	s.until("the change is seen", func() bool { return s.get(r[0], changed).Value.Name == "another" })

	// And back.
	number, _, err = r[0].RollbackGeneration(ctx, "thing", 0, node.GenerationChange{Why: "they were right"})
	if err != nil || number != 1 || r[0].generation() != 1 {
		t.Fatalf("back to %d: %v", number, err)
	}
	read(kept, node.TierL2)
	if e := s.get(r[0], changed); e.Tier != node.TierSource || e.Value.Name != "another" {
		t.Errorf("what changed meanwhile comes back as %+v", e)
	}

	// Never a number twice; all namespaces at once.
	if number, _, err = r[2].NextGeneration(ctx, "thing", node.GenerationChange{Why: "again"}); err != nil || number != 3 {
		t.Errorf("generation %d: %v; 2 was taken", number, err)
	}
	if _, err = r[2].SetGeneration(ctx, "", 7, node.GenerationChange{Why: "another encoding"}); err != nil {
		t.Error(err)
	}
	all("generation 7.3 is known", func(r *replica) bool { return r.Generation("thing") == node.Generation{Global: 7, Namespace: 3} })
	if g := r[0].Generation("other"); g != (node.Generation{Global: 7, Namespace: 1}) {
		t.Errorf("of another namespace it is %v", g)
	}
	s.get(r[0], kept)
	now := r[0].Generation("thing")
	s.until("it is in L2", func() bool { return s.kept(l2, now, kept) })

	// What could be rolled back to stays; what could not goes, once the replica is gone that was at it.
	if err := r[0].CleanGenerations(ctx); err != nil || r[0].Stats().Cleaned != 0 || !s.kept(l2, first, kept) {
		t.Errorf("entries are removed that could be used again: %d, %v", r[0].Stats().Cleaned, err)
	}
	s.exec(`update freshet.generation_history set at = at - interval '2 h'`)
	s.exec(`select freshet.claim_generation_cleaning('1 h', 'a replica that died', '1 h')`)
	if err := r[0].CleanGenerations(ctx); err != nil || !s.kept(l2, first, kept) {
		t.Errorf("two replicas are at it: %v", err)
	}
	s.exec(`update freshet.generation_cleaning set until = now()`)
	if err := r[1].CleanGenerations(ctx); err != nil || r[1].Stats().Cleaned == 0 {
		t.Errorf("%d keys were removed: %v", r[1].Stats().Cleaned, err)
	}
	if s.kept(l2, first, kept) || !s.kept(l2, now, kept) {
		t.Errorf("the entry of 1.1 is there: %t, that of %v: %t", s.kept(l2, first, kept), now, s.kept(l2, now, kept))
	}
	if err := r[0].CleanGenerations(ctx); err != nil || r[0].Stats().Cleaned != 0 {
		t.Errorf("it is done again: %d, %v", r[0].Stats().Cleaned, err)
	}

	// By hand, whatever their age.
	if _, _, err = r[0].NextGeneration(ctx, "thing", node.GenerationChange{Why: "once more"}); err != nil {
		t.Error(err)
	}
	if done, err := r[2].Clean(ctx, node.Clean{OldGenerations: true, Rate: 100_000}); err != nil || done.Removed == 0 || s.kept(l2, now, kept) {
		t.Errorf("%+v, %v; the entry of %v is there: %t", done, err, now, s.kept(l2, now, kept))
	}
	f.progress()
	f.stop()
	f.noneFailed()
}

// Bumps and rollbacks all the time under writes: every answer is right.
func TestI1GenerationsUnderLoad(t *testing.T) {
	s := newSite(t)
	r := s.openReady(3)
	f := s.traffic(r, trafficConfig{keys: 10, writers: 3})
	for n := range 30 {
		why := node.GenerationChange{Why: "a test"}
		namespace := []string{"thing", "thing", ""}[n%3]
		var err error
		if n%2 == 0 {
			_, _, err = r[n%3].NextGeneration(t.Context(), namespace, why)
		} else if _, _, err = r[n%3].RollbackGeneration(t.Context(), namespace, 0, why); err != nil && strings.Contains(err.Error(), "no generation of") {
			err = nil // it is at its first
		}
		if err != nil {
			t.Error(err)
		}
		goal := f.reads.Load() + 60
		s.until("reads go on", func() bool { return f.reads.Load() >= goal })
	}
	f.stop()
	f.noneFailed()
	if f.fresh.Load() != f.reads.Load() {
		t.Errorf("%d of %d answers are FRESH", f.fresh.Load(), f.reads.Load())
	}
}

// The generation stands in memory and in every key; each replica follows within the budget, also one that
// hears nothing over NATS, and Redis is not asked.
func TestRow15GenerationAwareKeys(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	proxy, err := devstack.NewProxy(strings.TrimPrefix(stacktest.Stack().NATS.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	r := []*replica{s.open(nil), s.open(nil), s.open(func(c *node.Config, _ *node.CacheConfig[Thing]) {
		c.NATS.URLs = []string{"nats://" + proxy.Addr()}
	})}
	for _, one := range r {
		s.ready(one)
		s.until("members see each other", func() bool { return len(one.Stats().Members) == 3 })
		s.until("L2 is connected", func() bool { return !slices.Contains(one.shardStates(), "open") })
	}
	l2 := s.rawL2()
	f := s.traffic(r, trafficConfig{budgets: []time.Duration{time.Second}}) // reads that ask for no polls
	f.progress()
	const id = "thing-150"
	var slowest time.Duration
	for number := uint32(2); number < 8; number++ {
		if number == 5 {
			proxy.Cut()
		}
		for _, one := range r {
			s.get(one, id)
		}
		if _, _, err := r[0].NextGeneration(ctx, "thing", node.GenerationChange{Why: "a test"}); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		if r[0].generation() != number {
			t.Errorf("generation %d here, after the call that made it %d", r[0].generation(), number)
		}
		for _, one := range r[1:] {
			s.until("the generation is known", func() bool { return one.generation() == number })
		}
		took := time.Since(committed)
		slowest = max(slowest, took)
		if took > twoPolls {
			t.Errorf("generation %d took %v to be known everywhere", number, took)
		}
		for _, one := range r {
			s.get(one, id)
		}
		s.until("the entry is under its key", func() bool { return s.kept(l2, node.Generation{Global: 1, Namespace: number}, id) })
	}
	t.Logf("the slowest took %v", slowest)

	// Reads of what is in L1 ask Redis for nothing, whatever generation it is.
	f.stop()
	f.noneFailed()
	asked := func() (n uint64) {
		for _, shard := range r[0].Stats().Shards {
			n += shard.Requests
		}
		return n
	}
	s.get(r[0], id)
	before := asked()
	for range 1000 {
		if e := s.get(r[0], id); e.Tier != node.TierL1 {
			t.Fatalf("an answer comes from %v", e.Tier)
		}
	}
	if n := asked() - before; n > 0 {
		t.Errorf("1000 reads asked Redis %d times", n)
	}
}

// Operators at once, through three replicas and in SQL, each expecting what they last saw: one wins each
// time, the others are told, and the history says who, when and why. One operator dies in the middle.
func TestRow16GenerationAdministration(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	r := s.openReady(3)
	f := s.traffic(r, trafficConfig{writers: 1})
	began := time.Now()
	const rounds = 5
	for round := range uint32(rounds) {
		results := make(chan error, 6)
		for i := range 3 {
			go func() {
				_, _, err := r[i].NextGeneration(ctx, "thing", node.GenerationChange{Why: "a race", By: "ann", Expect: 1 + round})
				results <- err
			}()
			go func() {
				var number int64
				err := s.db.GetContext(ctx, &number, `select freshet.next_generation('thing', 'a race', $1, 'bob')`, 1+round)
				if err != nil && strings.Contains(err.Error(), "not "+string(rune('1'+round))+" as expected") {
					err = node.ErrConflict
				}
				results <- err
			}()
		}
		won := 0
		for range 6 {
			switch err := <-results; {
			case err == nil:
				won++
			case !errors.Is(err, node.ErrConflict):
				t.Error(err)
			}
		}
		if won != 1 {
			t.Errorf("%d of 6 operators won", won)
		}
	}

	// One who changes generations and dies before the commit holds up the others until then, and no longer.
	dead, err := s.db.Connx(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	var pid int
	if err := dead.GetContext(ctx, &pid, `select pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	if _, err := dead.ExecContext(ctx, `begin; select freshet.set_generation('thing', 99, 'never committed')`); err != nil {
		t.Fatal(err)
	}
	after := make(chan error, 1)
	go func() {
		_, _, err := r[0].NextGeneration(ctx, "thing", node.GenerationChange{Why: "after it", By: "cy", Expect: rounds + 1})
		after <- err
	}()
	s.until("the other waits", func() bool {
		var waits bool
		err := s.db.GetContext(ctx, &waits, `select exists (select from pg_stat_activity where $1 = any (pg_blocking_pids(pid)))`, pid)
		return err == nil && waits
	})
	s.exec(`select pg_terminate_backend($1)`, pid)
	if err := <-after; err != nil {
		t.Error(err)
	}

	events, err := r[1].GenerationHistory(ctx, "thing", 0)
	if err != nil || len(events) != rounds+1 {
		t.Fatalf("%d changes in the history, want %d: %v", len(events), rounds+1, err)
	}
	if e := events[0]; e.By != "cy" || e.Why != "after it" {
		t.Errorf("the last change is %+v", e)
	}
	for i, e := range events {
		want := uint32(rounds + 2 - i)
		if e.Generation != want || e.Previous != want-1 || e.Action != "increment" || (i > 0 && e.By != "ann" && e.By != "bob") ||
			e.At.Before(began.Add(-time.Minute)) || e.At.After(time.Now().Add(time.Minute)) {
			t.Errorf("change %d is %+v", i, e)
		}
	}

	// As a part of a transaction, with what it is about; none of it if that fails.
	token, err := r[2].Write(ctx, func(tx *node.Tx) error {
		if _, err := tx.ExecContext(ctx, `update things set name = 'new' where id = 'thing-150'`); err != nil {
			return err
		}
		_, err := tx.NextGeneration("thing", node.GenerationChange{Why: "with it"})
		return err
	})
	if err != nil || r[2].generation() != rounds+3 || s.get(r[0], "thing-150", node.AtLeast(token)).Value.Name != "new" {
		t.Errorf("generation %d: %v", r[2].generation(), err)
	}
	failed := errors.New("no")
	if _, err := r[2].Write(ctx, func(tx *node.Tx) error {
		return errors.Join(tx.SetGeneration("thing", 50, node.GenerationChange{Why: "not this"}), failed)
	}); !errors.Is(err, failed) || r[2].generation() != rounds+3 {
		t.Errorf("generation %d after a rolled back change: %v", r[2].generation(), err)
	}
	s.wrongGenerations(r[0])
	f.stop()
	f.noneFailed()
}

// wrongGenerations asks for what cannot be.
func (s *site) wrongGenerations(r *replica) {
	s.t.Helper()
	why := node.GenerationChange{Why: "a test"}
	for name, c := range map[string]struct {
		call func(ctx context.Context) error
		want string
	}{
		"no reason": {func(ctx context.Context) error {
			_, _, err := r.NextGeneration(ctx, "thing", node.GenerationChange{})
			return err
		}, "GenerationChange.Why is empty"},
		"a namespace that cannot be": {func(ctx context.Context) error {
			_, _, err := r.NextGeneration(ctx, "A thing", why)
			return err
		}, `namespace is "A thing"; want that of a cache`},
		"number 0": {func(ctx context.Context) error {
			_, err := r.SetGeneration(ctx, "thing", 0, why)
			return err
		}, "generation is 0; want 1 to 4294967295"},
		"back to where it has not been": {func(ctx context.Context) error {
			_, _, err := r.RollbackGeneration(ctx, "thing", 1000, why)
			return err
		}, "has not had the generation 1000"},
		"back from the beginning": {func(ctx context.Context) error {
			_, _, err := r.RollbackGeneration(ctx, "other", 0, why)
			return err
		}, "no generation of other is known from before 1"},
		"too much history": {func(ctx context.Context) error {
			_, err := r.GenerationHistory(ctx, "thing", 1001)
			return err
		}, "limit is 1001"},
	} {
		if err := c.call(s.t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			s.t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}
